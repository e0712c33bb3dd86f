//! The migrate room.
#![no_std]
#![forbid(unsafe_code)]
