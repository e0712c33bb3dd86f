//! A micro-kernel for measurements: it does one thing at a time, and says so to the observer outside.
//!
//! An ordinary guest is too rich to measure with: what it touches and which exits it causes nobody knows
//! exactly. This one is entered by Linux' 64-bit boot protocol, with its memory mapped one to one, so
//! a linear address *is* a guest-physical one. Its command line says what it does:
//!
//! | words | what |
//! |---|---|
//! | `bench count=N` | N operations of each class of exit ([`bench`]); with `ticks` by its own clock, too ([`ticks`]) |
//! | `touch layout=NAME seed=S mib=M seconds=T [windows=N pause=T]` | visits pages as the seed draws ([`touch`]) |
//! | `idle seconds=T [ms=N] [ends]` | sleeps, woken every N milliseconds |
//! | `count seconds=T` | counts its own progress ([`count`]) |
//! | `exact seed=S rounds=N from=MIB mib=M step=4k or 2m` | reads and writes drawn blocks once each ([`exact`]) |
//!
//! `cpus=2` starts a second processor for what can use one.
//!
//! Like the Linux guests it says `GUEST-UP cpus=N` and, at its end, `GUEST-RESULT ok ...`, and powers off.
//! Marks for the observer are NOPs with a magic displacement ([`mark`]).
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod apic;
#[cfg(target_os = "none")]
mod bench;
#[cfg(target_os = "none")]
mod board;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod count;
#[cfg(target_os = "none")]
mod cpu;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod exact;
#[cfg(target_os = "none")]
mod mark;
#[cfg(target_os = "none")]
mod second;
#[cfg(target_os = "none")]
mod ticks;
#[cfg(target_os = "none")]
mod touch;
#[cfg(target_os = "none")]
mod words;

#[cfg(target_os = "none")]
use console::println;
#[cfg(target_os = "none")]
use words::Words;

/// Built for the host by tools that check the whole workspace; there it is nothing.
#[cfg(not(target_os = "none"))]
fn main() {}

/// The guest, on its own stack.
#[cfg(target_os = "none")]
fn guest(words: &Words<'_>) -> ! {
    apic::start();
    let cpus = words.number("cpus").unwrap_or(1).clamp(1, 2);
    if cpus == 2 && !second::start() {
        println!("GUEST-RESULT mismatch the second processor does not answer");
        power_off();
    }
    println!("GUEST-UP cpus={cpus} kernel=probe");
    let done = if words.has("bench") {
        bench::run(words, cpus)
    } else if words.has("touch") {
        touch::run(words, cpus)
    } else if words.has("idle") {
        touch::idle(words)
    } else if words.has("count") {
        count::run(words)
    } else if words.has("exact") {
        exact::run(words, cpus)
    } else {
        Err("the command line names nothing to do")
    };
    match done {
        Ok(()) => println!("GUEST-RESULT ok"),
        Err(why) => println!("GUEST-RESULT mismatch {why}"),
    }
    power_off()
}

/// ACPI S5.
#[cfg(target_os = "none")]
fn power_off() -> ! {
    loop {
        cpu::out16(board::PM1A_CNT, board::SOFT_OFF);
    }
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("GUEST-RESULT mismatch {info}");
    power_off()
}
