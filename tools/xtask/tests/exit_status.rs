//! Each exit status of `cargo xtask run`, with a script in the emulator's place that says what an
//! emulator with a machine in it would say. (The scenarios do it with the real one.)

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use telemetry::{Event, OffReason, Outcome, Record, VmEvent};
use units::{CpuId, Nanos, VmId};

/// A folder with a fake emulator, removed at the end.
struct Fake {
    folder: PathBuf,
}

impl Fake {
    /// Whose machine writes these events to its second serial port, then does this.
    fn new(name: &str, events: &[Event], then: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("perigee-fake-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a temporary folder");
        let mut script = String::from(
            "#!/bin/sh\ncase \"$1\" in --version) echo 'QEMU emulator version 10.0.2 (fake)'; exit 0;; esac\n\
             for arg; do case \"$arg\" in file,id=com2,path=*) com2=${arg#file,id=com2,path=};; esac; done\n\
             echo 'Perigee loader'\n",
        );
        for (seq, event) in events.iter().enumerate() {
            let record = Record {
                at_ns: Nanos(0),
                seq: seq as u64,
                event: event.clone(),
            };
            script += &format!("echo '{}' >>\"$com2\"\n", telemetry::to_line(&record));
        }
        script += &format!("echo $$ >{}\n{then}\n", folder.join("pid").display());
        for (file, text) in [("qemu", script.as_str()), ("disk", ""), ("firmware", "")] {
            fs::write(folder.join(file), text).expect("a temporary file");
        }
        fs::set_permissions(folder.join("qemu"), fs::Permissions::from_mode(0o755))
            .expect("our file");
        Self { folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command
            .arg("run")
            .arg("--image")
            .arg(self.folder.join("disk"))
            .args(arguments);
        command
            .env("PERIGEE_QEMU", self.folder.join("qemu"))
            .env("PERIGEE_OVMF", self.folder.join("firmware"));
        command.env("CARGO_TARGET_DIR", self.folder.join("target"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("xtask starts")
    }

    /// The fake emulator's process, once it runs.
    fn pid(&self) -> Pid {
        let begun = Instant::now();
        loop {
            let text = fs::read_to_string(self.folder.join("pid")).unwrap_or_default();
            if let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) {
                return pid;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "the fake emulator did not start"
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

fn is_gone(pid: Pid) -> bool {
    (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        test_kill_process(pid).is_err()
    })
}

fn status(output: &Output) -> Option<i32> {
    output.status.code()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn started() -> Event {
    Event::BootPhase {
        name: "console".into(),
    }
}

fn off(reason: OffReason) -> Event {
    Event::Vm {
        vm: VmId(0),
        name: "alpha".into(),
        what: VmEvent::Off(reason),
    }
}

#[test]
fn a_clean_end_is_0_and_the_report_says_so() {
    let fake = Fake::new(
        "clean",
        &[
            started(),
            off(OffReason::PowerOff),
            Event::RunEnd(Outcome::Clean),
        ],
        "exit 0",
    );
    let report = fake.folder.join("report.json");
    let output = fake.run(&["--report", report.to_str().expect("a plain path")]);
    assert_eq!(status(&output), Some(0), "{}", text(&output));
    let first = text(&output).lines().next().unwrap_or_default().to_string();
    assert!(
        first.contains("Ctrl-C") && first.contains("Ctrl-A"),
        "the first line is: {first}"
    );
    assert!(
        !text(&output).contains('\x1b'),
        "colour or cursor control without a terminal"
    );
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(report).expect("written")).expect("JSON");
    assert_eq!(report["exit_status"], 0);
    assert_eq!(report["emulator"]["version"], "10.0.2 (fake)");
    assert!(
        report["phases"]
            .as_array()
            .is_some_and(|p| p.iter().any(|p| p["name"] == "firmware"))
    );
}

#[test]
fn a_failed_guest_is_1() {
    let end = Event::RunEnd(Outcome::GuestFailed {
        vms: vec!["alpha".into()],
    });
    let fake = Fake::new("guest", &[started(), off(OffReason::Reset), end], "exit 0");
    let output = fake.run(&[]);
    assert_eq!(status(&output), Some(1), "{}", text(&output));
    assert!(text(&output).contains("alpha"));
}

#[test]
fn a_test_kernel_s_verdict_is_the_run_s() {
    for (value, end, expected) in [
        (0, Outcome::Clean, 0),
        (
            3,
            Outcome::GuestFailed {
                vms: vec!["alpha".into()],
            },
            1,
        ),
    ] {
        let events = [
            started(),
            off(OffReason::TestExit { value }),
            Event::RunEnd(end),
        ];
        let fake = Fake::new(&format!("verdict-{value}"), &events, "exit 0");
        let output = fake.run(&[]);
        assert_eq!(status(&output), Some(expected), "{}", text(&output));
    }
}

#[test]
fn usage_is_2() {
    let fake = Fake::new("usage", &[], "exit 0");
    for arguments in [
        &["--nodes", "none"][..],
        &["--no-such-option"],
        &["--memory", "1X"],
        &["--timeout", "0"],
    ] {
        assert_eq!(status(&fake.run(arguments)), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_panic_is_3_even_if_the_machine_stays_on() {
    let panic = Event::Panic {
        cpu: CpuId(2),
        message: "page table torn".into(),
    };
    let fake = Fake::new("panic", &[started(), panic], "sleep 600");
    let output = fake.run(&[]);
    assert_eq!(status(&output), Some(3), "{}", text(&output));
    assert!(text(&output).contains("page table torn"));
    assert!(is_gone(fake.pid()));
}

#[test]
fn a_machine_that_resets_without_word_is_3() {
    let fake = Fake::new("reset", &[started()], "exit 0");
    assert_eq!(status(&fake.run(&[])), Some(3));
}

#[test]
fn a_loader_that_gives_up_is_3() {
    let fake = Fake::new(
        "loader",
        &[],
        "echo 'perigee: cannot boot: kernel.elf is damaged'; sleep 600",
    );
    let output = fake.run(&[]);
    assert_eq!(status(&output), Some(3), "{}", text(&output));
    assert!(text(&output).contains("kernel.elf is damaged"));
}

#[test]
fn time_that_runs_out_is_4() {
    let fake = Fake::new("timeout", &[started()], "sleep 600");
    let output = fake.run(&["--timeout", "1"]);
    assert_eq!(status(&output), Some(4), "{}", text(&output));
    assert!(is_gone(fake.pid()));
}

#[test]
fn an_emulator_that_fails_is_5() {
    let fake = Fake::new("emulator", &[], "echo 'no such machine' >&2; exit 1");
    let output = fake.run(&[]);
    assert_eq!(status(&output), Some(5), "{}", text(&output));
    assert!(text(&output).contains("no such machine"));
}

#[test]
fn an_interrupt_is_130_and_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM] {
        // A grandchild in the emulator's group, too.
        let fake = Fake::new("interrupt", &[started()], "sleep 600 & sleep 600");
        let child = fake.command(&[]).spawn().expect("xtask starts");
        let emulator = fake.pid();
        kill_process(Pid::from_child(&child), signal).expect("xtask runs");
        let output = child.wait_with_output().expect("xtask ends");
        assert_eq!(status(&output), Some(130), "{signal:?}: {}", text(&output));
        assert!(is_gone(emulator), "{signal:?} left the emulator behind");
    }
}

#[test]
fn an_xtask_that_is_killed_takes_the_emulator_along() {
    let fake = Fake::new("killed", &[started()], "exec sleep 600");
    let mut child = fake.command(&[]).spawn().expect("xtask starts");
    let emulator = fake.pid();
    child.kill().expect("xtask runs");
    child.wait().expect("xtask ends");
    assert!(is_gone(emulator));
}

#[test]
fn a_dry_run_prints_a_line_and_starts_nothing() {
    let fake = Fake::new("dry", &[], "exit 0");
    let output = fake.run(&[
        "--dry-run",
        "--nodes",
        "2",
        "--cpus",
        "3",
        "--memory",
        "1G",
        "--gdb",
    ]);
    assert_eq!(status(&output), Some(0));
    let line = text(&output);
    assert_eq!(line.lines().count(), 1, "{line}");
    for part in [
        "/qemu ",
        "-smp 3,",
        "-m 1024M",
        "dist,src=0,dst=1",
        "-s -S",
        "/disk",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!fake.folder.join("pid").exists());
}
