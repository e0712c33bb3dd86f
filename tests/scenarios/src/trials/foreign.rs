//! Kernels that are not Linux: loaded by the Multiboot protocol, judged by their own verdict.

use std::time::Duration;

use crate::{Evidence, GuestKernel, Machine, Outcome, Scenario, Vm, selftest};

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::quick(
            "multiboot-kernels",
            "Multiboot kernels get command line, module, CPU count and stack; each one's exit value is its verdict and \
             the run's, and one that is configured as Linux is refused with the way out",
            judge,
        )
        .on(Machine::row(1, 2, 512))
        .within(Duration::from_secs(300))
        .vm(flat("right").set("cpus", "3"))
        // It counts the CPUs and is not content with two.
        .vm(flat("wrong").set("cpus", "2"))
        .vm(flat("mistaken").set("boot", "\"linux\"").without_initrd()),
        Scenario::quick(
            "processor-corners",
            "corners of the processor that foreign test kernels look into: control registers read back, XSETBV without \
             OSXSAVE, selectors and frames in a device, an NMI that comes with the IRET of another's handler",
            |e| {
                let lines: Vec<_> = e.guest_lines("corners").map(|line| line.what).collect();
                selftest::judge(lines.iter().copied(), &["mce-cleared"])?;
                match &e.outcome {
                    Outcome::Clean => Ok(()),
                    other => Err(format!("the run ended otherwise than cleanly: {other}")),
                }
            },
        )
        .on(Machine::row(1, 2, 256))
        .within(Duration::from_secs(300))
        .vm(Vm::micro("corners", "corners", "").set("test_devices", "true")),
    ]
}

/// A VM with the flat kernel, which is its own module.
fn flat(name: &str) -> Vm {
    let mut vm = Vm::linux(name)
        .kernel(GuestKernel::Flat)
        .append("one two=3")
        .set("memory", "\"16M\"")
        .set("boot", "\"multiboot\"")
        .set("test_devices", "true");
    vm.initrd = Some("flat first,second".replace(',', ",,").into());
    vm
}

fn judge(e: &Evidence) -> Result<(), String> {
    let exits = ["right", "wrong"].map(|vm| e.guest(vm).test_exit);
    if exits != [Some(0), Some(1)] {
        return Err(format!("the exit values are {exits:?}, not 0 and 1"));
    }
    for line in ["guests/flat one two=3", "guests/flat first,second"] {
        if !e.guest_lines("right").any(|l| l.what == line) {
            return Err(format!("the kernel did not print {line:?}"));
        }
    }
    for line in [
        "right passed its test: exit value 0, status 1",
        "wrong failed its test: exit value 1, status 3",
        "`boot = \"multiboot\"` loads it",
    ] {
        e.line(line)
            .ok_or_else(|| format!("no line says {line:?}"))?;
    }
    match &e.outcome {
        Outcome::GuestFailed(why)
            if why.contains("wrong failed its test") && !why.contains("right") =>
        {
            Ok(())
        }
        other => Err(format!("it ended as: {other}")),
    }
}
