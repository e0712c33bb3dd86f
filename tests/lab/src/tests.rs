//! The whole plugin under a make-believe emulator, which defines the functions that QEMU would.
#![expect(unsafe_code, reason = "the emulator's side of a C interface")]

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::Mutex;

type TranslatedFn = extern "C" fn(u64, *mut c_void);
type MemoryFn = extern "C" fn(c_uint, u32, u64, *mut c_void);
type ExecutedFn = extern "C" fn(c_uint, *mut c_void);
type ExitFn = extern "C" fn(u64, *mut c_void);

/// What the plugin registered; functions and data as numbers.
#[derive(Debug, Default)]
struct Registered {
    translated: Option<TranslatedFn>,
    vcpu: Option<extern "C" fn(u64, c_uint)>,
    exit: Option<ExitFn>,
}

static REGISTERED: Mutex<Registered> = Mutex::new(Registered {
    translated: None,
    vcpu: None,
    exit: None,
});

/// An instruction and what the plugin wants to hear about it.
#[derive(Debug)]
struct Code {
    bytes: Vec<u8>,
    memory: Option<(MemoryFn, usize)>,
    executed: Option<(ExecutedFn, usize)>,
    address: u64,
}

fn code(bytes: &[u8]) -> Code {
    Code {
        bytes: bytes.to_vec(),
        memory: None,
        executed: None,
        address: 0x40_0000,
    }
}

#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_register_vcpu_tb_trans_cb(_id: u64, callback: TranslatedFn) {
    REGISTERED.lock().expect("alone").translated = Some(callback);
}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_register_vcpu_init_cb(_id: u64, callback: extern "C" fn(u64, c_uint)) {
    REGISTERED.lock().expect("alone").vcpu = Some(callback);
}
/// This emulator's vCPUs never idle.
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_register_vcpu_idle_cb(_id: u64, _callback: extern "C" fn(u64, c_uint)) {}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_register_vcpu_resume_cb(_id: u64, _callback: extern "C" fn(u64, c_uint)) {
}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_register_atexit_cb(_id: u64, callback: ExitFn, _data: *mut c_void) {
    REGISTERED.lock().expect("alone").exit = Some(callback);
}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize {
    // SAFETY: `translate` passes a pointer to a vector that outlives the call.
    unsafe { &*block.cast::<Vec<Code>>() }.len()
}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_tb_get_insn(block: *mut c_void, index: usize) -> *mut c_void {
    // SAFETY: as above; nothing else refers to the vector during the call.
    std::ptr::from_mut(&mut unsafe { &mut *block.cast::<Vec<Code>>() }[index]).cast()
}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_insn_data(
    instruction: *const c_void,
    buffer: *mut c_void,
    bytes: usize,
) -> usize {
    // SAFETY: the pointer is one that `qemu_plugin_tb_get_insn` gave out during the same call.
    let source = unsafe { &(*instruction.cast::<Code>()).bytes };
    let length = source.len().min(bytes);
    // SAFETY: the plugin's buffer has `bytes` bytes.
    unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), buffer.cast(), length) };
    length
}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_register_vcpu_mem_cb(
    instruction: *mut c_void,
    callback: MemoryFn,
    flags: c_int,
    which: c_int,
    data: *mut c_void,
) {
    assert_eq!((flags, which), (0, 3));
    // SAFETY: as in `qemu_plugin_insn_data`.
    unsafe { (*instruction.cast::<Code>()).memory = Some((callback, data.addr())) };
}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_register_vcpu_insn_exec_cb(
    instruction: *mut c_void,
    callback: ExecutedFn,
    _flags: c_int,
    data: *mut c_void,
) {
    // SAFETY: as in `qemu_plugin_insn_data`.
    unsafe { (*instruction.cast::<Code>()).executed = Some((callback, data.addr())) };
}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_register_vcpu_tb_exec_cb(
    _block: *mut c_void,
    _callback: ExecutedFn,
    _flags: c_int,
    _data: *mut c_void,
) {
}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_insn_vaddr(instruction: *const c_void) -> u64 {
    // SAFETY: as in `qemu_plugin_insn_data`.
    unsafe { (*instruction.cast::<Code>()).address }
}
/// Here an address is its own handle, physical and virtual are the same, and device space begins at 3 GiB.
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_get_hwaddr(_info: u32, address: u64) -> *mut c_void {
    std::ptr::without_provenance_mut(address as usize)
}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_hwaddr_is_io(address: *const c_void) -> bool {
    address.addr() >= 3 << 30
}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_hwaddr_phys_addr(address: *const c_void) -> u64 {
    address.addr() as u64
}
#[unsafe(no_mangle)]
extern "C" fn qemu_plugin_mem_is_store(info: u32) -> bool {
    info == 1
}

