#![expect(
    unsafe_code,
    reason = "the VMCB is a page that hardware shares, reached through the direct map"
)]
//! One virtual CPU under SVM: its VMCB and the state that the VMCB does not hold.

use super::caps::Caps;
use super::cpu::{Asid, SvmCpu};
use super::nmi::NmiGate;
use super::shadow::Shadow;
use super::vmcb::{self, Intercept1, Intercept2, Segment as VmcbSegment, Vmcb};
use crate::arch::msr;
use crate::mm;
use crate::virt::fpu::FpuState;
use crate::virt::{
    ControlRegister, Event, EventKind, Gpr, NmiBlocking, Regs, SegmentName, Unsupported, VcpuSetup,
    VcpuState,
};
use core::arch::asm;
use core::ptr::NonNull;
use guest::EntryState;
use guest::entry::{Segment, TableRegister};
use units::{Frame, Hpa, PageSize};

const EFER_SVME: u64 = 1 << 12;
const RFLAGS_IF: u64 = 1 << 9;
const MSR_TSC_AUX: u32 = 0xc000_0103;
/// Write-back, write-through, uncached-, uncacheable, twice: PAT after reset (APM 2 7.8.2).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// #DB, #AC and #MC: loops of the first two cannot be left otherwise, the third belongs to the host.
pub(super) const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// Intercepts that are always on (issue: what emulators forgive, hardware punishes).
const INTERCEPT1: Intercept1 = Intercept1::INTR
    .union(Intercept1::NMI)
    .union(Intercept1::SMI)
    .union(Intercept1::INIT)
    .union(Intercept1::CR0_SEL_WRITE)
    .union(Intercept1::RDPMC)
    .union(Intercept1::CPUID)
    .union(Intercept1::RSM)
    .union(Intercept1::INVD)
    .union(Intercept1::HLT)
    .union(Intercept1::INVLPGA)
    .union(Intercept1::IOIO)
    .union(Intercept1::MSR)
    .union(Intercept1::TASK_SWITCH)
    .union(Intercept1::FERR_FREEZE)
    .union(Intercept1::SHUTDOWN);
const INTERCEPT2: Intercept2 = Intercept2::all().difference(Intercept2::ICEBP);

/// CR4 and CR8 writes; CR0 by the selective intercept. Reads are as [`Shadow`] says.
const CR_WRITES: u32 = 1 << (16 + 4) | 1 << (16 + 8);

/// PAUSEs in a row after which a guest counts as waiting for a lock, and how many cycles may lie
/// between two of the row (APM 2 15.14.4; the values that KVM uses). Only where the processor counts:
/// an exit for each PAUSE would cost more than the waiting.
const PAUSE_COUNT: u16 = 3000;
const PAUSE_THRESHOLD: u16 = 128;

/// One virtual CPU.
#[derive(Debug)]
pub struct SvmVcpu {
    vmcb: NonNull<Vmcb>,
    frame: Frame,
    regs: Regs,
    fpu: FpuState,
    /// DR0 to DR3; DR6 and DR7 are in the VMCB.
    debug: [u64; 4],
    tsc_aux: u64,
    has_tsc_aux: bool,
    /// Bits of CR0 and CR4 that the guest sees otherwise than the processor has them.
    shadow: Shadow,
    pub(super) nmi: NmiGate,
    /// Tag under which this virtual CPU last ran.
    pub asid: Asid,
    /// What is cached under the tag no longer fits the registers: software changed how addresses
    /// translate (APM 2 15.16).
    pub stale: bool,
}

// SAFETY: the VMCB is owned memory reached through the direct map, which every CPU maps alike; nothing in
// it is bound to the CPU that made it.
unsafe impl Send for SvmVcpu {}

