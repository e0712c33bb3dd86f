//! Events as the VMCS encodes them: to be delivered, delivered to the host, interrupted.
//!
//! Three fields share one format (SDM 3C 25.8.3, 25.9.2, 25.9.3): vector in bits 7:0, type in 10:8, error code
//! present in 11, bit 12 with a meaning of its own, valid in 31.

/// What kind of event (SDM 3C table 25-16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An external interrupt.
    External,
    /// An NMI.
    Nmi,
    /// An exception that the processor raised.
    Exception,
    /// INT n.
    SoftwareInterrupt,
    /// INT1.
    PrivilegedSoftware,
    /// INT3 or INTO.
    SoftwareException,
}

impl Kind {
    const fn decode(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::External,
            2 => Self::Nmi,
            3 => Self::Exception,
            4 => Self::SoftwareInterrupt,
            5 => Self::PrivilegedSoftware,
            6 => Self::SoftwareException,
            _ => return None,
        })
    }
    const fn code(self) -> u32 {
        match self {
            Self::External => 0,
            Self::Nmi => 2,
            Self::Exception => 3,
            Self::SoftwareInterrupt => 4,
            Self::PrivilegedSoftware => 5,
            Self::SoftwareException => 6,
        }
    }
    /// Whether an instruction raised it, whose length the delivery needs.
    #[must_use]
    pub const fn is_software(self) -> bool {
        matches!(
            self,
            Self::SoftwareInterrupt | Self::PrivilegedSoftware | Self::SoftwareException
        )
    }
}

const TYPE_SHIFT: u32 = 8;
const ERROR: u32 = 1 << 11;
/// Exit and vectoring information: IRET had ended the blocking of NMIs (SDM 3C 28.2.3).
const NMI_UNBLOCKED: u32 = 1 << 12;
const VALID: u32 = 1 << 31;

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Kind.
    pub kind: Kind,
    /// Vector.
    pub vector: u8,
    /// Error code.
    pub error: Option<u32>,
}

impl Event {
    /// What a field of information and its error code say; `None` when it holds no event.
    #[must_use]
    pub const fn decode(word: u32, error: u32) -> Option<Self> {
        if word & VALID == 0 {
            return None;
        }
        let Some(kind) = Kind::decode(word >> TYPE_SHIFT & 7) else {
            return None;
        };
        let error = if word & ERROR != 0 { Some(error) } else { None };
        Some(Self {
            kind,
            vector: word as u8,
            error,
        })
    }

    /// The VM-entry interruption information.
    #[must_use]
    pub const fn encode(self) -> u32 {
        VALID
            | self.vector as u32
            | self.kind.code() << TYPE_SHIFT
            | if self.error.is_some() { ERROR } else { 0 }
    }

    /// The event as an entry takes it (SDM 3C 27.2.1.3): an exception has an error code if its vector calls for one
    /// and the guest is in protected mode, and no other event has one.
    #[must_use]
    pub const fn for_entry(self, protected_mode: bool) -> Self {
        let pushes = matches!(self.kind, Kind::Exception)
            && protected_mode
            && matches!(self.vector, 8 | 10..=14 | 17);
        let error = match (pushes, self.error) {
            (false, _) => None,
            (true, None) => Some(0),
            // Bits 31:16 must be 0.
            (true, Some(error)) => Some(error & 0xffff),
        };
        Self { error, ..self }
    }
}

/// Whether an interruption-information word is valid.
#[must_use]
pub const fn is_valid(word: u32) -> bool {
    word & VALID != 0
}

/// Whether the exit found that IRET had just ended the blocking of NMIs: the instruction runs again, so the blocking must
/// come back (SDM 3C 28.2.3). `word` is the VM-exit interruption information or, for EPT violations, the exit
/// qualification, which has the bit in the same place; `vectoring` the IDT-vectoring information.
#[must_use]
pub const fn nmi_blocking_was_lifted(word: u64, vectoring: u32) -> bool {
    vectoring & VALID == 0 && word & NMI_UNBLOCKED as u64 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_manual() {
        let gp = Event {
            kind: Kind::Exception,
            vector: 13,
            error: Some(0x18),
        };
        assert_eq!(gp.encode(), 0x8000_0b0d);
        assert_eq!(Event::decode(0x8000_0b0d, 0x18), Some(gp));
        let interrupt = Event {
            kind: Kind::External,
            vector: 0xf0,
            error: None,
        };
        assert_eq!(interrupt.encode(), 0x8000_00f0);
        assert_eq!(Event::decode(0x0000_00f0, 0), None);
        assert_eq!(
            Event::decode(0x8000_0100, 0),
            None,
            "type 1 is not defined here"
        );
    }

    #[test]
    fn error_codes_follow_vector_and_mode() {
        let exception = |vector, error| Event {
            kind: Kind::Exception,
            vector,
            error,
        };
        assert_eq!(exception(13, None).for_entry(true).error, Some(0));
        assert_eq!(exception(13, Some(5)).for_entry(false).error, None);
        assert_eq!(exception(6, Some(5)).for_entry(true).error, None);
        assert_eq!(
            exception(14, Some(0x8000_0007)).for_entry(true).error,
            Some(7)
        );
    }

    #[test]
    fn blocking_comes_back_unless_a_delivery_was_interrupted() {
        assert!(nmi_blocking_was_lifted(1 << 12, 0));
        assert!(!nmi_blocking_was_lifted(1 << 12, 0x8000_0202));
        assert!(!nmi_blocking_was_lifted(0, 0));
    }
}
