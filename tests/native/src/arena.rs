//! The pages, and one run.

use crate::{signal, stub};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of data that an instruction may touch; the pages before and behind cannot be.
pub const WINDOW_BYTES: usize = 2 * PAGE;
const PAGE: usize = 4096;
/// Where things are in the arena.
pub(crate) const STATE: usize = PAGE;
const CODE: usize = 2 * PAGE;
const GUARD: usize = 4 * PAGE;
const WINDOW: usize = GUARD + PAGE;
const BYTES: usize = WINDOW + WINDOW_BYTES + PAGE;

static ONE: Mutex<()> = Mutex::new(());

/// What an instruction starts with and ends with. The stub knows the layout.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// General-purpose registers in the processor's numbering.
    pub gpr: [u64; 16],
    /// Flags.
    pub rflags: u64,
    pub(crate) host_rsp: u64,
    pub(crate) unused: [u64; 14],
    /// Vector registers, 256 bits of each; the upper halves stay zero without AVX.
    pub vectors: [[u8; 32]; 16],
}

impl Default for State {
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            rflags: 2,
            host_rsp: 0,
            unused: [0; 14],
            vectors: [[0; 32]; 16],
        }
    }
}

/// What stopped an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The exception's vector.
    pub vector: u8,
    /// Its error code.
    pub error_code: u32,
    /// The address of a page fault.
    pub cr2: u64,
}

/// Executable pages, and a window of data.
#[derive(Debug)]
pub struct Arena {
    base: *mut u8,
    exits: stub::Exits,
    _one: MutexGuard<'static, ()>,
}

impl Arena {
    /// Makes the pages.
    ///
    /// # Panics
    /// The system gives none.
    #[must_use]
    pub fn new() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a new private mapping, at an address of the system's choice, aliases nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED, "no pages to run code in");
        let base: *mut u8 = base.cast();
        let (code, exits) = stub::assemble(base as u64);
        for guard in [GUARD, WINDOW + WINDOW_BYTES] {
            // SAFETY: the page is in the mapping, and nothing refers to it.
            let protected =
                unsafe { libc::mprotect(base.add(guard).cast(), PAGE, libc::PROT_NONE) };
            assert_eq!(protected, 0, "the window has no guards");
        }
        assert!(code.len() <= PAGE);
        // SAFETY: the first page of the mapping has room for the stub, and nobody else refers to it.
        unsafe { base.copy_from_nonoverlapping(code.as_ptr(), code.len()) };
        signal::install();
        Self {
            base,
            exits,
            _one: one,
        }
    }

    /// Where instructions are put.
    #[must_use]
    pub fn code(&self) -> u64 {
        self.base as u64 + CODE as u64
    }

    /// Where the window of data begins.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.base as u64 + WINDOW as u64
    }

    /// Where a jump ends the run like the instruction's end does.
    #[must_use]
    pub fn exit(&self) -> u64 {
        self.exits.done
    }

    /// The window's bytes.
    pub fn data(&mut self) -> &mut [u8; WINDOW_BYTES] {
        // SAFETY: the window is readable and writable memory of the mapping, borrowed with `self`; instructions
        // run only in `run`, which holds `&mut self`.
        unsafe { &mut *self.base.add(WINDOW).cast() }
    }

    /// Executes the instruction `bytes`, which leaves by its end or by [`Arena::exit`].
    ///
    /// # Errors
    /// The fault that it raised; `state` is then what it left.
    ///
    /// # Panics
    /// It is longer than an instruction.
    pub fn run(&mut self, bytes: &[u8], state: &mut State) -> Result<(), Fault> {
        assert!(bytes.len() <= 15);
        let mut code = [0x90; 32];
        code[..bytes.len()].copy_from_slice(bytes);
        // JMP [RIP+0], and the address.
        let rest = &mut code[bytes.len()..];
        rest[..6].copy_from_slice(&[0xFF, 0x25, 0, 0, 0, 0]);
        rest[6..14].copy_from_slice(&self.exits.done.to_le_bytes());
        // SAFETY: code and state pages belong to this arena alone. The stub keeps the calling convention: it restores
        // every register that a callee must, the stack pointer and the direction flag. What the instruction may do
        // is the caller's to choose; tests give it addresses in or next to the window.
        unsafe {
            self.base
                .add(CODE)
                .copy_from_nonoverlapping(code.as_ptr(), code.len());
            let in_arena = self.base.add(STATE).cast::<State>();
            in_arena.write(*state);
            signal::watch(self.base as u64 + CODE as u64, in_arena, self.exits.fault);
            let entry: extern "sysv64" fn() = std::mem::transmute(self.base);
            entry();
            *state = in_arena.read();
        }
        state.host_rsp = 0;
        match signal::taken() {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is this arena's, and nothing refers to it any more.
        unsafe { libc::munmap(self.base.cast(), BYTES) };
    }
}
