//! What a CPU knows about itself, on memory of its own node, reached through GS base.
//!
//! Other CPUs reach it too ([`all`], [`of`]): every field that changes is an atomic. The deferred-work
//! word is the one door through which interrupts and other CPUs ask for something: they set a bit,
//! and the run loop takes all bits before it enters a guest.
#![expect(
    unsafe_code,
    reason = "GS-relative loads, and memory that is given to one CPU for ever"
)]

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use spin::Once;
use units::{ApicId, CpuId, Nanos, NodeId, PAGE_BYTES, VcpuId, VmId};

use super::backtrace::Snapshot;
use super::gdt::Descriptors;
use super::{msr, paging};
use crate::counters;
use crate::virt::speculation::PerCpuState;

/// The timer's deadline has passed.
pub const DEFER_TIMER: u64 = 1 << 0;
/// Another CPU sent a kick: look at mailboxes, queues and generation counters.
pub const DEFER_KICK: u64 = 1 << 1;
/// First bit that the run loop may give a meaning of its own.
pub const DEFER_FIRST_FREE: u32 = 8;

/// What a CPU is doing, for the watchdog and for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Not started yet, or did not answer.
    Offline,
    /// On its way up.
    Booting,
    /// Halted until an interrupt.
    Idle,
    /// Hypervisor work that belongs to no guest.
    Hypervisor,
    /// Inside a guest, or handling one of its exits.
    Guest(VcpuId),
}

impl Activity {
    const fn encode(self) -> u64 {
        match self {
            Self::Offline => 0,
            Self::Booting => 1,
            Self::Idle => 2,
            Self::Hypervisor => 3,
            Self::Guest(v) => 4 | (v.vm.0 as u64) << 16 | (v.index as u64) << 32,
        }
    }
    const fn decode(word: u64) -> Self {
        match word & 0xff {
            1 => Self::Booting,
            2 => Self::Idle,
            3 => Self::Hypervisor,
            4 => Self::Guest(VcpuId {
                vm: VmId((word >> 16) as u16),
                index: (word >> 32) as u16,
            }),
            _ => Self::Offline,
        }
    }
}

impl core::fmt::Display for Activity {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Offline => f.write_str("nothing (offline)"),
            Self::Booting => f.write_str("its start-up"),
            Self::Idle => f.write_str("the idle loop"),
            Self::Hypervisor => f.write_str("the hypervisor"),
            Self::Guest(vcpu) => write!(f, "vCPU {vcpu}"),
        }
    }
}

/// One CPU.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct PerCpu {
    /// Its own address, for [`current`].
    this: AtomicPtr<PerCpu>,
    /// Its number.
    pub cpu: CpuId,
    /// Its local APIC.
    pub apic: ApicId,
    /// Its node.
    pub node: NodeId,
    deferred: AtomicU64,
    running: AtomicU64,
    heartbeat: AtomicU64,
    rounds: AtomicU64,
    online: AtomicBool,
    /// The watchdog has reported this CPU and it has not recovered since.
    pub(super) reported: AtomicBool,
    /// TSC of this CPU minus TSC of the boot processor, in ticks.
    pub(super) tsc_offset: AtomicI64,
    /// When the timer is set to interrupt, in nanoseconds: the end of time if it is not set, or has interrupted.
    pub(super) timer_deadline: AtomicU64,
    /// Interrupts of the timer.
    pub(super) timer_interrupts: AtomicU64,
    /// Interrupts on vectors that nobody expects.
    pub(super) unexpected: AtomicU32,
    /// Interrupts that the local APIC reported as errors, and their status bits.
    pub(super) apic_errors: AtomicU32,
    /// Where the last NMI found this CPU.
    pub(super) snapshot: Snapshot,
    /// Measures against leaks by speculation.
    pub speculation: PerCpuState,
    /// Performance counters.
    pub counters: counters::PerCpuState,
    /// GDT and TSS.
    pub(super) descriptors: Descriptors,
}

/// The boot processor before it has its place on its own node.
static BOOT: PerCpu = PerCpu::new(CpuId(0), ApicId(0), NodeId(0));

static ALL: Once<&'static [&'static PerCpu]> = Once::new();

impl PerCpu {
    /// A CPU that has not started.
    const fn new(cpu: CpuId, apic: ApicId, node: NodeId) -> Self {
        Self {
            this: AtomicPtr::new(core::ptr::null_mut()),
            cpu,
            apic,
            node,
            deferred: AtomicU64::new(0),
            running: AtomicU64::new(Activity::Offline.encode()),
            heartbeat: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            online: AtomicBool::new(false),
            reported: AtomicBool::new(false),
            tsc_offset: AtomicI64::new(0),
            timer_deadline: AtomicU64::new(u64::MAX),
            timer_interrupts: AtomicU64::new(0),
            unexpected: AtomicU32::new(0),
            apic_errors: AtomicU32::new(0),
            snapshot: Snapshot::new(),
            speculation: PerCpuState::new(),
            counters: counters::PerCpuState::new(),
            descriptors: Descriptors::new(),
        }
    }

