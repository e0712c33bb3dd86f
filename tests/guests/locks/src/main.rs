//! A guest all of whose processors want one lock: what one gains by a slice of its own depends on who has the others.
//!
//! Each processor works outside of the lock, waits for it in a PAUSE loop at privilege level 0, as kernels do, and works
//! inside. A holder that is preempted stops all of them. The guest counts what is done inside; that a second processor was
//! never there at the same time is checked as well. Twice a second of its own time it says how far it is:
//! `LOCKS ms=2500 n=81234`.
//!
//! Command line: `seconds=T`; `outside=N` and `inside=N`: steps of work there, of a few instructions each.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod contend;

/// On the host there is nothing to wait for; commands over the whole workspace need a program all the same.
#[cfg(not(target_os = "none"))]
fn main() {}
