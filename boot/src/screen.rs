//! What the operator sees: firmware's console and the first serial port, each line once on each.
#![expect(
    unsafe_code,
    reason = "the UART is reached through I/O ports, and a panic must not use firmware"
)]

use core::{
    fmt::{self, Write},
    panic::PanicInfo,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use uefi::{boot, cstr16, runtime, runtime::VariableVendor, system, table};
use x86_64::instructions::port::Port;

/// Whether firmware's console may be used: it exists and boot services are up.
static FIRMWARE: AtomicBool = AtomicBool::new(false);
/// Whether lines go to the UART directly, because firmware's console does not lead there.
static DIRECT: AtomicBool = AtomicBool::new(true);
/// Whether the next text starts a line.
static LINE_START: AtomicBool = AtomicBool::new(true);

/// Prints a line, with the loader's name in front.
macro_rules! say {
    ($($arg:tt)*) => { $crate::screen::print(format_args!($($arg)*), true) };
}
/// Prints the beginning of a line, or goes on with it.
macro_rules! say_part {
    ($($arg:tt)*) => { $crate::screen::print(format_args!($($arg)*), false) };
}
pub(crate) use {say, say_part};

/// Finds out where lines must go.
pub fn init() {
    let Some(system) = table::system_table_raw() else {
        return;
    };
    // SAFETY: boot services are up, so firmware keeps its system table where it is.
    let has_console = unsafe { !system.as_ref().stdout.is_null() };
    FIRMWARE.store(has_console, Ordering::Relaxed);
    let paths = runtime::get_variable_boxed(cstr16!("ConOut"), &VariableVendor::GLOBAL_VARIABLE);
    let reaches =
        has_console && paths.is_ok_and(|(paths, _)| loader::console::reaches_uart(&paths));
    DIRECT.store(!reaches, Ordering::Relaxed);
}

/// From now on only the UART is used: firmware is about to end its services.
pub fn forget_firmware() {
    FIRMWARE.store(false, Ordering::Relaxed);
    DIRECT.store(true, Ordering::Relaxed);
}

/// Prints text; use the macros [`say`] and [`say_part`].
pub fn print(text: fmt::Arguments<'_>, ends_line: bool) {
    let prefix = if LINE_START.swap(ends_line, Ordering::Relaxed) {
        "perigee boot: "
    } else {
        ""
    };
    let end = if ends_line { "\n" } else { "" };
    if FIRMWARE.load(Ordering::Relaxed) {
        // A console that refuses a line gives nothing to do about it.
        let _shown = system::with_stdout(|out| write!(out, "{prefix}{text}{end}"));
    }
    if DIRECT.load(Ordering::Relaxed) {
        let _shown = write!(Com1, "{prefix}{text}{end}");
    }
}

/// Ends a line that was begun and cannot be finished.
pub fn end_line() {
    if !LINE_START.load(Ordering::Relaxed) {
        say!("");
    }
}

/// Returns at a key, or after `limit`.
pub fn wait_for_key(limit: Duration) {
    const STEP: Duration = Duration::from_millis(50);
    let has_keyboard = table::system_table_raw().is_some_and(|system| {
        // SAFETY: boot services are up, so firmware keeps its system table where it is.
        unsafe { !system.as_ref().stdin.is_null() }
    });
    let mut waited = Duration::ZERO;
    while waited < limit {
        if has_keyboard && matches!(system::with_stdin(|keys| keys.read_key()), Ok(Some(_))) {
            return;
        }
        boot::stall(STEP);
        waited += STEP;
    }
}

/// The first serial port of a PC, as firmware set it up: line status at +5, data at +0
/// (16550, "Line Status Register").
struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const BASE: u16 = 0x3f8;
        const TRANSMIT_EMPTY: u8 = 1 << 5;
        const NOBODY: u8 = 0xff;
        const PATIENCE: u32 = 100_000;
        let mut data: Port<u8> = Port::new(BASE);
        let mut status: Port<u8> = Port::new(BASE + 5);
        for byte in text
            .bytes()
            .flat_map(|b| [b'\r', b].into_iter().skip(usize::from(b != b'\n')))
        {
            for _ in 0..PATIENCE {
                // SAFETY: reading the line status of COM1 has no effect but to clear error bits that
                // nobody else waits for; where there is no UART the bus answers with ones.
                let now = unsafe { status.read() };
                if now == NOBODY {
                    return Err(fmt::Error);
                }
                if now & TRANSMIT_EMPTY != 0 {
                    break;
                }
            }
            // SAFETY: a byte to the transmit register of the UART that just answered.
            unsafe { data.write(byte) };
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    DIRECT.store(true, Ordering::Relaxed);
    end_line();
    say!("the loader failed, which is a defect of Perigee: {info}");
    loop {
        x86_64::instructions::hlt();
    }
}