impl SvmVcpu {
    /// A virtual CPU with all intercepts set; its registers are those of a zeroed VMCB until `reset`.
    pub fn new(setup: &VcpuSetup) -> Result<Self, Unsupported> {
        let frame = mm::alloc(setup.node, PageSize::Size4K)
            .map_err(|_| Unsupported("no memory for a virtual CPU's control block"))?;
        let Some(vmcb) = NonNull::new(mm::direct(frame.address()).cast::<Vmcb>()) else {
            return Err(Unsupported("the direct map does not cover a control block"));
        };
        let mut vcpu = Self {
            vmcb,
            frame,
            regs: Regs::default(),
            fpu: FpuState::new(),
            debug: [0; 4],
            tsc_aux: 0,
            has_tsc_aux: raw_cpuid::CpuId::new()
                .get_extended_processor_and_feature_identifiers()
                .is_some_and(|f| f.has_rdtscp()),
            shadow: Shadow::default(),
            nmi: NmiGate::default(),
            asid: Asid::default(),
            stale: false,
        };
        let caps = Caps::read();
        let control = &mut vcpu.vmcb_mut().control;
        control.intercept_cr = CR_WRITES;
        control.intercept_exceptions = EXCEPTIONS;
        control.intercept1 = INTERCEPT1.bits();
        control.intercept2 = INTERCEPT2.bits();
        if caps.pause_filter {
            control.intercept1 |= Intercept1::PAUSE.bits();
            control.pause_filter_count = PAUSE_COUNT;
            if caps.pause_threshold {
                control.pause_filter_threshold = PAUSE_THRESHOLD;
            }
        }
        control.v_intr = vmcb::V_INTR_MASKING;
        control.nested = vmcb::NP_ENABLE;
        vcpu.vmcb_mut().save.g_pat = PAT_RESET;
        Ok(vcpu)
    }

    /// The control block.
    pub fn vmcb(&self) -> &Vmcb {
        // SAFETY: the frame was allocated for this VMCB alone and is freed by Drop only; it is zeroed memory or what
        // this module and the processor wrote, and every bit pattern is a valid `Vmcb`. The processor writes
        // it only inside `enter`, which holds `&mut self`.
        unsafe { self.vmcb.as_ref() }
    }

    /// The control block, to change.
    pub fn vmcb_mut(&mut self) -> &mut Vmcb {
        // SAFETY: as in `vmcb`, and `&mut self` makes the reference unique.
        unsafe { self.vmcb.as_mut() }
    }

    /// Its physical address, for VMRUN.
    pub fn vmcb_address(&self) -> Hpa {
        self.frame.address()
    }

    /// The registers, for the world switch.
    pub fn regs_ptr(&mut self) -> *mut Regs {
        &raw mut self.regs
    }

    /// Registers that VMRUN takes from the VMCB.
    pub fn before_entry(&mut self) {
        let (rax, rsp) = (self.regs.get(Gpr::RAX), self.regs.get(Gpr::RSP));
        let save = &mut self.vmcb_mut().save;
        save.rax = rax;
        save.rsp = rsp;
        self.begin_step();
    }

    /// Registers that #VMEXIT leaves in the VMCB, and what a delivered event ends.
    pub fn after_exit(&mut self) {
        let (rax, rsp) = (self.vmcb().save.rax, self.vmcb().save.rsp);
        self.regs.set(Gpr::RAX, rax);
        self.regs.set(Gpr::RSP, rsp);
        self.vmcb_mut().control.event_injection = 0;
        self.end_step();
    }

    /// Brings the state that the VMCB does not hold onto this CPU.
    pub fn load(&mut self, _cpu: &mut SvmCpu) {
        self.fpu.load();
        let [dr0, dr1, dr2, dr3] = self.debug;
        // SAFETY: DR0 to DR3 hold addresses only; no breakpoint is armed while the host's DR7 is clear, which
        // VMRUN and #VMEXIT see to. TSC_AUX exists where RDTSCP does, and the host does not use it.
        unsafe {
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
                in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3, options(nomem, nostack));
            if self.has_tsc_aux {
                msr::write(MSR_TSC_AUX, self.tsc_aux);
            }
        }
        self.asid = Asid::default();
    }

    /// Takes that state off again.
    pub fn unload(&mut self) {
        self.fpu.save();
        let (dr0, dr1, dr2, dr3): (u64, u64, u64, u64);
        // SAFETY: reading debug registers has no effect; CR4.DE and DR7.GD are clear in the host.
        unsafe {
            asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
                out(reg) dr0, out(reg) dr1, out(reg) dr2, out(reg) dr3, options(nomem, nostack));
        }
        self.debug = [dr0, dr1, dr2, dr3];
    }

    pub(super) fn intercept_iret(&mut self, on: bool) {
        let control = &mut self.vmcb_mut().control;
        let mut intercepts = Intercept1::from_bits_retain(control.intercept1);
        intercepts.set(Intercept1::IRET, on);
        control.intercept1 = intercepts.bits();
    }
}

