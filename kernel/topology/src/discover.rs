//! How the tables are joined into one machine.

use crate::cores::{self, Belongs, CpuidShape};
use crate::distance::{self, Side};
use crate::hmat;
use crate::machine::{Cpu, Machine, MemoryRange, Node, OfflineCpu, PhysRange};
use crate::madt::{self, Madt, MadtCpu};
use crate::memory_map::{self, Claim};
use crate::pptt;
use crate::quirk::{Quirk, Quirks, TableId};
use crate::slit;
use crate::srat::{self, Srat};
use crate::table::Table;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use telemetry::{CpuReport, NodeReport, Topology};
use units::{ApicId, CpuId, NodeId, ProximityDomain};

/// Most nodes; what belongs to further domains joins a neighbour.
pub const MAX_NODES: usize = 64;
/// Most processors; further ones stay off.
pub const MAX_CPUS: usize = 1024;

/// The bytes of firmware's tables, each from its signature on; `None` where there is none. A slice
/// may be longer than its table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tables<'a> {
    /// Multiple APIC Description Table, signature "APIC".
    pub madt: Option<&'a [u8]>,
    /// System Resource Affinity Table.
    pub srat: Option<&'a [u8]>,
    /// System Locality Information Table.
    pub slit: Option<&'a [u8]>,
    /// Heterogeneous Memory Attribute Table.
    pub hmat: Option<&'a [u8]>,
    /// Processor Properties Topology Table.
    pub pptt: Option<&'a [u8]>,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// The machine.
    pub machine: Machine,
    /// What was odd about the tables, in the order of discovery.
    pub quirks: Vec<Quirk>,
    /// Whether what the processors measured is used, then each objection to it; empty if nothing was measured.
    pub measured: Vec<String>,
}

impl Discovery {
    /// The machine as the record that tools and tests read.
    pub fn report(&self) -> Topology {
        let machine = &self.machine;
        let node = |node: &Node| NodeReport {
            node: node.id,
            pxm: node.domain,
            memory_bytes: node.memory_bytes(),
        };
        let cpu = |cpu: &Cpu| CpuReport {
            cpu: cpu.id,
            node: cpu.node,
            apic: cpu.apic,
        };
        Topology {
            nodes: machine.nodes.iter().map(node).collect(),
            cpus: machine.cpus.iter().map(cpu).collect(),
            distances: machine.distance_rows(),
            latency_ns: machine.latency_rows(),
            latency_source: machine.latency_source.to_string(),
            quirks: self.quirks.iter().map(ToString::to_string).collect(),
            measured: self.measured.first().cloned().unwrap_or_default(),
        }
    }
}

