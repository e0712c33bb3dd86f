//! The local APIC: switched on by crate `x2apic`, then driven by a few registers.
//!
//! The crate knows how to enable both generations and how INIT and start-up IPIs are sent. What
//! interrupt handlers do (acknowledge, arm the timer, kick another CPU, NMI) goes to the registers
//! directly, because the crate's methods take `&mut` and an NMI may come in the middle of one.
//!
//! Registers are those of SDM 3A table 11-1; in x2APIC mode register `r` is MSR 0x800 + r / 16
//! (SDM 3A 11.12.1.2).
#![expect(unsafe_code, reason = "device registers")]

use core::sync::atomic::{AtomicU64, Ordering};

use units::{ApicId, CpuId, Hpa, PAGE_BYTES};
use x2apic::lapic::{LocalApic, LocalApicBuilder, TimerDivide, TimerMode};
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::instructions::port::Port;

use super::{idt, msr, paging, percpu};

/// [`MODE`] before [`init`].
const OFF: u64 = 0;
/// [`MODE`] in x2APIC mode; any other value is the virtual address of the xAPIC's page.
const X2APIC: u64 = 1;
static MODE: AtomicU64 = AtomicU64::new(OFF);

const ID: u32 = 0x20;
const TASK_PRIORITY: u32 = 0x80;
const EOI: u32 = 0xb0;
const ERROR_STATUS: u32 = 0x280;
const COMMAND_LOW: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
pub(super) const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
pub(super) const TIMER_INITIAL: u32 = 0x380;
pub(super) const TIMER_CURRENT: u32 = 0x390;

const LVT_MASKED: u32 = 1 << 16;
const LVT_NMI: u32 = 0b100 << 8;
/// Interrupt command: delivery mode NMI, level asserted (SDM 3A 11.6.1).
const COMMAND_NMI: u32 = 0b100 << 8 | 1 << 14;
/// Interrupt command: fixed delivery, level asserted.
const COMMAND_FIXED: u32 = 1 << 14;
const COMMAND_PENDING: u32 = 1 << 12;
/// IA32_APIC_BASE bits (SDM 3A 11.4.4, 11.12.1).
const BASE_ENABLE: u64 = 1 << 11;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Why a local APIC cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApicError {
    /// Its page cannot be mapped.
    Mapping(paging::PagingError),
    /// The crate's complaint.
    Build(&'static str),
}

impl core::fmt::Display for ApicError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Mapping(e) => write!(f, "the local APIC's page cannot be mapped: {e}"),
            Self::Build(e) => write!(f, "the local APIC cannot be used: {e}"),
        }
    }
}

/// Switches on the calling CPU's local APIC: x2APIC where CPUID has it, timer masked, LINT0 masked
/// (the 8259 is not used), LINT1 as NMI, errors and spurious interrupts on their vectors.
///
/// # Errors
/// [`ApicError`], in a sentence.
pub fn init() -> Result<(), ApicError> {
    // SAFETY: every x86-64 has the register; setting ENABLE keeps the mode that firmware chose.
    let base = unsafe {
        let base = msr::read(msr::APIC_BASE);
        if base & BASE_ENABLE == 0 {
            msr::write(msr::APIC_BASE, base | BASE_ENABLE);
        }
        base & BASE_ADDRESS
    };
    // In x2APIC mode registers are MSRs and the page does not exist.
    let page = match has_x2apic() {
        true => X2APIC,
        false => paging::map_device(Hpa(base), PAGE_BYTES).map_err(ApicError::Mapping)? as u64,
    };
    let mut lapic = build(page).map_err(ApicError::Build)?;
    // SAFETY: the registers of this CPU, which nothing else drives; interrupts are off.
    unsafe { lapic.enable() };
    MODE.store(page, Ordering::Release);
    mask_8259();
    // The crate leaves both pins unmasked with vector 0.
    write(LVT_LINT0, LVT_MASKED);
    write(LVT_LINT1, LVT_NMI);
    write(LVT_TIMER, LVT_MASKED | u32::from(idt::TIMER));
    write(TASK_PRIORITY, 0);
    Ok(())
}

/// The crate's view of the calling CPU's APIC.
fn build(page: u64) -> Result<LocalApic, &'static str> {
    LocalApicBuilder::new()
        .timer_vector(usize::from(idt::TIMER))
        .error_vector(usize::from(idt::APIC_ERROR))
        .spurious_vector(usize::from(idt::SPURIOUS))
        .timer_mode(TimerMode::OneShot)
        .timer_divide(TimerDivide::Div1)
        .timer_initial(0)
        .set_xapic_base(page)
        .build()
}

fn has_x2apic() -> bool {
    raw_cpuid::CpuId::new()
        .get_feature_info()
        .is_some_and(|f| f.has_x2apic())
}

