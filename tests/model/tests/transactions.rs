//! Transactional page moves: copied while guests write, in two replicas, beside the hypervisor's own accesses,
//! other moves, and the VM's end.
//!
//! Two virtual CPUs count their increments of a word, each through its own root, and so does the hypervisor, past
//! every table. At the end the word must hold them all, no load may return less than what was known to be
//! written before it, and no frame that was given back may change any more.

use memory::buddy::{FrameMeta, Frames};
use memory::page_move::{Displaced, MoveError, PageMove, Settled};
use memory::table::{
    Attributes, Flush, Level, Lookup, NoProcessor, NptFormat, RadixTable, Shootdown, TableError,
    TableFormat, TableMemory, Unmapped,
};
use model::{Cpu, Machine, Reach, first_failure};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::sync::{Mutex, MutexGuard};
use shuttle::thread;
use std::sync::Arc;
use units::{Frame, Gpa, NodeId, PageSize};

const PAGE: Gpa = Gpa(0x3000);
const SMALL: PageSize = PageSize::Size4K;
const GUEST_CPUS: usize = 2;
const INCREMENTS: u64 = 3;
/// Frames that pages may lie in: the first one holds the page at first.
const FRAMES: [Frame; 3] = [Frame(1), Frame(2), Frame(3)];

type Table = RadixTable<NptFormat, Arc<Machine>>;

/// One step that is left out or taken too early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Defect {
    /// None.
    None,
    /// The copy begins before processors forgot that D was 1.
    MirrorsBeforeTheFlush,
    /// The new frame is mapped before the second flush.
    MapsEarly,
    /// Cleanness is judged before the freeze.
    JudgesEarly,
    /// The D of one replica is not looked at.
    ForgetsReplica,
    /// One replica is not frozen with the others.
    FreezesOne,
    /// The hypervisor does not say what it writes.
    SilentHost,
}

/// What all threads share.
struct Lab {
    machine: Arc<Machine>,
    tables: Mutex<Vec<Table>>,
    frames: Mutex<Frames<'static>>,
    /// Increments that are known to be done.
    written: AtomicU64,
    /// Guests' CPUs that touch the page no more.
    finished: AtomicU64,
}

impl Lab {
    fn new() -> Arc<Self> {
        let machine = Machine::new(GUEST_CPUS, FRAMES);
        let mut frames = Frames::new();
        let metadata = vec![FrameMeta::default(); FRAMES.len()].leak();
        let zone = frames.add_zone(NodeId(0), FRAMES[0], metadata);
        zone.expect("apart");
        frames
            .release(FRAMES[0], FRAMES.len() as u64)
            .expect("fresh");
        let first = frames.allocate(NodeId(0), SMALL, &[]).expect("free");
        let first = first.into_frame();
        let table = |node| {
            let mut table = Table::new(Arc::clone(&machine), node).expect("room");
            let mapped = table.map(PAGE, first, SMALL, Attributes::GUEST_MEMORY);
            mapped.expect("empty").carry_out(&NoProcessor);
            table
        };
        let tables = Mutex::new(vec![table(NodeId(0)), table(NodeId(1))]);
        Arc::new(Self {
            tables,
            frames: Mutex::new(frames),
            written: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            machine,
        })
    }

