//! The emulator's command line, and starting it so that it never outlives us.

use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use scenarios::Machine;

use crate::provision::Qemu;

/// A command line that can be pasted.
#[derive(Clone, Debug)]
pub struct Invocation {
    env: Vec<(String, String)>,
    program: String,
    args: Vec<String>,
}

/// A path inside one of QEMU's comma-separated options.
fn in_option(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

impl Invocation {
    /// COM1 is the console, on the emulator's own input and output; COM2 writes the kernel's records
    /// to a file.
    pub fn new(
        qemu: &Qemu,
        machine: &Machine,
        firmware: &Path,
        disk: &Path,
        records: &Path,
    ) -> Self {
        let mut args = qemu.first_args.clone();
        args.extend(machine.qemu_args());
        let devices = [
            ("-accel", "tcg,thread=multi".to_string()),
            ("-nodefaults", String::new()),
            ("-no-user-config", String::new()),
            ("-no-reboot", String::new()),
            ("-display", "none".into()),
            ("-bios", firmware.display().to_string()),
            (
                "-drive",
                format!(
                    "if=none,id=medium,format=raw,readonly=on,file={}",
                    in_option(disk)
                ),
            ),
            ("-device", "virtio-blk-pci,drive=medium,bootindex=0".into()),
            ("-chardev", "stdio,id=com1".into()),
            ("-serial", "chardev:com1".into()),
            (
                "-chardev",
                format!("file,id=com2,path={}", in_option(records)),
            ),
            ("-serial", "chardev:com2".into()),
        ];
        for (option, value) in devices {
            args.push(option.into());
            args.extend(Some(value).filter(|v| !v.is_empty()));
        }
        Self {
            env: qemu.env.clone(),
            program: qemu.program.display().to_string(),
            args,
        }
    }

    /// The emulator's own machine with `cpus` CPUs and a Multiboot kernel, without Perigee.
    pub fn plain(qemu: &Qemu, cpu: &str, cpus: u32, kernel: &Path) -> Self {
        let mut args = qemu.first_args.clone();
        let options = [
            ("-machine", "q35".to_string()),
            ("-cpu", cpu.into()),
            ("-smp", cpus.to_string()),
            ("-m", "128".into()),
            ("-accel", "tcg,thread=multi".into()),
            ("-nodefaults", String::new()),
            ("-no-user-config", String::new()),
            ("-no-reboot", String::new()),
            ("-display", "none".into()),
            ("-serial", "stdio".into()),
            ("-kernel", kernel.display().to_string()),
        ];
        for (option, value) in options {
            args.push(option.into());
            args.extend(Some(value).filter(|v| !v.is_empty()));
        }
        Self {
            env: qemu.env.clone(),
            program: qemu.program.display().to_string(),
            args,
        }
    }

    /// Waits for a debugger on TCP port 1234 before the first instruction.
    pub fn with_gdb(mut self) -> Self {
        self.args.extend(["-s".into(), "-S".into()]);
        self
    }

    /// Listening for commands on this socket.
    pub fn with_control(mut self, socket: &Path) -> Self {
        self.args.extend([
            "-qmp".into(),
            format!("unix:{},server=on,wait=off", in_option(socket)),
        ]);
        self
    }

    /// Observed by this plugin.
    pub fn with_plugin(mut self, library: &Path, arguments: &str) -> Self {
        self.args.extend([
            "-plugin".into(),
            format!("{},{arguments}", in_option(library)),
        ]);
        self
    }

    /// Starts it in a process group of its own that dies with us, console on pipes, complaints into `errors`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, errors: std::fs::File) -> Result<Emulator> {
        // Not `current_exe`: building the tests may have put another file at that path meanwhile.
        let child = Command::new("/proc/self/exe")
            .arg(GUARD)
            .arg(std::process::id().to_string())
            .arg(&self.program)
            .args(&self.args)
            .envs(self.env.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program))?;
        Ok(Emulator { child })
    }
}

impl fmt::Display for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.env.is_empty() {
            f.write_str("env ")?;
        }
        for (key, value) in &self.env {
            write!(f, "{key}={} ", quoted(value))?;
        }
        f.write_str(&quoted(&self.program))?;
        self.args
            .iter()
            .try_for_each(|arg| write!(f, " {}", quoted(arg)))
    }
}

/// A word for a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/.,:=+-_@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Hidden first argument: become the emulator, after asking to die with the parent.
pub const GUARD: &str = "__guard";

/// What a process started with [`GUARD`] does: `PARENT PROGRAM ARGS...`. Setting the death signal in
/// the child, after the fork and before the exec, is what makes it reliable; doing it in a program of
/// our own instead of between fork and exec needs no unsafe code.
pub fn guard(mut args: impl Iterator<Item = String>) -> anyhow::Error {
    let parent = args.next().and_then(|text| text.parse::<i32>().ok());
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return anyhow::Error::new(error).context("cannot ask to die with the parent");
    }
    // The parent may have died before that took effect.
    if rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()) != parent {
        return anyhow::anyhow!("the parent is gone");
    }
    let Some(program) = args.next() else {
        return anyhow::anyhow!("no program named");
    };
    let error = Command::new(&program).args(args).exec();
    anyhow::Error::new(error).context(format!("cannot start {program}"))
}

/// A running emulator; dropping it ends it.
#[derive(Debug)]
pub struct Emulator {
    /// The process.
    pub child: Child,
}

impl Emulator {
    /// Ends it and everything it started: politely, then not.
    pub fn end(&mut self) {
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        for signal in [Signal::TERM, Signal::KILL] {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                break;
            }
            if let Some(group) = group {
                let _ = rustix::process::kill_process_group(group, signal);
            }
            for _ in 0..100 {
                if matches!(self.child.try_wait(), Ok(Some(_))) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        // Whatever it started itself.
        if let Some(group) = group {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_survives_a_shell() {
        let invocation = Invocation {
            env: vec![("A".into(), "x y".into())],
            program: "/bin/echo".into(),
            args: vec![
                "it's".into(),
                "file=a,,b".into(),
                "$HOME".into(),
                String::new(),
            ],
        };
        let output = Command::new("sh")
            .arg("-c")
            .arg(invocation.to_string())
            .output()
            .expect("a shell");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "it's file=a,,b $HOME \n"
        );
    }
}
