//! Perigee's UEFI application: from firmware to the kernel's first instruction.
//!
//! The story is [`main`]: open the boot volume, load what is on it, describe the machine, leave
//! boot services, jump. Whatever is missing or damaged on the way ends it with a sentence that
//! names the file and the fix, and control returns to firmware. What is decided along the way is
//! decided in the library beside this binary (`lib.rs`), which runs on any host; here is only
//! what needs firmware or the bare CPU.
#![cfg_attr(target_os = "uefi", no_std)]
#![cfg_attr(target_os = "uefi", no_main)]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod facts;
#[cfg(target_os = "uefi")]
mod files;
#[cfg(target_os = "uefi")]
mod leave;
#[cfg(target_os = "uefi")]
mod pages;
#[cfg(target_os = "uefi")]
mod screen;
#[cfg(target_os = "uefi")]
mod story;

/// A build for the host has nothing to load anything from.
#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!("boot is a UEFI application: build it with --target x86_64-unknown-uefi");
    std::process::exit(2);
}
