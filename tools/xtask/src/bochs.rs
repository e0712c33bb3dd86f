//! Bochs' command line and configuration.
//!
//! The machine boots from the same disk as everywhere, in a volatile mode in which nothing is written to it. Both serial ports
//! are TCP connections, because what Bochs writes to a file or a pipe arrives late. There is no screen: the
//! display waits for a viewer that never comes.

use std::path::Path;

use scenarios::Machine;

use crate::launch::{Invocation, PORTS, Wiring};
use crate::provision::Bochs;
use crate::run::Places;

/// The firmware's image ends at 4 GiB.
const FIRMWARE_END: u64 = 1 << 32;
/// Instructions for each second of the machine's time, for all CPUs together as fast as a host of today makes them. Less
/// makes waiting loops shorter, and interrupts more frequent than the machine can bear.
const INSTRUCTIONS_PER_SECOND: u32 = 100_000_000;
/// What it says when somebody writes "Shutdown" to port 8900h.
const FAREWELL: &str = "shutdown requested";

impl Invocation {
    /// The run's folder gets its configuration and its log, the scratch folder what the disk would have got.
    pub fn bochs(
        bochs: &Bochs,
        machine: &Machine,
        firmware: &Path,
        records: &Path,
        places: Places<'_>,
    ) -> Self {
        let folder = places.folder;
        let (file, commands) = (folder.join("bochsrc"), folder.join("bochs-commands"));
        let mut args: Vec<String> = vec!["-q".into(), "-f".into(), file.display().to_string()];
        let text = configuration(bochs, machine, firmware, places);
        let mut files = vec![(file, text)];
        if bochs.has_debugger {
            args.extend(["-rc".into(), commands.display().to_string()]);
            files.push((commands, "continue\n".into()));
        }
        Self {
            env: bochs.env.clone(),
            program: bochs.program.display().to_string(),
            args,
            wiring: Wiring::Sockets {
                files,
                records: records.into(),
                farewell: FAREWELL,
            },
        }
    }
}

fn configuration(
    bochs: &Bochs,
    machine: &Machine,
    firmware: &Path,
    Places {
        disk,
        folder,
        scratch,
    }: Places<'_>,
) -> String {
    let size = std::fs::metadata(firmware).map_or(0, |m| m.len());
    let address = FIRMWARE_END - size;
    let mib = machine.memory_mib();
    let [com1, com2] = PORTS;
    let silence = ["", "sound: driver=dummy"][usize::from(bochs.has_sound)];
    let lines = [
        "plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=0, serial=1".into(),
        "display_library: rfb, options=\"timeout=0\"".into(),
        silence.into(),
        format!(
            "romimage: file=\"{}\", address={address:#x}",
            firmware.display()
        ),
        format!("vgaromimage: file=\"{}\"", bochs.vga_bios.display()),
        format!(
            "cpu: model={}, count={}, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, ignore_bad_msrs=1",
            machine.bochs_cpu,
            machine.cpus()
        ),
        format!("memory: guest={mib}, host={mib}"),
        "pci: enabled=1, chipset=i440fx".into(),
        format!(
            "ata0-master: type=disk, mode=volatile, path=\"{}\", journal=\"{}\"",
            disk.display(),
            scratch.join("journal").display()
        ),
        "boot: disk".into(),
        "clock: sync=none".into(),
        format!("com1: enabled=1, mode=socket-client, dev=127.0.0.1:{com1}"),
        format!("com2: enabled=1, mode=socket-client, dev=127.0.0.1:{com2}"),
        "mouse: enabled=0".into(),
        format!("log: {}", folder.join("bochs.log").display()),
        "panic: action=fatal".into(),
        "error: action=report".into(),
        "info: action=ignore".into(),
        "debug: action=ignore".into(),
    ];
    lines.map(|line: String| line + "\n").concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_in_the_configuration() {
        let bochs = Bochs {
            program: "/opt/bochs".into(),
            env: Vec::new(),
            vga_bios: "/opt/vga.bin".into(),
            version: "2.7".into(),
            has_debugger: true,
            has_sound: true,
        };
        let machine = Machine::row(2, 3, 256).with_bochs_cpu("core2_penryn_t9600");
        let at = Path::new;
        let line = Invocation::bochs(
            &bochs,
            &machine,
            at("/nowhere/OVMF.fd"),
            at("/tmp/records"),
            Places {
                disk: at("/tmp/medium.img"),
                folder: at("/tmp/run"),
                scratch: at("/tmp/scratch"),
            },
        );
        let text = line.to_string();
        for word in [
            "/opt/bochs -q -f /tmp/run/bochsrc -rc /tmp/run/bochs-commands",
            "model=core2_penryn_t9600, count=6,",
            "memory: guest=512, host=512",
            "mode=volatile, path=\"/tmp/medium.img\", journal=\"/tmp/scratch/journal\"",
            "com1: enabled=1, mode=socket-client, dev=127.0.0.1:@COM1@",
        ] {
            assert!(text.contains(word), "{word} is not in: {text}");
        }
    }
}
