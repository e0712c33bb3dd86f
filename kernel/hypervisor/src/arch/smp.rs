//! Starting the other processors: INIT, then start-up IPIs (SDM 3A 9.4.4, APM 2 15.27.8 without SKINIT).
//!
//! A processor wakes in real mode at a page of the first MiB. The trampoline there takes it
//! straight to long mode on a small set of tables that identity-map that one page and share the
//! kernel's upper half, takes the stack that was left for it (an atomic exchange, so that of two
//! that wake by mistake only one goes on), and calls [`ap_entry`].
//!
//! All processors get INIT together and wait out its 10 ms together; the start-up itself goes one
//! by one, because each compares its TSC with the boot processor's on the way. One that does not
//! answer is named and left out; the stack that was meant for it is never used again.
#![expect(unsafe_code, reason = "starts processors in real mode")]

use alloc::vec::Vec;
use core::arch::global_asm;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use handoff::DIRECT_MAP_BASE;
use units::{Hpa, Nanos, PAGE_BYTES};

use super::percpu::{self, Activity, PerCpu};
use super::stack::{self, CpuStacks};
use super::{apic, cpu, gdt, idt, interrupts, paging, time, timer, tsc};

/// Pages below 1 MiB that [`start_all`] needs: the trampoline and its four tables.
pub const LOW_PAGES: usize = 5;

/// How long a processor may take from its start-up IPI to Rust. Hardware needs microseconds; in an emulator on a
/// crowded host a processor may have to wait for seconds until it runs at all, and one that was left out is lost for good.
const ANSWER_TIME: Nanos = Nanos::from_secs(10);
/// How long it may take from there until it has its APIC and has compared its TSC, a dialogue of many turns.
const START_TIME: Nanos = Nanos::from_secs(30);
/// After which time the start-up IPI is sent a second time.
const SECOND_STARTUP: Nanos = Nanos::from_millis(10);

// The trampoline. It is assembled for address 0 of a segment; [`Data`] at its end is
// filled in by `Trampoline`. Real mode to long mode in one step: with PAE and LME set, CR0.PE and CR0.PG may be
// set together (AMD and Intel both allow it), and the far jump loads a 64-bit code segment.
global_asm!(
    ".pushsection .rodata.trampoline, \"a\"",
    ".balign 16",
    ".global ap_trampoline, ap_long_mode, ap_data, ap_trampoline_end",
    "ap_trampoline:",
    ".code16",
    "cli",
    "cld",
    "mov ax, cs",
    "mov ds, ax",
    // lgdt [disp16] (a base below 16 MiB fits its 24 bits); the assembler takes no difference of two
    // labels as an address.
    ".byte 0x0f, 0x01, 0x16",
    ".word ap_gdt_pointer - ap_trampoline",
    "mov eax, 0x20", // CR4.PAE
    "mov cr4, eax",
    ".byte 0x66, 0xa1", // mov eax, [disp16]
    ".word ap_cr3 - ap_trampoline",
    "mov cr3, eax",
    "mov ecx, 0xc0000080", // EFER.LME and EFER.NXE
    "rdmsr",
    "or eax, 0x900",
    "wrmsr",
    "mov eax, 0x80010033", // PG, WP, NE, ET, MP, PE
    "mov cr0, eax",
    ".byte 0x66, 0xff, 0x2e", // jmp far dword ptr [disp16]
    ".word ap_far_pointer - ap_trampoline",
    ".code64",
    "ap_long_mode:",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov gs, eax",
    "xchg rax, qword ptr [rip + ap_stack]",
    "test rax, rax",
    "jz 2f",
    "mov rsp, rax",
    "xor ebp, ebp",
    "mov rdi, qword ptr [rip + ap_argument]",
    "call qword ptr [rip + ap_target]",
    "2: cli",
    "hlt",
    "jmp 2b",
    ".balign 8",
    "ap_data:", // `Data`
    "ap_far_pointer: .quad 0",
    "ap_cr3: .quad 0",
    "ap_stack: .quad 0",
    "ap_argument: .quad 0",
    "ap_target: .quad 0",
    ".quad 0, 0",
    "ap_gdt_pointer: .quad 0",
    "ap_trampoline_end:",
    ".popsection",
);

unsafe extern "C" {
    static ap_trampoline: [u8; 0];
    static ap_long_mode: [u8; 0];
    static ap_data: [u8; 0];
    static ap_trampoline_end: [u8; 0];
}

/// What the trampoline reads, at its end.
#[repr(C)]
struct Data {
    /// Offset (32 bits) and selector of `ap_long_mode`.
    far_pointer: u64,
    cr3: u64,
    /// Taken by exchange; 0 means that there is nothing to do here.
    stack: AtomicU64,
    argument: AtomicU64,
    target: u64,
    gdt: [u64; 2],
    /// Limit (16 bits) and base.
    gdt_pointer: u64,
}