/// Makes a machine of firmware's tables, of what CPUID says and of the usable ranges of the memory map
/// (in any order, overlapping or not). Never fails: see the crate's documentation.
pub fn discover(tables: &Tables<'_>, shape: &CpuidShape, memory: &[PhysRange]) -> Discovery {
    let quirks = &mut Quirks::default();
    let madt = match open(TableId::Madt, tables.madt, quirks) {
        Some(table) => madt::parse(&table, quirks),
        None => Madt::default(),
    };
    let srat = open(TableId::Srat, tables.srat, quirks).map(|table| srat::parse(&table, quirks));
    let running = running(&madt, shape.bsp_apic_id, quirks);
    let domain_of_cpu = domains_of_cpus(&madt, srat.as_ref(), &running, quirks);

    let usable = memory_map::normalised(memory);
    let claims = memory_map::claims(srat.as_ref().map_or(&[], |srat| &srat.memory), quirks);
    let domains = domains_in_use(
        srat.as_ref(),
        &running,
        &domain_of_cpu,
        &usable,
        &claims,
        quirks,
    );
    let node_of_domain = |domain: ProximityDomain| {
        domains
            .binary_search(&domain)
            .ok()
            .map(|index| NodeId(index as u16))
    };

    let claims: Vec<Claim> = claims
        .into_iter()
        .filter(|claim| node_of_domain(claim.domain).is_some())
        .collect();
    let node_of_claim = |domain| node_of_domain(domain).unwrap_or(NodeId(0));
    let assigned = memory_map::assign(&usable, &claims, node_of_claim, quirks);

    let pptt = tables
        .pptt
        .and_then(|bytes| Table::open(TableId::Pptt, bytes, quirks))
        .map(|table| pptt::parse(&table, quirks));
    let ids: Vec<(u32, u32)> = running.iter().map(|cpu| (cpu.apic, cpu.uid)).collect();
    let belongs = cores::number(&ids, shape, pptt.as_ref(), quirks);
    let node_of_cpu = |cpu: &MadtCpu| {
        domain_of_cpu
            .get(&cpu.apic)
            .copied()
            .and_then(node_of_domain)
    };
    let cpus = place_cpus(&running, &belongs, node_of_cpu, srat.is_some(), quirks);

    let mut nodes = nodes(&domains, &cpus, &assigned, quirks);
    let sides: Vec<Side> = nodes.iter().map(Side::of).collect();
    let slit = match tables.slit {
        None if nodes.len() < 2 => None,
        bytes => open(TableId::Slit, bytes, quirks).and_then(|table| slit::parse(&table, quirks)),
    };
    let hmat = tables
        .hmat
        .and_then(|bytes| Table::open(TableId::Hmat, bytes, quirks))
        .map(|table| hmat::parse(&table, quirks));
    let distances = distance::distances(&sides, slit.as_ref(), quirks);
    let (latencies_ns, latency_source) =
        distance::latencies(&sides, &distances, slit.is_some(), hmat.as_ref(), quirks);
    let bandwidths_mb_s = distance::bandwidths(&sides, hmat.as_ref());
    for pair in hmat.iter().flat_map(|hmat| &hmat.domains) {
        let attached = pair.initiator.and_then(node_of_domain);
        if let Some(node) = node_of_domain(pair.memory).and_then(|node| nodes.get_mut(node.index()))
        {
            node.initiator = attached;
        }
    }

    let machine = Machine {
        offline: offline(&madt, &domain_of_cpu),
        claims: claims
            .iter()
            .map(|claim| MemoryRange {
                range: claim.range,
                node: node_of_claim(claim.domain),
            })
            .collect(),
        nodes,
        cpus,
        memory: assigned,
        io_apics: madt.io_apics,
        overrides: madt.overrides,
        nmi_sources: madt.nmi_sources,
        local_nmis: madt.local_nmis,
        lapic_address: madt.lapic_address,
        has_8259: madt.has_8259,
        hmat,
        latency_source,
        distances,
        latencies_ns,
        bandwidths_mb_s,
    };
    Discovery {
        machine,
        measured: Vec::new(),
        quirks: core::mem::take(quirks).into_vec(),
    }
}

fn open<'a>(id: TableId, bytes: Option<&'a [u8]>, quirks: &mut Quirks) -> Option<Table<'a>> {
    match bytes {
        Some(bytes) => Table::open(id, bytes, quirks),
        None => {
            quirks.push(Quirk::NoTable { table: id });
            None
        }
    }
}

/// The enabled processors, each once, the boot processor first.
fn running(madt: &Madt, bsp: ApicId, quirks: &mut Quirks) -> Vec<MadtCpu> {
    let mut seen = BTreeSet::new();
    let mut first = None;
    let mut others = Vec::new();
    for cpu in madt.cpus.iter().filter(|cpu| cpu.enabled) {
        let apic = ApicId(cpu.apic);
        if cpu.broadcast {
            quirks.push(Quirk::BroadcastApicId {
                apic,
                offset: cpu.offset,
            });
        } else if !seen.insert(apic) {
            quirks.push(Quirk::DuplicateApicId {
                apic,
                offset: cpu.offset,
            });
        } else if apic == bsp {
            first = Some(*cpu);
        } else {
            others.push(*cpu);
        }
    }
    let first = first.unwrap_or_else(|| {
        // Without any list the missing table was already reported.
        if !madt.cpus.is_empty() {
            quirks.push(Quirk::BootCpuUnlisted { apic: bsp });
        }
        MadtCpu {
            offset: 0,
            apic: bsp.0,
            uid: 0,
            enabled: true,
            online_capable: false,
            broadcast: false,
        }
    });
    let found = others.len() + 1;
    if found > MAX_CPUS {
        quirks.push(Quirk::TooManyCpus {
            found,
            kept: MAX_CPUS,
        });
    }
    core::iter::once(first)
        .chain(others)
        .take(MAX_CPUS)
        .collect()
}

/// The domain of each processor that the SRAT names and the MADT lists.
fn domains_of_cpus(
    madt: &Madt,
    srat: Option<&Srat>,
    running: &[MadtCpu],
    quirks: &mut Quirks,
) -> BTreeMap<u32, ProximityDomain> {
    let listed: BTreeSet<u32> = madt
        .cpus
        .iter()
        .chain(running)
        .map(|cpu| cpu.apic)
        .collect();
    let mut domains: BTreeMap<u32, ProximityDomain> = BTreeMap::new();
    for affinity in srat.iter().flat_map(|srat| &srat.cpus) {
        let apic = ApicId(affinity.apic);
        if !listed.contains(&affinity.apic) {
            quirks.push(Quirk::UnknownCpu {
                apic,
                domain: affinity.domain,
            });
            continue;
        }
        let kept = *domains.entry(affinity.apic).or_insert(affinity.domain);
        if kept != affinity.domain {
            quirks.push(Quirk::CpuInTwoDomains {
                apic,
                kept,
                ignored: affinity.domain,
            });
        }
    }
    domains
}