impl Drop for SvmVcpu {
    fn drop(&mut self) {
        mm::free(self.frame, PageSize::Size4K);
    }
}

impl VcpuState for SvmVcpu {
    fn walk_from(&mut self, root: Frame) -> bool {
        let n_cr3 = &mut self.vmcb_mut().control.n_cr3;
        core::mem::replace(n_cr3, root.address().0) != root.address().0
    }
    fn regs(&self) -> &Regs {
        &self.regs
    }
    fn regs_mut(&mut self) -> &mut Regs {
        &mut self.regs
    }
    fn rip(&self) -> u64 {
        self.vmcb().save.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.vmcb_mut().save.rip = rip;
    }
    fn rflags(&self) -> u64 {
        self.vmcb().save.rflags
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.vmcb_mut().save.rflags = rflags;
    }

    fn cr(&self, register: ControlRegister) -> u64 {
        let save = &self.vmcb().save;
        match register {
            ControlRegister::Cr0 => self.shadow.cr0(save.cr0),
            ControlRegister::Cr2 => save.cr2,
            ControlRegister::Cr3 => save.cr3,
            ControlRegister::Cr4 => self.shadow.cr4(save.cr4),
            ControlRegister::Cr8 => u64::from(self.cr8()),
        }
    }

    fn set_cr(&mut self, register: ControlRegister, value: u64) {
        match register {
            ControlRegister::Cr0 => self.vmcb_mut().save.cr0 = self.shadow.set_cr0(value),
            ControlRegister::Cr2 => self.vmcb_mut().save.cr2 = value,
            ControlRegister::Cr3 => self.vmcb_mut().save.cr3 = value,
            ControlRegister::Cr4 => self.vmcb_mut().save.cr4 = self.shadow.set_cr4(value),
            ControlRegister::Cr8 => self.set_cr8(value as u8),
        }
        self.vmcb_mut().control.intercept_cr = CR_WRITES | self.shadow.intercepts();
        self.stale = true;
    }