/// A 64-bit code segment of ring 0.
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
/// Entry of a page table: present, writable (SDM 3A 4.5.4).
const TABLE_ENTRY: u64 = 0b11;

/// The trampoline in its place below 1 MiB.
struct Trampoline {
    page: Hpa,
}

impl Trampoline {
    /// Copies the code and builds the tables.
    fn install(pages: [Hpa; LOW_PAGES]) -> Option<Self> {
        let root = paging::root()?;
        let [code, pml4, pdpt, directory, leaves] = pages;
        // SAFETY: the caller of `start_all` gives five free pages of the direct map for this use
        // alone. The code fits its page (asserted by the linker's symbols below); the upper half of
        // the root is copied entry by entry from the kernel's own root.
        unsafe {
            for page in pages {
                paging::direct(page).write_bytes(0, PAGE_BYTES as usize);
            }
            let start = (&raw const ap_trampoline).cast::<u8>();
            let bytes = (&raw const ap_trampoline_end)
                .cast::<u8>()
                .offset_from_unsigned(start);
            if bytes > PAGE_BYTES as usize {
                return None;
            }
            paging::direct(code).copy_from_nonoverlapping(start, bytes);
            let table = |at: Hpa| paging::direct(at).cast::<u64>();
            let slot = |shift: u32| (code.0 >> shift) as usize & 511;
            table(pml4).add(slot(39)).write(pdpt.0 | TABLE_ENTRY);
            table(pdpt).add(slot(30)).write(directory.0 | TABLE_ENTRY);
            table(directory).add(slot(21)).write(leaves.0 | TABLE_ENTRY);
            // Writable as well: the exchange of the stack needs it. The page is the trampoline's
            // alone and goes back to the allocator with its mapping.
            table(leaves).add(slot(12)).write(code.0 | TABLE_ENTRY);
            for upper in 256..512 {
                table(pml4).add(upper).write(table(root).add(upper).read());
            }
        }
        let this = Self { page: code };
        let long_mode = code.0 + distance(&raw const ap_long_mode);
        let data = code.0 + distance(&raw const ap_data);
        let gdt = data + core::mem::offset_of!(Data, gdt) as u64;
        // SAFETY: inside the page that was just written; no processor runs there yet.
        unsafe {
            this.data().write(Data {
                far_pointer: long_mode | 8 << 32,
                cr3: pml4.0,
                stack: AtomicU64::new(0),
                argument: AtomicU64::new(0),
                target: ap_entry as *const () as u64,
                gdt: [0, CODE_DESCRIPTOR],
                gdt_pointer: 15 | gdt << 16,
            });
        }
        Some(this)
    }

    fn data(&self) -> *mut Data {
        (DIRECT_MAP_BASE + self.page.0 + distance(&raw const ap_data)) as *mut Data
    }

    /// Leaves a stack and its owner for the next processor that wakes.
    fn offer(&self, cpu: &'static PerCpu, stacks: &CpuStacks) {
        // SAFETY: `install` wrote a `Data` there; both fields are atomics.
        let data = unsafe { &*self.data() };
        data.argument
            .store(core::ptr::from_ref(cpu) as u64, Ordering::Relaxed);
        data.stack.store(stacks.run, Ordering::Release);
    }

    /// Takes the offer back; false if a processor has taken it.
    fn withdraw(&self) -> bool {
        // SAFETY: as in `offer`.
        let data = unsafe { &*self.data() };
        data.stack.swap(0, Ordering::AcqRel) != 0
    }

    fn startup_page(&self) -> u8 {
        (self.page.0 / PAGE_BYTES) as u8
    }
}

/// Bytes from the start of the trampoline to one of its labels.
fn distance(label: *const [u8; 0]) -> u64 {
    label as u64 - (&raw const ap_trampoline) as u64
}

/// Where the processor that is being started is.
static PROGRESS: AtomicU32 = AtomicU32::new(WAITING);
const WAITING: u32 = 0;
/// It runs Rust on its own stack.
const ARRIVED: u32 = 1;
/// It has its descriptor tables, its APIC and its timer.
const READY: u32 = 2;
/// Its APIC cannot be used.
const FAILED: u32 = 3;

/// Set when every processor may leave [`ap_entry`].
static RELEASE: AtomicU32 = AtomicU32::new(0);

