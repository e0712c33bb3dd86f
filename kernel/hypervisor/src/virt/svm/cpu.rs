#![expect(
    unsafe_code,
    reason = "switches SVM on and tells the processor where to keep host state"
)]
//! One physical CPU under SVM: switched on, with its host-state areas and its supply of ASIDs.

use super::caps::Caps;
use crate::arch::msr;
use crate::mm;
use crate::virt::Unsupported;
use crate::virt::fpu::Xfeatures;
use crate::virt::speculation;
use units::{Hpa, NodeId, PageSize};

const MSR_EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
/// Where VMRUN saves host state (APM 2 15.30.4).
const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;

/// A translation tag given to one virtual CPU on one physical CPU.
///
/// A tag is good as long as its generation is the CPU's current one. Where the processor cannot flush
/// one tag alone, a flush is simply a new tag: nothing was ever cached under it since the generation
/// began with a full flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asid {
    pub number: u32,
    pub generation: u64,
}

/// State of one physical CPU.
#[derive(Debug)]
pub struct SvmCpu {
    pub caps: Caps,
    /// Page for VMLOAD/VMSAVE of the host's own segment and SYSCALL state.
    pub host_vmcb: Hpa,
    next_asid: u32,
    generation: u64,
    flush_all: bool,
}

impl SvmCpu {
    /// Switches SVM on, on the calling CPU.
    pub fn enable(node: NodeId) -> Result<Self, Unsupported> {
        let caps = Caps::read();
        caps.check()?;
        Xfeatures::read().enable();
        speculation::prepare_cpu();
        let out_of_memory = |_| Unsupported("no memory for the host-state pages of AMD-V");
        let host_save = mm::alloc(node, PageSize::Size4K).map_err(out_of_memory)?;
        let host_vmcb = mm::alloc(node, PageSize::Size4K).map_err(out_of_memory)?;
        // SAFETY: SVM is present and not locked off (checked above), so EFER.SVME may be set; it
        // changes nothing until VMRUN. The host-save page belongs to this CPU alone, for ever.
        unsafe {
            msr::write(MSR_EFER, msr::read(MSR_EFER) | EFER_SVME);
            msr::write(MSR_VM_HSAVE_PA, host_save.address().0);
        }
        // Generation 1 starts with a full flush: firmware or an earlier hypervisor may have used tags.
        Ok(Self {
            caps,
            host_vmcb: host_vmcb.address(),
            next_asid: 1,
            generation: 1,
            flush_all: true,
        })
    }

    /// Whether `asid` may still be used here.
    pub fn is_current(&self, asid: Asid) -> bool {
        asid.generation == self.generation
    }

    /// A tag under which this CPU has cached nothing (once [`Self::take_flush_all`] is obeyed).
    pub fn fresh_asid(&mut self) -> Asid {
        if self.next_asid >= self.caps.asids {
            self.next_asid = 1;
            self.generation += 1;
            self.flush_all = true;
        }
        let number = self.next_asid;
        self.next_asid += 1;
        Asid {
            number,
            generation: self.generation,
        }
    }

    /// Whether the next VMRUN must flush all tags; asked once per flush.
    pub fn take_flush_all(&mut self) -> bool {
        core::mem::take(&mut self.flush_all)
    }
}
