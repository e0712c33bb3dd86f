//! The kernel's own page tables, by crate `memory`'s radix table in host format.
//!
//! The address space has three inhabited parts, none of it both writable and executable:
//!
//! | from | what | rights |
//! |---|---|---|
//! | [`DIRECT_MAP_BASE`] | RAM that the kernel may use, read-write; its own image and ACPI tables, read-only; device registers as they are asked for, uncached | never X |
//! | [`super::stack::WINDOW`] | one stack after another, unmapped guards between | RW |
//! | [`KERNEL_BASE`] | the image: read-only data, code, data | R, RX, RW |
//!
//! Memory that firmware keeps, reserved ranges and the loader's identity map are not mapped at all,
//! so a stray pointer there is a page fault with a report.
//!
//! Lock order: [`TABLE`] before the frame allocator's.
#![expect(
    unsafe_code,
    reason = "page tables decide what every other access means"
)]

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use handoff::{BootInfo, DIRECT_MAP_BASE, KERNEL_BASE, MemoryKind, MemoryRegion};
use memory::buddy::OutOfFrames;
use memory::table::{
    Attributes, HostFormat, Lookup, MemoryType, RadixTable, Rights, TableError, TableMemory, Va,
};
use spin::{Mutex, Once};
use units::{Frame, Hpa, NodeId, PAGE_BYTES, PageSize};
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;

use super::entry;
use crate::mm;

static TABLE: Mutex<Option<RadixTable<HostFormat, DirectMap>>> = Mutex::new(None);
static ROOT: Once<Frame> = Once::new();
/// Largest leaf that the processor can use: 1 GiB only where CPUID says so.
static LARGEST: AtomicU64 = AtomicU64::new(0);

/// Why something could not be mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PagingError {
    /// No frame for a table or a page.
    OutOfFrames(OutOfFrames),
    /// The table's complaint.
    Table(TableError),
    /// The range is mapped already, as something else.
    Conflict(Hpa),
    /// [`init`] has not run.
    NotReady,
    /// More CPUs than the stack window holds.
    WindowFull,
}

impl fmt::Display for PagingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfFrames(e) => write!(f, "{e}"),
            Self::Table(e) => write!(f, "{e}"),
            Self::Conflict(at) => {
                write!(
                    f,
                    "{at} is mapped already with another memory type; nothing was changed"
                )
            }
            Self::NotReady => f.write_str("the kernel's page tables do not exist yet"),
            Self::WindowFull => f.write_str("the stack window has no room for this CPU"),
        }
    }
}

impl From<TableError> for PagingError {
    fn from(e: TableError) -> Self {
        Self::Table(e)
    }
}
impl From<OutOfFrames> for PagingError {
    fn from(e: OutOfFrames) -> Self {
        Self::OutOfFrames(e)
    }
}

/// Where the direct map shows host-physical `at`.
pub fn direct(at: Hpa) -> *mut u8 {
    (DIRECT_MAP_BASE + at.0) as *mut u8
}

/// Tables in frames of the frame allocator, edited through the direct map.
#[derive(Clone, Copy, Debug)]
struct DirectMap;

impl DirectMap {
    fn entry(table: Frame, index: usize) -> &'static AtomicU64 {
        debug_assert!(index < memory::table::ENTRIES);
        let table = direct(table.address()).cast::<AtomicU64>();
        // SAFETY: `TableMemory` promises a frame that `allocate_table` gave and an index inside
        // it; frames of the allocator are in the direct map, and atomics allow any sharing.
        unsafe { &*table.add(index) }
    }
}

impl TableMemory for DirectMap {
    fn load(&self, table: Frame, index: usize) -> u64 {
        Self::entry(table, index).load(Ordering::Acquire)
    }
    fn store(&self, table: Frame, index: usize, value: u64) {
        Self::entry(table, index).store(value, Ordering::Release);
    }
    fn compare_exchange(
        &self,
        table: Frame,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        Self::entry(table, index).compare_exchange(
            current,
            new,
            Ordering::AcqRel,
            Ordering::Acquire,
        )
    }
    fn swap(&self, table: Frame, index: usize, new: u64) -> u64 {
        Self::entry(table, index).swap(new, Ordering::AcqRel)
    }
    fn fetch_and(&self, table: Frame, index: usize, mask: u64) -> u64 {
        Self::entry(table, index).fetch_and(mask, Ordering::AcqRel)
    }
    fn allocate_table(&self, node: NodeId) -> Result<Frame, OutOfFrames> {
        zero(mm::alloc(node, PageSize::Size4K)?)
    }
    fn free_table(&self, table: Frame) {
        mm::free(table, PageSize::Size4K);
    }
}

