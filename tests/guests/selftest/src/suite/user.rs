//! Ring 3: how it is entered and left, and what it may not do (SDM 3A 5; APM 2 6.1).

use core::arch::global_asm;
use core::cell::UnsafeCell;

use kit::page::{self, NO_EXECUTE, PRESENT, Page, USER, WRITE};
use kit::{
    CODE64, DATA, Frame, Test, USER_CODE32, USER_CODE64, USER_DATA, Verdict, cpu, ensure, trap,
};

pub const TESTS: &[Test] = &[
    Test::new("user-interrupt", by_interrupt),
    Test::new("user-privileged", privileged),
    Test::new("user-pages", pages),
    Test::new("user-syscall", syscall),
    Test::new("user-io-privilege", io_privilege),
    Test::new("user-alignment", alignment).unless(kit::lenient_processor),
    Test::new("user-wbinvd", || ends("WBINVD", &[0x0f, 0x09], 0, 13, 0))
        .unless(kit::lenient_processor),
    Test::new("user-tsc-disable", tsc_disable),
    Test::new("user-umip", umip).unless(no_umip),
];

const LEAVE: u8 = 0x65;
const CODE_PAGE: u64 = 32;
const STACK_PAGE: u64 = 33;
const CAUGHT: [u8; 5] = [6, 13, 14, 17, LEAVE];

static CODE: Page = Page::new();
static STACK: Page = Page::new();

struct Context(UnsafeCell<[u64; 2]>);
// SAFETY: one processor at a time runs these tests.
unsafe impl Sync for Context {}
/// Where the kernel goes on: RIP and RSP.
static CONTEXT: Context = Context(UnsafeCell::new([0; 2]));

struct Left(UnsafeCell<Option<Frame>>);
// SAFETY: as above.
unsafe impl Sync for Left {}
/// How the user left.
static LEFT: Left = Left(UnsafeCell::new(None));

/// Whatever brought the user here, the kernel goes on behind its IRET.
fn leave(frame: &mut Frame) {
    // SAFETY: written and read by one processor.
    unsafe {
        *LEFT.0.get() = Some(*frame);
        [frame.rip, frame.rsp] = *CONTEXT.0.get();
    }
    frame.cs = CODE64.into();
    frame.ss = DATA.into();
    frame.rflags = 2;
}

