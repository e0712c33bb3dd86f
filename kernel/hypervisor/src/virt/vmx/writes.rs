#![expect(unsafe_code, reason = "reads what the processor has logged")]
//! One virtual CPU's log of written pages ([`vmcs::log`]).
//!
//! It is a page of the virtual CPU's own, and goes where that goes: address and index are fields of its VMCS.

use super::instruction::Current;
use crate::mm;
use crate::virt::Unsupported;
use units::{Frame, Gpa, NodeId, PageSize};
use vmcs::control::Secondary;
use vmcs::{Fields, field, log};

/// The page, on a processor that can log.
#[derive(Debug)]
pub struct WriteLog {
    page: Frame,
    /// The control is to be set at the next entry.
    pub wanted: bool,
}

impl WriteLog {
    /// An empty one; nothing is logged yet.
    pub fn new(node: NodeId) -> Result<Self, Unsupported> {
        let page = mm::alloc(node, PageSize::Size4K)
            .map_err(|_| Unsupported("no memory for a virtual CPU's log of written pages"))?;
        Ok(Self {
            page,
            wanted: false,
        })
    }

    /// Its address, for the VMCS.
    pub fn address(&self) -> u64 {
        self.page.address().0
    }

    /// What it adds to the secondary controls.
    pub fn control(&self) -> u32 {
        match self.wanted {
            true => Secondary::PML.bits(),
            false => 0,
        }
    }

    /// Hands on what has been logged, in the order in which it was, and empties the log.
    pub fn take(&self, vmcs: &mut Current, mut name: impl FnMut(Gpa)) {
        let index = vmcs.read(field::PML_INDEX);
        if index == log::EMPTY {
            return;
        }
        let entries = mm::direct(self.page.address()).cast::<u64>();
        for entry in log::written(index).rev() {
            // SAFETY: the page is this virtual CPU's as long as the value lives, mapped in the direct map, and has 512
            // entries. Only a processor on which the VMCS is current and a guest runs writes it: this one, between entries.
            let entry = unsafe { entries.add(entry).read_volatile() };
            name(Gpa(log::page(entry)));
        }
        vmcs.write(field::PML_INDEX, log::EMPTY);
    }
}

impl Drop for WriteLog {
    fn drop(&mut self) {
        // The virtual CPU runs nowhere and its VMCS is cleared, so no processor writes here any more.
        mm::free(self.page, PageSize::Size4K);
    }
}
