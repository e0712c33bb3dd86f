//! Registers and events, as both backends keep them.

/// A general-purpose register by its number in instruction encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpr(pub u8);

impl Gpr {
    /// RAX.
    pub const RAX: Self = Self(0);
    /// RCX.
    pub const RCX: Self = Self(1);
    /// RDX.
    pub const RDX: Self = Self(2);
    /// RBX.
    pub const RBX: Self = Self(3);
    /// RSP.
    pub const RSP: Self = Self(4);
    /// RSI.
    pub const RSI: Self = Self(6);
    /// RDI.
    pub const RDI: Self = Self(7);
}

/// The sixteen general-purpose registers, in encoding order. The world switch knows this layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Regs(pub [u64; 16]);

impl Regs {
    /// The whole register.
    pub const fn get(&self, r: Gpr) -> u64 {
        self.0[(r.0 & 15) as usize]
    }
    /// Sets the whole register.
    pub const fn set(&mut self, r: Gpr, value: u64) {
        self.0[(r.0 & 15) as usize] = value;
    }
    /// The low half.
    pub const fn get32(&self, r: Gpr) -> u32 {
        self.get(r) as u32
    }
    /// Sets the register to a 32-bit value; the upper half becomes zero, as the processor does.
    pub const fn set32(&mut self, r: Gpr, value: u32) {
        self.set(r, value as u64);
    }
    /// EDX:EAX as one value.
    pub const fn edx_eax(&self) -> u64 {
        (self.get32(Gpr::RDX) as u64) << 32 | self.get32(Gpr::RAX) as u64
    }
    /// Sets EDX:EAX from one value.
    pub const fn set_edx_eax(&mut self, value: u64) {
        self.set32(Gpr::RAX, value as u32);
        self.set32(Gpr::RDX, (value >> 32) as u32);
    }
}

/// Segment registers and descriptor-table registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentName {
    /// CS.
    Cs,
    /// DS.
    Ds,
    /// ES.
    Es,
    /// FS.
    Fs,
    /// GS.
    Gs,
    /// SS.
    Ss,
    /// TR.
    Tr,
    /// LDTR.
    Ldtr,
}

/// Kinds of event a guest can be given (APM 2 15.20, SDM 3C 25.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A maskable interrupt.
    Interrupt,
    /// An NMI.
    Nmi,
    /// A fault or trap.
    Exception,
    /// INT n, delivered again.
    SoftwareInterrupt,
}

/// An event for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Kind.
    pub kind: EventKind,
    /// Vector.
    pub vector: u8,
    /// Error code, where the vector pushes one.
    pub error: Option<u32>,
}

impl Event {
    /// An external interrupt.
    pub const fn interrupt(vector: u8) -> Self {
        Self {
            kind: EventKind::Interrupt,
            vector,
            error: None,
        }
    }
    /// An NMI.
    pub const NMI: Self = Self {
        kind: EventKind::Nmi,
        vector: 2,
        error: None,
    };
}
