//! The kernel's story, from the loader's jump to the run loop.
//!
//! Each step needs the ones before it: memory for the first allocations, then tables of our own, then
//! what firmware knows about the machine, then a clock, then memory by node, then everybody else.
//! When all processors are up they run guests until the machine is switched off ([`run`]).
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "memory is taken over from the loader once, here"
)]

extern crate alloc;

mod arch;
mod console;
mod counters;
mod drive;
mod exits;
mod measure;
mod mm;
mod monitor;
mod platform;
mod run;
mod sabotage;
mod shootdown;
mod start;
mod timers;
mod virt;
mod vm;

use arch::{apic, entry, paging, percpu, smp, symbols, time, timer, tsc};
use handoff::{BootInfo, ModuleKind};

/// Called by [`arch::entry`] on the boot processor's first stack, with the loader's tables.
fn kernel_main(info: &BootInfo) -> ! {
    console::init_early();
    log::info!("Perigee {}", env!("CARGO_PKG_VERSION"));
    // SAFETY: once, before anything wants memory, with what the loader passed, on its tables.
    unsafe { mm::init_early(info) }.unwrap_or_else(|e| panic!("{e}"));
    if let Some(elf) = mm::modules()
        .iter()
        .find(|m| m.kind() == Some(ModuleKind::KernelElf))
    {
        symbols::set_file(platform::module_bytes(elf));
    }
    paging::init(info, mm::memory_map()).unwrap_or_else(|e| panic!("no page tables: {e}"));

    let tables = platform::read_tables();
    let spcr = tables
        .get(b"SPCR")
        .and_then(|bytes| topology::spcr::parse(bytes).ok());
    console::init(spcr.as_ref(), &info.framebuffer);
    let machine = &platform::discover(&tables).machine;
    start_clock();
    mm::init_nodes(machine);

    let cpus = machine.cpus.iter().map(|c| (c.id, c.apic, c.node));
    percpu::create(cpus).unwrap_or_else(|e| panic!("no per-CPU data: {e}"));
    entry::move_to_own_stack(start_others)
}

fn start_clock() {
    let (hz, source) = tsc::calibrate(platform::pm_timer());
    time::start(hz);
    log::info!(
        "TSC runs at {}.{:03} MHz by {source}",
        hz / 1_000_000,
        hz / 1000 % 1000
    );
    apic::init().unwrap_or_else(|e| panic!("{e}"));
    timer::calibrate();
    log::info!(
        "{} is {} in {} mode, {}",
        percpu::current().cpu,
        apic::id(),
        apic::mode_name(),
        timer::describe()
    );
}

/// On the boot processor, which is now like every other: its own stack, its own node.
fn start_others() -> ! {
    let low: Option<arrayvec::ArrayVec<_, { smp::LOW_PAGES }>> = (0..smp::LOW_PAGES)
        .map(|_| Some(mm::low_frame()?.address()))
        .collect();
    smp::start_all(
        low.and_then(|pages| pages.into_inner().ok()),
        |cpu, outcome| match outcome {
            smp::Outcome::Up(_) => log::info!("{} ({}, {}) {outcome}", cpu.cpu, cpu.apic, cpu.node),
            _ => log::error!("{} ({}, {}) {outcome}", cpu.cpu, cpu.apic, cpu.node),
        },
    );
    let agree = if tsc::synchronised() {
        "agree"
    } else {
        "disagree: time is corrected per CPU"
    };
    log::info!(
        "{} of {} CPUs are up; their TSCs {agree}",
        percpu::online().count(),
        percpu::all().len()
    );
    if let Some(discovery) = platform::discovery() {
        start::prepare(discovery);
    }
    smp::release_all();
    start::cpu_main()
}

/// Where every other CPU ends up.
fn enter_run_loop() -> ! {
    start::cpu_main()
}
