//! What travels between interrupt controllers: one message, and who it is for.
//!
//! On a PC these are bus transactions that every local APIC sees and compares with its own
//! identity (SDM 3A 11.6, 11.11). Here a message is a value. Its sender translates the broadcast
//! values of its own register width (0xFF for 8 bits, 0xFFFF_FFFF for 32) into
//! [`Destination::All`], so that a receiver never needs to know how wide the sender was.

use crate::apic::LocalApic;
use core::ops::Deref;
use units::ApicId;

/// How the receiver is to take a message (SDM 3A 11.6.1; 82093AA 3.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector becomes pending at every addressed local APIC.
    Fixed,
    /// The vector becomes pending at one of the addressed local APICs, see [`lowest_priority`].
    LowestPriority,
    /// System management interrupt: the virtual processors have no SMM, so it is dropped.
    Smi,
    /// Non-maskable interrupt; the vector is ignored.
    Nmi,
    /// The processor is reset and waits for a start-up message.
    Init,
    /// Starts a processor that waits for it, at 4 KiB times the vector.
    Startup,
    /// The vector comes from the 8259A.
    ExtInt,
}

impl DeliveryMode {
    /// Decodes bits 10:8 of an ICR, LVT or redirection entry; 3 is reserved.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }
}

/// Whether the interrupt's source must see an end-of-interrupt before it asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerMode {
    /// One event, no acknowledgement.
    Edge,
    /// Asserted until served; the EOI is broadcast to the I/O APICs.
    Level,
}

/// Which local APICs a message addresses (SDM 3A 11.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The one with this identifier.
    Physical(u32),
    /// Those whose logical identity matches this address: flat or cluster in xAPIC mode, 16 bits
    /// of cluster and 16 of members in x2APIC mode.
    Logical(u32),
    /// Every one.
    All,
    /// Every one but the sender.
    AllBut(ApicId),
}

impl Destination {
    /// From an 8-bit destination field, as I/O APICs and xAPIC-mode senders have; 0xFF is
    /// everybody in both modes.
    pub const fn from_8_bits(field: u8, logical: bool) -> Self {
        match (field, logical) {
            (0xFF, _) => Self::All,
            (field, true) => Self::Logical(field as u32),
            (field, false) => Self::Physical(field as u32),
        }
    }

    /// From the 32-bit destination field of an x2APIC-mode ICR.
    pub const fn from_32_bits(field: u32, logical: bool) -> Self {
        match (field, logical) {
            (u32::MAX, _) => Self::All,
            (field, true) => Self::Logical(field),
            (field, false) => Self::Physical(field),
        }
    }
}

/// One interrupt on its way to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptMessage {
    /// Who is addressed.
    pub destination: Destination,
    /// How to take it.
    pub delivery: DeliveryMode,
    /// The vector, for the modes that have one.
    pub vector: u8,
    /// Whether an EOI goes back.
    pub trigger: TriggerMode,
}

/// Picks the one receiver of a [`DeliveryMode::LowestPriority`] message.
///
/// `candidates` yields a name and a local APIC for every virtual processor of the machine, for
/// instance lock guards taken one at a time. Among those that the message addresses and that are
/// enabled, the lowest processor priority wins; ties go to the one that has won least often, then
/// to the first, so that equal processors take turns. `None` if nobody is addressed. The caller
/// delivers with [`LocalApic::receive`] to the winner alone.
pub fn lowest_priority<Name, Apic>(
    message: &InterruptMessage,
    candidates: impl IntoIterator<Item = (Name, Apic)>,
) -> Option<Name>
where
    Apic: Deref<Target = LocalApic>,
{
    let mut best: Option<((u8, u64), Name)> = None;
    for (name, apic) in candidates {
        if !apic.matches(message) || !apic.is_software_enabled() {
            continue;
        }
        let rank = (apic.processor_priority(), apic.arbitrations_won());
        if best.as_ref().is_none_or(|(lowest, _)| rank < *lowest) {
            best = Some((rank, name));
        }
    }
    best.map(|(_, name)| name)
}
