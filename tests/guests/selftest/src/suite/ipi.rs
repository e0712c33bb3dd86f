//! Interrupts between processors, by memory and by model-specific registers (SDM 3A 11.6, 11.12).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use kit::apic::{self, ipi, reg};
use kit::{Test, Verdict, attempt, clock, cpu, ensure, processor, smp, this};

pub const TESTS: &[Test] = &[
    Test::new("ipi-self", to_self),
    Test::new("ipi-fixed", fixed).with_two(),
    Test::new("ipi-shorthands", shorthands).with_two(),
    Test::new("ipi-broadcast", broadcast).with_two(),
    Test::new("ipi-logical-flat", logical_flat).with_two(),
    Test::new("ipi-logical-cluster", logical_cluster).with_two(),
    Test::new("ipi-lowest-priority", lowest).with_two(),
    Test::new("ipi-nmi", nmi).with_two(),
    Test::new("ipi-init-sipi", init_sipi).with_two(),
    Test::new("ipi-ping-pong", ping_pong).with_two(),
    Test::new("x2apic-transitions", transitions).unless(no_x2apic),
    Test::new("x2apic-registers", || in_x2apic(registers)).unless(no_x2apic),
    Test::new("x2apic-ipi-self", || in_x2apic(x2apic_self)).unless(no_x2apic),
    Test::new("x2apic-ipi-fixed", || in_x2apic(fixed))
        .unless(no_x2apic)
        .with_two(),
    Test::new("x2apic-ipi-shorthands", || in_x2apic(shorthands))
        .unless(no_x2apic)
        .with_two(),
    Test::new("x2apic-ipi-broadcast", || in_x2apic(broadcast))
        .unless(no_x2apic)
        .with_two(),
    Test::new("x2apic-ipi-logical", || in_x2apic(x2apic_logical))
        .unless(no_x2apic)
        .with_two(),
    Test::new("x2apic-ipi-nmi", || in_x2apic(nmi))
        .unless(no_x2apic)
        .with_two(),
    Test::new("x2apic-ipi-init-sipi", || in_x2apic(init_sipi))
        .unless(no_x2apic)
        .with_two(),
];

const VECTOR: u8 = 0x61;
/// Not [`VECTOR`]: the last one of a game may come after its end.
const BALL_VECTOR: u8 = 0x62;
const NMI: u8 = 2;
/// How long an interrupt may take, in milliseconds; processors may be crowded.
const PATIENCE: u64 = 10_000;
/// How long to wait for what must not come, in microseconds.
const A_WHILE: u64 = 3_000;

fn no_x2apic() -> Option<&'static str> {
    (cpu::cpuid(1, 0).ecx >> 21 & 1 == 0).then_some("CPUID has no x2APIC")
}

fn id_of(index: usize) -> u32 {
    processor(index).apic_id.load(SeqCst)
}

/// Bits of the processors that `vector` came to, once it came to all of `expected` or patience ends.
fn receivers(vector: u8, expected: u32) -> u32 {
    let now = || {
        (0..smp::online())
            .filter(|index| processor(*index).hits(vector) > 0)
            .fold(0, |bits, index| bits | 1 << index)
    };
    clock::within_ms(PATIENCE, || now() & expected == expected);
    clock::delay_us(A_WHILE);
    now()
}

/// Sends, with interrupts on, and fails unless exactly `expected` receive it, each once.
fn sent(what: &str, command: u32, target: u32, expected: u32) -> Verdict {
    smp::forget();
    cpu::sti();
    apic::send(command | ipi::ASSERT | u32::from(VECTOR), target);
    let got = receivers(VECTOR, expected);
    cpu::cli();
    ensure!(
        got == expected,
        "{what} reached processors {got:#b}, not {expected:#b}"
    );
    let most = (0..smp::online()).map(|i| processor(i).hits(VECTOR)).max();
    ensure!(most <= Some(1), "{what} came {most:?} times");
    Ok(())
}

