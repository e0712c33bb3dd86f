//! QEMU's plugin interface, as far as it is used (QEMU, include/qemu/qemu-plugin.h, API 3 to 5).
//!
//! The functions are exported by the emulator that loads the library. Version 3 (QEMU 9.1) is the
//! first in which `qemu_plugin_insn_data` copies into the caller's buffer.
#![expect(
    unsafe_code,
    reason = "a C interface: the emulator calls in with raw pointers and is called with them"
)]

use crate::counts::Access;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;

/// The API that this plugin is written against; QEMU refuses to load it where that is not offered.
const API: c_int = 3;
/// The newest API whose functions are known to be the same.
const NEWEST: c_int = 5;
/// `QEMU_PLUGIN_CB_NO_REGS`.
const NO_REGISTERS: c_int = 0;
/// `QEMU_PLUGIN_MEM_RW`.
const LOADS_AND_STORES: c_int = 3;
/// Bytes of the longest x86 instruction.
const INSTRUCTION_MAX: usize = 15;

/// Read by QEMU before it calls `qemu_plugin_install`.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = API;

/// `qemu_info_t`: what QEMU says about itself.
#[repr(C)]
#[derive(Debug)]
pub struct Info {
    target_name: *const c_char,
    api_min: c_int,
    api_current: c_int,
    system_emulation: bool,
    smp_vcpus: c_int,
    max_vcpus: c_int,
}

const _: () = assert!(
    std::mem::offset_of!(Info, smp_vcpus) == 20 && size_of::<Info>() == 32,
    "qemu_info_t on a 64-bit host"
);

type TranslatedFn = extern "C" fn(id: u64, block: *mut c_void);
type MemoryFn = extern "C" fn(vcpu: c_uint, info: u32, address: u64, data: *mut c_void);
type ExecutedFn = extern "C" fn(vcpu: c_uint, data: *mut c_void);
type VcpuFn = extern "C" fn(id: u64, vcpu: c_uint);
type ExitFn = extern "C" fn(id: u64, data: *mut c_void);

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: TranslatedFn);
    fn qemu_plugin_register_vcpu_init_cb(id: u64, callback: VcpuFn);
    fn qemu_plugin_register_vcpu_idle_cb(id: u64, callback: VcpuFn);
    fn qemu_plugin_register_vcpu_resume_cb(id: u64, callback: VcpuFn);
    fn qemu_plugin_register_atexit_cb(id: u64, callback: ExitFn, data: *mut c_void);
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const c_void, index: usize) -> *mut c_void;
    fn qemu_plugin_insn_data(
        instruction: *const c_void,
        buffer: *mut c_void,
        bytes: usize,
    ) -> usize;
    fn qemu_plugin_register_vcpu_mem_cb(
        instruction: *mut c_void,
        callback: MemoryFn,
        flags: c_int,
        which: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut c_void,
        callback: ExecutedFn,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut c_void,
        callback: ExecutedFn,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_insn_vaddr(instruction: *const c_void) -> u64;
    fn qemu_plugin_get_hwaddr(info: u32, address: u64) -> *mut c_void;
    fn qemu_plugin_hwaddr_is_io(address: *const c_void) -> bool;
    fn qemu_plugin_hwaddr_phys_addr(address: *const c_void) -> u64;
    fn qemu_plugin_mem_is_store(info: u32) -> bool;
}

/// What the plugin does with the emulator's calls. Any number of threads may call at once.
pub(crate) trait Handler {
    /// A vCPU's thread starts.
    fn started(vcpu: usize);
    /// Code was translated; the handler chooses what to hear about.
    fn translated(block: &Block<'_>);
    /// Whether an access of `vcpu` by an instruction watched with `watch` matters now.
    fn wants(vcpu: usize, watch: usize) -> bool;
    /// A watched instruction of `vcpu` accessed memory, at this linear address.
    fn accessed(vcpu: usize, watch: usize, linear: u64, access: Access);
    /// An instruction of `vcpu` that was watched with `watch` is about to be executed.
    fn executed(vcpu: usize, watch: usize);
    /// A block of `vcpu` that was watched with `watch` begins.
    fn entered(vcpu: usize, watch: usize);
    /// A block of so many instructions of `vcpu` begins, whose execution is timed.
    fn timed(vcpu: usize, instructions: usize);
    /// A vCPU has nothing to execute.
    fn idles(vcpu: usize);
    /// It has again.
    fn resumes(vcpu: usize);
    /// The emulator ends.
    fn ended();
}

/// Code being translated; valid inside [`Handler::translated`].
#[derive(Debug)]
pub(crate) struct Block<'a> {
    handle: *mut c_void,
    _during_callback: PhantomData<&'a ()>,
}

