//! The telemetry room.
#![no_std]
#![forbid(unsafe_code)]
