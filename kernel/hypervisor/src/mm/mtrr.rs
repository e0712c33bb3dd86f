//! Reading the processor's memory types (SDM 3A 12.11, APM 2 7.7 and 7.9.4).

use alloc::vec::Vec;

use memory::inventory::{FrameRange, Source};
use memory::mtrr::Mtrrs;
use raw_cpuid::CpuId;

use crate::arch::msr;

const MTRR_CAP: u32 = 0xfe;
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_PHYS_BASE_0: u32 = 0x200;
const AMD_SYSCFG: u32 = 0xc001_0010;
const AMD_TOM2: u32 = 0xc001_001d;
/// SYSCFG.MtrrTom2En and Tom2ForceMemTypeWB.
const TOM2_WRITE_BACK: u64 = 1 << 21 | 1 << 22;

/// The parts of `sources` that the boot processor does not cache write-back.
pub(super) fn not_write_back(sources: &[Source]) -> Vec<FrameRange> {
    let Some(mtrrs) = read() else {
        log::info!("this processor has no MTRRs: all memory counts as write-back");
        return Vec::new();
    };
    if !mtrrs.enabled() {
        log::warn!("firmware left the MTRRs off: all memory counts as write-back");
    }
    sources
        .iter()
        .flat_map(|source| mtrrs.not_write_back(source.range))
        .collect()
}

fn read() -> Option<Mtrrs> {
    let cpu = CpuId::new();
    if !cpu.get_feature_info()?.has_mtrr() {
        return None;
    }
    let count = (msr::read_checked(MTRR_CAP)? & 0xff) as u32;
    let pair = |i| {
        Some((
            msr::read_checked(MTRR_PHYS_BASE_0 + 2 * i)?,
            msr::read_checked(MTRR_PHYS_BASE_0 + 2 * i + 1)?,
        ))
    };
    let is_amd = cpu
        .get_vendor_info()
        .is_some_and(|v| v.as_str() == "AuthenticAMD");
    let forced = is_amd
        && msr::read_checked(AMD_SYSCFG).is_some_and(|s| s & TOM2_WRITE_BACK == TOM2_WRITE_BACK);
    Some(Mtrrs {
        def_type: msr::read_checked(MTRR_DEF_TYPE)?,
        variable: (0..count).filter_map(pair).collect(),
        address_bits: cpu
            .get_processor_capacity_feature_info()
            .map_or(36, |c| c.physical_address_bits().into()),
        write_back_below: if forced {
            msr::read_checked(AMD_TOM2)
        } else {
            None
        },
    })
}
