//! Instructions that were decoded before, by where they are.
//!
//! Guests are stopped in loops: the next look finds the instructions of the last one, and a run meets the same ones
//! many times. To compare some bytes costs a twentieth of decoding them.

use alloc::boxed::Box;
use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, OpAccess, UsedMemory,
};

use super::meaning::Meaning;

/// Bytes that an instruction has at most (SDM 2A 2.3.11).
pub(super) const LONGEST: usize = 15;
/// Instructions that are remembered: a guest's inner loops and what they call.
const PLACES: usize = 512;
/// Places where an instruction may be.
const WAYS: usize = 4;
/// Operands of an instruction that are looked at. More has only an ENTER that copies frame pointers.
const OPERANDS: usize = 3;

/// An instruction, and what a run has to know of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoded {
    pub(super) instruction: Instruction,
    pub(super) meaning: Meaning,
    operands: [Option<UsedMemory>; OPERANDS],
    /// Its bytes, the first one lowest, and as many bits as they have.
    bytes: u128,
    mask: u128,
}

impl Decoded {
    fn new(instruction: Instruction, info: &mut InstructionInfoFactory, code: &[u8]) -> Self {
        let info = info.info(&instruction);
        let mut operands = [None; OPERANDS];
        let touched = info.used_memory().iter().filter(|m| touches(m.access()));
        let mut touched = touched.copied();
        operands.fill_with(|| touched.next());
        let count = operands.iter().flatten().count() + touched.count();
        let mask = u128::MAX >> (128 - 8 * instruction.len().min(LONGEST));
        Self {
            instruction,
            meaning: Meaning::of(
                &instruction,
                info,
                operands.iter().flatten().next().filter(|_| count == 1),
            ),
            operands,
            bytes: word(code) & mask,
            mask,
        }
    }

    /// The memory that it touches.
    pub(super) fn operands(&self) -> impl Iterator<Item = &UsedMemory> {
        self.operands.iter().flatten()
    }

    /// Whether decoding would give it again.
    fn is(&self, bits: u32, at: u64, code: &[u8], word: u128) -> bool {
        self.instruction.ip() == at
            && self.instruction.code_size() as u32 == code_size(bits) as u32
            && word & self.mask == self.bytes
            && self.instruction.len() <= code.len()
    }
}

/// The first bytes of some code, the first one lowest; what is missing is 0.
fn word(code: &[u8]) -> u128 {
    match code.first_chunk() {
        Some(bytes) => u128::from_le_bytes(*bytes),
        None => {
            let bytes = code.iter().rev();
            bytes.fold(0, |word, byte| word << 8 | u128::from(*byte))
        }
    }
}

fn code_size(bits: u32) -> iced_x86::CodeSize {
    match bits {
        16 => iced_x86::CodeSize::Code16,
        32 => iced_x86::CodeSize::Code32,
        _ => iced_x86::CodeSize::Code64,
    }
}

/// Instructions whose addresses have the same hash.
#[derive(Clone, Copy, Debug, Default)]
struct Set {
    ways: [Option<Decoded>; WAYS],
    /// The way that was filled before all others.
    oldest: usize,
}

/// See the module. It keeps the decoder's working memory, too, so that a look needs no allocation.
#[derive(Debug)]
pub(super) struct Known {
    sets: Box<[Set]>,
    info: InstructionInfoFactory,
}

impl Known {
    /// As many places as that many bytes have room for, up to [`PLACES`], but at least one set.
    pub(super) fn within(bytes: usize) -> Self {
        Self {
            sets: alloc::vec![Set::default(); sets_within(bytes)].into(),
            info: InstructionInfoFactory::new(),
        }
    }

