//! Checks on the guest-state area but for segments (SDM 3C 27.3.1).

use super::{
    CR0_PE, CR0_PG, CR4_PAE, CR4_PCIDE, EFER_BITS, EFER_LMA, EFER_LME, Facts, Section, Violation,
    is_pat, segments,
};
use crate::control::{EntryControls, Pin, Primary, Secondary};
use crate::event;
use crate::{Controls, Guest};

const REGISTERS: Section = Section("SDM 3C 27.3.1.1");
const TABLES: Section = Section("SDM 3C 27.3.1.3");
const FLAGS: Section = Section("SDM 3C 27.3.1.4");
const NON_REGISTER: Section = Section("SDM 3C 27.3.1.5");
const PDPTES: Section = Section("SDM 3C 27.3.1.6");

const CR0_NW_CD: u64 = 1 << 29 | 1 << 30;
/// IA32_DEBUGCTL: LBR, BTF, TR, BTS, BTINT, the two BTS filters, the two freezes, SMM freeze, RTM.
const DEBUGCTL_BITS: u64 = 0xdfc3;
const DEBUGCTL_BTF: u64 = 1 << 1;
/// RFLAGS.
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
const VM: u64 = 1 << 17;
const RFLAGS_RESERVED: u64 = !0x3f_ffff | 1 << 15 | 1 << 5 | 1 << 3;

const BLOCKING_BY_SMI: u32 = 1 << 2;
const HALTED: u32 = 1;
const SHUT_DOWN: u32 = 2;
const WAITING_FOR_SIPI: u32 = 3;

/// What kind of guest the other rules speak of.
#[derive(Clone, Copy)]
pub(super) struct Mode {
    /// The entry goes to IA-32e mode.
    pub long: bool,
    /// Without paging or protection.
    pub unrestricted: bool,
    /// RFLAGS.VM.
    pub virtual_8086: bool,
    /// CR0.PE.
    pub protected: bool,
}

/// Judges the guest-state area.
///
/// # Errors
/// The first rule that is broken.
pub fn check_guest(g: &Guest, c: &Controls, facts: &Facts) -> Result<(), Violation> {
    let in_use = c.primary & Primary::SECONDARY.bits() != 0;
    let mode = Mode {
        long: c.entry & EntryControls::IA32E_GUEST.bits() != 0,
        unrestricted: in_use && c.secondary & Secondary::UNRESTRICTED.bits() != 0,
        virtual_8086: g.rflags & VM != 0,
        protected: g.cr0 & CR0_PE != 0,
    };
    control_registers(g, c, mode, facts)?;
    model_specific(g, c, mode, facts)?;
    // Before the segments: a wrong VM bit makes all of them look wrong.
    flags(g, c, mode, facts)?;
    segments::check(g, mode, facts)?;
    tables(g, facts)?;
    non_register(g, c, facts)?;
    pdptes(g, mode, facts)
}

fn control_registers(g: &Guest, c: &Controls, mode: Mode, facts: &Facts) -> Result<(), Violation> {
    let cr0 = |met, rule| REGISTERS.must(met, "guest CR0", g.cr0, rule);
    let relaxed = if mode.unrestricted {
        CR0_PE | CR0_PG
    } else {
        0
    };
    let (must, may) = facts.caps.cr0;
    // CD and NW are not checked, and an entry does not load them.
    cr0(
        Facts::is_fixed(g.cr0 & !CR0_NW_CD, (must & !relaxed & !CR0_NW_CD, may)),
        "bits that VMX operation fixes (IA32_VMX_CR0_FIXED0 and 1) differ",
    )?;
    cr0(
        g.cr0 & CR0_PG == 0 || g.cr0 & CR0_PE != 0,
        "paging (bit 31) needs protection (bit 0)",
    )?;
    let cr4 = |met, rule| REGISTERS.must(met, "guest CR4", g.cr4, rule);
    cr4(
        Facts::is_fixed(g.cr4, facts.caps.cr4),
        "bits that VMX operation fixes (IA32_VMX_CR4_FIXED0 and 1) differ",
    )?;
    if mode.long {
        cr0(g.cr0 & CR0_PG != 0, "IA-32e mode needs paging (bit 31)")?;
        cr4(g.cr4 & CR4_PAE != 0, "IA-32e mode needs PAE (bit 5)")?;
    } else {
        cr4(g.cr4 & CR4_PCIDE == 0, "PCIDE (bit 17) needs IA-32e mode")?;
    }
    REGISTERS.must(
        facts.is_physical(g.cr3),
        "guest CR3",
        g.cr3,
        "the address is beyond the processor's width",
    )?;
    let loads_debug = c.entry & EntryControls::LOAD_DEBUG.bits() != 0;
    REGISTERS.must(
        !loads_debug || g.dr7 >> 32 == 0,
        "guest DR7",
        g.dr7,
        "bits 63:32 are reserved",
    )?;
    REGISTERS.must(
        !loads_debug || g.debugctl & !DEBUGCTL_BITS == 0,
        "guest IA32_DEBUGCTL",
        g.debugctl,
        "a reserved bit is 1",
    )
}

