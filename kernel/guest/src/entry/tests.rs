use super::*;

#[test]
fn a_reset_processor_starts_at_the_reset_vector() {
    let s = reset_state(0x0080_0F12);
    assert_eq!(s.cs.base + s.rip, 0xFFFF_FFF0);
    assert_eq!(
        (s.cr0, s.rflags, s.gpr[gpr::RDX]),
        (0x6000_0010, 2, 0x0080_0F12)
    );
}

#[test]
fn a_sipi_starts_its_page_in_real_mode() {
    let s = sipi_state(0x9A, 1);
    assert_eq!((s.cs.selector, s.cs.base, s.rip), (0x9A00, 0x9_A000, 0));
    assert_eq!(s.cr0 & (CR0_PE | CR0_PG), 0);
}

#[test]
fn segment_attributes_translate_to_both_formats() {
    let s = long_mode_state(
        0x100_0200,
        0x9000,
        TableRegister { base: 0, limit: 31 },
        0x10,
        0x18,
    );
    assert_eq!(
        (s.cs.vmcb_attributes(), s.cs.vmcs_access_rights()),
        (0xA9B, 0xA09B)
    );
    assert_eq!(
        (s.ds.vmcb_attributes(), s.ds.vmcs_access_rights()),
        (0xC93, 0xC093)
    );
    assert_eq!(s.tr.vmcs_access_rights(), 0x8B);
    assert_eq!(Segment::NULL.vmcs_access_rights(), 1 << 16);
}