    fn efer(&self) -> u64 {
        self.vmcb().save.efer & !EFER_SVME
    }
    fn set_efer(&mut self, efer: u64) {
        self.vmcb_mut().save.efer = efer | EFER_SVME;
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
        self.vmcb_mut().save.g_pat = pat;
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
        let save = &self.vmcb().save;
        let s = match name {
            SegmentName::Cs => save.cs,
            SegmentName::Ds => save.ds,
            SegmentName::Es => save.es,
            SegmentName::Fs => save.fs,
            SegmentName::Gs => save.gs,
            SegmentName::Ss => save.ss,
            SegmentName::Tr => save.tr,
            SegmentName::Ldtr => save.ldtr,
        };
        Segment {
            selector: s.selector,
            base: s.base,
            limit: s.limit,
            attributes: s.attributes,
        }
    }
    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        let save = &mut self.vmcb_mut().save;
        let place = match name {
            SegmentName::Cs => &mut save.cs,
            SegmentName::Ds => &mut save.ds,
            SegmentName::Es => &mut save.es,
            SegmentName::Fs => &mut save.fs,
            SegmentName::Gs => &mut save.gs,
            SegmentName::Ss => &mut save.ss,
            SegmentName::Tr => &mut save.tr,
            SegmentName::Ldtr => &mut save.ldtr,
        };
        *place = to_vmcb(segment);
    }
    fn gdtr(&self) -> TableRegister {
        let gdtr = self.vmcb().save.gdtr;
        TableRegister {
            base: gdtr.base,
            limit: gdtr.limit as u16,
        }
    }
    fn cpl(&self) -> u8 {
        self.vmcb().save.cpl
    }
    fn set_cpl(&mut self, cpl: u8) {
        self.vmcb_mut().save.cpl = cpl;
    }
    fn dr6(&self) -> u64 {
        self.vmcb().save.dr6
    }
    fn set_dr6(&mut self, value: u64) {
        self.vmcb_mut().save.dr6 = value;
    }
    fn dr7(&mut self) -> u64 {
        self.vmcb().save.dr7
    }
    fn set_dr7(&mut self, value: u64) {
        self.vmcb_mut().save.dr7 = value;
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb_mut().control.tsc_offset = offset;
    }
    fn cr8(&self) -> u8 {
        (self.vmcb().control.v_intr & vmcb::V_TPR_MASK) as u8
    }
    fn set_cr8(&mut self, cr8: u8) {
        let control = &mut self.vmcb_mut().control;
        control.v_intr = control.v_intr & !vmcb::V_TPR_MASK | u64::from(cr8) & vmcb::V_TPR_MASK;
    }

    fn reset(&mut self, state: &EntryState) {
        self.regs = Regs(state.gpr);
        self.fpu.reset();
        self.debug = [0; 4];
        self.forget_nmi();
        self.set_cr(ControlRegister::Cr0, state.cr0);
        self.set_cr(ControlRegister::Cr4, state.cr4);
        self.set_efer(state.efer);
        let control = &mut self.vmcb_mut().control;
        control.event_injection = 0;
        control.exit_int_info = 0;
        control.interrupt_shadow = 0;
        control.v_intr = vmcb::V_INTR_MASKING;
        let save = &mut self.vmcb_mut().save;
        save.cs = to_vmcb(state.cs);
        save.ds = to_vmcb(state.ds);
        save.es = to_vmcb(state.es);
        save.fs = to_vmcb(state.fs);
        save.gs = to_vmcb(state.gs);
        save.ss = to_vmcb(state.ss);
        save.tr = to_vmcb(state.tr);
        save.ldtr = to_vmcb(state.ldtr);
        save.gdtr = VmcbSegment {
            base: state.gdtr.base,
            limit: u32::from(state.gdtr.limit),
            ..VmcbSegment::default()
        };
        save.idtr = VmcbSegment {
            base: state.idtr.base,
            limit: u32::from(state.idtr.limit),
            ..VmcbSegment::default()
        };
        save.cpl = 0;
        save.cr2 = state.cr2;
        save.cr3 = state.cr3;
        save.dr6 = state.dr6;
        save.dr7 = state.dr7;
        save.rip = state.rip;
        save.rflags = state.rflags;
        save.g_pat = PAT_RESET;
        save.dbgctl = 0;
    }

    fn interruptible(&self) -> bool {
        self.rflags() & RFLAGS_IF != 0
            && self.vmcb().control.interrupt_shadow & vmcb::INTERRUPT_SHADOW == 0
    }
    fn nmi_allowed(&self) -> bool {
        !self.nmi_blocked() && self.vmcb().control.interrupt_shadow & vmcb::INTERRUPT_SHADOW == 0
    }
    fn nmi_blocked(&self) -> bool {
        self.nmi.is_closed()
    }
    fn event_pending(&self) -> bool {
        self.vmcb().control.event_injection & vmcb::EVENT_VALID != 0
    }

    fn inject(&mut self, event: Event) {
        let kind: u64 = match event.kind {
            EventKind::Interrupt => 0,
            EventKind::Nmi => 2,
            EventKind::Exception => 3,
            EventKind::SoftwareInterrupt => 4,
        };
        if event.kind == EventKind::Nmi {
            self.close_nmi_gate();
        }
        let mut word = vmcb::EVENT_VALID | kind << vmcb::EVENT_TYPE_SHIFT | u64::from(event.vector);
        if let Some(error) = event.error {
            word |= vmcb::EVENT_ERROR_VALID | u64::from(error) << 32;
        }
        self.vmcb_mut().control.event_injection = word;
    }

    fn take_interrupted_event(&mut self) -> Option<Event> {
        event_of(core::mem::take(&mut self.vmcb_mut().control.exit_int_info))
    }
    fn pending_event(&self) -> Option<Event> {
        event_of(self.vmcb().control.event_injection)
    }

    fn vendor_exit(&self) -> [(&'static str, u64); 6] {
        let c = &self.vmcb().control;
        [
            ("EXITCODE", c.exit_code),
            ("EXITINFO1", c.exit_info1),
            ("EXITINFO2", c.exit_info2),
            ("EXITINTINFO", c.exit_int_info),
            ("nRIP", c.next_rip),
            ("shadow", c.interrupt_shadow),
        ]
    }
    fn descriptor_tables(&self) -> [(&'static str, u64, u32); 4] {
        let s = &self.vmcb().save;
        let of = |name, t: VmcbSegment| (name, t.base, t.limit);
        [
            of("gdtr", s.gdtr),
            of("idtr", s.idtr),
            of("ldtr", s.ldtr),
            of("tr", s.tr),
        ]
    }

    fn want_interrupt_window(&mut self, wanted: bool) {
        let control = &mut self.vmcb_mut().control;
        let mut intercepts = Intercept1::from_bits_retain(control.intercept1);
        intercepts.set(Intercept1::VINTR, wanted);
        control.intercept1 = intercepts.bits();
        // A virtual interrupt that ignores the TPR exits, before it is delivered, as soon as IF and the
        // shadow let it: nothing is delivered through V_IRQ itself.
        let bits = vmcb::V_IRQ | vmcb::V_IGN_TPR;
        if wanted {
            control.v_intr |= bits;
        } else {
            control.v_intr &= !bits;
        }
    }

    fn clear_interrupt_shadow(&mut self) {
        self.vmcb_mut().control.interrupt_shadow &= !vmcb::INTERRUPT_SHADOW;
    }

    fn set_nmi_blocking(&mut self, blocking: NmiBlocking) {
        match blocking {
            NmiBlocking::Blocked => self.close_nmi_gate(),
            NmiBlocking::Open => {
                self.intercept_iret(false);
                self.open_nmi_gate();
            }
        }
    }

    fn set_interrupt_shadow(&mut self) {
        self.vmcb_mut().control.interrupt_shadow |= vmcb::INTERRUPT_SHADOW;
    }

    fn instruction_length(&self) -> Option<u8> {
        let control = &self.vmcb().control;
        // A port access always tells; else where the processor stores the next RIP.
        let next = if control.exit_code == vmcb::code::IOIO {
            control.exit_info2
        } else {
            control.next_rip
        };
        let length = next.wrapping_sub(self.rip());
        (1..=15).contains(&length).then_some(length as u8)
    }

    fn instruction_bytes(&self) -> &[u8] {
        let control = &self.vmcb().control;
        control
            .instruction
            .get(..usize::from(control.fetched_bytes & 15))
            .unwrap_or(&[])
    }
}

/// An event as EVENTINJ and EXITINTINFO hold it (APM 2 15.20).
fn event_of(word: u64) -> Option<Event> {
    if word & vmcb::EVENT_VALID == 0 {
        return None;
    }
    let kind = match word >> vmcb::EVENT_TYPE_SHIFT & 7 {
        0 => EventKind::Interrupt,
        2 => EventKind::Nmi,
        3 => EventKind::Exception,
        4 => EventKind::SoftwareInterrupt,
        _ => return None,
    };
    let error = (word & vmcb::EVENT_ERROR_VALID != 0).then_some((word >> 32) as u32);
    Some(Event {
        kind,
        vector: word as u8,
        error,
    })
}

fn to_vmcb(s: Segment) -> VmcbSegment {
    VmcbSegment {
        selector: s.selector,
        attributes: s.vmcb_attributes(),
        limit: s.limit,
        base: s.base,
    }
}
