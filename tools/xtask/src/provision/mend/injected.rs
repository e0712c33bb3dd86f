//! An interrupt that is delivered once more.
//!
//! VMRUN with an external interrupt in EVENTINJ delivers it at once (`helper_vmrun` in
//! target/i386/tcg/system/svm_helper.c, up to 10.0 at least), but also writes its vector down as the exception that the CPU is
//! about to take, and nobody takes that back. It is forgotten at the next exception or #VMEXIT. But if the CPU's thread is called
//! for something else before (`exit_request` in accel/tcg/cpu-exec.c: a kick that comes later than the interrupt that it is
//! for, or the machine is stopped), the loop finds an exception to be taken and delivers the interrupt again, mostly on the
//! first instruction of its handler, and whatever the interrupt flag says. Linux then believes that it came from its kernel,
//! keeps the user's GS, and faults until its stack is full. Of guests that run for half a minute one in some dozen ended so.
//!
//! Delivery does not need the note, so the copy has a no-operation in its place.

use super::program;

const FUNCTION: &str = "helper_vmrun";
const DELIVERS: &str = "do_interrupt_x86_hardirq";
const EXITS: &str = "cpu_vmexit";
/// The note is written so many bytes before the call that delivers, at most.
const BEFORE: usize = 64;
/// Six bytes that do nothing, in one instruction (SDM 2B, NOP).
const NOP: [u8; 6] = [0x66, 0x0f, 0x1f, 0x44, 0, 0];

/// The program with a no-operation in the place of the note; nothing if that is not understood.
pub(super) fn without_second_delivery(mut image: Vec<u8>) -> Option<Vec<u8>> {
    // Where a CPU's exception is kept: there `cpu_vmexit` writes a number that is stored nowhere else.
    let exits = program::function(&image, EXITS)?;
    let written = exits.only(&image, |code| exit_noted(code).is_some())?;
    let place = exit_noted(image.get(written..)?)?;

    let (runs, delivers) = (
        program::function(&image, FUNCTION)?,
        program::function(&image, DELIVERS)?,
    );
    let call = runs.call_of(delivers, &image)?;
    let note = runs
        .before(call, BEFORE)
        .only(&image, |code| vector_noted(code) == Some(place))?;
    image.get_mut(note..note + NOP.len())?.copy_from_slice(&NOP);
    Some(image)
}

/// The displacement of `movl $EXCP_VMEXIT, disp32(register)`.
fn exit_noted(code: &[u8]) -> Option<[u8; 4]> {
    match code {
        [0xc7, modrm, a, b, c, d, 0, 1, 0, 0, ..] if is_beside(*modrm) && modrm & 0x38 == 0 => {
            Some([*a, *b, *c, *d])
        }
        _ => None,
    }
}

/// The displacement of `mov register, disp32(register)`.
fn vector_noted(code: &[u8]) -> Option<[u8; 4]> {
    match code {
        [0x89, modrm, a, b, c, d, ..] if is_beside(*modrm) => Some([*a, *b, *c, *d]),
        _ => None,
    }
}

/// Memory at a displacement of 32 bits from a register other than RSP, which would need one byte more.
const fn is_beside(modrm: u8) -> bool {
    modrm & 0xc0 == 0x80 && modrm & 7 != 4
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::program::tests::program;
    use super::*;

    /// `movl $0x100, -0x28f0(%rbx)`; `mov %esi, -0x28f0(%rbx)`; another place; `call` of what is so far behind it.
    const EXIT: [u8; 10] = [0xc7, 0x83, 0x10, 0xd7, 0xff, 0xff, 0, 1, 0, 0];
    const NOTE: [u8; 6] = [0x89, 0xb3, 0x10, 0xd7, 0xff, 0xff];
    const OTHER: [u8; 6] = [0x89, 0xb3, 0xe0, 0x33, 0, 0];
    const CALL: [u8; 6] = [0xe8, 1, 0, 0, 0, 0xc3];

    /// Functions like those of QEMU, the one that injects as given.
    pub(in super::super) fn functions(runs: &[u8]) -> [(&'static str, Vec<u8>); 3] {
        [
            (EXITS, EXIT.to_vec()),
            (FUNCTION, runs.to_vec()),
            (DELIVERS, vec![0xc3]),
        ]
    }

    pub(in super::super) fn injects() -> Vec<u8> {
        [&[0x90][..], &OTHER, &NOTE, &CALL].concat()
    }

    fn mended(functions: &[(&str, Vec<u8>)]) -> (Vec<u8>, Option<Vec<u8>>) {
        let functions: Vec<(&str, &[u8])> = functions
            .iter()
            .map(|(name, code)| (*name, &code[..]))
            .collect();
        let before = program(&functions);
        (before.clone(), without_second_delivery(before))
    }

    #[test]
    fn the_note_and_nothing_else_is_replaced() {
        let (before, after) = mended(&functions(&injects()));
        let after = after.expect("it has the fault");
        let note = 0x200 + EXIT.len() + 1 + OTHER.len();
        let changed: Vec<usize> = (0..before.len())
            .filter(|i| before[*i] != after[*i])
            .collect();
        assert!(
            changed.iter().all(|i| (note..note + NOP.len()).contains(i)),
            "{changed:?}"
        );
        assert_eq!(after[note..note + NOP.len()], NOP);
        assert_eq!(
            without_second_delivery(after),
            None,
            "a mended program has no note left"
        );
    }

    #[test]
    fn what_is_not_understood_stays_as_it_is() {
        let far = [&NOTE[..], &[0x90; BEFORE], &CALL].concat();
        let called_twice = [&NOTE[..], &[0xe8, 6, 0, 0, 0], &CALL].concat();
        for runs in [
            [&OTHER[..], &CALL].concat(),
            [&NOTE[..], &NOTE, &CALL].concat(),
            NOTE.to_vec(),
            far,
            called_twice,
        ] {
            assert_eq!(mended(&functions(&runs)).1, None, "{runs:x?}");
        }
        let mut without_exit = functions(&injects());
        without_exit[0].1.clear();
        assert_eq!(mended(&without_exit).1, None);
    }
}
