#![expect(unsafe_code, reason = "switches VMX on")]
//! One physical CPU under VMX: switched on, with its supply of tags for translations.
//!
//! Two kinds of cached translation have two kinds of tag (SDM 3C 29.4.1). What depends on the guest's own
//! paging is tagged by a VPID: flushing it means taking a new one, as with AMD's ASIDs, for nothing was ever
//! cached under it. What depends on the nested table alone is tagged by the EPT pointer, which all virtual
//! CPUs of a VM share: that takes an INVEPT, when the table has changed or when this CPU may remember the table
//! from a time before the virtual CPU came.

use super::instruction::{self, Scope};
use crate::arch::msr;
use crate::arch::percpu;
use crate::mm;
use crate::virt::Unsupported;
use crate::virt::fpu::Xfeatures;
use crate::virt::speculation;
use core::arch::asm;
use raw_cpuid::CpuId;
use spin::Once;
use units::{CpuId as CpuNumber, Hpa, NodeId, PageSize};
use vmcs::control::Pin;
use vmcs::{Capabilities, EptVpid, Facts, FeatureControl, PreemptionTimer, Settings};

/// IA32_FEATURE_CONTROL (SDM 3C 24.7).
const MSR_FEATURE_CONTROL: u32 = 0x3a;
/// IA32_XSS (SDM 1 13.3).
const MSR_XSS: u32 = 0xda0;

/// What this processor offers; all of its CPUs must offer the same.
pub fn facts() -> Result<Facts, Unsupported> {
    static FACTS: Once<Result<Facts, Unsupported>> = Once::new();
    *FACTS.call_once(read_facts)
}

fn read_facts() -> Result<Facts, Unsupported> {
    let cpuid = CpuId::new();
    let has_vmx = cpuid.get_feature_info().is_some_and(|f| f.has_vmx());
    let mut caps = Capabilities::read(has_vmx, &msr::read_checked)
        .map_err(|missing| Unsupported(missing.0))?;
    let signature = core::arch::x86_64::__cpuid(1).eax;
    if PreemptionTimer::is_wrong_on(signature) {
        caps.pin.may &= !Pin::PREEMPTION_TIMER.bits();
    }
    let widths = cpuid.get_processor_capacity_feature_info();
    let width =
        |bits: Option<u8>, usual: u8| bits.filter(|b| (32..=57).contains(b)).unwrap_or(usual);
    Ok(Facts {
        caps,
        physical_bits: width(widths.as_ref().map(|w| w.physical_address_bits()), 36),
        linear_bits: width(widths.as_ref().map(|w| w.linear_address_bits()), 48),
        has_transactions: cpuid
            .get_extended_feature_info()
            .is_some_and(|f| f.has_rtm()),
    })
}

/// A VPID given to one virtual CPU on one physical CPU; good as long as its generation is the CPU's current
/// one. Without VPIDs it is always 0, under which each entry and exit flushes (SDM 3C 29.4.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vpid {
    pub number: u16,
    pub generation: u64,
}

/// State of one physical CPU.
#[derive(Debug)]
pub struct VmxCpu {
    /// What the processor offers.
    pub facts: Facts,
    /// What is written into the controls.
    pub settings: Settings,
    number: CpuNumber,
    next_vpid: u16,
    generation: u64,
    flush_tags: bool,
    /// The virtual CPU that was here last, by its serial number.
    resident: Option<u64>,
}

impl VmxCpu {
    /// Switches VMX on, on the calling CPU.
    pub fn enable(node: NodeId) -> Result<Self, Unsupported> {
        let facts = facts()?;
        let own = read_facts()?;
        if own.caps != facts.caps {
            return Err(Unsupported(
                "this CPU's VT-x differs from that of the boot CPU",
            ));
        }
        Xfeatures::read().enable();
        speculation::prepare_cpu();
        let region = mm::alloc(node, PageSize::Size4K)
            .map_err(|_| Unsupported("no memory for the VMXON region of VT-x"))?;
        write_revision(region.address(), facts.caps.revision);
        let settings = Settings::choose(&facts.caps);
        permit()?;
        // SAFETY: VMX is present (`facts`) and permitted; the bits that VMX operation fixes are set first, all of
        // which the kernel keeps set or clear anyway but CR4.VMXE. The region is this CPU's for ever. What firmware or
        // an earlier hypervisor left cached is forgotten at once. Host XSS is 0: the guests' too, since no supervisor state is offered.
        unsafe {
            fix_control_registers(&facts.caps);
            instruction::vmxon(region.address()).map_err(|_| {
                Unsupported("VMXON failed although the processor and its firmware permit it")
            })?;
            instruction::invept(Scope::All);
            if settings.uses_vpid() {
                instruction::invvpid_all();
            }
            if settings.uses_xsaves() {
                let _absent_is_fine = msr::write_checked(MSR_XSS, 0);
            }
        }
        if !facts.caps.has_accessed_dirty() {
            log::warn!("extended page tables have no accessed bits here: footprints stay empty");
        }
        let number = percpu::current().cpu;
        if number == CpuNumber(0) {
            let ticks = facts.caps.preemption_timer().ticks();
            match settings.uses_preemption_timer() {
                true => log::info!(
                    "the preemption timer ends guests' time, to {ticks} ticks of the TSC"
                ),
                false => log::info!(
                    "there is no preemption timer to rely on: the local APIC's ends guests' time"
                ),
            }
        }
        Ok(Self {
            facts,
            settings,
            number,
            next_vpid: 1,
            generation: 1,
            flush_tags: false,
            resident: None,
        })
    }

