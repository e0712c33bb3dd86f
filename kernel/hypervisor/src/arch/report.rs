//! The end: one report, then power off.
//!
//! Whatever fails (a Rust panic, an exception, an NMI that nobody sent, a machine check), all other
//! CPUs are stopped first, so that the report is the only voice on the console and the machine is
//! as it was. The report says what happened, where, what that CPU was running, its registers, who
//! called whom with names, and where every other CPU was. Nothing here takes a lock or memory.

use core::fmt::{self, Write};
use core::panic::PanicInfo;

use units::CpuId;

use super::backtrace::{self, Calls};
use super::idt::TrapFrame;
use super::percpu::{self, PerCpu};
use super::stop::{self, Claim};
use super::symbols::Symbolised;
use super::time;
use crate::console::{Emergency, EmergencyTelemetry};
use crate::platform;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    struct Cause<'a>(&'a PanicInfo<'a>);
    impl fmt::Display for Cause<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "panic: {}", self.0.message())?;
            match self.0.location() {
                Some(at) => write!(f, ", at {at}"),
                None => Ok(()),
            }
        }
    }
    x86_64::instructions::interrupts::disable();
    end(&Cause(info), None, backtrace::calls_here())
}

/// Reports an exception and ends the machine.
pub(super) fn exception(cause: &dyn fmt::Display, frame: &TrapFrame) -> ! {
    end(cause, Some(frame), backtrace::calls(frame.rip, frame.rbp))
}

fn end(cause: &dyn fmt::Display, frame: Option<&TrapFrame>, calls: Calls) -> ! {
    let me = percpu::current();
    match stop::claim() {
        Claim::Owner => {}
        Claim::Late => {
            me.snapshot.take(frame.unwrap_or(&TrapFrame::default()));
            stop::stop_here();
        }
        Claim::Again => {
            let _ = writeln!(
                Emergency,
                "\n{} failed again while it reported: {cause}",
                me.cpu
            );
            platform::power_off();
        }
    }
    let (stopped, others) = stop::stop_others();
    // A console that fails has no better place to say so.
    let _ = write_report(&mut Emergency, me, cause, frame, calls);
    let _ = write_others(&mut Emergency, me.cpu, stopped, others);
    let _ = write_record(&mut EmergencyTelemetry, me.cpu, cause);
    platform::power_off()
}

fn write_report(
    out: &mut impl Write,
    me: &PerCpu,
    cause: &dyn fmt::Display,
    frame: Option<&TrapFrame>,
    calls: Calls,
) -> fmt::Result {
    writeln!(out, "\n==== PERIGEE PANIC ====")?;
    writeln!(out, "{cause}")?;
    writeln!(
        out,
        "on {} ({}, {}) at {}, which ran {}",
        me.cpu,
        me.apic,
        me.node,
        time::now(),
        me.activity()
    )?;
    if let Some(frame) = frame {
        write_registers(out, frame)?;
    }
    writeln!(out, "called from:")?;
    for (depth, address) in calls.enumerate() {
        writeln!(out, "  {depth:2} {}", Symbolised(address))?;
    }
    Ok(())
}

fn write_registers(out: &mut impl Write, f: &TrapFrame) -> fmt::Result {
    writeln!(
        out,
        "  rip {:016x}  rsp {:016x}  rflags {:016x}",
        f.rip, f.rsp, f.rflags
    )?;
    writeln!(
        out,
        "  rax {:016x}  rbx {:016x}  rcx {:016x}  rdx {:016x}",
        f.rax, f.rbx, f.rcx, f.rdx
    )?;
    writeln!(
        out,
        "  rsi {:016x}  rdi {:016x}  rbp {:016x}  r8  {:016x}",
        f.rsi, f.rdi, f.rbp, f.r8
    )?;
    writeln!(
        out,
        "  r9  {:016x}  r10 {:016x}  r11 {:016x}  r12 {:016x}",
        f.r9, f.r10, f.r11, f.r12
    )?;
    writeln!(
        out,
        "  r13 {:016x}  r14 {:016x}  r15 {:016x}  cs {:x} ss {:x} error {:x}",
        f.r13, f.r14, f.r15, f.cs, f.ss, f.error
    )
}

fn write_others(out: &mut impl Write, me: CpuId, stopped: u32, others: u32) -> fmt::Result {
    if others != 0 {
        writeln!(out, "{stopped} of {others} other CPUs stopped:")?;
    }
    for cpu in percpu::online().filter(|c| c.cpu != me) {
        let rip = cpu.snapshot.calls().next().unwrap_or(0);
        writeln!(
            out,
            "  {} ran {}, at {}",
            cpu.cpu,
            cpu.activity(),
            Symbolised(rip)
        )?;
    }
    writeln!(out, "==== end of report ====")
}

/// The record that `telemetry::Event::Panic` would be, written without taking memory.
fn write_record(out: &mut impl Write, cpu: CpuId, cause: &dyn fmt::Display) -> fmt::Result {
    struct Escaped<'a, W>(&'a mut W);
    impl<W: Write> Write for Escaped<'_, W> {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            for c in s.chars() {
                match c {
                    '"' | '\\' => {
                        self.0.write_char('\\')?;
                        self.0.write_char(c)?;
                    }
                    c if c < ' ' => write!(self.0, "\\u{:04x}", u32::from(c))?,
                    c => self.0.write_char(c)?,
                }
            }
            Ok(())
        }
    }
    let at = time::now().0;
    write!(
        out,
        "\n{{\"at_ns\":{at},\"seq\":{},\"event\":{{\"kind\":\"panic\",\"cpu\":{},",
        u64::MAX,
        cpu.0
    )?;
    out.write_str("\"message\":\"")?;
    write!(Escaped(out), "{cause}")?;
    out.write_str("\"}}\n")
}
