//! What an instruction does, taken apart: the vocabulary between [`super::decode`] and [`super::execute`].

/// Default sizes of operands and addresses, from CS and EFER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, or CS.D = 0.
    Bits16,
    /// CS.D = 1.
    Bits32,
    /// CS.L = 1 with EFER.LMA.
    Bits64,
}

/// A general-purpose register operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg {
    /// Number of the register, 0 to 15: RAX RCX RDX RBX RSP RBP RSI RDI R8 ...
    pub index: u8,
    /// Which part of it.
    pub part: Part,
}

/// Part of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bits 7:0.
    Low8,
    /// Bits 15:8: AH, CH, DH, BH.
    High8,
    /// Bits 15:0.
    Word,
    /// Bits 31:0; a write clears the upper half.
    Dword,
    /// All 64 bits.
    Qword,
}

impl Part {
    /// Bytes.
    #[must_use]
    pub const fn size(self) -> u8 {
        match self {
            Self::Low8 | Self::High8 => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// The low part with this many bytes: 1, 2, 4, else 8.
    #[must_use]
    pub const fn of_size(bytes: u8) -> Self {
        match bytes {
            1 => Self::Low8,
            2 => Self::Word,
            4 => Self::Dword,
            _ => Self::Qword,
        }
    }
}

/// A segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentRegister {
    /// ES.
    Es,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// DS.
    Ds,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// What an instruction loads a selector into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectorRegister {
    /// MOV to a segment register.
    Segment(SegmentRegister),
    /// LTR.
    Task,
}

/// A memory operand's address: segment:[base + index * scale + displacement].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Its segment, an override prefix considered.
    pub segment: SegmentRegister,
    /// Number of the base register.
    pub base: Option<u8>,
    /// Number of the index register.
    pub index: Option<u8>,
    /// What the index is multiplied with: 1, 2, 4 or 8.
    pub scale: u8,
    /// What is added; of an address relative to the instruction pointer all of it.
    pub displacement: u64,
    /// The part of the sum that counts: 16, 32 or 64 bits.
    pub size: Part,
}

/// A condition of Jcc, SETcc and CMOVcc by its encoding's low four bits (SDM 1 appendix B).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition(pub u8);

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A register.
    Reg(Reg),
    /// An immediate, sign-extended to 64 bits.
    Imm(u64),
    /// A segment register's selector.
    Selector(SegmentRegister),
    /// 1 if the condition holds, else 0.
    Condition(Condition),
    /// The machine status word: the low 16 bits of CR0.
    StatusWord,
}

/// What a value goes through between memory and register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convert {
    /// Zeros fill a wider register; also where the sizes agree.
    Zero,
    /// Copies of the sign fill it.
    Sign,
    /// The bytes change places (MOVBE).
    Swap,
}

/// Arithmetic and logic with two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alu {
    /// ADD.
    Add,
    /// OR.
    Or,
    /// ADC.
    Adc,
    /// SBB.
    Sbb,
    /// AND.
    And,
    /// SUB.
    Sub,
    /// XOR.
    Xor,
    /// CMP: SUB that stores nothing.
    Cmp,
    /// TEST: AND that stores nothing.
    Test,
}

impl Alu {
    /// Whether the result is stored.
    #[must_use]
    pub const fn stores(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test)
    }
}

/// Arithmetic and logic with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// INC.
    Inc,
    /// DEC.
    Dec,
    /// NOT, which leaves the flags alone.
    Not,
    /// NEG.
    Neg,
}

/// Shifts and rotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// ROL.
    RotateLeft,
    /// ROR.
    RotateRight,
    /// RCL.
    RotateLeftThroughCarry,
    /// RCR.
    RotateRightThroughCarry,
    /// SHL, SAL.
    Left,
    /// SHR.
    Right,
    /// SAR.
    RightSigned,
}

/// Operations on one bit; all copy it to the carry flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitOp {
    /// BT.
    Test,
    /// BTS.
    Set,
    /// BTR.
    Reset,
    /// BTC.
    Complement,
}

/// Counts and searches of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// BSF.
    Forward,
    /// BSR.
    Reverse,
    /// POPCNT.
    Count,
}