    fn tables(&self) -> MutexGuard<'_, Vec<Table>> {
        self.tables.lock().expect("no poison")
    }

    fn copy(&self, old: Frame, new: Frame) {
        let content = self.machine.word(old).load(Ordering::SeqCst);
        self.machine.word(new).store(content, Ordering::SeqCst);
    }

    fn give_back(&self, old: Displaced) {
        let mut frames = self.frames.lock().expect("no poison");
        let block = frames.take_back(old.frame, old.size).expect("allocated");
        let scrub = |frame, _| self.machine.word(frame).store(0, Ordering::SeqCst);
        frames.free(block.scrub(scrub)).expect("once");
    }

    /// As the kernel does: copied while the guest runs, tried again once, then copied while it waits.
    fn move_page(&self) -> Result<(), MoveError> {
        let everyone = self.machine.shootdown(Reach::Everyone);
        let target = {
            let mut frames = self.frames.lock().expect("no poison");
            frames.allocate(NodeId(0), SMALL, &[]).expect("one each")
        };
        let mut page = PageMove::plan(PAGE, SMALL, target).expect("sizes agree");
        let mut tries = 0;
        let moved = loop {
            tries += 1;
            // Each lock is released before what follows waits for anybody.
            let armed = page.arm(&mut self.tables());
            let watched = match armed {
                Ok(armed) => armed.shoot_down(&everyone),
                Err(error) => break Err(error),
            };
            let mirrored = watched.mirror(|old, new, _| self.copy(old, new));
            let frozen = mirrored.freeze(&mut self.tables());
            let quiet = match frozen {
                Ok(frozen) => frozen.shoot_down(&everyone),
                Err(error) => break Err(error),
            };
            let copied = match quiet.settle() {
                Settled::Clean(copied) => copied,
                Settled::Written(quiet) if tries < 2 => {
                    page = quiet.thaw(&mut self.tables());
                    continue;
                }
                Settled::Written(quiet) => quiet.copy(|old, new, _| self.copy(old, new)),
            };
            break copied.commit(&mut self.tables());
        };
        match moved {
            Ok(old) => {
                self.give_back(old);
                Ok(())
            }
            Err((why, target)) => {
                // What it holds is a copy of the page.
                let mut frames = self.frames.lock().expect("no poison");
                let scrub = |frame, _| self.machine.word(frame).store(0, Ordering::SeqCst);
                frames.free(target.scrub(scrub)).expect("allocated");
                Err(why)
            }
        }
    }

    /// The same protocol entry by entry, with one defect: the types of `page_move` allow none. Holds the lock
    /// only where the kernel does.
    fn move_by_hand(&self, defect: Defect) {
        let target = {
            let mut frames = self.frames.lock().expect("no poison");
            let target = frames.allocate(NodeId(0), SMALL, &[]).expect("free");
            target.into_frame()
        };
        let everyone = self.machine.shootdown(Reach::Everyone);
        let flush = || {
            everyone.shoot_down(Flush::Range {
                first: PAGE.0,
                bytes: SMALL.bytes(),
            });
        };
        let roots: Vec<Frame> = self.tables().iter().map(Table::root).collect();
        let slots: Vec<_> = roots.iter().map(|root| self.slot(*root)).collect();
        let dirty = NptFormat::DIRTY;
        let entries = || {
            let load = |(table, index): &(Frame, usize)| self.machine.load(*table, *index);
            slots.iter().map(load).collect::<Vec<_>>()
        };
        let judged = if defect == Defect::ForgetsReplica {
            1
        } else {
            GUEST_CPUS
        };
        let clean = |entries: &[u64]| entries.iter().take(judged).all(|entry| entry & dirty == 0);

        let guard = self.tables();
        let old = NptFormat::leaf_frame(entries()[0], SMALL);
        for (table, index) in &slots {
            self.machine.fetch_and(*table, *index, !dirty);
        }
        drop(guard);
        if defect != Defect::MirrorsBeforeTheFlush {
            flush();
        }
        self.copy(old, target);
        if defect == Defect::SilentHost {
            linger();
        }

        let guard = self.tables();
        let early = clean(&entries());
        linger();
        let frozen = slots.iter().enumerate().map(|(i, (table, index))| {
            if i > 0 && defect == Defect::FreezesOne {
                return self.machine.load(*table, *index);
            }
            self.freeze(*table, *index)
        });
        let frozen: Vec<u64> = frozen.collect();
        drop(guard);
        let is_clean = match defect {
            Defect::JudgesEarly => early,
            _ => clean(&frozen),
        };
        if defect != Defect::MapsEarly {
            flush();
        }
        if !is_clean {
            self.copy(old, target);
        }
        let guard = self.tables();
        for (table, index) in &slots {
            let entry = NptFormat::leaf(target, SMALL, Attributes::GUEST_MEMORY);
            self.machine.store(*table, *index, entry | dirty);
        }
        drop(guard);
        if defect == Defect::MapsEarly {
            linger();
            flush();
        }
        self.give_back(Displaced {
            frame: old,
            size: SMALL,
        });
    }

    /// The slot of the page's leaf below `root`.
    fn slot(&self, root: Frame) -> (Frame, usize) {
        let below = |table, _| NptFormat::table_frame(self.machine.load(table, 0));
        let table = (0..3).fold(root, below);
        (table, (PAGE.0 / Level::LOWEST.span()) as usize)
    }

    fn freeze(&self, table: Frame, index: usize) -> u64 {
        let mut entry = self.machine.load(table, index);
        loop {
            let frozen = NptFormat::frozen(entry);
            match self.machine.compare_exchange(table, index, entry, frozen) {
                Ok(old) => return old,
                Err(other) => entry = other,
            }
        }
    }

    /// An increment by the hypervisor on the guest's behalf. False when the VM has no such page any more.
    fn emulate_increment(&self, says_so: bool) -> bool {
        loop {
            let tables = self.tables();
            match tables[0].translate(PAGE) {
                Ok(Lookup::Mapped(leaf)) => {
                    self.machine.word(leaf.frame).fetch_add(1, Ordering::SeqCst);
                    if says_so {
                        assert!(tables[0].soil(PAGE));
                    }
                    drop(tables);
                    self.written.fetch_add(1, Ordering::SeqCst);
                    return true;
                }
                Ok(Lookup::Frozen { .. }) => {
                    drop(tables);
                    linger();
                }
                _ => return false,
            }
        }
    }

    /// A virtual CPU's life, through the root of its node.
    fn guest(self: &Arc<Self>, id: usize) -> thread::JoinHandle<()> {
        let lab = Arc::clone(self);
        let root = lab.tables()[id].root();
        thread::spawn(move || {
            let mut cpu = Cpu::<NptFormat>::new(&lab.machine, id, root, 1, &[PAGE]);
            for _ in 0..INCREMENTS {
                cpu.increment(PAGE);
                lab.written.fetch_add(1, Ordering::SeqCst);
                let known = lab.written.load(Ordering::SeqCst);
                let seen = cpu.load(PAGE);
                assert!(
                    seen >= known,
                    "stale read: {seen} where {known} writes were known"
                );
            }
            lab.finished.fetch_add(1, Ordering::SeqCst);
            cpu.idle();
        })
    }

    /// Nothing was lost, in the page or in the allocator; unused frames are as they were scrubbed.
    fn check(self: Arc<Self>, expected: u64) {
        let lab = Arc::try_unwrap(self).unwrap_or_else(|_| panic!("all threads are gone"));
        let tables = lab.tables.into_inner().expect("no poison");
        let mapped: Vec<_> = tables.iter().map(|table| table.translate(PAGE)).collect();
        let Ok(Lookup::Mapped(leaf)) = mapped[0] else {
            panic!("mapped")
        };
        let frame = |found: &Result<Lookup<Gpa>, TableError>| match found {
            Ok(Lookup::Mapped(leaf)) => Some(leaf.frame),
            _ => None,
        };
        assert!(
            mapped.iter().all(|found| frame(found) == Some(leaf.frame)),
            "all replicas say the same"
        );
        let found = lab.machine.word(leaf.frame).load(Ordering::SeqCst);
        assert_eq!(found, expected, "lost write");
        for other in FRAMES.into_iter().filter(|other| *other != leaf.frame) {
            let left = lab.machine.word(other).load(Ordering::SeqCst);
            assert_eq!(
                left, 0,
                "a freed frame was written after its scrub: lost write"
            );
        }
        let free = lab.frames.into_inner().expect("no poison");
        let free = free.counters(NodeId(0)).map(|c| c.free);
        assert_eq!(free, Some(FRAMES.len() as u64 - 1), "no frame is lost");
        for table in tables {
            table.destroy(&NoProcessor, |_| {});
        }
        assert_eq!(lab.machine.tables_in_use(), 0);
    }
}

