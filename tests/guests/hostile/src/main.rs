//! Guests that mean no good.
#![cfg_attr(target_os = "none", no_std, no_main)]

/// On the host there is nothing to attack; commands over the whole workspace need a program all the same.
#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
kit::guest!("hostile", attack);

#[cfg(target_os = "none")]
fn attack() {}
