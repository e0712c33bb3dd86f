//! The footprint room.
#![no_std]
#![forbid(unsafe_code)]
