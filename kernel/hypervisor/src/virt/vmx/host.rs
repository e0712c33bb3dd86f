#![expect(unsafe_code, reason = "reads control registers and this CPU's own GDT")]
//! Where an exit returns to: this CPU's registers as they are now (SDM 3C 25.5).
//!
//! The area is taken anew whenever a virtual CPU comes to a CPU, since GS base, GDT, TSS and stack are each
//! CPU's own. An exit sets the limits of GDTR and IDTR to FFFFh (SDM 3C 28.5.2), which is harmless: the IDT has all 256
//! gates, and the kernel loads no selector behind its GDT.

use super::enter;
use crate::arch::{gdt, msr};
use core::arch::asm;
use vmcs::Host;
use x86_64::instructions::tables::{sgdt, sidt};

const MSR_EFER: u32 = 0xc000_0080;
const MSR_FS_BASE: u32 = 0xc000_0100;

/// The calling CPU's host-state area; RSP follows at each entry.
pub fn area() -> Host {
    let (cr0, cr3, cr4): (u64, u64, u64);
    // SAFETY: reading control registers has no effect, and these MSRs exist in long mode.
    let (pat, efer, fs_base, gs_base) = unsafe {
        asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4",
            out(reg) cr0, out(reg) cr3, out(reg) cr4, options(nomem, nostack, preserves_flags));
        (
            msr::read(msr::PAT),
            msr::read(MSR_EFER),
            msr::read(MSR_FS_BASE),
            msr::read(msr::GS_BASE),
        )
    };
    Host {
        cr0,
        cr3,
        cr4,
        rsp: 0,
        rip: enter::vm_exit as *const () as u64,
        es: gdt::DATA.0,
        cs: gdt::CODE.0,
        ss: gdt::DATA.0,
        ds: gdt::DATA.0,
        fs: 0,
        gs: 0,
        tr: gdt::TSS.0,
        fs_base,
        gs_base,
        tr_base: tss_base(),
        gdtr_base: sgdt().base.as_u64(),
        idtr_base: sidt().base.as_u64(),
        // SYSENTER is for user mode, which the kernel does not have.
        sysenter_cs: 0,
        sysenter_esp: 0,
        sysenter_eip: 0,
        pat,
        efer,
    }
}

/// The base in the TSS descriptor of this CPU's GDT (SDM 3A 8.2.3).
fn tss_base() -> u64 {
    let descriptor = sgdt().base.as_u64() + u64::from(gdt::TSS.0 & !7);
    // SAFETY: `gdt::load` has put the GDT there with a 16-byte TSS descriptor at this selector, for ever.
    let [low, high] = unsafe { (descriptor as *const [u64; 2]).read() };
    low >> 16 & 0xff_ffff | low >> 56 << 24 | high << 32
}
