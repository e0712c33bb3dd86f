//! The promise of `memory::entry`: after a completed flush nobody uses an old translation.
//!
//! A virtual CPU wanders between two processors and reads one page; meanwhile the page gets another frame, or the
//! whole root is dropped and another is built in its place. The old frame is poisoned as soon as the flush is
//! complete, so whoever still reaches it is noticed. The kernel's protocol survives that, and three that look almost
//! like it do not.

use memory::entry::{Generations, Remembered, Whereabouts, Word, expel};
use memory::table::{Attributes, Flush, NoProcessor, NptFormat, RadixTable, Shootdown};
use model::{Access, Buffered, Cpu, Machine, Stores, is_stale};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;
use std::sync::{Arc, Mutex};
use units::{Frame, Gpa, NodeId, PageSize, VmId};

const VM: VmId = VmId(1);
const PAGE: Gpa = Gpa(0x3000);
const OLD: Frame = Frame(10);
const NEW: Frame = Frame(11);
const POISON: u64 = 0xdead;

type Table = RadixTable<NptFormat, Arc<Machine>>;

/// What is wrong with the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Defect {
    None,
    /// What was flushed is remembered for the virtual CPU, wherever it is.
    RememberedPerVcpu,
    /// A root is known by its frame, which is used again.
    RecycledRoot,
    /// An entry publishes that it is inside without a fence.
    EntryWithoutFence,
}

/// What is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    /// The page's frame.
    Page,
    /// The root.
    Root,
}

/// A root, as entries find it.
#[derive(Debug)]
struct Root {
    frame: Frame,
    generations: Generations<Count>,
}

/// A counter that all CPUs share; its changes are locked operations and wait in no buffer.
#[derive(Debug)]
struct Count(AtomicU64);

impl Word for Count {
    fn load(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
    fn publish(&self, value: u64) {
        self.0.store(value, Ordering::SeqCst);
    }
    fn bump(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

fn root(number: u64, table: &Table) -> Arc<Root> {
    let count = || Count(AtomicU64::new(1));
    Arc::new(Root {
        frame: table.root(),
        generations: Generations::of_root(number, count(), count()),
    })
}

struct Processor {
    whereabouts: Whereabouts<Buffered>,
    kicked: AtomicU64,
}

struct Hypervisor {
    machine: Arc<Machine>,
    processors: Vec<Processor>,
    /// The root that entries load; the lock stands for one load.
    root: Mutex<Arc<Root>>,
}

impl Hypervisor {
    fn root(&self) -> Arc<Root> {
        thread::yield_now();
        Arc::clone(&self.root.lock().expect("no poison"))
    }
}

struct Expel<'h>(&'h Hypervisor, Arc<Root>);

impl Shootdown for Expel<'_> {
    fn shoot_down(&self, _flush: Flush) {
        let Self(hv, root) = self;
        root.generations.changed();
        expel(
            VM,
            hv.processors.iter().map(|p| (p, &p.whereabouts)),
            |p| p.kicked.store(1, Ordering::SeqCst),
            |_, _| thread::yield_now(),
        );
    }
}

/// One stay inside the guest on one processor.
fn stay(hv: &Hypervisor, cpu: &mut Cpu<NptFormat>, on: &Processor, tag: &mut Remembered) {
    on.kicked.store(0, Ordering::SeqCst);
    on.whereabouts.enter(VM);
    let root = hv.root();
    if !tag.is_current(root.generations.now()) {
        cpu.forget_all();
    }
    // The tag comes from the root's frame, as an EPT pointer does: here all roots have the same.
    cpu.switch(root.frame, 7);
    for _ in 0..2 {
        if on.kicked.load(Ordering::SeqCst) != 0 {
            break;
        }
        if let Some(frame) = cpu.translate(PAGE, Access::Read) {
            let word = hv.machine.word(frame).load(Ordering::SeqCst);
            assert_ne!(word, POISON, "a stale translation after a completed flush");
        }
    }
    on.whereabouts.leave();
}

/// A virtual CPU's life: it is on one processor at a time.
fn vcpu(hv: &Hypervisor, cpus: &mut [Cpu<NptFormat>], defect: Defect) {
    let mut tag = Remembered::default();
    let mut last = 0;
    for _ in 0..6 {
        let here = thread_rng().gen_range(0..cpus.len());
        if here != last && defect != Defect::RememberedPerVcpu {
            tag.forget();
        }
        last = here;
        stay(hv, &mut cpus[here], &hv.processors[here], &mut tag);
    }
}

fn scenario(change: Change, defect: Defect) {
    let machine = Machine::new(0, [OLD, NEW]);
    let mut table = Table::new(Arc::clone(&machine), NodeId(0)).expect("room");
    map(&mut table, OLD);
    let stores = match defect {
        Defect::EntryWithoutFence => Stores::Buffered,
        _ => Stores::Fenced,
    };
    let processor = |_| Processor {
        whereabouts: Whereabouts::outside(Buffered::new(stores)),
        kicked: AtomicU64::new(0),
    };
    let hv = Arc::new(Hypervisor {
        machine: Arc::clone(&machine),
        processors: (0..2).map(processor).collect(),
        root: Mutex::new(root(1, &table)),
    });
    let guest = {
        let hv = Arc::clone(&hv);
        let frame = table.root();
        thread::spawn(move || {
            let cpu = |id| Cpu::new(&hv.machine, id, frame, 7, &[PAGE]);
            let mut cpus: Vec<_> = (0..2).map(cpu).collect();
            vcpu(&hv, &mut cpus, defect);
        })
    };
    let old = hv.root();
    match change {
        Change::Page => {
            let unmapped = table.unmap(PAGE, PageSize::Size4K).expect("mapped");
            unmapped.finish(&Expel(&hv, old), &machine);
            poison(&machine);
            map(&mut table, NEW);
        }
        Change::Root => {
            let mut next = Table::new(Arc::clone(&machine), NodeId(0)).expect("room");
            map(&mut next, NEW);
            let number = if defect == Defect::RecycledRoot { 1 } else { 2 };
            *hv.root.lock().expect("no poison") = root(number, &next);
            table.destroy(&Expel(&hv, old), |_| {});
            poison(&machine);
        }
    }
    guest.join().expect("the guest comes to its end");
}

fn map(table: &mut Table, frame: Frame) {
    let flush = table.map(PAGE, frame, PageSize::Size4K, Attributes::GUEST_MEMORY);
    flush.expect("empty").carry_out(&NoProcessor);
}

/// Nobody reaches the old frame any more.
fn poison(machine: &Machine) {
    machine.word(OLD).store(POISON, Ordering::SeqCst);
}

#[test]
fn no_translation_outlives_a_completed_flush() {
    for change in [Change::Page, Change::Root] {
        shuttle::check_random(move || scenario(change, Defect::None), 1000);
    }
}

fn is_caught(change: Change, defect: Defect) {
    is_stale(|| shuttle::check_random(move || scenario(change, defect), 5000));
}

#[test]
fn remembering_a_flush_for_the_virtual_cpu_is_caught() {
    is_caught(Change::Page, Defect::RememberedPerVcpu);
}

#[test]
fn a_recycled_root_without_a_number_of_its_own_is_caught() {
    is_caught(Change::Root, Defect::RecycledRoot);
}

#[test]
fn an_entry_without_the_fence_is_caught() {
    is_caught(Change::Page, Defect::EntryWithoutFence);
}