fn model_specific(g: &Guest, c: &Controls, mode: Mode, facts: &Facts) -> Result<(), Violation> {
    let canonical = |field, value| {
        REGISTERS.must(
            facts.is_canonical(value),
            field,
            value,
            "it must be canonical",
        )
    };
    canonical("guest IA32_SYSENTER_ESP", g.sysenter_esp)?;
    canonical("guest IA32_SYSENTER_EIP", g.sysenter_eip)?;
    let entry = EntryControls::from_bits_retain(c.entry);
    if entry.contains(EntryControls::LOAD_PAT) {
        REGISTERS.must(
            is_pat(g.pat),
            "guest IA32_PAT",
            g.pat,
            "a byte is no memory type",
        )?;
    }
    if entry.contains(EntryControls::LOAD_EFER) {
        let must = |met, rule| REGISTERS.must(met, "guest IA32_EFER", g.efer, rule);
        must(g.efer & !EFER_BITS == 0, "a reserved bit is 1")?;
        must(
            (g.efer & EFER_LMA != 0) == mode.long,
            "LMA (bit 10) must equal the entry control \"IA-32e mode guest\"",
        )?;
        let same = (g.efer & EFER_LMA != 0) == (g.efer & EFER_LME != 0);
        must(
            same || g.cr0 & CR0_PG == 0,
            "LMA and LME must agree while CR0.PG is 1",
        )?;
    }
    Ok(())
}

fn tables(g: &Guest, facts: &Facts) -> Result<(), Violation> {
    for (base, limit, table) in [
        ("guest GDTR base", "guest GDTR limit", g.gdtr),
        ("guest IDTR base", "guest IDTR limit", g.idtr),
    ] {
        TABLES.must(
            facts.is_canonical(table.base),
            base,
            table.base,
            "it must be canonical",
        )?;
        TABLES.must(
            table.limit >> 16 == 0,
            limit,
            table.limit,
            "bits 31:16 must be 0",
        )?;
    }
    Ok(())
}

fn flags(g: &Guest, c: &Controls, mode: Mode, facts: &Facts) -> Result<(), Violation> {
    const L: u32 = 1 << 13;
    if mode.long && g.cs.rights & L != 0 {
        // The processor does not compare with the highest implemented bit.
        let upper = g.rip >> facts.linear_bits;
        FLAGS.must(
            upper == 0 || upper == u64::MAX >> facts.linear_bits,
            "guest RIP",
            g.rip,
            "bits above the linear-address width must be equal",
        )?;
    } else {
        FLAGS.must(
            g.rip >> 32 == 0,
            "guest RIP",
            g.rip,
            "bits 63:32 must be 0 outside 64-bit mode",
        )?;
    }
    let must = |met, rule| FLAGS.must(met, "guest RFLAGS", g.rflags, rule);
    must(g.rflags & RFLAGS_RESERVED == 0, "a reserved bit is 1")?;
    must(g.rflags & 2 != 0, "bit 1 must be 1")?;
    must(
        !mode.virtual_8086 || !mode.long && mode.protected,
        "virtual-8086 mode (bit 17) exists in protected mode only",
    )?;
    let external = event::is_valid(c.event) && c.event >> 8 & 7 == 0;
    must(
        !external || g.rflags & IF != 0,
        "IF (bit 9) must be 1 where an interrupt is injected",
    )
}