/// A string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringOp {
    /// MOVS: from the source segment's RSI to ES:RDI.
    Move,
    /// STOS: the accumulator to ES:RDI.
    Store,
    /// LODS: from the source segment's RSI to the accumulator.
    Load,
    /// CMPS: the source segment's RSI against ES:RDI.
    Compare,
    /// SCAS: the accumulator against ES:RDI.
    Scan,
}

/// A string instruction's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rep {
    /// None: once.
    Once,
    /// REP, or REPE where the instruction compares: RCX times, as long as the elements are equal.
    Repeat,
    /// REPNE: RCX times, as long as the elements differ; else as REP.
    RepeatUnequal,
}

/// How a vector instruction is encoded, which decides what becomes of the bits above its operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorEncoding {
    /// SSE: bits 255:128 stay.
    Legacy,
    /// VEX: they are cleared.
    Vex,
}

/// What a vector load does with the bits of the register that it has no value for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Clears them within the low 128 bits.
    Zero,
    /// The value is the low half; the high half is this register's.
    LowOf(u8),
    /// The value is the high half; the low half is this register's.
    HighOf(u8),
}

/// An operand of an instruction that moves RSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackOperand {
    /// The memory operand.
    Memory,
    /// A register.
    Reg(Reg),
    /// A constant.
    Imm(u64),
}

