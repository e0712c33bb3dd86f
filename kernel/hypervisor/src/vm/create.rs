//! From a configuration entry to a VM that is ready to run.
//!
//! All or nothing: what cannot be had (memory, an image, a node) is one sentence, and what had been taken
//! goes back. A VM that has been off starts again by the same pieces (`restart.rs`).

use super::filling::Filling;
use super::history::History;
use super::lifecycle::VmState;
use super::place::{Taken, check_node, place, shape};
use super::restart::Chores;
use super::{GuestRam, Hypervisor, NOWHERE, Vcpu, VcpuCore, Vm};
use crate::arch::{time, tsc};
use crate::counters::Counts;
use crate::exits::operands::{Looks, NextLook};
use crate::mm;
use crate::virt::{Backend, VcpuSetup, VcpuState};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use devices::test::TestConfig;
use devices::{ApicConfig, Board, BoardConfig, GuestConsole, LocalApic, Role};
use guest::cpuid::{CpuidPolicy, CpuidResult, CpuidSource, TscFacts, TscSync};
use guest::msr::{FirstSeen, MsrPolicy, MsrState};
use guest::{EntryState, VmShape};
use memory::entry::Remembered;
use spin::Mutex;
use topology::Machine;
use units::{ApicId, Nanos, NodeId, VcpuId, VmId};

/// The guests' local APIC timer counts at this rate; nothing depends on the value.
const APIC_BUS_HZ: u64 = 1_000_000_000;

/// Files that the loader brought, by name.
pub trait Images {
    /// The file's bytes.
    fn find(&self, name: &str) -> Option<&[u8]>;
}

/// What all VMs of a run share.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// The machine.
    pub machine: &'static Machine,
    /// Ticks of the TSC in a second.
    pub tsc_hz: u64,
    /// Whether all CPUs' TSCs agree.
    pub tsc_synchronised: bool,
    /// Seconds since 1970 now.
    pub unix_s: u64,
}

impl World {
    /// The world of a hypervisor that runs, now.
    pub fn of<B: Backend>(hv: &Hypervisor<B>) -> Self {
        Self {
            machine: hv.machine,
            tsc_hz: hv.tsc_hz,
            tsc_synchronised: hv.tsc_synchronised,
            unix_s: hv.unix_at_start_s + time::now().0 / 1_000_000_000,
        }
    }
}

/// Builds a VM.
///
/// # Errors
/// A sentence that says what was missing; nothing is held then.
pub fn build<B: Backend>(
    world: World,
    id: VmId,
    config: &config::Vm,
    images: &impl Images,
    taken: &Taken,
) -> Result<Vm<B>, String> {
    let placement = place(world.machine, config, taken)?;
    let shape = shape(world.machine, config, &placement)?;
    let home = config
        .start_node
        .unwrap_or_else(|| placement.first().map_or(NodeId(0), |s| s.node));
    check_node(world.machine, home)?;

    let ram = GuestRam::<B::Format>::new(id, home, world.machine.nodes.len(), B::large_leaves())
        .map_err(|e| e.to_string())?;
    let filled = Filling::claim(&placement).and_then(|mut f| f.go_on(&ram, &shape, || true));
    if let Err(why) = filled {
        for (frame, size) in ram.take_leaves(u64::MAX) {
            mm::free(frame, size);
        }
        return Err(format!("{}: {why}", config.name));
    }
    let (cpuid, vcpus) = match make_vcpus::<B>(world, id, config, images, &shape, home, &ram) {
        Ok(made) => made,
        Err(why) => {
            for (frame, size) in ram.take_leaves(u64::MAX) {
                mm::free(frame, size);
            }
            return Err(why);
        }
    };
    Ok(Vm {
        id,
        name: config.name.clone(),
        config: config.clone(),
        mode: Mutex::new(config.mode),
        watched: AtomicBool::new(false),
        shape,
        home,
        ram,
        board: Mutex::new(new_board(world, config)),
        board_deadline: AtomicU64::new(Nanos::MAX.0),
        pic_line: AtomicBool::new(false),
        vcpus,
        msr_policy: MsrPolicy::new(&cpuid),
        cpuid,
        first_seen: Mutex::new(FirstSeen::default()),
        console: Mutex::new(GuestConsole::default()),
        state: Mutex::new(VmState::Running),
        resumes: AtomicU32::new(0),
        started_ns: AtomicU64::new(time::now().0),
        tsc_at_start: AtomicU64::new(tsc::read()),
        placement,
        rounds_at_end: Mutex::new(Vec::new()),
        chores: Mutex::new(Chores::default()),
    })
}

