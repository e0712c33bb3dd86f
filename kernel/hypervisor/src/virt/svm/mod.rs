//! AMD-V: guests under SVM with nested paging (APM 2, chapter 15).
//!
//! Emulators forgive what hardware punishes, so nothing here relies on a default: every
//! intercept that keeps the host in charge is set, V_INTR_MASKING splits the guest's interrupt
//! flag from the host's, and EFER.SVME, which VMRUN demands, never shows in the guest's EFER.
//!
//! Assists (next RIP, decoded instruction bytes, decoded CR moves) are used where CPUID offers
//! them and reported as absent where not; `exits/` then decodes the instruction itself.
//!
//! * [`vmcb`]: the control block's layout
//! * [`caps`]: what this processor offers
//! * `bitmap`: which MSRs and ports the guest may touch directly
//! * `cpu`: switching SVM on; ASIDs
//! * `vcpu`: one virtual CPU
//! * `nmi`: one NMI at a time
//! * `shadow`: control-register bits that the guest sees otherwise than they are
//! * `enter`: the world switch
//! * `exit`: from exit codes to [`super::Exit`]

mod bitmap;
mod caps;
mod cpu;
mod enter;
mod exit;
mod nmi;
mod shadow;
mod vcpu;
pub mod vmcb;

use super::{Backend, Exit, TlbState, Unsupported, VcpuSetup};
use crate::vm::Hypervisor;
use spin::Once;
use units::NodeId;

/// The AMD-V backend.
#[derive(Clone, Copy, Debug)]
pub struct Svm;

impl Backend for Svm {
    type Vcpu = vcpu::SvmVcpu;
    type Cpu = cpu::SvmCpu;
    type Format = memory::table::NptFormat;
    const NAME: &'static str = "AMD-V with nested paging";

    fn probe() -> Result<(), Unsupported> {
        let caps = caps::Caps::read();
        caps.check()?;
        log::info!("AMD-V: {caps}");
        Ok(())
    }

    fn enable(node: NodeId) -> Result<cpu::SvmCpu, Unsupported> {
        cpu::SvmCpu::enable(node)
    }

    /// Nested tables are walked as tables of paging are, with A and D (APM 2 15.25.5).
    fn sets_dirty_bits() -> bool {
        true
    }

    fn new_vcpu(setup: &VcpuSetup) -> Result<vcpu::SvmVcpu, Unsupported> {
        vcpu::SvmVcpu::new(setup)
    }

    fn load(cpu: &mut cpu::SvmCpu, vcpu: &mut vcpu::SvmVcpu) {
        vcpu.load(cpu);
    }

    fn unload(_cpu: &mut cpu::SvmCpu, vcpu: &mut vcpu::SvmVcpu) {
        vcpu.unload();
    }

    fn enter(cpu: &mut cpu::SvmCpu, vcpu: &mut vcpu::SvmVcpu, tlb: TlbState) -> Exit {
        enter::enter(cpu, vcpu, tlb)
    }

    fn hypervisor() -> &'static Once<Hypervisor<Self>> {
        static HYPERVISOR: Once<Hypervisor<Svm>> = Once::new();
        &HYPERVISOR
    }
}
