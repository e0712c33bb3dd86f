//! The devices room.
#![no_std]
#![forbid(unsafe_code)]

pub mod layout;