/// Runs `code` in ring 3 until something brings it back; how.
fn run(code: &[u8], flags: u64) -> Option<Frame> {
    for (offset, byte) in code.iter().enumerate() {
        cpu::poke(CODE.address() + offset as u64, *byte);
    }
    page::set(CODE_PAGE, CODE.address(), PRESENT | USER);
    page::set(
        STACK_PAGE,
        STACK.address(),
        PRESENT | WRITE | USER | NO_EXECUTE,
    );
    CAUGHT.iter().for_each(|vector| trap::on(*vector, leave));
    // SAFETY: our own gate, which the user may use.
    unsafe { (*trap::gate(LEAVE))[0] |= 3 << 45 };
    // SAFETY: as in `leave`.
    unsafe { *LEFT.0.get() = None };
    // SAFETY: goes to the user and comes back to 2 by `leave`, with the stack as it was.
    unsafe {
        core::arch::asm!(
            "push rbx", "push rbp",
            "lea rax, [rip + 2f]", "mov [{context}], rax", "mov [{context} + 8], rsp",
            "push {ss}", "push {rsp}", "push {flags}", "push {cs}", "push {rip}", "iretq",
            "2: pop rbp", "pop rbx",
            context = in(reg) CONTEXT.0.get(), ss = const USER_DATA, rsp = in(reg) page::at(STACK_PAGE) + 4096,
            flags = in(reg) flags | 2, cs = const USER_CODE64, rip = in(reg) page::at(CODE_PAGE),
            out("rax") _, out("rcx") _, out("rdx") _, out("rdi") _, out("rsi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _,
        );
    }
    CAUGHT.iter().for_each(|vector| trap::off(*vector));
    // SAFETY: as in `leave`.
    unsafe { *LEFT.0.get() }
}

/// Fails unless `code` ends by `vector` with `error`.
fn ends(what: &str, code: &[u8], flags: u64, vector: u8, error: u64) -> Verdict {
    let left = run(code, flags);
    ensure!(
        left.is_some_and(|f| f.vector == u64::from(vector) && f.error == error),
        "{what} in ring 3 ends by {:?}, not {vector} with {error:#x}",
        left.map(|f| (f.vector, f.error))
    );
    ensure!(
        left.is_some_and(|f| f.cs & 3 == 3),
        "{what} left from ring 0"
    );
    Ok(())
}

fn by_interrupt() -> Verdict {
    // mov eax, 0x1234; int 0x65
    let left = run(&[0xb8, 0x34, 0x12, 0, 0, 0xcd, LEAVE], cpu::IF);
    let Some(f) = left else {
        ensure!(false, "the user never left");
        return Ok(());
    };
    ensure!(
        f.cs == u64::from(USER_CODE64) && f.ss == u64::from(USER_DATA),
        "it left from {:#x} and {:#x}",
        f.cs,
        f.ss
    );
    ensure!(f.rax == 0x1234, "it brought {:#x}", f.rax);
    ensure!(
        f.rsp == page::at(STACK_PAGE) + 4096,
        "its stack was at {:#x}",
        f.rsp
    );
    ensure!(f.rip == page::at(CODE_PAGE) + 7, "it left at {:#x}", f.rip);
    ensure!(f.rflags & cpu::IF != 0, "its interrupt flag was lost");
    Ok(())
}

fn privileged() -> Verdict {
    let cases: [(&str, &[u8]); 11] = [
        ("HLT", &[0xf4]),
        ("CLI", &[0xfa]),
        ("IN", &[0xe4, 0x61]),
        ("OUT", &[0xe6, 0x80]),
        ("MOV from CR3", &[0x0f, 0x20, 0xd8]),
        ("MOV to CR8", &[0x44, 0x0f, 0x22, 0xc0]),
        ("MOV from DR7", &[0x0f, 0x21, 0xf8]),
        ("RDMSR", &[0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32]),
        ("INVLPG", &[0x0f, 0x01, 0x38]),
        ("LMSW", &[0x0f, 0x01, 0xf0]),
        ("REP INSB", &[0xf3, 0x6c]),
    ];
    for (what, code) in cases {
        ends(what, code, 0, 13, 0)?;
    }
    // A gate that is the kernel's alone: its number, and the table's bit.
    ends("INT 50h", &[0xcd, 0x50], 0, 13, 0x50 * 8 + 2)?;
    ends("UD2", &[0x0f, 0x0b], 0, 6, 0)?;
    // CPUID is for everybody.
    ends("CPUID and INT", &[0x0f, 0xa2, 0xcd, LEAVE], 0, LEAVE, 0)
}

fn pages() -> Verdict {
    // mov rax, [0x100000]; mov [0x100000], rax
    ends(
        "a load from the kernel",
        &[0x48, 0x8b, 0x04, 0x25, 0, 0, 0x10, 0],
        0,
        14,
        5,
    )?;
    ends(
        "a store to the kernel",
        &[0x48, 0x89, 0x04, 0x25, 0, 0, 0x10, 0],
        0,
        14,
        7,
    )?;
    // jmp to the stack: mov rax, rsp; dec rax; jmp rax
    ends(
        "code on the stack",
        &[0x48, 0x89, 0xe0, 0x48, 0xff, 0xc8, 0xff, 0xe0],
        0,
        14,
        0x15,
    )?;
    // push; pop; int
    ends("PUSH and INT", &[0x50, 0x58, 0xcd, LEAVE], 0, LEAVE, 0)
}

global_asm!(
    ".text",
    ".global user_syscall_entry",
    "user_syscall_entry:",
    "inc rax",
    "mov rdx, rcx",
    "mov rsi, r11",
    "mov edi, cs",
    "sysretq",
);

fn syscall() -> Verdict {
    unsafe extern "C" {
        static user_syscall_entry: u8;
    }
    let kept = [0xc000_0081, 0xc000_0082, 0xc000_0084].map(|msr| (msr, cpu::rdmsr(msr)));
    let star = u64::from(USER_CODE32) << 48 | u64::from(CODE64) << 32;
    cpu::wrmsr(0xc000_0081, star);
    cpu::wrmsr(0xc000_0082, &raw const user_syscall_entry as u64);
    cpu::wrmsr(0xc000_0084, 0x700);
    // mov eax, 41; syscall; mov r8d, cs; mov r9d, ss; int 0x65
    let code = [
        0xb8, 41, 0, 0, 0, 0x0f, 0x05, 0x41, 0x8c, 0xc8, 0x41, 0x8c, 0xd1, 0xcd, LEAVE,
    ];
    let left = run(&code, cpu::IF);
    kept.iter()
        .for_each(|(msr, value)| cpu::wrmsr(*msr, *value));
    let Some(f) = left else {
        ensure!(false, "the user never left");
        return Ok(());
    };
    ensure!(
        f.vector == u64::from(LEAVE),
        "it left by {} with {:#x} at {:#x}",
        f.vector,
        f.error,
        f.rip
    );
    ensure!(f.rax == 42, "the kernel made 41 {}", f.rax);
    ensure!(f.rdx == page::at(CODE_PAGE) + 7, "RCX held {:#x}", f.rdx);
    ensure!(f.rsi & cpu::IF != 0, "R11 held {:#x}", f.rsi);
    ensure!(
        f.rdi & 0xffff == u64::from(CODE64),
        "the kernel ran in {:#x}",
        f.rdi
    );
    ensure!(
        (f.r8 & 0xffff, f.r9 & 0xffff) == (USER_CODE64.into(), USER_DATA.into()),
        "it came back to {:#x} and {:#x}",
        f.r8,
        f.r9
    );
    Ok(())
}

fn io_privilege() -> Verdict {
    const IOPL_3: u64 = 3 << 12;
    let code = [0xe4, 0x61, 0xfa, 0xfb, 0xcd, LEAVE]; // in al, 61h; cli; sti; int
    ends("IN with IOPL 3", &code, IOPL_3, LEAVE, 0)
}

fn alignment() -> Verdict {
    const AC: u64 = 1 << 18;
    let cr0 = cpu::cr0();
    cpu::set_cr0(cr0 | 1 << 18);
    // mov eax, [rsp - 7]
    let code = [0x8b, 0x44, 0x24, 0xf9, 0xcd, LEAVE];
    let checked = ends("a crooked load with AC", &code, AC, 17, 0);
    let free = ends("a crooked load without AC", &code, 0, LEAVE, 0);
    cpu::set_cr0(cr0);
    checked?;
    free
}

fn tsc_disable() -> Verdict {
    let code = [0x0f, 0x31, 0xcd, LEAVE]; // rdtsc; int
    let cr4 = cpu::cr4();
    cpu::set_cr4(cr4 | 1 << 2);
    let closed = ends("RDTSC with CR4.TSD", &code, 0, 13, 0);
    cpu::set_cr4(cr4 & !(1 << 2));
    let open = ends("RDTSC", &code, 0, LEAVE, 0);
    cpu::set_cr4(cr4);
    closed?;
    open
}

fn no_umip() -> Option<&'static str> {
    (cpu::cpuid_if_any(7, 0).ecx >> 2 & 1 == 0).then_some("CPUID has no UMIP")
}

fn umip() -> Verdict {
    // sidt [rsp - 32]; int
    let code = [0x0f, 0x01, 0x4c, 0x24, 0xe0, 0xcd, LEAVE];
    let cr4 = cpu::cr4();
    cpu::set_cr4(cr4 | 1 << 11);
    let closed = ends("SIDT with UMIP", &code, 0, 13, 0);
    cpu::set_cr4(cr4 & !(1 << 11));
    let open = ends("SIDT", &code, 0, LEAVE, 0);
    cpu::set_cr4(cr4);
    closed?;
    open
}
