//! A harvest while processors walk: what was touched is found by this harvest or by the next.
//!
//! CPUs here flush after each access, so that every access walks and sets A; what a cached
//! translation hides is the caller's to know (`memory::harvest`, Staleness).

use memory::harvest::{Cursor, Options, Progress};
use memory::table::{
    Attributes, Flush, Level, NoProcessor, NptFormat, RadixTable, Shootdown, TableFormat,
    TableMemory,
};
use model::{Access, Cpu, Machine, first_failure};
use shuttle::thread;
use std::collections::BTreeSet;
use std::sync::Arc;
use units::{Frame, Gpa, NodeId, PageSize};

const PAGES: [Gpa; 3] = [Gpa(0x3000), Gpa(0x4000), Gpa(0x20_0000)];

type Table = RadixTable<NptFormat, Arc<Machine>>;

/// How A is collected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// By the kernel's harvest, in slices of this many entries.
    Kernel(u64),
    /// Leaves first, then their ancestors: a walk in between is never found again.
    LeavesFirst,
}

fn collect(table: &Table, order: Order, found: &mut BTreeSet<Gpa>) {
    match order {
        Order::Kernel(budget) => {
            let mut cursor = Cursor::ALL;
            while table.harvest(&mut cursor, Options::FOOTPRINT, budget, |leaf| {
                found.insert(leaf.at);
            }) == Progress::Paused
            {
                thread::yield_now();
            }
        }
        Order::LeavesFirst => {
            for page in PAGES {
                let path = path(table, page);
                for (i, (frame, index)) in path.into_iter().rev().enumerate() {
                    let old = table.memory().fetch_and(frame, index, !NptFormat::ACCESSED);
                    if i == 0 && old & NptFormat::ACCESSED != 0 {
                        found.insert(page);
                    }
                }
            }
        }
    }
}

/// The entries that a walk for `page` uses, from the root down.
fn path(table: &Table, page: Gpa) -> Vec<(Frame, usize)> {
    let (mut frame, mut shift) = (table.root(), Level::ROOT.span());
    let mut path = vec![];
    loop {
        let index = (page.0 / shift) as usize % 512;
        path.push((frame, index));
        let entry = table.memory().load(frame, index);
        if shift == Level::LOWEST.span() || entry & 1 << 7 != 0 {
            return path;
        }
        frame = NptFormat::table_frame(entry);
        shift >>= 9;
    }
}

fn scenario(order: Order) {
    let machine = Machine::new(0, PAGES.map(|page| Frame(page.0 / 4096)));
    let mut table = Table::new(Arc::clone(&machine), NodeId(0)).expect("room");
    for (page, size) in
        PAGES
            .into_iter()
            .zip([PageSize::Size4K, PageSize::Size4K, PageSize::Size2M])
    {
        let flush = table.map(page, Frame(page.0 / 4096), size, Attributes::GUEST_MEMORY);
        flush.expect("empty").carry_out(&NoProcessor);
    }
    let root = table.root();
    let guests: Vec<_> = (0..2)
        .map(|id| {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                for page in PAGES.into_iter().skip(id) {
                    let mut cpu = Cpu::<NptFormat>::new(&machine, id, root, 1, &[]);
                    assert!(cpu.translate(page, Access::Read).is_some());
                }
            })
        })
        .collect();
    let mut found = BTreeSet::new();
    collect(&table, order, &mut found);
    for guest in guests {
        guest.join().expect("a guest's CPU finishes");
    }
    collect(&table, Order::Kernel(u64::MAX), &mut found);
    assert_eq!(found, BTreeSet::from(PAGES), "a touched page stays hidden");
}

#[test]
fn no_touched_page_stays_hidden() {
    for budget in [u64::MAX, 7] {
        shuttle::check_random(move || scenario(Order::Kernel(budget)), 150);
    }
}

#[test]
fn clearing_leaves_before_their_ancestors_is_caught() {
    let run = || shuttle::check_random(|| scenario(Order::LeavesFirst), 2000);
    let text = first_failure(run).expect("the defect is caught");
    assert!(text.contains("stays hidden"), "{text}");
}

#[test]
fn a_shootdown_of_no_cpus_returns() {
    Machine::new(0, [])
        .shootdown(model::Reach::Everyone)
        .shoot_down(Flush::All);
}
