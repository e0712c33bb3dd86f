//! From "all processors are up" to "every processor runs guests".
//!
//! The boot processor reads the configuration, asks the processor which virtualization it has,
//! builds the VMs and publishes the [`Hypervisor`]; the others wait for that. From then on all run the same
//! loop, monomorphised for the backend that was chosen.

use crate::arch::{apic, percpu, time, tsc};
use crate::drive::{self, Tracking};
use crate::virt::Backend;
use crate::virt::svm::Svm;
use crate::virt::vmx::Vmx;
use crate::vm::{self, Hypervisor, Images, Taken, Vm, World};
use crate::{console, counters, measure, run, sabotage, shootdown, timers};
use crate::{mm, platform};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use config::{HostConfig, LogLevel, Roots, Sabotage};
use handoff::ModuleKind;
use memory::table::LargeLeaves;
use sched::{CpuPlace, Event, Scheduler, Tunables, VcpuSpec};
use spin::{Mutex, Once};
use telemetry::{CpuReport, Event as Told, NodeReport, OffReason, Outcome, VmEvent};
use topology::{Discovery, Machine};
use units::{CpuId, Nanos, PerMille, VmId};

/// Which virtualization this machine uses.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Svm,
    Vmx,
}

static CHOICE: Once<Choice> = Once::new();

/// Every processor ends here; the boot processor after [`prepare`].
pub fn cpu_main() -> ! {
    match CHOICE.wait() {
        Choice::Svm => join::<Svm>(),
        Choice::Vmx => join::<Vmx>(),
    }
}

/// On the boot processor, with all others up: everything up to the first guest instruction.
pub fn prepare(discovery: &'static Discovery) {
    let config = read_config();
    log::set_max_level(level(config.host.log));
    let discovery = platform::refine(discovery, &measure::all(&discovery.machine));
    let machine = &discovery.machine;
    tell_topology(discovery);
    let choice = match Svm::probe().map_err(|amd| (amd, Vmx::probe())) {
        Ok(()) => {
            publish::<Svm>(machine, config);
            Choice::Svm
        }
        Err((_, Ok(()))) => {
            publish::<Vmx>(machine, config);
            Choice::Vmx
        }
        Err((amd, Err(intel))) => {
            log::error!("no guests can be hosted: {amd}, and {intel}");
            finish(Outcome::GuestFailed {
                vms: config.vms.iter().map(|vm| vm.name.clone()).collect(),
            })
        }
    };
    CHOICE.call_once(|| choice);
}

/// The machine as it was understood, for the record.
fn tell_topology(discovery: &Discovery) {
    let machine = &discovery.machine;
    let nodes = machine.nodes.iter();
    let cpus = percpu::online().filter_map(|c| machine.cpu(c.cpu));
    drive::record(Told::Topology(telemetry::Topology {
        nodes: nodes
            .map(|n| NodeReport {
                node: n.id,
                pxm: n.domain,
                memory_bytes: n.memory_bytes(),
            })
            .collect(),
        cpus: cpus
            .map(|c| CpuReport {
                cpu: c.id,
                node: c.node,
                apic: c.apic,
            })
            .collect(),
        distances: machine.distance_rows(),
        latency_ns: machine.latency_rows(),
        latency_source: machine.latency_source.to_string(),
        quirks: discovery.quirks.iter().map(ToString::to_string).collect(),
        measured: discovery.measured.first().cloned().unwrap_or_default(),
    }));
}

/// The configuration, or an empty one with every mistake named.
fn read_config() -> HostConfig {
    let Some(bytes) = module(|m| m.kind() == Some(ModuleKind::Config)) else {
        log::error!("perigee.toml is not on the boot medium; no VM is started");
        return HostConfig::default();
    };
    let Ok(text) = core::str::from_utf8(bytes) else {
        log::error!("perigee.toml is not UTF-8 text; no VM is started");
        return HostConfig::default();
    };
    let config = config::parse(text).unwrap_or_else(|errors| {
        for error in errors {
            log::error!("perigee.toml: {error}");
        }
        log::error!("perigee.toml has mistakes; no VM is started");
        HostConfig::default()
    });
    match sabotage::check(&config) {
        Ok(()) => config,
        Err(why) => {
            log::error!("perigee.toml: {why}; no VM is started");
            HostConfig::default()
        }
    }
}

const fn level(level: LogLevel) -> log::LevelFilter {
    match level {
        LogLevel::Error => log::LevelFilter::Error,
        LogLevel::Warn => log::LevelFilter::Warn,
        LogLevel::Info => log::LevelFilter::Info,
        LogLevel::Debug => log::LevelFilter::Debug,
        LogLevel::Trace => log::LevelFilter::Trace,
    }
}

