//! Checks on the host-state area (SDM 3C 27.2.2 to 27.2.4).

use super::{CR4_PAE, EFER_BITS, EFER_LMA, EFER_LME, Facts, Section, Violation, is_pat};
use crate::control::ExitControls;
use crate::{Controls, Host};

const REGISTERS: Section = Section("SDM 3C 27.2.2");
const SEGMENTS: Section = Section("SDM 3C 27.2.3");
const ADDRESS_SPACE: Section = Section("SDM 3C 27.2.4");

/// Judges the host-state area of a 64-bit host.
///
/// # Errors
/// The first rule that is broken.
pub fn check_host(host: &Host, controls: &Controls, facts: &Facts) -> Result<(), Violation> {
    registers(host, controls, facts)?;
    segments(host, facts)?;
    ADDRESS_SPACE.must(
        controls.exit & ExitControls::HOST_64.bits() != 0,
        "VM-exit controls",
        controls.exit,
        "a host in IA-32e mode must return to it (bit 9)",
    )?;
    ADDRESS_SPACE.must(
        host.cr4 & CR4_PAE != 0,
        "host CR4",
        host.cr4,
        "bit 5 (PAE) must be 1 for a 64-bit host",
    )?;
    ADDRESS_SPACE.must(
        facts.is_canonical(host.rip),
        "host RIP",
        host.rip,
        "it must be canonical",
    )
}

fn registers(host: &Host, controls: &Controls, facts: &Facts) -> Result<(), Violation> {
    let fixed = "bits that VMX operation fixes (IA32_VMX_CRn_FIXED0 and 1) differ";
    REGISTERS.must(
        Facts::is_fixed(host.cr0, facts.caps.cr0),
        "host CR0",
        host.cr0,
        fixed,
    )?;
    REGISTERS.must(
        Facts::is_fixed(host.cr4, facts.caps.cr4),
        "host CR4",
        host.cr4,
        fixed,
    )?;
    REGISTERS.must(
        facts.is_physical(host.cr3),
        "host CR3",
        host.cr3,
        "the address is beyond the processor's width",
    )?;
    let canonical = |field, value| {
        REGISTERS.must(
            facts.is_canonical(value),
            field,
            value,
            "it must be canonical",
        )
    };
    canonical("host IA32_SYSENTER_ESP", host.sysenter_esp)?;
    canonical("host IA32_SYSENTER_EIP", host.sysenter_eip)?;
    let exit = ExitControls::from_bits_retain(controls.exit);
    if exit.contains(ExitControls::LOAD_PAT) {
        REGISTERS.must(
            is_pat(host.pat),
            "host IA32_PAT",
            host.pat,
            "a byte is no memory type",
        )?;
    }
    if exit.contains(ExitControls::LOAD_EFER) {
        let must = |met, rule| REGISTERS.must(met, "host IA32_EFER", host.efer, rule);
        must(host.efer & !EFER_BITS == 0, "a reserved bit is 1")?;
        let long = EFER_LME | EFER_LMA;
        must(
            host.efer & long == long || !exit.contains(ExitControls::HOST_64),
            "LME and LMA must be 1 for a 64-bit host",
        )?;
    }
    Ok(())
}

fn segments(host: &Host, facts: &Facts) -> Result<(), Violation> {
    let selectors = [
        ("host CS selector", host.cs),
        ("host SS selector", host.ss),
        ("host DS selector", host.ds),
        ("host ES selector", host.es),
        ("host FS selector", host.fs),
        ("host GS selector", host.gs),
        ("host TR selector", host.tr),
    ];
    for (field, selector) in selectors {
        SEGMENTS.must(
            selector & 7 == 0,
            field,
            selector,
            "RPL and table indicator must be 0",
        )?;
    }
    SEGMENTS.must(
        host.cs != 0,
        "host CS selector",
        host.cs,
        "it must not be null",
    )?;
    SEGMENTS.must(
        host.tr != 0,
        "host TR selector",
        host.tr,
        "it must not be null",
    )?;
    let bases = [
        ("host FS base", host.fs_base),
        ("host GS base", host.gs_base),
        ("host GDTR base", host.gdtr_base),
        ("host IDTR base", host.idtr_base),
        ("host TR base", host.tr_base),
    ];
    for (field, base) in bases {
        SEGMENTS.must(
            facts.is_canonical(base),
            field,
            base,
            "it must be canonical",
        )?;
    }
    Ok(())
}