fn everyone() -> u32 {
    (1 << smp::online()) - 1
}

fn to_self() -> Verdict {
    sent("a fixed interrupt to oneself", ipi::FIXED, id_of(0), 1)?;
    sent("the shorthand for oneself", ipi::SELF, 0, 1)
}

fn fixed() -> Verdict {
    for index in 0..smp::online() {
        sent("a fixed interrupt", ipi::FIXED, id_of(index), 1 << index)?;
    }
    // To nobody.
    sent("a fixed interrupt to nobody", ipi::FIXED, 0xee, 0)
}

fn shorthands() -> Verdict {
    sent("\"all\"", ipi::ALL, 0, everyone())?;
    sent("\"all but oneself\"", ipi::OTHERS, 0, everyone() & !1)?;
    sent("\"oneself\"", ipi::SELF, 0, 1)
}

fn broadcast() -> Verdict {
    let all = if apic::x2apic() { u32::MAX } else { 0xff };
    sent("the broadcast address", ipi::FIXED, all, everyone())
}

/// Gives each processor the logical identifier that `LOGICAL_IDS` holds for it, in this model.
fn set_logical(model: u32, id: fn(usize) -> u32) -> bool {
    static MODEL: AtomicU32 = AtomicU32::new(0);
    static IDS: [AtomicU32; kit::MAX_CPUS] = [const { AtomicU32::new(0) }; kit::MAX_CPUS];
    MODEL.store(model, SeqCst);
    (0..smp::online()).for_each(|i| IDS[i].store(id(i) << 24, SeqCst));
    smp::everywhere(PATIENCE, || {
        apic::write(reg::DFR, MODEL.load(SeqCst));
        apic::write(reg::LDR, IDS[this().index].load(SeqCst));
    })
}

fn logical_flat() -> Verdict {
    ensure!(
        set_logical(u32::MAX, |i| 1 << (i % 8)),
        "a processor does not answer"
    );
    sent("logical 1", ipi::LOGICAL, 1, members(|i| i % 8 == 0))?;
    sent("logical 2", ipi::LOGICAL, 2, members(|i| i % 8 == 1))?;
    sent("logical 3", ipi::LOGICAL, 3, members(|i| i % 8 < 2))?;
    sent("logical FFh", ipi::LOGICAL, 0xff, everyone())?;
    ensure!(set_logical(u32::MAX, |_| 0), "a processor does not answer");
    sent("logical FEh without members", ipi::LOGICAL, 0xfe, 0)
}

fn members(of: fn(usize) -> bool) -> u32 {
    (0..smp::online())
        .filter(|i| of(*i))
        .fold(0, |bits, i| bits | 1 << i)
}

fn logical_cluster() -> Verdict {
    // Two clusters, dealt out in turn.
    let id = |i: usize| (i as u32 % 2) << 4 | 1 << (i / 2 % 4);
    ensure!(set_logical(0x0fff_ffff, id), "a processor does not answer");
    sent(
        "member 1 of cluster 0",
        ipi::LOGICAL,
        0x01,
        members(|i| i % 2 == 0 && i / 2 % 4 == 0),
    )?;
    sent(
        "all of cluster 1",
        ipi::LOGICAL,
        0x1f,
        members(|i| i % 2 == 1),
    )?;
    let reset = set_logical(u32::MAX, |_| 0);
    ensure!(reset, "a processor does not answer");
    Ok(())
}

fn lowest() -> Verdict {
    ensure!(
        set_logical(u32::MAX, |i| 1 << (i % 8)),
        "a processor does not answer"
    );
    for _ in 0..20 {
        smp::forget();
        cpu::sti();
        apic::send(
            ipi::LOWEST | ipi::LOGICAL | ipi::ASSERT | u32::from(VECTOR),
            0b11,
        );
        let total = || {
            (0..smp::online())
                .map(|i| processor(i).hits(VECTOR))
                .sum::<u32>()
        };
        clock::within_ms(PATIENCE, || total() > 0);
        clock::delay_us(A_WHILE);
        cpu::cli();
        ensure!(
            total() == 1,
            "an interrupt for one of two came {} times",
            total()
        );
        let outside = (2..smp::online().min(8)).any(|i| processor(i).hits(VECTOR) > 0);
        ensure!(!outside, "it came to a processor that was not asked");
    }
    Ok(())
}

