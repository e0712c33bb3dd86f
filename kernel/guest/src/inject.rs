//! What becomes of an exception that meets another event on its way to the guest.
//!
//! An exit may interrupt the delivery of an event: the backend then finds it in EXITINTINFO (APM 2
//! 15.20) or the IDT-vectoring information (SDM 3C 25.9.3) and delivers it again. When handling
//! the exit raises an exception as well, the two combine as they would on hardware (SDM 3A table
//! 6-5, APM 2 8.2.9): some pairs are delivered one after the other, some become a double fault,
//! and a third strike shuts the processor down.

/// Divide error.
pub const DE: u8 = 0;
/// Debug.
pub const DB: u8 = 1;
/// Breakpoint.
pub const BP: u8 = 3;
/// Overflow.
pub const OF: u8 = 4;
/// Invalid opcode.
pub const UD: u8 = 6;
/// Device not available.
pub const NM: u8 = 7;
/// Double fault.
pub const DF: u8 = 8;
/// Invalid TSS.
pub const TS: u8 = 10;
/// Segment not present.
pub const NP: u8 = 11;
/// Stack fault.
pub const SS: u8 = 12;
/// General protection.
pub const GP: u8 = 13;
/// Page fault.
pub const PF: u8 = 14;
/// x87 floating-point error.
pub const MF: u8 = 16;
/// Alignment check.
pub const AC: u8 = 17;
/// Machine check.
pub const MC: u8 = 18;
/// Virtualization exception, of the class of page faults.
pub const VE: u8 = 20;
/// Control protection.
pub const CP: u8 = 21;

/// An exception to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error_code: Option<u32>,
}

impl Exception {
    /// An exception with the error code that its vector calls for: `None` stands for 0 there, and a
    /// code for a vector that pushes none is dropped.
    #[must_use]
    pub const fn new(vector: u8, error_code: Option<u32>) -> Self {
        let error_code = match (pushes_error_code(vector), error_code) {
            (false, _) => None,
            (true, None) => Some(0),
            (true, code) => code,
        };
        Self { vector, error_code }
    }

    /// #GP(0).
    pub const GP0: Self = Self {
        vector: GP,
        error_code: Some(0),
    };
    /// #UD.
    pub const UD: Self = Self {
        vector: UD,
        error_code: None,
    };
    /// #DF(0).
    pub const DF0: Self = Self {
        vector: DF,
        error_code: Some(0),
    };
}

/// Whether delivery of `vector` pushes an error code (SDM 3A table 6-1, APM 2 table 8-1).
#[must_use]
pub const fn pushes_error_code(vector: u8) -> bool {
    // 29 and 30 are AMD's #VC and #SX.
    matches!(vector, DF | TS | NP | SS | GP | PF | AC | CP | 29 | 30)
}

/// An event whose delivery an exit interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// An external interrupt with this vector.
    External(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// A hardware exception.
    Exception(Exception),
    /// INT n, INT3 or INTO: the instruction runs again by itself.
    Software(u8),
}

impl Interrupted {
    /// An event that EXITINTINFO calls an exception. Of these #BP and #OF come from INT3 and INTO, which AMD-V
    /// does not tell from faults: RIP is still at the instruction, and injecting them would push an address
    /// before it, where it would run again after its handler (APM 2 15.7.2, 15.20).
    #[must_use]
    pub const fn exception(exception: Exception) -> Self {
        match exception.vector {
            BP | OF => Self::Software(exception.vector),
            _ => Self::Exception(exception),
        }
    }

    /// Whether it comes again when the guest runs on from the same RIP, so that giving it again by
    /// injection would give it twice.
    #[must_use]
    pub const fn repeats_by_itself(self) -> bool {
        matches!(self, Self::Software(_))
    }
}

/// What to deliver now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// This exception. When `then` is given it was not lost: it stays pending and follows.
    Exception {
        /// To be delivered first.
        now: Exception,
        /// To be delivered after it.
        then: Option<Interrupted>,
    },
    /// #DF with error code 0, in place of both.
    DoubleFault,
    /// Shutdown: a triple fault, which resets the VM.
    Shutdown,
}

/// Classes of SDM 3A table 6-4.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

