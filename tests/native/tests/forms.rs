//! Every form that the emulator accepts, against this processor.
//!
//! All opcodes of the four maps are gone through with all values of ModRM.reg and the usual prefixes, VEX as
//! well. What [`guest::mmio::decode`] accepts is executed twice, here and there, on the same random operands in
//! a window of memory, also at its end; then registers, memory, vector registers and the flags that the
//! manual defines must agree, and of faults the vector and, for page faults, address and error code.

use guest::entry::Segment;
use guest::inject::Exception;
use guest::mmio::{
    self, Alu, Bus, CodeSize, Completion, CpuState, MmioInstruction, Operation, Part, Place,
    Refusal, Scan, SegmentRegister, Shift, Source, StackOperand, VectorEncoding, Vectors,
    split_at_page,
};
use guest::walk::{AccessKind, WalkError, error_code};
use native::{Arena, Fault, State, WINDOW_BYTES};
use std::collections::BTreeMap;
use units::Gpa;

const CF: u64 = 1;
const PF: u64 = 4;
const AF: u64 = 0x10;
const ZF: u64 = 0x40;
const SF: u64 = 0x80;
const DF: u64 = 0x400;
const OF: u64 = 0x800;
const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// How often each form is tried.
const ROUNDS: u32 = 6;

/// xorshift64*, so that a seed tells all.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// Values at which flags change, and any others.
    fn operand(&mut self) -> u64 {
        let edge = [
            0,
            1,
            0x7F,
            0x80,
            0xFF,
            0x7FFF,
            0x8000,
            0xFFFF,
            0x7FFF_FFFF,
            0x8000_0000,
        ];
        match self.below(5) {
            0 => edge[self.below(10) as usize],
            1 => edge[self.below(10) as usize].wrapping_neg(),
            2 => 1 << self.below(64),
            _ => self.next(),
        }
    }
}

/// The window as the emulator's memory.
struct Window {
    base: u64,
    data: Vec<u8>,
}

