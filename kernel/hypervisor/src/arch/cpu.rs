//! What every CPU switches on when it enters the kernel, and what its CPUID says about its place.
#![expect(unsafe_code, reason = "control registers")]

use raw_cpuid::CpuId;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::model_specific::{Efer, EferFlags};

use super::msr;

/// Puts the control registers of the calling CPU into the state that the kernel is written for:
/// write protection holds in ring 0, no-execute works, machine checks are taken, SSE and XSAVE
/// state can be switched for guests, and the page-attribute table is the one that `memory`'s
/// formats assume.
///
/// # Safety
/// Called at a CPU's entry into the kernel, before it uses tables with other memory types than
/// write-back.
pub unsafe fn enable_features() {
    let cpuid = CpuId::new();
    let leaf1 = cpuid.get_feature_info();
    let leaf7 = cpuid.get_extended_feature_info();
    let mut cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION | Cr4Flags::PAGE_GLOBAL;
    let mut set = |flag, when: bool| {
        if when {
            cr4 |= flag;
        }
    };
    set(Cr4Flags::MACHINE_CHECK_EXCEPTION, leaf1.as_ref().is_some_and(|f| f.has_mce()));
    set(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE, true);
    set(Cr4Flags::OSXSAVE, leaf1.as_ref().is_some_and(|f| f.has_xsave()));
    set(
        Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION,
        leaf7.as_ref().is_some_and(|f| f.has_smep()),
    );
    // SAFETY: CR0: caching on, protection on, no task-switch traps for guest FPU state. CR4: only
    // features that CPUID has; the code that runs is supervisor code in supervisor pages. EFER: NXE
    // is needed by the tables. PAT entry 0 stays write-back, and no other is in use yet.
    unsafe {
        let off = Cr0Flags::TASK_SWITCHED
            | Cr0Flags::EMULATE_COPROCESSOR
            | Cr0Flags::CACHE_DISABLE
            | Cr0Flags::NOT_WRITE_THROUGH;
        let on = Cr0Flags::WRITE_PROTECT
            | Cr0Flags::MONITOR_COPROCESSOR
            | Cr0Flags::NUMERIC_ERROR;
        Cr0::write(Cr0::read().difference(off) | on);
        Cr4::write(cr4);
        Efer::update(|e| e.insert(EferFlags::NO_EXECUTE_ENABLE));
        msr::write(msr::PAT, memory::table::PAT);
    }
}

/// The APIC identifier that CPUID gives the calling CPU: 32 bits where leaf 0xB exists.
pub fn initial_apic_id() -> u32 {
    let cpuid = CpuId::new();
    cpuid
        .get_extended_topology_info()
        .and_then(|mut levels| levels.next())
        .map(|level| level.x2apic_id())
        .or_else(|| cpuid.get_feature_info().map(|f| u32::from(f.initial_local_apic_id())))
        .unwrap_or(0)
}

/// Stops the calling CPU for ever.
pub fn halt_forever() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
