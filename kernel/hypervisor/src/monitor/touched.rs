//! What a VM touches, page by page, for tools outside: too much for a person, so it goes to the records.
//!
//! [`hot`] tells what the footprint believes. [`begin`] and [`end`] tell what the nested table says: which pages
//! were read and which were written between the two, exactly. For that every CPU must forget all translations once
//! the bits are clear, as a cached one sets none, and nobody else may clear bits meanwhile: between the two the
//! VM has no footprint passes.

use crate::console;
use crate::drive::{Watch, record};
use crate::virt::Backend;
use crate::vm::{Hypervisor, Vm, VmState};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::SeqCst;
use footprint::lens::INTERVALS;
use footprint::rate::Rates;
use memory::harvest::{Bit, Cursor, Descend, Options, Progress};
use memory::table::{Flush, Lookup, Shootdown};
use telemetry::Event;
use telemetry::touched::{HotRange, extend};
use units::{Gpa, PAGE_BYTES, PageSize};

/// Most ranges that are told: what a serial line carries in some seconds.
const RANGES_MAX: usize = 8 * 1024;
/// Ranges of one record, which must find room in the port's queue.
const RANGES_OF_A_RECORD: usize = 64;

/// Every bit, once.
const FORGET: Options = Options {
    accessed: Bit::Clear,
    dirty: Bit::Clear,
    descend: Descend::Everywhere,
};

/// Records a part, and waits until it is on the wire: the next one would find no room, and be lost.
fn tell(event: Event) {
    record(event);
    console::flush();
}

/// What a record's part holds of a list.
fn piece<T: Clone>(list: &[T], part: usize) -> Vec<T> {
    list.chunks(RANGES_OF_A_RECORD)
        .nth(part)
        .unwrap_or_default()
        .to_vec()
}

/// What the footprint believes to be hot, hottest first.
pub fn hot<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) -> String {
    let (pass, mut ranges) = {
        let tracking = hv.tracking.lock();
        let Some(track) = tracking.of(vm.id) else {
            return format!("nothing is known of {}\n", vm.name);
        };
        let hot = track.footprint.hot(|_| true);
        let ranges = vm.ram.with_table(|table| {
            let believed = hot.iter().flat_map(|page| ranges(&track.watch, page));
            let located = |(first, pages, heat)| {
                let gpa = Gpa(first * PAGE_BYTES);
                let Ok(Lookup::Mapped(leaf)) = table.translate(gpa) else {
                    return None;
                };
                let frame = leaf.frame.0 + (gpa.0 - leaf.at.0) / PAGE_BYTES;
                Some(HotRange {
                    first,
                    frame,
                    pages,
                    heat,
                })
            };
            believed.filter_map(located).collect::<Vec<_>>()
        });
        (track.footprint.passes(), ranges)
    };
    let left_out = ranges.len().saturating_sub(RANGES_MAX) as u64;
    ranges.truncate(RANGES_MAX);
    let count = ranges.len();
    let parts = count.div_ceil(RANGES_OF_A_RECORD).max(1);
    for part in 0..parts {
        tell(Event::HotPages {
            vm: vm.id,
            name: vm.name.clone(),
            pass,
            ranges: piece(&ranges, part),
            left_out,
            last: part + 1 == parts,
        });
    }
    format!("{count} hot ranges of {} are in the records\n", vm.name)
}

/// The first page, the length and the heat of the parts of a hot leaf, as the last close look found them.
fn ranges(watch: &Watch, leaf: &footprint::HotPage) -> Vec<(u64, u64, u64)> {
    let first = leaf.gpa.0 / PAGE_BYTES;
    let look = watch.sampler.pages(leaf.gpa);
    let Some(hits) = look.filter(|_| leaf.size == PageSize::Size2M) else {
        return alloc::vec![(first, leaf.size.pages(), leaf.heat)];
    };
    let rates = Rates::of(INTERVALS.into(), watch.sampler.interval());
    let all: u64 = hits.iter().map(|h| rates.get((*h).into())).sum();
    let mut at = first;
    let mut parts = Vec::new();
    for part in hits.chunk_by(|a, b| a == b) {
        let pages = part.len() as u64;
        let rate = part.first().map_or(0, |h| rates.get((*h).into())) * pages;
        if rate > 0 {
            let heat = u128::from(leaf.heat) * u128::from(rate) / u128::from(all.max(1));
            parts.push((at, pages, u64::try_from(heat).unwrap_or(u64::MAX)));
        }
        at += pages;
    }
    parts
}