impl Bus for Window {
    fn reach(&mut self, linear: u64, bytes: u8, kind: AccessKind) -> Result<Place, Refusal> {
        let (first, second) = split_at_page(linear, bytes);
        let pieces = [
            (Gpa(linear), first),
            (Gpa(linear.wrapping_add(first.into())), second),
        ];
        for (at, length) in pieces {
            let inside = at.0.wrapping_sub(self.base) < WINDOW_BYTES as u64;
            if length != 0 && !inside {
                let write = if kind == AccessKind::Write {
                    error_code::WRITE
                } else {
                    0
                };
                return Err(Refusal::Walk(WalkError::PageFault {
                    address: at.0,
                    error_code: error_code::USER | write,
                }));
            }
        }
        Ok(Place {
            pieces,
            device: true,
        })
    }
    fn read(&mut self, place: &Place, bytes: &mut [u8]) {
        let at = (place.pieces[0].0.0 - self.base) as usize;
        bytes.copy_from_slice(&self.data[at..at + bytes.len()]);
    }
    fn write(&mut self, place: &Place, bytes: &[u8]) {
        let at = (place.pieces[0].0.0 - self.base) as usize;
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

struct Registers([[u8; 32]; 16]);

impl Vectors for Registers {
    fn get(&self, index: u8) -> [u8; 32] {
        self.0[usize::from(index)]
    }
    fn set(&mut self, index: u8, value: &[u8; 32], encoding: VectorEncoding) {
        let bytes = if encoding == VectorEncoding::Vex {
            32
        } else {
            16
        };
        self.0[usize::from(index)][..bytes].copy_from_slice(&value[..bytes]);
    }
    // MMX registers are not compared here (`available`).
    fn x87_error(&self) -> bool {
        false
    }
    fn get_mmx(&mut self, _: u8) -> u64 {
        0
    }
    fn set_mmx(&mut self, _: u8, _: u64) {}
}

/// An instruction under construction: its displacement is known to be at `displacement`.
#[derive(Clone, Debug)]
struct Form {
    bytes: Vec<u8>,
    displacement: usize,
}

/// Prefixes, opcode, ModRM with a 32-bit displacement, and an immediate, all but the opcode at random.
fn legacy(random: &mut Random, prefixes: &[u8], map: &[u8], opcode: u8, reg: u8) -> Form {
    let mut bytes = prefixes.to_vec();
    if random.below(8) == 0 {
        bytes.push(0x67);
    }
    match random.below(4) {
        0 => {}
        1 => bytes.push(0x48 | random.below(8) as u8),
        _ => bytes.push(0x40 | random.below(16) as u8),
    }
    bytes.extend(map);
    bytes.push(opcode);
    operand(random, bytes, reg)
}

fn operand(random: &mut Random, mut bytes: Vec<u8>, reg: u8) -> Form {
    // Base and 32-bit displacement; sometimes with an index, relative to RIP, or absolute.
    let (mode, rm) = match random.below(8) {
        0 => (0, 5),
        1 | 2 => (2, 4),
        3 => (0, 4),
        _ => (2, [0, 1, 2, 3, 5, 6, 7][random.below(7) as usize]),
    };
    bytes.push(mode << 6 | reg << 3 | rm);
    if rm == 4 {
        let base = if mode == 0 { 5 } else { random.below(8) as u8 };
        bytes.push((random.below(256) as u8 & !7) | base);
    }
    let displacement = bytes.len();
    bytes.extend((random.below(256) as u32).wrapping_sub(128).to_le_bytes());
    for _ in 0..8 {
        bytes.push(random.operand() as u8);
    }
    bytes.truncate(15);
    Form {
        bytes,
        displacement,
    }
}

fn vex(random: &mut Random, map: u8, pp: u8, opcode: u8, reg: u8) -> Form {
    let (x, b) = (random.below(2) as u8, random.below(2) as u8);
    let vvvv = if random.below(2) == 0 {
        15
    } else {
        random.below(16) as u8
    };
    let (w, l) = (random.below(2) as u8, random.below(2) as u8);
    let r = random.below(2) as u8;
    let bytes = vec![
        0xC4,
        r << 7 | x << 6 | b << 5 | map,
        w << 7 | vvvv << 3 | l << 2 | pp,
        opcode,
    ];
    operand(random, bytes, reg)
}

/// Opcodes with an address of their own in place of ModRM (A0 to A3).
fn absolute(random: &mut Random, prefixes: &[u8], opcode: u8, window: u64) -> Form {
    let mut bytes = prefixes.to_vec();
    if random.below(2) == 0 {
        bytes.push(0x48);
    }
    bytes.push(opcode);
    let displacement = bytes.len();
    bytes.extend((window + random.below(WINDOW_BYTES as u64 - 8)).to_le_bytes());
    Form {
        bytes,
        displacement,
    }
}

/// What has been tried.
#[derive(Default, Debug)]
struct Tally {
    forms: BTreeMap<String, u32>,
    runs: u32,
    faults: u32,
}

struct Bench {
    arena: Arena,
    random: Random,
    tally: Tally,
}

/// A repeated string instruction with addresses of 32 bits whose count is zero, or that faults at its first element, leaves counter
/// and pointers as they were; Intel's processors clear some of their upper halves, by their fast paths. Both are taken for
/// the first.
fn allow_quirks(before: &State, after: &mut State) {
    for register in [1, 6, 7] {
        if after.gpr[register] == before.gpr[register] & u64::from(u32::MAX) {
            after.gpr[register] = before.gpr[register];
        }
    }
}

/// A repeated comparison that faults leaves the flags of the last element, or those from before all of them (SDM 2B, REP).
/// Nobody can tell later, since it goes on with the element that faulted.
fn allow_restored_flags(before: &State, emulated: &CpuState, after: &mut State) {
    if (after.rflags ^ before.rflags) & ARITHMETIC == 0 {
        after.rflags = after.rflags & !ARITHMETIC | emulated.rflags & ARITHMETIC;
    }
}

#[test]
fn every_form_does_what_the_processor_does() {
    let seed = std::env::var("PERIGEE_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |d| d.as_nanos() as u64 | 1)
        });
    println!("PERIGEE_SEED={seed}");
    let mut bench = Bench {
        arena: Arena::new(),
        random: Random(seed | 1),
        tally: Tally::default(),
    };
    let prefixes: [&[u8]; 8] = [
        &[],
        &[0x66],
        &[0xF2],
        &[0xF3],
        &[0xF0],
        &[0x66, 0xF0],
        &[0x66, 0xF3],
        &[0x66, 0xF2],
    ];
    let maps: [&[u8]; 4] = [&[], &[0x0F], &[0x0F, 0x38], &[0x0F, 0x3A]];
    for opcode in 0..=255 {
        for _ in 0..ROUNDS {
            for prefix in prefixes {
                for reg in 0..8 {
                    for map in maps {
                        let form = legacy(&mut bench.random, prefix, map, opcode, reg);
                        bench.compare(form);
                    }
                }
                if (0xA0..0xA4).contains(&opcode) {
                    let window = bench.arena.window();
                    let form = absolute(&mut bench.random, prefix, opcode, window);
                    bench.compare(form);
                }
            }
            if !std::arch::is_x86_feature_detected!("avx2") {
                continue;
            }
            for map in 1..4 {
                for pp in 0..4 {
                    for reg in 0..8 {
                        let form = vex(&mut bench.random, map, pp, opcode, reg);
                        bench.compare(form);
                    }
                }
            }
        }
    }
    let Tally {
        forms,
        runs,
        faults,
    } = &bench.tally;
    println!(
        "{} operations, {runs} runs, {faults} of them faults",
        forms.len()
    );
    for (form, times) in forms {
        println!("{times:8} {form}");
    }
    // What is compared is most of what there is: a decoder that refuses everything would pass otherwise.
    assert!(forms.len() >= 90, "{} operations", forms.len());
    assert!(
        *runs >= 20_000 && *faults >= 200,
        "{runs} runs, {faults} faults"
    );
}

impl Bench {
    fn compare(&mut self, mut form: Form) {
        let rip = self.arena.code();
        let Ok(instruction) = mmio::decode(&form.bytes, CodeSize::Bits64, rip) else {
            return;
        };
        // AMD's processors take four bytes of offset whatever REX.W says.
        if uses_a_base(&instruction) || instruction.operation == (Operation::FarJump { size: 8 }) {
            return;
        }
        let Some((mut state, instruction)) = self.prepare(&mut form, instruction) else {
            return;
        };
        let bytes = &form.bytes[..instruction.length.into()];
        if !available(bytes) || !is_defined(&instruction, &state) {
            return;
        }
        let mut window = Window {
            base: self.arena.window(),
            data: self.arena.data().to_vec(),
        };
        let mut cpu = cpu_of(&state, rip);
        let mut vectors = Registers(state.vectors);
        let outcome = loop {
            match mmio::execute(&instruction, &mut cpu, &mut vectors, &mut window) {
                Ok(Completion::Repeat) => {}
                other => break other,
            }
        };
        if matches!(outcome, Ok(Completion::System(_))) {
            // A process has no descriptors of its own to load.
            return;
        }
        if let Operation::Enter { frame, .. } = instruction.operation
            && cpu.gpr[4].wrapping_sub(window.base) >= WINDOW_BYTES as u64
            && frame > 0
        {
            // Processors differ in whether they look at the new top of the stack (`stack.rs`).
            return;
        }
        if let Err(Refusal::Walk(WalkError::PageFault { address, .. })) = outcome
            && address.wrapping_sub(window.base - 4096) >= WINDOW_BYTES as u64 + 8192
        {
            // Beyond the guards there may be something of this process.
            return;
        }
        let before = state;
        let natively = self.arena.run(bytes, &mut state);
        let what = || {
            format!(
                "{bytes:02x?} is {:?} at {:?}\nfrom {:x?}, {:x}",
                instruction.operation, instruction.address, before.gpr, before.rflags
            )
        };
        self.tally.runs += 1;
        let name = format!("{:?}", instruction.operation);
        let name: String = name.split(['{', '(']).take(1).collect();
        let detail = operation_name(&instruction);
        *self.tally.forms.entry(name + &detail).or_default() += 1;

        match (outcome, natively) {
            (Ok(Completion::Jump(target)), Ok(())) => assert_eq!(target, self.arena.exit()),
            (Ok(Completion::Advance), Ok(())) => {}
            (Err(refusal), Err(fault)) => {
                self.tally.faults += 1;
                assert_eq!(as_fault(refusal, fault), fault, "{}", what());
            }
            (emulated, native) => panic!("{emulated:x?} but {native:x?}: {}", what()),
        }
        let defined = defined_flags(&instruction, &before);
        if matches!(instruction.operation, Operation::String { .. }) {
            allow_quirks(&before, &mut state);
            if natively.is_err() {
                allow_restored_flags(&before, &cpu, &mut state);
            }
        }
        assert_eq!(cpu.gpr, state.gpr, "registers: {}", what());
        assert_eq!(
            cpu.rflags & defined,
            state.rflags & defined & !(1 << 9 | 1 << 16),
            "flags: {}",
            what()
        );
        assert_eq!(vectors.0, state.vectors, "vectors: {}", what());
        assert!(
            window.data[..] == self.arena.data()[..],
            "memory: {}",
            what()
        );
    }