fn non_register(g: &Guest, c: &Controls, facts: &Facts) -> Result<(), Violation> {
    let blocking = g.interruptibility & (Guest::BLOCKING_BY_STI | Guest::BLOCKING_BY_MOV_SS);
    let activity = |met, rule| NON_REGISTER.must(met, "guest activity state", g.activity, rule);
    // IA32_VMX_MISC bits 8:6 say which of the states 1 to 3 exist.
    let exists = match g.activity {
        0 => true,
        state @ 1..=3 => facts.caps.misc >> (5 + state) & 1 == 1,
        _ => false,
    };
    activity(exists, "the processor has no such state")?;
    activity(
        g.activity != HALTED || g.ss.dpl() == 0,
        "only privilege level 0 can be halted",
    )?;
    activity(
        g.activity == 0 || blocking == 0,
        "blocking by STI or MOV SS needs the active state",
    )?;

    if event::is_valid(c.event) {
        let (kind, vector) = (c.event >> 8 & 7, c.event & 0xff);
        let machine_check = kind == 3 && vector == 18;
        let wakes = match g.activity {
            HALTED => matches!(kind, 0 | 2 | 7) || machine_check || kind == 3 && vector == 1,
            SHUT_DOWN => kind == 2 || machine_check,
            WAITING_FOR_SIPI => false,
            _ => true,
        };
        activity(
            wakes,
            "the event that is injected cannot arrive in this state",
        )?;
    }

    let state = |met, rule| {
        NON_REGISTER.must(
            met,
            "guest interruptibility state",
            g.interruptibility,
            rule,
        )
    };
    state(
        g.interruptibility >> 4 == 0,
        "bits 31:5 are reserved, and bit 4 is for enclaves, which no guest has",
    )?;
    state(
        blocking != Guest::BLOCKING_BY_STI | Guest::BLOCKING_BY_MOV_SS,
        "STI and MOV SS cannot block both",
    )?;
    state(
        blocking & Guest::BLOCKING_BY_STI == 0 || g.rflags & IF != 0,
        "blocking by STI needs RFLAGS.IF",
    )?;
    state(
        g.interruptibility & BLOCKING_BY_SMI == 0,
        "blocking by SMI is for system-management mode",
    )?;
    if event::is_valid(c.event) {
        let kind = c.event >> 8 & 7;
        state(
            kind != 0 || blocking == 0,
            "an interrupt cannot be injected behind STI or MOV SS",
        )?;
        state(
            kind != 2 || blocking & Guest::BLOCKING_BY_MOV_SS == 0,
            "an NMI cannot be injected behind MOV SS",
        )?;
        let virtual_nmis = c.pin & Pin::VIRTUAL_NMI.bits() != 0;
        state(
            kind != 2 || !virtual_nmis || g.interruptibility & Guest::BLOCKING_BY_NMI == 0,
            "an NMI cannot be injected while NMIs are blocked",
        )?;
    }

    let pending =
        |met, rule| NON_REGISTER.must(met, "guest pending debug exceptions", g.pending_debug, rule);
    const ENABLED: u64 = 1 << 12;
    const TRANSACTION: u64 = 1 << 16;
    const DEFINED: u64 = 0xf | ENABLED | 1 << 14 | TRANSACTION;
    pending(g.pending_debug & !DEFINED == 0, "a reserved bit is 1")?;
    let in_transaction = g.pending_debug & TRANSACTION != 0;
    pending(
        !in_transaction || facts.has_transactions,
        "the processor has no transactions (bit 16)",
    )?;
    pending(
        !in_transaction || g.pending_debug == TRANSACTION | ENABLED,
        "bit 16 (from within a transaction) goes with bit 12 and nothing else",
    )?;
    pending(
        !in_transaction || g.interruptibility & Guest::BLOCKING_BY_MOV_SS == 0,
        "bit 16 (from within a transaction) cannot be behind MOV SS",
    )?;
    if blocking != 0 || g.activity == HALTED {
        let stepping = g.rflags & TF != 0 && g.debugctl & DEBUGCTL_BTF == 0;
        pending(
            (g.pending_debug & Guest::PENDING_STEP != 0) == stepping,
            "BS (bit 14) must tell whether the guest steps, behind STI or MOV SS",
        )?;
    }
    // A page would have to begin with the VMCS revision, and no VMCS of Perigee's is ever linked.
    NON_REGISTER.must(
        g.link == Guest::NO_LINK,
        "VMCS link pointer",
        g.link,
        "it must be all ones, as no VMCS is linked",
    )
}

fn pdptes(g: &Guest, mode: Mode, facts: &Facts) -> Result<(), Violation> {
    if g.cr0 & CR0_PG == 0 || g.cr4 & CR4_PAE == 0 || mode.long {
        return Ok(());
    }
    let names = [
        "guest PDPTE0",
        "guest PDPTE1",
        "guest PDPTE2",
        "guest PDPTE3",
    ];
    const RESERVED: u64 = 0x1e6;
    for (name, pdpte) in names.into_iter().zip(g.pdptes()) {
        let valid = pdpte & RESERVED == 0 && facts.is_physical(pdpte);
        PDPTES.must(
            pdpte & 1 == 0 || valid,
            name,
            pdpte,
            "a reserved bit is 1 in a present entry",
        )?;
    }
    Ok(())
}
