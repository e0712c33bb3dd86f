#![expect(
    unsafe_code,
    reason = "TSC_AUX and DR6 are switched with the virtual CPU"
)]
//! The registers of a virtual CPU, as everybody above sees them.

use super::vcpu::VmxVcpu;
use crate::arch::{self, msr};
use crate::virt::{ControlRegister, Event, EventKind, NmiBlocking, Regs, SegmentName, VcpuState};
use core::arch::asm;
use guest::EntryState;
use guest::entry::{Segment, TableRegister};
use units::{Frame, Gpa, Nanos};
use vmcs::control::Primary;
use vmcs::event::{self, Kind};
use vmcs::reason;
use vmcs::{Guest, SegmentFields, Table};

const MSR_TSC_AUX: u32 = 0xc000_0103;
const CR0_NW_CD: u64 = 1 << 29 | 1 << 30;
const RFLAGS_IF: u64 = 1 << 9;
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// Blocking by STI and MOV SS.
const SHADOW: u32 = Guest::BLOCKING_BY_STI | Guest::BLOCKING_BY_MOV_SS;

impl VmxVcpu {
    /// A segment register, from where it is.
    fn vmcs_segment(&self, name: SegmentName) -> vmcs::Segment {
        let (fields, held) = match name {
            SegmentName::Cs => (SegmentFields::CS, self.guest.cs),
            SegmentName::Ds => (SegmentFields::DS, self.guest.ds),
            SegmentName::Es => (SegmentFields::ES, self.guest.es),
            SegmentName::Fs => (SegmentFields::FS, self.guest.fs),
            SegmentName::Gs => (SegmentFields::GS, self.guest.gs),
            SegmentName::Ss => (SegmentFields::SS, self.guest.ss),
            SegmentName::Tr => (SegmentFields::TR, self.guest.tr),
            SegmentName::Ldtr => (SegmentFields::LDTR, self.guest.ldtr),
        };
        match self.vmcs() {
            Some(vmcs) if !self.in_memory => fields.read(&vmcs),
            _ => held,
        }
    }
}

impl VcpuState for VmxVcpu {
    fn regs(&self) -> &Regs {
        &self.regs
    }
    fn regs_mut(&mut self) -> &mut Regs {
        &mut self.regs
    }
    fn rip(&self) -> u64 {
        self.guest.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.guest.rip = rip;
    }
    fn rflags(&self) -> u64 {
        self.guest.rflags
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.guest.rflags = rflags;
    }

    /// Bits that the guest owns are in the register, the others in the shadow (SDM 3C 25.6.6).
    fn cr(&self, register: ControlRegister) -> u64 {
        match register {
            ControlRegister::Cr0 => {
                self.guest.cr0 & self.cr0_owned() | self.cr0_shadow & !self.cr0_owned()
            }
            ControlRegister::Cr2 => self.cr2,
            ControlRegister::Cr3 => self.guest.cr3,
            ControlRegister::Cr4 => {
                self.guest.cr4 & self.cr4_owned() | self.cr4_shadow & !self.cr4_owned()
            }
            ControlRegister::Cr8 => u64::from(self.cr8),
        }
    }

    fn set_cr(&mut self, register: ControlRegister, value: u64) {
        match register {
            ControlRegister::Cr0 => {
                self.cr0_shadow = value;
                // The processor's caches stay on; an entry would not load these bits anyway.
                self.guest.cr0 = value & !CR0_NW_CD | self.cr0_fixed();
            }
            ControlRegister::Cr2 => self.cr2 = value,
            ControlRegister::Cr3 => self.guest.cr3 = value,
            ControlRegister::Cr4 => {
                self.cr4_shadow = value;
                self.guest.cr4 = value | self.cr4_fixed();
            }
            ControlRegister::Cr8 => self.cr8 = value as u8,
        }
        // Paging may mean something else now (SDM 3C 29.4.3.2: the host does what the instruction would).
        self.stale |= !matches!(register, ControlRegister::Cr2 | ControlRegister::Cr8);
    }

    /// SDM 3A 4.4.1, SDM 3C 27.3.1.6: bits 2:1, 8:5 and those beyond the processor's width are reserved.
    fn accept_pdptes(&mut self, pdptes: [u64; 4]) -> bool {
        const RESERVED: u64 = 0x1e6;
        let beyond = u64::MAX << self.facts().physical_bits;
        if pdptes
            .iter()
            .any(|e| e & 1 != 0 && e & (RESERVED | beyond) != 0)
        {
            return false;
        }
        self.pull();
        self.guest.set_pdptes(pdptes);
        self.in_vmcs = false;
        true
    }