    /// Registers and memory for an instruction whose operands are to be in the window.
    fn prepare(
        &mut self,
        form: &mut Form,
        instruction: MmioInstruction,
    ) -> Option<(State, MmioInstruction)> {
        let base = self.arena.window();
        let exit = self.arena.exit();
        let random = &mut self.random;
        let mut state = State::default();
        state.rflags |= random.next() & (ARITHMETIC | DF);
        for register in &mut state.gpr {
            *register = random.operand();
        }
        if std::arch::is_x86_feature_detected!("avx") {
            for vector in &mut state.vectors {
                vector.fill_with(|| random.next() as u8);
            }
        }
        let mut noise = Random(random.next() | 1);
        for chunk in self.arena.data().chunks_mut(8) {
            chunk.copy_from_slice(&noise.operand().to_le_bytes());
        }
        // Mostly inside, now and then over the end of a page or of the window.
        let place = |random: &mut Random, align: u64| match random.below(8) {
            0 => base + WINDOW_BYTES as u64 - random.below(40),
            1 => base + 4096 - random.below(40),
            2 => base - random.below(24),
            3 => base + (random.below(WINDOW_BYTES as u64 - 64) | 1),
            _ => base + random.below(WINDOW_BYTES as u64 - 64) / align * align,
        };
        match instruction.operation {
            Operation::String { address, .. } => {
                state.gpr[6] = place(&mut self.random, 1);
                state.gpr[7] = if self.random.below(3) == 0 {
                    state.gpr[6]
                } else {
                    base + 512 + self.random.below(4096)
                };
                state.gpr[1] = self.random.below(150);
                if address != Part::Qword {
                    state.gpr[1] |= self.random.next() << 32;
                }
            }
            Operation::Push { .. }
            | Operation::Pop { .. }
            | Operation::Call { .. }
            | Operation::Enter { .. }
            | Operation::Return { .. } => state.gpr[4] = place(&mut self.random, 8),
            Operation::Leave { .. } => state.gpr[5] = place(&mut self.random, 8),
            // A dividend that is not too large for most divisors, since one that is raises #DE.
            Operation::DivideWide { .. } if self.random.below(4) != 0 => {
                state.gpr[2] = self.random.below(3).wrapping_sub(1);
            }
            // Mostly near, since a bit may be 256 MiB away.
            Operation::Bit {
                index: Source::Reg(reg),
                ..
            } if self.random.below(8) != 0 => {
                let near = self.random.below(20_000).wrapping_sub(10_000);
                state.gpr[usize::from(reg.index)] = near;
            }
            _ => {}
        }
        let Some(address) = instruction.address else {
            return self.prepare_stack(form, state, instruction);
        };
        let target = place(&mut self.random, 32);
        let cpu = cpu_of(&state, self.arena.code());
        let away = target.wrapping_sub(address.offset(&cpu));
        match address.base {
            None => {
                // Only the displacement is left to lead into the window.
                let wide = form.bytes.get(form.displacement..form.displacement + 8)?;
                let old = i32::from_le_bytes([wide[0], wide[1], wide[2], wide[3]]);
                let is_absolute = form.bytes.len() >= 8
                    && (0xA0..0xA4).contains(&form.bytes[form.displacement - 1]);
                if !is_absolute {
                    let new = i32::try_from(i64::from(old) + away as i64).ok()?;
                    form.bytes[form.displacement..form.displacement + 4]
                        .copy_from_slice(&new.to_le_bytes());
                }
            }
            // The base is not its own index, and a stack pointer that is the base moves with it.
            Some(base) if address.index == Some(base) => return None,
            Some(register) => {
                let register = &mut state.gpr[usize::from(register)];
                *register = register.wrapping_add(away);
                if address.size == Part::Dword {
                    *register &= 0xFFFF_FFFF;
                }
            }
        }
        let decoded = mmio::decode(&form.bytes, CodeSize::Bits64, self.arena.code()).ok()?;
        let cpu = cpu_of(&state, self.arena.code());
        if decoded.address?.offset(&cpu) != target {
            // An opcode that is a prefix after all, so that the displacement was elsewhere.
            return None;
        }
        if matches!(
            decoded.operation,
            Operation::Call { .. } | Operation::Jump { .. }
        ) {
            let cpu = cpu_of(&state, self.arena.code());
            let at = decoded.address?.offset(&cpu).wrapping_sub(base) as usize;
            let place = self.arena.data().get_mut(at..at.checked_add(8)?)?;
            place.copy_from_slice(&exit.to_le_bytes());
        }
        self.make_equal(&mut state, &decoded);
        Some((state, decoded))
    }

