#![expect(
    unsafe_code,
    reason = "the VMCS, debug registers and MSRs exist on the processor only"
)]
//! One virtual CPU under VMX: its VMCS and the state that the VMCS does not hold.
//!
//! The guest's registers are in memory between an exit and the next entry. Those that most exits look at or change
//! are a [`Hot`], read back after each exit and written where they differ from what the VMCS holds. All
//! others stay in the VMCS until somebody asks.

use super::cpu::{self, VmxCpu, Vpid};
use super::instruction::{self, Current};
use super::writes::WriteLog;
use super::{bitmap, host};
use crate::arch::{msr, time, tsc};
use crate::mm;
use crate::virt::fpu::FpuState;
use crate::virt::{Gpr, Regs, Unsupported, VcpuSetup};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use units::{CpuId, Frame, Hpa, Nanos, PageSize};
use vmcs::control::{EntryControls, Primary};
use vmcs::event::{self, Event};
use vmcs::field::{self, Field, Natural};
use vmcs::{Controls, Facts, Fields, Guest, Settings};

/// STAR, LSTAR, CSTAR, SFMASK, KernelGSbase: the guest writes them without an exit, and the host uses none of them, so
/// they are switched when the virtual CPU comes and goes.
const SWITCHED_MSRS: [u32; 5] = [
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
];
const MSR_TSC_AUX: u32 = 0xc000_0103;
/// Write-back, write-through, uncached-, uncacheable, twice: PAT after reset (SDM 3A 12.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// #DB, #AC and #MC: loops of the first two cannot be left otherwise, the third belongs to the host.
const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// Bits of CR0 that the guest may change without an exit: MP, EM, TS, WP, AM change nothing that the host must check.
const CR0_GUEST_OWNED: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 16 | 1 << 18;
/// The same of CR4, where the guest's CPUID offers them: TSD, DE, PGE, OSFXSR, OSXMMEXCPT, FSGSBASE.
const CR4_GUEST_OWNED: u64 = 1 << 2 | 1 << 3 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 16;
/// CR4.MCE is set while a guest runs: a machine check with it clear shuts the processor down.
pub const CR4_MCE: u64 = 1 << 6;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_TF: u64 = 1 << 8;
const DEBUGCTL_BTF: u64 = 1 << 1;

/// Fields that are compared with what the VMCS holds before each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hot {
    rip: u64,
    rsp: u64,
    rflags: u64,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    cr0_shadow: u64,
    cr4_shadow: u64,
    efer: u64,
    pat: u64,
    interruptibility: u32,
    primary: u32,
    secondary: u32,
    entry: u32,
    tsc_offset: u64,
    vpid: u16,
    ept_pointer: u64,
}

impl Hot {
    /// Writes what differs from `held`, or everything.
    fn write(&self, held: Option<&Self>, vmcs: &mut Current) {
        macro_rules! changed {
            ($($member:ident -> $field:ident,)*) => {
                $(if held.is_none_or(|held| held.$member != self.$member) {
                    vmcs.write(field::$field, self.$member);
                })*
            };
        }
        changed! {
            rip -> GUEST_RIP,
            rsp -> GUEST_RSP,
            rflags -> GUEST_RFLAGS,
            cr0 -> GUEST_CR0,
            cr3 -> GUEST_CR3,
            cr4 -> GUEST_CR4,
            cr0_shadow -> CR0_SHADOW,
            cr4_shadow -> CR4_SHADOW,
            efer -> GUEST_EFER,
            pat -> GUEST_PAT,
            interruptibility -> GUEST_INTERRUPTIBILITY,
            primary -> PRIMARY_CONTROLS,
            secondary -> SECONDARY_CONTROLS,
            entry -> ENTRY_CONTROLS,
            tsc_offset -> TSC_OFFSET,
            vpid -> VPID,
            ept_pointer -> EPT_POINTER,
        }
    }
}

/// What an exit says (SDM 3C 25.9).
#[derive(Clone, Copy, Debug, Default)]
pub struct ExitInformation {
    pub reason: u32,
    pub qualification: u64,
    pub event: u32,
    pub event_error: u32,
    pub guest_physical: u64,
    pub instruction_length: u32,
}

