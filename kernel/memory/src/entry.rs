//! Who is inside a guest, and with which translations: the promise that entries keep and changes rely on.
//!
//! A processor caches translations under a tag, and leaving the guest drops none of them. So a change of a table is
//! complete only when every CPU that could use the old translation has flushed. Interrupting all CPUs would do; this
//! protocol interrupts only those that are inside:
//!
//! * **Entry:** publish that this CPU is inside, full fence, read the [`Generations`], compare with what the tag has
//!   seen ([`Remembered`]), flush if they differ, enter.
//! * **Change:** change the table, bump the generation, full fence, look who is inside, kick those, wait until each
//!   has been outside once ([`expel`]). A CPU that is outside needs no answer.
//!
//! Whichever fence comes first in the order of all, either the entering CPU sees the new generation or the changing
//! one sees it inside. Without the entry's fence its store may wait in the store buffer while the generation is read
//! early, and both miss each other (SDM 3A 9.2.3.4: loads may pass earlier stores).
//!
//! Two generations, for they promise different things. `map`: the table says something else; its changes wait for
//! everybody inside. `sample`: accessed bits were cleared; entries flush for it, nobody is interrupted.
//!
//! What a tag has seen belongs to the tag *on one CPU*: another CPU may hold what this one has flushed, and a virtual
//! CPU that comes back may find it. And it belongs to one root: a root whose frame is used again for another table
//! has the same address and therefore the same tag, but its old translations mean something else. So roots
//! have numbers that are never used twice.
//!
//! `tests/model` runs this code on processors with store buffers and tagged TLBs, and each of the three mistakes
//! (remembering for a virtual CPU, recognising a root by its frame, leaving the fence out) is found there.

use units::VmId;

/// A word that several CPUs share.
pub trait Word {
    /// Reads it.
    fn load(&self) -> u64;
    /// Writes it; when this returns, every CPU sees it, and nothing that the caller reads later was read earlier.
    fn publish(&self, value: u64);
    /// Adds 1 and returns the sum; a full fence, too.
    fn bump(&self) -> u64;
}

impl Word for core::sync::atomic::AtomicU64 {
    fn load(&self) -> u64 {
        self.load(core::sync::atomic::Ordering::SeqCst)
    }
    fn publish(&self, value: u64) {
        use core::sync::atomic::{Ordering::SeqCst, fence};
        self.store(value, SeqCst);
        fence(SeqCst);
    }
    fn bump(&self) -> u64 {
        use core::sync::atomic::{Ordering::SeqCst, fence};
        let sum = self.fetch_add(1, SeqCst).wrapping_add(1);
        fence(SeqCst);
        sum
    }
}

const VM_SHIFT: u32 = 48;
const COUNT: u64 = (1 << VM_SHIFT) - 1;

/// Where one CPU is: an odd number counts entries while it is inside a guest, an even one while it is outside; the
/// VM is in the upper 16 bits. Only that CPU writes it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Whereabouts<W>(W);

/// What [`Whereabouts`] said at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glimpse(u64);

impl<W: Word> Whereabouts<W> {
    /// Outside, by a word that is 0.
    pub const fn outside(word: W) -> Self {
        Self(word)
    }
    /// Its CPU goes inside; only what it reads from now on may decide whether it flushes.
    pub fn enter(&self, vm: VmId) {
        let count = self.0.load().wrapping_add(1) & COUNT;
        self.0.publish(count | u64::from(vm.0) << VM_SHIFT);
    }
    /// Its CPU has left.
    pub fn leave(&self) {
        self.0.publish(self.0.load().wrapping_add(1) & COUNT);
    }
    /// Where it is now.
    pub fn look(&self) -> Glimpse {
        Glimpse(self.0.load())
    }
}

impl Glimpse {
    /// Whether it was inside this VM.
    pub const fn is_inside(self, vm: VmId) -> bool {
        self.0 & 1 == 1 && self.0 >> VM_SHIFT == vm.0 as u64
    }
}