    fn efer(&self) -> u64 {
        self.guest.efer
    }
    fn set_efer(&mut self, efer: u64) {
        self.guest.efer = efer;
        self.stale = true;
    }
    fn xcr0(&self) -> u64 {
        self.fpu.xcr0()
    }
    fn set_xcr0(&mut self, xcr0: u64) {
        self.fpu.set_xcr0(xcr0);
    }
    fn pkru(&self) -> u32 {
        self.fpu.pkru()
    }
    fn set_pat(&mut self, pat: u64) {
        self.guest.pat = pat;
    }
    fn tsc_aux(&self) -> u64 {
        self.tsc_aux
    }
    fn set_tsc_aux(&mut self, value: u64) {
        self.tsc_aux = value;
        if self.has_tsc_aux {
            // SAFETY: the MSR exists (RDTSCP does) and the host does not use it.
            unsafe { msr::write(MSR_TSC_AUX, value) };
        }
    }

    fn segment(&self, name: SegmentName) -> Segment {
        let segment = self.vmcs_segment(name);
        let rights = if segment.usable() { segment.rights } else { 0 };
        Segment {
            selector: segment.selector,
            base: segment.base,
            limit: segment.limit,
            attributes: (rights & 0xff | rights >> 4 & 0xf00) as u16,
        }
    }
    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        self.pull();
        let guest = &mut self.guest;
        let place = match name {
            SegmentName::Cs => &mut guest.cs,
            SegmentName::Ds => &mut guest.ds,
            SegmentName::Es => &mut guest.es,
            SegmentName::Fs => &mut guest.fs,
            SegmentName::Gs => &mut guest.gs,
            SegmentName::Ss => &mut guest.ss,
            SegmentName::Tr => &mut guest.tr,
            SegmentName::Ldtr => &mut guest.ldtr,
        };
        *place = to_vmcs(segment);
        self.in_vmcs = false;
    }
    fn gdtr(&self) -> TableRegister {
        let gdtr = match self.vmcs() {
            Some(vmcs) if !self.in_memory => Guest::read(&vmcs).gdtr,
            _ => self.guest.gdtr,
        };
        TableRegister {
            base: gdtr.base,
            limit: gdtr.limit as u16,
        }
    }
    fn dr6(&self) -> u64 {
        if !self.loaded {
            return self.debug[4];
        }
        let dr6: u64;
        // SAFETY: the guest's DR6, which is only a status.
        unsafe { asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack)) };
        dr6
    }
    fn set_dr6(&mut self, value: u64) {
        self.debug[4] = value;
        if self.loaded {
            // SAFETY: as above; nothing depends on it in the host.
            unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack)) };
        }
    }
    fn dr7(&mut self) -> u64 {
        self.pull();
        self.guest.dr7
    }
    fn set_dr7(&mut self, value: u64) {
        self.pull();
        self.guest.dr7 = value;
        self.in_vmcs = false;
    }
    fn set_nmi_blocking(&mut self, blocking: NmiBlocking) {
        match blocking {
            NmiBlocking::Blocked => self.guest.interruptibility |= Guest::BLOCKING_BY_NMI,
            NmiBlocking::Open => self.guest.interruptibility &= !Guest::BLOCKING_BY_NMI,
        }
    }
    /// The DPL of SS is the privilege level, in every mode and even if SS is unusable (SDM 3C 25.4.1).
    fn cpl(&self) -> u8 {
        self.vmcs_segment(SegmentName::Ss).dpl()
    }
    /// By the preemption timer, which needs no interrupt that somebody takes and acknowledges: the entry starts it anew.
    fn stop_at(&mut self, at: Nanos) {
        if self.settings.uses_preemption_timer() {
            arch::timer::disarm();
            self.set_deadline(at);
        } else {
            arch::timer::arm(at);
        }
    }
    fn walk_from(&mut self, root: Frame) -> bool {
        let pointer = self.facts.caps.ept_pointer(root.address().0);
        core::mem::replace(&mut self.ept_pointer, pointer) != pointer
    }
    fn log_writes(&mut self, wanted: bool) {
        if let Some(log) = &mut self.log {
            log.wanted = wanted;
        }
    }
    fn take_log(&mut self, name: impl FnMut(Gpa)) {
        if let (Some(log), Some(mut vmcs)) = (&self.log, self.vmcs())
            && log.wanted
        {
            log.take(&mut vmcs, name);
        }
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }
    fn cr8(&self) -> u8 {
        self.cr8
    }
    fn set_cr8(&mut self, cr8: u8) {
        self.cr8 = cr8;
    }

    fn reset(&mut self, state: &EntryState) {
        self.pull();
        self.regs = Regs(state.gpr);
        self.fpu.reset();
        self.set_debug([0, 0, 0, 0, state.dr6]);
        self.windows = Primary::empty();
        self.event = None;
        self.interrupted = None;
        self.cr8 = 0;
        self.set_cr(ControlRegister::Cr0, state.cr0);
        self.set_cr(ControlRegister::Cr2, state.cr2);
        self.set_cr(ControlRegister::Cr3, state.cr3);
        self.set_cr(ControlRegister::Cr4, state.cr4);
        self.set_efer(state.efer);
        self.guest = Guest {
            dr7: state.dr7,
            rip: state.rip,
            rflags: state.rflags,
            debugctl: 0,
            pat: PAT_RESET,
            interruptibility: 0,
            activity: 0,
            pending_debug: 0,
            link: Guest::NO_LINK,
            cs: to_vmcs(state.cs),
            ds: to_vmcs(state.ds),
            es: to_vmcs(state.es),
            fs: to_vmcs(state.fs),
            gs: to_vmcs(state.gs),
            ss: to_vmcs(state.ss),
            tr: to_vmcs(state.tr),
            ldtr: to_vmcs(state.ldtr),
            gdtr: Table {
                base: state.gdtr.base,
                limit: u32::from(state.gdtr.limit),
            },
            idtr: Table {
                base: state.idtr.base,
                limit: u32::from(state.idtr.limit),
            },
            ..self.guest
        };
        self.in_vmcs = false;
    }

    fn interruptible(&self) -> bool {
        self.guest.rflags & RFLAGS_IF != 0 && self.guest.interruptibility & SHADOW == 0
    }
    fn nmi_allowed(&self) -> bool {
        self.guest.interruptibility & (SHADOW | Guest::BLOCKING_BY_NMI) == 0
    }
    fn nmi_blocked(&self) -> bool {
        self.guest.interruptibility & Guest::BLOCKING_BY_NMI != 0
    }
    fn event_pending(&self) -> bool {
        self.event.is_some()
    }

    fn inject(&mut self, event: Event) {
        let kind = match event.kind {
            EventKind::Interrupt => Kind::External,
            EventKind::Nmi => Kind::Nmi,
            EventKind::Exception => Kind::Exception,
            EventKind::SoftwareInterrupt => Kind::SoftwareInterrupt,
        };
        if kind == Kind::Nmi {
            // The entry sets the blocking, and wants it clear before (SDM 3C 27.3.1.5). The window opens when the guest
            // leaves its handler.
            self.guest.interruptibility &= !Guest::BLOCKING_BY_NMI;
            self.windows |= Primary::NMI_WINDOW;
        }
        let event = event::Event {
            kind,
            vector: event.vector,
            error: event.error,
        };
        self.event = Some((event, self.exit.instruction_length));
    }

    fn pending_event(&self) -> Option<Event> {
        let (event, _) = self.event?;
        let kind = match event.kind {
            Kind::External => EventKind::Interrupt,
            Kind::Nmi => EventKind::Nmi,
            Kind::Exception => EventKind::Exception,
            Kind::SoftwareInterrupt | Kind::PrivilegedSoftware | Kind::SoftwareException => {
                EventKind::SoftwareInterrupt
            }
        };
        Some(Event {
            kind,
            vector: event.vector,
            error: event.error,
        })
    }

    fn vendor_exit(&self) -> [(&'static str, u64); 6] {
        let e = &self.exit;
        [
            ("reason", u64::from(e.reason)),
            ("qualification", e.qualification),
            ("guest-physical", e.guest_physical),
            ("interruption", u64::from(e.event)),
            ("its error code", u64::from(e.event_error)),
            ("instruction length", u64::from(e.instruction_length)),
        ]
    }
    fn descriptor_tables(&self) -> [(&'static str, u64, u32); 4] {
        let g = &self.guest;
        [
            ("gdtr", g.gdtr.base, g.gdtr.limit),
            ("idtr", g.idtr.base, g.idtr.limit),
            ("ldtr", g.ldtr.base, g.ldtr.limit),
            ("tr", g.tr.base, g.tr.limit),
        ]
    }

    fn take_interrupted_event(&mut self) -> Option<Event> {
        let (event, _) = self.interrupted.take()?;
        let kind = match event.kind {
            Kind::External => EventKind::Interrupt,
            Kind::Nmi => {
                // Its delivery had begun, and is to begin again.
                self.guest.interruptibility &= !Guest::BLOCKING_BY_NMI;
                EventKind::Nmi
            }
            Kind::Exception => EventKind::Exception,
            // RIP is still at the instruction, which delivers the event when it runs again.
            Kind::SoftwareInterrupt | Kind::PrivilegedSoftware | Kind::SoftwareException => {
                EventKind::SoftwareInterrupt
            }
        };
        Some(Event {
            kind,
            vector: event.vector,
            error: event.error,
        })
    }

    fn want_interrupt_window(&mut self, wanted: bool) {
        self.windows.set(Primary::INTERRUPT_WINDOW, wanted);
    }
    fn clear_interrupt_shadow(&mut self) {
        self.guest.interruptibility &= !SHADOW;
    }
    fn set_interrupt_shadow(&mut self) {
        self.guest.interruptibility |= Guest::BLOCKING_BY_MOV_SS;
    }

    fn instruction_length(&self) -> Option<u8> {
        let length = self.exit.instruction_length;
        let known = reason::has_instruction_length(self.exit.reason as u16);
        (known && (1..=15).contains(&length)).then_some(length as u8)
    }
    /// VT-x does not fetch them.
    fn instruction_bytes(&self) -> &[u8] {
        &[]
    }
}

fn to_vmcs(s: Segment) -> vmcs::Segment {
    vmcs::Segment {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        rights: s.vmcs_access_rights(),
    }
}
