//! The memory room.
#![no_std]
#![forbid(unsafe_code)]
