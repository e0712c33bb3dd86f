//! Whether what firmware's console prints also leaves through a serial port.
//!
//! The variable `ConOut` lists the devices of the console as device paths (UEFI 2.10, 3.3 and
//! 10.3). If one of them runs over a UART, a line printed on the console is on the serial line
//! already, and the loader must not write it there a second time.

/// Messaging device path (type 3) of a UART (sub-type 14), UEFI 2.10, 10.3.4.15.
const UART: (u8, u8) = (3, 14);
/// Bytes of the header of a device-path node: type, sub-type, length (16 bits).
const HEADER: usize = 4;

/// Whether any device in these device paths, laid end to end, is behind a UART.
pub fn reaches_uart(device_paths: &[u8]) -> bool {
    let mut rest = device_paths;
    while let Some([kind, sub, low, high]) = rest.first_chunk().copied() {
        if (kind, sub) == UART {
            return true;
        }
        let bytes = usize::from(u16::from_le_bytes([low, high])).max(HEADER);
        rest = rest.get(bytes..).unwrap_or(&[]);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACPI_ROOT: [u8; 12] = [2, 1, 12, 0, 0xd0, 0x41, 3, 0x0a, 0, 0, 0, 0];
    const NEXT_INSTANCE: [u8; 4] = [0x7f, 1, 4, 0];
    const END: [u8; 4] = [0x7f, 0xff, 4, 0];

    #[test]
    fn a_uart_is_found_behind_a_screen() {
        let mut uart = [0; 19];
        uart[..4].copy_from_slice(&[3, 14, 19, 0]);
        let screen = [&ACPI_ROOT[..], &END].concat();
        let both = [&ACPI_ROOT[..], &NEXT_INSTANCE, &ACPI_ROOT, &uart, &END].concat();
        assert!(!reaches_uart(&screen));
        assert!(reaches_uart(&both));
    }

    #[test]
    fn damaged_paths_end_the_search() {
        assert!(!reaches_uart(&[]));
        assert!(!reaches_uart(&[1, 2, 0, 0, 3]));
        assert!(!reaches_uart(&[1, 2, 0xff, 0xff, 3, 14, 4, 0]));
        assert!(!reaches_uart(&[0; 4096]));
    }
}