    /// Instructions with the stack alone.
    fn prepare_stack(
        &mut self,
        form: &mut Form,
        mut state: State,
        instruction: MmioInstruction,
    ) -> Option<(State, MmioInstruction)> {
        let (code, exit) = (self.arena.code(), self.arena.exit());
        match instruction.operation {
            Operation::Call {
                to: StackOperand::Imm(target),
                ..
            } => {
                // The target is relative and at the end of the instruction.
                let end = usize::from(instruction.length);
                let place = form.bytes.get_mut(end - 4..end)?;
                let old = i32::from_le_bytes([place[0], place[1], place[2], place[3]]);
                let new = i64::from(old) + exit.wrapping_sub(target) as i64;
                place.copy_from_slice(&i32::try_from(new).ok()?.to_le_bytes());
            }
            Operation::Call {
                to: StackOperand::Reg(reg),
                ..
            } if reg.index != 4 => state.gpr[usize::from(reg.index)] = exit,
            Operation::Call { .. } => return None,
            Operation::Return { .. } => {
                let at = state.gpr[4].wrapping_sub(self.arena.window()) as usize;
                let place = self.arena.data().get_mut(at..at.checked_add(8)?)?;
                place.copy_from_slice(&exit.to_le_bytes());
            }
            _ => {}
        }
        let decoded = mmio::decode(&form.bytes, CodeSize::Bits64, code).ok()?;
        Some((state, decoded))
    }

