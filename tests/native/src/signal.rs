//! Faults of the instruction, which arrive as signals.

use crate::{Fault, State};
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::sync::Once;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

/// Address of the code page; no other place's faults are ours.
static CODE: AtomicU64 = AtomicU64::new(0);
/// Where the registers go.
static STATE: AtomicU64 = AtomicU64::new(0);
/// Where the run goes on.
static RESUME: AtomicU64 = AtomicU64::new(0);
/// Vector with bit 63 set, error code, CR2.
static FAULT: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
const TAKEN: u64 = 1 << 63;

thread_local! {
    /// A stack for the handler; the kernel keeps its address for the thread's life.
    static STACK: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Handles the faults of this thread's instructions from now on.
pub(crate) fn install() {
    static HANDLERS: Once = Once::new();
    STACK.with(|stack| {
        let mut stack = stack.borrow_mut();
        if stack.is_some() {
            return;
        }
        let memory = stack.insert(vec![0; 256 * 1024]);
        let alternate = libc::stack_t {
            ss_sp: memory.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: memory.len(),
        };
        // SAFETY: the memory lives as long as the thread, whose alternate stack it becomes.
        let set = unsafe { libc::sigaltstack(&raw const alternate, std::ptr::null_mut()) };
        assert_eq!(set, 0, "no stack for the handler");
    });
    HANDLERS.call_once(|| {
        // SAFETY: a zeroed sigaction is a valid one, and the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            for signal in [
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGILL,
                libc::SIGFPE,
                libc::SIGTRAP,
            ] {
                assert_eq!(
                    libc::sigaction(signal, &raw const action, std::ptr::null_mut()),
                    0
                );
            }
        }
    });
}

/// The next fault on this code page ends a run.
pub(crate) fn watch(code: u64, state: *mut State, resume: u64) {
    FAULT[0].store(0, SeqCst);
    CODE.store(code, SeqCst);
    STATE.store(state as u64, SeqCst);
    RESUME.store(resume, SeqCst);
}

/// The fault that ended the run, if one did.
pub(crate) fn taken() -> Option<Fault> {
    CODE.store(0, SeqCst);
    let [vector, error_code, cr2] = FAULT.each_ref().map(|word| word.load(SeqCst));
    (vector & TAKEN != 0).then_some(Fault {
        vector: vector as u8,
        error_code: error_code as u32,
        cr2,
    })
}

/// The kernel's registers in the processor's numbering.
const ORDER: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn handler(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext_t that is the handler's alone until it returns.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let register = |n: libc::c_int| registers[n as usize] as u64;
    let code = CODE.load(SeqCst);
    let rip = register(libc::REG_RIP);
    if code == 0 || !(code..code + 32).contains(&rip) {
        // Not ours: it happens again, with the default action.
        // SAFETY: restores the default disposition.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let state = STATE.load(SeqCst) as *mut State;
    let gpr = ORDER.map(register);
    // SAFETY: `watch` got a pointer that is valid until the run, which this fault interrupted, has ended; nobody
    // else looks at the state meanwhile.
    unsafe {
        (*state).gpr = gpr;
        (*state).rflags = register(libc::REG_EFL) & !(1 << 16);
    }
    FAULT[1].store(register(libc::REG_ERR), SeqCst);
    FAULT[2].store(register(libc::REG_CR2), SeqCst);
    FAULT[0].store(register(libc::REG_TRAPNO) | TAKEN, SeqCst);
    registers[libc::REG_RIP as usize] = RESUME.load(SeqCst) as i64;
}