/// The domains that become nodes, ascending; never empty.
fn domains_in_use(
    srat: Option<&Srat>,
    running: &[MadtCpu],
    domain_of_cpu: &BTreeMap<u32, ProximityDomain>,
    usable: &[PhysRange],
    claims: &[Claim],
    quirks: &mut Quirks,
) -> Vec<ProximityDomain> {
    let mut in_use = memory_map::domains_with_memory(usable, claims);
    in_use.extend(
        running
            .iter()
            .filter_map(|cpu| domain_of_cpu.get(&cpu.apic)),
    );
    if let Some(srat) = srat {
        let named = srat
            .cpus
            .iter()
            .map(|cpu| cpu.domain)
            .chain(srat.memory.iter().map(|range| range.domain));
        let named: BTreeSet<ProximityDomain> = named.chain(srat.devices.iter().copied()).collect();
        for domain in named.difference(&in_use) {
            quirks.push(Quirk::EmptyDomain { domain: *domain });
        }
    }
    let found = in_use.len();
    let mut domains: Vec<ProximityDomain> = in_use.into_iter().take(MAX_NODES).collect();
    if found > MAX_NODES {
        quirks.push(Quirk::TooManyNodes {
            found,
            kept: MAX_NODES,
        });
    }
    match domains.last() {
        None => domains.push(ProximityDomain(0)),
        Some(highest) if highest.index() >= domains.len() => {
            quirks.push(Quirk::SparseDomains {
                nodes: domains.len(),
                highest: *highest,
            });
        }
        Some(_) => {}
    }
    domains
}

/// Gives every processor its node: the SRAT's, else that of its package, else node 0.
fn place_cpus(
    running: &[MadtCpu],
    belongs: &[Belongs],
    node_of: impl Fn(&MadtCpu) -> Option<NodeId>,
    srat: bool,
    quirks: &mut Quirks,
) -> Vec<Cpu> {
    let mut node_of_package: BTreeMap<u32, NodeId> = BTreeMap::new();
    for (cpu, belongs) in running.iter().zip(belongs) {
        if let Some(node) = node_of(cpu) {
            node_of_package.entry(belongs.package).or_insert(node);
        }
    }
    let place = |(index, (cpu, belongs)): (usize, (&MadtCpu, &Belongs))| {
        let apic = ApicId(cpu.apic);
        let node = node_of(cpu).unwrap_or_else(|| {
            let node = node_of_package
                .get(&belongs.package)
                .copied()
                .unwrap_or(NodeId(0));
            if srat {
                quirks.push(Quirk::CpuWithoutNode { apic, node });
            }
            node
        });
        Cpu {
            id: CpuId(index as u32),
            apic,
            uid: cpu.uid,
            node,
            core: belongs.core,
            llc: belongs.llc,
            package: belongs.package,
            thread: belongs.thread,
        }
    };
    running.iter().zip(belongs).enumerate().map(place).collect()
}

fn nodes(
    domains: &[ProximityDomain],
    cpus: &[Cpu],
    memory: &[MemoryRange],
    quirks: &mut Quirks,
) -> Vec<Node> {
    let make = |(index, domain): (usize, &ProximityDomain)| {
        let id = NodeId(index as u16);
        let node = Node {
            id,
            domain: *domain,
            cpus: cpus
                .iter()
                .filter(|cpu| cpu.node == id)
                .map(|cpu| cpu.id)
                .collect(),
            memory: memory
                .iter()
                .filter(|range| range.node == id)
                .map(|range| range.range)
                .collect(),
            initiator: None,
        };
        if !node.has_memory() {
            quirks.push(Quirk::MemorylessNode {
                node: id,
                domain: *domain,
            });
        }
        if !node.has_cpus() {
            quirks.push(Quirk::CpulessNode {
                node: id,
                domain: *domain,
            });
        }
        node
    };
    domains.iter().enumerate().map(make).collect()
}

fn offline(madt: &Madt, domain_of_cpu: &BTreeMap<u32, ProximityDomain>) -> Vec<OfflineCpu> {
    let off = madt
        .cpus
        .iter()
        .filter(|cpu| cpu.online_capable && !cpu.broadcast);
    off.map(|cpu| OfflineCpu {
        apic: ApicId(cpu.apic),
        uid: cpu.uid,
        domain: domain_of_cpu.get(&cpu.apic).copied(),
    })
    .collect()
}
