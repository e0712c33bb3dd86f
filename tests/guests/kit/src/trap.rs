//! Exceptions and interrupts: who handles a vector, and how a test catches a fault that it provokes.
//!
//! A vector with a handler ([`on`]) goes there. Else an exception that strikes inside
//! [`attempt!`](crate::attempt) is noted and execution goes on behind it. Else an interrupt (and NMI) is counted
//! and, from the local APIC, ended. An exception that nobody expects fails the running test and ends the guest.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};

use crate::boot::{CODE64, FIRST_TASK, MAX_CPUS};
use crate::{Cpu, apic, cpu, print, this};

/// What an exception or interrupt leaves on the stack, and the registers below it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "they are called what they are")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// An exception that [`attempt!`](crate::attempt) caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught {
    /// Its vector.
    pub vector: u8,
    /// Its error code, 0 if it has none.
    pub error: u32,
    /// Where it struck.
    pub rip: u64,
    /// CR2 then.
    pub cr2: u64,
}

global_asm!(
    ".text",
    ".balign 16",
    ".global kit_vectors",
    "kit_vectors:",
    ".set kit_vector, 0",
    ".rept 256",
    ".balign 16",
    // The exceptions that bring an error code.
    ".if (kit_vector == 8) || ((kit_vector >= 10) && (kit_vector <= 14)) || (kit_vector == 17) || (kit_vector == 21) || (kit_vector == 29) || (kit_vector == 30)",
    ".else",
    "push 0",
    ".endif",
    "push kit_vector",
    "jmp kit_common",
    ".set kit_vector, kit_vector + 1",
    ".endr",
    "kit_common:",
    "push rax; push rbx; push rcx; push rdx; push rsi; push rdi; push rbp",
    "push r8; push r9; push r10; push r11; push r12; push r13; push r14; push r15",
    "mov rdi, rsp",
    "cld",
    "mov rbp, rsp",
    "and rsp, -16",
    "call {trap}",
    "mov rsp, rbp",
    "pop r15; pop r14; pop r13; pop r12; pop r11; pop r10; pop r9; pop r8",
    "pop rbp; pop rdi; pop rsi; pop rdx; pop rcx; pop rbx; pop rax",
    "add rsp, 16",
    "iretq",
    trap = sym trap,
);

/// Bytes between the entries of two vectors.
const STUB_BYTES: usize = 16;

#[repr(C, align(4096))]
struct Idt(UnsafeCell<[[u64; 2]; 256]>);
// SAFETY: written before the other processors start, or by a test that says that it is alone.
unsafe impl Sync for Idt {}
static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 256]));

/// A task segment: only its stacks are of use (SDM 3A 8.7).
#[repr(C, packed(4))]
#[derive(Debug)]
pub struct Task {
    reserved: u32,
    /// Stack of ring 0 for what comes from ring 3.
    pub rsp0: u64,
    other_rings: [u64; 2],
    reserved2: u64,
    /// Stacks that an interrupt gate may name.
    pub ist: [u64; 7],
    reserved3: u64,
    reserved4: u16,
    io_map: u16,
}

#[repr(C, align(4096))]
struct Tasks(UnsafeCell<[Task; MAX_CPUS]>);
// SAFETY: each element is written by its own processor.
unsafe impl Sync for Tasks {}
static TASKS: Tasks = Tasks(UnsafeCell::new(
    [const {
        Task {
            reserved: 0,
            rsp0: 0,
            other_rings: [0; 2],
            reserved2: 0,
            ist: [0; 7],
            reserved3: 0,
            reserved4: 0,
            io_map: 104,
        }
    }; MAX_CPUS],
));

const SPARE_BYTES: usize = 8 << 10;
#[repr(C, align(4096))]
struct Spare(UnsafeCell<[[u8; SPARE_BYTES]; MAX_CPUS]>);
// SAFETY: each element is a stack of one processor.
unsafe impl Sync for Spare {}
/// Stacks for faults that leave no other stack.
static SPARE: Spare = Spare(UnsafeCell::new([[0; SPARE_BYTES]; MAX_CPUS]));

/// Handlers by vector: addresses of `fn(&mut Frame)`.
static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];
/// Whether counted interrupts are ended at the local APIC.
static ENDING: AtomicBool = AtomicBool::new(true);

/// Who handles a vector.
pub type Handler = fn(&mut Frame);

/// `vector` goes to `handler` from now on.
pub fn on(vector: u8, handler: Handler) {
    HANDLERS[usize::from(vector)].store(handler as usize, SeqCst);
}

/// `vector` is counted or caught again.
pub fn off(vector: u8) {
    HANDLERS[usize::from(vector)].store(0, SeqCst);
}

/// Whether interrupts without a handler of their own are ended at the local APIC by themselves.
pub fn end_interrupts(yes: bool) {
    ENDING.store(yes, SeqCst);
}

/// The gate of `vector`, for tests that break it.
pub fn gate(vector: u8) -> *mut [u64; 2] {
    let table: *mut [[u64; 2]; 256] = IDT.0.get();
    table.cast::<[u64; 2]>().wrapping_add(usize::from(vector))
}

/// The task segment of this processor.
pub fn task() -> *mut Task {
    TASKS.0.get().cast::<Task>().wrapping_add(this().index)
}

/// A stack of this processor that nothing else uses: its upper end.
pub fn spare_stack(index: usize) -> u64 {
    SPARE.0.get() as u64 + (SPARE_BYTES * (index + 1)) as u64
}

