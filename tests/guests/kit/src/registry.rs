//! Tests: a name, what they need, and a function that returns a sentence if they failed.

use core::cell::UnsafeCell;
use core::fmt::Write;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst};

use arrayvec::ArrayString;

use crate::{apic, args, cpu, power, print, smp};

/// Why a test failed: a sentence, kept until [`SENTENCES`] more were made.
pub type Why = &'static str;
/// How a test went.
pub type Verdict = Result<(), Why>;

/// One test.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// Its name: words joined by hyphens.
    pub name: &'static str,
    /// Processors it needs.
    pub cpus: usize,
    /// What this machine lacks for it, if anything.
    pub lacks: fn() -> Option<&'static str>,
    /// The test itself.
    pub run: fn() -> Verdict,
}

impl Test {
    /// A test for every machine.
    pub const fn new(name: &'static str, run: fn() -> Verdict) -> Self {
        Self {
            name,
            cpus: 1,
            lacks: || None,
            run,
        }
    }

    /// The same, with at least two processors.
    pub const fn with_two(mut self) -> Self {
        self.cpus = 2;
        self
    }

    /// The same, unless something is lacking.
    pub const fn unless(mut self, lacks: fn() -> Option<&'static str>) -> Self {
        self.lacks = lacks;
        self
    }
}

/// Sentences that are kept at a time.
const SENTENCES: usize = 16;

struct Sentences(UnsafeCell<[ArrayString<240>; SENTENCES]>);
// SAFETY: each call of `why` has an element of its own, and nobody reads one that is being made.
unsafe impl Sync for Sentences {}
static TEXTS: Sentences = Sentences(UnsafeCell::new([ArrayString::new_const(); SENTENCES]));

/// Makes a sentence.
pub fn why(what: core::fmt::Arguments<'_>) -> Why {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let texts: *mut ArrayString<240> = TEXTS.0.get().cast();
    // SAFETY: see `Sentences`; the index is within them.
    let text = unsafe { &mut *texts.add(NEXT.fetch_add(1, SeqCst) % SENTENCES) };
    text.clear();
    // A longer sentence is cut.
    let _ = text.write_fmt(what);
    text.as_str()
}

/// Fails the test with a sentence unless something holds.
#[macro_export]
macro_rules! ensure {
    ($what:expr, $($sentence:tt)+) => {
        if !$what {
            return Err($crate::registry::why(format_args!($($sentence)+)));
        }
    };
}

/// The test that runs, for what happens outside its function.
static CURRENT: AtomicPtr<Test> = AtomicPtr::new(core::ptr::null_mut());
static FAILED: AtomicUsize = AtomicUsize::new(0);

/// Whether the command line wants a test.
fn wanted(test: &Test) -> bool {
    let named = |key: &str| {
        args::word(key).map(|words| words.split(',').any(|word| test.name.contains(word)))
    };
    named("only").unwrap_or(true) && !named("not").unwrap_or(false)
}

/// Runs all tests and says how they went.
pub fn run(groups: &'static [&'static [Test]]) {
    let tests = || {
        groups
            .iter()
            .flat_map(|group| group.iter())
            .filter(|t| wanted(t))
    };
    let rounds = args::number("rounds").unwrap_or(1);
    print!("TESTS {}", tests().count());
    let mut names = ArrayString::<400>::new();
    for round in 1..=rounds {
        for test in tests() {
            let lacking = if smp::online() < test.cpus {
                Some("it needs more processors")
            } else {
                (test.lacks)()
            };
            if let Some(lacking) = lacking {
                if round == 1 {
                    print!("TEST {} skipped: {lacking}", test.name);
                }
                continue;
            }
            CURRENT.store((&raw const *test).cast_mut(), SeqCst);
            // What a failed test left behind must not fail the next.
            cpu::cli();
            apic::settle();
            smp::forget();
            match (test.run)() {
                Ok(()) if round == rounds => print!("TEST {} ok", test.name),
                Ok(()) => {}
                Err(why) => {
                    print!("TEST {} FAILED: {why}", test.name);
                    FAILED.fetch_add(1, SeqCst);
                    // Too many names are cut.
                    let _ = write!(names, " {}", test.name);
                }
            }
        }
        if rounds > 1 {
            print!("ROUND {round} of {rounds}");
        }
    }
    let (failed, all) = (FAILED.load(SeqCst), tests().count());
    if failed == 0 {
        print!("GUEST-RESULT ok {all} tests");
    } else {
        print!("GUEST-RESULT failed {failed} of {all} tests:{names}");
    }
    power::off(u32::from(failed != 0))
}

/// The guest cannot go on: the running test has failed, and with it the guest.
pub fn collapse(sentence: &str) -> ! {
    let test = CURRENT.load(SeqCst);
    // SAFETY: only `run` stores here, references to tests that live for ever.
    let name = unsafe { test.as_ref() }.map_or("none", |test| test.name);
    print!("TEST {name} FAILED: {sentence}");
    print!("GUEST-RESULT failed: {name} ended everything");
    power::off(1)
}