/// Masks every line of the two 8259s (Intel 8259A, OCW1).
fn mask_8259() {
    // SAFETY: the kernel takes no interrupt through the 8259.
    unsafe {
        Port::<u8>::new(0x21).write(0xff);
        Port::<u8>::new(0xa1).write(0xff);
    }
}

/// Which generation of APIC is in use.
pub fn mode_name() -> &'static str {
    match MODE.load(Ordering::Relaxed) {
        OFF => "off",
        X2APIC => "x2APIC",
        _ => "xAPIC",
    }
}

/// Reads a register of the calling CPU's APIC; 0 before [`init`].
pub(super) fn read(register: u32) -> u32 {
    match MODE.load(Ordering::Relaxed) {
        OFF => 0,
        // SAFETY: in x2APIC mode the MSR exists for every register that this module names.
        X2APIC => unsafe { msr::read(0x800 + (register >> 4)) as u32 },
        // SAFETY: `init` mapped the page of registers, uncached.
        page => unsafe { ((page + u64::from(register)) as *const u32).read_volatile() },
    }
}

/// Writes a register of the calling CPU's APIC; nothing before [`init`].
pub(super) fn write(register: u32, value: u32) {
    match MODE.load(Ordering::Relaxed) {
        OFF => {}
        // SAFETY: as in `read`; callers in this room write architectural values.
        X2APIC => unsafe { msr::write(0x800 + (register >> 4), u64::from(value)) },
        // SAFETY: as in `read`.
        page => unsafe { ((page + u64::from(register)) as *mut u32).write_volatile(value) },
    }
}

/// This CPU's APIC identifier as its APIC says it.
pub fn id() -> ApicId {
    let id = read(ID);
    ApicId(if MODE.load(Ordering::Relaxed) == X2APIC {
        id
    } else {
        id >> 24
    })
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(EOI, 0);
}

/// Error bits since the last call (SDM 3A 11.5.3: write, then read).
pub(super) fn take_errors() -> u32 {
    write(ERROR_STATUS, 0);
    read(ERROR_STATUS)
}

/// Sends an interrupt command. In xAPIC mode the two halves must not be torn by a handler that sends
/// as well; an NMI handler sends only when the machine is ending.
fn command(low: u32, destination: ApicId) {
    match MODE.load(Ordering::Relaxed) {
        OFF => {}
        X2APIC => {
            // What was stored before must be visible to the CPU that is interrupted: a WRMSR to an
            // x2APIC register does not drain stores by itself (SDM 3A 11.12.3).
            // SAFETY: the interrupt command register in x2APIC mode (SDM 3A 11.12.9).
            unsafe {
                core::arch::x86_64::_mm_mfence();
                core::arch::x86_64::_mm_lfence();
                msr::write(0x830, u64::from(destination.0) << 32 | u64::from(low));
            }
        }
        _ => without_interrupts(|| {
            wait_until_sent();
            write(COMMAND_HIGH, destination.0 << 24);
            write(COMMAND_LOW, low);
        }),
    }
}

/// Waits a bounded while until the last command has left (xAPIC only).
fn wait_until_sent() {
    for _ in 0..100_000 {
        if read(COMMAND_LOW) & COMMAND_PENDING == 0 {
            return;
        }
        core::hint::spin_loop();
    }
}

/// Makes `cpu` look at its deferred-work word soon: sets [`percpu::DEFER_KICK`] and interrupts it.
pub fn kick(cpu: CpuId) {
    if let Some(target) = percpu::of(cpu) {
        target.defer(percpu::DEFER_KICK);
        command(COMMAND_FIXED | u32::from(idt::KICK), target.apic);
    }
}

/// Sends an NMI to one CPU.
pub(super) fn send_nmi(to: ApicId) {
    command(COMMAND_NMI, to);
}

/// Sends INIT to one CPU.
pub(super) fn send_init(to: ApicId) {
    // SAFETY: resets a CPU that does not run our code yet.
    with_lapic(
        |lapic, destination| unsafe { lapic.send_init_ipi(destination) },
        to,
    );
}

/// Starts one CPU at the 4 KiB page `page` of the first MiB.
pub(super) fn send_startup(to: ApicId, page: u8) {
    // SAFETY: the page holds the trampoline (`smp`).
    with_lapic(
        |lapic, destination| unsafe { lapic.send_sipi(page, destination) },
        to,
    );
}

/// Runs `send` with the crate's view and the destination as the crate wants it: it writes it to
/// bits 63:32 of the command, where xAPIC keeps its 8 bits on top.
fn with_lapic(send: impl FnOnce(&mut LocalApic, u32), to: ApicId) {
    let mode = MODE.load(Ordering::Relaxed);
    let destination = if mode == X2APIC { to.0 } else { to.0 << 24 };
    if let (true, Ok(mut lapic)) = (mode != OFF, build(mode)) {
        wait_until_sent();
        send(&mut lapic, destination);
    }
}