fn nmi() -> Verdict {
    for index in 1..smp::online() {
        smp::forget();
        apic::send(ipi::NMI | ipi::ASSERT, id_of(index));
        let got = receivers(NMI, 1 << index);
        ensure!(
            got == 1 << index,
            "an NMI for processor {index} reached {got:#b}"
        );
    }
    Ok(())
}

static ALIVE: AtomicU64 = AtomicU64::new(0);

/// INIT stops a processor, two start-ups bring it back to where it began.
fn init_sipi() -> Verdict {
    let was_x2apic = apic::x2apic();
    let target = id_of(1);
    smp::give(1, || {
        loop {
            ALIVE.fetch_add(1, SeqCst);
            cpu::pause();
        }
    });
    let before = ALIVE.load(SeqCst);
    ensure!(
        clock::within_ms(PATIENCE, || ALIVE.load(SeqCst) > before),
        "processor 1 does not run"
    );
    apic::send(ipi::INIT | ipi::ASSERT, target);
    // The INIT may take its time; what counts is that the count stops.
    let stopped = clock::within_ms(PATIENCE, || {
        let before = ALIVE.load(SeqCst);
        clock::delay_us(20_000);
        ALIVE.load(SeqCst) == before
    });
    ensure!(stopped, "INIT does not stop processor 1");
    smp::forget();
    apic::send(ipi::ASSERT | u32::from(VECTOR), target);
    clock::delay_us(A_WHILE);
    ensure!(
        processor(1).hits(VECTOR) == 0,
        "a processor that waits for start-up takes interrupts"
    );
    smp::number_next(1);
    smp::wake(0, target);
    let back = smp::done_within_ms(1, PATIENCE);
    ensure!(back, "processor 1 does not come back by INIT and start-up");
    smp::give(1, || ALIVE.store(u64::from(apic::x2apic()), SeqCst));
    ensure!(
        smp::done_within_ms(1, PATIENCE),
        "processor 1 came back and does nothing"
    );
    let mode = ALIVE.load(SeqCst) != 0;
    // INIT leaves IA32_APIC_BASE alone (SDM 3A 11.12.5.1).
    ensure!(
        mode == was_x2apic,
        "INIT changed the mode of the local APIC"
    );
    smp::give(1, apic::switch_on);
    ensure!(
        smp::done_within_ms(1, PATIENCE),
        "processor 1 is gone again"
    );
    Ok(())
}

static BALL: AtomicU32 = AtomicU32::new(0);
static PLAYED: AtomicU32 = AtomicU32::new(0);

/// Two processors wake each other from HLT by turns: no wake-up may be lost.
fn ping_pong() -> Verdict {
    const ROUNDS: u32 = 300;
    fn play(me: u32) {
        let other = id_of(1 - me as usize);
        while BALL.load(SeqCst) < 2 * ROUNDS {
            cpu::cli();
            while BALL.load(SeqCst) % 2 != me && BALL.load(SeqCst) < 2 * ROUNDS {
                cpu::sti_hlt();
                cpu::cli();
            }
            cpu::sti();
            if BALL.load(SeqCst) >= 2 * ROUNDS {
                break;
            }
            PLAYED.fetch_add(1, SeqCst);
            BALL.fetch_add(1, SeqCst);
            apic::send(ipi::ASSERT | u32::from(BALL_VECTOR), other);
        }
        apic::send(ipi::ASSERT | u32::from(BALL_VECTOR), other);
    }
    BALL.store(0, SeqCst);
    PLAYED.store(0, SeqCst);
    smp::give(1, || play(1));
    play(0);
    cpu::cli();
    ensure!(
        smp::done_within_ms(1, 60_000),
        "the other processor lost a wake-up"
    );
    ensure!(
        PLAYED.load(SeqCst) == 2 * ROUNDS,
        "{} turns were played",
        PLAYED.load(SeqCst)
    );
    Ok(())
}