/// What an instruction does with its memory operand; `size` is that operand's, in bytes: 1, 2, 4 or 8
/// where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Register from memory.
    Load {
        /// Where to.
        to: Reg,
        /// Bytes of memory.
        size: u8,
        /// On the way.
        convert: Convert,
    },
    /// CMOVcc: register from memory if the condition holds. Memory is read in any case.
    LoadIf {
        /// The condition.
        condition: Condition,
        /// Where to.
        to: Reg,
    },
    /// Memory from register, immediate, selector or condition.
    Store {
        /// Where from.
        from: Source,
        /// Bytes of memory.
        size: u8,
        /// On the way.
        convert: Convert,
    },
    /// Memory operated on with a register or immediate.
    Modify {
        /// What.
        op: Alu,
        /// The other operand.
        with: Source,
        /// Bytes of memory.
        size: u8,
    },
    /// Register operated on with memory.
    Combine {
        /// What.
        op: Alu,
        /// Destination and first operand.
        reg: Reg,
    },
    /// Memory operated on alone.
    Single {
        /// What.
        op: Unary,
        /// Bytes of memory.
        size: u8,
    },
    /// Memory shifted or rotated.
    Shift {
        /// How.
        op: Shift,
        /// By how many bits; the low five bits count, six of a quadword.
        count: Source,
        /// Bytes of memory.
        size: u8,
    },
    /// SHLD, SHRD: memory shifted, filled from a register.
    DoubleShift {
        /// Left or right.
        op: Shift,
        /// Where the bits come from.
        with: Reg,
        /// By how many bits.
        count: Source,
    },
    /// One bit of memory.
    Bit {
        /// What.
        op: BitOp,
        /// Its number. From a register it may lead to other words than the one addressed.
        index: Source,
        /// Bytes of the word.
        size: u8,
    },
    /// BSF, BSR, POPCNT from memory to a register.
    Scan {
        /// Which.
        op: Scan,
        /// Where to.
        to: Reg,
    },
    /// IMUL with two or three operands: memory times the other, to a register.
    Multiply {
        /// Where to.
        to: Reg,
        /// The other factor.
        with: Source,
    },
    /// MUL and IMUL with one operand: memory times the accumulator, the result twice as wide.
    MultiplyWide {
        /// IMUL.
        signed: bool,
        /// Bytes of memory.
        size: u8,
    },
    /// DIV and IDIV: the accumulator, twice as wide, by memory.
    DivideWide {
        /// IDIV.
        signed: bool,
        /// Bytes of memory.
        size: u8,
    },
    /// XCHG.
    Exchange {
        /// The register.
        reg: Reg,
    },
    /// XADD.
    ExchangeAdd {
        /// The register.
        reg: Reg,
    },
    /// CMPXCHG with the accumulator.
    CompareExchange {
        /// What memory becomes if it equals the accumulator.
        reg: Reg,
    },
    /// CMPXCHG8B, CMPXCHG16B with (R)DX:(R)AX and (R)CX:(R)BX.
    CompareExchangePair {
        /// Bytes of a half: 4 or 8.
        half: u8,
    },
    /// CLFLUSH and its kin: the address must be readable.
    Touch,
    /// PUSH.
    Push {
        /// What.
        from: StackOperand,
        /// Bytes: 2, 4 or 8.
        size: u8,
    },
    /// POP.
    Pop {
        /// Where to.
        to: StackOperand,
        /// Bytes: 2, 4 or 8.
        size: u8,
    },
    /// CALL, near: [`StackOperand::Imm`] is the target itself.
    Call {
        /// Where to.
        to: StackOperand,
        /// Bytes of the instruction pointer: 2, 4 or 8.
        size: u8,
    },
    /// RET, near.
    Return {
        /// Bytes of arguments that it drops.
        drops: u16,
        /// Bytes of the instruction pointer: 2, 4 or 8.
        size: u8,
    },
    /// JMP, near and indirect.
    Jump {
        /// Bytes of the instruction pointer: 2, 4 or 8.
        size: u8,
    },
    /// ENTER without nested frames.
    Enter {
        /// Bytes of the frame.
        frame: u16,
        /// Bytes of a stack entry: 2, 4 or 8.
        size: u8,
    },
    /// LEAVE.
    Leave {
        /// Bytes of a stack entry: 2, 4 or 8.
        size: u8,
    },
    /// A selector from memory, whose descriptor is loaded with it.
    LoadSelector {
        /// Where to.
        to: SelectorRegister,
    },
    /// JMP, far and indirect: an offset of `size` bytes and a selector behind it.
    FarJump {
        /// Bytes of the offset: 2, 4 or 8.
        size: u8,
    },
    /// MMX register from memory.
    MmxLoad {
        /// Number of the register, 0 to 7.
        to: u8,
        /// Bytes of memory: 4 or 8.
        size: u8,
    },
    /// Memory from MMX register.
    MmxStore {
        /// Number of the register, 0 to 7.
        from: u8,
        /// Bytes of memory: 4 or 8.
        size: u8,
    },
    /// A vector register from memory.
    VectorLoad {
        /// Number of the register, 0 to 15.
        to: u8,
        /// Bytes of memory: 4, 8, 16 or 32.
        size: u8,
        /// The rest of the register.
        fill: Fill,
        /// How it is encoded.
        encoding: VectorEncoding,
        /// The address must be a multiple of this.
        alignment: u8,
    },
    /// Memory from a vector register.
    VectorStore {
        /// Number of the register, 0 to 15.
        from: u8,
        /// First byte of the register.
        first: u8,
        /// Bytes of memory: 4, 8, 16 or 32.
        size: u8,
        /// How it is encoded.
        encoding: VectorEncoding,
        /// The address must be a multiple of this.
        alignment: u8,
    },
    /// Bytes of a vector register to memory at RDI, each if the top bit of the same byte of another register is set.
    MaskedStore {
        /// Number of the register, 0 to 15.
        from: u8,
        /// Number of the register whose bytes say which.
        chosen: u8,
        /// Part of RDI that counts.
        address: Part,
        /// Its segment.
        segment: SegmentRegister,
        /// How it is encoded.
        encoding: VectorEncoding,
    },
    /// A string instruction.
    String {
        /// Which.
        op: StringOp,
        /// Bytes of an element.
        size: u8,
        /// Part of RSI, RDI and RCX that counts.
        address: Part,
        /// Segment of the source.
        segment: SegmentRegister,
        /// Repetition.
        rep: Rep,
    },
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioInstruction {
    /// Bytes of the instruction, 1 to 15.
    pub length: u8,
    /// What it does.
    pub operation: Operation,
    /// Where, unless the operation has an address of its own (string instructions, masked stores, the stack).
    pub address: Option<Address>,
    /// Mode that it was decoded for.
    pub code: CodeSize,
}

impl MmioInstruction {
    /// Whether it looks at a segment register's selector, and not only at what an address needs.
    #[must_use]
    pub const fn stores_a_selector(&self) -> bool {
        matches!(
            self.operation,
            Operation::Store {
                from: Source::Selector(_),
                ..
            }
        )
    }

    /// Whether it reaches memory at one address only, so that the address of an exit is that one.
    #[must_use]
    pub const fn has_one_operand(&self) -> bool {
        match self.operation {
            Operation::String { op, .. } => !matches!(op, StringOp::Move | StringOp::Compare),
            Operation::Push { .. } | Operation::Pop { .. } | Operation::Call { .. } => {
                self.address.is_none()
            }
            _ => true,
        }
    }
}