fn zero(frame: Frame) -> Result<Frame, OutOfFrames> {
    // SAFETY: a whole frame that nobody else has, in the direct map.
    unsafe { direct(frame.address()).write_bytes(0, PAGE_BYTES as usize) };
    Ok(frame)
}

/// A frame of zeros, on `node` if it has one.
///
/// # Errors
/// [`PagingError::OutOfFrames`].
pub fn zeroed_frame(node: NodeId) -> Result<Hpa, PagingError> {
    Ok(zero(mm::alloc(node, PageSize::Size4K)?)?.address())
}

unsafe extern "C" {
    static __kernel_start: [u8; 0];
    static __rodata_end: [u8; 0];
    static __text_end: [u8; 0];
    static __kernel_end: [u8; 0];
}

const READ_WRITE: Attributes = Attributes::memory(Rights::READ.union(Rights::WRITE));
const READ_ONLY: Attributes = Attributes::memory(Rights::READ);
const READ_EXECUTE: Attributes = Attributes::memory(Rights::READ.union(Rights::EXECUTE));
const FRAMEBUFFER: Attributes = Attributes {
    rights: Rights::READ.union(Rights::WRITE),
    memory_type: MemoryType::WriteCombining,
};

/// How the direct map shows a region of this kind; `None` where it shows nothing.
fn direct_rights(kind: Option<MemoryKind>) -> Option<Attributes> {
    match kind? {
        MemoryKind::Usable | MemoryKind::Handoff | MemoryKind::Module => Some(READ_WRITE),
        MemoryKind::AcpiReclaim => Some(READ_WRITE),
        MemoryKind::Kernel | MemoryKind::AcpiNvs => Some(READ_ONLY),
        MemoryKind::Runtime | MemoryKind::Mmio | MemoryKind::Reserved => None,
    }
}

/// Builds the kernel's tables and moves the boot processor onto them: the loader's are no longer
/// used when this returns.
///
/// # Errors
/// [`PagingError`]; the loader's tables then stay in force.
pub fn init(boot: &BootInfo, regions: &[MemoryRegion]) -> Result<(), PagingError> {
    let gib = raw_cpuid::CpuId::new()
        .get_extended_processor_and_feature_identifiers()
        .is_some_and(|f| f.has_1gib_pages());
    LARGEST.store(u64::from(gib), Ordering::Relaxed);
    let mut table = RadixTable::<HostFormat, _>::new(DirectMap, NodeId(0))?;
    map_image(&mut table, boot.kernel_phys)?;
    map_ram(&mut table, regions)?;
    let screen = boot.framebuffer;
    if screen.base != 0 && screen.bytes != 0 {
        map_missing(&mut table, Hpa(screen.base), screen.bytes, FRAMEBUFFER)?;
    }
    let root = *ROOT.call_once(|| table.root());
    *TABLE.lock() = Some(table);
    debug_assert_eq!(root.address().0 >> 52, 0);
    // SAFETY: the new tables map the running code, this stack, the direct map with the tables
    // themselves, at the addresses where the loader's had them.
    unsafe { use_tables() };
    Ok(())
}

/// Moves the calling CPU onto the kernel's tables.
///
/// # Safety
/// [`init`] has succeeded, and the CPU runs in the kernel image on a stack that the tables map.
pub unsafe fn use_tables() {
    if let Some(root) = ROOT.get() {
        let root = PhysFrame::containing_address(PhysAddr::new_truncate(root.address().0));
        // SAFETY: the caller promises that the tables map what runs.
        unsafe { Cr3::write(root, Cr3Flags::empty()) };
    }
}

/// Root of the kernel's tables, for hosts of guests and for start-up code.
pub fn root() -> Option<Hpa> {
    ROOT.get().map(|f| f.address())
}

fn largest() -> PageSize {
    if LARGEST.load(Ordering::Relaxed) == 1 {
        PageSize::Size1G
    } else {
        PageSize::Size2M
    }
}

/// Maps the image's three segments, without the guard pages of the boot stacks.
fn map_image(
    table: &mut RadixTable<HostFormat, DirectMap>,
    kernel_phys: u64,
) -> Result<(), PagingError> {
    let start = (&raw const __kernel_start) as u64;
    let (rodata_end, text_end, end) = (
        (&raw const __rodata_end) as u64,
        (&raw const __text_end) as u64,
        (&raw const __kernel_end) as u64,
    );
    let mut map = |from: u64, to: u64, attributes| -> Result<(), PagingError> {
        if to > from {
            let frame = Hpa(kernel_phys + (from - start)).page();
            let pages = (to - from) / PAGE_BYTES;
            let _none_cached_yet =
                table.map_range(Va(from), frame, pages, attributes, PageSize::Size2M)?;
        }
        Ok(())
    };
    debug_assert_eq!(start, KERNEL_BASE);
    map(start, rodata_end, READ_ONLY)?;
    map(rodata_end, text_end, READ_EXECUTE)?;
    let mut guards = entry::boot_stack_guards();
    guards.sort_unstable();
    let mut from = text_end;
    for guard in guards {
        map(from, guard, READ_WRITE)?;
        from = guard + PAGE_BYTES;
    }
    map(from, end, READ_WRITE)
}