    /// Its number.
    pub fn number(&self) -> CpuNumber {
        self.number
    }

    /// Notes that a virtual CPU comes; whether it was here last, and nobody since.
    pub fn receive(&mut self, serial: u64) -> bool {
        self.resident.replace(serial) == Some(serial)
    }

    /// Whether `vpid` may still be used here.
    pub fn is_current(&self, vpid: Vpid) -> bool {
        vpid.generation == self.generation
    }

    /// A tag under which this CPU has cached nothing (once [`Self::forget`] has run).
    pub fn fresh_vpid(&mut self) -> Vpid {
        if !self.settings.uses_vpid() {
            return Vpid {
                number: 0,
                generation: self.generation,
            };
        }
        if self.next_vpid == u16::MAX {
            self.next_vpid = 1;
            self.generation += 1;
            self.flush_tags = true;
        }
        let number = self.next_vpid;
        self.next_vpid += 1;
        Vpid {
            number,
            generation: self.generation,
        }
    }

    /// Forgets all tags if they have begun anew, and what depends on this EPT pointer if it is stale.
    pub fn forget(&mut self, stale: Option<u64>) {
        let single = self.facts.caps.ept_vpid.contains(EptVpid::INVEPT_SINGLE);
        // SAFETY: this CPU is in VMX root operation (a `VmxCpu` exists only then); the scopes are offered: all
        // contexts of INVEPT are required, those of INVVPID are if VPIDs are used.
        unsafe {
            if core::mem::take(&mut self.flush_tags) {
                instruction::invvpid_all();
            }
            match stale {
                Some(pointer) if single => instruction::invept(Scope::Single(pointer)),
                Some(_) => instruction::invept(Scope::All),
                None => {}
            }
        }
    }
}

/// The first four bytes of a region say which revision of the format it is in (SDM 3C 25.2).
pub fn write_revision(region: Hpa, revision: u32) {
    // SAFETY: a page of the caller's own in the direct map, aligned; no VMCS is active in it.
    unsafe { mm::direct(region).cast::<u32>().write(revision) };
}

/// Makes IA32_FEATURE_CONTROL permit VMXON, if firmware left the decision open.
fn permit() -> Result<(), Unsupported> {
    let Some(value) = msr::read_checked(MSR_FEATURE_CONTROL) else {
        return Ok(());
    };
    if let FeatureControl::Unlocked(enabling) = FeatureControl::of(value) {
        // SAFETY: sets the lock and VMXON outside SMX; nothing that runs is affected.
        if !unsafe { msr::write_checked(MSR_FEATURE_CONTROL, enabling) } {
            return Err(Unsupported("IA32_FEATURE_CONTROL refuses to permit VMXON"));
        }
    }
    Ok(())
}

/// Gives CR0 and CR4 the bits that VMX operation wants (SDM 3C 24.8, SDM 3D A.7, A.8).
///
/// # Safety
/// The kernel runs with these bits: PE, NE and PG of CR0 and VMXE of CR4 on all known processors.
unsafe fn fix_control_registers(caps: &Capabilities) {
    // SAFETY: the caller's; every other bit stays.
    unsafe {
        let (mut cr0, mut cr4): (u64, u64);
        asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4, options(nomem, nostack));
        cr0 = (cr0 | caps.cr0.0) & caps.cr0.1;
        cr4 = (cr4 | caps.cr4.0) & caps.cr4.1;
        asm!("mov cr0, {}", "mov cr4, {}", in(reg) cr0, in(reg) cr4, options(nostack));
    }
}
