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
    /// Again and again, in turns with honest work; `Once` of the second before.
    Turns(fn()),
}

const ATTACKS: &[(&str, How)] = &[
    ("count", How::Once(count::count)),
    ("keep", How::Once(scan::keep)),
    ("scan", How::Once(scan::scan)),
    ("ports", How::Once(registers::ports)),
    ("msrs", How::Once(registers::msrs)),
    ("xsetbv", How::Turns(registers::xsetbv)),
    ("hypercalls", How::Turns(registers::hypercalls)),
    ("cpuid", How::Turns(registers::cpuid)),
    ("mmio", How::Turns(mmio::odd)),
    ("mmio-execute", How::Once(mmio::execute)),
    ("mmio-tables", How::Once(mmio::tables)),
    ("mmio-stack", How::Once(mmio::stack)),
    ("mmio-descriptors", How::Once(mmio::descriptors)),
    ("beyond-memory", How::Turns(mmio::beyond)),
    ("self-ipi", How::Turns(storms::self_ipi)),
    ("nmi", How::Turns(storms::nmi)),
    ("level", How::Turns(storms::level)),
    ("timer", How::Turns(storms::timer)),
    ("console", How::Turns(storms::console)),
    ("code", How::Turns(storms::code)),
    ("debug-loop", How::Once(endless::debug_loop)),
    ("spin", How::Once(endless::spin)),
    ("never-exits", How::Once(endless::never_exits)),
    ("triple-fault", How::Once(endless::triple_fault)),
];

/// Length of one turn.
const TURN_US: u64 = 2_000_000;

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
            How::Turns(attack) => turns(*attack, kit::number("seconds").unwrap_or(8)),
        }
        cpu::cli();
        kit::serial::reset();
        print!("ATTACK {name} is over");
    }
    print!("GUEST-RESULT ok {names}");
}

/// Attacks and works by turns.
fn turns(attack: fn(), seconds: u64) {
    let began = cpu::tsc();
    while clock::us(began, cpu::tsc()) < seconds * 1_000_000 {
        for (what, step) in [("honest", work as fn()), ("attack", attack)] {
            print!("PHASE {what}");
            let from = cpu::tsc();
            while clock::us(from, cpu::tsc()) < TURN_US {
                step();
            }
            cpu::cli();
            kit::serial::reset();
        }
    }
    print!("PHASE over");
}

/// Honest work: keeps a processor busy and leaves it alone.
fn work() {
    let mut n = 1_u64;
    for _ in 0..200_000 {
        n = core::hint::black_box(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}
