//! How the emulator is made to use a clock of ours.
//!
//! A table of functions tells QEMU how its accelerator keeps time (`AccelOpsClass`, include/system/accel-ops.h). With a host
//! thread for each vCPU the entries for the virtual clock and for ticks are empty, and the host's clock is used; a plugin is
//! code in the same process and can fill them. That is no interface: it is done only where the table looks as that of QEMU 10.0
//! does.
#![expect(
    unsafe_code,
    reason = "functions and a table of the emulator that no header of plugins declares"
)]

use crate::clock::Timers;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// `QEMU_CLOCK_VIRTUAL` and `QEMU_TIMER_ATTR_ALL`.
const VIRTUAL: c_int = 1;
const ALL_TIMERS: c_int = -1;
/// In pointers: `ObjectClass` has 12 (QOM, include/qom/object.h); behind it stand the functions, of which the thirteenth and the
/// fifteenth are `get_virtual_clock` and `get_elapsed_ticks`.
const GET_VIRTUAL_CLOCK: usize = 12 + 12;
const GET_ELAPSED_TICKS: usize = 12 + 14;

type ClassFn = unsafe extern "C" fn(*const c_char) -> *mut c_void;
type DeadlineFn = unsafe extern "C" fn(c_int, c_int) -> i64;
type NotifyFn = unsafe extern "C" fn();
/// An entry of the table.
pub(crate) type TimeFn = extern "C" fn() -> i64;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// QEMU's functions about timers.
#[derive(Debug)]
pub(crate) struct Emulated {
    deadline: DeadlineFn,
    notify: NotifyFn,
}

impl Timers for Emulated {
    fn next(&self) -> Option<i64> {
        // SAFETY: any thread may ask at any time (util/qemu-timer.c takes the locks that it needs).
        let ns = unsafe { (self.deadline)(VIRTUAL, ALL_TIMERS) };
        (ns >= 0).then_some(ns)
    }

    fn nudge(&self) {
        // SAFETY: it writes to an event descriptor, which any thread may (util/main-loop.c).
        unsafe { (self.notify)() }
    }
}

/// Where a function of the emulator is.
fn find(name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: a null handle is `RTLD_DEFAULT`: the program itself and what it has loaded.
    let found = unsafe { dlsym(std::ptr::null_mut(), name.as_ptr()) };
    match found.is_null() {
        true => Err(format!(
            "this QEMU does not export {name:?}, which clock= needs"
        )),
        false => Ok(found),
    }
}

/// Finds what is needed of the emulator's timers.
///
/// # Errors
/// A sentence, where this QEMU does not export it.
pub(crate) fn timers() -> Result<Emulated, String> {
    let (deadline, notify) = (
        find(c"qemu_clock_deadline_ns_all")?,
        find(c"qemu_notify_event")?,
    );
    // SAFETY: QEMU declares both so in include/qemu/timer.h and include/qemu/main-loop.h.
    unsafe {
        Ok(Emulated {
            deadline: std::mem::transmute::<*mut c_void, DeadlineFn>(deadline),
            notify: std::mem::transmute::<*mut c_void, NotifyFn>(notify),
        })
    }
}

/// Has the emulator ask `clock` for the time from now on. Called by the first vCPU, before it executes anything: then the
/// accelerator is there. What was found is remembered; later calls do nothing.
///
/// # Errors
/// A sentence, where the table is not what is known.
pub(crate) fn install(clock: TimeFn) -> Result<(), String> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    DONE.get_or_init(|| fill(clock)).clone()
}

fn fill(clock: TimeFn) -> Result<(), String> {
    let class = find(c"object_class_by_name")?;
    // SAFETY: QEMU declares it so in include/qom/object.h; the name is a string that lives for ever.
    let table =
        unsafe { std::mem::transmute::<*mut c_void, ClassFn>(class)(c"tcg-accel-ops".as_ptr()) };
    if table.is_null() {
        return Err("this QEMU has no class tcg-accel-ops, which clock= needs".into());
    }
    let table = table.cast::<Option<TimeFn>>();
    // SAFETY: the class is a structure of 12 pointers' size and more than 15 functions behind it, and lives as long as the
    // emulator; where entries are not empty, nothing is written.
    unsafe {
        let (virtual_clock, ticks) = (table.add(GET_VIRTUAL_CLOCK), table.add(GET_ELAPSED_TICKS));
        if (*virtual_clock).is_some() || (*ticks).is_some() {
            return Err("clock= wants -accel tcg,thread=multi without -icount".into());
        }
        virtual_clock.write(Some(clock));
        ticks.write(Some(clock));
    }
    Ok(())
}