/// One virtual CPU.
#[derive(Debug)]
pub struct VmxVcpu {
    frame: Frame,
    serial: u64,
    pub(super) facts: Facts,
    pub(super) settings: Settings,
    pub(super) ept_pointer: u64,
    pub(super) regs: Regs,
    /// The guest-state area; how much of it is true, the next three say.
    pub(super) guest: Guest,
    /// What the VMCS holds of the hot fields; `None` before they were first written.
    held: Option<Hot>,
    /// All of `guest` is true, not only its hot part.
    pub(super) in_memory: bool,
    /// The VMCS holds everything but perhaps hot fields.
    pub(super) in_vmcs: bool,
    /// The VMCS is current on this CPU.
    pub(super) loaded: bool,
    /// The region has been cleared once, and the controls written.
    begun: bool,
    launched: bool,
    pub(super) cr0_shadow: u64,
    pub(super) cr4_shadow: u64,
    /// Bits of CR4 that the guest may change without an exit.
    cr4_owned: u64,
    pub(super) cr2: u64,
    pub(super) cr8: u8,
    pub(super) tsc_offset: u64,
    /// When the guest's time ends, and the TSC of this CPU then.
    deadline: Option<(Nanos, u64)>,
    /// Exits that are wanted as soon as the guest can take an interrupt or an NMI.
    pub(super) windows: Primary,
    /// To be delivered at the next entry, with the length of the instruction that raised it.
    pub(super) event: Option<(Event, u32)>,
    /// Whose delivery the last exit interrupted.
    pub(super) interrupted: Option<(Event, u32)>,
    pub(super) exit: ExitInformation,
    pub(super) fpu: FpuState,
    /// DR0 to DR3 and DR6; DR7 is in the VMCS.
    pub(super) debug: [u64; 5],
    msrs: [u64; SWITCHED_MSRS.len()],
    pub(super) tsc_aux: u64,
    pub(super) has_tsc_aux: bool,
    vpid: Vpid,
    last_cpu: Option<CpuId>,
    /// The meaning of the guest's own page tables changed by software: translations of the tag are stale.
    pub(super) stale: bool,
    /// This CPU may hold translations of the nested table from before the virtual CPU came.
    nested_stale: bool,
    /// Which pages the guest writes, where the processor can say it.
    pub(super) log: Option<WriteLog>,
    #[cfg(feature = "sabotage")]
    entries: u64,
}

impl VmxVcpu {
    /// A virtual CPU; its registers are meaningless until `reset`.
    pub fn new(setup: &VcpuSetup) -> Result<Self, Unsupported> {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let facts = cpu::facts()?;
        let settings = Settings::choose(&facts.caps);
        let log = match Settings::can_log_writes(&facts.caps) {
            true => Some(WriteLog::new(setup.node)?),
            false => None,
        };
        let frame = mm::alloc(setup.node, PageSize::Size4K)
            .map_err(|_| Unsupported("no memory for a virtual CPU's VMCS"))?;
        cpu::write_revision(frame.address(), facts.caps.revision);
        let free = |(must, may): (u64, u64)| !must & may;
        Ok(Self {
            frame,
            deadline: None,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            facts,
            settings,
            ept_pointer: 0,
            regs: Regs::default(),
            guest: Guest {
                link: Guest::NO_LINK,
                pat: PAT_RESET,
                ..Guest::default()
            },
            held: None,
            in_memory: true,
            in_vmcs: false,
            loaded: false,
            begun: false,
            launched: false,
            cr0_shadow: 0,
            cr4_shadow: 0,
            cr4_owned: CR4_GUEST_OWNED & setup.allowed_cr4 & free(facts.caps.cr4),
            cr2: 0,
            cr8: 0,
            tsc_offset: 0,
            windows: Primary::empty(),
            event: None,
            interrupted: None,
            exit: ExitInformation::default(),
            fpu: FpuState::new(),
            debug: [0; 5],
            msrs: [0; SWITCHED_MSRS.len()],
            tsc_aux: 0,
            has_tsc_aux: raw_cpuid::CpuId::new()
                .get_extended_processor_and_feature_identifiers()
                .is_some_and(|f| f.has_rdtscp()),
            vpid: Vpid::default(),
            last_cpu: None,
            stale: false,
            nested_stale: false,
            log,
            #[cfg(feature = "sabotage")]
            entries: 0,
        })
    }

    /// The VMCS, while it is current here.
    pub(super) fn vmcs(&self) -> Option<Current> {
        // SAFETY: `loaded` says that the VMCS is current on this CPU: a virtual CPU stays where it was loaded until it is
        // unloaded, no other is loaded there meanwhile, and whoever holds it holds its lock.
        self.loaded.then(|| unsafe { Current::assume() })
    }

