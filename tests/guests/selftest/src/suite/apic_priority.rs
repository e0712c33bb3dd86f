//! Which interrupt comes when several want to (SDM 3A 11.8.3).

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use kit::apic::{self, reg};
use kit::{Frame, Test, Verdict, clock, cpu, ensure, this, trap};

pub const TESTS: &[Test] = &[
    Test::new("apic-identity", identity),
    Test::new("apic-bootstrap-flag", bootstrap_flag).with_two(),
    Test::new("apic-priority-order", order),
    Test::new("apic-priority-nesting", nesting),
    Test::new("apic-task-priority", task_priority),
    Test::new("apic-cr8", cr8),
    Test::new("apic-software-disable", software_disable).unless(kit::plain_emulator),
    Test::new("apic-spurious-vector", svr),
];

fn identity() -> Verdict {
    let version = apic::read(reg::VERSION);
    let (id, leaf) = (apic::id(), cpu::cpuid(1, 0).ebx >> 24);
    ensure!(version & 0xf0 == 0x10, "the version is {version:#x}");
    ensure!(
        version >> 16 & 0xff >= 4,
        "there are {} local entries",
        (version >> 16 & 0xff) + 1
    );
    ensure!(id == leaf, "the identifier is {id}, CPUID says {leaf}");
    ensure!(
        cpu::rdmsr(apic::BASE_MSR) & !0xfff == apic::BASE,
        "the base is elsewhere"
    );
    Ok(())
}

static BOOTSTRAP: AtomicU32 = AtomicU32::new(0);

fn bootstrap_flag() -> Verdict {
    BOOTSTRAP.store(0, SeqCst);
    let all = kit::smp::everywhere(20_000, || {
        let is = cpu::rdmsr(apic::BASE_MSR) & apic::BASE_BSP != 0;
        BOOTSTRAP.fetch_or(u32::from(is) << this().index, SeqCst);
    });
    ensure!(all, "a processor does not answer");
    let set = BOOTSTRAP.load(SeqCst);
    ensure!(
        set == 1,
        "processors with the bootstrap flag, as bits: {set:#b}"
    );
    Ok(())
}

static ORDER: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];
static NEXT: AtomicUsize = AtomicUsize::new(0);

fn note(frame: &mut Frame) {
    if let Some(place) = ORDER.get(NEXT.fetch_add(1, SeqCst)) {
        place.store(frame.vector as u32, SeqCst);
    }
    apic::end_of_interrupt();
}

fn order() -> Verdict {
    NEXT.store(0, SeqCst);
    let vectors = [0x35_u8, 0x75, 0x36, 0x55];
    cpu::cli();
    for vector in vectors {
        trap::on(vector, note);
        apic::send_self(vector);
        apic::send_self(vector);
    }
    let requested = vectors.iter().all(|v| apic::bit(reg::IRR, *v));
    cpu::sti();
    clock::within_ms(5_000, || NEXT.load(SeqCst) >= 4);
    cpu::cli();
    let left = vectors
        .iter()
        .any(|v| apic::bit(reg::IRR, *v) || apic::bit(reg::ISR, *v));
    vectors.iter().for_each(|v| trap::off(*v));
    let seen = ORDER.each_ref().map(|v| v.load(SeqCst));
    ensure!(requested, "IRR does not show what waits");
    ensure!(seen == [0x75, 0x55, 0x36, 0x35], "the order was {seen:x?}");
    ensure!(
        NEXT.load(SeqCst) == 4,
        "{} interrupts came, each vector once was expected",
        NEXT.load(SeqCst)
    );
    ensure!(!left, "IRR or ISR still shows some");
    Ok(())
}

static INSIDE: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];

