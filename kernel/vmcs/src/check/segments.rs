//! Checks on the guest's segment registers (SDM 3C 27.3.1.2).

use super::guest::Mode;
use super::{Facts, Section, Violation};
use crate::{Guest, Segment};

const SEGMENTS: Section = Section("SDM 3C 27.3.1.2");

/// A register with the names of its fields.
#[derive(Clone, Copy)]
struct Named {
    selector: &'static str,
    base: &'static str,
    limit: &'static str,
    rights: &'static str,
    is: Segment,
}

macro_rules! named {
    ($name:literal, $segment:expr) => {
        Named {
            selector: concat!("guest ", $name, " selector"),
            base: concat!("guest ", $name, " base"),
            limit: concat!("guest ", $name, " limit"),
            rights: concat!("guest ", $name, " access rights"),
            is: $segment,
        }
    };
}

impl Named {
    fn kind(self) -> u32 {
        self.is.rights & 15
    }
    fn selector(self, met: bool, rule: &'static str) -> Result<(), Violation> {
        SEGMENTS.must(met, self.selector, self.is.selector, rule)
    }
    fn base(self, met: bool, rule: &'static str) -> Result<(), Violation> {
        SEGMENTS.must(met, self.base, self.is.base, rule)
    }
    fn limit(self, met: bool, rule: &'static str) -> Result<(), Violation> {
        SEGMENTS.must(met, self.limit, self.is.limit, rule)
    }
    fn rights(self, met: bool, rule: &'static str) -> Result<(), Violation> {
        SEGMENTS.must(met, self.rights, self.is.rights, rule)
    }

    /// What holds for every usable register: present, no reserved bit, a limit that fits the granularity.
    fn common(self, is_system: bool) -> Result<(), Violation> {
        const S: u32 = 1 << 4;
        const P: u32 = 1 << 7;
        const G: u32 = 1 << 15;
        const RESERVED: u32 = 0xfffe_0f00;
        self.rights(
            (self.is.rights & S == 0) == is_system,
            "S (bit 4) must be 0 for LDTR and TR, and 1 for the others",
        )?;
        self.rights(self.is.rights & P != 0, "P (bit 7) must be 1")?;
        self.rights(
            self.is.rights & RESERVED == 0,
            "bits 31:17 and 11:8 are reserved",
        )?;
        let granular = self.is.rights & G != 0;
        self.rights(
            self.is.limit & 0xfff == 0xfff || !granular,
            "G (bit 15) must be 0, as bits 11:0 of the limit are not all 1",
        )?;
        self.rights(
            self.is.limit >> 20 == 0 || granular,
            "G (bit 15) must be 1, as the limit is 1 MiB or more",
        )
    }
}

pub(super) fn check(g: &Guest, mode: Mode, facts: &Facts) -> Result<(), Violation> {
    let cs = named!("CS", g.cs);
    let ss = named!("SS", g.ss);
    let data = [
        named!("DS", g.ds),
        named!("ES", g.es),
        named!("FS", g.fs),
        named!("GS", g.gs),
    ];
    if mode.virtual_8086 {
        for segment in [cs, ss].into_iter().chain(data) {
            virtual_8086(segment)?;
        }
    } else {
        bases(cs, ss, data, facts)?;
        code(cs, ss, mode)?;
        stack(ss, cs, mode)?;
        for segment in data {
            data_segment(segment, mode)?;
        }
    }
    task(named!("TR", g.tr), mode, facts)?;
    local_table(named!("LDTR", g.ldtr), facts)
}

fn virtual_8086(segment: Named) -> Result<(), Violation> {
    segment.base(
        segment.is.base == u64::from(segment.is.selector) << 4,
        "it must be 16 times the selector in virtual-8086 mode",
    )?;
    segment.limit(
        segment.is.limit == 0xffff,
        "it must be FFFFh in virtual-8086 mode",
    )?;
    segment.rights(
        segment.is.rights == 0xf3,
        "they must be F3h in virtual-8086 mode",
    )
}

