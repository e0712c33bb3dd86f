//! The `log` facade on the console.

use core::fmt;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::arch::time;

struct Console;
static CONSOLE: Console = Console;

/// Makes the `log` macros write to the console, from level info up; the configuration changes the level
/// later by `log::set_max_level`.
pub(super) fn init() {
    if log::set_logger(&CONSOLE).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Log for Console {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let millis = time::now().0 / 1_000_000;
        let (seconds, millis) = (millis / 1000, millis % 1000);
        let text = record.args();
        super::print(format_args!(
            "[{seconds:4}.{millis:03}] {}{text}\n",
            Mark(record.level())
        ));
    }

    fn flush(&self) {
        super::flush();
    }
}

/// How a line of a level begins; the usual one begins with nothing.
struct Mark(Level);

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Level::Error => "ERROR: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug => "debug: ",
            Level::Trace => "trace: ",
        })
    }
}
