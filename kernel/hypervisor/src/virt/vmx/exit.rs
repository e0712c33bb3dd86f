//! From VT-x' exit reasons to the common vocabulary (SDM 3D appendix C).

use super::enter;
use super::vcpu::VmxVcpu;
use crate::virt::VcpuState;
use crate::virt::{
    ControlRegister, CrSource, Culprit, Direction, Exit, Gpr, IoAccess, NestedFault, TaskSource,
};
use units::Gpa;
use vmcs::Fields;
use vmcs::control::Primary;
use vmcs::event::{Event, Kind};
use vmcs::reason::{self, CrAccess, EptViolation, Port, basic};

const DEBUG: u8 = 1;
const MACHINE_CHECK: u8 = 18;

/// Why the guest stopped.
pub fn classify(vcpu: &mut VmxVcpu) -> Exit {
    let exit = vcpu.exit;
    let reason = exit.reason as u16;
    if exit.reason & reason::ENTRY_FAILURE != 0 && reason != basic::MACHINE_CHECK_AT_ENTRY {
        return rejected(vcpu, exit.reason.into());
    }
    match reason {
        basic::EXCEPTION_OR_NMI => exception(vcpu),
        basic::EXTERNAL_INTERRUPT => Exit::Interrupt,
        basic::PREEMPTION_TIMER => Exit::TimeUp,
        basic::LOG_FULL => Exit::LogFull,
        basic::TRIPLE_FAULT => Exit::Shutdown,
        basic::INIT => Exit::PlatformEvent("INIT"),
        basic::SIPI => Exit::PlatformEvent("SIPI"),
        basic::IO_SMI | basic::OTHER_SMI => Exit::PlatformEvent("SMI"),
        basic::INTERRUPT_WINDOW => Exit::InterruptWindow,
        basic::NMI_WINDOW => {
            vcpu.windows.remove(Primary::NMI_WINDOW);
            Exit::NmiWindow
        }
        basic::TASK_SWITCH => task_switch(exit.qualification),
        basic::CPUID => Exit::Cpuid,
        basic::HLT => Exit::Halt,
        basic::INVD | basic::WBINVD => Exit::CacheFlush,
        basic::RDPMC => Exit::NotAllowed("RDPMC"),
        basic::VMCALL => Exit::Hypercall,
        basic::GETSEC => Exit::NotOffered("GETSEC"),
        basic::RSM => Exit::NotOffered("RSM"),
        basic::VMCLEAR..=basic::VMXON | basic::INVEPT | basic::INVVPID | basic::VMFUNC => {
            Exit::NotOffered("a VMX instruction")
        }
        basic::ENCLS => Exit::NotOffered("ENCLS"),
        basic::MWAIT => Exit::NotOffered("MWAIT"),
        basic::MONITOR => Exit::NotOffered("MONITOR"),
        basic::PAUSE => Exit::Pause,
        basic::CONTROL_REGISTER => control_register(vcpu, exit.qualification),
        basic::IO => Exit::Io(port(exit.qualification)),
        basic::RDMSR => Exit::Msr(Direction::Read),
        basic::WRMSR => Exit::Msr(Direction::Write),
        basic::XSETBV => Exit::Xsetbv,
        basic::EPT_VIOLATION => {
            let violation = EptViolation::of(exit.qualification);
            Exit::NestedFault(NestedFault {
                gpa: Gpa(exit.guest_physical),
                write: violation.write,
                fetch: violation.fetch,
                walk: violation.walk,
                linear: vcpu
                    .vmcs()
                    .filter(|_| violation.linear)
                    .map(|vmcs| vmcs.read(vmcs::field::GUEST_LINEAR_ADDRESS)),
            })
        }
        basic::MACHINE_CHECK_AT_ENTRY => Exit::Exception {
            vector: MACHINE_CHECK,
            error: 0,
        },
        // A misconfigured entry of the nested table is the kernel's own mistake; its address tells where.
        basic::EPT_MISCONFIGURATION => Exit::Unexpected {
            code: reason.into(),
            info1: exit.guest_physical,
            info2: 0,
        },
        _ => Exit::Unexpected {
            code: exit.reason.into(),
            info1: exit.qualification,
            info2: exit.guest_physical,
        },
    }
}

/// The processor rejected the entry: names the field that breaks a rule.
pub fn rejected(vcpu: &VmxVcpu, detail: u64) -> Exit {
    let violation = vcpu
        .vmcs()
        .and_then(|fields| vmcs::check(&fields, vcpu.facts()).err());
    let culprit = violation.map(|v| Culprit {
        field: v.field,
        value: v.value,
        rule: v.rule,
        section: v.section,
    });
    Exit::InvalidState { detail, culprit }
}

fn exception(vcpu: &mut VmxVcpu) -> Exit {
    let exit = vcpu.exit;
    match Event::decode(exit.event, exit.event_error) {
        Some(Event {
            kind: Kind::Nmi, ..
        }) => {
            enter::take_nmi();
            Exit::Nmi
        }
        Some(Event { vector, error, .. }) => {
            if vector == DEBUG {
                vcpu.note_debug_exception(exit.qualification);
            }
            Exit::Exception {
                vector,
                error: error.unwrap_or(0),
            }
        }
        None => Exit::Unexpected {
            code: exit.reason.into(),
            info1: exit.event.into(),
            info2: 0,
        },
    }
}

fn control_register(vcpu: &VmxVcpu, qualification: u64) -> Exit {
    let access = CrAccess::of(qualification);
    let (number, direction, source) = match access {
        CrAccess::Load { register, gpr } => (register, Direction::Write, CrSource::Mov(Gpr(gpr))),
        CrAccess::Store { register, gpr } => (register, Direction::Read, CrSource::Mov(Gpr(gpr))),
        CrAccess::Clts | CrAccess::Lmsw(_) => {
            let cr0 = vcpu.cr(ControlRegister::Cr0);
            (
                0,
                Direction::Write,
                CrSource::Value(access.new_cr0(cr0).unwrap_or(cr0)),
            )
        }
    };
    let register = match number {
        0 => ControlRegister::Cr0,
        3 => ControlRegister::Cr3,
        4 => ControlRegister::Cr4,
        8 => ControlRegister::Cr8,
        _ => {
            let code = basic::CONTROL_REGISTER.into();
            return Exit::Unexpected {
                code,
                info1: qualification,
                info2: 0,
            };
        }
    };
    Exit::Cr {
        register,
        direction,
        source,
    }
}

/// SDM 3C table 28-2.
fn task_switch(qualification: u64) -> Exit {
    let source = match qualification >> 30 & 3 {
        0 => TaskSource::Call,
        1 => TaskSource::Iret,
        2 => TaskSource::Jump,
        _ => TaskSource::Gate,
    };
    Exit::TaskSwitch {
        selector: qualification as u16,
        source,
    }
}

fn port(qualification: u64) -> IoAccess {
    let access = Port::of(qualification);
    IoAccess {
        port: access.port,
        direction: if access.input {
            Direction::Read
        } else {
            Direction::Write
        },
        size: access.size,
        string: access.string,
        repeated: access.repeated,
    }
}
