#![expect(
    unsafe_code,
    reason = "enters guests with one random mistake in their VMCS"
)]
//! Asks the processor about VMCSs with one random mistake, beside the checker of the crate [`vmcs`].
//!
//! For kernels that were built for tests. Nothing else runs yet when [`run`] is called. Each trial is a line; what the
//! lines mean is judged outside. The guests have no memory: their nested table is empty, and so is the page
//! that their CR3 points to, should the mistake be that the nested table is off. So they stop at once;
//! one that is entered halted is ended by the preemption timer.

use super::cpu::VmxCpu;
use super::enter;
use super::instruction::{self, Current};
use super::{bitmap, host};
use crate::arch::msr;
use crate::mm;
use crate::virt::{Regs, Unsupported};
use core::fmt;
use units::{Frame, Hpa, NodeId, PageSize};
use vmcs::control::{EntryControls, Pin, Primary};
use vmcs::mutation::{Base, Mutation, Random};
use vmcs::{Controls, Fields, Violation, field, reason};

/// Trials of a run; some of them may not be tried at all.
const TRIALS: u32 = 400;
/// Ticks of the preemption timer, each of 2^(IA32_VMX_MISC 4:0) TSC ticks.
const PATIENCE: u32 = 50_000;
const MSR_EFER: u32 = 0xc000_0080;
/// Fields that Perigee does not use, so that they are not in the list: addresses of pages, should a mistake
/// switch on what uses them (APIC pages, PML, VMREAD and VMWRITE bitmaps, EPTP list, #VE), and the TSC's multiplier.
const PAGES: [u32; 7] = [0x200e, 0x2012, 0x2014, 0x2024, 0x2026, 0x2028, 0x202a];
const TSC_MULTIPLIER: u32 = 0x2032;

/// What the processor said.
enum Answer {
    Entered(u32),
    Failed(u32),
    Rejected(u32),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entered(reason) => write!(f, "accepts (exit {reason})"),
            Self::Failed(error) => write!(f, "rejects (error {error})"),
            Self::Rejected(reason) => write!(f, "rejects (entry failure {reason})"),
        }
    }
}

/// What the checker said.
struct Opinion(Result<(), Violation>);

impl fmt::Display for Opinion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(()) => f.write_str("accepts"),
            Err(violation) => write!(f, "rejects ({violation})"),
        }
    }
}

/// The pages of all trials.
struct Stage {
    vmcs: Frame,
    /// Zeros: the nested table, the guest's page table, and whatever a mistake makes the processor look for.
    empty: Frame,
}

/// Runs a series on the calling CPU.
///
/// # Errors
/// There is no memory for it.
pub fn run(cpu: &VmxCpu, node: NodeId, seed: u64) -> Result<(), Unsupported> {
    let page = || {
        mm::alloc(node, PageSize::Size4K).map_err(|_| Unsupported("no memory for trials of VT-x"))
    };
    let stage = Stage {
        vmcs: page()?,
        empty: page()?,
    };
    let mut random = Random::new(seed);
    let mut tried = 0;
    for number in 1..=TRIALS {
        let base = Base::ALL[random.below(3) as usize];
        let Some(mut form) = stage.set(cpu, base) else {
            log::error!("vmcs trial {number}: the VMCS cannot be made current");
            break;
        };
        let mutation = Mutation::draw(&mut random, |encoding| form.read_raw(encoding));
        form.write_raw(mutation.encoding, mutation.value);
        let opinion = Opinion(vmcs::check(&form, &cpu.facts));
        if opinion.0.is_ok() && !mutation.is_harmless() {
            continue;
        }
        // Without the trap flag type 7 is reserved (27.2.1.3). Bochs 2.7 checks that nowhere, and gives up delivering it.
        let trap_flag = Primary::MONITOR_TRAP.bits();
        if mutation.injects_other_event() && !cpu.facts.caps.primary.offers(trap_flag) {
            continue;
        }
        tried += 1;
        let answer = enter(&form);
        log::warn!(
            "vmcs trial {number}: {base}, {mutation}: the checker {opinion}; the processor {answer}"
        );
    }
    // SAFETY: VMX root operation; the VMCS is ours and current here, and nobody uses it any more.
    let _cleared = unsafe { instruction::vmclear(stage.vmcs.address()) };
    for frame in [stage.vmcs, stage.empty] {
        mm::free(frame, PageSize::Size4K);
    }
    log::warn!("vmcs trials: {tried} of {TRIALS} were tried, seed {seed}");
    Ok(())
}

impl Stage {
    /// Makes the VMCS current, in a valid form.
    fn set(&self, cpu: &VmxCpu, base: Base) -> Option<Current> {
        let region = self.vmcs.address();
        super::cpu::write_revision(region, cpu.facts.caps.revision);
        // SAFETY: this CPU is in VMX root operation (`VmxCpu`); the region is ours, begins with the revision and is active
        // on no other CPU. From here it is current, until the next trial's VMCLEAR.
        let mut form = unsafe {
            instruction::vmclear(region).ok()?;
            instruction::vmptrld(region).ok()?;
            Current::assume()
        };
        let settings = &cpu.settings;
        let caps = &cpu.facts.caps;
        let image = |map: &bitmap::Map| mm::hpa_of(map.0.as_ptr()).unwrap_or(Hpa(0)).0;
        let io = image(&bitmap::IO);
        Controls {
            pin: caps.pin.fit(settings.pin | Pin::PREEMPTION_TIMER.bits()),
            primary: settings.primary,
            secondary: settings.secondary,
            exit: settings.exit,
            entry: settings.entry & !EntryControls::IA32E_GUEST.bits() | base.entry(),
            io_bitmap_a: io,
            io_bitmap_b: io,
            msr_bitmap: image(&bitmap::MSR),
            ept_pointer: caps.ept_pointer(self.empty.address().0),
            cr0_mask: u64::MAX,
            cr4_mask: u64::MAX,
            vpid: 1,
            ..Controls::default()
        }
        .write(&mut form);
        host::area().write(&mut form);
        base.guest(self.empty.address().0).write(&mut form);
        form.write(field::PREEMPTION_TIMER, PATIENCE);
        if let Some((gap, window)) = settings.ple {
            form.write(field::PLE_GAP, gap);
            form.write(field::PLE_WINDOW, window);
        }
        for encoding in PAGES {
            form.write_raw(encoding, self.empty.address().0);
        }
        form.write_raw(TSC_MULTIPLIER, 1 << 48);
        Some(form)
    }
}

/// Enters the guest, and says what the processor thought of it.
fn enter(form: &Current) -> Answer {
    let mut regs = Regs::default();
    // SAFETY: VMX root operation with a current VMCS whose host state is this CPU's or, if a mistake is in it, one that is
    // rejected (`is_harmless`); interrupts are off. PAT and EFER are what they were, should the mistake be that the exit
    // did not restore them: the guest's EFER has NXE, without which the kernel's pages could not be used.
    let outcome = unsafe {
        let (pat, efer) = (msr::read(msr::PAT), msr::read(MSR_EFER));
        let outcome = enter::world_switch(&raw mut regs, 0);
        msr::write(msr::PAT, pat);
        msr::write(MSR_EFER, efer);
        outcome
    };
    if outcome != enter::EXITED {
        return Answer::Failed(form.read(field::INSTRUCTION_ERROR));
    }
    let exit = form.read(field::EXIT_REASON);
    match exit & reason::ENTRY_FAILURE {
        0 => Answer::Entered(exit & 0xffff),
        _ => Answer::Rejected(exit & 0xffff),
    }
}
