//! Ways to break a kernel on purpose, so that a test can show that it would notice.
//!
//! Only kernels built with the feature `sabotage` obey; every other one refuses a configuration that
//! names one. To add a way: add its name here and ask `sabotage::on` at the place that it breaks.

use crate::read::{Issues, TableReader, kind};
use crate::suggest::nearest;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use toml::de::DeValue;

macro_rules! sabotages {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)+) => {
        /// One way to break the kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Sabotage {
            $($(#[$doc])* $variant,)+
        }

        impl Sabotage {
            /// Every way there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Their names.
            const NAMES: &'static [&'static str] = &[$($text),+];

            /// The name in the configuration.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

sabotages! {
    /// A page of the first VM is mapped into every other VM as well, beyond the end of its memory.
    ForeignFrame = "foreign-frame",
    /// Frames are neither scrubbed when they come back nor zeroed when they are given out.
    DirtyFrames = "dirty-frames",
    /// An ended VM keeps one frame.
    LeakFrame = "leak-frame",
    /// The last CPU stops for ever, with interrupts off, ten seconds after the start.
    HangCpu = "hang-cpu",
    /// Before anything runs, VT-x is asked about valid VMCSs with one random mistake (drawn from `host.seed`).
    MutateVmcs = "mutate-vmcs",
    /// The first VM's first virtual CPU gets an RFLAGS that no processor accepts, at its 5000th entry.
    BreakVmcs = "break-vmcs",
    /// Each step of a page's move takes a while longer, so that whatever may come between two steps does.
    SlowMoves = "slow-moves",
    /// A moved page's new frame is mapped before processors forget the old one.
    MapEarly = "map-early",
    /// Whether a moved page was written while it was copied is judged before it is frozen.
    JudgeEarly = "judge-early",
    /// A page is moved in one of a VM's tables only; with tables on several nodes (`roots = "every"`) the others lead to
    /// the frame that it has left.
    ForgetReplica = "forget-replica",
    /// The end of a level-triggered interrupt never reaches the I/O APIC.
    LostEoi = "lost-eoi",
    /// An NMI is delivered into the handler of another.
    NestedNmi = "nested-nmi",
    /// Gate, descriptor and stack of an event are absent, one after the other, when it is delivered, and the stack when an NMI's
    /// handler returns: as if each were being moved just then. Nothing is lost if all is well. For VMs with one vCPU.
    AbsentGates = "absent-gates",
    /// One in a thousand pages that processors log as written is forgotten.
    LoseWrites = "lose-writes",
    /// A virtual CPU's floating-point registers are not saved when it leaves its CPU.
    StaleFpu = "stale-fpu",
    /// Every CPU's performance counters are simulated ones, which count what the operator says (`inject`).
    InjectCounters = "inject-counters",
    /// Memory of other nodes takes three times as long when it is measured at boot, as if it were far.
    FarIsSlow = "far-is-slow",
}

impl fmt::Display for Sabotage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads `sabotage = ["NAME", ...]`.
pub(crate) fn read(table: &TableReader<'_>, issues: &mut Issues<'_>) -> Vec<Sabotage> {
    let Some(value) = table.get("sabotage") else {
        return Vec::new();
    };
    let DeValue::Array(entries) = value.get_ref() else {
        let is = kind(value.get_ref());
        issues.report(
            value.span(),
            format!("`sabotage` must be a list such as [\"foreign-frame\"], but it is {is}."),
        );
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.iter() {
        let DeValue::String(word) = entry.get_ref() else {
            let is = kind(entry.get_ref());
            issues.report(
                entry.span(),
                format!("each entry of `sabotage` must be a name in quotes, but this is {is}."),
            );
            continue;
        };
        match Sabotage::ALL.iter().find(|s| s.as_str() == word.as_ref()) {
            Some(sabotage) => found.push(*sabotage),
            None => {
                let known: Vec<String> = Sabotage::NAMES.iter().map(|n| format!("`{n}`")).collect();
                let hint = match nearest(word, Sabotage::NAMES) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => format!("the known ones are {}.", known.join(", ")),
                };
                issues.report(
                    entry.span(),
                    format!("`sabotage` knows nothing called {word:?}; {hint}"),
                );
            }
        }
    }
    found
}
