//! The sched room.
#![no_std]
#![forbid(unsafe_code)]
