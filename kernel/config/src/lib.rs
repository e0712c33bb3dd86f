//! The config room.
#![no_std]
#![forbid(unsafe_code)]
