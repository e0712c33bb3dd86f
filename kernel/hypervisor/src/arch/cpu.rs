//! What every CPU switches on when it enters the kernel, and what its CPUID says about its place.
#![expect(unsafe_code, reason = "control registers")]

use raw_cpuid::{CpuId, CpuIdReaderNative, ExtendedTopologyLevel, TopologyType};
use topology::CpuidShape;
use units::ApicId;
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
    set(
        Cr4Flags::MACHINE_CHECK_EXCEPTION,
        leaf1.as_ref().is_some_and(|f| f.has_mce()),
    );
    set(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE, true);
    set(
        Cr4Flags::OSXSAVE,
        leaf1.as_ref().is_some_and(|f| f.has_xsave()),
    );
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
        let on = Cr0Flags::WRITE_PROTECT | Cr0Flags::MONITOR_COPROCESSOR | Cr0Flags::NUMERIC_ERROR;
        Cr0::write(Cr0::read().difference(off) | on);
        Cr4::write(cr4);
        Efer::update(|e| e.insert(EferFlags::NO_EXECUTE_ENABLE));
        msr::write(msr::PAT, memory::table::PAT);
    }
}

/// Lets every machine-check bank of the calling CPU report everything it can detect (SDM 3B 16.8). The
/// CPU's exception handlers must be in place.
pub fn enable_machine_checks() {
    /// IA32_MCG_CAP: the banks' number, and whether IA32_MCG_CTL exists (SDM 3B 16.3.1.1).
    const COUNT: u64 = 0xff;
    const HAS_CONTROL: u64 = 1 << 8;
    let Some(capabilities) = msr::read_checked(msr::MCG_CAP) else {
        return;
    };
    let banks = (capabilities & COUNT) as u32;
    let global = (capabilities & HAS_CONTROL != 0).then_some(msr::MCG_CTL);
    for register in (0..banks).map(|bank| msr::MC0_CTL + 4 * bank).chain(global) {
        // SAFETY: decides only what is reported; a bank that refuses stays as firmware left it.
        let _refused_is_fine = unsafe { msr::write_checked(register, u64::MAX) };
    }
}

/// The APIC identifier that CPUID gives the calling CPU: 32 bits where leaf 0xB exists.
pub fn initial_apic_id() -> u32 {
    let cpuid = CpuId::new();
    cpuid
        .get_extended_topology_info()
        .and_then(|mut levels| levels.next())
        .map(|level| level.x2apic_id())
        .or_else(|| {
            cpuid
                .get_feature_info()
                .map(|f| u32::from(f.initial_local_apic_id()))
        })
        .unwrap_or(0)
}

/// Stops the calling CPU for ever.
pub fn halt_forever() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// How the bits of an APIC identifier number threads, cores and packages.
///
/// Leaf 0x1F or 0xB says it by levels (SDM 3A 10.9.1). Where there is none, AMD's leaf 0x8000_0008 counts
/// the threads of a package and 0x8000_001E those of a core (APM 3 E.4.7, E.4.16), and leaf 1 is the last
/// resort. The last-level cache is the highest level in leaf 4 or 0x8000_001D, with the number of
/// threads that share it.
pub fn shape() -> CpuidShape {
    let cpuid = CpuId::new();
    let (smt_shift, package_shift) = by_levels(cpuid.get_extended_topology_info_v2())
        .or_else(|| by_levels(cpuid.get_extended_topology_info()))
        .or_else(|| by_amd(&cpuid))
        .or_else(|| by_leaf_1(&cpuid))
        .unwrap_or((0, 0));
    let llc_shift = cpuid
        .get_cache_parameters()
        .into_iter()
        .flatten()
        .max_by_key(|cache| cache.level())
        .map_or(package_shift, |cache| bits_for(cache.max_cores_for_cache()));
    CpuidShape {
        bsp_apic_id: ApicId(initial_apic_id()),
        smt_shift,
        llc_shift,
        package_shift,
    }
}

/// Bits that number `count` things.
fn bits_for(count: usize) -> u8 {
    count.max(1).next_power_of_two().trailing_zeros() as u8
}

/// Shifts of the first level, if that is SMT, and of the last. Where a core has one thread its bits number nothing: APIC
/// identifiers that differ there only (Bochs gives such, with a shift of 1) are those of different cores.
fn by_levels(levels: Option<impl Iterator<Item = ExtendedTopologyLevel>>) -> Option<(u8, u8)> {
    let (mut smt, mut package) = (0, None);
    for level in levels? {
        let shift = level.shift_right_for_next_apic_id() as u8;
        if level.level_type() == TopologyType::SMT && level.processors() > 1 {
            smt = shift;
        }
        package = Some(shift);
    }
    package.map(|package| (smt, package))
}

fn by_amd(cpuid: &CpuId<CpuIdReaderNative>) -> Option<(u8, u8)> {
    let vendor = cpuid.get_vendor_info()?;
    if vendor.as_str() != "AuthenticAMD" && vendor.as_str() != "HygonGenuine" {
        return None;
    }
    let capacity = cpuid.get_processor_capacity_feature_info()?;
    let package = match capacity.apic_id_size() {
        0 => bits_for(capacity.num_phys_threads()),
        bits => bits,
    };
    let smt = cpuid
        .get_processor_topology_info()
        .map_or(0, |t| bits_for(usize::from(t.threads_per_core())));
    Some((smt, package))
}

fn by_leaf_1(cpuid: &CpuId<CpuIdReaderNative>) -> Option<(u8, u8)> {
    let leaf = cpuid.get_feature_info()?;
    leaf.has_htt()
        .then(|| (0, bits_for(usize::from(leaf.max_logical_processor_ids()))))
}
