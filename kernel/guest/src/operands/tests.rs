use super::*;
use crate::entry::{CR0_PG, CR4_PAE, EFER_LMA, Segment};
use crate::memory::VecMemory;
use crate::shape::VmShape;
use alloc::vec::Vec;
use proptest::prelude::*;

const CODE: u64 = 0x10_0000;
/// Instructions that are followed at most where nothing else is said.
const MOST: u32 = 16;
const RCX: usize = 1;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

fn memory() -> VecMemory {
    VecMemory::new(&VmShape::simple(1, 16 << 20).expect("a valid shape").memory)
}

/// No paging: linear addresses are guest-physical ones.
const FLAT: PagingState = PagingState {
    cr0: 0,
    cr3: 0,
    cr4: 0,
    efer: 0,
    rflags: 2,
    pkru: 0,
    physical_bits: 40,
};

fn cpu(code: CodeSize, registers: &[(usize, u64)]) -> CpuState {
    let mut gpr = [0; 16];
    for (number, value) in registers {
        gpr[*number] = *value;
    }
    CpuState {
        gpr,
        rip: CODE,
        rflags: 2,
        segments: [Segment::NULL; 6],
        code,
        cpl: 0,
        cr0: 0,
        cr4: 0,
        xcr0: 0,
    }
}

/// Each operand, and the number of instructions.
struct Seen {
    operands: Vec<Gpa>,
    instructions: u32,
}

fn follow(memory: &VecMemory, paging: &PagingState, cpu: &CpuState) -> Seen {
    let mut operands = Vec::new();
    let touched = &mut |_, gpa| operands.push(gpa);
    let instructions = reader().follow(memory, paging, cpu, MOST, touched);
    Seen {
        operands,
        instructions,
    }
}

fn look(memory: &VecMemory, code: &[u8], cpu: &CpuState) -> Seen {
    memory.write(Gpa(CODE), code).expect("memory for code");
    follow(memory, &FLAT, cpu)
}

/// HLT: nobody knows what comes behind it.
const END: u8 = 0xF4;

fn reader() -> Reader {
    Reader::within(1 << 16)
}

#[test]
fn a_run_is_followed_through_moves_loads_and_sums_and_known_branches() {
    let m = memory();
    m.write(Gpa(0x20_0008), &0x30_0000u64.to_le_bytes())
        .expect("memory");
    let code = [
        0x48, 0x83, 0xC7, 0x08, // add rdi, 8
        0x48, 0x8B, 0x07, // mov rax, [rdi]
        0x48, 0x8B, 0x5C, 0xB0, 0x10, // mov rbx, [rax + rsi*4 + 16]
        0x48, 0x83, 0xFE, 0x04, // cmp rsi, 4
        0x75, 0x04, // jne +4: not taken
        0x48, 0x89, 0x06, // mov [rsi], rax
        END, END, END,
    ];
    let run = look(
        &m,
        &code,
        &cpu(CodeSize::Bits64, &[(RDI, 0x20_0000), (RSI, 4)]),
    );
    assert_eq!(run.operands, [Gpa(0x20_0008), Gpa(0x30_0020), Gpa(4)]);
    assert_eq!(run.instructions, 7);
}

#[test]
fn what_depends_on_more_is_left_out_and_never_guessed() {
    let m = memory();
    let code = [
        0x0F, 0x31, // rdtsc: rax and rdx are unknown
        0x48, 0x8B, 0x18, // mov rbx, [rax]: unknown
        0x48, 0x8B, 0x0B, // mov rcx, [rbx]: unknown
        0x48, 0x8B, 0x16, // mov rdx, [rsi]
        0x48, 0x01, 0xC8, // add rax, rcx: unknown, and so are its flags
        0x74, 0x00, // je
        0x48, 0x8B, 0x16, // mov rdx, [rsi]: whether it comes is not known
    ];
    let run = look(&m, &code, &cpu(CodeSize::Bits64, &[(RSI, 0x30_0000)]));
    assert_eq!(run.operands, [Gpa(0x30_0000)]);
    assert_eq!(run.instructions, 6);
}

