//! On which side of the world switch each CPU is: the host's or its guest's.
//!
//! Hypervisor and guests may use the same addresses, so an address does not tell. The world switch does: a
//! CPU is in its guest from VMRUN (APM 3, "VMRUN") until #VMEXIT, and #VMEXIT goes to the instruction
//! behind that VMRUN, which begins a block since VMRUN ends one. The plugin notes where it has seen a
//! VMRUN; a block that begins right behind one with CLI and VMSAVE, as this hypervisor's does, is where a
//! guest's stretch ends. A guest would have to execute just these instructions at just this address to
//! be mistaken for its host.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// VMRUN rAX.
const VMRUN: [u8; 3] = [0x0f, 0x01, 0xd8];
/// CLI, the first instruction of the host after its guest.
const CLI: [u8; 1] = [0xfa];
/// VMSAVE rAX, the second.
const VMSAVE: [u8; 3] = [0x0f, 0x01, 0xdb];
/// Places with a VMRUN that are remembered.
const PLACES: usize = 8;

/// What an instruction does to the side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// The guest begins behind it.
    Leaves,
    /// The host is back, and this is its first instruction.
    Returns,
}

/// The side of each CPU.
#[derive(Debug)]
pub(crate) struct Sides {
    in_guest: Vec<AtomicBool>,
    behind_vmrun: [AtomicU64; PLACES],
}

impl Sides {
    pub(crate) fn new(vcpus: usize) -> Self {
        Self {
            in_guest: (0..vcpus).map(|_| AtomicBool::new(false)).collect(),
            behind_vmrun: Default::default(),
        }
    }

    /// Looks at an instruction being translated, the `index`-th of its block, and at the one after it.
    pub(crate) fn look(
        &self,
        index: usize,
        address: u64,
        bytes: &[u8],
        next: &[u8],
    ) -> Option<Switch> {
        if bytes == VMRUN {
            self.remember(address.wrapping_add(VMRUN.len() as u64));
            return Some(Switch::Leaves);
        }
        let returns = index == 0
            && bytes == CLI
            && next == VMSAVE
            && self
                .behind_vmrun
                .iter()
                .any(|place| place.load(Relaxed) == address);
        returns.then_some(Switch::Returns)
    }

    fn remember(&self, place: u64) {
        for slot in &self.behind_vmrun {
            match slot.compare_exchange(0, place, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(held) if held == place => return,
                Err(_) => {}
            }
        }
    }

    /// A CPU executes such an instruction.
    pub(crate) fn switch(&self, vcpu: usize, switch: Switch) {
        if let Some(side) = self.in_guest.get(vcpu) {
            side.store(switch == Switch::Leaves, Relaxed);
        }
    }

    /// Whether a CPU is in its guest.
    pub(crate) fn in_guest(&self, vcpu: usize) -> bool {
        self.in_guest
            .get(vcpu)
            .is_some_and(|side| side.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_instruction_behind_a_vmrun_returns() {
        let sides = Sides::new(2);
        assert_eq!(
            sides.look(0, 0x1003, &CLI, &VMSAVE),
            None,
            "no VMRUN was seen yet"
        );
        assert_eq!(sides.look(7, 0x1000, &VMRUN, &[]), Some(Switch::Leaves));
        assert_eq!(sides.look(0, 0x1003, &CLI, &VMSAVE), Some(Switch::Returns));
        assert_eq!(
            sides.look(1, 0x1003, &CLI, &VMSAVE),
            None,
            "not where a block begins"
        );
        assert_eq!(sides.look(0, 0x1003, &CLI, &[0x90]), None);
        assert_eq!(sides.look(0, 0x2003, &CLI, &VMSAVE), None);
        sides.switch(1, Switch::Leaves);
        assert!(sides.in_guest(1) && !sides.in_guest(0) && !sides.in_guest(9));
        sides.switch(1, Switch::Returns);
        assert!(!sides.in_guest(1));
        for place in 0..20 {
            let more = sides.look(0, place * 16, &VMRUN, &[]);
            assert_eq!(
                more,
                Some(Switch::Leaves),
                "more places than are remembered"
            );
        }
    }
}
