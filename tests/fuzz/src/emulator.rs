//! The emulator: any instruction bytes on any machine state.

use crate::Input;
use crate::memory::SmallMemory;
use crate::walk::paging;
use guest::entry::{Segment, TableRegister};
use guest::mmio::{
    self, CodeSize, Completion, CpuState, Devices, ELEMENTS, GuestBus, Known, Loaded, Operation,
    Refusal, SegmentRegister, SystemLoad, Tables, VectorEncoding, Vectors, is_canonical,
};
use guest::walk::PagingState;
use units::Gpa;

/// Bytes of memory from address 0; all above is devices.
const MEMORY: usize = 4 * 4096;
/// CF PF AF ZF SF OF.
const ARITHMETIC: u64 = 0x8D5;

/// A device that counts.
#[derive(Default)]
struct Counter {
    reads: u32,
    writes: u32,
}

impl Devices for &mut Counter {
    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) {
        assert!(matches!(bytes.len(), 1 | 2 | 4 | 8));
        assert!(
            gpa.0 + bytes.len() as u64 > MEMORY as u64,
            "memory is no device"
        );
        self.reads += 1;
        bytes.fill(gpa.0 as u8);
    }
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        assert!(matches!(bytes.len(), 1 | 2 | 4 | 8));
        assert!(
            gpa.0 + bytes.len() as u64 > MEMORY as u64,
            "memory is no device"
        );
        self.writes += 1;
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Registers([[u8; 32]; 16], [u64; 8]);

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
    fn x87_error(&self) -> bool {
        self.1[0] & 1 != 0
    }
    fn get_mmx(&mut self, index: u8) -> u64 {
        self.1[usize::from(index)]
    }
    fn set_mmx(&mut self, index: u8, value: u64) {
        self.1[usize::from(index)] = value;
    }
}

/// Mode, paging, registers, the instruction, then the pattern that fills memory.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let paging = paging(&mut input);
    let code = input.choice(&[CodeSize::Bits64, CodeSize::Bits32, CodeSize::Bits16]);
    let flags = input.u8();
    let mut cpu = CpuState {
        gpr: std::array::from_fn(|_| register(&mut input)),
        rip: register(&mut input),
        rflags: 2 | u64::from(input.u32() & 0x0025_0FD5),
        segments: std::array::from_fn(|_| segment(&mut input)),
        code,
        cpl: if flags & 1 != 0 { 3 } else { 0 },
        cr0: if code == CodeSize::Bits16 && flags & 2 != 0 {
            0
        } else {
            paging.cr0 | u64::from(flags & 4) << 1 | u64::from(flags & 8 != 0) << 18
        },
        cr4: paging.cr4,
        xcr0: if flags & 16 != 0 { 7 } else { 3 },
    };
    let known = (flags & 32 != 0).then(|| Known {
        gpa: Gpa(register(&mut input) & 0xFFFF_FFFF),
        linear: (flags & 64 != 0).then(|| register(&mut input)),
        write: flags & 128 != 0,
    });
    let length = usize::from(input.u8() % 18);
    let code_bytes = input.bytes(length);
    let instruction = match mmio::decode(code_bytes, code, cpu.rip) {
        Ok(instruction) => instruction,
        Err(error) => {
            let text = error.to_string();
            assert!(text.ends_with("not executed"), "{text}");
            return;
        }
    };
    assert!((1..=15).contains(&instruction.length));
    assert!(usize::from(instruction.length) <= code_bytes.len());

    let mut tables = input;
    let memory = SmallMemory::filled(MEMORY, input.rest());
    let (cpu_before, memory_before) = (cpu.clone(), memory.0.borrow().clone());
    let mut vectors = Registers([[0x5A; 32]; 16], [u64::from(flags >> 4 & 1); 8]);
    let vectors_before = vectors;
    let mut counter = Counter::default();
    let known = known.filter(|_| instruction.has_one_operand());
    let mut bus = GuestBus::new(&memory, &mut counter, paging, &cpu, known);
    let outcome = mmio::execute(&instruction, &mut cpu, &mut vectors, &mut bus);

    let repeats = matches!(instruction.operation, Operation::String { .. });
    let transfers = matches!(
        instruction.operation,
        Operation::Call { .. } | Operation::Return { .. } | Operation::Jump { .. }
    );
    let divides = matches!(instruction.operation, Operation::DivideWide { .. });
    assert!(
        counter.reads + counter.writes <= ELEMENTS * 2 * 16,
        "bounded"
    );
    match outcome {
        Err(refusal) if !repeats => {
            assert_eq!(cpu, cpu_before, "{refusal:?} changes no register");
            assert_eq!(vectors, vectors_before);
            assert_eq!(counter.writes, 0, "{refusal:?} writes to no device");
            assert!(counter.reads == 0 || transfers || divides);
            if paging.cr0 >> 31 == 0 {
                assert!(*memory.0.borrow() == memory_before, "memory is unchanged");
            }
        }
        // Elements that were completed before stay completed.
        Err(Refusal::Ordinary) => assert_eq!(cpu, cpu_before, "what is ordinary is not begun"),
        Err(_) => {}
        Ok(Completion::Jump(target)) => {
            assert!(transfers);
            let limit = cpu.segments[1].limit;
            let within = if code == CodeSize::Bits64 {
                is_canonical(&cpu, target)
            } else {
                target <= limit.into()
            };
            assert!(within, "{target:#x}");
        }
        Ok(Completion::System(load)) => {
            assert_eq!(cpu, cpu_before, "the register is not loaded yet");
            descriptor(&cpu, &memory, paging, load, &mut tables);
        }
        Ok(Completion::Repeat) => assert!(repeats),
        Ok(Completion::Advance) => {}
    }
    // Instructions on memory change general registers and arithmetic flags, nothing else.
    assert_eq!((cpu.rflags ^ cpu_before.rflags) & !ARITHMETIC, 0);
    assert_eq!(
        (cpu.rip, cpu.cr0, cpu.segments),
        (cpu_before.rip, cpu_before.cr0, cpu_before.segments)
    );
    if code != CodeSize::Bits64 {
        assert_eq!(
            cpu.gpr[8..],
            cpu_before.gpr[8..],
            "there are eight registers"
        );
    }
}

