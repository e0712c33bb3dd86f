//! From AMD-V's exit codes to the common vocabulary (APM 2, appendix C).

use super::cpu::SvmCpu;
use super::vcpu::SvmVcpu;
use super::vmcb::{EVENT_VALID, code};
use crate::virt::{
    ControlRegister, CrSource, Direction, Exit, Gpr, IoAccess, NestedFault, TaskSource,
};
use units::Gpa;

/// EXITINFO1 of a decoded CR move: the instruction was a MOV (APM 2 15.8.1).
const CR_IS_MOV: u64 = 1 << 63;

/// Why the guest stopped.
pub fn classify(cpu: &SvmCpu, vcpu: &SvmVcpu) -> Exit {
    let control = &vcpu.vmcb().control;
    let (exit, info1, info2) = (control.exit_code, control.exit_info1, control.exit_info2);
    if exit as u32 == code::INVALID_LOW {
        return Exit::InvalidState {
            detail: exit,
            culprit: None,
        };
    }
    match exit {
        code::INTR => Exit::Interrupt,
        code::NMI => Exit::Nmi,
        code::VINTR => Exit::InterruptWindow,
        code::IRET => Exit::NmiWindow,
        code::IOIO => Exit::Io(port(info1)),
        code::MSR => Exit::Msr(if info1 & 1 == 0 {
            Direction::Read
        } else {
            Direction::Write
        }),
        code::CPUID => Exit::Cpuid,
        code::HLT => Exit::Halt,
        code::PAUSE => Exit::Pause,
        code::NPF => Exit::NestedFault(nested_fault(info1, info2)),
        code::CR_READ_FIRST..=code::CR_READ_LAST => {
            control_register(cpu, exit & 15, Direction::Read, info1)
        }
        code::CR_WRITE_FIRST..=code::CR_WRITE_LAST => {
            control_register(cpu, exit & 15, Direction::Write, info1)
        }
        code::CR0_SEL_WRITE => control_register(cpu, 0, Direction::Write, info1),
        code::XSETBV => Exit::Xsetbv,
        code::VMMCALL => Exit::Hypercall,
        code::INVD | code::WBINVD => Exit::CacheFlush,
        code::EXCEPTION_FIRST..=code::EXCEPTION_LAST => Exit::Exception {
            vector: (exit - code::EXCEPTION_FIRST) as u8,
            error: info1 as u32,
        },
        code::RDPMC => Exit::NotAllowed("RDPMC"),
        code::MONITOR => Exit::NotOffered("MONITOR"),
        code::MWAIT | code::MWAIT_ARMED => Exit::NotOffered("MWAIT"),
        code::RSM => Exit::NotOffered("RSM"),
        code::RDPRU => Exit::NotOffered("RDPRU"),
        code::INVLPGA | code::VMRUN | code::VMLOAD..=code::SKINIT => {
            Exit::NotOffered("an SVM instruction")
        }
        code::TASK_SWITCH => Exit::TaskSwitch {
            selector: info1 as u16,
            source: task_source(info2, control.exit_int_info),
        },
        code::SHUTDOWN => Exit::Shutdown,
        code::SMI => Exit::PlatformEvent("SMI"),
        code::INIT => Exit::PlatformEvent("INIT"),
        code::FERR_FREEZE => Exit::PlatformEvent("FERR"),
        _ => Exit::Unexpected {
            code: exit,
            info1,
            info2,
        },
    }
}

/// EXITINFO2 of a task switch, and EXITINTINFO, which holds the event if one caused it (APM 2 15.14.1).
fn task_source(info2: u64, event: u64) -> TaskSource {
    if info2 & 1 << 36 != 0 {
        TaskSource::Iret
    } else if info2 & 1 << 38 != 0 {
        TaskSource::Jump
    } else if event & EVENT_VALID != 0 {
        TaskSource::Gate
    } else {
        TaskSource::Call
    }
}

/// EXITINFO1 of a port access (APM 2 15.10.2).
fn port(info1: u64) -> IoAccess {
    IoAccess {
        port: (info1 >> 16) as u16,
        direction: if info1 & 1 != 0 {
            Direction::Read
        } else {
            Direction::Write
        },
        size: if info1 & 1 << 4 != 0 {
            1
        } else if info1 & 1 << 5 != 0 {
            2
        } else {
            4
        },
        string: info1 & 1 << 2 != 0,
        repeated: info1 & 1 << 3 != 0,
    }
}

/// EXITINFO1 and 2 of a nested page fault (APM 2 15.25.6).
fn nested_fault(info1: u64, info2: u64) -> NestedFault {
    NestedFault {
        gpa: Gpa(info2),
        write: info1 & 1 << 1 != 0,
        fetch: info1 & 1 << 4 != 0,
        walk: info1 & 1 << 33 != 0,
        linear: None,
    }
}

fn control_register(cpu: &SvmCpu, number: u64, direction: Direction, info1: u64) -> Exit {
    let register = match number {
        0 => ControlRegister::Cr0,
        3 => ControlRegister::Cr3,
        4 => ControlRegister::Cr4,
        8 => ControlRegister::Cr8,
        _ => {
            return Exit::Unexpected {
                code: number,
                info1,
                info2: 0,
            };
        }
    };
    let source = if cpu.caps.decode_assists && info1 & CR_IS_MOV != 0 {
        CrSource::Mov(Gpr((info1 & 15) as u8))
    } else {
        CrSource::Undecoded
    };
    Exit::Cr {
        register,
        direction,
        source,
    }
}
