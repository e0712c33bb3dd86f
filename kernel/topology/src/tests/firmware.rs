//! FADT, SPCR and the sleep type.

use crate::build;
use crate::fadt::{self, AddressSpace, GenericAddress, PmTimer};
use crate::{sleep_type_s5, spcr};
use std::string::ToString;
use std::vec;
use std::vec::Vec;
use units::Hpa;

fn put(body: &mut [u8], at: usize, bytes: &[u8]) {
    body[at - 36..at - 36 + bytes.len()].copy_from_slice(bytes);
}

fn gas(space: u8, width: u8, address: u64) -> Vec<u8> {
    let mut bytes = vec![space, width, 0, 0];
    bytes.extend(address.to_le_bytes());
    bytes
}

/// What QEMU's q35 publishes, with its real figures.
fn q35() -> Vec<u8> {
    let mut body = vec![0; 244 - 36];
    put(&mut body, 40, &0x7fb7_8000u32.to_le_bytes());
    put(&mut body, 46, &[9, 0]);
    put(&mut body, 48, &0xb2u32.to_le_bytes());
    put(&mut body, 52, &[2, 3]);
    put(&mut body, 64, &0x604u32.to_le_bytes());
    put(&mut body, 76, &0x608u32.to_le_bytes());
    put(&mut body, 112, &(1u32 << 8 | 1 << 10).to_le_bytes());
    put(&mut body, 116, &gas(1, 8, 0xcf9));
    put(&mut body, 128, &[0x0f]);
    body
}

#[test]
fn the_fadt_names_power_off_reset_and_timer() {
    let io = |bit_width, address| GenericAddress {
        space: AddressSpace::Io,
        bit_width,
        address,
    };
    let fadt = fadt::parse(&build::table(b"FACP", 3, &q35())).expect("valid");
    assert_eq!(fadt.dsdt, Hpa(0x7fb7_8000));
    assert_eq!(
        fadt.pm_timer,
        Some(PmTimer {
            register: io(32, 0x608),
            bits: 32
        })
    );
    assert_eq!(
        (fadt.pm1a_control, fadt.pm1b_control),
        (Some(io(16, 0x604)), None)
    );
    assert_eq!(fadt.reset, Some((io(8, 0xcf9), 0x0f)));
    assert_eq!(
        (fadt.acpi_enable, fadt.sci_irq, fadt.hardware_reduced),
        (Some((0xb2, 2)), 9, false)
    );
}

#[test]
fn extended_fields_count_and_flags_are_obeyed() {
    let mut body = q35();
    put(&mut body, 140, &0x1_0000_0000u64.to_le_bytes());
    put(&mut body, 172, &gas(0, 16, 0xfed8_0804));
    put(&mut body, 112, &0u32.to_le_bytes());
    let fadt = fadt::parse(&build::table(b"FACP", 6, &body)).expect("valid");
    assert_eq!(fadt.dsdt, Hpa(0x1_0000_0000));
    let control = fadt.pm1a_control.expect("extended");
    assert_eq!(
        (control.space, control.address),
        (AddressSpace::Memory, 0xfed8_0804)
    );
    assert_eq!(
        fadt.reset, None,
        "the flag says that the register is not there"
    );
    assert_eq!(fadt.pm_timer.map(|timer| timer.bits), Some(24));

    put(&mut body, 112, &(1u32 << 20).to_le_bytes());
    body.extend(gas(0, 8, 0xfed0_0000));
    let fadt = fadt::parse(&build::table(b"FACP", 6, &body)).expect("valid");
    assert_eq!(
        (fadt.pm_timer, fadt.pm1a_control, fadt.acpi_enable),
        (None, None, None)
    );
    assert_eq!(
        fadt.sleep_control.map(|register| register.address),
        Some(0xfed0_0000)
    );
}

#[test]
fn a_short_or_damaged_fadt_is_an_answer_not_a_panic() {
    let whole = build::table(b"FACP", 1, &q35());
    for length in 36..whole.len() {
        let mut short = whole[..length].to_vec();
        build::seal(&mut short);
        let fadt = fadt::parse(&short).expect("a short table is an old one");
        assert_eq!(fadt.pm_timer.is_some(), length >= 80);
    }
    let mut damaged = whole;
    damaged[70] ^= 0x10;
    let quirk = fadt::parse(&damaged).expect_err("checksum").to_string();
    assert_eq!(
        quirk,
        "FADT adds up to 0x10 instead of 0; it is ignored: power-off and the PM timer are unknown."
    );
}

#[test]
fn the_spcr_names_the_console() {
    let mut body = vec![0; 80 - 36];
    put(&mut body, 40, &gas(1, 8, 0x2f8));
    put(&mut body, 58, &[7]);
    let console = spcr::parse(&build::table(b"SPCR", 2, &body)).expect("valid");
    let register = GenericAddress {
        space: AddressSpace::Io,
        bit_width: 8,
        address: 0x2f8,
    };
    assert_eq!(
        console,
        spcr::Spcr {
            is_16550: true,
            register: Some(register),
            baud: Some(115_200)
        }
    );
    put(&mut body, 36, &[3]);
    put(&mut body, 44, &[0; 8]);
    put(&mut body, 58, &[0]);
    let console = spcr::parse(&build::table(b"SPCR", 2, &body)).expect("valid");
    assert_eq!(
        console,
        spcr::Spcr {
            is_16550: false,
            register: None,
            baud: None
        }
    );
    assert!(spcr::parse(b"SPCR").is_err());
}

#[test]
fn the_sleep_type_is_found_in_each_encoding() {
    for (package, expected) in [
        (&b"\x12\x06\x04\x00\x00\x00\x00"[..], Some((0, 0))),
        (b"\x12\x0a\x04\x0a\x05\x0a\x05\x00\x00", Some((5, 5))),
        (b"\x12\x4c\x00\x04\x0a\x07\x01\x00\x00", Some((7, 1))),
        (
            b"\x12\x0c\x02\x0b\x05\x00\x0c\x06\x00\x00\x00",
            Some((5, 6)),
        ),
        (b"\x12\x04\x01\x0a\x05", Some((5, 5))),
        (b"\x12\x08\x02\x0a\x05", None),
        (b"\x12\x06\x02\x0a\x80\x00", None),
        (b"\x12\x08\x02\x0b\x05\x01\x00", None),
        (b"\x12", None),
        (b"\x14\x06\x00", None),
    ] {
        for prefix in [&b"\x5b\x80\x08_S5_"[..], b"\x08\\_S5_"] {
            let aml = [b"DSDT....\x10\x20_SB_", prefix, package].concat();
            assert_eq!(sleep_type_s5(&aml), expected, "{package:x?}");
        }
    }
}

#[test]
fn a_mere_mention_of_the_name_is_passed_over() {
    let mention = b"\x70\\_S5_\x60\x08_S5_\x14\x00";
    assert_eq!(sleep_type_s5(mention), None);
    let both = [&mention[..], b"\x08_S5_\x12\x06\x02\x0a\x05\x01"].concat();
    assert_eq!(sleep_type_s5(&both), Some((5, 1)));
    assert_eq!(sleep_type_s5(b"_S5_"), None);
    assert_eq!(sleep_type_s5(b""), None);
}