const fn class(vector: u8) -> Class {
    match vector {
        DE | TS | NP | SS | GP | CP => Class::Contributory,
        PF | VE => Class::PageFault,
        DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// Combines an interrupted delivery with an exception that its handling raised.
#[must_use]
pub const fn combine(first: Option<Interrupted>, second: Exception) -> Delivery {
    let alone = Delivery::Exception {
        now: second,
        then: None,
    };
    match first {
        None => alone,
        // The instruction that caused it runs again after the exception's handler.
        Some(Interrupted::Software(_)) => alone,
        // The processor has accepted these: nobody else would deliver them again.
        Some(event @ (Interrupted::External(_) | Interrupted::Nmi)) => Delivery::Exception {
            now: second,
            then: Some(event),
        },
        Some(Interrupted::Exception(first)) => match (class(first.vector), class(second.vector)) {
            (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => {
                Delivery::Shutdown
            }
            (Class::Contributory, Class::Contributory)
            | (Class::PageFault, Class::Contributory | Class::PageFault) => Delivery::DoubleFault,
            // A fault repeats by itself when its instruction runs again; a trap like #DB would be
            // lost by hardware as well.
            _ => alone,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRIBUTORY: [u8; 6] = [DE, TS, NP, SS, GP, CP];

    fn after(first: u8, second: u8) -> Delivery {
        combine(
            Some(Interrupted::Exception(Exception::new(first, None))),
            Exception::new(second, None),
        )
    }

    #[test]
    fn pairs_combine_as_the_manual_says() {
        for second in CONTRIBUTORY {
            for first in CONTRIBUTORY {
                assert_eq!(after(first, second), Delivery::DoubleFault);
            }
            assert_eq!(after(PF, second), Delivery::DoubleFault);
            assert_eq!(after(DF, second), Delivery::Shutdown);
            // A page fault after a contributory exception is delivered.
            assert_eq!(
                after(second, PF),
                Delivery::Exception {
                    now: Exception::new(PF, Some(0)),
                    then: None
                }
            );
        }
        assert_eq!(after(PF, PF), Delivery::DoubleFault);
        assert_eq!(after(DF, PF), Delivery::Shutdown);
        for benign in [DB, BP, UD, NM, AC, MC] {
            for first in [GP, PF, DF, UD] {
                assert!(matches!(
                    after(first, benign),
                    Delivery::Exception { then: None, .. }
                ));
            }
            for second in [GP, PF] {
                assert!(matches!(
                    after(benign, second),
                    Delivery::Exception { then: None, .. }
                ));
            }
        }
    }

    #[test]
    fn an_accepted_interrupt_is_not_lost() {
        for event in [Interrupted::External(0x31), Interrupted::Nmi] {
            assert_eq!(
                combine(Some(event), Exception::GP0),
                Delivery::Exception {
                    now: Exception::GP0,
                    then: Some(event)
                }
            );
        }
        assert_eq!(
            combine(Some(Interrupted::Software(0x80)), Exception::GP0),
            Delivery::Exception {
                now: Exception::GP0,
                then: None
            }
        );
    }

    #[test]
    fn breakpoint_and_overflow_instructions_are_not_given_twice() {
        for vector in 0..32 {
            let event = Interrupted::exception(Exception::new(vector, None));
            assert_eq!(event.repeats_by_itself(), vector == BP || vector == OF);
        }
        assert!(Interrupted::Software(0x80).repeats_by_itself());
        assert!(!Interrupted::External(0x80).repeats_by_itself());
        assert!(!Interrupted::Nmi.repeats_by_itself());
        assert_eq!(
            combine(
                Some(Interrupted::exception(Exception::new(BP, None))),
                Exception::new(PF, Some(2))
            ),
            Delivery::Exception {
                now: Exception::new(PF, Some(2)),
                then: None
            }
        );
    }

    #[test]
    fn error_codes_follow_the_vector() {
        assert_eq!(Exception::new(GP, None), Exception::GP0);
        assert_eq!(Exception::new(UD, Some(5)), Exception::UD);
        assert_eq!(Exception::new(PF, Some(5)).error_code, Some(5));
    }
}
