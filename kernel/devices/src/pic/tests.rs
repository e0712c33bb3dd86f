//! The 8259A pair as Linux probes and drives it.

use super::*;
use Which::{Master, Slave};

/// The sequence of Linux' `init_8259A`, with normal EOI and everything unmasked.
fn initialized() -> Pic {
    let mut pic = Pic::new();
    for (which, base, icw3) in [(Master, 0x30, 4), (Slave, 0x38, 2)] {
        pic.write(which, false, 0x11);
        for value in [base, icw3, 0x01, 0x00] {
            pic.write(which, true, value);
        }
    }
    pic
}

#[test]
fn the_mask_register_reads_back_which_is_how_linux_probes_for_a_pic() {
    let mut pic = initialized();
    pic.write(Slave, true, 0xFF);
    pic.write(Master, true, 0xFB);
    assert_eq!(pic.read(Master, true), 0xFB);
}

#[test]
fn lower_inputs_interrupt_higher_ones_and_eoi_ends_them() {
    let mut pic = initialized();
    pic.set_line(4, true);
    assert!(pic.pending());
    assert_eq!(pic.acknowledge(), 0x34);
    assert!(!pic.pending(), "the edge is consumed");
    pic.set_line(5, true);
    assert!(!pic.pending(), "5 is below 4");
    pic.set_line(0, true);
    assert_eq!(pic.acknowledge(), 0x30);
    pic.write(Master, false, 0x20);
    assert!(!pic.pending(), "4 is still in service");
    pic.write(Master, false, 0x64); // specific EOI for 4
    assert_eq!(pic.acknowledge(), 0x35);
}

#[test]
fn the_slave_comes_through_input_2() {
    let mut pic = initialized();
    pic.set_line(8, true);
    assert_eq!(pic.acknowledge(), 0x38);
    pic.write(Master, false, 0x0B);
    pic.write(Slave, false, 0x0B);
    assert_eq!(
        (pic.read(Master, false), pic.read(Slave, false)),
        (CASCADE, 1)
    );
    pic.write(Slave, false, 0x60);
    pic.write(Master, false, 0x62);
    assert_eq!((pic.read(Master, false), pic.read(Slave, false)), (0, 0));
}

#[test]
fn a_request_that_goes_away_is_spurious_vector_7_without_service() {
    let mut pic = initialized();
    pic.write_elcr(Master, 1 << 5);
    pic.set_line(5, true);
    assert!(pic.pending());
    pic.set_line(5, false);
    assert!(!pic.pending());
    assert_eq!(pic.acknowledge(), 0x37);
    pic.write(Master, false, 0x0B);
    assert_eq!(pic.read(Master, false), 0);
}

#[test]
fn a_level_input_asks_again_after_its_eoi_and_some_cannot_be_level() {
    let mut pic = initialized();
    pic.write_elcr(Slave, 0xFF);
    assert_eq!(pic.elcr(Slave), 0xDE);
    pic.set_line(9, true);
    assert_eq!(pic.acknowledge(), 0x39);
    assert!(!pic.pending());
    pic.write(Slave, false, 0x20);
    pic.write(Master, false, 0x20);
    assert!(pic.pending());
    pic.set_line(9, false);
    assert!(!pic.pending());
}

#[test]
fn initialization_forgets_edges_masks_and_service() {
    let mut pic = initialized();
    pic.set_line(4, true);
    pic.write(Master, true, 0xFF);
    pic.write(Master, false, 0x11);
    for value in [0x20, 4, 3] {
        pic.write(Master, true, value);
    }
    assert!(!pic.pending());
    assert_eq!(pic.read(Master, true), 0);
    pic.set_line(4, false);
    pic.set_line(4, true);
    assert_eq!(pic.acknowledge(), 0x24);
    pic.set_line(6, true);
    assert_eq!(
        pic.acknowledge(),
        0x26,
        "automatic EOI: nothing is in service"
    );
}

#[test]
fn poll_mode_acknowledges_by_reading_and_rotation_moves_the_top() {
    let mut pic = initialized();
    pic.set_line(3, true);
    pic.write(Master, false, 0x0C);
    assert_eq!(pic.read(Master, false), 0x83);
    pic.write(Master, false, 0xA0); // rotate on non-specific EOI: 4 is the top now
    pic.set_line(0, true);
    pic.set_line(4, true);
    assert_eq!(pic.acknowledge(), 0x34);
}