/// An instruction of a [`Block`].
#[derive(Debug)]
pub(crate) struct Instruction<'a> {
    handle: *mut c_void,
    _of_block: PhantomData<&'a ()>,
}

impl Block<'_> {
    /// Its instructions in the order of execution.
    pub(crate) fn instructions(&self) -> impl Iterator<Item = Instruction<'_>> {
        // SAFETY: the handle is the one that QEMU gave to the callback in whose course this block exists.
        let count = unsafe { qemu_plugin_tb_n_insns(self.handle) };
        (0..count).map(|index| {
            // SAFETY: as above, and `index` is below the number of instructions that QEMU has just given.
            let handle = unsafe { qemu_plugin_tb_get_insn(self.handle, index) };
            Instruction {
                handle,
                _of_block: PhantomData,
            }
        })
    }

    /// Calls [`Handler::entered`] with `watch` at each execution.
    pub(crate) fn watch_entry<H: Handler>(&self, watch: usize) {
        // SAFETY: as in `Instruction::watch_memory`, for the block whose callback is under way.
        unsafe {
            qemu_plugin_register_vcpu_tb_exec_cb(
                self.handle,
                entered::<H>,
                NO_REGISTERS,
                std::ptr::without_provenance_mut(watch),
            )
        }
    }
}

impl Block<'_> {
    /// Calls [`Handler::timed`] with `instructions` at each execution.
    pub(crate) fn time<H: Handler>(&self, instructions: usize) {
        // SAFETY: as in `watch_entry`.
        unsafe {
            qemu_plugin_register_vcpu_tb_exec_cb(
                self.handle,
                timed::<H>,
                NO_REGISTERS,
                std::ptr::without_provenance_mut(instructions),
            )
        }
    }
}

impl Instruction<'_> {
    /// Hands its bytes to `look`.
    pub(crate) fn bytes<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        let mut buffer = [0u8; INSTRUCTION_MAX];
        // SAFETY: the handle belongs to a block whose callback is under way, and since API 3 QEMU copies at most the
        // given number of bytes, all of which the buffer has.
        let length =
            unsafe { qemu_plugin_insn_data(self.handle, buffer.as_mut_ptr().cast(), buffer.len()) };
        look(buffer.get(..length).unwrap_or(&[]))
    }

    /// Its linear address.
    pub(crate) fn address(&self) -> u64 {
        // SAFETY: the handle belongs to a block whose callback is under way.
        unsafe { qemu_plugin_insn_vaddr(self.handle) }
    }

    /// Calls [`Handler::accessed`] with `watch` for each of its data accesses.
    pub(crate) fn watch_memory<H: Handler>(&self, watch: usize) {
        // SAFETY: the handle belongs to a block whose callback is under way; the data pointer is a number that
        // nobody follows; the callback is a function of this library, which QEMU never unloads.
        unsafe {
            let data = std::ptr::without_provenance_mut(watch);
            qemu_plugin_register_vcpu_mem_cb(
                self.handle,
                memory::<H>,
                NO_REGISTERS,
                LOADS_AND_STORES,
                data,
            );
        }
    }

    /// Calls [`Handler::timed`] with one instruction for each of its data accesses.
    pub(crate) fn time_accesses<H: Handler>(&self) {
        // SAFETY: as in `watch_memory`.
        unsafe {
            qemu_plugin_register_vcpu_mem_cb(
                self.handle,
                repeated::<H>,
                NO_REGISTERS,
                LOADS_AND_STORES,
                std::ptr::null_mut(),
            );
        }
    }

    /// Calls [`Handler::executed`] with `watch` before each execution.
    pub(crate) fn watch_execution<H: Handler>(&self, watch: usize) {
        // SAFETY: as in `watch_memory`.
        unsafe {
            qemu_plugin_register_vcpu_insn_exec_cb(
                self.handle,
                executed::<H>,
                NO_REGISTERS,
                std::ptr::without_provenance_mut(watch),
            )
        }
    }
}

extern "C" fn translated<H: Handler>(_id: u64, block: *mut c_void) {
    H::translated(&Block {
        handle: block,
        _during_callback: PhantomData,
    });
}