/// Without ending its own, it opens the door: only a higher class may come.
fn nest(_: &mut Frame) {
    apic::send_self(0x5e);
    apic::send_self(0x68);
    cpu::sti();
    clock::within_ms(5_000, || this().hits(0x68) > 0);
    INSIDE[0].store(this().hits(0x5e), SeqCst);
    INSIDE[1].store(this().hits(0x68), SeqCst);
    INSIDE[2].store(apic::read(reg::PPR), SeqCst);
    INSIDE[3].store(u32::from(apic::bit(reg::ISR, 0x52)), SeqCst);
    cpu::cli();
    apic::end_of_interrupt();
}

fn nesting() -> Verdict {
    trap::on(0x52, nest);
    apic::send_self(0x52);
    cpu::sti();
    let came = clock::within_ms(5_000, || this().hits(0x5e) > 0);
    cpu::cli();
    trap::off(0x52);
    let [lower, higher, priority, in_service] = INSIDE.each_ref().map(|n| n.load(SeqCst));
    ensure!(
        lower == 0,
        "a vector of the same class came into the handler"
    );
    ensure!(
        higher == 1,
        "a vector of a higher class came {higher} times into the handler"
    );
    ensure!(
        priority & 0xf0 == 0x50,
        "the processor priority inside is {priority:#x}"
    );
    ensure!(
        in_service == 1,
        "ISR does not show the vector in its handler"
    );
    ensure!(came, "the lower vector never came");
    Ok(())
}

fn task_priority() -> Verdict {
    apic::write(reg::TPR, 0x5f);
    apic::send_self(0x5a);
    apic::send_self(0x61);
    cpu::sti();
    clock::within_ms(5_000, || this().hits(0x61) > 0);
    clock::delay_us(500);
    let (held, higher) = (this().hits(0x5a), this().hits(0x61));
    apic::write(reg::TPR, 0x4f);
    let came = clock::within_ms(5_000, || this().hits(0x5a) > 0);
    cpu::cli();
    apic::write(reg::TPR, 0);
    ensure!(held == 0, "a vector at the task priority came");
    ensure!(
        higher == 1,
        "a vector above the task priority came {higher} times"
    );
    ensure!(came, "the vector did not come when the task priority fell");
    Ok(())
}

fn cr8() -> Verdict {
    cpu::set_cr8(5);
    let tpr = apic::read(reg::TPR);
    apic::send_self(0x5a);
    cpu::sti();
    clock::delay_us(500);
    let held = this().hits(0x5a);
    // Without any exit that the hypervisor must see.
    cpu::set_cr8(4);
    let came = clock::within_ms(5_000, || this().hits(0x5a) == 1);
    cpu::cli();
    apic::write(reg::TPR, 0x37);
    let mirrored = cpu::cr8();
    apic::write(reg::TPR, 0);
    ensure!(
        tpr & 0xf0 == 0x50,
        "CR8 of 5 shows as a task priority of {tpr:#x}"
    );
    ensure!(held == 0, "a vector came that CR8 holds back");
    ensure!(came, "the vector did not come when CR8 fell");
    ensure!(
        mirrored == 3,
        "a task priority of 37h shows as CR8 of {mirrored}"
    );
    Ok(())
}

fn software_disable() -> Verdict {
    apic::write(reg::TIMER, 0x44);
    apic::software_enable(false);
    let masked = apic::read(reg::TIMER) & apic::MASKED != 0;
    apic::write(reg::TIMER, 0x44);
    let stays = apic::read(reg::TIMER) & apic::MASKED != 0;
    cpu::sti();
    clock::delay_us(1_000);
    cpu::cli();
    apic::software_enable(true);
    apic::switch_on();
    ensure!(masked, "turning the APIC off does not mask its entries");
    ensure!(stays, "an entry of an APIC that is off can be unmasked");
    Ok(())
}

fn svr() -> Verdict {
    let value = apic::read(reg::SVR);
    ensure!(
        value & 0x1ff == 0x1ff,
        "the spurious vector register reads {value:#x}"
    );
    apic::write(reg::EOI, 0);
    ensure!(
        this().hits(apic::SPURIOUS) == 0,
        "an end of interrupt without one raises something"
    );
    Ok(())
}
