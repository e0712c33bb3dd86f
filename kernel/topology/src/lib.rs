//! The topology room.
#![no_std]
#![forbid(unsafe_code)]
