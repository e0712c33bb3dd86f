//! From a configuration entry to a VM that is ready to run.
//!
//! All or nothing: what cannot be had (memory, an image, a node) is one sentence, and what had been taken
//! goes back.

use super::lifecycle::VmState;
use super::{GuestConsole, GuestRam, NOWHERE, Vcpu, VcpuCore, Vm};
use crate::arch::{time, tsc};
use crate::mm;
use crate::virt::{Backend, VcpuSetup, VcpuState};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use config::NodeShare;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use devices::test::TestConfig;
use devices::{ApicConfig, Board, BoardConfig, LocalApic, Role};
use guest::VmShape;
use guest::cpuid::{CpuidPolicy, CpuidResult, CpuidSource, TscFacts, TscSync};
use guest::msr::{FirstSeen, MsrPolicy, MsrState};
use guest::shape::{MEMORY_GRANULE, VirtualNode};
use memory::buddy::{Allocation, Claim, Want};
use spin::Mutex;
use topology::Machine;
use units::{ApicId, Gpa, Nanos, NodeId, PAGE_BYTES, PageSize, VcpuId, VmId};

/// The guests' local APIC timer counts at this rate; nothing depends on the value.
const APIC_BUS_HZ: u64 = 1_000_000_000;
/// What a VM placed by itself leaves of each node's memory: table pages of guests and the kernel's heap come
/// from there too.
const HOST_RESERVE_BYTES: u64 = 16 << 20;

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

/// What other VMs of the run have or will insist on.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Virtual CPUs whose home is a node, by node.
    vcpus: Vec<u32>,
    /// Bytes of a node that a VM still to be built names in its configuration, by node.
    bytes: Vec<u64>,
}

impl Taken {
    /// By VMs that are built, and by those that wait.
    pub fn by<B: Backend>(machine: &Machine, built: &[Vm<B>], waiting: &[config::Vm]) -> Self {
        let none = Self {
            vcpus: vec![0; machine.nodes.len()],
            bytes: vec![0; machine.nodes.len()],
        };
        let homes = built.iter().map(|vm| (vm.home, u32::from(vm.shape.vcpus)));
        let wishes = waiting
            .iter()
            .filter_map(|vm| Some((vm.start_node?, u32::from(vm.cpus))));
        let mut taken = homes.chain(wishes).fold(none, |mut taken, (node, vcpus)| {
            taken
                .vcpus
                .get_mut(node.index())
                .into_iter()
                .for_each(|sum| *sum += vcpus);
            taken
        });
        for share in waiting.iter().flat_map(|vm| &vm.memory_nodes) {
            taken
                .bytes
                .get_mut(share.node.index())
                .into_iter()
                .for_each(|sum| *sum = sum.saturating_add(share.bytes));
        }
        taken
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

    let mut ram = GuestRam::<B::Format>::new(id, home).map_err(|e| e.to_string())?;
    if let Err(why) = claim_memory(&mut ram, &shape, &placement) {
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
        board: Mutex::new(Board::new(BoardConfig {
            unix_seconds: world.unix_s,
            test: config.test_devices.then_some(TestConfig {
                cpus: config.cpus,
                memory_bytes: config.memory_bytes,
            }),
        })),
        board_deadline: AtomicU64::new(Nanos::MAX.0),
        pic_line: AtomicBool::new(false),
        vcpus,
        msr_policy: MsrPolicy::new(&cpuid),
        cpuid,
        first_seen: Mutex::new(FirstSeen::default()),
        console: Mutex::new(GuestConsole::default()),
        state: Mutex::new(VmState::Running),
        resumes: AtomicU32::new(0),
        started: time::now(),
        tsc_at_start: tsc::read(),
    })
}

