//! What every table shares: the header, the checksum, and the RSDP that leads to them.

use alloc::vec::Vec;
use units::Gpa;

/// Bytes of the RSDP since ACPI 2.0 (ACPI 6.5, 5.2.5.3).
pub(super) const RSDP_BYTES: usize = 36;
const OEM_ID: [u8; 6] = *b"PERIGE";
const OEM_TABLE_ID: [u8; 8] = *b"PERIGEE ";
const CREATOR_ID: [u8; 4] = *b"PRGE";
const REVISION: u32 = 1;

/// Generic address structure (ACPI 6.5, 5.2.3.2) of a register in I/O space.
#[derive(Clone, Copy)]
pub(super) struct IoRegister {
    pub port: u16,
    pub bits: u8,
    /// 1 byte, 2 word, 3 double word; 0 undefined.
    pub access: u8,
}

impl IoRegister {
    /// A register block that does not exist.
    pub const ABSENT: Self = Self {
        port: 0,
        bits: 0,
        access: 0,
    };
}

/// A table while its body is written.
pub(super) struct Table {
    bytes: Vec<u8>,
}

impl Table {
    pub fn new(signature: [u8; 4], revision: u8) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&signature);
        bytes.extend_from_slice(&[0; 4]); // length, later
        bytes.push(revision);
        bytes.push(0); // checksum, later
        bytes.extend_from_slice(&OEM_ID);
        bytes.extend_from_slice(&OEM_TABLE_ID);
        bytes.extend_from_slice(&REVISION.to_le_bytes());
        bytes.extend_from_slice(&CREATOR_ID);
        bytes.extend_from_slice(&REVISION.to_le_bytes());
        Self { bytes }
    }

    pub fn signature(&self) -> [u8; 4] {
        self.bytes.first_chunk().copied().unwrap_or_default()
    }
    pub fn bytes(&mut self, b: &[u8]) {
        self.bytes.extend_from_slice(b);
    }
    pub fn u8(&mut self, v: u8) {
        self.bytes(&[v]);
    }
    pub fn u16(&mut self, v: u16) {
        self.bytes(&v.to_le_bytes());
    }
    pub fn u32(&mut self, v: u32) {
        self.bytes(&v.to_le_bytes());
    }
    pub fn u64(&mut self, v: u64) {
        self.bytes(&v.to_le_bytes());
    }
    pub fn register(&mut self, r: IoRegister) {
        // Address space 1 is I/O; an absent block is in no space at all, written as zeros.
        self.bytes(&[u8::from(r.bits != 0), r.bits, 0, r.access]);
        self.u64(u64::from(r.port));
    }

    /// Fills in length and checksum.
    pub fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        for (to, from) in self.bytes.iter_mut().skip(4).zip(length.to_le_bytes()) {
            *to = from;
        }
        let sum = checksum(&self.bytes);
        if let Some(c) = self.bytes.get_mut(9) {
            *c = sum;
        }
        self.bytes
    }
}

/// The byte that makes the sum of `bytes`, which has a zero in its place, zero modulo 256.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, b| sum.wrapping_add(*b))
        .wrapping_neg()
}

/// The root pointer; only the XSDT is given, as every 64-bit kernel prefers it.
pub(super) fn rsdp(xsdt: Gpa) -> [u8; RSDP_BYTES] {
    let mut b = [0; RSDP_BYTES];
    let mut put = |at: usize, data: &[u8]| {
        for (to, from) in b.iter_mut().skip(at).zip(data) {
            *to = *from;
        }
    };
    put(0, b"RSD PTR ");
    put(9, &OEM_ID);
    put(15, &[2]);
    put(20, &(RSDP_BYTES as u32).to_le_bytes());
    put(24, &xsdt.0.to_le_bytes());
    // The first checksum covers the 20 bytes of ACPI 1.0, the second everything.
    b[8] = checksum(&b[..20]);
    b[32] = checksum(&b);
    b
}