/// `qemu_info_t` with the layout of QEMU's header.
#[repr(C)]
struct Info {
    target: *const c_char,
    api: [c_int; 2],
    system: bool,
    vcpus: [c_int; 2],
}

fn install(target: &std::ffi::CStr, api: [c_int; 2], arguments: &[&str]) -> c_int {
    let info = Info {
        target: target.as_ptr(),
        api,
        system: true,
        vcpus: [2, 2],
    };
    let arguments: Vec<CString> = arguments
        .iter()
        .map(|text| CString::new(*text).expect("no zero"))
        .collect();
    let pointers: Vec<*const c_char> = arguments.iter().map(|text| text.as_ptr()).collect();
    // SAFETY: all of it lives until the end of this function.
    unsafe {
        crate::abi::qemu_plugin_install(
            7,
            std::ptr::from_ref(&info).cast(),
            pointers.len() as c_int,
            pointers.as_ptr(),
        )
    }
}

fn translate(block: &mut Vec<Code>) {
    let translated = REGISTERED
        .lock()
        .expect("alone")
        .translated
        .expect("registered");
    translated(7, std::ptr::from_mut(block).cast());
}

impl Code {
    fn bytes_with(mut self, index: usize, byte: u8) -> Self {
        self.bytes[index] = byte;
        self
    }

    fn execute(&self, vcpu: u32) {
        if let Some((callback, data)) = self.executed {
            callback(vcpu, std::ptr::without_provenance_mut(data));
        }
    }

    fn access(&self, vcpu: u32, address: u64, store: bool) {
        if let Some((callback, data)) = self.memory {
            callback(
                vcpu,
                store.into(),
                address,
                std::ptr::without_provenance_mut(data),
            );
        }
    }
}