/// Which node holds which part of the guest's memory, in guest-physical order.
fn place(machine: &Machine, config: &config::Vm, taken: &Taken) -> Result<Vec<NodeShare>, String> {
    if !config.memory_nodes.is_empty() {
        for share in &config.memory_nodes {
            check_node(machine, share.node)?;
        }
        return Ok(config.memory_nodes.clone());
    }
    let room = |node: NodeId| {
        let kept = HOST_RESERVE_BYTES + taken.bytes.get(node.index()).copied().unwrap_or(0);
        mm::free_bytes_in(node, PageSize::Size2M).saturating_sub(kept) / MEMORY_GRANULE
            * MEMORY_GRANULE
    };
    let home = match config.start_node {
        Some(node) => {
            check_node(machine, node)?;
            node
        }
        None => best_home(machine, config, taken, room),
    };
    // The fewest nodes that hold it all: the home, then those that are next to it.
    let mut left = config.memory_bytes;
    let mut shares = Vec::new();
    for node in machine.nearest(home) {
        let bytes = left.min(room(node));
        if bytes > 0 {
            shares.push(NodeShare { node, bytes });
            left -= bytes;
        }
    }
    if left > 0 {
        return Err(format!(
            "{} asks for {} MiB, and {} MiB of that are not free on any node; it was not started",
            config.name,
            config.memory_bytes >> 20,
            left >> 20
        ));
    }
    Ok(shares)
}

/// The node where a VM without wishes begins: one with CPUs and with room for all of it, there the one with the
/// fewest virtual CPUs for each CPU, there the one with most memory.
fn best_home(
    machine: &Machine,
    config: &config::Vm,
    taken: &Taken,
    room: impl Fn(NodeId) -> u64,
) -> NodeId {
    let cost = |node: NodeId| {
        let cpus = machine.cpus.iter().filter(|c| c.node == node).count() as u64;
        let vcpus =
            u64::from(taken.vcpus.get(node.index()).copied().unwrap_or(0)) + u64::from(config.cpus);
        let room = room(node);
        // In thousandths of a CPU, for comparison only; a node without CPUs is the last resort anyway.
        let crowd = vcpus * 1000 / cpus.max(1);
        (
            cpus == 0,
            room < config.memory_bytes,
            crowd,
            core::cmp::Reverse(room),
            node,
        )
    };
    machine
        .nodes
        .iter()
        .map(|n| n.id)
        .min_by_key(|node| cost(*node))
        .unwrap_or_default()
}

fn check_node(machine: &Machine, node: NodeId) -> Result<(), String> {
    if node.index() < machine.nodes.len() {
        return Ok(());
    }
    Err(format!(
        "{node} does not exist, the machine has node0 to node{}; the VM was not started",
        machine.nodes.len().saturating_sub(1)
    ))
}

/// What the guest sees: one node, or one for each part of its memory if it is to see them.
fn shape(
    machine: &Machine,
    config: &config::Vm,
    placement: &[NodeShare],
) -> Result<VmShape, String> {
    if !config.vnuma || placement.len() < 2 {
        return VmShape::simple(config.cpus, config.memory_bytes).map_err(|e| e.to_string());
    }
    // vCPUs are dealt out in equal runs, as cores are to the sockets of a machine.
    let nodes = placement.len() as u16;
    let first = |i: u16| u32::from(config.cpus) * u32::from(i) / u32::from(nodes);
    let virtual_nodes = (0..nodes)
        .zip(placement)
        .map(|(i, share)| VirtualNode {
            memory_bytes: share.bytes,
            vcpus: (first(i)..first(i + 1)).map(|v| v as u16).collect(),
        })
        .collect();
    let distances =
        placement
            .iter()
            .enumerate()
            .map(|(i, a)| {
                let row = placement.iter().enumerate().map(|(j, b)| {
                    match machine.distance(a.node, b.node) {
                        _ if i == j => 10,
                        d => u8::try_from(d).unwrap_or(u8::MAX).max(11),
                    }
                });
                row.collect()
            })
            .collect();
    VmShape::new(virtual_nodes, distances, 1).map_err(|e| e.to_string())
}

