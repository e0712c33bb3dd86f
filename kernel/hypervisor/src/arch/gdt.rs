//! Segments and the task-state segment of one CPU (SDM 3A 3.4.5, 8.7).
//!
//! Long mode leaves four descriptors of use: null, kernel code, kernel data, and the TSS, which
//! names the stacks that NMI, double fault, machine check and debug exceptions switch to. Behind
//! the descriptors, outside the GDT's limit, stands the address of the CPU's own [`PerCpu`]: GDTR
//! is the one register that no guest and no world switch leaves wrong, so an NMI that arrives while
//! GS is still a guest's finds its CPU there ([`owner`]).
#![expect(
    unsafe_code,
    reason = "LGDT, LTR and segment loads change how code runs"
)]

use core::cell::UnsafeCell;

use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::{lgdt, load_tss, sgdt};
use x86_64::registers::segmentation::SegmentSelector;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, DescriptorFlags};
use x86_64::structures::tss::TaskStateSegment;
use x86_64::{PrivilegeLevel, VirtAddr};

use super::percpu::PerCpu;
use super::stack::CpuStacks;

/// Kernel code segment.
pub const CODE: SegmentSelector = SegmentSelector::new(1, PrivilegeLevel::Ring0);
/// Kernel data segment.
pub const DATA: SegmentSelector = SegmentSelector::new(2, PrivilegeLevel::Ring0);
/// This CPU's task-state segment.
pub const TSS: SegmentSelector = SegmentSelector::new(3, PrivilegeLevel::Ring0);

/// Places in the interrupt stack table, counted from 0 (the hardware counts from 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Ist {
    /// Non-maskable interrupt.
    Nmi = 0,
    /// Double fault: the stack may be the reason.
    DoubleFault = 1,
    /// Machine check.
    MachineCheck = 2,
    /// Debug exception: may hit the first instruction of any other entry.
    Debug = 3,
}

const ENTRIES: usize = 5;

#[repr(C, align(16))]
#[derive(Debug)]
struct Tables {
    gdt: [u64; ENTRIES],
    /// Directly behind the last descriptor, see [`owner`].
    owner: u64,
    tss: TaskStateSegment,
}

/// The tables of one CPU; they live inside its [`PerCpu`].
#[derive(Debug)]
pub struct Descriptors(UnsafeCell<Tables>);

impl Descriptors {
    /// Empty tables, to be filled by [`load`].
    pub const fn new() -> Self {
        Self(UnsafeCell::new(Tables {
            gdt: [0; ENTRIES],
            owner: 0,
            tss: TaskStateSegment::new(),
        }))
    }
}

// SAFETY: the cell is written only by `load`, before its CPU uses the tables, and afterwards only
// by the processor itself (the TSS busy bit).
unsafe impl Sync for Descriptors {}

/// Fills the tables of `cpu` and loads them on this processor, with `stacks` for the interrupt
/// stack table.
///
/// # Safety
/// `cpu` is the calling processor's, no reference to its tables is alive, and interrupts are off.
/// Afterwards GS base is zero: the caller sets it again.
pub unsafe fn load(cpu: &'static PerCpu, stacks: &CpuStacks) {
    // SAFETY: the caller promises exclusive access.
    let tables = unsafe { &mut *cpu.descriptors.0.get() };
    tables.tss = TaskStateSegment::new();
    let mut ist = [VirtAddr::zero(); 7];
    ist[Ist::Nmi as usize] = VirtAddr::new_truncate(stacks.nmi);
    ist[Ist::DoubleFault as usize] = VirtAddr::new_truncate(stacks.double_fault);
    ist[Ist::MachineCheck as usize] = VirtAddr::new_truncate(stacks.machine_check);
    ist[Ist::Debug as usize] = VirtAddr::new_truncate(stacks.debug);
    tables.tss.interrupt_stack_table = ist;
    // SAFETY: the TSS lives as long as `cpu`, which is for ever.
    let tss = unsafe { Descriptor::tss_segment_unchecked(&raw const tables.tss) };
    let (tss_low, tss_high) = match tss {
        Descriptor::SystemSegment(low, high) => (low, high),
        Descriptor::UserSegment(low) => (low, 0),
    };
    tables.gdt = [
        0,
        DescriptorFlags::KERNEL_CODE64.bits(),
        DescriptorFlags::KERNEL_DATA.bits(),
        tss_low,
        tss_high,
    ];
    tables.owner = core::ptr::from_ref(cpu) as u64;
    let pointer = DescriptorTablePointer {
        limit: (size_of::<[u64; ENTRIES]>() - 1) as u16,
        base: VirtAddr::from_ptr(&raw const tables.gdt),
    };
    // SAFETY: the descriptors above are flat ring-0 segments and an available TSS, in memory that
    // stays; the selectors name exactly these.
    unsafe {
        lgdt(&pointer);
        CS::set_reg(CODE);
        SS::set_reg(DATA);
        DS::set_reg(DATA);
        ES::set_reg(DATA);
        FS::set_reg(SegmentSelector::NULL);
        GS::set_reg(SegmentSelector::NULL);
        load_tss(TSS);
    }
}

/// The CPU that GDTR belongs to: true even where GS base is a guest's.
///
/// # Safety
/// [`load`] has run on this processor.
pub unsafe fn owner() -> &'static PerCpu {
    let gdt = sgdt().base.as_ptr::<u64>();
    // SAFETY: `load` put GDTR at the start of `Tables`, so the word behind the last descriptor is
    // `owner`, the address of a `PerCpu` that lives for ever.
    unsafe { &*(gdt.add(ENTRIES).read() as *const PerCpu) }
}
