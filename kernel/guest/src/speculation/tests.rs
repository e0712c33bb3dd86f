use super::*;

fn intel(leaf7_edx: u32, capabilities: u64) -> Plan {
    Plan::decide(&Facts {
        vendor: Vendor::Intel,
        leaf7_edx,
        leaf8_ebx: 0,
        leaf21_eax: 0,
        leaf21_ecx: 0,
        capabilities,
    })
}

fn amd(leaf8_ebx: u32, leaf21_eax: u32, leaf21_ecx: u32) -> Plan {
    Plan::decide(&Facts {
        vendor: Vendor::Amd,
        leaf7_edx: 0,
        leaf8_ebx,
        leaf21_eax,
        leaf21_ecx,
        capabilities: 0,
    })
}

#[test]
fn a_skylake_server_with_microcode_takes_everything() {
    // CPUID 7.0 EDX of a Xeon Gold 6154: MD_CLEAR, IBRS/IBPB, STIBP, L1D_FLUSH, SSBD; no ARCH_CAPABILITIES.
    let plan = intel(0x9c00_0400, 0);
    assert!(plan.measures().iter().all(|(_, m)| m.is_active()));
    assert_eq!(plan.host_spec_ctrl, SPEC_CTRL_IBRS);
}

#[test]
fn a_skylake_server_with_old_microcode_misses_what_it_cannot_do() {
    let plan = intel(0, 0);
    for measure in [plan.ibpb, plan.verw, plan.l1d_flush] {
        assert!(matches!(measure, Measure::Missing(_)), "{measure:?}");
    }
    assert!(matches!(plan.spec_ctrl, Measure::Spared(_)));
    assert_eq!(plan.host_spec_ctrl, 0);
}

#[test]
fn a_cascade_lake_is_spared_what_its_capabilities_name() {
    // RDCL_NO, IBRS_ALL, SKIP_L1DFL, MDS_NO, and nothing on TAA, MMIO or RFDS.
    let plan = intel(0xbc00_0400, 0x2b);
    assert!(matches!(plan.l1d_flush, Measure::Spared(_)));
    assert!(plan.verw.is_active(), "TAA is not ruled out");
    let newer = intel(0xbc00_0400, 0x2b | TAA_NO | MMIO_NO | RFDS_NO);
    assert!(matches!(newer.verw, Measure::Spared(_)));
    // Each of the four has to be ruled out.
    for missing in [MDS_NO, TAA_NO, 1 << 14, RFDS_NO] {
        let all = 0x2b | TAA_NO | MMIO_NO | RFDS_NO;
        assert!(intel(0xbc00_0400, all & !missing).verw.is_active());
    }
}

#[test]
fn amd_needs_no_cache_flush_and_verw_only_where_it_says_so() {
    // EPYC 7002: IBPB, IBRS, STIBP, SSBD.
    let rome = amd(1 << 12 | 1 << 14 | 1 << 15 | 1 << 24, 0, 0);
    assert!(rome.ibpb.is_active() && rome.spec_ctrl.is_active());
    assert!(
        matches!(rome.verw, Measure::Spared(_)) && matches!(rome.l1d_flush, Measure::Spared(_))
    );
    assert!(!rome.auto_ibrs);
    let milan = amd(1 << 12, 1 << 5 | 1 << 8, 0);
    assert!(milan.verw.is_active() && milan.auto_ibrs);
    assert!(matches!(
        amd(1 << 12, 1 << 5, 0b110).verw,
        Measure::Spared(_)
    ));
    // The emulator's EPYC lists nothing.
    assert!(matches!(amd(0, 0, 0).ibpb, Measure::Missing(_)));
    assert!(amd(0, 0, 0).return_stack.is_active());
}

#[test]
fn one_vendors_bits_mean_nothing_to_the_other() {
    let facts = Facts {
        vendor: Vendor::Intel,
        leaf7_edx: 0,
        leaf8_ebx: u32::MAX,
        leaf21_eax: u32::MAX,
        leaf21_ecx: 0,
        capabilities: 0,
    };
    let plan = Plan::decide(&facts);
    assert!(!plan.ibpb.is_active() && !plan.auto_ibrs);
}