    /// Asks the CPU's run loop for the work that `bits` stand for. Does not wake it: see
    /// [`super::apic::kick`].
    pub fn defer(&self, bits: u64) {
        self.deferred.fetch_or(bits, Ordering::AcqRel);
    }

    /// All requests so far, which are thereby taken.
    pub fn take_deferred(&self) -> u64 {
        self.deferred.swap(0, Ordering::AcqRel)
    }

    /// The requests so far, not taken.
    pub fn deferred(&self) -> u64 {
        self.deferred.load(Ordering::Acquire)
    }

    /// Whether there is any request.
    pub fn has_deferred(&self) -> bool {
        self.deferred() != 0
    }

    /// What the CPU is doing.
    pub fn activity(&self) -> Activity {
        Activity::decode(self.running.load(Ordering::Relaxed))
    }

    /// States what the CPU does from now on.
    pub fn set_running(&self, activity: Activity) {
        self.running.store(activity.encode(), Ordering::Relaxed);
    }

    /// Tells the watchdog that the run loop is alive at `now`.
    pub fn beat(&self, now: Nanos) {
        self.heartbeat.store(now.0, Ordering::Relaxed);
        if self.reported.load(Ordering::Relaxed) {
            self.reported.store(false, Ordering::Relaxed);
        }
    }

    /// How often its timer has interrupted it.
    pub fn timer_interrupts(&self) -> u64 {
        self.timer_interrupts.load(Ordering::Relaxed)
    }

    /// The run loop begins another round: it has nothing in hand.
    pub fn come_round(&self) {
        self.rounds.fetch_add(1, Ordering::SeqCst);
    }

    /// How many rounds the run loop has begun.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::SeqCst)
    }

    /// When the run loop was last seen alive.
    pub fn last_beat(&self) -> Nanos {
        Nanos(self.heartbeat.load(Ordering::Relaxed))
    }

    /// Whether the CPU came up.
    pub fn is_online(&self) -> bool {
        self.online.load(Ordering::Acquire)
    }

    /// The CPU has come up.
    pub(super) fn set_online(&self) {
        self.online.store(true, Ordering::Release);
    }
}

/// Puts the boot processor's first, static [`PerCpu`] in place.
///
/// # Safety
/// Called once, on the boot processor, before anything calls [`current`].
pub unsafe fn init_boot() -> &'static PerCpu {
    BOOT.set_running(Activity::Booting);
    // SAFETY: `BOOT` is the calling processor's until `install` replaces it.
    unsafe { install(&BOOT) };
    &BOOT
}

/// Makes `cpu` what [`current`] gives on the calling processor.
///
/// # Safety
/// `cpu` stands for the calling processor.
pub unsafe fn install(cpu: &'static PerCpu) {
    cpu.this
        .store(core::ptr::from_ref(cpu).cast_mut(), Ordering::Relaxed);
    // SAFETY: GS base exists in long mode; only `current` uses GS, and the pointer lives for ever.
    unsafe { msr::write(msr::GS_BASE, core::ptr::from_ref(cpu) as u64) };
}

/// The calling CPU.
pub fn current() -> &'static PerCpu {
    let this: *const PerCpu;
    // SAFETY: `install` ran on this processor before anything else could (first act of the kernel
    // and of every application processor), and `this` is at offset 0.
    unsafe {
        asm!("mov {}, gs:[{offset}]", out(reg) this, offset = const offset_of!(PerCpu, this),
            options(nostack, preserves_flags, pure, readonly));
        &*this
    }
}

/// Every CPU that ACPI names, in order of [`CpuId`], whether or not it came up. Empty before
/// [`create`].
pub fn all() -> &'static [&'static PerCpu] {
    ALL.get().copied().unwrap_or(&[])
}

/// The CPU of this number.
pub fn of(cpu: CpuId) -> Option<&'static PerCpu> {
    all().get(cpu.index()).copied()
}

/// Every CPU that came up.
pub fn online() -> impl Iterator<Item = &'static PerCpu> {
    all().iter().copied().filter(|c| c.is_online())
}

/// Makes a [`PerCpu`] for every CPU of the list, each on its own node.
///
/// # Errors
/// When a node and its neighbours have no memory for it.
pub fn create(
    cpus: impl Iterator<Item = (CpuId, ApicId, NodeId)>,
) -> Result<(), paging::PagingError> {
    const { assert!(size_of::<PerCpu>() <= PAGE_BYTES as usize) };
    let mut list = alloc::vec::Vec::new();
    for (cpu, apic, node) in cpus {
        let frame = paging::zeroed_frame(node)?;
        let place = paging::direct(frame).cast::<PerCpu>();
        // SAFETY: a whole fresh frame in the direct map, page-aligned, ours from now on for ever.
        let cpu = unsafe {
            place.write(PerCpu::new(cpu, apic, node));
            &*place
        };
        list.push(cpu);
    }
    ALL.call_once(|| alloc::vec::Vec::leak(list));
    Ok(())
}
