//! A race that ends every hypervisor in QEMU sooner or later.
//!
//! QEMU keeps what SVM adds to a CPU's state (GIF, whether nested paging is on, whose interrupt flag counts) as bits of
//! one word per CPU, `hflags2`, which that CPU's thread changes without a lock. But XRSTOR, FXRSTOR and FLDENV on *any* CPU
//! end in `cpu_clear_ignne` (target/i386/tcg/system/fpu_helper.c, from 4.2 to 10.0 at least), and that clears a bit for MS-DOS'
//! floating-point errors in the word of the *first* CPU: load, AND, store, on the thread of whoever restores. If CPU 0 enters or
//! leaves a guest in between, its change is lost: a host that walks the guest's page tables, interrupts inside the world switch,
//! a guest that no interrupt ends. With two CPUs busy in guests this happens about once a minute.
//!
//! The bit means nothing to any guest here, so the copy has no-operations in the place of that AND.

use super::program;

const FUNCTION: &str = "cpu_clear_ignne";
/// Ten bytes that do nothing, in one instruction (SDM 2B, NOP).
const NOP: [u8; 10] = [0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0];

/// The program with no-operations in the place of the AND that races; nothing if there is not just one such AND.
pub(super) fn without_race(mut image: Vec<u8>) -> Option<Vec<u8>> {
    let function = program::function(&image, FUNCTION)?;
    let hit = function.only(&image, is_the_and)?;
    image.get_mut(hit..hit + NOP.len())?.copy_from_slice(&NOP);
    Some(image)
}

/// `andl $~0x80, disp32(register)`.
fn is_the_and(code: &[u8]) -> bool {
    // Opcode 81 /4; a register other than RSP as the base, which would need one byte more.
    matches!(code, [0x81, modrm, _, _, _, _, 0x7f, 0xff, 0xff, 0xff, ..]
        if modrm & 0xf8 == 0xa0 && modrm & 7 != 4)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::program::tests::program;
    use super::*;

    pub(in super::super) const AND: [u8; 10] =
        [0x81, 0xa0, 0x74, 0x2c, 0, 0, 0x7f, 0xff, 0xff, 0xff];

    #[test]
    fn the_and_and_nothing_else_is_replaced() {
        let code = [&[0x90, 0x81, 0xa4][..], &AND, &[0xc3]].concat();
        let before = program(&[(FUNCTION, &code)]);
        let after = without_race(before.clone()).expect("it has the race");
        let changed: Vec<usize> = (0..before.len())
            .filter(|i| before[*i] != after[*i])
            .collect();
        assert!(
            changed.iter().all(|i| (0x203..0x20d).contains(i)),
            "{changed:?}"
        );
        assert_eq!(after[0x203..0x20d], NOP);
        assert_eq!(
            without_race(after),
            None,
            "a mended program has no race left"
        );
    }

    #[test]
    fn what_is_not_understood_stays_as_it_is() {
        let twice = [AND, AND].concat();
        for program in [
            program(&[("cpu_set_ignne", &AND)]),
            program(&[(FUNCTION, &[0xc3])]),
            program(&[(FUNCTION, &twice)]),
        ] {
            assert_eq!(without_race(program), None);
        }
    }
}
