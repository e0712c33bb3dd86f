//! A guest that knows what every byte of its memory must be, for pages that move under it.
//!
//! Each page belongs to one processor, which reads it, compares every byte with what it wrote there last, and writes it
//! anew: a stamp of the page's number, its turn and the place in it. A page in sixty-four of the last processor's is filled by
//! a port instead (`rep insb` from the interrupt controller's mask, which it sets before): the hypervisor writes
//! that one. It says now and then how far it is. A `q` ends it, an `a` halts all of its processors but the first.
//!
//! Command line: `seed=S`; `turns=N`: every page has been compared so often before it ends; `only=N`: the first N pages are
//! written all the time by the first processor, and no others ever.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod pages;

/// On the host there is nothing to stamp; commands over the whole workspace need a program all the same.
#[cfg(not(target_os = "none"))]
fn main() {}