#[test]
fn a_generator_of_random_addresses_is_followed() {
    // x = x * 6364136223846793005 + 1; at = base + (x >> 44) * 8, again and again.
    let m = memory();
    let mut code = alloc::vec![0x48, 0xB9]; // mov rcx, imm64
    code.extend(6_364_136_223_846_793_005u64.to_le_bytes());
    let top = code.len();
    code.extend([0x48, 0x0F, 0xAF, 0xF1]); // imul rsi, rcx
    code.extend([0x48, 0xFF, 0xC6]); // inc rsi
    code.extend([0x48, 0x89, 0xF0]); // mov rax, rsi
    code.extend([0x48, 0xC1, 0xE8, 0x2C]); // shr rax, 44
    code.extend([0x48, 0x8B, 0x1C, 0xC7]); // mov rbx, [rdi + rax*8]
    let back = top as i64 - (code.len() as i64 + 2);
    code.extend([0xEB, back as i8 as u8]); // jmp top
    let run = look(
        &m,
        &code,
        &cpu(CodeSize::Bits64, &[(RDI, 0x20_0000), (RSI, 7)]),
    );
    let mut x = 7u64;
    let expected = core::iter::repeat_with(|| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        Gpa(0x20_0000 + (x >> 44) * 8)
    });
    let expected: Vec<Gpa> = expected.take(MOST as usize / 6).collect();
    assert_eq!(run.operands, expected);
    assert_eq!(run.instructions, MOST);
}

#[test]
fn quotients_conditions_and_parts_are_computed() {
    let m = memory();
    let code = [
        0x31, 0xD2, // xor edx, edx
        0x48, 0xF7, 0xF6, // div rsi: 1003 / 10
        0x48, 0x8B, 0x1C, 0xD7, // mov rbx, [rdi + rdx*8]
        0x48, 0x83, 0xFA, 0x05, // cmp rdx, 5
        0x48, 0x0F, 0x42, 0xD6, // cmovb rdx, rsi
        0x48, 0x8B, 0x1C, 0xD7, // mov rbx, [rdi + rdx*8]
        0x0F, 0x92, 0xC2, // setb dl
        0x0F, 0xB6, 0xD2, // movzx edx, dl
        0x48, 0x8B, 0x1C, 0xD7, // mov rbx, [rdi + rdx*8]
        END,
    ];
    let registers = [(0, 1003), (RSI, 10), (RDI, 0x20_0000)];
    let run = look(&m, &code, &cpu(CodeSize::Bits64, &registers));
    let at = |index: u64| Gpa(0x20_0000 + index * 8);
    assert_eq!(run.operands, [at(3), at(10), at(1)]);
}

#[test]
fn what_was_stored_is_loaded_and_what_was_pushed_is_popped() {
    let m = memory();
    let code = [
        0x48, 0x8D, 0x3D, 0x00, 0x10, 0x00, 0x00, // lea rdi, [rip + 0x1000]
        0x48, 0x89, 0x37, // mov [rdi], rsi
        0x57, // push rdi
        0x48, 0x8B, 0x07, // mov rax, [rdi]
        0x48, 0x8B, 0x00, // mov rax, [rax]: at rsi
        0x8B, 0x47, 0x04, // mov eax, [rdi + 4]: a part of what was stored
        0x48, 0x8B, 0x00, // mov rax, [rax]: left out
        0xE8, 0x01, 0x00, 0x00, 0x00, // call over the next byte
        END,  // where it returns to
        0xC3, // ret
    ];
    let registers = [(RSP, 0x40_0000), (RSI, 0x30_0000)];
    let run = look(&m, &code, &cpu(CodeSize::Bits64, &registers));
    let at = CODE + 7 + 0x1000;
    let expected = [at, 0x3F_FFF8, at, 0x30_0000, at + 4, 0x3F_FFF0, 0x3F_FFF0];
    assert_eq!(run.operands, expected.map(Gpa));
    assert_eq!(run.instructions, 10, "it came back to HLT");
}

#[test]
fn a_repeated_instruction_is_a_run_of_its_own() {
    let m = memory();
    let registers = [(RDI, 0x20_0000), (RSI, 0x30_0000), (RCX, 9)];
    let state = cpu(CodeSize::Bits64, &registers);
    // rep movsq; mov rax, [rsi]
    let run = look(&m, &[0xF3, 0x48, 0xA5, 0x48, 0x8B, 0x06], &state);
    let mut operands = run.operands.to_vec();
    operands.sort_unstable();
    assert_eq!(operands, [Gpa(0x20_0000), Gpa(0x30_0000)]);
    assert_eq!(run.instructions, 1);
    // mov rax, [rsi]; rep movsq
    let run = look(&m, &[0x48, 0x8B, 0x06, 0xF3, 0x48, 0xA5], &state);
    assert_eq!(run.operands, [Gpa(0x30_0000)]);
}

#[test]
fn segments_count_where_they_do() {
    let m = memory();
    let mut state = cpu(CodeSize::Bits32, &[(RSI, 0x100)]);
    for segment in &mut state.segments {
        segment.base = 0x1000;
    }
    state.rip = CODE - 0x1000;
    // mov eax, [esi]
    assert_eq!(
        look(&m, &[0x8B, 0x06, 0xC3], &state).operands[0],
        Gpa(0x1100)
    );
    let mut state = cpu(CodeSize::Bits64, &[(RSI, 0x100)]);
    let [.., ds, fs, _gs] = &mut state.segments;
    (ds.base, fs.base) = (0x1000, 0x7000);
    // mov rax, [rsi]; mov rax, fs:[rsi]
    let run = look(&m, &[0x48, 0x8B, 0x06, 0x64, 0x48, 0x8B, 0x06, END], &state);
    assert_eq!(run.operands, [Gpa(0x100), Gpa(0x7100)]);
}

