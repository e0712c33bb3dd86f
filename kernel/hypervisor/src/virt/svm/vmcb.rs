//! The virtual machine control block: the page through which a CPU is told what a guest may do
//! and tells why it stopped (APM 2, appendix B).
//!
//! The layout is the processor's, so each field's offset is asserted at compile time. Reserved
//! ranges stay zero: the processor rejects a VMCB in which some of them are not (APM 2 15.5.1).

use bitflags::bitflags;
use core::mem::{offset_of, size_of};

bitflags! {
    /// Intercept word 3 (VMCB offset 00Ch).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Intercept1: u32 {
        const INTR = 1 << 0;
        const NMI = 1 << 1;
        const SMI = 1 << 2;
        const INIT = 1 << 3;
        const VINTR = 1 << 4;
        const CR0_SEL_WRITE = 1 << 5;
        const RDPMC = 1 << 15;
        const CPUID = 1 << 18;
        const RSM = 1 << 19;
        const IRET = 1 << 20;
        const INVD = 1 << 22;
        const PAUSE = 1 << 23;
        const HLT = 1 << 24;
        const INVLPGA = 1 << 26;
        const IOIO = 1 << 27;
        const MSR = 1 << 28;
        const TASK_SWITCH = 1 << 29;
        const FERR_FREEZE = 1 << 30;
        const SHUTDOWN = 1 << 31;
    }
}

bitflags! {
    /// Intercept word 4 (VMCB offset 010h).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Intercept2: u32 {
        const VMRUN = 1 << 0;
        const VMMCALL = 1 << 1;
        const VMLOAD = 1 << 2;
        const VMSAVE = 1 << 3;
        const STGI = 1 << 4;
        const CLGI = 1 << 5;
        const SKINIT = 1 << 6;
        const ICEBP = 1 << 8;
        const WBINVD = 1 << 9;
        const MONITOR = 1 << 10;
        const MWAIT = 1 << 11;
        const XSETBV = 1 << 13;
        const RDPRU = 1 << 14;
    }
}

/// A segment register as the VMCB holds it: `attributes` are bits 55:52 and 47:40 of a descriptor,
/// packed into twelve bits (APM 2 15.5.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub selector: u16,
    pub attributes: u16,
    pub limit: u32,
    pub base: u64,
}

/// The control area, offsets 000h to 3FFh.
#[repr(C)]
#[derive(Debug)]
pub struct Control {
    pub intercept_cr: u32,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    pub intercept1: u32,
    pub intercept2: u32,
    pub intercept3: u32,
    reserved_018: [u8; 0x3c - 0x18],
    pub pause_filter_threshold: u16,
    pub pause_filter_count: u16,
    pub iopm_base: u64,
    pub msrpm_base: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub v_intr: u64,
    pub interrupt_shadow: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_int_info: u64,
    pub nested: u64,
    pub avic_apic_bar: u64,
    pub ghcb: u64,
    pub event_injection: u64,
    pub n_cr3: u64,
    pub lbr_virtualization: u64,
    pub clean: u64,
    pub next_rip: u64,
    pub fetched_bytes: u8,
    pub instruction: [u8; 15],
    reserved_0e0: [u8; 0x400 - 0xe0],
}

/// The state-save area, offsets 400h and up.
#[repr(C)]
#[derive(Debug)]
pub struct Save {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    reserved_0a0: [u8; 0xcb - 0xa0],
    pub cpl: u8,
    reserved_0cc: [u8; 4],
    pub efer: u64,
    reserved_0d8: [u8; 0x148 - 0xd8],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_180: [u8; 0x1d8 - 0x180],
    pub rsp: u64,
    reserved_1e0: [u8; 0x1f8 - 0x1e0],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_248: [u8; 0x268 - 0x248],
    pub g_pat: u64,
    pub dbgctl: u64,
    pub br_from: u64,
    pub br_to: u64,
    pub last_excp_from: u64,
    pub last_excp_to: u64,
    reserved_298: [u8; 0xc00 - 0x298],
}

/// One VMCB: exactly one page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Vmcb {
    pub control: Control,
    pub save: Save,
}

