//! `cargo xtask run --lab bochs` with a script in Bochs' place: both serial ports over TCP, the exit status that Bochs always
//! has, and that nothing of it survives.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use telemetry::{Event, OffReason, Outcome, Record, VmEvent};
use units::{Nanos, VmId};

/// A folder with a fake Bochs, removed at the end.
struct Fake {
    folder: PathBuf,
}

/// What Bochs says when its machine switches itself off.
const FAREWELL: &str = "echo '[UNMAP ] Shutdown port: shutdown requested' >&2; exit 1";

impl Fake {
    /// Whose machine writes these events to its second serial port, then does this.
    fn new(name: &str, events: &[Event], then: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("perigee-bochs-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a temporary folder");
        let mut script = String::from(
            "#!/bin/bash\ncase \"$1\" in --help) echo '  -rc filename'; echo ' Bochs x86 Emulator 2.7'; exit 1;; esac\n\
             grep -q continue \"$5\" || exit 9\n\
             port() { sed -n \"s/^$1: .*127.0.0.1://p\" \"$2\"; }\n\
             exec 3<>/dev/tcp/127.0.0.1/$(port com1 \"$3\") 4<>/dev/tcp/127.0.0.1/$(port com2 \"$3\")\n\
             echo 'Perigee loader' >&3\n",
        );
        for (seq, event) in events.iter().enumerate() {
            let record = Record {
                at_ns: Nanos(0),
                seq: seq as u64,
                event: event.clone(),
            };
            script += &format!("echo '{}' >&4\n", telemetry::to_line(&record));
        }
        script += &format!("echo $$ >{}\n{then}\n", folder.join("pid").display());
        for (file, text) in [("bochs", script.as_str()), ("disk", ""), ("firmware", "")] {
            fs::write(folder.join(file), text).expect("a temporary file");
        }
        fs::set_permissions(folder.join("bochs"), fs::Permissions::from_mode(0o755))
            .expect("our file");
        Self { folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command
            .args(["run", "--lab", "bochs", "--image"])
            .arg(self.folder.join("disk"))
            .args(arguments)
            .env("PERIGEE_BOCHS", self.folder.join("bochs"))
            .env("PERIGEE_OVMF", self.folder.join("firmware"))
            .env("CARGO_TARGET_DIR", self.folder.join("target"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("xtask starts")
    }

    /// The fake's process, once its machine runs.
    fn pid(&self) -> Pid {
        let begun = Instant::now();
        loop {
            let text = fs::read_to_string(self.folder.join("pid")).unwrap_or_default();
            if let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) {
                return pid;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the fake did not start"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn well() -> [Event; 2] {
    let off = Event::Vm {
        vm: VmId(0),
        name: "alpha".into(),
        what: VmEvent::Off(OffReason::PowerOff),
    };
    [off, Event::RunEnd(Outcome::Clean)]
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_machine_that_switches_itself_off_is_clean_although_bochs_says_1() {
    let fake = Fake::new("clean", &well(), FAREWELL);
    let output = fake.run(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("Perigee loader"));
}

#[test]
fn bochs_own_failure_is_5_and_its_words_are_told() {
    let fake = Fake::new(
        "fails",
        &well(),
        "echo '>>PANIC<< no such model' >&2; exit 1",
    );
    let output = fake.run(&[]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    assert!(text(&output).contains("no such model"));
}

#[test]
fn one_that_never_connects_its_machine_is_5() {
    let fake = Fake::new("early", &[], "exit 1");
    let script = "#!/bin/bash\n[ \"$1\" = --help ] && echo 'Bochs x86 Emulator 2.7'\necho 'no display' >&2\nexit 1\n";
    fs::write(fake.folder.join("bochs"), script).expect("ours");
    let output = fake.run(&[]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no display"));
}

#[test]
fn nothing_survives_ctrl_c_or_the_time() {
    let fake = Fake::new("stays", &[], "exec sleep 600");
    let output = fake.run(&["--timeout", "2"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(is_gone(fake.pid()));
    fs::remove_file(fake.folder.join("pid")).expect("written");
    let child = fake.command(&[]).spawn().expect("xtask starts");
    let bochs = fake.pid();
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(is_gone(bochs));
}

fn is_gone(pid: Pid) -> bool {
    (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        test_kill_process(pid).is_err()
    })
}

#[test]
fn a_dry_run_prints_the_configuration() {
    let fake = Fake::new("dry", &[], "exit 1");
    let output = fake.run(&["--dry-run", "--nodes", "3", "--cpus", "6"]);
    assert_eq!(output.status.code(), Some(0));
    let said = text(&output);
    for word in [
        "-rc",
        "model=corei7_haswell_4770, count=6",
        "guest=768",
        "com2: ",
    ] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
}

#[test]
fn without_bochs_its_trials_fail_and_none_is_skipped() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["test", "--lab", "bochs", "scenario/starved-no-vmx"])
        .env("PERIGEE_BOCHS", "/nowhere/bochs")
        .stdin(Stdio::null())
        .output()
        .expect("xtask starts");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("0 passed, 1 failed, 0 skipped"), "{said}");
    assert!(said.contains("/nowhere/bochs, which is no file"), "{said}");
}