fn bases(cs: Named, ss: Named, data: [Named; 4], facts: &Facts) -> Result<(), Violation> {
    let [ds, es, fs, gs] = data;
    for segment in [fs, gs] {
        segment.base(facts.is_canonical(segment.is.base), "it must be canonical")?;
    }
    cs.base(cs.is.base >> 32 == 0, "bits 63:32 must be 0")?;
    for segment in [ss, ds, es] {
        segment.base(
            !segment.is.usable() || segment.is.base >> 32 == 0,
            "bits 63:32 must be 0",
        )?;
    }
    Ok(())
}

fn code(cs: Named, ss: Named, mode: Mode) -> Result<(), Violation> {
    const L: u32 = 1 << 13;
    const D: u32 = 1 << 14;
    let kind = cs.kind();
    cs.rights(
        matches!(kind, 9 | 11 | 13 | 15) || kind == 3 && mode.unrestricted,
        "the type must be accessed code",
    )?;
    let (dpl, stack) = (cs.is.dpl(), ss.is.dpl());
    cs.rights(
        match kind {
            3 => dpl == 0,
            9 | 11 => dpl == stack,
            _ => dpl <= stack,
        },
        "DPL does not go with the type and the DPL of SS",
    )?;
    cs.rights(
        !(mode.long && cs.is.rights & L != 0 && cs.is.rights & D != 0),
        "D (bit 14) must be 0 in 64-bit mode",
    )?;
    cs.common(false)
}

fn stack(ss: Named, cs: Named, mode: Mode) -> Result<(), Violation> {
    let rpl = |segment: Named| segment.is.selector & 3;
    ss.selector(
        mode.unrestricted || rpl(ss) == rpl(cs),
        "RPL must equal that of CS",
    )?;
    ss.rights(
        mode.unrestricted || u16::from(ss.is.dpl()) == rpl(ss),
        "DPL must equal the selector's RPL",
    )?;
    ss.rights(
        ss.is.dpl() == 0 || cs.kind() != 3 && mode.protected,
        "DPL must be 0 in real mode",
    )?;
    if !ss.is.usable() {
        return Ok(());
    }
    ss.rights(
        matches!(ss.kind(), 3 | 7),
        "the type must be writable, accessed data",
    )?;
    ss.common(false)
}

fn data_segment(segment: Named, mode: Mode) -> Result<(), Violation> {
    if !segment.is.usable() {
        return Ok(());
    }
    let kind = segment.kind();
    segment.rights(
        kind & 1 != 0 && (kind & 8 == 0 || kind & 2 != 0),
        "the type must be accessed, and readable if it is code",
    )?;
    segment.rights(
        mode.unrestricted || kind > 11 || u16::from(segment.is.dpl()) >= segment.is.selector & 3,
        "DPL must not be below the selector's RPL",
    )?;
    segment.common(false)
}

fn task(tr: Named, mode: Mode, facts: &Facts) -> Result<(), Violation> {
    const TABLE: u16 = 1 << 2;
    tr.selector(tr.is.selector & TABLE == 0, "it must refer to the GDT")?;
    tr.base(facts.is_canonical(tr.is.base), "it must be canonical")?;
    tr.rights(tr.is.usable(), "TR must be usable (bit 16)")?;
    tr.rights(
        tr.kind() == 11 || tr.kind() == 3 && !mode.long,
        "the type must be a busy TSS",
    )?;
    tr.common(true)
}

fn local_table(ldtr: Named, facts: &Facts) -> Result<(), Violation> {
    const TABLE: u16 = 1 << 2;
    if !ldtr.is.usable() {
        return Ok(());
    }
    ldtr.selector(ldtr.is.selector & TABLE == 0, "it must refer to the GDT")?;
    ldtr.base(facts.is_canonical(ldtr.is.base), "it must be canonical")?;
    ldtr.rights(ldtr.kind() == 2, "the type must be LDT")?;
    ldtr.common(true)
}
