//! The self-tests: what a PC promises its kernel, each promise a short test.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod suite;

/// On the host there is nothing to test; commands over the whole workspace need a program all the same.
#[cfg(not(target_os = "none"))]
fn main() {}