/// Two-level identity: everything through one 1 GiB page.
const ENTRIES: [(u64, u64); 2] = [(0x50_0000, 0x51_0003), (0x51_0000, 0x83)];

fn identity(m: &VecMemory) -> PagingState {
    let [(root, _), _] = ENTRIES;
    for (at, entry) in ENTRIES {
        m.write(Gpa(at), &entry.to_le_bytes()).expect("memory");
    }
    PagingState {
        cr0: CR0_PG | 1,
        cr3: root,
        cr4: CR4_PAE,
        efer: EFER_LMA,
        ..FLAT
    }
}

#[test]
fn addresses_have_the_size_that_their_registers_have() {
    let m = memory();
    let high = 0x5_0000_0000;
    let state = cpu(CodeSize::Bits64, &[(RDI, high | 0x20_0000), (RSI, 0x100)]);
    let code = [
        0x67, 0x8B, 0x04, 0x77, // mov eax, [edi + esi*2]
        0x48, 0x8B, 0x04, 0x77, // mov rax, [rdi + rsi*2]: no memory
        0x8B, 0x04, 0x25, 0x00, 0x03, 0x00, 0x00, // mov eax, [0x300]
        0x8B, 0x05, 0x01, 0x00, 0x00, 0x00, // mov eax, [rip + 1]
        END,
    ];
    m.write(Gpa(CODE), &code).expect("memory for code");
    let run = follow(&m, &identity(&m), &state);
    let behind = CODE + code.len() as u64;
    assert_eq!(run.operands, [0x20_0200, 0x300, behind].map(Gpa));
}

#[test]
fn a_look_sets_no_bits_in_the_guests_tables() {
    let m = memory();
    let paging = identity(&m);
    m.write(Gpa(CODE), &[0x48, 0x8B, 0x06, END])
        .expect("memory");
    let state = cpu(CodeSize::Bits64, &[(RSI, 0x100), (RSP, 1 << 40)]);
    let run = follow(&m, &paging, &state);
    assert_eq!(run.operands, [Gpa(0x100)], "the stack leads nowhere");
    for (at, entry) in ENTRIES {
        assert_eq!(m.read_u64(Gpa(at)), Ok(entry));
    }
    // An address that only the supervisor may read is nobody's operand at CPL 3, and neither is its code.
    let user = CpuState { cpl: 3, ..state };
    assert!(follow(&m, &paging, &user).operands.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn any_bytes_and_registers_are_survived_within_bounds(
        code in proptest::collection::vec(any::<u8>(), 0..80),
        gpr in proptest::array::uniform16(prop_oneof![any::<u64>(), 0u64..0x200_0000]),
        bits in 0..3, at in prop_oneof![Just(CODE), 0xFF_FFC0u64..0x100_0010, any::<u64>()],
    ) {
        let m = memory();
        let _ignored = m.write(Gpa(at), &code);
        let code = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64][bits as usize];
        let state = CpuState { gpr, rip: at, ..cpu(code, &[]) };
        let run = follow(&m, &FLAT, &state);
        prop_assert!(run.instructions <= MOST);
        let inside: Vec<bool> = run.operands.iter().map(|gpa| m.holds(*gpa)).collect();
        prop_assert!(inside.iter().all(|x| *x));
        let pages = reader().look(&m, &FLAT, &state, 0);
        let weight: u64 = pages.pages().map(|(_, w)| u64::from(w)).sum();
        let operands = run.operands.len() as u64;
        let looked = run.instructions.min(MOST_INSTRUCTIONS);
        prop_assert!(weight * u64::from(looked) <= operands * u64::from(ONE));
        prop_assert!(pages.pages().count() as u64 <= operands);
    }
}

proptest! {
    #[test]
    fn what_was_looked_at_before_changes_nothing(
        codes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 1..6),
        gpr in proptest::array::uniform16(prop_oneof![any::<u64>(), 0u64..0x200_0000]),
        bits in 0..3, offset in 0u64..8,
    ) {
        let m = memory();
        let code = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64][bits as usize];
        let state = CpuState { gpr, rip: CODE + offset, ..cpu(code, &[]) };
        let mut reader = reader();
        for code in &codes {
            m.write(Gpa(CODE), code).expect("memory");
            let fresh = follow(&m, &FLAT, &state);
            let mut operands = Vec::new();
            let touched = &mut |_, gpa| operands.push(gpa);
            let instructions = reader.follow(&m, &FLAT, &state, MOST, touched);
            prop_assert_eq!((instructions, operands), (fresh.instructions, fresh.operands));
        }
    }
}

