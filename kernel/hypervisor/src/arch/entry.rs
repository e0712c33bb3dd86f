//! The kernel's first instruction.
#![expect(
    unsafe_code,
    reason = "the entry point has no stack of ours and no Rust caller"
)]

use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;

use handoff::{BootInfo, DIRECT_MAP_BASE};
use units::CpuId;

use super::percpu::{self, Activity};
use super::stack::{self, CpuStacks};
use super::{cpu, gdt, idt, timer};

/// Bytes of the stack that the boot processor starts on.
const BOOT_STACK_BYTES: usize = 128 * 1024;

/// The boot processor's first stack, with a page below it that [`super::paging`] leaves unmapped.
/// Once per-CPU stacks exist the boot processor moves to one of those, like every other.
#[repr(C, align(4096))]
struct BootStack {
    guard: UnsafeCell<[u8; 4096]>,
    stack: UnsafeCell<[u8; BOOT_STACK_BYTES]>,
}

// SAFETY: Rust code never touches the contents; only the boot processor's stack pointer does.
unsafe impl Sync for BootStack {}

static BOOT_STACK: BootStack = BootStack {
    guard: UnsafeCell::new([0; 4096]),
    stack: UnsafeCell::new([0; BOOT_STACK_BYTES]),
};

/// Bytes of the stack for NMI, double fault, machine check and debug exceptions until the boot
/// processor has one for each.
const BOOT_EXCEPTION_STACK_BYTES: usize = 32 * 1024;

#[repr(C, align(4096))]
struct BootExceptionStack {
    guard: UnsafeCell<[u8; 4096]>,
    stack: UnsafeCell<[u8; BOOT_EXCEPTION_STACK_BYTES]>,
}

// SAFETY: as for `BootStack`.
unsafe impl Sync for BootExceptionStack {}

static BOOT_EXCEPTION_STACK: BootExceptionStack = BootExceptionStack {
    guard: UnsafeCell::new([0; 4096]),
    stack: UnsafeCell::new([0; BOOT_EXCEPTION_STACK_BYTES]),
};

/// Virtual addresses of the guard pages below the two boot stacks.
pub fn boot_stack_guards() -> [u64; 2] {
    [
        BOOT_STACK.guard.get() as u64,
        BOOT_EXCEPTION_STACK.guard.get() as u64,
    ]
}

/// Whether `address` lies in one of the two boot stacks (guards not included).
pub fn is_boot_stack(address: u64) -> bool {
    let within = |base: u64, bytes: usize| address.wrapping_sub(base) < bytes as u64;
    within(BOOT_STACK.stack.get() as u64, BOOT_STACK_BYTES)
        || within(
            BOOT_EXCEPTION_STACK.stack.get() as u64,
            BOOT_EXCEPTION_STACK_BYTES,
        )
}

/// The stacks of the boot processor until per-CPU stacks exist. The four exceptions share one:
/// a second of them on top of the first is past helping then.
pub fn boot_stacks() -> CpuStacks {
    let exception = BOOT_EXCEPTION_STACK.stack.get() as u64 + BOOT_EXCEPTION_STACK_BYTES as u64;
    CpuStacks {
        run: BOOT_STACK.stack.get() as u64 + BOOT_STACK_BYTES as u64,
        nmi: exception,
        double_fault: exception,
        machine_check: exception,
        debug: exception,
    }
}

/// Where the loader jumps to, by the contract in crate `handoff`: long mode, interrupts off, the
/// host-physical address of the boot information in `rdi`. Leaves the loader's stack at once.
///
/// # Safety
/// Called by the loader, once, on the boot processor.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start(info: u64) -> ! {
    naked_asm!(
        "cli",
        "cld",
        "lea rsp, [rip + {stack} + {top}]",
        // A zero frame pointer ends every backtrace here.
        "xor ebp, ebp",
        "call {main}",
        "ud2",
        stack = sym BOOT_STACK,
        top = const size_of::<BootStack>(),
        main = sym enter,
    )
}

/// The first Rust code: makes exceptions survivable, then begins the kernel's story.
///
/// # Safety
/// Called by [`_start`] only.
unsafe extern "C" fn enter(info: u64) -> ! {
    // SAFETY: once, on the boot processor, each step before what needs it. The loader's direct map
    // shows the boot information; `BootInfo::check` (in `mm::init_early`) judges its contents.
    let info = unsafe {
        cpu::enable_features();
        let me = percpu::init_boot();
        gdt::load(me, &boot_stacks());
        percpu::install(me);
        &*((DIRECT_MAP_BASE + info) as *const BootInfo)
    };
    idt::load();
    cpu::enable_machine_checks();
    crate::kernel_main(info)
}

/// Makes the boot processor like every other: with its data and its stacks on its own node, and with a
/// timer. Goes on in `next` on the new stack.
///
/// # Panics
/// When there is no memory for that: a machine without room for one CPU cannot go on.
pub fn move_to_own_stack(next: fn() -> !) -> ! {
    let me = percpu::of(CpuId(0)).expect("topology gives at least the CPU that runs this");
    let stacks = stack::allocate(me.cpu, me.node)
        .unwrap_or_else(|e| panic!("the boot processor gets no stack: {e}"));
    me.set_running(Activity::Booting);
    // SAFETY: `me` is this processor; interrupts are off; its exceptions use the new stacks from now on.
    // The boot stack is left for good: `next` never returns.
    unsafe {
        gdt::load(me, &stacks);
        percpu::install(me);
        me.set_online();
        timer::init();
        asm!(
            "mov rsp, {top}",
            "xor ebp, ebp",
            "call {next}",
            "ud2",
            top = in(reg) stacks.run,
            next = in(reg) next,
            options(noreturn),
        )
    }
}
