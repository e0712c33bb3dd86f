//! Starting an emulator so that it never outlives us, and the lines that lead into its machine.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

/// An emulator that has not connected its machine's serial ports after this long never will.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for meanwhile.
const TICK: Duration = Duration::from_millis(10);
/// What stands for the numbers of the two TCP ports in a configuration that is not in use.
pub const PORTS: [&str; 2] = ["@COM1@", "@COM2@"];

/// A command line that can be pasted.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Environment.
    pub env: Vec<(String, String)>,
    /// The emulator.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// How the machine's serial ports are connected.
    pub wiring: Wiring,
}

/// How the machine's two serial ports reach us: COM1 is the console, COM2 carries the kernel's records.
#[derive(Clone, Debug)]
pub enum Wiring {
    /// COM1 on the emulator's own input and output, COM2 in a file that the command line names.
    Stdio,
    /// The emulator connects both to TCP ports on this machine.
    Sockets {
        /// Files that it reads, with [`PORTS`] where the ports' numbers belong.
        files: Vec<(PathBuf, String)>,
        /// What COM2 says is appended here.
        records: PathBuf,
        /// With exit status 1, this in what it says means that the machine has switched itself off.
        farewell: &'static str,
    },
}

impl Invocation {
    /// Starts it in a process group of its own that dies with us, complaints into `errors`.
    ///
    /// # Errors
    /// It cannot be started, or does not connect its machine.
    pub fn spawn(&self, errors: File) -> Result<Running> {
        match &self.wiring {
            Wiring::Stdio => {
                let mut child = self.start(Stdio::piped(), Stdio::piped(), errors)?;
                let output = child.stdout.take().context("the emulator has no output")?;
                let input = child.stdin.take().context("the emulator has no input")?;
                Ok(Running {
                    child,
                    console: Some((Box::new(output), Box::new(input))),
                    records: None,
                })
            }
            Wiring::Sockets { files, records, .. } => {
                let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
                let listeners = [listen()?, listen()?];
                for (file, text) in files {
                    let mut text = text.clone();
                    for (listener, name) in listeners.iter().zip(PORTS) {
                        text = text.replace(name, &listener.local_addr()?.port().to_string());
                    }
                    std::fs::write(file, text)
                        .with_context(|| format!("cannot write {}", file.display()))?;
                }
                let child = self.start(Stdio::null(), errors.try_clone()?.into(), errors)?;
                let mut running = Running {
                    child,
                    console: None,
                    records: None,
                };
                let [console, mut com2] = running.accept(listeners)?;
                let keys = console.try_clone()?;
                running.console = Some((Box::new(console), Box::new(keys)));
                let mut to = File::options().append(true).open(records)?;
                running.records = Some(std::thread::spawn(move || {
                    let _ = std::io::copy(&mut com2, &mut to);
                }));
                Ok(running)
            }
        }
    }

    fn start(&self, input: Stdio, output: Stdio, errors: File) -> Result<Child> {
        // Not `current_exe`: building the tests may have put another file at that path meanwhile.
        Command::new("/proc/self/exe")
            .arg(GUARD)
            .arg(std::process::id().to_string())
            .arg(&self.program)
            .args(&self.args)
            .envs(self.env.iter().cloned())
            .stdin(input)
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program))
    }

    /// Whether an emulator that ended with this status, and said this, switched its machine off in good order.
    pub fn ended_well(&self, status: ExitStatus, said: &str) -> bool {
        match &self.wiring {
            Wiring::Stdio => status.success(),
            Wiring::Sockets { farewell, .. } => status.code() == Some(1) && said.contains(farewell),
        }
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
            .try_for_each(|arg| write!(f, " {}", quoted(arg)))?;
        if let Wiring::Sockets { files, .. } = &self.wiring {
            for (file, text) in files {
                write!(f, "\n\n{} holds:\n{text}", file.display())?;
            }
        }
        Ok(())
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

/// What the machine says on COM1, and what it hears there.
type Console = (Box<dyn Read + Send>, Box<dyn Write + Send>);

/// A running emulator; dropping it ends it.
pub struct Running {
    /// The process.
    pub child: Child,
    console: Option<Console>,
    /// Who copies COM2.
    records: Option<JoinHandle<()>>,
}

impl Running {
    /// The machine's COM1; once.
    ///
    /// # Errors
    /// It has been taken before.
    pub fn console(&mut self) -> Result<Console> {
        self.console.take().context("the console is taken")
    }

    /// Waits until all that an emulator said on COM2 before it ended has been copied.
    pub fn settle(&mut self) {
        if let Some(copier) = self.records.take() {
            let _ = copier.join();
        }
    }

    /// Waits for it to connect to each of these.
    fn accept(&mut self, listeners: [TcpListener; 2]) -> Result<[TcpStream; 2]> {
        let begun = Instant::now();
        let mut accept = |listener: &TcpListener| -> Result<TcpStream> {
            listener.set_nonblocking(true)?;
            loop {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false)?;
                        stream.set_nodelay(true)?;
                        return Ok(stream);
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).context("cannot take its connection"),
                }
                if let Some(status) = self.child.try_wait()? {
                    bail!("the emulator ended before its machine began ({status})");
                }
                if begun.elapsed() > PATIENCE {
                    bail!("the emulator did not connect its machine's serial ports");
                }
                std::thread::sleep(TICK);
            }
        };
        let [console, records] = &listeners;
        Ok([accept(console)?, accept(records)?])
    }

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

impl Drop for Running {
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
            wiring: Wiring::Stdio,
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