#[test]
fn of_an_instruction_with_many_operands_three_weigh() {
    let m = memory();
    // enter 0, 6, which copies five frame pointers
    m.write(Gpa(CODE), &[0xC8, 0, 0, 6, END]).expect("memory");
    let state = cpu(CodeSize::Bits64, &[(RSP, 0x30_0100), (RBP, 0x30_0800)]);
    let run = reader().look(&m, &FLAT, &state, 0);
    let weight: u32 = run.pages().map(|(_, w)| w).sum();
    assert_eq!(weight, 3 * ONE / 2, "in a run of two");
}

#[test]
fn a_page_weighs_what_its_operands_do() {
    let m = memory();
    let code = [
        0x48, 0x8B, 0x06, // mov rax, [rsi]
        0x48, 0x8B, 0x46, 0x08, // mov rax, [rsi + 8]
        0x48, 0x8B, 0x07, // mov rax, [rdi]
        END,
    ];
    m.write(Gpa(CODE), &code).expect("memory");
    let state = cpu(CodeSize::Bits64, &[(RSI, 0x30_0100), (RDI, 0x20_0000)]);
    let run = reader().look(&m, &FLAT, &state, 0);
    let pages: Vec<(Gpa, u32)> = run.pages().collect();
    assert_eq!(
        pages,
        [(Gpa(0x30_0000), ONE / 2), (Gpa(0x20_0000), ONE / 4)]
    );
    assert!(!run.is_empty());
}

#[test]
fn what_is_passed_over_weighs_nothing_unless_there_is_nothing_behind_it() {
    let m = memory();
    let code = [
        0x48, 0x8B, 0x06, // mov rax, [rsi]
        0x48, 0x8B, 0x07, // mov rax, [rdi]
        0x90, // nop
        END,
    ];
    m.write(Gpa(CODE), &code).expect("memory");
    let state = cpu(CodeSize::Bits64, &[(RSI, 0x30_0100), (RDI, 0x20_0000)]);
    let pages = |skip| -> Vec<(Gpa, u32)> {
        let run = reader().look(&m, &FLAT, &state, skip);
        run.pages().collect()
    };
    let (first, second) = (Gpa(0x30_0000), Gpa(0x20_0000));
    assert_eq!(pages(1), [(second, ONE / 3)], "of three that are left");
    assert_eq!(pages(3), [], "a HLT touches nothing");
    for skip in [0, 4, MOST_SKIPPED, u32::MAX] {
        assert_eq!(pages(skip), [(first, ONE / 4), (second, ONE / 4)], "{skip}");
    }
}

#[test]
fn right_behind_a_repeated_string_instruction_its_last_elements_count() {
    let m = memory();
    let copied = |code: &[u8], registers: &[(usize, u64)], flags: u64| {
        m.write(Gpa(CODE), code).expect("memory for code");
        let mut cpu = cpu(CodeSize::Bits64, registers);
        cpu.rip = CODE + code.len() as u64;
        cpu.rflags |= flags;
        // What comes next touches something else.
        let next = [0x48, 0x8B, 0x03, END]; // mov rax, [rbx]
        m.write(Gpa(cpu.rip), &next).expect("memory for code");
        follow(&m, &FLAT, &cpu).operands
    };
    let done = [(RCX, 0), (RSI, 0x20_1000), (RDI, 0x30_2000), (3, 0x40_0000)];
    let read_and_written = |size: u64| [Gpa(0x20_1000 - size), Gpa(0x30_2000 - size)];
    assert_eq!(copied(&[0x90, 0xF3, 0xA4], &done, 0), read_and_written(1));
    assert_eq!(copied(&[0x90, 0xF3, 0xA5], &done, 0), read_and_written(4));
    assert_eq!(copied(&[0xF3, 0x48, 0xA5], &done, 0), read_and_written(8));
    assert_eq!(copied(&[0xF3, 0x48, 0xAB], &done, 0), [Gpa(0x30_1FF8)]);
    // Backwards.
    let back = copied(&[0x90, 0xF3, 0xAA], &done, 1 << 10);
    assert_eq!(back, [Gpa(0x30_2001)]);
    // Not repeated, or not ended: the next instruction counts.
    let left = [(RCX, 5), (RSI, 0x20_1000), (RDI, 0x30_2000), (3, 0x40_0000)];
    assert_eq!(copied(&[0x90, 0xF3, 0xA4], &left, 0), [Gpa(0x40_0000)]);
    assert_eq!(copied(&[0x90, 0x90, 0xA4], &done, 0), [Gpa(0x40_0000)]);
    assert_eq!(copied(&[0xF3, 0x90, 0x90], &done, 0), [Gpa(0x40_0000)]);
}
