//! Stacks with guard pages, in a window of the address space that holds nothing else.
//!
//! Each CPU owns eight slots of 128 KiB. A stack fills the top of its slot; the rest of the slot
//! stays unmapped, so running off a stack's end is a page fault at an address that names the CPU
//! and the stack ([`describe`]) and never a silent write into a neighbour.

use core::fmt;

use units::{CpuId, NodeId};

use super::paging;

/// Start of the window.
pub const WINDOW: u64 = 0xffff_c000_0000_0000;
const SLOT_BYTES: u64 = 128 * 1024;
const SLOTS_PER_CPU: u64 = 8;
/// Most CPUs that the window has room for.
const MAX_CPUS: u64 = 1 << 16;

/// What a stack is for, by its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The run loop and everything it calls.
    Run,
    /// Non-maskable interrupts.
    Nmi,
    /// Double faults.
    DoubleFault,
    /// Machine checks.
    MachineCheck,
    /// Debug exceptions.
    Debug,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Run,
        Self::Nmi,
        Self::DoubleFault,
        Self::MachineCheck,
        Self::Debug,
    ];

    /// Mapped bytes; exception stacks hold one report.
    const fn bytes(self) -> u64 {
        match self {
            Self::Run => 96 * 1024,
            _ => 24 * 1024,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Run => "main",
            Self::Nmi => "NMI",
            Self::DoubleFault => "double-fault",
            Self::MachineCheck => "machine-check",
            Self::Debug => "debug",
        })
    }
}

/// First addresses above the stacks of one CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuStacks {
    /// Where the CPU runs.
    pub run: u64,
    /// For NMIs.
    pub nmi: u64,
    /// For double faults.
    pub double_fault: u64,
    /// For machine checks.
    pub machine_check: u64,
    /// For debug exceptions.
    pub debug: u64,
}

/// First address above the slot of stack `kind` of `cpu`.
fn top(cpu: CpuId, kind: Kind) -> u64 {
    WINDOW + (u64::from(cpu.0) * SLOTS_PER_CPU + kind as u64 + 1) * SLOT_BYTES
}

/// Maps the stacks of `cpu`, on memory of `node`.
///
/// # Errors
/// A sentence when memory, or the window, is exhausted.
pub fn allocate(cpu: CpuId, node: NodeId) -> Result<CpuStacks, paging::PagingError> {
    if u64::from(cpu.0) >= MAX_CPUS {
        return Err(paging::PagingError::WindowFull);
    }
    for kind in Kind::ALL {
        paging::map_new(top(cpu, kind) - kind.bytes(), kind.bytes(), node)?;
    }
    Ok(of(cpu))
}

/// Where the stacks of `cpu` are, once [`allocate`] has mapped them.
pub fn of(cpu: CpuId) -> CpuStacks {
    CpuStacks {
        run: top(cpu, Kind::Run),
        nmi: top(cpu, Kind::Nmi),
        double_fault: top(cpu, Kind::DoubleFault),
        machine_check: top(cpu, Kind::MachineCheck),
        debug: top(cpu, Kind::Debug),
    }
}

/// Which stack of which CPU the address belongs to, and whether it lies in the guard below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The CPU.
    pub cpu: CpuId,
    /// Its stack.
    pub kind: Kind,
    /// Below the mapped part.
    pub in_guard: bool,
}

/// What the window holds at `address`, if it holds a stack there.
pub fn describe(address: u64) -> Option<Place> {
    let slot = address.checked_sub(WINDOW)? / SLOT_BYTES;
    let cpu = slot / SLOTS_PER_CPU;
    if cpu >= MAX_CPUS {
        return None;
    }
    let kind = *Kind::ALL.get(usize::try_from(slot % SLOTS_PER_CPU).ok()?)?;
    let cpu = CpuId(u32::try_from(cpu).ok()?);
    Some(Place {
        cpu,
        kind,
        in_guard: address < top(cpu, kind) - kind.bytes(),
    })
}