    /// Half of the comparisons find what they look for.
    fn make_equal(&mut self, state: &mut State, instruction: &MmioInstruction) {
        let cpu = cpu_of(state, self.arena.code());
        let Some(address) = instruction.address else {
            return;
        };
        let at = address.offset(&cpu).wrapping_sub(self.arena.window()) as usize;
        if self.random.below(2) == 0 {
            return;
        }
        let (rax, rdx) = (state.gpr[0], state.gpr[2]);
        let mut expected = rax.to_le_bytes().to_vec();
        if let Operation::CompareExchangePair { half } = instruction.operation {
            expected.truncate(half.into());
            expected.extend(&rdx.to_le_bytes()[..half.into()]);
        } else if !matches!(instruction.operation, Operation::CompareExchange { .. }) {
            return;
        }
        let bytes = expected.len();
        if let Some(place) = at
            .checked_add(bytes)
            .and_then(|end| self.arena.data().get_mut(at..end))
        {
            place.copy_from_slice(&expected);
        }
    }
}

/// What the emulator says, in the words of a fault. The error codes of #GP and #SS come as zero.
fn as_fault(refusal: Refusal, native: Fault) -> Fault {
    match refusal {
        Refusal::Exception(Exception { vector, error_code }) => Fault {
            vector,
            error_code: error_code.unwrap_or(0),
            cr2: native.cr2,
        },
        Refusal::Walk(WalkError::PageFault {
            address,
            error_code,
        }) => Fault {
            vector: 14,
            error_code,
            cr2: address,
        },
        other => panic!("{other:?}"),
    }
}

fn cpu_of(state: &State, rip: u64) -> CpuState {
    let mut segments = [Segment::NULL; 6];
    // What a process may see of its segments.
    for (segment, selector) in segments.iter_mut().zip(selectors()) {
        segment.selector = selector;
    }
    CpuState {
        gpr: state.gpr,
        rip,
        rflags: state.rflags,
        segments,
        code: CodeSize::Bits64,
        cpl: 3,
        cr0: 0x8000_0001,
        cr4: 1 << 9 | 1 << 18,
        xcr0: 7,
    }
}

fn selectors() -> [u16; 6] {
    // A 64-bit process of Linux: data segments are null, code and stack are the user's.
    [0, 0x33, 0x2B, 0, 0, 0]
}

/// Whether this processor has the instruction.
fn available(bytes: &[u8]) -> bool {
    let mut decoder = iced_x86::Decoder::new(64, bytes, 0);
    let instruction = decoder.decode();
    let mnemonic = instruction.mnemonic();
    let is_mmx = |n| instruction.op_register(n).is_mm();
    if (0..instruction.op_count()).any(is_mmx) {
        return false;
    }
    use iced_x86::Mnemonic as M;
    match mnemonic {
        M::Movbe => std::arch::is_x86_feature_detected!("movbe"),
        M::Popcnt => std::arch::is_x86_feature_detected!("popcnt"),
        M::Cmpxchg16b => std::arch::is_x86_feature_detected!("cmpxchg16b"),
        M::Lddqu => std::arch::is_x86_feature_detected!("sse3"),
        M::Movntdqa => std::arch::is_x86_feature_detected!("sse4.1"),
        // What a process sees of CR0 is the host's affair.
        M::Smsw => false,
        // No macro asks for these.
        M::Movdiri | M::Clwb | M::Clflushopt => false,
        _ => true,
    }
}

/// Whether a segment with a base of this process' own counts.
fn uses_a_base(i: &MmioInstruction) -> bool {
    let of_string = match i.operation {
        Operation::String { segment, .. } => Some(segment),
        _ => None,
    };
    let segments = [of_string, i.address.map(|a| a.segment)];
    segments
        .into_iter()
        .flatten()
        .any(|s| matches!(s, SegmentRegister::Fs | SegmentRegister::Gs))
}

/// The number of bits of a shift.
fn shift_count(source: Source, size: u8, before: &State) -> u64 {
    let count = match source {
        Source::Imm(n) => n,
        _ => before.gpr[1],
    };
    count & if size == 8 { 63 } else { 31 }
}

/// Whether the manual says what happens: not if a word is shifted by more bits than two have.
fn is_defined(i: &MmioInstruction, before: &State) -> bool {
    match i.operation {
        Operation::DoubleShift { with, count, .. } => {
            let size = with.part.size();
            shift_count(count, size, before) <= 8 * u64::from(size)
        }
        _ => true,
    }
}

/// The flags that the manual defines.
fn defined_flags(i: &MmioInstruction, before: &State) -> u64 {
    let all = u64::MAX;
    let count = |source, size| shift_count(source, size, before);
    match i.operation {
        Operation::Modify { op, .. } | Operation::Combine { op, .. } => match op {
            Alu::And | Alu::Or | Alu::Xor | Alu::Test => all & !AF,
            _ => all,
        },
        Operation::Shift {
            op,
            count: source,
            size,
        } => {
            let n = count(source, size);
            let shifts = matches!(op, Shift::Left | Shift::Right | Shift::RightSigned);
            let mut flags = all;
            if n > 1 {
                flags &= !OF;
            }
            if shifts && n > 0 {
                flags &= !AF;
            }
            if matches!(op, Shift::Left | Shift::Right) && n >= u64::from(size) * 8 {
                flags &= !CF;
            }
            flags
        }
        Operation::DoubleShift {
            with,
            count: source,
            ..
        } => match count(source, with.part.size()) {
            0 => all,
            1 => all & !AF,
            _ => all & !(AF | OF),
        },
        Operation::Bit { .. } => all & !(OF | SF | AF | PF),
        Operation::Scan {
            op: Scan::Count, ..
        } => all,
        Operation::Scan { .. } => all & !(CF | OF | SF | AF | PF),
        Operation::DivideWide { .. } => all & !ARITHMETIC,
        Operation::Multiply { .. } | Operation::MultiplyWide { .. } => all & !(SF | ZF | AF | PF),
        _ => all,
    }
}

/// The operation with its variant and size.
fn operation_name(i: &MmioInstruction) -> String {
    match i.operation {
        Operation::Modify { op, size, .. } => format!("{op:?} {size}"),
        Operation::Combine { op, reg } => format!("{op:?} {}", reg.part.size()),
        Operation::Single { op, size } => format!("{op:?} {size}"),
        Operation::Shift { op, size, .. } => format!("{op:?} {size}"),
        Operation::Bit { op, size, .. } => format!("{op:?} {size}"),
        Operation::String { op, size, rep, .. } => format!("{op:?} {size} {rep:?}"),
        Operation::Load { size, convert, .. } => format!("{convert:?} {size}"),
        Operation::Store { size, convert, .. } => format!("{convert:?} {size}"),
        Operation::VectorLoad { size, encoding, .. } => format!("{encoding:?} {size}"),
        Operation::VectorStore { size, encoding, .. } => format!("{encoding:?} {size}"),
        Operation::Exchange { reg }
        | Operation::ExchangeAdd { reg }
        | Operation::CompareExchange { reg } => format!("{}", reg.part.size()),
        _ => String::new(),
    }
}

#[test]
fn selectors_are_what_this_process_has() {
    // MOV [window], DS and the others, natively.
    let mut arena = Arena::new();
    let names = [
        SegmentRegister::Es,
        SegmentRegister::Cs,
        SegmentRegister::Ss,
        SegmentRegister::Ds,
        SegmentRegister::Fs,
        SegmentRegister::Gs,
    ];
    for ((number, selector), _) in (0..).zip(selectors()).zip(names) {
        let mut state = State::default();
        state.gpr[0] = arena.window();
        arena
            .run(&[0x8C, number << 3], &mut state)
            .expect("a store to the window");
        assert_eq!(
            arena.data()[..2],
            selector.to_le_bytes(),
            "segment {number}"
        );
    }
}

#[test]
fn a_fault_comes_back_as_one() {
    let mut arena = Arena::new();
    let mut state = State::default();
    state.gpr[0] = arena.window() - 1;
    state.gpr[4] = 0xDEAD_BEEF_0000;
    let before = state;
    // MOV [RAX], AL
    let fault = arena.run(&[0x88, 0x00], &mut state);
    assert_eq!(
        fault,
        Err(Fault {
            vector: 14,
            error_code: 6,
            cr2: arena.window() - 1
        })
    );
    assert_eq!(state.gpr, before.gpr);
    // UD2
    assert_eq!(
        arena.run(&[0x0F, 0x0B], &mut state).map_err(|f| f.vector),
        Err(6)
    );
    assert_eq!(arena.run(&[0x90], &mut state), Ok(()));
}
