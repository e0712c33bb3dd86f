//! Fill, touch, check.

use crate::args::{Args, Length, Pattern, Placement};
use crate::pattern::{Chooser, Random};
use crate::slice::{Mismatch, PAGE, Slice};
use crate::system::{self, monotonic_ns};
use crate::touch::{self, LINES, Touch};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

/// Visits between two looks at the clock.
const VISITS_PER_LOOK: usize = 16;
/// Time between two looks of the one who watches.
const LOOK: Duration = Duration::from_millis(5);
/// The same, for everybody, when nothing is to be done: a guest that wakes a hundred times a second does not idle.
const IDLE_LOOK: Duration = Duration::from_millis(500);
/// Damaged words that are printed; all are counted.
const PRINTED: u64 = 10;
const SECOND_NS: u64 = 1_000_000_000;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    threads: usize,
    pinned: usize,
    tag: usize,
    pages: usize,
    mismatches: u64,
    ops: u64,
    elapsed_ms: u64,
    monotonic_backwards: u64,
    worst_backwards_ns: u64,
}

impl Outcome {
    /// Whether memory and clock were as they must be.
    pub fn ok(&self) -> bool {
        self.mismatches == 0 && self.monotonic_backwards == 0
    }

    /// As one line of JSON.
    pub fn json(&self) -> String {
        let Self {
            threads,
            pinned,
            tag,
            pages,
            mismatches,
            ops,
            elapsed_ms,
            monotonic_backwards,
            worst_backwards_ns,
        } = self;
        format!(
            "{{\"ok\":{},\"pages\":{pages},\"mismatches\":{mismatches},\"ops\":{ops},\"elapsed_ms\":{elapsed_ms},\
             \"threads\":{threads},\"pinned\":{pinned},\"tag\":{tag},\"monotonic_backwards\":{monotonic_backwards},\
             \"worst_backwards_ns\":{worst_backwards_ns}}}",
            self.ok()
        )
    }
}

/// What all threads share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    filled: AtomicUsize,
    finished: AtomicUsize,
    /// Threads that the system keeps on their CPU.
    pinned: AtomicUsize,
    ops: AtomicU64,
    mismatches: AtomicU64,
    clock: Clock,
}

/// The latest time that any thread has seen.
#[derive(Debug, Default)]
struct Clock {
    latest_ns: AtomicU64,
    backwards: AtomicU64,
    worst_ns: AtomicU64,
}

impl Clock {
    /// Looks at the clock: it must not be before what any thread has already seen.
    fn look(&self) -> u64 {
        let seen = self.latest_ns.load(SeqCst);
        self.compare(seen, monotonic_ns())
    }

    fn compare(&self, seen: u64, now: u64) -> u64 {
        if now < seen {
            self.backwards.fetch_add(1, Relaxed);
            self.worst_ns.fetch_max(seen - now, Relaxed);
        }
        self.latest_ns.fetch_max(now, SeqCst);
        now
    }
}

/// A thread's part: memory that is touched, and memory that is only filled and checked.
#[derive(Debug)]
struct Part {
    touched: Slice,
    untouched: Vec<Slice>,
}

/// Runs it all.
///
/// # Errors
/// What could not be set up, as a sentence.
pub fn run(args: &Args) -> Result<Outcome, String> {
    let touch = Touch::tagged(args.tag).ok_or("there is no such tag")?;
    let mut cpus = system::listed("/sys/devices/system/cpu/online");
    if cpus.is_empty() {
        cpus = (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    }
    let threads = args.threads.unwrap_or(cpus.len());
    let pages = (args.mib << 20) / PAGE / threads;
    let shared = Shared::default();
    let (results, ops, elapsed_ms) = std::thread::scope(|scope| {
        let worker = |index: usize| {
            let (shared, touch) = (&shared, &touch);
            let cpu = cpus.get(index % cpus.len()).copied().unwrap_or(0);
            scope.spawn(move || {
                shared
                    .pinned
                    .fetch_add(usize::from(system::pin(cpu)), SeqCst);
                let result = work(args, index, pages, touch, shared);
                shared.finished.fetch_add(1, SeqCst);
                result
            })
        };
        let workers: Vec<_> = (0..threads).map(worker).collect();
        let elapsed_ms = watch(args, threads, &shared);
        let results: Vec<Result<usize, String>> = workers
            .into_iter()
            .map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| Err("a thread panicked".into()))
            })
            .collect();
        (results, shared.ops.load(Relaxed), elapsed_ms)
    });
    let pages = results.into_iter().sum::<Result<usize, String>>()?;
    Ok(Outcome {
        threads,
        pinned: shared.pinned.load(SeqCst),
        tag: args.tag,
        pages,
        mismatches: shared.mismatches.load(Relaxed),
        ops,
        elapsed_ms,
        monotonic_backwards: shared.clock.backwards.load(Relaxed),
        worst_backwards_ns: shared.clock.worst_ns.load(Relaxed),
    })
}