/// Forgets which pages were touched.
pub fn begin<B: Backend>(vm: &Vm<B>) -> String {
    if vm.state() != VmState::Running {
        return format!("{} is {}; it touches nothing\n", vm.name, vm.state());
    }
    vm.watched.store(true, SeqCst);
    vm.ram.change_table(|table, shootdown| {
        let mut cursor = Cursor::ALL;
        while table.harvest(&mut cursor, FORGET, u64::MAX, |_| ()) == Progress::Paused {}
        shootdown.shoot_down(Flush::All);
    });
    format!("what {} touches is watched from now on\n", vm.name)
}

/// Tells which pages were read and which were written since, and goes on as before.
pub fn end<B: Backend>(vm: &Vm<B>) -> String {
    if !vm.watched.load(SeqCst) {
        return format!(
            "{} is not watched; touched {} begin begins\n",
            vm.name, vm.name
        );
    }
    let (mut accessed, mut dirty, mut small, mut large) = (Vec::new(), Vec::new(), 0, 0);
    vm.ram.with_table(|table| {
        let mut cursor = Cursor::ALL;
        let visit = |leaf: memory::harvest::Touched<Gpa>| {
            let (first, pages) = (leaf.at.0 / PAGE_BYTES, leaf.size.pages());
            if leaf.accessed {
                extend(&mut accessed, first, pages);
            }
            if leaf.dirty {
                extend(&mut dirty, first, pages);
            }
            *if leaf.size == PageSize::Size4K {
                &mut small
            } else {
                &mut large
            } += 1;
        };
        let progress = table.harvest(&mut cursor, Options::LOOK, u64::MAX, visit);
        debug_assert!(progress == Progress::Finished, "the budget has no end");
    });
    vm.watched.store(false, SeqCst);
    let parts = accessed
        .len()
        .max(dirty.len())
        .div_ceil(RANGES_OF_A_RECORD)
        .max(1);
    for part in 0..parts {
        tell(Event::Touched {
            vm: vm.id,
            name: vm.name.clone(),
            accessed: piece(&accessed, part),
            dirty: piece(&dirty, part),
            last: part + 1 == parts,
        });
    }
    format!(
        "{}: {small} pages of 4 KiB and {large} larger ones were touched; they are in the records\n",
        vm.name
    )
}

/// Maps part of a VM's memory by pages of 4 KiB, so that more can be told.
pub fn split<B: Backend>(vm: &Vm<B>, first_mib: &str, mib: &str) -> String {
    let (Ok(first), Ok(mib)) = (first_mib.parse::<u32>(), mib.parse::<u32>()) else {
        return format!("{first_mib:?} and {mib:?} should be a place and a length in MiB\n");
    };
    if vm.state() != VmState::Running {
        return format!("{} is {}; it has no pages to split\n", vm.name, vm.state());
    }
    let (start, end) = (
        u64::from(first) << 20,
        (u64::from(first) + u64::from(mib)) << 20,
    );
    let leaves: Vec<Gpa> = vm.ram.with_table(|table| {
        let large = table
            .all_leaves()
            .filter(|leaf| leaf.size == PageSize::Size2M);
        let inside = large.filter(|leaf| (start..end).contains(&leaf.at.0) && !leaf.frozen);
        inside.map(|leaf| leaf.at).collect()
    });
    let mut done = 0;
    for at in leaves {
        let split = vm.ram.change_table(|table, shootdown| {
            let splitting = table.begin_split(at, PageSize::Size2M)?;
            table.finish_split(splitting.shoot_down(shootdown))
        });
        match split {
            Ok(()) => done += 1,
            Err(why) => return format!("{done} were split; then at {at}: {why}\n"),
        }
    }
    format!(
        "{done} pages of 2 MiB of {} are mapped by 4 KiB now\n",
        vm.name
    )
}