/// The bytes of the first module that `wanted` accepts.
fn module(wanted: impl Fn(&handoff::Module) -> bool) -> Option<&'static [u8]> {
    mm::modules()
        .iter()
        .find(|m| wanted(m))
        .map(platform::module_bytes)
}

/// The guests' files, as the loader brought them; they stay for VMs that start again.
#[derive(Clone, Copy, Debug)]
pub struct BootImages;

impl Images for BootImages {
    fn find(&self, name: &str) -> Option<&[u8]> {
        module(|m| m.kind() == Some(ModuleKind::GuestImage) && m.name() == name)
    }
}

/// Builds the VMs and hands everything to the waiting processors.
fn publish<B: Backend>(machine: &'static Machine, config: HostConfig) {
    log::info!("guests run under {}", B::NAME);
    if B::large_leaves() == LargeLeaves::NotExecutable {
        log::info!(
            "guests execute by pages of 4 KiB: this processor may raise a machine check where the size of an executed page \
             changes (IA32_ARCH_CAPABILITIES bit 6 is clear)"
        );
    }
    counters::prepare(machine, &config);
    let world = World {
        machine,
        tsc_hz: tsc::hz(),
        tsc_synchronised: tsc::synchronised(),
        unix_s: mm::boot_info().unix_time_s + time::now().0 / 1_000_000_000,
    };
    let tunables = Tunables {
        donate: config.host.donate,
        share_cores: config.host.share_cores,
        ..Tunables::with_quantum(Nanos::from_millis(config.host.quantum_ms.into()))
    };
    let mut sched = drive::schedule::begin(tunables, config.host.trace);
    for cpu in percpu::online() {
        let place = place(machine, cpu.cpu.index());
        tell(
            &mut sched,
            Event::CpuOnline {
                cpu: cpu.cpu,
                place,
            },
        );
    }
    let mut vms = Vec::new();
    for (number, entry) in (0_u16..).zip(&config.vms) {
        let waiting = config.vms.get(usize::from(number) + 1..).unwrap_or(&[]);
        let taken = Taken::by(machine, &vms, waiting);
        match vm::build::<B>(world, VmId(number), entry, &BootImages, &taken) {
            Ok(vm) => vms.push(vm),
            Err(why) => refused(VmId(number), &entry.name, why),
        }
    }
    if sabotage::on(Sabotage::ForeignFrame) {
        sabotage::share_a_frame(&mut vms);
    }
    for vm in &vms {
        announce(vm);
        if config.host.roots == Roots::Every {
            let with_memory = machine.nodes.iter().filter(|n| n.memory_bytes() > 0);
            drive::roots::give_all(vm, with_memory.map(|n| n.id));
        }
        for vcpu in &vm.vcpus {
            tell(
                &mut sched,
                Event::VcpuAdded {
                    vcpu: vcpu.id,
                    spec: spec(vm),
                },
            );
        }
    }
    let tracking = Mutex::new(Tracking::new(machine, &config, &vms));
    let cpus = percpu::all().len();
    let hv = Hypervisor {
        machine,
        tracking,
        sched: drive::Locked::new(sched, cpus),
        decisions: drive::Decisions::new(cpus),
        timers: (0..cpus)
            .map(|_| Mutex::new(timers::TimerQueue::default()))
            .collect(),
        tsc_hz: world.tsc_hz,
        tsc_synchronised: world.tsc_synchronised,
        unix_at_start_s: mm::boot_info().unix_time_s,
        config,
        vms,
    };
    shootdown::init(cpus);
    let hv = B::hypervisor().call_once(|| hv);
    drive::start_sampling(hv);
    let released = mm::release_boot_memory();
    log::info!(
        "{} MiB that held the loader, modules and ACPI tables are free",
        released >> 20
    );
}

fn tell(sched: &mut Scheduler, event: Event) {
    let mut trace = drive::schedule::Trace::new();
    // Nobody runs yet: there is nobody to be kicked.
    if let Err(refusal) = drive::schedule::handle(sched, time::now(), event, &mut trace) {
        log::warn!("{refusal}");
    }
    trace.write();
}

fn place(machine: &Machine, cpu: usize) -> CpuPlace {
    machine.cpus.get(cpu).map_or(
        CpuPlace {
            node: units::NodeId(0),
            llc: 0,
            core: 0,
        },
        |c| CpuPlace {
            node: c.node,
            llc: c.llc,
            core: c.core,
        },
    )
}

