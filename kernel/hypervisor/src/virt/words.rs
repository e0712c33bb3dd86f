//! Exits and events as a person reads them, in dumps.

use super::{ControlRegister, CrSource, Direction, Event, EventKind, Exit, IoAccess, NestedFault};
use core::fmt;

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupt => f.write_str("an interrupt for the host"),
            Self::TimeUp => f.write_str("the end of its time"),
            Self::LogFull => f.write_str("a full log of written pages"),
            Self::Nmi => f.write_str("an NMI for the host"),
            Self::InterruptWindow => f.write_str("ready for an interrupt"),
            Self::NmiWindow => f.write_str("end of an NMI handler"),
            Self::Io(access) => access.fmt(f),
            Self::Msr(Direction::Read) => f.write_str("RDMSR"),
            Self::Msr(Direction::Write) => f.write_str("WRMSR"),
            Self::Cpuid => f.write_str("CPUID"),
            Self::Halt => f.write_str("HLT"),
            Self::Pause => f.write_str("PAUSE in a loop"),
            Self::NestedFault(fault) => fault.fmt(f),
            Self::Cr {
                register,
                direction,
                source,
            } => {
                let how = match direction {
                    Direction::Read => "read of",
                    Direction::Write => "write to",
                };
                write!(f, "{how} {register}")?;
                match source {
                    CrSource::Value(value) => write!(f, ", value {value:#x}"),
                    CrSource::Mov(gpr) => write!(f, ", register number {}", gpr.0),
                    CrSource::Undecoded => Ok(()),
                }
            }
            Self::Xsetbv => f.write_str("XSETBV"),
            Self::Hypercall => f.write_str("hypercall"),
            Self::CacheFlush => f.write_str("INVD or WBINVD"),
            Self::Exception { vector, error } => {
                write!(f, "exception {vector}, error code {error:#x}")
            }
            Self::NotOffered(what) => write!(f, "{what}, which is not offered"),
            Self::NotAllowed(what) => write!(f, "{what}, which is not allowed"),
            Self::TaskSwitch { selector, .. } => write!(f, "task switch to {selector:#x}"),
            Self::Shutdown => f.write_str("triple fault"),
            Self::PlatformEvent(what) => write!(f, "{what} for the host"),
            Self::InvalidState { detail, .. } => {
                write!(f, "state that the processor rejects, code {detail:#x}")
            }
            Self::Unexpected { code, info1, info2 } => {
                write!(f, "unexpected code {code:#x} ({info1:#x}, {info2:#x})")
            }
        }
    }
}

impl fmt::Display for IoAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match (self.direction, self.string) {
            (Direction::Read, false) => "IN",
            (Direction::Read, true) => "INS",
            (Direction::Write, false) => "OUT",
            (Direction::Write, true) => "OUTS",
        };
        let rep = if self.repeated { "REP " } else { "" };
        let bits = u32::from(self.size) * 8;
        write!(f, "{rep}{name}, port {:#x}, {bits} bits", self.port)
    }
}

impl fmt::Display for NestedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match (self.walk, self.fetch, self.write) {
            (true, ..) => "page walk at",
            (_, true, _) => "instruction fetch from",
            (.., true) => "write to",
            _ => "read of",
        };
        write!(f, "nested fault: {how} {}", self.gpa)
    }
}

impl fmt::Display for ControlRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cr0 => "CR0",
            Self::Cr2 => "CR2",
            Self::Cr3 => "CR3",
            Self::Cr4 => "CR4",
            Self::Cr8 => "CR8",
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vector = self.vector;
        match self.kind {
            EventKind::Interrupt => write!(f, "interrupt {vector:#x}"),
            EventKind::Nmi => f.write_str("NMI"),
            EventKind::Exception => write!(f, "exception {vector}"),
            EventKind::SoftwareInterrupt => write!(f, "INT {vector:#x}"),
        }?;
        match self.error {
            Some(error) => write!(f, ", error code {error:#x}"),
            None => Ok(()),
        }
    }
}