const _: () = {
    assert!(size_of::<Vmcb>() == 4096);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Control, intercept1) == 0x00c);
    assert!(offset_of!(Control, intercept2) == 0x010);
    assert!(offset_of!(Control, pause_filter_threshold) == 0x03c);
    assert!(offset_of!(Control, pause_filter_count) == 0x03e);
    assert!(offset_of!(Control, iopm_base) == 0x040);
    assert!(offset_of!(Control, msrpm_base) == 0x048);
    assert!(offset_of!(Control, tsc_offset) == 0x050);
    assert!(offset_of!(Control, asid) == 0x058);
    assert!(offset_of!(Control, tlb_control) == 0x05c);
    assert!(offset_of!(Control, v_intr) == 0x060);
    assert!(offset_of!(Control, interrupt_shadow) == 0x068);
    assert!(offset_of!(Control, exit_code) == 0x070);
    assert!(offset_of!(Control, exit_info1) == 0x078);
    assert!(offset_of!(Control, exit_info2) == 0x080);
    assert!(offset_of!(Control, exit_int_info) == 0x088);
    assert!(offset_of!(Control, nested) == 0x090);
    assert!(offset_of!(Control, event_injection) == 0x0a8);
    assert!(offset_of!(Control, n_cr3) == 0x0b0);
    assert!(offset_of!(Control, lbr_virtualization) == 0x0b8);
    assert!(offset_of!(Control, clean) == 0x0c0);
    assert!(offset_of!(Control, next_rip) == 0x0c8);
    assert!(offset_of!(Control, fetched_bytes) == 0x0d0);
    assert!(offset_of!(Save, cs) == 0x010);
    assert!(offset_of!(Save, tr) == 0x090);
    assert!(offset_of!(Save, cpl) == 0x0cb);
    assert!(offset_of!(Save, efer) == 0x0d0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, dr7) == 0x160);
    assert!(offset_of!(Save, rflags) == 0x170);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, star) == 0x200);
    assert!(offset_of!(Save, kernel_gs_base) == 0x220);
    assert!(offset_of!(Save, sysenter_eip) == 0x238);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, g_pat) == 0x268);
    assert!(offset_of!(Save, last_excp_to) == 0x290);
};

/// `v_intr` (offset 060h): a virtual interrupt is pending.
pub const V_IRQ: u64 = 1 << 8;
/// `v_intr`: the virtual interrupt is taken whatever the virtual TPR says.
pub const V_IGN_TPR: u64 = 1 << 20;
/// `v_intr`: RFLAGS.IF and CR8 of the guest govern virtual interrupts only.
pub const V_INTR_MASKING: u64 = 1 << 24;
/// `v_intr`: bits 3:0 of the virtual TPR.
pub const V_TPR_MASK: u64 = 0xf;
/// `nested` (offset 090h): nested paging on.
pub const NP_ENABLE: u64 = 1;
/// `interrupt_shadow` (offset 068h): the guest is behind STI or MOV SS.
pub const INTERRUPT_SHADOW: u64 = 1;
/// `tlb_control`: leave the TLB as it is.
pub const TLB_KEEP: u32 = 0;
/// `tlb_control`: flush everything, all ASIDs (APM 2 15.16.1).
pub const TLB_FLUSH_ALL: u32 = 1;
/// `tlb_control`: flush what is tagged with this VMCB's ASID, where the processor can.
pub const TLB_FLUSH_ASID: u32 = 3;

/// Event type in `event_injection` and `exit_int_info` (APM 2 15.20).
pub const EVENT_TYPE_SHIFT: u32 = 8;
/// The event carries an error code.
pub const EVENT_ERROR_VALID: u64 = 1 << 11;
/// The event is there.
pub const EVENT_VALID: u64 = 1 << 31;

/// Exit codes (APM 2, appendix C).
pub mod code {
    pub const CR_READ_FIRST: u64 = 0x000;
    pub const CR_READ_LAST: u64 = 0x00f;
    pub const CR_WRITE_FIRST: u64 = 0x010;
    pub const CR_WRITE_LAST: u64 = 0x01f;
    pub const EXCEPTION_FIRST: u64 = 0x040;
    pub const EXCEPTION_LAST: u64 = 0x05f;
    pub const INTR: u64 = 0x060;
    pub const NMI: u64 = 0x061;
    pub const SMI: u64 = 0x062;
    pub const INIT: u64 = 0x063;
    pub const VINTR: u64 = 0x064;
    pub const CR0_SEL_WRITE: u64 = 0x065;
    pub const RDPMC: u64 = 0x06f;
    pub const CPUID: u64 = 0x072;
    pub const RSM: u64 = 0x073;
    pub const IRET: u64 = 0x074;
    pub const INVD: u64 = 0x076;
    pub const PAUSE: u64 = 0x077;
    pub const HLT: u64 = 0x078;
    pub const INVLPGA: u64 = 0x07a;
    pub const IOIO: u64 = 0x07b;
    pub const MSR: u64 = 0x07c;
    pub const TASK_SWITCH: u64 = 0x07d;
    pub const FERR_FREEZE: u64 = 0x07e;
    pub const SHUTDOWN: u64 = 0x07f;
    pub const VMRUN: u64 = 0x080;
    pub const VMMCALL: u64 = 0x081;
    pub const VMLOAD: u64 = 0x082;
    pub const SKINIT: u64 = 0x086;
    pub const WBINVD: u64 = 0x089;
    pub const MONITOR: u64 = 0x08a;
    pub const MWAIT: u64 = 0x08b;
    pub const MWAIT_ARMED: u64 = 0x08c;
    pub const XSETBV: u64 = 0x08d;
    pub const RDPRU: u64 = 0x08e;
    pub const NPF: u64 = 0x400;
    /// VMEXIT_INVALID is -1; some implementations write only its low half.
    pub const INVALID_LOW: u32 = u32::MAX;
}