    /// Bits of CR0 that the guest sees and changes without an exit.
    pub(super) fn cr0_owned(&self) -> u64 {
        let (must, may) = self.facts.caps.cr0;
        CR0_GUEST_OWNED & !must & may
    }
    /// The same of CR4.
    pub(super) fn cr4_owned(&self) -> u64 {
        self.cr4_owned
    }
    /// What the processor wants in CR0 while a guest runs: what VMX operation fixes, without paging and protection, which an
    /// unrestricted guest may switch off.
    pub(super) fn cr0_fixed(&self) -> u64 {
        const PE_PG: u64 = 1 << 0 | 1 << 31;
        self.facts.caps.cr0.0 & !PE_PG
    }
    /// The same of CR4.
    pub(super) fn cr4_fixed(&self) -> u64 {
        self.facts.caps.cr4.0 | CR4_MCE
    }
    /// The preemption timer ends the guest's time at `at`.
    pub(super) fn set_deadline(&mut self, at: Nanos) {
        // Mostly the same moment as before the last entry.
        if self.deadline.is_none_or(|(known, _)| known != at) {
            self.deadline = Some((at, time::ticks_at(at)));
        }
    }
    /// For the report of a rejected entry.
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Makes all of `guest` true.
    pub(super) fn pull(&mut self) {
        if self.in_memory {
            return;
        }
        if let Some(vmcs) = self.vmcs() {
            let hot = self.guest;
            // What is in memory of the hot fields may be newer.
            self.guest = Guest {
                rip: hot.rip,
                rflags: hot.rflags,
                cr0: hot.cr0,
                cr3: hot.cr3,
                cr4: hot.cr4,
                efer: hot.efer,
                pat: hot.pat,
                interruptibility: hot.interruptibility,
                ..Guest::read(&vmcs)
            };
            self.in_memory = true;
        }
    }

    /// Brings the virtual CPU onto this CPU.
    pub fn load(&mut self, cpu: &mut VmxCpu) {
        let region = self.frame.address();
        // SAFETY: this CPU is in VMX root operation (`VmxCpu`). The region is this virtual CPU's, with the revision in front;
        // it is active nowhere: never was, or `unload` has cleared it where it was.
        let outcome = unsafe {
            if self.begun {
                Ok(())
            } else {
                instruction::vmclear(region)
            }
            .and_then(|()| instruction::vmptrld(region))
        };
        if outcome.is_err() {
            log::error!("VMPTRLD of the VMCS at {region} failed; the entry will fail");
        }
        self.loaded = true;
        // In ticks of another CPU's counter.
        self.deadline = None;
        self.launched = false;
        if let Some(mut vmcs) = self.vmcs() {
            if !self.begun {
                self.write_controls(&mut vmcs);
                self.begun = true;
            }
            host::area().write(&mut vmcs);
        }
        if !(cpu.receive(self.serial) && self.last_cpu == Some(cpu.number())) {
            self.stale = true;
            self.nested_stale = true;
        }
        self.last_cpu = Some(cpu.number());
        self.load_registers();
    }

    fn load_registers(&mut self) {
        self.fpu.load();
        self.load_debug_registers();
        // SAFETY: the MSRs exist on every processor with long mode (TSC_AUX where RDTSCP does) and take what they held before;
        // the host uses none of them.
        unsafe {
            for (register, value) in SWITCHED_MSRS.into_iter().zip(self.msrs) {
                msr::write(register, value);
            }
            if self.has_tsc_aux {
                msr::write(MSR_TSC_AUX, self.tsc_aux);
            }
        }
    }

