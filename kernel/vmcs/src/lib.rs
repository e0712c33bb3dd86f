//! What VT-x expects to find in memory and registers, without touching either.
//!
//! A VMCS is a form of some hundred fields: controls that say what a guest may do, the state of the
//! guest, the state to which the host returns, and the processor's answer why a guest stopped.
//! VMREAD and VMWRITE exist in the kernel only. But which fields there are and how wide each is,
//! which bits of a control this processor accepts, what an exit qualification says, and which of
//! the manual's hundred entry checks a form fails, are questions with answers that need no
//! processor. They live here, so that they run in host tests, under fuzzers, and beside a
//! processor that is asked the same.
//!
//! * [`field`]: names, encodings and widths; a width that contradicts its encoding does not compile.
//! * [`Fields`]: whatever can read and write fields: a processor, or a map in a test.
//! * [`control`]: the five words of controls, and which of their bits may be 0 or 1.
//! * [`Capabilities`]: everything the VMX MSRs say, and a sentence for each missing requirement.
//! * [`Settings`]: the controls that Perigee wants, fitted to the capabilities.
//! * [`PreemptionTimer`]: how long a guest may run, in the unit that the processor counts.
//! * [`log`]: where in its page the processor has written which pages were.
//! * [`Guest`], [`Host`], [`Controls`]: the areas as plain values.
//! * [`check()`]: the entry checks (SDM 3C 27.2, 27.3). A rejected entry gives only a number; the
//!   [`Violation`] names the field and the rule.
//! * [`event`] and [`reason`]: the words in which events and exits are encoded.
//! * [`mutation`]: valid forms with one random mistake, to ask checker and processor about.
//!
//! Chapters are those of SDM volume 3C in the numbering where 25 is the VMCS, 27 VM entries and 28
//! VM exits.
#![no_std]
#![forbid(unsafe_code)]

mod area;
mod capability;
mod check;
pub mod control;
pub mod event;
pub mod field;
pub mod log;
pub mod mutation;
pub mod reason;
mod settings;
mod timer;

pub use area::{Controls, Guest, Host, Segment, SegmentFields, Table};
pub use capability::{Capabilities, EptVpid, FeatureControl, Missing, Msrs, page_sizes_may_change};
pub use check::{Facts, Violation, check, check_controls, check_guest, check_host};
pub use field::{Field, Fields};
pub use settings::Settings;
pub use timer::PreemptionTimer;