/// A VM's devices as after power-on.
pub fn new_board(world: World, config: &config::Vm) -> Board {
    Board::new(BoardConfig {
        unix_seconds: world.unix_s,
        test: config.test_devices.then_some(TestConfig {
            cpus: config.cpus,
            memory_bytes: config.memory_bytes,
        }),
    })
}

struct HostCpuid;

impl CpuidSource for HostCpuid {
    fn leaf(&self, eax: u32, ecx: u32) -> CpuidResult {
        let r = core::arch::x86_64::__cpuid_count(eax, ecx);
        CpuidResult {
            eax: r.eax,
            ebx: r.ebx,
            ecx: r.ecx,
            edx: r.edx,
        }
    }
}

/// Loads the guest's kernel and makes its virtual CPUs, the first one ready to run.
fn make_vcpus<B: Backend>(
    world: World,
    id: VmId,
    config: &config::Vm,
    images: &impl Images,
    shape: &VmShape,
    home: NodeId,
    ram: &GuestRam<B::Format>,
) -> Result<(CpuidPolicy, Vec<Vcpu<B>>), String> {
    let entry = super::load::load(config, images, shape, ram)?;
    let sync = if world.tsc_synchronised {
        TscSync::Synchronised
    } else {
        TscSync::Unsynchronised
    };
    let cpuid = CpuidPolicy::new(
        &HostCpuid,
        shape,
        TscFacts {
            hz: world.tsc_hz,
            sync,
        },
    );
    let setup = VcpuSetup {
        node: home,
        allowed_cr4: cpuid.allowed_cr4(),
    };
    let mut vcpus = Vec::with_capacity(usize::from(shape.vcpus));
    for index in 0..shape.vcpus {
        vcpus.push(Vcpu {
            id: VcpuId { vm: id, index },
            apic: Mutex::new(new_apic(world, shape, &cpuid, index)),
            core: Mutex::new(new_core(&setup, shape, &cpuid, &entry, index)?),
            running_on: AtomicU32::new(NOWHERE),
            blocked: AtomicBool::new(true),
            deaf: AtomicBool::new(false),
            tsc_adjust: AtomicU64::new(0),
            ran_ns: AtomicU64::new(0),
            ran_on_node_ns: world
                .machine
                .nodes
                .iter()
                .map(|_| AtomicU64::new(0))
                .collect(),
            dump_wanted: AtomicBool::new(false),
            flushed: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            exits: AtomicU64::new(0),
            times_up: AtomicU64::new(0),
            logs_full: AtomicU64::new(0),
            moves: AtomicU64::new(0),
            looks: Mutex::new(Looks::default()),
            counted: Mutex::new(Counts::new(world.machine.nodes.len())),
        });
    }
    Ok((cpuid, vcpus))
}

/// A local APIC as after power-on.
pub fn new_apic(world: World, shape: &VmShape, cpuid: &CpuidPolicy, index: u16) -> LocalApic {
    let role = if index == 0 {
        Role::Bootstrap
    } else {
        Role::Application
    };
    let config = ApicConfig {
        bus_hz: APIC_BUS_HZ,
        tsc_hz: world.tsc_hz,
        x2apic: true,
        tsc_deadline: true,
        physical_bits: cpuid.physical_bits(),
    };
    LocalApic::new(ApicId(shape.apic_id(index)), role, config)
}

/// A virtual CPU's registers: the first one is ready to run the guest's kernel, the others wait for it.
pub fn new_core<B: Backend>(
    setup: &VcpuSetup,
    shape: &VmShape,
    cpuid: &CpuidPolicy,
    entry: &EntryState,
    index: u16,
) -> Result<VcpuCore<B>, String> {
    let mut hw = B::new_vcpu(setup).map_err(|e| e.to_string())?;
    if index == 0 {
        hw.reset(entry);
    } else {
        hw.reset(&guest::entry::reset_state(cpuid.signature()));
    }
    Ok(VcpuCore {
        hw,
        msrs: MsrState::new(cpuid),
        xss: 0,
        spec_ctrl: 0,
        clock: None,
        steal: None,
        tsc_offset: 0,
        seen: Remembered::default(),
        last_cpu: None,
        seen_resumes: 0,
        runnable_since: None,
        postponed: None,
        handed_back: None,
        refusals: 0,
        history: History::new(),
        look: NextLook::new(u64::from(index), shape.memory.bytes(), shape.vcpus.into()),
        course: pmu::Course::default(),
    })
}