/// Maps the regions that the direct map shows, neighbours of like rights together so that large
/// leaves fit.
fn map_ram(
    table: &mut RadixTable<HostFormat, DirectMap>,
    regions: &[MemoryRegion],
) -> Result<(), PagingError> {
    let mut run: Option<(u64, u64, Attributes)> = None;
    let shown = regions.iter().filter_map(|r| {
        Some((
            r.base,
            r.bytes,
            direct_rights(MemoryKind::from_number(r.kind))?,
        ))
    });
    for (base, bytes, attributes) in shown {
        match &mut run {
            Some((start, length, same)) if *start + *length == base && *same == attributes => {
                *length += bytes;
            }
            _ => {
                if let Some((start, length, attributes)) = run.replace((base, bytes, attributes)) {
                    map_direct(table, start, length, attributes)?;
                }
            }
        }
    }
    match run {
        Some((start, length, attributes)) => map_direct(table, start, length, attributes),
        None => Ok(()),
    }
}

fn map_direct(
    table: &mut RadixTable<HostFormat, DirectMap>,
    base: u64,
    bytes: u64,
    attributes: Attributes,
) -> Result<(), PagingError> {
    let at = Va(direct(Hpa(base)) as u64);
    let _none_cached_yet = table.map_range(
        at,
        Hpa(base).page(),
        bytes / PAGE_BYTES,
        attributes,
        largest(),
    )?;
    Ok(())
}

/// Maps those pages of a range that are not mapped; pages that are must have the same memory type.
fn map_missing(
    table: &mut RadixTable<HostFormat, DirectMap>,
    base: Hpa,
    bytes: u64,
    attributes: Attributes,
) -> Result<(), PagingError> {
    let first = base.page().0;
    let last = Hpa(base.0.saturating_add(bytes.max(1) - 1)).page().0;
    let mut missing_from = None;
    for page in first..=last + 1 {
        let mapped = if page > last {
            true
        } else {
            match table.translate(Va(direct(Frame(page).address()) as u64))? {
                Lookup::Mapped(leaf) => {
                    if leaf.attributes.memory_type != attributes.memory_type {
                        return Err(PagingError::Conflict(Frame(page).address()));
                    }
                    true
                }
                _ => false,
            }
        };
        match (mapped, missing_from) {
            (false, None) => missing_from = Some(page),
            (true, Some(from)) => {
                map_direct(
                    table,
                    Frame(from).address().0,
                    (page - from) * PAGE_BYTES,
                    attributes,
                )?;
                missing_from = None;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes device registers visible in the direct map, uncached; asking again is harmless.
///
/// # Errors
/// [`PagingError::Conflict`] if the range is ordinary memory, and as the table's.
pub fn map_device(base: Hpa, bytes: u64) -> Result<*mut u8, PagingError> {
    let mut table = TABLE.lock();
    let table = table.as_mut().ok_or(PagingError::NotReady)?;
    map_missing(table, base, bytes, Attributes::DEVICE)?;
    Ok(direct(base))
}

/// Makes firmware's tables visible in the direct map, read-only unless they are mapped already.
///
/// # Errors
/// [`PagingError::Conflict`] if the range is a device's, and as the table's.
pub fn map_firmware(base: Hpa, bytes: u64) -> Result<*const u8, PagingError> {
    let mut table = TABLE.lock();
    let table = table.as_mut().ok_or(PagingError::NotReady)?;
    map_missing(table, base, bytes, READ_ONLY)?;
    Ok(direct(base))
}

/// Maps fresh zeroed frames of `node` at `[at, at + bytes)`, read-write.
///
/// # Errors
/// As the table's and the allocator's; pages before the failing one stay mapped.
pub(super) fn map_new(at: u64, bytes: u64, node: NodeId) -> Result<(), PagingError> {
    for offset in (0..bytes).step_by(PAGE_BYTES as usize) {
        let frame = zeroed_frame(node)?.page();
        let mut table = TABLE.lock();
        let table = table.as_mut().ok_or(PagingError::NotReady)?;
        let _none_cached_yet = table.map(Va(at + offset), frame, PageSize::Size4K, READ_WRITE)?;
    }
    Ok(())
}
