//! Operands across pages: RAM, devices, and what is not mapped at all.

use super::*;
use crate::memory::{GuestMemory, VecMemory};
use crate::shape::VmShape;
use crate::walk::{PagingState, WalkError};

/// RAM below this, the device page at it, no page behind that (all in one 4 MiB region of linear addresses).
const LINEAR: u64 = 0x40_0000;
const TABLE: u64 = 0x3000;
const DEVICE: u64 = 0xFEC0_0000;

#[derive(Default)]
struct Log(Vec<(char, u64, Vec<u8>)>);

impl Devices for &mut Log {
    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) {
        for (to, n) in bytes.iter_mut().zip(0xA0..) {
            *to = u8::wrapping_add(n, gpa.0 as u8);
        }
        self.0.push(('r', gpa.0, bytes.to_vec()));
    }
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        self.0.push(('w', gpa.0, bytes.to_vec()));
    }
}

/// 32-bit paging: page 0 of the region is RAM at 5000h, 1 the device, 2 RAM at 6000h (read-only), 3 absent.
fn memory() -> VecMemory {
    let shape = VmShape::simple(1, 16 << 20).expect("a small VM");
    let memory = VecMemory::new(&shape.memory);
    let put = |at: u64, entry: u32| {
        memory
            .write(Gpa(at), &entry.to_le_bytes())
            .expect("a table in RAM");
    };
    put(0x2000 + 4, TABLE as u32 | 7);
    put(TABLE, 0x5000 | 7);
    put(TABLE + 4, DEVICE as u32 | 7);
    put(TABLE + 8, 0x6000 | 5);
    memory
}

fn paging() -> PagingState {
    PagingState {
        cr0: 0x8001_0001,
        cr3: 0x2000,
        cr4: 0,
        efer: 0,
        rflags: 2,
        pkru: 0,
        physical_bits: 40,
    }
}

fn with(
    bytes: &[u8],
    rdi: u64,
    known: Option<Known>,
) -> (Result<Completion, Refusal>, CpuState, Log, VecMemory) {
    let memory = memory();
    for n in 0..16_u64 {
        memory
            .write(Gpa(0x5FF0 + n), &[0x10 + n as u8])
            .expect("RAM");
    }
    let i = decoded(bytes, CodeSize::Bits32).expect("emulated");
    let mut c = CpuState {
        code: CodeSize::Bits32,
        cr4: 1 << 9,
        ..cpu()
    };
    c.gpr[7] = rdi;
    let mut log = Log::default();
    let mut bus = GuestBus::new(&memory, &mut log, paging(), &c, known);
    let outcome = execute(&i, &mut c, &mut NoVectors, &mut bus);
    (outcome, c, log, memory)
}

const MOV_EAX_FROM: &[u8] = &[0x8B, 0x07];
const MOV_EAX_TO: &[u8] = &[0x89, 0x07];

#[test]
fn each_byte_goes_where_it_belongs() {
    // Three bytes of RAM, one of the device.
    let (outcome, c, log, _) = with(MOV_EAX_FROM, LINEAR + 0xFFD, None);
    assert_eq!(outcome, Ok(Completion::Advance));
    assert_eq!(log.0, [('r', DEVICE, [0xA0].to_vec())]);
    assert_eq!(c.gpr[0], 0xA01F_1E1D);
    // One byte of RAM, three of the device, in aligned pieces.
    let (_, _, log, memory) = with(MOV_EAX_TO, LINEAR + 0xFFF, None);
    assert_eq!(
        log.0,
        [
            ('w', DEVICE, [0x44, 0x33].to_vec()),
            ('w', DEVICE + 2, [0x33].to_vec())
        ]
    );
    assert_eq!(memory.read_u32(Gpa(0x5FFC)), Ok(0x801E_1D1C));
    // The device's last two bytes, then RAM.
    let (_, c, log, _) = with(MOV_EAX_FROM, LINEAR + 0x1FFE, None);
    assert_eq!(log.0, [('r', DEVICE + 0xFFE, [0x9E, 0x9F].to_vec())]);
    assert_eq!(c.gpr[0], 0x9F9E);
    // Wholly inside, but not aligned: as it is.
    let (_, _, log, _) = with(MOV_EAX_TO, LINEAR + 0x1001, None);
    assert_eq!(
        log.0,
        [('w', DEVICE + 1, [0x80, 0x44, 0x33, 0x33].to_vec())]
    );
}

