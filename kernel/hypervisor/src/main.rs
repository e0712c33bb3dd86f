//! The kernel's story, from the loader's jump to the run loop. Each sentence has a room.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the order of start-up is what makes the unsafe steps sound")]

extern crate alloc;

mod arch;
mod console;
mod mm;
mod platform;


use arch::{apic, cpu, entry, gdt, idt, paging, percpu, smp, symbols, time, timer, tsc};
use handoff::{BootInfo, DIRECT_MAP_BASE, ModuleKind};
use units::{ApicId, CpuId, NodeId};

/// Called by [`arch::entry`] on the boot processor's first stack.
extern "C" fn kernel_main(info: u64) -> ! {
    // SAFETY: the first things that run, once, in the order that each needs.
    let boot = unsafe {
        cpu::enable_features();
        let me = percpu::init_boot();
        gdt::load(me, &entry::boot_stacks());
        percpu::install(me);
        &*((DIRECT_MAP_BASE + info) as *const BootInfo)
    };
    idt::load();
    console::init_early();
    log::info!("Perigee {}", env!("CARGO_PKG_VERSION"));
    // SAFETY: once, before anything wants memory, on the loader's page tables.
    if let Err(e) = unsafe { mm::init_early(boot) } {
        panic!("{e}");
    }
    let (regions, modules) = (mm::memory_map(), mm::modules());
    if let Some(elf) = modules.iter().find(|m| m.kind() == Some(ModuleKind::KernelElf)) {
        symbols::set_file(platform::module_bytes(elf));
    }
    if let Err(e) = paging::init(boot, regions) {
        panic!("{e}");
    }
    log::info!("own page tables");
    let tables = platform::Tables::collect(boot, modules);
    log::info!("ACPI:{}", tables.describe());
    platform::init_power(&tables);
    let (hz, source) = tsc::calibrate(platform::pm_timer());
    time::start(hz);
    log::info!("TSC runs at {}.{:03} MHz by {source}", hz / 1_000_000, hz / 1000 % 1000);
    if let Err(e) = apic::init() {
        panic!("{e}");
    }
    timer::calibrate();
    log::info!("{} {}, {}", apic::mode_name(), apic::id(), timer::describe());
    let n: u32 = 8;
    percpu::create((0..n).map(|i| (CpuId(i), ApicId(i), NodeId(0)))).expect("memory");
    platform::power_off()
}

/// Where every CPU ends up.
fn enter_run_loop() -> ! {
    arch::cpu::halt_forever()
}