/// Prints the progress and ends the run in time; the time between all being filled and the end.
fn watch(args: &Args, threads: usize, shared: &Shared) -> u64 {
    let finished = || shared.finished.load(SeqCst) == threads;
    while shared.filled.load(SeqCst) < threads && !finished() {
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("WORKLOAD filled");
    let start = shared.clock.look();
    let (mut printed, mut printed_ops) = (start, 0);
    let limit = match args.length {
        Length::Seconds(seconds) => Some(start.saturating_add(seconds.saturating_mul(SECOND_NS))),
        Length::Passes(_) => None,
    };
    let mut end = None;
    while !finished() {
        std::thread::sleep(if args.idle { IDLE_LOOK } else { LOOK });
        let now = shared.clock.look();
        if now >= printed.saturating_add(SECOND_NS) && end.is_none() {
            let ops = shared.ops.load(Relaxed);
            let rate =
                (ops - printed_ops) as u128 * u128::from(SECOND_NS) / u128::from(now - printed);
            println!(
                "WORKLOAD t={} ops={ops} ops/s={rate} clock_ns={now}",
                (now - start) / SECOND_NS
            );
            (printed, printed_ops) = (now, ops);
        }
        if limit.is_some_and(|limit| now >= limit) && end.is_none() {
            shared.stop.store(true, SeqCst);
            end = Some(now);
        }
    }
    touch::flush();
    (end.unwrap_or_else(monotonic_ns).saturating_sub(start)) / 1_000_000
}

/// One thread's work; the number of pages it checked.
fn work(
    args: &Args,
    index: usize,
    pages: usize,
    touch: &Touch,
    shared: &Shared,
) -> Result<usize, String> {
    let filled = fill(args, index, pages);
    // Counted even after a failure, for the others wait.
    shared.filled.fetch_add(1, SeqCst);
    let mut part = filled?;
    if args.idle {
        while !shared.stop.load(SeqCst) && matches!(args.length, Length::Seconds(_)) {
            std::thread::sleep(IDLE_LOOK);
            shared.clock.look();
        }
    } else {
        visit(args, index, &mut part, touch, shared);
    }
    let mut checked = 0;
    for slice in std::iter::once(&part.touched).chain(&part.untouched) {
        slice.check(|mismatch| note(index, mismatch, shared));
        checked += slice.pages();
    }
    Ok(checked)
}

fn fill(args: &Args, index: usize, pages: usize) -> Result<Part, String> {
    let slice = |pages: usize, stream: usize, placement| {
        Slice::new(pages.max(1), args.seed, stream as u64, placement)
    };
    let Placement::TouchOnly(node) = args.placement else {
        return Ok(Part {
            touched: slice(pages, index, args.placement)?,
            untouched: Vec::new(),
        });
    };
    let nodes = system::listed("/sys/devices/system/node/has_memory");
    if !nodes.contains(&node) {
        return Err(format!(
            "--touch-only-node {node}: the guest has memory on nodes {nodes:?}"
        ));
    }
    let share = pages / nodes.len();
    let others = nodes.iter().filter(|other| **other != node);
    Ok(Part {
        touched: slice(share, index, args.placement)?,
        untouched: others
            .map(|other| slice(share, index + 1000 * (other + 1), Placement::Node(*other)))
            .collect::<Result<_, _>>()?,
    })
}

fn visit(args: &Args, index: usize, part: &mut Part, touch: &Touch, shared: &Shared) {
    let mut random = Random::new(args.seed ^ 0x5eed, index as u64);
    let mut chooser = Chooser::new(args.pattern, part.touched.pages());
    let mut left = match args.length {
        Length::Seconds(_) => u64::MAX,
        Length::Passes(passes) => passes.saturating_mul(part.touched.pages() as u64),
    };
    let began = shared.clock.look();
    let mut shift_at = args
        .shift
        .map(|s| began.saturating_add(s.saturating_mul(SECOND_NS)));
    let mut pointed = 0;
    while left > 0 && !shared.stop.load(Relaxed) {
        let visits = left.min(VISITS_PER_LOOK as u64);
        left -= visits;
        let slice = &mut part.touched;
        for _ in 0..visits {
            let page = chooser.next(&mut random, pointed);
            if random.below(100) < args.write_percent as usize {
                slice.write(page, touch);
            } else if let Err(mismatch) = slice.read(page, touch) {
                note(index, mismatch, shared);
            }
            if args.pattern == Pattern::Chase {
                pointed = slice.follow(page, touch);
            }
        }
        shared.ops.fetch_add(visits * LINES as u64, Relaxed);
        let now = shared.clock.look();
        if shift_at.is_some_and(|at| now >= at)
            && let Some(other) = part.untouched.first_mut()
        {
            std::mem::swap(&mut part.touched, other);
            chooser = Chooser::new(args.pattern, part.touched.pages());
            (shift_at, pointed) = (None, 0);
        }
    }
}

fn note(thread: usize, mismatch: Mismatch, shared: &Shared) {
    if shared.mismatches.fetch_add(1, Relaxed) < PRINTED {
        let Mismatch {
            page,
            word,
            expected,
            found,
        } = mismatch;
        println!(
            "WORKLOAD-MISMATCH thread={thread} page={page} word={word} expected={expected:#x} found={found:#x}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    fn outcome(words: &str) -> Result<Outcome, String> {
        run(&args::parse(words.split(' ')).expect("valid"))
    }

    #[test]
    fn a_run_of_each_pattern_is_clean() {
        for pattern in ["seq", "random", "zipf", "chase"] {
            let outcome = outcome(&format!(
                "--threads 2 --mib 1 --passes 4 --write-percent 50 --tag 3 --pattern {pattern}"
            ))
            .expect("runs");
            assert!(outcome.ok(), "{outcome:?}");
            assert_eq!(
                (outcome.pages, outcome.ops, outcome.threads, outcome.tag),
                (256, 256 * 4 * 64, 2, 3)
            );
        }
    }

    #[test]
    fn time_ends_a_run_and_idling_touches_nothing() {
        let busy = outcome("--threads 1 --mib 1 --seconds 1").expect("runs");
        assert!(
            busy.ok() && busy.ops > 0 && busy.elapsed_ms >= 1000,
            "{busy:?}"
        );
        let idle = outcome("--threads 1 --mib 1 --seconds 0 --idle").expect("runs");
        assert!(idle.ok() && idle.ops == 0, "{idle:?}");
        assert!(
            outcome("--threads 1 --mib 1 --seconds 0 --touch-only-node 63")
                .is_err_and(|why| why.contains("--touch-only-node 63"))
        );
    }

    #[test]
    fn a_clock_that_steps_back_is_noticed() {
        let clock = Clock::default();
        clock.compare(0, 100);
        clock.compare(100, 100);
        assert_eq!(clock.backwards.load(Relaxed), 0);
        clock.compare(100, 60);
        assert_eq!(
            (
                clock.backwards.load(Relaxed),
                clock.worst_ns.load(Relaxed),
                clock.latest_ns.load(Relaxed)
            ),
            (1, 40, 100)
        );
    }

    #[test]
    fn the_result_is_a_line_of_json() {
        let mut outcome = Outcome {
            threads: 2,
            pinned: 2,
            tag: 1,
            pages: 3,
            mismatches: 0,
            ops: 4,
            elapsed_ms: 5,
            monotonic_backwards: 0,
            worst_backwards_ns: 0,
        };
        assert_eq!(
            outcome.json(),
            "{\"ok\":true,\"pages\":3,\"mismatches\":0,\"ops\":4,\"elapsed_ms\":5,\"threads\":2,\"pinned\":2,\"tag\":1,\"monotonic_backwards\":0,\"worst_backwards_ns\":0}"
        );
        outcome.mismatches = 1;
        assert!(outcome.json().starts_with("{\"ok\":false"));
    }
}