#[test]
fn a_fault_on_the_second_page_leaves_the_first_alone() {
    let (outcome, c, log, memory) = with(MOV_EAX_TO, LINEAR + 0x1FFE, None);
    assert_eq!(
        outcome,
        Err(Refusal::Walk(WalkError::PageFault {
            address: LINEAR + 0x2000,
            error_code: 3
        }))
    );
    assert!(log.0.is_empty());
    assert_eq!(c.gpr[0], REGS[0]);
    // The first page's entry is accessed and dirty all the same, as a processor may leave it; the second's is not.
    assert_eq!(memory.read_u32(Gpa(TABLE + 8)).map(|e| e & 0x60), Ok(0));
    // The page behind is not there at all.
    let (outcome, ..) = with(MOV_EAX_FROM, LINEAR + 0x2FFE, None);
    assert_eq!(
        outcome,
        Err(Refusal::Walk(WalkError::PageFault {
            address: LINEAR + 0x3000,
            error_code: 0
        }))
    );
}

#[test]
fn what_is_all_memory_is_left_to_the_processor() {
    let (outcome, c, log, _) = with(MOV_EAX_FROM, LINEAR, None);
    assert_eq!(outcome, Err(Refusal::Ordinary));
    assert!(log.0.is_empty() && c.gpr[0] == REGS[0]);
}

#[test]
fn accessed_and_dirty_bits_are_set_as_the_access_is() {
    let (_, _, _, memory) = with(MOV_EAX_FROM, LINEAR + 0x1000, None);
    assert_eq!(memory.read_u32(Gpa(TABLE + 4)).map(|e| e & 0x60), Ok(0x20));
    let (_, _, _, memory) = with(MOV_EAX_TO, LINEAR + 0x1000, None);
    assert_eq!(memory.read_u32(Gpa(TABLE + 4)).map(|e| e & 0x60), Ok(0x60));
    assert_eq!(memory.read_u32(Gpa(0x2004)).map(|e| e & 0x60), Ok(0x20));
}

#[test]
fn what_the_processor_has_translated_is_not_walked_again() {
    let gpa = Gpa(DEVICE + 0x10);
    let known = |write, linear| Some(Known { gpa, linear, write });
    // Nothing is mapped there, so an answer can only come from what is known.
    let nowhere = LINEAR + 0x5010;
    let ok = |k, bytes| with(bytes, nowhere, k).0.is_ok();
    assert!(ok(known(false, None), MOV_EAX_FROM));
    assert!(ok(known(true, Some(nowhere)), MOV_EAX_TO));
    assert!(
        !ok(known(false, None), MOV_EAX_TO),
        "a load permits no store"
    );
    assert!(!ok(known(true, Some(nowhere + 0x1000)), MOV_EAX_TO));
    assert!(!ok(None, MOV_EAX_FROM));
    // Another offset in the page is another address.
    assert!(
        with(MOV_EAX_FROM, nowhere + 4, known(true, None))
            .0
            .is_err()
    );
}

#[test]
fn wide_operands_reach_a_device_in_eights() {
    // movups [edi], xmm0
    let (outcome, _, log, _) = with(&[0x0F, 0x11, 0x07], LINEAR + 0x1004, None);
    assert_eq!(outcome, Ok(Completion::Advance));
    let sizes: Vec<_> = log
        .0
        .iter()
        .map(|(_, at, b)| (*at - DEVICE, b.len()))
        .collect();
    assert_eq!(sizes, [(4, 4), (8, 8), (16, 4)]);
}

#[test]
fn misaligned_operands_of_users_fault_if_they_ask_for_it() {
    let memory = memory();
    let mut log = Log::default();
    let mut c = CpuState {
        code: CodeSize::Bits32,
        cpl: 3,
        cr0: cpu().cr0 | 1 << 18,
        ..cpu()
    };
    c.rflags |= 1 << 18;
    let mut bus = GuestBus::new(&memory, &mut log, paging(), &c, None);
    let ac = Err(Refusal::Exception(Exception::new(
        crate::inject::AC,
        Some(0),
    )));
    assert_eq!(
        bus.reach(LINEAR + 0x1002, 4, AccessKind::Read).map(|_| ()),
        ac
    );
    assert!(bus.reach(LINEAR + 0x1002, 2, AccessKind::Read).is_ok());
}
