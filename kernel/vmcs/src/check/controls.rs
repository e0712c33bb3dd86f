//! Checks on the controls (SDM 3C 27.2.1).

use super::{CR0_PE, Facts, Section, Violation};
use crate::control::{Allowed, EntryControls, ExitControls, Pin, Primary, Secondary};
use crate::event;
use crate::{Controls, EptVpid};

const EXECUTION: Section = Section("SDM 3C 27.2.1.1");
const EXIT: Section = Section("SDM 3C 27.2.1.2");
const ENTRY: Section = Section("SDM 3C 27.2.1.3");

/// Judges the controls. `guest_cr0` decides whether an exception has an error code.
///
/// # Errors
/// The first rule that is broken.
pub fn check_controls(c: &Controls, guest_cr0: u64, facts: &Facts) -> Result<(), Violation> {
    execution(c, facts)?;
    bitmaps(c, facts)?;
    nested(c, facts)?;
    exit(c, facts)?;
    entry(c, guest_cr0, facts)
}

fn allowed(
    section: Section,
    allowed: Allowed,
    word: u32,
    field: &'static str,
) -> Result<(), Violation> {
    section.must(
        allowed.must & !word == 0,
        field,
        word,
        "a bit is 0 that the processor's capability register wants to be 1",
    )?;
    section.must(
        word & !allowed.may == 0,
        field,
        word,
        "a bit is 1 that the processor's capability register wants to be 0",
    )
}

fn execution(c: &Controls, facts: &Facts) -> Result<(), Violation> {
    let caps = &facts.caps;
    allowed(EXECUTION, caps.pin, c.pin, "pin-based controls")?;
    allowed(
        EXECUTION,
        caps.primary,
        c.primary,
        "primary processor-based controls",
    )?;
    let primary = Primary::from_bits_retain(c.primary);
    if primary.contains(Primary::SECONDARY) {
        allowed(
            EXECUTION,
            caps.secondary,
            c.secondary,
            "secondary processor-based controls",
        )?;
    }
    // IA32_VMX_MISC bits 24:16.
    EXECUTION.must(
        u64::from(c.cr3_targets) <= caps.misc >> 16 & 0x1ff,
        "CR3-target count",
        c.cr3_targets,
        "the processor has fewer CR3-target values",
    )?;
    let pin = Pin::from_bits_retain(c.pin);
    EXECUTION.must(
        pin.contains(Pin::NMI) || !pin.contains(Pin::VIRTUAL_NMI),
        "pin-based controls",
        c.pin,
        "virtual NMIs (bit 5) need NMI exiting (bit 3)",
    )?;
    EXECUTION.must(
        pin.contains(Pin::VIRTUAL_NMI) || !primary.contains(Primary::NMI_WINDOW),
        "primary processor-based controls",
        c.primary,
        "NMI-window exiting (bit 22) needs virtual NMIs",
    )?;
    let secondary = secondary(c);
    let apic = Secondary::X2APIC | Secondary::APIC_REGISTERS | Secondary::INTERRUPT_DELIVERY;
    EXECUTION.must(
        primary.contains(Primary::TPR_SHADOW) || !secondary.intersects(apic),
        "secondary processor-based controls",
        c.secondary,
        "APIC virtualization (bits 4, 8, 9) needs the TPR shadow",
    )?;
    EXECUTION.must(
        secondary.contains(Secondary::INTERRUPT_DELIVERY) || !pin.contains(Pin::POSTED_INTERRUPTS),
        "pin-based controls",
        c.pin,
        "posted interrupts (bit 7) need virtual-interrupt delivery",
    )
}

/// The secondary controls count as 0 while they are not in use.
fn secondary(c: &Controls) -> Secondary {
    if c.primary & Primary::SECONDARY.bits() == 0 {
        return Secondary::empty();
    }
    Secondary::from_bits_retain(c.secondary)
}

fn bitmaps(c: &Controls, facts: &Facts) -> Result<(), Violation> {
    let primary = Primary::from_bits_retain(c.primary);
    let page = |used: bool, field, address: u64| {
        EXECUTION.must(
            !used || facts.is_page(address),
            field,
            address,
            "it must be the address of a page",
        )
    };
    let io = primary.contains(Primary::IO_BITMAPS);
    page(io, "address of I/O bitmap A", c.io_bitmap_a)?;
    page(io, "address of I/O bitmap B", c.io_bitmap_b)?;
    page(
        primary.contains(Primary::MSR_BITMAP),
        "address of the MSR bitmap",
        c.msr_bitmap,
    )
}