/// The second half of an instruction that loads a selector, with tables anywhere.
fn descriptor(
    cpu: &CpuState,
    memory: &SmallMemory,
    paging: PagingState,
    load: SystemLoad,
    input: &mut Input<'_>,
) {
    let tables = Tables {
        gdtr: TableRegister {
            base: register(input),
            limit: input.u16(),
        },
        ldtr: segment(input),
        long_mode: cpu.code == CodeSize::Bits64,
    };
    let supervisor = CpuState {
        cpl: 0,
        ..cpu.clone()
    };
    let mut counter = Counter::default();
    let mut bus = GuestBus::new(memory, &mut counter, paging, &supervisor, None);
    let loaded = mmio::load_descriptor(cpu, &tables, load, &mut bus);
    match (load, loaded) {
        (SystemLoad::Segment(to, selector), Ok(Loaded::Segment(loaded, segment))) => {
            assert_eq!((to, selector), (loaded, segment.selector));
            assert_ne!(to, SegmentRegister::Cs);
        }
        (SystemLoad::Task(selector), Ok(Loaded::Task(task))) => {
            assert_eq!((cpu.cpl, task.selector), (0, selector));
            assert_eq!(task.attributes & 0x97, 0x83, "a busy TSS that is present");
        }
        (SystemLoad::Jump { offset, .. }, Ok(Loaded::Jump { code, rip })) => {
            assert_eq!(rip, offset);
            let protected = cpu.cr0 & 1 != 0 && cpu.rflags >> 17 & 1 == 0;
            assert!(!protected || code.selector & 3 == u16::from(cpu.cpl));
        }
        (_, Err(_)) => assert_eq!(counter.writes, 0, "what faults has marked nothing"),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn register(input: &mut Input<'_>) -> u64 {
    match input.u8() % 6 {
        0 => u64::from(input.u8()),
        1 => u64::from(input.u16()),
        2 => MEMORY as u64 - u64::from(input.u8() % 32),
        3 => 0x10_0000 + u64::from(input.u16()),
        4 => u64::from(input.u32()),
        _ => input.u64(),
    }
}

pub(crate) fn segment(input: &mut Input<'_>) -> Segment {
    let kind = input.u8();
    Segment {
        selector: u16::from(kind) << 3,
        base: if kind & 1 != 0 {
            u64::from(input.u16()) << 4
        } else {
            0
        },
        limit: match kind >> 1 & 3 {
            0 => u32::MAX,
            1 => 0xFFFF,
            _ => input.u32(),
        },
        attributes: match kind >> 3 & 3 {
            0 => 0xC93,
            1 => 0x93,
            _ => input.u16() & 0xFFF,
        },
    }
}