extern "C" fn memory<H: Handler>(vcpu: c_uint, info: u32, address: u64, watch: *mut c_void) {
    if !H::wants(vcpu as usize, watch.addr()) {
        return;
    }
    // SAFETY: called by QEMU for an access with the `info` and `address` of that access, which is what these
    // functions want; the handle may be null (QEMU could not look the address up) and is checked.
    let access = unsafe {
        let physical = qemu_plugin_get_hwaddr(info, address);
        if physical.is_null() {
            return;
        }
        match (
            qemu_plugin_hwaddr_is_io(physical),
            qemu_plugin_mem_is_store(info),
        ) {
            (true, _) => Access::Device,
            (false, false) => Access::Load(qemu_plugin_hwaddr_phys_addr(physical)),
            (false, true) => Access::Store(qemu_plugin_hwaddr_phys_addr(physical)),
        }
    };
    H::accessed(vcpu as usize, watch.addr(), address, access);
}

extern "C" fn repeated<H: Handler>(vcpu: c_uint, _info: u32, _address: u64, _data: *mut c_void) {
    H::timed(vcpu as usize, 1);
}

extern "C" fn executed<H: Handler>(vcpu: c_uint, watch: *mut c_void) {
    H::executed(vcpu as usize, watch.addr());
}

extern "C" fn entered<H: Handler>(vcpu: c_uint, watch: *mut c_void) {
    H::entered(vcpu as usize, watch.addr());
}

extern "C" fn timed<H: Handler>(vcpu: c_uint, instructions: *mut c_void) {
    H::timed(vcpu as usize, instructions.addr());
}

extern "C" fn idles<H: Handler>(_id: u64, vcpu: c_uint) {
    H::idles(vcpu as usize);
}

extern "C" fn resumes<H: Handler>(_id: u64, vcpu: c_uint) {
    H::resumes(vcpu as usize);
}

extern "C" fn started<H: Handler>(_id: u64, vcpu: c_uint) {
    H::started(vcpu as usize);
}

extern "C" fn ended<H: Handler>(_id: u64, _data: *mut c_void) {
    H::ended();
}

/// Asks QEMU for its calls.
pub(crate) fn register<H: Handler>(id: u64) {
    // SAFETY: called while the plugin with this `id` is being installed; the callbacks are functions of this
    // library, which QEMU never unloads.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated::<H>);
        qemu_plugin_register_vcpu_init_cb(id, started::<H>);
        qemu_plugin_register_vcpu_idle_cb(id, idles::<H>);
        qemu_plugin_register_vcpu_resume_cb(id, resumes::<H>);
        qemu_plugin_register_atexit_cb(id, ended::<H>, std::ptr::null_mut());
    }
}

/// What is to be known before anything else is called.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Emulator {
    /// vCPUs of the machine.
    pub(crate) vcpus: usize,
}

impl Info {
    /// Checks that this emulator is one that the plugin understands.
    fn check(&self) -> Result<Emulator, String> {
        if self.api_min > API || !(API..=NEWEST).contains(&self.api_current) {
            return Err(format!(
                "this QEMU offers plugin API {} to {}, but {API} to {NEWEST} are known",
                self.api_min, self.api_current
            ));
        }
        // SAFETY: QEMU gives a zero-terminated string that lives as long as this structure.
        let target = unsafe { CStr::from_ptr(self.target_name) };
        if target != c"x86_64" || !self.system_emulation {
            return Err(format!(
                "the target must be a whole x86_64 machine, but it is {target:?}"
            ));
        }
        // With hot-plug there may be more vCPUs later; each index below this one may call.
        let vcpus = usize::try_from(self.smp_vcpus)
            .ok()
            .filter(|vcpus| *vcpus > 0);
        Ok(Emulator {
            vcpus: vcpus.ok_or("QEMU says that there are no vCPUs")?,
        })
    }
}

/// Called once by QEMU when it has loaded the library; 0 for success.
///
/// # Safety
/// As QEMU promises: `info` points to its description, `argv` to `argc` zero-terminated strings, all of
/// them live during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: the caller's promise.
    let info = unsafe { &*info };
    let count = usize::try_from(argc).unwrap_or(0);
    let argument = |index| {
        // SAFETY: the caller's promise, and `index` is below `argc`.
        unsafe { CStr::from_ptr(*argv.add(index)) }
            .to_str()
            .unwrap_or("(not UTF-8)")
    };
    let arguments: Vec<&str> = (0..count).map(argument).collect();
    match info
        .check()
        .and_then(|emulator| crate::witness::install(id, &emulator, &arguments))
    {
        Ok(()) => 0,
        Err(problem) => {
            eprintln!("lab plugin: {problem}");
            1
        }
    }
}