fn nested(c: &Controls, facts: &Facts) -> Result<(), Violation> {
    let secondary = secondary(c);
    EXECUTION.must(
        c.vpid != 0 || !secondary.contains(Secondary::VPID),
        "virtual-processor identifier",
        c.vpid,
        "0 is the host's",
    )?;
    let needs_ept = Secondary::UNRESTRICTED | Secondary::MODE_BASED_EXECUTE | Secondary::PML;
    EXECUTION.must(
        secondary.contains(Secondary::EPT) || !secondary.intersects(needs_ept),
        "secondary processor-based controls",
        c.secondary,
        "unrestricted guest, mode-based execute control and PML need EPT (bit 1)",
    )?;
    EXECUTION.must(
        !secondary.contains(Secondary::PML) || facts.is_page(c.pml_address),
        "PML address",
        c.pml_address,
        "it must be the address of a page",
    )?;
    if !secondary.contains(Secondary::EPT) {
        return Ok(());
    }
    let pointer = c.ept_pointer;
    let must = |met: bool, rule: &'static str| EXECUTION.must(met, "EPT pointer", pointer, rule);
    let ept = facts.caps.ept_vpid;
    let memory_type_is_offered = match pointer & 7 {
        0 => ept.contains(EptVpid::UNCACHEABLE),
        6 => ept.contains(EptVpid::WRITE_BACK),
        _ => false,
    };
    must(
        memory_type_is_offered,
        "the processor does not offer the memory type in bits 2:0",
    )?;
    must(
        pointer >> 3 & 7 == 3,
        "bits 5:3 must say that walks have length 4",
    )?;
    must(
        pointer & 1 << 6 == 0 || ept.contains(EptVpid::ACCESSED_DIRTY),
        "the processor has no accessed and dirty bits (bit 6)",
    )?;
    must(pointer & 0xf80 == 0, "bits 11:7 are reserved")?;
    must(
        facts.is_physical(pointer),
        "the address is beyond the processor's width",
    )
}

/// An area of MSRs, 16 bytes each: aligned, and all of it within the processor's width.
fn msrs(
    section: Section,
    field: &'static str,
    (address, count): (u64, u32),
    facts: &Facts,
) -> Result<(), Violation> {
    if count == 0 {
        return Ok(());
    }
    let must = |met, rule| section.must(met, field, address, rule);
    must(address & 15 == 0, "it must be a multiple of 16")?;
    let last = address.checked_add(u64::from(count) * 16 - 1);
    must(
        last.is_some_and(|last| facts.is_physical(last)),
        "the area ends beyond the processor's width",
    )
}

fn exit(c: &Controls, facts: &Facts) -> Result<(), Violation> {
    allowed(EXIT, facts.caps.exit, c.exit, "VM-exit controls")?;
    let stored = (c.exit_msr_store, c.exit_msr_stores);
    msrs(EXIT, "VM-exit MSR-store address", stored, facts)?;
    let loaded = (c.exit_msr_load, c.exit_msr_loads);
    msrs(EXIT, "VM-exit MSR-load address", loaded, facts)?;
    EXIT.must(
        c.pin & Pin::PREEMPTION_TIMER.bits() != 0
            || c.exit & ExitControls::SAVE_PREEMPTION_TIMER.bits() == 0,
        "VM-exit controls",
        c.exit,
        "the preemption timer can be saved (bit 22) only if it is active",
    )
}

fn entry(c: &Controls, guest_cr0: u64, facts: &Facts) -> Result<(), Violation> {
    allowed(ENTRY, facts.caps.entry, c.entry, "VM-entry controls")?;
    let smm = EntryControls::TO_SMM | EntryControls::END_DUAL_MONITOR;
    ENTRY.must(
        c.entry & smm.bits() == 0,
        "VM-entry controls",
        c.entry,
        "bits 10 and 11 are for system-management mode",
    )?;
    let loaded = (c.entry_msr_load, c.entry_msr_loads);
    msrs(ENTRY, "VM-entry MSR-load address", loaded, facts)?;
    if !event::is_valid(c.event) {
        return Ok(());
    }
    let must = |met: bool, rule: &'static str| {
        ENTRY.must(met, "VM-entry interruption information", c.event, rule)
    };
    let (vector, kind) = (c.event & 0xff, c.event >> 8 & 7);
    must(c.event & 0x7fff_f000 == 0, "bits 30:12 are reserved")?;
    must(kind != 1, "type 1 is reserved")?;
    // Type 7, "other event", exists with the monitor trap flag.
    let has_trap_flag = facts.caps.primary.offers(Primary::MONITOR_TRAP.bits());
    must(
        kind != 7 || has_trap_flag,
        "type 7 is reserved without the monitor trap flag",
    )?;
    must(
        kind != 2 || vector == 2,
        "an NMI (type 2) must have vector 2",
    )?;
    must(
        kind != 3 || vector <= 31,
        "an exception (type 3) must have a vector below 32",
    )?;
    must(
        kind != 7 || vector == 0,
        "another event (type 7) must have vector 0",
    )?;
    let has_error = c.event & 1 << 11 != 0;
    let unrestricted = secondary(c).contains(Secondary::UNRESTRICTED);
    let protected = !unrestricted || guest_cr0 & CR0_PE != 0;
    if facts.caps.free_error_codes && kind == 3 && protected {
        // IA32_VMX_BASIC bit 56: any exception may have one or not.
    } else {
        let pushes = kind == 3 && protected && matches!(vector, 8 | 10..=14 | 17);
        must(
            pushes || !has_error,
            "this event has no error code (bit 11)",
        )?;
        must(
            has_error || !pushes,
            "this exception needs an error code (bit 11)",
        )?;
    }
    ENTRY.must(
        !has_error || c.event_error >> 16 == 0,
        "VM-entry exception error code",
        c.event_error,
        "bits 31:16 are reserved",
    )?;
    // IA32_VMX_MISC bit 30 permits length 0.
    let shortest = u32::from(facts.caps.misc & 1 << 30 == 0);
    ENTRY.must(
        !matches!(kind, 4..=6) || (shortest..=15).contains(&c.event_length),
        "VM-entry instruction length",
        c.event_length,
        "the instruction of a software event has 1 to 15 bytes",
    )
}
