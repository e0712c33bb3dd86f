//! The emulator's control socket (QMP): NMIs go in, and a machine that went off tells how.
//!
//! The emulator is told not to exit when its machine goes off (`-no-shutdown`): it stops there. So a machine that
//! ended without word (a triple fault resets it) can still be asked where its processors were; only then it is
//! dismissed.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// How long the emulator may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// From one stop of the machine to the next.
const BETWEEN_STOPS: Duration = Duration::from_millis(20);

/// How the machine went off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Off {
    /// It was switched off: ACPI S5 or a port that stands for it.
    Switched,
    /// It was reset: a triple fault, or a reset port.
    Reset,
    /// In QEMU's own word for the reason.
    Otherwise(String),
}

impl Off {
    /// From the data of QEMU's event `SHUTDOWN`.
    fn from_event(data: &Value) -> Self {
        match data["reason"].as_str().unwrap_or("no reason given") {
            "guest-shutdown" => Self::Switched,
            "guest-reset" => Self::Reset,
            other => Self::Otherwise(other.into()),
        }
    }
}

/// A connection, made as soon as the emulator listens.
#[derive(Debug)]
pub struct Control {
    socket: Option<PathBuf>,
    stream: Option<BufReader<UnixStream>>,
    /// A line that has not come whole yet.
    begun: String,
    off: Option<Off>,
}

impl Control {
    /// Of an emulator that will listen on `socket`, or that listens nowhere.
    pub fn new(socket: Option<&Path>) -> Self {
        Self {
            socket: socket.map(Path::to_path_buf),
            stream: None,
            begun: String::new(),
            off: None,
        }
    }

    /// Hears what there is to hear, without waiting: how the machine went off, once it did.
    pub fn went_off(&mut self) -> Option<&Off> {
        if self.off.is_none() && self.connect() {
            while let Ok(message) = self.message(Duration::from_millis(1)) {
                self.note(&message);
            }
        }
        self.off.as_ref()
    }

    /// Sends an NMI to every CPU.
    ///
    /// # Errors
    /// The emulator does not listen or refuses.
    pub fn inject_nmi(&mut self) -> Result<()> {
        self.command(&json!({"execute": "inject-nmi"})).map(drop)
    }

    /// Lets bank 4 of CPU 0 report an error: valid, uncorrected, enabled, context corrupt, with an address (SDM 3B
    /// 16.3.2.2).
    ///
    /// # Errors
    /// As [`Self::inject_nmi`].
    pub fn inject_machine_check(&mut self) -> Result<()> {
        let line = "mce 0 4 0xb600000000000135 0x4 0x12345000 0";
        self.command(
            &json!({"execute": "human-monitor-command", "arguments": {"command-line": line}}),
        )
        .map(drop)
    }

    /// Stops the whole machine and lets it go on, so many times: each time all processors' threads leave what they do.
    ///
    /// # Errors
    /// As [`Self::inject_nmi`].
    pub fn stop_and_go_on(&mut self, times: u32) -> Result<()> {
        for _ in 0..times {
            self.command(&json!({"execute": "stop"}))?;
            self.command(&json!({"execute": "cont"}))?;
            std::thread::sleep(BETWEEN_STOPS);
        }
        Ok(())
    }

    /// Every processor's registers, as QEMU prints them.
    ///
    /// # Errors
    /// As [`Self::inject_nmi`].
    pub fn registers(&mut self) -> Result<String> {
        let line = "info registers -a";
        let answer = self.command(
            &json!({"execute": "human-monitor-command", "arguments": {"command-line": line}}),
        )?;
        Ok(answer.as_str().unwrap_or_default().replace('\r', ""))
    }

    /// Ends the emulator. One that is gone already is as good.
    pub fn quit(&mut self) {
        let _ = self.command(&json!({"execute": "quit"}));
    }

    /// Whether there is a connection, now at the latest.
    fn connect(&mut self) -> bool {
        if self.stream.is_none()
            && let Some(socket) = &self.socket
            && let Ok(stream) = UnixStream::connect(socket)
        {
            self.stream = Some(BufReader::new(stream));
            let hello = json!({"execute": "qmp_capabilities"});
            if self.command(&hello).is_err() {
                self.stream = None;
            }
        }
        self.stream.is_some()
    }

    /// What the emulator returns; events that come before are noted.
    fn command(&mut self, command: &Value) -> Result<Value> {
        anyhow::ensure!(
            self.connect(),
            "the emulator does not listen on its control socket"
        );
        let stream = self.stream.as_mut().context("no connection")?;
        writeln!(stream.get_mut(), "{command}")?;
        loop {
            let mut message = self.message(PATIENCE)?;
            anyhow::ensure!(
                message["error"].is_null(),
                "{command}: {}",
                message["error"]
            );
            if !message["return"].is_null() {
                return Ok(message["return"].take());
            }
            self.note(&message);
        }
    }

    fn note(&mut self, message: &Value) {
        if message["event"] == "SHUTDOWN" {
            self.off.get_or_insert(Off::from_event(&message["data"]));
        }
    }

    /// The next message, if it comes in time.
    fn message(&mut self, patience: Duration) -> Result<Value> {
        let stream = self.stream.as_mut().context("no connection")?;
        stream.get_ref().set_read_timeout(Some(patience))?;
        // A line whose end does not come in time stays begun.
        let read = stream.read_line(&mut self.begun)?;
        anyhow::ensure!(read != 0, "the emulator closed its control socket");
        let message = serde_json::from_str(&self.begun).context("not a message of QMP");
        self.begun.clear();
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A listener that says hello, then answers each command by the next of `answers`.
    fn emulator(
        answers: &'static [&'static str],
    ) -> (PathBuf, std::thread::JoinHandle<Vec<String>>) {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("control-{}-{number}", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("a fresh path");
        let talk = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut heard = Vec::new();
            writeln!(stream, r#"{{"QMP": {{}}}}"#).expect("it listens");
            let mut lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
            for answer in answers {
                heard.extend(lines.next().and_then(Result::ok));
                write!(stream, "{answer}").expect("it listens");
            }
            heard
        });
        (socket, talk)
    }

    #[test]
    fn an_event_between_question_and_answer_is_noted() {
        let (socket, talk) = emulator(&[
            "{\"return\": {}}\n",
            "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}}\n{\"return\": \"EIP=1\\r\\n\"}\n",
        ]);
        let mut control = Control::new(Some(&socket));
        assert_eq!(control.registers().expect("an answer"), "EIP=1\n");
        assert_eq!(control.went_off(), Some(&Off::Reset));
        assert!(talk.join().expect("no panic")[1].contains("info registers -a"));
    }

    #[test]
    fn switching_off_is_no_reset_and_refusals_are_errors() {
        let (socket, talk) = emulator(&[
            "{\"return\": {}}\n{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-shutdown\"}}\n",
            "{\"error\": {\"desc\": \"no\"}}\n",
        ]);
        let mut control = Control::new(Some(&socket));
        let refused = control.inject_nmi().expect_err("refused");
        assert!(refused.to_string().contains("no"), "{refused}");
        assert_eq!(control.went_off(), Some(&Off::Switched));
        drop(talk);
    }

    #[test]
    fn nobody_listening_is_no_end() {
        let mut control = Control::new(Some(Path::new("/nonexistent/control")));
        assert_eq!(control.went_off(), None);
        assert!(control.inject_nmi().is_err());
    }
}
