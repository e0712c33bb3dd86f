//! Register states in which a vCPU starts to run.
//!
//! Four exist: power-on (SDM 3A table 10-1), start-up by SIPI, and the entries of kernels that
//! were loaded directly ([`crate::linux`], [`crate::multiboot`]). Vendor-neutral: a backend translates an [`EntryState`]
//! into its control block, with [`Segment::vmcb_attributes`] or [`Segment::vmcs_access_rights`].

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, already scaled by the granularity.
    pub limit: u32,
    /// Bits 40 to 47 and 52 to 55 of the descriptor, packed into 12 bits: type, S, DPL, P, AVL,
    /// L, D/B, G (APM 2, 15.5.1 and table 15-8's note).
    pub attributes: u16,
}

impl Segment {
    /// A segment register that holds nothing usable.
    pub const NULL: Self = Self {
        selector: 0,
        base: 0,
        limit: 0,
        attributes: 0,
    };

    /// The attributes as a VMCB holds them.
    #[must_use]
    pub const fn vmcb_attributes(self) -> u16 {
        self.attributes
    }

    /// The attributes as VMCS access rights, with bit 16 set when unusable (SDM 3C 25.4.1).
    #[must_use]
    pub const fn vmcs_access_rights(self) -> u32 {
        let a = self.attributes as u32;
        if a & 0x80 == 0 {
            // The DPL of a stack segment is the privilege level, also where there is none (SDM 3C 25.4.1).
            return 1 << 16 | a & 0x60;
        }
        (a & 0xFF) | (a & 0xF00) << 4
    }
}

/// A descriptor-table register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRegister {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Segment attribute bits, packed as in [`Segment::attributes`].
mod attribute {
    /// Readable, accessed code; S; present.
    pub const CODE: u16 = 0x9B;
    /// Writable, accessed data; S; present.
    pub const DATA: u16 = 0x93;
    /// Busy 32- or 64-bit TSS; present.
    pub const TSS_BUSY: u16 = 0x8B;
    /// LDT; present.
    pub const LDT: u16 = 0x82;
    /// 64-bit code.
    pub const LONG: u16 = 1 << 9;
    /// 32-bit default operand size.
    pub const BIG: u16 = 1 << 10;
    /// Limit in units of 4 KiB.
    pub const GRANULARITY: u16 = 1 << 11;
}

/// Index of a general-purpose register in [`EntryState::gpr`], in the processor's own numbering.
pub mod gpr {
    /// RAX.
    pub const RAX: usize = 0;
    /// RCX.
    pub const RCX: usize = 1;
    /// RDX.
    pub const RDX: usize = 2;
    /// RBX.
    pub const RBX: usize = 3;
    /// RSP.
    pub const RSP: usize = 4;
    /// RBP.
    pub const RBP: usize = 5;
    /// RSI.
    pub const RSI: usize = 6;
    /// RDI.
    pub const RDI: usize = 7;
}

/// CR0.PE, protected mode.
pub const CR0_PE: u64 = 1 << 0;
/// CR0.ET, always 1.
pub const CR0_ET: u64 = 1 << 4;
/// CR0.WP, write protection holds for the supervisor.
pub const CR0_WP: u64 = 1 << 16;
/// CR0.AM, alignment checks possible.
pub const CR0_AM: u64 = 1 << 18;
/// CR0.NW, not write-through.
pub const CR0_NW: u64 = 1 << 29;
/// CR0.CD, cache disable.
pub const CR0_CD: u64 = 1 << 30;
/// CR0.PG, paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4.PSE, 4 MiB pages in 32-bit paging.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4.PAE, physical address extension.
pub const CR4_PAE: u64 = 1 << 5;
/// EFER.SCE, SYSCALL.
pub const EFER_SCE: u64 = 1 << 0;
/// EFER.LME, long mode enable.
pub const EFER_LME: u64 = 1 << 8;
/// EFER.LMA, long mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER.NXE, no-execute enable.
pub const EFER_NXE: u64 = 1 << 11;

