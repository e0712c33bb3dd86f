//! The guest room.
#![no_std]
#![forbid(unsafe_code)]
