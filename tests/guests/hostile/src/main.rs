//! Guests that mean no good: each attack a function, chosen by `attack=NAME` on the command line. And their
//! neighbour, which only counts (`attack=count`), so that a judge sees whether it suffers.
//!
//! An attack that can be switched on and off goes in turns with honest work of the same weight and says so
//! (`PHASE attack`, `PHASE honest`): a neighbour's pace in the one can then be held against its pace in the other,
//! on the same machine a second later, however busy the host is.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod attacks;

/// On the host there is nothing to attack; commands over the whole workspace need a program all the same.
#[cfg(not(target_os = "none"))]
fn main() {}
