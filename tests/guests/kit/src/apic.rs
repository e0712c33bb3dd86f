//! The local APIC by both of its doors, memory and model-specific registers, and the I/O APIC (SDM 3A 11, 82093AA).

use crate::cpu::{peek, poke, rdmsr, wrmsr};

/// Physical base after reset.
pub const BASE: u64 = 0xfee0_0000;
/// IA32_APIC_BASE.
pub const BASE_MSR: u32 = 0x1b;
/// Bit of IA32_APIC_BASE: this is the bootstrap processor.
pub const BASE_BSP: u64 = 1 << 8;
/// Bit of IA32_APIC_BASE: x2APIC mode.
pub const BASE_X2APIC: u64 = 1 << 10;
/// Bit of IA32_APIC_BASE: on.
pub const BASE_ENABLE: u64 = 1 << 11;

/// Register offsets, as in memory; in x2APIC mode MSR 800h plus a sixteenth.
pub mod reg {
    #![expect(missing_docs, reason = "the manual's names")]
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const TMR: u32 = 0x180;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const TIMER: u32 = 0x320;
    pub const LINT0: u32 = 0x350;
    pub const LINT1: u32 = 0x360;
    pub const ERROR: u32 = 0x370;
    pub const INITIAL: u32 = 0x380;
    pub const CURRENT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3e0;
}

/// Spurious vector that the kit uses.
pub const SPURIOUS: u8 = 0xff;
const ENABLE: u32 = 1 << 8;
/// Mask bit of local and I/O APIC entries.
pub const MASKED: u32 = 1 << 16;

/// Delivery modes and shorthands of the interrupt command register.
pub mod ipi {
    #![expect(missing_docs, reason = "the manual's names")]
    pub const FIXED: u32 = 0;
    pub const LOWEST: u32 = 1 << 8;
    pub const NMI: u32 = 4 << 8;
    pub const INIT: u32 = 5 << 8;
    pub const STARTUP: u32 = 6 << 8;
    pub const LOGICAL: u32 = 1 << 11;
    pub const PENDING: u32 = 1 << 12;
    pub const ASSERT: u32 = 1 << 14;
    pub const SELF: u32 = 1 << 18;
    pub const ALL: u32 = 2 << 18;
    pub const OTHERS: u32 = 3 << 18;
}

/// Whether this processor is in x2APIC mode.
pub fn x2apic() -> bool {
    rdmsr(BASE_MSR) & BASE_X2APIC != 0
}

/// Reads a register.
pub fn read(register: u32) -> u32 {
    if x2apic() {
        rdmsr(0x800 + register / 16) as u32
    } else {
        peek(BASE + u64::from(register))
    }
}

/// Writes a register.
pub fn write(register: u32, value: u32) {
    if x2apic() {
        wrmsr(0x800 + register / 16, value.into());
    } else {
        poke(BASE + u64::from(register), value);
    }
}

/// This processor's identifier.
pub fn id() -> u32 {
    if x2apic() {
        read(reg::ID)
    } else {
        read(reg::ID) >> 24
    }
}

/// Sends an interrupt command to `target`.
pub fn send(command: u32, target: u32) {
    if x2apic() {
        wrmsr(
            0x800 + reg::ICR / 16,
            u64::from(target) << 32 | u64::from(command),
        );
        return;
    }
    write(reg::ICR_HIGH, target << 24);
    write(reg::ICR, command);
    // Hardware of this century delivers at once; the bit is kept for what came before.
    let _sent = (0..100_000).any(|_| read(reg::ICR) & ipi::PENDING == 0);
}

/// Interrupts this processor with `vector`.
pub fn send_self(vector: u8) {
    send(ipi::ASSERT | ipi::SELF | u32::from(vector), 0);
}

/// The interrupt in service is over.
pub fn end_of_interrupt() {
    write(reg::EOI, 0);
}

/// One of the 256-bit registers: whether `vector` is set.
pub fn bit(register: u32, vector: u8) -> bool {
    read(register + u32::from(vector / 32) * 16) >> (vector % 32) & 1 != 0
}

/// Enables the local APIC with everything masked and quiet.
pub fn switch_on() {
    write(reg::SVR, ENABLE | u32::from(SPURIOUS));
    write(reg::TIMER, MASKED);
    write(reg::LINT0, MASKED);
    write(reg::LINT1, MASKED);
    write(reg::INITIAL, 0);
    write(reg::TPR, 0);
    crate::this()
        .apic_id
        .store(id(), core::sync::atomic::Ordering::SeqCst);
}

/// Nothing in service, nothing counting, no priority.
pub fn settle() {
    write(reg::TIMER, MASKED);
    write(reg::INITIAL, 0);
    let in_service = || (0..8).any(|word| read(reg::ISR + word * 16) != 0);
    let _ended = (0..256).any(|_| {
        if in_service() {
            end_of_interrupt();
        }
        !in_service()
    });
    write(reg::TPR, 0);
}

/// Turns the local APIC off in software, or on.
pub fn software_enable(on: bool) {
    write(reg::SVR, u32::from(SPURIOUS) | if on { ENABLE } else { 0 });
}

/// Takes this processor to x2APIC mode, or back to memory by way of off (SDM 3A 11.12.5).
pub fn set_x2apic(on: bool) {
    let base = rdmsr(BASE_MSR) & !(BASE_X2APIC | BASE_ENABLE);
    if on {
        wrmsr(BASE_MSR, base | BASE_ENABLE | BASE_X2APIC);
    } else {
        wrmsr(BASE_MSR, base);
        wrmsr(BASE_MSR, base | BASE_ENABLE);
    }
    switch_on();
}

/// The I/O APIC.
pub mod io {
    use crate::cpu::{peek, poke};

    const BASE: u64 = 0xfec0_0000;
    /// Bits of an entry's low half.
    pub const LEVEL: u32 = 1 << 15;
    /// Remote IRR.
    pub const REMOTE_IRR: u32 = 1 << 14;
    /// Active low.
    pub const LOW: u32 = 1 << 13;

    /// Reads a register.
    pub fn read(index: u8) -> u32 {
        poke(BASE, u32::from(index));
        peek(BASE + 0x10)
    }

    /// Writes a register.
    pub fn write(index: u8, value: u32) {
        poke(BASE, u32::from(index));
        poke(BASE + 0x10, value);
    }

    /// The low half of a pin's entry.
    pub fn entry(pin: u8) -> u32 {
        read(0x10 + 2 * pin)
    }

    /// Programs a pin: physical destination `target`.
    pub fn route(pin: u8, low: u32, target: u32) {
        write(0x10 + 2 * pin, super::MASKED);
        write(0x11 + 2 * pin, target << 24);
        write(0x10 + 2 * pin, low);
    }

    /// Masks a pin and forgets the rest of its entry.
    pub fn mask(pin: u8) {
        write(0x10 + 2 * pin, super::MASKED);
    }
}
