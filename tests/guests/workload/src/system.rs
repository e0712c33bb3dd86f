//! System calls that std does not offer.
#![expect(unsafe_code, reason = "system calls")]

use std::io::Error;

/// Bytes of a huge page of the guest's.
const HUGE: usize = 2 << 20;

/// Anonymous memory, unmapped when dropped. It begins with a huge page, so that no huge page of the
/// guest's can lie across the memory of two threads and take one's node for both.
#[derive(Debug)]
pub struct Mapping {
    whole: *mut u8,
    whole_bytes: usize,
    address: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping belongs to its owner alone, whichever thread that is.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `bytes`, which are not none, without touching them.
    ///
    /// # Errors
    /// A sentence with the system's reason.
    pub fn new(bytes: usize) -> Result<Self, String> {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let whole_bytes = bytes + HUGE;
        // SAFETY: a new mapping where the system likes; nothing existing is replaced.
        let whole = unsafe { libc::mmap(std::ptr::null_mut(), whole_bytes, rights, flags, -1, 0) };
        if whole == libc::MAP_FAILED {
            return Err(format!(
                "cannot map {whole_bytes} bytes: {}",
                Error::last_os_error()
            ));
        }
        let whole = whole.cast::<u8>();
        let address = whole.map_addr(|address| address.next_multiple_of(HUGE));
        Ok(Self {
            whole,
            whole_bytes,
            address,
            bytes,
        })
    }

    /// Its first byte.
    pub fn address(&self) -> *mut u8 {
        self.address
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is what `new` mapped, and nobody refers to it any more. A failure leaves it mapped.
        unsafe { libc::munmap(self.whole.cast(), self.whole_bytes) };
    }
}

/// Binds memory that was not touched yet to a node of the guest (`mbind` with `MPOL_BIND`).
///
/// # Errors
/// A sentence with the system's reason.
pub fn bind(memory: &Mapping, node: usize) -> Result<(), String> {
    let mask = [1u64 << (node % 64)];
    // The kernel reads one bit less than the count given.
    let bits = 65usize;
    // SAFETY: the range is a mapping of ours, the mask has the 64 bits that are read of it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            memory.address,
            memory.bytes,
            libc::MPOL_BIND,
            mask.as_ptr(),
            bits,
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(format!(
            "cannot bind memory to node {node}: {}",
            Error::last_os_error()
        ))
    }
}

/// Keeps the calling thread on one CPU; `false` where the system refuses.
pub fn pin(cpu: usize) -> bool {
    // SAFETY: an all-zero set is an empty one; CPU_SET ignores numbers beyond its size; the set lives during the call.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) == 0
    }
}

/// `CLOCK_MONOTONIC` in ns, as it is: std would hide a step back.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the structure given; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The CPUs or nodes that a file under /sys lists ("0-3,8"); empty if it is not there.
pub fn listed(path: &str) -> Vec<usize> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    numbers(text.trim())
}

fn numbers(text: &str) -> Vec<usize> {
    let part = |part: &str| -> Option<std::ops::RangeInclusive<usize>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.split(',').filter_map(part).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel_are_read() {
        assert_eq!(numbers("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(numbers("0"), [0]);
        assert_eq!(numbers(""), []);
        assert_eq!(listed("/nowhere"), []);
    }

    #[test]
    fn the_clock_runs() {
        let before = monotonic_ns();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(monotonic_ns() >= before + 2_000_000);
    }
}
