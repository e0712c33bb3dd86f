//! VT-x: guests under VMX with extended page tables (SDM 3C, chapters 24 to 29).
//!
//! A VMCS differs from AMD's control block in one respect that shapes this room: it can be read and
//! written only where it is current, on one CPU, by instructions. So a virtual CPU keeps its
//! registers in memory ([`vmcs::Guest`]) and tells the VMCS at the entry what has changed; what an exit
//! may have changed is read back, at once if every exit needs it, else when somebody asks. Loading a
//! virtual CPU makes its VMCS current; unloading clears it, so that another CPU may load it.
//!
//! Which fields, controls and checks there are is the crate [`vmcs`]; here are the instructions.
//!
//! * `instruction`: the VMX instructions
//! * `cpu`: switching VMX on; tags of translations
//! * `host`: where an exit returns to
//! * `bitmap`: which MSRs and ports the guest may touch directly
//! * `writes`: the log of what the guest writes
//! * `vcpu`: one virtual CPU and its VMCS; `state`: its registers
//! * `enter`: the world switch
//! * `exit`: from exit reasons to [`super::Exit`]
//! * `trial`: in kernels built for tests, what the processor thinks of a VMCS with a mistake

mod bitmap;
mod cpu;
mod enter;
mod exit;
mod host;
mod instruction;
mod state;
#[cfg(feature = "sabotage")]
mod trial;
mod vcpu;
mod writes;

use super::{Backend, Exit, TlbState, Unsupported, VcpuSetup, speculation};
use crate::vm::Hypervisor;
use memory::table::LargeLeaves;
use spin::Once;
use units::NodeId;

/// The VT-x backend.
#[derive(Clone, Copy, Debug)]
pub struct Vmx;

impl Backend for Vmx {
    type Vcpu = vcpu::VmxVcpu;
    type Cpu = cpu::VmxCpu;
    type Format = memory::table::EptFormat;
    const NAME: &'static str = "VT-x with extended page tables";

    fn probe() -> Result<(), Unsupported> {
        cpu::facts().map(|_| ())
    }

    fn enable(node: NodeId) -> Result<cpu::VmxCpu, Unsupported> {
        cpu::VmxCpu::enable(node)
    }

    /// A guest that changes the size of a page that it executes must not stop the host with a machine check.
    fn large_leaves() -> LargeLeaves {
        match vmcs::page_sizes_may_change(speculation::arch_capabilities()) {
            true => LargeLeaves::Executable,
            false => LargeLeaves::NotExecutable,
        }
    }

    fn can_log_writes() -> bool {
        cpu::facts().is_ok_and(|facts| vmcs::Settings::can_log_writes(&facts.caps))
    }

    /// SDM 3C 29.3.5.
    fn sets_dirty_bits() -> bool {
        cpu::facts().is_ok_and(|facts| facts.caps.has_accessed_dirty())
    }

    fn new_vcpu(setup: &VcpuSetup) -> Result<vcpu::VmxVcpu, Unsupported> {
        vcpu::VmxVcpu::new(setup)
    }

    fn load(cpu: &mut cpu::VmxCpu, vcpu: &mut vcpu::VmxVcpu) {
        vcpu.load(cpu);
    }

    fn unload(_cpu: &mut cpu::VmxCpu, vcpu: &mut vcpu::VmxVcpu) {
        vcpu.unload();
    }

    fn enter(cpu: &mut cpu::VmxCpu, vcpu: &mut vcpu::VmxVcpu, tlb: TlbState) -> Exit {
        enter::enter(cpu, vcpu, tlb)
    }

    #[cfg(feature = "sabotage")]
    fn try_out(cpu: &mut cpu::VmxCpu, node: NodeId, seed: u64) {
        if let Err(why) = trial::run(cpu, node, seed) {
            log::error!("{why}");
        }
    }

    fn hypervisor() -> &'static Once<Hypervisor<Self>> {
        static HYPERVISOR: Once<Hypervisor<Vmx>> = Once::new();
        &HYPERVISOR
    }
}