/// Everything a vCPU needs to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// General-purpose registers in the processor's numbering ([`gpr`]), RSP included.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags; bit 1 is always set.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 2.
    pub cr2: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enables, without SVME, which a backend adds for itself.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// Data segment.
    pub ds: Segment,
    /// Extra segment.
    pub es: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// Stack segment.
    pub ss: Segment,
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Global descriptor table.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table.
    pub idtr: TableRegister,
    /// Debug register 6.
    pub dr6: u64,
    /// Debug register 7.
    pub dr7: u64,
}

/// The state after RESET or power-on (SDM 3A table 10-1; APM 2 table 14-1).
///
/// `cpuid_signature` is CPUID leaf 1 EAX, which RDX holds then.
#[must_use]
pub const fn reset_state(cpuid_signature: u32) -> EntryState {
    let data = Segment {
        selector: 0,
        base: 0,
        limit: 0xFFFF,
        attributes: attribute::DATA,
    };
    let mut gpr = [0; 16];
    gpr[gpr::RDX] = cpuid_signature as u64;
    EntryState {
        gpr,
        rip: 0xFFF0,
        rflags: 2,
        cr0: CR0_CD | CR0_NW | CR0_ET,
        cr2: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        cs: Segment {
            selector: 0xF000,
            base: 0xFFFF_0000,
            limit: 0xFFFF,
            attributes: attribute::CODE,
        },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment {
            selector: 0,
            base: 0,
            limit: 0xFFFF,
            attributes: attribute::TSS_BUSY,
        },
        ldtr: Segment {
            selector: 0,
            base: 0,
            limit: 0xFFFF,
            attributes: attribute::LDT,
        },
        gdtr: TableRegister {
            base: 0,
            limit: 0xFFFF,
        },
        idtr: TableRegister {
            base: 0,
            limit: 0xFFFF,
        },
        dr6: 0xFFFF_0FF0,
        dr7: 0x400,
    }
}

/// The state in which a processor starts after INIT and a SIPI with `vector`: real mode at
/// `vector * 4 KiB`, the rest as after INIT (SDM 3A 9.4.2, table 10-1).
#[must_use]
pub const fn sipi_state(vector: u8, cpuid_signature: u32) -> EntryState {
    let mut state = reset_state(cpuid_signature);
    state.rip = 0;
    state.cs.selector = (vector as u16) << 8;
    state.cs.base = (vector as u64) << 12;
    state
}

/// The state for a 64-bit kernel entered with flat segments and paging on, where `code` and
/// `data` are the selectors of its descriptors and the tables lie where the arguments say.
#[must_use]
pub(crate) fn long_mode_state(
    rip: u64,
    cr3: u64,
    gdtr: TableRegister,
    code: u16,
    data: u16,
) -> EntryState {
    let data = Segment {
        selector: data,
        base: 0,
        limit: u32::MAX,
        attributes: attribute::DATA | attribute::BIG | attribute::GRANULARITY,
    };
    EntryState {
        rip,
        cr0: CR0_PE | CR0_ET | CR0_PG,
        cr3,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        cs: Segment {
            selector: code,
            base: 0,
            limit: u32::MAX,
            attributes: attribute::CODE | attribute::LONG | attribute::GRANULARITY,
        },
        ds: data,
        es: data,
        ss: data,
        fs: data,
        gs: data,
        gdtr,
        gpr: [0; 16],
        ..reset_state(0)
    }
}

/// The state for a 32-bit kernel entered with flat segments and without paging, where `code` and
/// `data` are the selectors of its descriptors (Multiboot 0.6.96, 3.2).
#[must_use]
pub(crate) fn protected_mode_state(
    rip: u64,
    gdtr: TableRegister,
    code: u16,
    data: u16,
) -> EntryState {
    let data = Segment {
        selector: data,
        base: 0,
        limit: u32::MAX,
        attributes: attribute::DATA | attribute::BIG | attribute::GRANULARITY,
    };
    EntryState {
        rip,
        cr0: CR0_PE | CR0_ET,
        cs: Segment {
            selector: code,
            base: 0,
            limit: u32::MAX,
            attributes: attribute::CODE | attribute::BIG | attribute::GRANULARITY,
        },
        ds: data,
        es: data,
        ss: data,
        fs: data,
        gs: data,
        gdtr,
        gpr: [0; 16],
        ..reset_state(0)
    }
}

#[cfg(test)]
mod tests;