/// How starting one processor ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is up.
    Up(tsc::Comparison),
    /// It never reached our code.
    Silent,
    /// It reached our code and stopped on the way.
    Stuck,
    /// Its memory could not be had.
    NoMemory(paging::PagingError),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(tsc) => write!(
                f,
                "is up; its TSC is {:+} (+-{}) ticks from the boot processor's, went back by {}",
                tsc.offset, tsc.uncertainty, tsc.warp
            ),
            Self::Silent => write!(
                f,
                "did not answer its start-up IPI within {ANSWER_TIME}; the machine goes on without it"
            ),
            Self::Stuck => {
                f.write_str("woke, but stopped during its start-up; the machine goes on without it")
            }
            Self::NoMemory(e) => write!(f, "gets no stack: {e}; the machine goes on without it"),
        }
    }
}

/// Starts every CPU of [`percpu::all`] but the calling one. `low_pages` are [`LOW_PAGES`] free pages
/// below 1 MiB; `None` leaves the machine with one CPU. Calls `each` with every outcome.
pub fn start_all(low_pages: Option<[Hpa; LOW_PAGES]>, mut each: impl FnMut(&PerCpu, &Outcome)) {
    let me = percpu::current();
    let others: Vec<_> = percpu::all()
        .iter()
        .copied()
        .filter(|c| c.cpu != me.cpu)
        .collect();
    let Some(trampoline) = low_pages.and_then(Trampoline::install) else {
        if !others.is_empty() {
            log::error!(
                "no memory below 1 MiB to start other CPUs from; the machine goes on with one"
            );
        }
        return;
    };
    for other in &others {
        apic::send_init(other.apic);
    }
    time::spin(Nanos::from_millis(10));
    for other in others {
        let outcome = start(&trampoline, other);
        each(other, &outcome);
    }
}

/// Lets the processors that are up leave for the run loop.
pub fn release_all() {
    RELEASE.store(1, Ordering::Release);
    let me = percpu::current().cpu;
    for other in percpu::online().filter(|c| c.cpu != me) {
        apic::kick(other.cpu);
    }
}

fn start(trampoline: &Trampoline, other: &'static PerCpu) -> Outcome {
    let stacks = match stack::allocate(other.cpu, other.node) {
        Ok(stacks) => stacks,
        Err(e) => return Outcome::NoMemory(e),
    };
    PROGRESS.store(WAITING, Ordering::Release);
    other.set_running(Activity::Booting);
    trampoline.offer(other, &stacks);
    apic::send_startup(other.apic, trampoline.startup_page());
    let started = time::now();
    if !reached(ARRIVED, started, SECOND_STARTUP) {
        apic::send_startup(other.apic, trampoline.startup_page());
    }
    if !reached(ARRIVED, started, ANSWER_TIME) && trampoline.withdraw() {
        other.set_running(Activity::Offline);
        return Outcome::Silent;
    }
    let gave_up = || time::now().since(started) > START_TIME;
    match reached(READY, started, START_TIME) {
        true => tsc::compare(other, gave_up).map_or(Outcome::Stuck, |found| {
            other.set_online();
            Outcome::Up(found)
        }),
        false => Outcome::Stuck,
    }
}

fn reached(progress: u32, since: Nanos, patience: Nanos) -> bool {
    while PROGRESS.load(Ordering::Acquire) < progress {
        if time::now().since(since) > patience {
            return false;
        }
        core::hint::spin_loop();
    }
    PROGRESS.load(Ordering::Acquire) != FAILED || progress == ARRIVED
}

/// Where every other processor enters Rust: on its own stack, on the trampoline's tables, with
/// interrupts off.
extern "C" fn ap_entry(me: &'static PerCpu) -> ! {
    // SAFETY: the first things this processor does in the kernel; `me` and the stack were offered
    // to one processor only. The kernel's tables map this code and this stack.
    unsafe {
        cpu::enable_features();
        paging::use_tables();
        gdt::load(me, &stack::of(me.cpu));
        percpu::install(me);
    }
    idt::load();
    cpu::enable_machine_checks();
    if cpu::initial_apic_id() != me.apic.0 {
        // Another processor than the one that was called took the offer: it must not pose as it.
        cpu::halt_forever();
    }
    PROGRESS.store(ARRIVED, Ordering::Release);
    if apic::init().is_err() {
        PROGRESS.store(FAILED, Ordering::Release);
        cpu::halt_forever();
    }
    timer::init();
    PROGRESS.store(READY, Ordering::Release);
    tsc::follow(me);
    // Halted, not spinning: a sibling thread, or an emulator's host, has better things to run.
    while RELEASE.load(Ordering::Acquire) == 0 {
        me.take_deferred();
        crate::measure::serve(me);
        interrupts::wait();
    }
    me.take_deferred();
    crate::enter_run_loop()
}