    /// The instruction whose bytes `code` begins with; `None` if it is none.
    pub(super) fn decode(&mut self, bits: u32, at: u64, code: &[u8]) -> Option<&Decoded> {
        let set = self.sets.get_mut(set_of(at, self.sets.len()))?;
        let word = word(code);
        let is = |d: &Decoded| d.is(bits, at, code, word);
        let is = |known: &Option<Decoded>| known.as_ref().is_some_and(is);
        let way = match set.ways.iter().position(is) {
            Some(way) => way,
            None => {
                let mut decoder =
                    Decoder::try_with_ip(bits, code, at, DecoderOptions::NONE).ok()?;
                let instruction = decoder.decode();
                if instruction.is_invalid() {
                    return None;
                }
                let oldest = set.oldest;
                *set.ways.get_mut(oldest)? = Some(Decoded::new(instruction, &mut self.info, code));
                set.oldest = (oldest + 1) % WAYS;
                oldest
            }
        };
        set.ways.get(way)?.as_ref()
    }
}

/// Bytes that places take of these.
pub(super) fn bytes_within(bytes: usize) -> usize {
    sets_within(bytes) * size_of::<Set>()
}

fn sets_within(bytes: usize) -> usize {
    1 << (bytes / size_of::<Set>()).clamp(1, PLACES / WAYS).ilog2()
}

/// Fibonacci hashing into so many sets, a power of two: neighbours are far apart.
const fn set_of(at: u64, sets: usize) -> usize {
    let hash = at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    ((hash * sets as u64) >> 32) as usize
}

/// What is touched on a condition (a repetition whose count may be 0) counts: it mostly is.
const fn touches(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::NoMemAccess)
}

pub(super) const fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_what_decoding_gives() {
        let mut known = Known::within(0);
        let mov: &[u8] = &[0x48, 0x8B, 0x07]; // mov rax, [rdi]
        let first = *known.decode(64, 0x1000, mov).expect("an instruction");
        let again = *known.decode(64, 0x1000, mov).expect("the same");
        assert_eq!(first.instruction, again.instruction);
        assert_eq!(
            (first.meaning.written, first.meaning.writes_first),
            (1, true)
        );
        assert_eq!(first.operands().count(), 1);

        // Other bytes, another place, or another mode are another instruction.
        let add: &[u8] = &[0x48, 0x03, 0x07];
        let other = known.decode(64, 0x1000, add).expect("an instruction");
        assert_eq!(other.instruction.mnemonic(), iced_x86::Mnemonic::Add);
        let moved = known.decode(64, 0x2000, mov).expect("an instruction");
        assert_eq!(moved.instruction.next_ip(), 0x2003);
        let dec = known.decode(32, 0x2000, mov).expect("an instruction");
        assert_eq!(dec.instruction.mnemonic(), iced_x86::Mnemonic::Dec);
        assert_eq!(dec.instruction.len(), 1);

        // So many others that none of the first has a place left.
        for at in 0..100 {
            assert!(known.decode(64, 0x3000 + 3 * at, mov).is_some());
        }
        let again = *known.decode(64, 0x1000, mov).expect("the same");
        assert_eq!(first.instruction, again.instruction);

        // An instruction of which only the beginning can be read is none, whatever was there before.
        assert!(known.decode(64, 0x1000, &mov[..2]).is_none());
        assert!(known.decode(64, 0x1000, &[]).is_none());
    }

    #[test]
    fn what_is_remembered_has_its_room_and_no_more() {
        for bytes in [0, 10_000, 60_000, 1 << 20] {
            let sets = Known::within(bytes).sets.len();
            let takes = bytes_within(bytes);
            assert_eq!(takes, sets * size_of::<Set>());
            assert!(takes <= bytes.max(size_of::<Set>()), "{takes}");
            assert!(takes * 2 > bytes || sets == PLACES / WAYS, "{takes}");
            // Each instruction has a place, and all places are used.
            let mut used = alloc::collections::BTreeSet::new();
            used.extend(
                (0..100 * sets as u64).map(|at| set_of(0xffff_8000_0000_0000 + 3 * at, sets)),
            );
            assert!(
                used.iter()
                    .eq((0..sets).collect::<alloc::vec::Vec<_>>().iter())
            );
        }
    }
}
