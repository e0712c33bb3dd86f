//! QEMU's command line.

use std::path::Path;

use scenarios::Machine;

use crate::launch::{Invocation, Wiring};
use crate::provision::Qemu;

/// A path inside one of QEMU's comma-separated options.
fn in_option(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

impl Invocation {
    /// COM1 is the console, on the emulator's own input and output; COM2 writes the kernel's records
    /// to a file.
    pub fn qemu(
        qemu: &Qemu,
        machine: &Machine,
        firmware: &Path,
        disk: &Path,
        records: &Path,
    ) -> Self {
        let mut args = qemu.first_args.clone();
        args.extend(machine.qemu_args());
        let devices = [
            ("-accel", qemu.acceleration().to_string()),
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
            wiring: Wiring::Stdio,
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
            ("-accel", qemu.acceleration().into()),
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
            wiring: Wiring::Stdio,
        }
    }

    /// On the host's own processor.
    pub fn with_kvm(mut self) -> Self {
        for arg in &mut self.args {
            if arg.starts_with("tcg,") {
                *arg = "kvm".into();
            }
        }
        self
    }

    /// Waits for a debugger on TCP port 1234 before the first instruction.
    pub fn with_gdb(mut self) -> Self {
        self.args.extend(["-s".into(), "-S".into()]);
        self
    }

    /// Listening for commands on this socket; it then also waits to be dismissed when its machine goes off.
    pub fn with_control(mut self, socket: &Path) -> Self {
        self.args.extend([
            "-no-shutdown".into(),
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
}
