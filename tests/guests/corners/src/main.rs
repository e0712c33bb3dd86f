//! Corners of the processor that foreign test kernels look into, each once a mistake of Perigee's.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod control;
#[cfg(target_os = "none")]
mod device;
#[cfg(target_os = "none")]
mod nmi;

#[cfg(target_os = "none")]
kit::guest!("corners", main);

#[cfg(target_os = "none")]
fn main() {
    kit::registry::run(&[control::TESTS, device::TESTS, nmi::TESTS]);
}

/// On the host there is nothing to test; commands over the whole workspace need a program all the same.
#[cfg(not(target_os = "none"))]
fn main() {}
