//! All attacks by name.
#![expect(unsafe_code, reason = "attacks are written in instructions")]

use kit::{clock, cpu, print};

mod count;
mod endless;
mod mmio;
mod registers;
mod scan;
mod storms;

kit::guest!("hostile", main);

/// How an attack is made.
enum How {
    /// It comes to an end, or the VM does.
    Once(fn()),
    /// Again and again, for `seconds=`.
    Storm(fn()),
}

const ATTACKS: &[(&str, How)] = &[
    ("count", How::Once(count::count)),
    ("keep", How::Once(scan::keep)),
    ("scan", How::Once(scan::scan)),
    ("ports", How::Once(registers::ports)),
    ("msrs", How::Once(registers::msrs)),
    ("xsetbv", How::Storm(registers::xsetbv)),
    ("hypercalls", How::Storm(registers::hypercalls)),
    ("cpuid", How::Storm(registers::cpuid)),
    ("mmio", How::Storm(mmio::odd)),
    ("mmio-refused", How::Once(mmio::refused)),
    ("mmio-execute", How::Once(mmio::execute)),
    ("mmio-tables", How::Once(mmio::tables)),
    ("mmio-stack", How::Once(mmio::stack)),
    ("mmio-descriptors", How::Once(mmio::descriptors)),
    ("beyond-memory", How::Storm(mmio::beyond)),
    ("self-ipi", How::Storm(storms::self_ipi)),
    ("nmi", How::Storm(storms::nmi)),
    ("level", How::Storm(storms::level)),
    ("timer", How::Storm(storms::timer)),
    ("console", How::Storm(storms::console)),
    ("code", How::Storm(storms::code)),
    ("debug-loop", How::Once(endless::debug_loop)),
    ("debug-storm", How::Once(endless::debug_storm)),
    ("alignment-loop", How::Once(endless::alignment_loop)),
    ("spin", How::Once(endless::spin)),
    ("never-exits", How::Once(endless::never_exits)),
    ("triple-fault", How::Once(endless::triple_fault)),
];

fn main() {
    let names = kit::word("attack").unwrap_or("count");
    for name in names.split(',') {
        let Some((name, how)) = ATTACKS.iter().find(|(known, _)| *known == name) else {
            print!("GUEST-RESULT failed: there is no attack {name}");
            kit::power::off(1)
        };
        print!("ATTACK {name} begins");
        match how {
            How::Once(attack) => attack(),
            How::Storm(step) => storm(*step, kit::number("seconds").unwrap_or(8)),
        }
        cpu::cli();
        kit::serial::reset();
        print!("ATTACK {name} is over");
    }
    print!("GUEST-RESULT ok {names}");
}

/// Attacks for so many seconds.
fn storm(step: fn(), seconds: u64) {
    let began = cpu::tsc();
    while clock::us(began, cpu::tsc()) < seconds * 1_000_000 {
        step();
    }
}