/// Waits until every CPU of `cpus` that was inside `vm` has been outside once. The caller has bumped a generation
/// that entries compare. `kick` makes a CPU leave its guest; `wait` is called again and again with the turn's number
/// until it has.
pub fn expel<'w, I: Copy, W: Word + 'w>(
    vm: VmId,
    cpus: impl IntoIterator<Item = (I, &'w Whereabouts<W>)>,
    kick: impl Fn(I),
    wait: impl Fn(I, u64),
) {
    for (cpu, whereabouts) in cpus {
        let seen = whereabouts.look();
        if !seen.is_inside(vm) {
            continue;
        }
        kick(cpu);
        let mut turn = 0;
        while whereabouts.look() == seen {
            turn += 1;
            wait(cpu, turn);
        }
    }
}

/// How often a table has changed and been sampled.
#[derive(Debug)]
pub struct Generations<W> {
    root: u64,
    map: W,
    sample: W,
}

/// What [`Generations`] were at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    root: u64,
    map: u64,
    /// How often accessed bits had been cleared.
    pub sample: u64,
}

impl<W: Word> Generations<W> {
    /// Of the root with this number, which no other root had or will have.
    pub const fn of_root(root: u64, map: W, sample: W) -> Self {
        Self { root, map, sample }
    }
    /// What they are now.
    pub fn now(&self) -> Generation {
        Generation {
            root: self.root,
            map: self.map.load(),
            sample: self.sample.load(),
        }
    }
    /// The table says something else.
    pub fn changed(&self) {
        self.map.bump();
    }
    /// Accessed bits were cleared; entries that see the returned number flush.
    pub fn sampled(&self) -> u64 {
        self.sample.bump()
    }
}

/// What one tag on one CPU has seen; to be forgotten when its owner goes to another CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remembered(Option<Generation>);

impl Remembered {
    /// Whether translations under the tag may be used as they are; if not, the caller flushes them now.
    #[must_use = "a stale tag must be flushed before the guest runs"]
    pub fn is_current(&mut self, now: Generation) -> bool {
        self.0.replace(now) == Some(now)
    }
    /// Whatever is cached is unknown: the tag's owner has come from elsewhere.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU64;

    #[test]
    fn whereabouts_tell_the_vm_and_every_passage() {
        let cpu = Whereabouts::<AtomicU64>::default();
        let before = cpu.look();
        cpu.enter(VmId(3));
        let first = cpu.look();
        assert!(
            first.is_inside(VmId(3)) && !first.is_inside(VmId(0)) && !before.is_inside(VmId(0))
        );
        cpu.leave();
        assert!(!cpu.look().is_inside(VmId(3)) && !cpu.look().is_inside(VmId(0)));
        cpu.enter(VmId(3));
        assert_ne!(cpu.look(), first, "it was outside in between");
        // Nobody is waited for who is elsewhere.
        expel(
            VmId(2),
            [(0, &cpu)],
            |_| panic!("kicked"),
            |_, _| panic!("waited"),
        );
    }

    #[test]
    fn a_tag_is_current_only_for_what_it_has_seen() {
        let word = || AtomicU64::new(1);
        let table = Generations::of_root(1, word(), word());
        let mut tag = Remembered::default();
        assert!(!tag.is_current(table.now()), "never used");
        assert!(tag.is_current(table.now()));
        table.changed();
        assert!(!tag.is_current(table.now()) && tag.is_current(table.now()));
        assert_eq!(table.sampled(), table.now().sample);
        assert!(!tag.is_current(table.now()) && tag.is_current(table.now()));
        // Another root that has changed as often is another root.
        let again = Generations::of_root(2, AtomicU64::new(2), AtomicU64::new(2));
        assert!(!tag.is_current(again.now()));
        tag.forget();
        assert!(!tag.is_current(again.now()));
    }
}