/// An interrupt gate to the stub of `vector`, through stack `ist` (0: the current one).
pub fn set_gate(vector: u8, ist: u8) {
    unsafe extern "C" {
        static kit_vectors: u8;
    }
    let entry = &raw const kit_vectors as u64 + u64::from(vector) * STUB_BYTES as u64;
    let low = entry & 0xffff
        | u64::from(CODE64) << 16
        | u64::from(ist) << 32
        | 0x8E << 40
        | (entry >> 16 & 0xffff) << 48;
    // SAFETY: a gate of our own table.
    unsafe { gate(vector).write_volatile([low, entry >> 32]) };
}

/// The descriptor that LIDT takes.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug)]
pub struct TablePointer {
    /// Bytes less one.
    pub limit: u16,
    /// First byte.
    pub base: u64,
}

/// What LIDT is given for the kit's table.
pub fn idt_pointer() -> TablePointer {
    TablePointer {
        limit: 4095,
        base: IDT.0.get() as u64,
    }
}

/// Loads a table of gates.
pub fn load_idt(pointer: &TablePointer) {
    // SAFETY: the table is ours or a test's that means it.
    unsafe { core::arch::asm!("lidt [{}]", in(reg) pointer, options(nostack)) };
}

/// Gates and task segment of processor `index`.
pub(crate) fn install(index: usize) {
    if index == 0 {
        (0..=255).for_each(|vector| set_gate(vector, 0));
        set_gate(8, 1);
    }
    unsafe extern "C" {
        static mut kit_gdt: [u64; 10 + 2 * MAX_CPUS];
    }
    let task = TASKS.0.get().cast::<Task>().wrapping_add(index);
    let selector = FIRST_TASK + 16 * index as u16;
    let base = task as u64;
    let low = 103 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    // SAFETY: this processor's own task segment and descriptor, before anything uses them.
    unsafe {
        (*task).rsp0 = spare_stack(index) - SPARE_BYTES as u64 / 2;
        (*task).ist = [spare_stack(index); 7];
        let entry = (&raw mut kit_gdt)
            .cast::<u64>()
            .add(usize::from(selector) / 8);
        entry.write_volatile(low);
        entry.add(1).write_volatile(base >> 32);
        core::arch::asm!("ltr {:x}", in(reg) selector, options(nostack));
    }
    load_idt(&idt_pointer());
}

/// Where [`attempt!`](crate::attempt) leaves the address to go on at.
pub fn fixup() -> *mut u64 {
    // SAFETY: this processor's own cell.
    unsafe { *this().caught.get() = None };
    this().fixup.get()
}

/// What the last [`attempt!`](crate::attempt) caught.
pub fn caught() -> Option<Caught> {
    // SAFETY: this processor's own cell.
    unsafe { *this().caught.get() }
}

/// Runs assembly that may fault: evaluates to `Option<Caught>`. Templates, then a semicolon, then named operands.
#[macro_export]
macro_rules! attempt {
    ($($template:literal),+ $(,)? $(; $($operands:tt)*)?) => {{
        let slot = $crate::trap::fixup();
        // SAFETY: a fault goes on at label 77 with all registers as they were; what else the test does to its
        // machine is the test's purpose.
        #[allow(unused_unsafe, reason = "it may stand inside an unsafe block")]
        unsafe {
            core::arch::asm!(
                "lea {kit_next}, [rip + 77f]",
                "mov [{kit_slot}], {kit_next}",
                $($template,)+
                "77:",
                "mov qword ptr [{kit_slot}], 0",
                kit_next = out(reg) _,
                kit_slot = in(reg) slot,
                $($($operands)*)?
            );
        }
        $crate::trap::caught()
    }};
}

static NESTED: AtomicU32 = AtomicU32::new(0);

/// Every exception and interrupt arrives here.
extern "C" fn trap(frame: &mut Frame) {
    let vector = (frame.vector & 0xff) as u8;
    let handler = HANDLERS[usize::from(vector)].load(SeqCst);
    if handler != 0 {
        // SAFETY: only `on` stores here, and it stores a `Handler`.
        let handler: Handler = unsafe { core::mem::transmute::<usize, Handler>(handler) };
        return handler(frame);
    }
    let me = this();
    // SAFETY: this processor's own cells.
    let next = unsafe { *me.fixup.get() };
    if vector < 32 && vector != 2 && next != 0 {
        // SAFETY: as above.
        unsafe {
            *me.fixup.get() = 0;
            *me.caught.get() = Some(Caught {
                vector,
                error: frame.error as u32,
                rip: frame.rip,
                cr2: cpu::cr2(),
            });
        }
        frame.rip = next;
        frame.rflags &= !cpu::TF;
        return;
    }
    if vector < 32 && vector != 2 {
        if NESTED.fetch_add(1, SeqCst) > 2 {
            crate::power::off(1);
        }
        print!(
            "unexpected exception {vector} error {:#x} at {:#x} on processor {}: cr2 {:#x} rsp {:#x} rflags {:#x}",
            frame.error,
            frame.rip,
            me.index,
            cpu::cr2(),
            frame.rsp,
            frame.rflags
        );
        crate::registry::collapse("an exception came that it did not expect");
    }
    count(me, vector, frame);
    if vector >= 32 && ENDING.load(SeqCst) {
        apic::end_of_interrupt();
    }
}

/// Counts an interrupt, as those without a handler are.
pub fn count(me: &Cpu, vector: u8, frame: &Frame) {
    me.last_rip.store(frame.rip, SeqCst);
    me.last_tsc.store(cpu::tsc(), SeqCst);
    me.hits[usize::from(vector)].fetch_add(1, SeqCst);
}

const _: () = assert!(offset_of!(Task, ist) == 36, "SDM 3A figure 8-11");