/// Widens a race.
fn linger() {
    for _ in 0..20 {
        thread::yield_now();
    }
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("a thread finishes");
    }
}

/// Guests and the hypervisor write while `mover` moves the page.
fn scenario(host_says_so: bool, mover: impl Fn(&Lab)) {
    let lab = Lab::new();
    let mut guests: Vec<_> = (0..GUEST_CPUS).map(|id| lab.guest(id)).collect();
    guests.push({
        let lab = Arc::clone(&lab);
        thread::spawn(move || {
            for _ in 0..2 {
                // Also when the guest's CPUs have written all that they write.
                linger();
                assert!(lab.emulate_increment(host_says_so));
            }
        })
    });
    mover(&lab);
    mover(&lab);
    lab.machine.stop();
    join(guests);
    lab.check(GUEST_CPUS as u64 * INCREMENTS + 2);
}

fn by_hand(defect: Defect) {
    scenario(defect != Defect::SilentHost, move |lab| {
        lab.move_by_hand(defect);
    });
}

#[test]
fn the_kernels_protocol_loses_nothing() {
    let run = || {
        scenario(true, |lab| {
            lab.move_page().expect("nobody else moves it");
        });
    };
    shuttle::check_random(run, 1000);
    shuttle::check_pct(run, 300, 4);
}