/// One test, since the plugin's state is one per process, as in QEMU.
#[test]
fn the_plugin_counts_what_is_behind_a_tag_and_nothing_else() {
    let out = std::env::temp_dir().join(format!("perigee-lab-{}.json", std::process::id()));
    let out_argument = format!("out={}", out.display());
    let arguments = [
        &out_argument[..],
        "cpus=0:1",
        "nodes=512:512",
        "pages=tagged",
        "host=count",
    ];
    assert_eq!(install(c"aarch64", [2, 4], &arguments), 1, "another target");
    assert_eq!(install(c"x86_64", [0, 1], &arguments), 1, "QEMU 7.2");
    assert_eq!(
        install(c"x86_64", [2, 9], &arguments),
        1,
        "an unknown future"
    );
    assert_eq!(install(c"x86_64", [2, 4], &arguments[..1]), 1, "no map");
    assert!(
        REGISTERED.lock().expect("alone").translated.is_none(),
        "nothing was registered yet"
    );
    assert_eq!(install(c"x86_64", [2, 4], &arguments), 0);
    let vcpu = REGISTERED.lock().expect("alone").vcpu.expect("registered");
    for index in 0..2 {
        std::thread::spawn(move || vcpu(7, index))
            .join()
            .expect("no panic");
    }

    let tag = |number: u8| code(&[0x0f, 0x1f, 0x84, 0x00, number, 0, 0x47, 0x50]);
    let load = || code(&[0x48, 0x8b, 0x06]);
    let mut plain = vec![load(), load()];
    translate(&mut plain);
    assert!(
        plain.iter().all(|code| code.memory.is_none()),
        "untagged code runs at full speed"
    );

    let mut tagged = vec![load(), tag(3), load(), load()];
    translate(&mut tagged);
    let heard: Vec<bool> = tagged.iter().map(|code| code.memory.is_some()).collect();
    assert_eq!(
        heard,
        [false, false, true, true],
        "what is before the tag does not count"
    );
    tagged[0].access(0, 0, false);
    tagged[2].access(0, 0x1000, false);
    tagged[2].access(0, 600 << 20, true);
    tagged[3].access(1, 600 << 20, false);
    tagged[3].access(1, 2 << 30, false);
    tagged[3].access(1, 3 << 30, true);

    let mut marker = vec![code(&[0x0f, 0x1f, 0x84, 0x00, 0xfe, 0xff, 0x47, 0x50])];
    translate(&mut marker);
    assert!(!out.exists());
    marker[0].execute(0);
    let read = || -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(&out).expect("written")).expect("JSON")
    };
    let report = read();
    assert_eq!(report["complete"], false);
    assert_eq!(report["shared_thread"], false);
    assert_eq!(report["devices"], 1);
    let counted = &report["tags"][0];
    assert_eq!(report["tags"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        (
            &counted["tag"],
            &counted["accesses"],
            &counted["local"],
            &counted["outside"]
        ),
        (&3.into(), &4.into(), &2.into(), &1.into())
    );
    assert_eq!(counted["loads"], serde_json::json!([[1, 0], [0, 1]]));
    assert_eq!(counted["stores"], serde_json::json!([[0, 1], [0, 0]]));
    assert_eq!(
        counted["windows"][0]["matrix"],
        serde_json::json!([[1, 1], [0, 1]])
    );

    // A window by port writes, and what the host executes for an operation in it.
    let code_at = |address: u64, bytes: &[u8]| Code {
        address,
        ..code(bytes)
    };
    const HIGH: u64 = 0xffff_ffff_8000_0000;
    let mut guest = vec![code(&[0xe6, 0xf8]), code(&[0xe6, 0xf9])];
    translate(&mut guest);
    let mut laps = vec![tag(0).bytes_with(5, 1), tag(0).bytes_with(5, 1)];
    laps.iter_mut().for_each(|lap| lap.bytes[4] = 2);
    translate(&mut laps);
    let mut leaves = vec![
        code_at(HIGH, &[0x90]),
        code_at(HIGH + 1, &[0x0f, 0x01, 0xd8]),
    ];
    translate(&mut leaves);
    let mut returns = vec![
        code_at(HIGH + 4, &[0xfa]),
        code_at(HIGH + 5, &[0x0f, 0x01, 0xdb]),
    ];
    translate(&mut returns);
    guest[0].execute(0);
    tagged[2].access(0, 0x1000, true);
    laps[0].execute(0);
    returns
        .iter()
        .chain(&leaves)
        .for_each(|code| code.execute(0));
    leaves.iter().for_each(|code| code.execute(0)); // a guest's, at the host's addresses
    laps[1].execute(0);
    guest[1].execute(0);
    tagged[2].access(0, 0x1000, true);
    marker[0].execute(0);
    let report = read();
    assert_eq!(
        report["page_windows"][0]["machine"],
        serde_json::json!([[1, 0, [[0, 0, 1]]]])
    );
    let class = &report["host"]["classes"][0];
    assert_eq!(
        (&class["class"], &class["operations"]),
        (&2.into(), &1.into())
    );
    assert_eq!(
        (&class["own"]["median"], &class["exits"]["median"]),
        (&5.into(), &1.into())
    );

    let exit = REGISTERED.lock().expect("alone").exit.expect("registered");
    vcpu(7, 0);
    vcpu(7, 1);
    exit(7, std::ptr::null_mut());
    let report = read();
    assert_eq!(
        (&report["complete"], &report["shared_thread"]),
        (&true.into(), &true.into())
    );
    assert_eq!(install(c"x86_64", [2, 4], &arguments), 1, "a second time");
    std::fs::remove_file(&out).expect("removed");
}