/// What a VM's configuration means to the scheduler.
pub fn spec<B: Backend>(vm: &Vm<B>) -> VcpuSpec {
    VcpuSpec {
        weight: u32::from(vm.config.weight),
        cap: (vm.config.cap_percent > 0).then(|| {
            PerMille(
                vm.config
                    .cap_percent
                    .saturating_mul(10)
                    .min(u32::from(u16::MAX)) as u16,
            )
        }),
        class: match vm.config.priority {
            config::Priority::High => sched::Class::High,
            config::Priority::Normal => sched::Class::Normal,
            config::Priority::Low => sched::Class::Low,
        },
        affinity: match &vm.config.affinity {
            config::Affinity::Auto => sched::Affinity::Any,
            config::Affinity::Nodes(nodes) => sched::Affinity::Nodes(nodes.clone()),
            config::Affinity::Cpus(cpus) => sched::Affinity::Cpus(cpus.clone()),
        },
        home: Some(vm.home),
    }
}

fn announce<B: Backend>(vm: &Vm<B>) {
    drive::record(Told::Vm {
        vm: vm.id,
        name: vm.name.clone(),
        what: VmEvent::Created {
            vcpus: vm.shape.vcpus,
            memory_bytes: vm.config.memory_bytes,
            home: vm.home,
            memory_by_node: vm.ram.bytes_by_node(),
        },
    });
}

fn refused(vm: VmId, name: &str, why: String) {
    let what = VmEvent::Off(OffReason::Fault { what: why });
    drive::record(Told::Vm {
        vm,
        name: name.to_string(),
        what,
    });
    REFUSED.lock().push(name.to_string());
}

/// VMs that could not be started: the run is no success even if all others end well.
static REFUSED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Switches virtualization on for this processor and runs guests on it.
fn join<B: Backend>() -> ! {
    let hv = B::hypervisor().wait();
    match B::enable(percpu::current().node) {
        #[cfg_attr(
            not(feature = "sabotage"),
            expect(unused_mut, reason = "only tests change it")
        )]
        Ok(mut hw) => {
            counters::claim();
            #[cfg(feature = "sabotage")]
            sabotage::try_out::<B>(hv, &mut hw);
            if percpu::current().cpu == BOOT_CPU {
                start_guests(hv);
            }
            run::cpu_main(hv, hw)
        }
        Err(why) => {
            log::error!("{} hosts no guests: {why}", percpu::current().cpu);
            if percpu::current().cpu == BOOT_CPU {
                start_guests(hv);
            }
            loop {
                x86_64::instructions::interrupts::enable_and_hlt();
                x86_64::instructions::interrupts::disable();
            }
        }
    }
}

/// The processor that woke the others.
const BOOT_CPU: CpuId = CpuId(0);
/// How long the guests' start waits for processors that do not come.
const PATIENCE: Nanos = Nanos::from_millis(500);

/// The guests begin to run.
fn start_guests<B: Backend>(hv: &'static Hypervisor<B>) {
    until_all_go_round();
    for vm in &hv.vms {
        if let Some(first) = vm.vcpus.first() {
            run::wake(hv, first);
        }
        drive::record(Told::Vm {
            vm: vm.id,
            name: vm.name.clone(),
            what: VmEvent::Started,
        });
    }
}

/// Waits until each other processor has been through its loop once. The first time is slow, in an emulator a tenth of a
/// second, and a virtual CPU that waits so long for its own processor is taken by whoever comes first, far
/// from its memory.
fn until_all_go_round() {
    let began = time::now();
    for other in percpu::online().filter(|c| c.cpu != BOOT_CPU) {
        while other.rounds() < 2 && time::now().since(began) < PATIENCE {
            apic::kick(other.cpu);
            time::spin(Nanos::from_micros(200));
        }
    }
}

/// All VMs are off, or the operator wants it so: the machine is switched off.
pub fn shutdown<B: Backend>(hv: &Hypervisor<B>) -> ! {
    crate::monitor::show_all_of_guests(hv);
    let failed = hv.vms.iter().filter(|vm| vm.failed());
    let mut vms = core::mem::take(&mut *REFUSED.lock());
    vms.extend(failed.map(|vm| vm.name.clone()));
    if vms.is_empty() {
        finish(Outcome::Clean)
    } else {
        finish(Outcome::GuestFailed { vms })
    }
}

fn finish(outcome: Outcome) -> ! {
    drive::record(Told::RunEnd(outcome));
    console::flush();
    platform::power_off()
}