/// Takes frames from the nodes of the placement, all in one critical section or none, and maps them: 2 MiB
/// leaves wherever a whole granule is memory.
fn claim_memory<F>(
    ram: &mut GuestRam<F>,
    shape: &VmShape,
    placement: &[NodeShare],
) -> Result<(), String>
where
    F: memory::table::TableFormat<Address = Gpa>,
{
    let wants: Vec<Want> = placement
        .iter()
        .map(|s| Want {
            node: s.node,
            order: PageSize::Size2M.into(),
            count: s.bytes.div_ceil(MEMORY_GRANULE),
        })
        .collect();
    let mut claims = mm::claim_all(&wants).map_err(|e| format!("{e}; the VM was not started"))?;
    let mapped = map_all(ram, shape, &mut claims);
    claims.into_iter().for_each(mm::return_claim);
    mapped
}

/// Maps the guest's memory in ascending order to what the claims hold.
fn map_all<F>(ram: &mut GuestRam<F>, shape: &VmShape, claims: &mut [Claim]) -> Result<(), String>
where
    F: memory::table::TableFormat<Address = Gpa>,
{
    let mut last = None;
    for region in shape.memory.regions() {
        let mut at = region.gpa.align_down(PageSize::Size2M);
        while at.0 < region.end().0 {
            if last != Some(at) {
                let block = claims.iter_mut().find_map(mm::draw);
                let block = block
                    .ok_or("its memory map is larger than its memory; the VM was not started")?;
                map_granule(ram, shape, at, block)?;
                last = Some(at);
            }
            at = Gpa(at.0 + MEMORY_GRANULE);
        }
    }
    Ok(())
}

/// Maps one 2 MiB block: as one leaf, or, where the guest's map has holes, by the pages around them.
fn map_granule<F>(
    ram: &mut GuestRam<F>,
    shape: &VmShape,
    at: Gpa,
    block: Allocation,
) -> Result<(), String>
where
    F: memory::table::TableFormat<Address = Gpa>,
{
    let is_memory = |gpa: Gpa| shape.memory.region_of(gpa).is_some();
    let pages = PageSize::Size2M.pages();
    let page = |i: u64| Gpa(at.0 + i * PAGE_BYTES);
    if (0..pages).all(|i| is_memory(page(i))) {
        return ram
            .map(at, block.into_frame(), PageSize::Size2M)
            .map_err(|e| e.to_string());
    }
    for (i, frame) in (0..pages).zip(mm::into_pages(block)) {
        if is_memory(page(i)) {
            ram.map(page(i), frame, PageSize::Size4K)
                .map_err(|e| e.to_string())?;
        } else {
            mm::free(frame, PageSize::Size4K);
        }
    }
    Ok(())
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
    let apic_config = ApicConfig {
        bus_hz: APIC_BUS_HZ,
        tsc_hz: world.tsc_hz,
        x2apic: true,
        tsc_deadline: true,
        physical_bits: cpuid.physical_bits(),
    };
    let setup = VcpuSetup {
        node: home,
        nested_root: ram.root(),
        allowed_cr4: cpuid.allowed_cr4(),
    };
    let mut vcpus = Vec::with_capacity(usize::from(shape.vcpus));
    for index in 0..shape.vcpus {
        let role = if index == 0 {
            Role::Bootstrap
        } else {
            Role::Application
        };
        let mut hw = B::new_vcpu(&setup).map_err(|e| e.to_string())?;
        hw.reset(&if index == 0 {
            entry
        } else {
            guest::entry::reset_state(cpuid.signature())
        });
        vcpus.push(Vcpu {
            id: VcpuId { vm: id, index },
            apic: Mutex::new(LocalApic::new(
                ApicId(shape.apic_id(index)),
                role,
                apic_config,
            )),
            core: Mutex::new(VcpuCore {
                hw,
                msrs: MsrState::new(&cpuid),
                xss: 0,
                clock: None,
                steal: None,
                tsc_offset: 0,
                seen_map: 0,
                seen_sample: 0,
                last_cpu: None,
                seen_resumes: 0,
                runnable_since: None,
                postponed: None,
            }),
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
            exits: AtomicU64::new(0),
            moves: AtomicU64::new(0),
        });
    }
    Ok((cpuid, vcpus))
}
