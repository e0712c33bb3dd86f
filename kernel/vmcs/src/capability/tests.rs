use super::*;
use crate::Settings;

/// Registers of a processor that has everything: Bochs 2.7, corei7_skylake_x in shape.
fn rich(register: u32) -> Option<u64> {
    Some(match register {
        FEATURE_CONTROL => 0,
        BASIC => 1 << 55 | 1 << 54 | 6 << 50 | 0x1000 << 32 | 0x2b,
        PIN => 0x0000_007f_0000_0016,
        PRIMARY => 0xf7f9_fffe_0401_e172,
        SECONDARY => 0x0017_7fff_0000_0000,
        EXIT => 0x00ff_ffff_0003_6dff,
        ENTRY => 0x0003_ffff_0000_11ff,
        TRUE_PIN => 0x0000_007f_0000_0016,
        TRUE_PRIMARY => 0xf7f9_fffe_0400_6172,
        TRUE_EXIT => 0x00ff_ffff_0003_6dfb,
        TRUE_ENTRY => 0x0003_ffff_0000_11fb,
        MISC => 0x7004_01e0,
        CR0_FIXED0 => 0x8000_0021,
        CR0_FIXED1 => 0xffff_ffff,
        CR4_FIXED0 => 0x2000,
        CR4_FIXED1 => 0x0037_67ff,
        EPT_VPID => 0x0f01_0633_4141,
        _ => return None,
    })
}

fn with(changes: &[(u32, u64)]) -> Result<Capabilities, Missing> {
    let registers = |register: u32| {
        let changed = changes.iter().find(|(r, _)| *r == register);
        changed.map(|(_, value)| *value).or_else(|| rich(register))
    };
    Capabilities::read(true, &registers)
}

#[test]
fn a_rich_processor_is_understood() {
    let caps = with(&[]).expect("it has everything");
    assert_eq!((caps.revision, caps.region_bytes), (0x2b, 4096));
    assert!(caps.has_vpid() && caps.has_accessed_dirty());
    assert_eq!(caps.ept_pointer(0x1234_5000), 0x1234_505e);
    let settings = Settings::choose(&caps);
    assert!(caps.pin.accepts(settings.pin) && caps.primary.accepts(settings.primary));
    assert!(caps.secondary.accepts(settings.secondary));
    assert!(caps.exit.accepts(settings.exit) && caps.entry.accepts(settings.entry));
    // The TRUE registers let CR3 moves run without an exit.
    let cr3 = Primary::CR3_LOAD | Primary::CR3_STORE;
    assert_eq!(settings.primary & cr3.bits(), 0);
    assert!(settings.uses_vpid() && settings.uses_xsaves());
}

#[test]
fn every_lack_has_its_sentence() {
    let lacks = |changes: &[(u32, u64)], word: &str| {
        let missing = with(changes).expect_err(word);
        assert!(missing.0.contains(word), "{missing} should name {word}");
    };
    assert!(
        Capabilities::read(false, &rich)
            .expect_err("no VMX")
            .0
            .contains("no VT-x")
    );
    lacks(&[(FEATURE_CONTROL, 1)], "firmware");
    lacks(&[(TRUE_PRIMARY, 0x77f9_fffe_0400_6172)], "secondary");
    lacks(
        &[(SECONDARY, 0x0017_7ffd_0000_0000)],
        "extended page tables",
    );
    lacks(&[(SECONDARY, 0x0017_7f7f_0000_0000)], "unrestricted guest");
    lacks(&[(TRUE_PIN, 0x0000_005f_0000_0016)], "virtual NMIs");
    lacks(&[(EPT_VPID, 0x0f01_0632_4141)], "2 MiB");
    lacks(&[(EPT_VPID, 0x0f01_0633_4101)], "4-level");
    lacks(&[(EPT_VPID, 0x0f01_0233_4141)], "INVEPT");
    lacks(&[(BASIC, 1 << 55 | 0x1000 << 32)], "uncacheable");
}

#[test]
fn what_is_optional_is_left_out() {
    let caps = with(&[
        (EPT_VPID, 0x0600_4141 | 1 << 16 | 1 << 20),
        (SECONDARY, 0x0000_00df_0000_0000),
    ])
    .expect("VPID, A/D, PAUSE loops and XSAVES are optional");
    let settings = Settings::choose(&caps);
    assert!(!settings.uses_vpid() && !settings.uses_xsaves() && settings.ple.is_none());
    assert_eq!(caps.ept_pointer(0x5000), 0x501e, "no A/D bits");
    assert!(caps.secondary.accepts(settings.secondary));
}

#[test]
fn feature_control() {
    assert_eq!(FeatureControl::of(5), FeatureControl::Enabled);
    assert_eq!(FeatureControl::of(1), FeatureControl::Disabled);
    assert_eq!(
        FeatureControl::of(0x2_0000),
        FeatureControl::Unlocked(0x2_0005)
    );
}