/// Runs `test` with all processors in x2APIC mode.
fn in_x2apic(test: fn() -> Verdict) -> Verdict {
    ensure!(
        smp::everywhere(PATIENCE, || apic::set_x2apic(true)),
        "x2APIC mode is not reached everywhere"
    );
    let verdict = test();
    cpu::cli();
    ensure!(
        smp::everywhere(PATIENCE, || apic::set_x2apic(false)),
        "x2APIC mode is not left everywhere"
    );
    verdict
}

fn write_base(value: u64) -> Option<kit::Caught> {
    attempt!("wrmsr"; in("ecx") apic::BASE_MSR, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

/// The steps between off, memory and x2APIC that there are, and those that there are not (SDM 3A figure 11-27).
fn transitions() -> Verdict {
    let base = cpu::rdmsr(apic::BASE_MSR);
    let off = base & !(apic::BASE_ENABLE | apic::BASE_X2APIC);
    let memory = off | apic::BASE_ENABLE;
    let x2apic = memory | apic::BASE_X2APIC;
    ensure!(
        write_base(off | apic::BASE_X2APIC).is_some_and(|c| c.vector == 13),
        "x2APIC without enable is accepted"
    );
    ensure!(write_base(x2apic).is_none(), "memory to x2APIC is refused");
    ensure!(
        write_base(memory).is_some_and(|c| c.vector == 13),
        "x2APIC to memory is accepted"
    );
    ensure!(write_base(off).is_none(), "x2APIC to off is refused");
    ensure!(
        write_base(x2apic).is_some_and(|c| c.vector == 13),
        "off to x2APIC is accepted"
    );
    ensure!(write_base(memory).is_none(), "off to memory is refused");
    apic::switch_on();
    to_self()
}

fn registers() -> Verdict {
    let id = cpu::rdmsr(0x802);
    let logical = cpu::rdmsr(0x80d);
    let wanted = (id >> 4) << 16 | 1 << (id & 0xf);
    ensure!(
        logical == wanted,
        "identifier {id} gives the logical {logical:#x}, not {wanted:#x}"
    );
    let leaf = cpu::cpuid_if_any(0xb, 0).edx;
    ensure!(
        leaf == 0 || u64::from(leaf) == id,
        "the identifier is {id}, CPUID says {leaf}"
    );
    let format = attempt!("rdmsr"; in("ecx") 0x80e, out("eax") _, out("edx") _);
    ensure!(
        format.is_some_and(|c| c.vector == 13),
        "the destination format exists in x2APIC mode"
    );
    let read_only = attempt!("wrmsr"; in("ecx") 0x802, in("eax") 1, in("edx") 0);
    ensure!(
        read_only.is_some_and(|c| c.vector == 13),
        "the identifier can be written"
    );
    Ok(())
}

fn x2apic_self() -> Verdict {
    smp::forget();
    cpu::sti();
    cpu::wrmsr(0x83f, VECTOR.into());
    let got = receivers(VECTOR, 1);
    cpu::cli();
    ensure!(got == 1, "SELF IPI reached {got:#b}");
    to_self()
}

fn x2apic_logical() -> Verdict {
    let logical = |index: usize| (id_of(index) >> 4) << 16 | 1 << (id_of(index) & 0xf);
    for index in 0..smp::online() {
        sent(
            "a logical identifier",
            ipi::LOGICAL,
            logical(index),
            1 << index,
        )?;
    }
    let both = (logical(0) | logical(1)) & 0xffff | logical(0) & 0xffff_0000;
    if logical(0) >> 16 == logical(1) >> 16 {
        sent("two of a cluster", ipi::LOGICAL, both, 0b11)?;
    }
    Ok(())
}