    fn load_debug_registers(&self) {
        let [dr0, dr1, dr2, dr3, dr6] = self.debug;
        // SAFETY: DR0 to DR3 hold addresses only, and no breakpoint is armed while the host's DR7 is 400h, to which each
        // exit sets it; DR6 is a status.
        unsafe {
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", "mov dr6, {}",
                in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3, in(reg) dr6, options(nomem, nostack));
        }
    }

    /// Takes the virtual CPU off this CPU; another may load it then.
    pub fn unload(&mut self) {
        self.pull();
        self.loaded = false;
        // SAFETY: the VMCS is current here, and clearing it writes it to its region.
        if unsafe { instruction::vmclear(self.frame.address()) }.is_err() {
            log::error!("VMCLEAR of the VMCS at {} failed", self.frame.address());
        }
        self.fpu.save();
        let (dr0, dr1, dr2, dr3, dr6): (u64, u64, u64, u64, u64);
        // SAFETY: reading debug registers has no effect; CR4.DE and DR7.GD are clear in the host. The MSRs exist.
        unsafe {
            asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", "mov {}, dr6",
                out(reg) dr0, out(reg) dr1, out(reg) dr2, out(reg) dr3, out(reg) dr6, options(nomem, nostack));
            for (register, value) in SWITCHED_MSRS.into_iter().zip(&mut self.msrs) {
                *value = msr::read(register);
            }
        }
        self.debug = [dr0, dr1, dr2, dr3, dr6];
    }

    /// Sets DR0 to DR3 and DR6, in the processor too if the virtual CPU is there.
    pub(super) fn set_debug(&mut self, registers: [u64; 5]) {
        self.debug = registers;
        if self.loaded {
            self.load_debug_registers();
        }
    }

    /// A debug exception exited, before it had changed DR6 and DR7 (SDM 3C 28.1): does that, since it is delivered to the
    /// guest next.
    pub(super) fn note_debug_exception(&mut self, qualification: u64) {
        const DR7_GD: u64 = 1 << 13;
        let Some(mut vmcs) = self.vmcs() else { return };
        let dr6: u64;
        // SAFETY: the guest's DR6, which is only a status.
        unsafe {
            asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack));
            let dr6 = vmcs::reason::debug_status(dr6, qualification);
            asm!("mov dr6, {}", in(reg) dr6, options(nomem, nostack));
        }
        let dr7 = vmcs.read(field::GUEST_DR7);
        if dr7 & DR7_GD != 0 {
            vmcs.write(field::GUEST_DR7, dr7 & !DR7_GD);
        }
    }

    /// Everything in the controls that never changes, and first values of the rest.
    fn write_controls(&self, vmcs: &mut Current) {
        let image = |map: &bitmap::Map| mm::hpa_of(map.0.as_ptr()).unwrap_or(Hpa(0)).0;
        let io = image(&bitmap::IO);
        Controls {
            pin: self.settings.pin,
            primary: self.settings.primary,
            secondary: self.settings.secondary,
            exit: self.settings.exit,
            entry: self.settings.entry,
            exceptions: EXCEPTIONS,
            io_bitmap_a: io,
            io_bitmap_b: io,
            msr_bitmap: image(&bitmap::MSR),
            pml_address: self.log.as_ref().map_or(0, WriteLog::address),
            cr0_mask: !self.cr0_owned(),
            cr4_mask: !self.cr4_owned,
            ..Controls::default()
        }
        .write(vmcs);
        if let Some((gap, window)) = self.settings.ple {
            vmcs.write(field::PLE_GAP, gap);
            vmcs.write(field::PLE_WINDOW, window);
        }
        if self.settings.uses_xsaves() {
            vmcs.write(field::XSS_EXIT_BITMAP, 0);
        }
        if self.log.is_some() {
            vmcs.write(field::PML_INDEX, vmcs::log::EMPTY);
        }
    }

    /// Brings tags and fields up to date; whether the VMCS has been launched since it was loaded.
    pub fn before_entry(&mut self, cpu: &mut VmxCpu, nested_stale: bool) -> bool {
        if self.stale || !cpu.is_current(self.vpid) {
            self.vpid = cpu.fresh_vpid();
            self.stale = false;
        }
        let nested_stale = core::mem::take(&mut self.nested_stale) || nested_stale;
        cpu.forget(nested_stale.then_some(self.ept_pointer));
        self.guest.rsp = self.regs.get(Gpr::RSP);
        #[cfg(feature = "sabotage")]
        {
            const RESERVED: u64 = 1 << 15;
            self.entries += 1;
            if crate::sabotage::breaks_at(self.serial, self.entries) {
                self.guest.rflags |= RESERVED;
            }
        }
        let hot = self.hot();
        if let Some(mut vmcs) = self.vmcs() {
            if !self.in_vmcs {
                self.guest.write(&mut vmcs);
                self.in_vmcs = true;
            }
            hot.write(self.held.as_ref(), &mut vmcs);
            self.held = Some(hot);
            if let Some((_, ticks)) = self.deadline {
                let timer = self.facts.caps.preemption_timer();
                vmcs.write(field::PREEMPTION_TIMER, timer.value(tsc::read(), ticks));
            }
            self.write_pending_step(&mut vmcs);
            if let Some((event, length)) = self.event {
                let event = event.for_entry(self.guest.cr0 & 1 != 0);
                vmcs.write(field::ENTRY_EVENT, event.encode());
                vmcs.write(field::ENTRY_EVENT_ERROR, event.error.unwrap_or(0));
                vmcs.write(field::ENTRY_INSTRUCTION_LENGTH, length);
            }
        }
        self.in_memory = false;
        self.launched
    }

    fn hot(&self) -> Hot {
        let mut entry = EntryControls::from_bits_retain(self.settings.entry);
        entry.set(EntryControls::IA32E_GUEST, self.guest.efer & EFER_LMA != 0);
        Hot {
            rip: self.guest.rip,
            rsp: self.guest.rsp,
            rflags: self.guest.rflags,
            cr0: self.guest.cr0,
            cr3: self.guest.cr3,
            cr4: self.guest.cr4,
            cr0_shadow: self.cr0_shadow,
            cr4_shadow: self.cr4_shadow,
            efer: self.guest.efer,
            pat: self.guest.pat,
            interruptibility: self.guest.interruptibility,
            primary: self.settings.primary | self.windows.bits(),
            secondary: self.settings.secondary | self.log.as_ref().map_or(0, WriteLog::control),
            entry: entry.bits(),
            tsc_offset: self.tsc_offset,
            vpid: self.vpid.number,
            ept_pointer: self.ept_pointer,
        }
    }

    /// Behind STI or MOV SS a pending single step must be told (SDM 3C 27.3.1.5); elsewhere it may stay as it is.
    fn write_pending_step(&self, vmcs: &mut Current) {
        if self.guest.interruptibility & (Guest::BLOCKING_BY_STI | Guest::BLOCKING_BY_MOV_SS) == 0 {
            return;
        }
        let pending = vmcs.read(field::GUEST_PENDING_DEBUG);
        let steps = self.guest.rflags & RFLAGS_TF != 0
            && vmcs.read(field::GUEST_DEBUGCTL) & DEBUGCTL_BTF == 0;
        let wanted = pending & !Guest::PENDING_STEP | if steps { Guest::PENDING_STEP } else { 0 };
        if wanted != pending {
            vmcs.write(field::GUEST_PENDING_DEBUG, wanted);
        }
    }

    /// Reads what the exit left in the VMCS.
    pub fn after_exit(&mut self) {
        let Some(mut vmcs) = self.vmcs() else { return };
        let read = |field: Field<Natural>| vmcs.read(field);
        self.guest.rip = read(field::GUEST_RIP);
        self.guest.rsp = read(field::GUEST_RSP);
        self.guest.rflags = read(field::GUEST_RFLAGS);
        self.guest.cr0 = read(field::GUEST_CR0);
        self.guest.cr3 = read(field::GUEST_CR3);
        self.guest.cr4 = read(field::GUEST_CR4);
        self.guest.interruptibility = vmcs.read(field::GUEST_INTERRUPTIBILITY);
        self.regs.set(Gpr::RSP, self.guest.rsp);
        self.held = Some(self.hot());

        let reason = vmcs.read(field::EXIT_REASON);
        self.exit = ExitInformation {
            reason,
            qualification: vmcs.read(field::EXIT_QUALIFICATION),
            event: vmcs.read(field::EXIT_EVENT),
            event_error: vmcs.read(field::EXIT_EVENT_ERROR),
            guest_physical: vmcs.read(field::GUEST_PHYSICAL_ADDRESS),
            instruction_length: vmcs.read(field::INSTRUCTION_LENGTH),
        };
        if reason & vmcs::reason::ENTRY_FAILURE != 0 {
            // Nothing was delivered, and the field still holds the event.
            vmcs.write(field::ENTRY_EVENT, 0);
            return;
        }
        self.launched = true;
        self.event = None;
        let vectoring = vmcs.read(field::VECTORING_EVENT);
        self.interrupted = Event::decode(vectoring, vmcs.read(field::VECTORING_ERROR))
            .map(|event| (event, self.exit.instruction_length));
        self.restore_nmi_blocking(vectoring);
    }

    /// An IRET that unblocked NMIs and then met the exit runs again, so the blocking must come back (SDM 3C 28.2.3).
    fn restore_nmi_blocking(&mut self, vectoring: u32) {
        use vmcs::reason::basic;
        let word = match self.exit.reason as u16 {
            basic::EXCEPTION_OR_NMI if event::is_valid(self.exit.event) => self.exit.event.into(),
            basic::EPT_VIOLATION | basic::LOG_FULL => self.exit.qualification,
            _ => return,
        };
        if event::nmi_blocking_was_lifted(word, vectoring) {
            self.guest.interruptibility |= Guest::BLOCKING_BY_NMI;
        }
    }
}

impl Drop for VmxVcpu {
    fn drop(&mut self) {
        // It is cleared: nobody can drop what a CPU has loaded and holds.
        mm::free(self.frame, PageSize::Size4K);
    }
}