#[test]
fn two_moves_of_one_page_do_not_mix() {
    let run = || {
        let lab = Lab::new();
        let mut threads: Vec<_> = (0..GUEST_CPUS).map(|id| lab.guest(id)).collect();
        let rival = {
            let lab = Arc::clone(&lab);
            thread::spawn(move || {
                let _moved_or_refused = lab.move_page();
            })
        };
        let moved = lab.move_page();
        if let Err(why) = moved {
            let said = why.to_string();
            assert!(
                said.contains("being copied") || said.contains("being moved"),
                "{said}"
            );
        }
        rival.join().expect("it ends");
        lab.machine.stop();
        join(std::mem::take(&mut threads));
        lab.check(GUEST_CPUS as u64 * INCREMENTS);
    };
    shuttle::check_random(run, 1000);
}

#[test]
fn a_vm_that_ends_under_a_move_leaves_no_frame_behind() {
    let run = || {
        let lab = Lab::new();
        let guests: Vec<_> = (0..GUEST_CPUS).map(|id| lab.guest(id)).collect();
        let end = {
            let lab = Arc::clone(&lab);
            thread::spawn(move || {
                while lab.finished.load(Ordering::SeqCst) < GUEST_CPUS as u64 {
                    thread::yield_now();
                }
                let unmapped: Vec<_> = {
                    let mut tables = lab.tables();
                    // A frozen page would be waited for in the kernel; here the VM lives on then.
                    if !matches!(tables[0].translate(PAGE), Ok(Lookup::Mapped(_))) {
                        return;
                    }
                    let unmap = |table: &mut Table| table.unmap(PAGE, SMALL).expect("mapped");
                    tables.iter_mut().map(unmap).collect()
                };
                let everyone = lab.machine.shootdown(Reach::Everyone);
                let finish = |u: Unmapped<Gpa>| u.finish(&everyone, &lab.machine).frame;
                let frames: Vec<Frame> = unmapped.into_iter().map(finish).collect();
                let frame = frames[0];
                lab.give_back(Displaced { frame, size: SMALL });
            })
        };
        let moved = lab.move_page();
        end.join().expect("it ends");
        lab.machine.stop();
        join(guests);
        let is_mapped = matches!(lab.tables()[0].translate(PAGE), Ok(Lookup::Mapped(_)));
        assert!(
            moved.is_ok() || !is_mapped,
            "only the end makes it fail: {moved:?}"
        );
        let free = lab.frames.lock().expect("no poison");
        let free = free.counters(NodeId(0)).map(|c| c.free);
        let used = u64::from(is_mapped);
        assert_eq!(free, Some(FRAMES.len() as u64 - used), "no frame is lost");
        for table in std::mem::take(&mut *lab.tables()) {
            table.destroy(&NoProcessor, |_| {});
        }
    };
    shuttle::check_random(run, 1000);
}

#[test]
fn by_hand_and_without_a_defect_it_loses_nothing_either() {
    shuttle::check_random(|| by_hand(Defect::None), 1000);
}

#[test]
fn every_defect_is_caught() {
    for defect in [
        Defect::MirrorsBeforeTheFlush,
        Defect::MapsEarly,
        Defect::JudgesEarly,
        Defect::ForgetsReplica,
        Defect::FreezesOne,
        Defect::SilentHost,
    ] {
        let run = || shuttle::check_random(move || by_hand(defect), 6_000);
        let text = first_failure(run).unwrap_or_else(|| panic!("{defect:?} is not caught"));
        assert!(
            text.contains("lost write") || text.contains("stale read") || text.contains("scrub"),
            "{defect:?}: {text}"
        );
    }
}
