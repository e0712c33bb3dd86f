//! The person's terminal: raw while the machine runs, as before afterwards, whatever ends it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

/// A person at a terminal: what they type goes into the file, what they see comes out of it.
struct Person {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    terminal: OwnedFd,
    /// Its settings before anything was started.
    before: Termios,
    folder: PathBuf,
    child: Child,
}

impl Person {
    /// Starts `cargo xtask run` at a terminal, with a script for an emulator.
    fn starts(name: &str, emulator: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("perigee-tty-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a temporary folder");
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in --version) echo 'QEMU emulator version 10.0.2'; exit 0;; esac\n{emulator}\n"
        );
        for (file, text) in [("qemu", script.as_str()), ("disk", ""), ("firmware", "")] {
            fs::write(folder.join(file), text).expect("a temporary file");
        }
        fs::set_permissions(folder.join("qemu"), fs::Permissions::from_mode(0o755))
            .expect("our file");

        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a terminal");
        grantpt(&keyboard).expect("ours");
        unlockpt(&keyboard).expect("ours");
        let name = ptsname(&keyboard, Vec::new()).expect("a name");
        let terminal = rustix::fs::open(
            &name,
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .expect("there");
        let before = tcgetattr(&terminal).expect("a terminal");
        let end = || terminal.try_clone().expect("a descriptor");
        // util-linux' setsid makes the terminal the session's own, as a login does.
        let child = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_xtask"), "run", "--image"])
            .arg(folder.join("disk"))
            .env("PERIGEE_QEMU", folder.join("qemu"))
            .env("PERIGEE_OVMF", folder.join("firmware"))
            .env("CARGO_TARGET_DIR", folder.join("target"))
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("setsid is part of every Linux");
        let keyboard = File::from(keyboard);
        let mut from = keyboard.try_clone().expect("a descriptor");
        let (to, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                if to.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            keyboard,
            screen,
            terminal,
            before,
            folder,
            child,
        }
    }

    fn settings(&self) -> Termios {
        tcgetattr(&self.terminal).expect("a terminal")
    }

    fn has_its_terminal_back(&self) -> bool {
        format!("{:?}", self.before) == format!("{:?}", self.settings())
    }

    fn waits_for_raw_mode(&self) {
        let begun = Instant::now();
        while self.settings().local_modes.contains(LocalModes::ICANON) {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "the terminal never became raw"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn types(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("a terminal");
    }

    /// What comes to the screen, up to the first piece with which it contains `text`.
    fn sees(&mut self, text: &str) -> String {
        let mut screen = String::new();
        while !screen.contains(text) {
            match self.screen.recv_timeout(Duration::from_secs(20)) {
                Ok(piece) => screen += &String::from_utf8_lossy(&piece),
                Err(_) => panic!("{text:?} never came; the screen shows: {screen:?}"),
            }
        }
        screen
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn ctrl_c_ends_the_run_and_gives_the_terminal_back() {
    let mut person = Person::starts("ctrl-c", "exec sleep 600");
    person.waits_for_raw_mode();
    person.types(b"\x03");
    let screen = person.sees("exit status 130");
    assert!(screen.starts_with("Stop: Ctrl-C."), "{screen}");
    assert_eq!(person.child.wait().expect("ours").code(), Some(130));
    assert!(person.has_its_terminal_back());
}

#[test]
fn sigterm_gives_the_terminal_back() {
    let mut person = Person::starts("sigterm", "exec sleep 600");
    person.waits_for_raw_mode();
    kill_process(Pid::from_child(&person.child), Signal::TERM).expect("it runs");
    person.sees("exit status 130");
    assert_eq!(person.child.wait().expect("ours").code(), Some(130));
    assert!(person.has_its_terminal_back());
}

#[test]
fn keys_reach_the_machine_once_the_kernel_runs_and_firmware_s_screen_control_does_not_reach_the_person()
 {
    let machine = "printf '\\033[2JBdsDxe\\n'; sleep 1; echo 'entering the kernel'; read -r line; echo \"typed: $line\"; exec sleep 600";
    let mut person = Person::starts("keys", machine);
    person.waits_for_raw_mode();
    person.types(b"lost on firmware");
    let screen = person.sees("entering the kernel");
    assert!(
        !screen.contains("\x1b[2J"),
        "firmware cleared the screen: {screen:?}"
    );
    std::thread::sleep(Duration::from_millis(300));
    person.types(b"\x01n topology\n");
    let screen = person.sees("topology");
    assert!(
        screen.contains("typed: ") && !screen.contains("lost on firmware"),
        "{screen:?}"
    );
    person.types(b"\x03");
    person.sees("exit status 130");
}
