//! What a VM touches, page by page, for tools outside: too much for a person, so it goes to the records.
//!
//! [`hot`] tells what the footprint believes. [`begin`] and [`end`] tell what the nested table says: which pages
//! were read and which were written between the two, exactly. For that every CPU must forget all translations once
//! the bits are clear, as a cached one sets none, and nobody else may clear bits meanwhile: between the two the
//! VM has no footprint passes.

use crate::console;
use crate::drive::record;
use crate::mm;
use crate::virt::Backend;
use crate::vm::{Hypervisor, Vm, VmState};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use footprint::pages::{Range, standing};
use memory::harvest::Options;
use memory::table::Lookup;
use memory::written::Source;
use telemetry::Event;
use telemetry::touched::{HotRange, extend};
use units::{Gpa, PAGE_BYTES, PageSize};

/// Most ranges that are told: what a serial line carries in some seconds.
const RANGES_MAX: usize = 8 * 1024;
/// Ranges of one record, which must find room in the port's queue.
const RANGES_OF_A_RECORD: usize = 64;

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

/// What is believed to be hot, hottest first; what the coldest of it weighs that finds no room is told, too.
pub fn hot<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) -> String {
    let (pass, hot, mut ranges) = {
        let tracking = hv.tracking.lock();
        let Some(track) = tracking.of(vm.id) else {
            return format!("nothing is known of {}\n", vm.name);
        };
        let ranges = if track.footprint.is_idle() {
            Vec::new()
        } else {
            track.watch.page_heats()
        };
        let hot = track.watch.hot_pages(&ranges);
        let ranges = vm.ram.with_table(|table| {
            let located = |range: Range| {
                let gpa = Gpa(range.first * PAGE_BYTES);
                let Ok(Lookup::Mapped(leaf)) = table.first().translate(gpa) else {
                    return None;
                };
                Some(HotRange {
                    first: range.first,
                    frame: leaf.frame.0 + (gpa.0 - leaf.at.0) / PAGE_BYTES,
                    pages: range.pages,
                    heat: range.heat,
                })
            };
            ranges.into_iter().filter_map(located).collect::<Vec<_>>()
        });
        (track.footprint.passes(), hot, ranges)
    };
    let rest = ranges.split_off(ranges.len().min(RANGES_MAX));
    let count = ranges.len();
    let parts = count.div_ceil(RANGES_OF_A_RECORD).max(1);
    for part in 0..parts {
        tell(Event::HotPages {
            vm: vm.id,
            name: vm.name.clone(),
            pass,
            ranges: piece(&ranges, part),
            hot,
            left_out: rest.len() as u64,
            left_out_heat: rest.iter().fold(0, |sum, r| sum.saturating_add(r.heat)),
            last: part + 1 == parts,
        });
    }
    format!(
        "{hot} pages of {} are hot; {count} ranges that are touched are in the records\n",
        vm.name
    )
}

/// Where a VM's memory at an address lies, and how hot it is.
pub fn place<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, text: &str) -> String {
    let gpa: Gpa = match text.parse() {
        Ok(gpa) => gpa,
        Err(why) => return format!("{text:?} {why}\n"),
    };
    let found = vm.ram.with_table(|table| table.translate(gpa));
    let leaf = match found {
        Ok(Lookup::Mapped(leaf)) => leaf,
        Ok(Lookup::Frozen { .. }) => return format!("{}: {gpa} is being moved\n", vm.name),
        Ok(Lookup::NotMapped { .. }) | Err(_) => {
            let regions = vm.shape.memory.regions();
            let all: Vec<String> = regions
                .iter()
                .map(|r| format!("{} to {:#x}", r.gpa, r.end().0.saturating_sub(1)))
                .collect();
            return format!(
                "{} has no memory at {gpa}; it has {}\n",
                vm.name,
                all.join(" and ")
            );
        }
    };
    let frame = leaf.frame.address();
    let node = mm::node_of(leaf.frame).map_or_else(|| "no node".into(), |n| n.to_string());
    let mut text = format!(
        "{}: {gpa} is on {node}, in a leaf of {} KiB that lies at {frame}\n",
        vm.name,
        leaf.size.bytes() >> 10
    );
    let tracking = hv.tracking.lock();
    let Some(track) = tracking.of(vm.id) else {
        return text;
    };
    let sampler = &track.watch.sampler;
    let seen = match sampler.touched_ago(gpa) {
        Some(ago) => format!("seen touched {ago} intervals ago"),
        None => "never seen touched".into(),
    };
    let page = gpa.0 / PAGE_BYTES;
    let heat = match standing(&track.watch.page_heats(), page) {
        Some(s) => format!(
            "has {}.{:04} % of all touches, {} pages are hotter",
            s.ppm / 10_000,
            s.ppm % 10_000,
            s.hotter
        ),
        None => "is not touched".into(),
    };
    text.push_str(&format!(
        "  its region was {seen}, of {} each; its page {heat}\n",
        sampler.interval()
    ));
    text
}

/// Forgets which pages were touched.
pub fn begin<B: Backend>(vm: &Vm<B>) -> String {
    if vm.state() != VmState::Running {
        return format!("{} is {}; it touches nothing\n", vm.name, vm.state());
    }
    vm.watched.store(true, SeqCst);
    if B::can_log_writes() {
        let regions = vm.shape.memory.regions();
        let end = regions.iter().map(|region| region.end()).max();
        vm.ram.keep_log(end.unwrap_or_default());
    }
    vm.ram.forget_touches();
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
        let visit = |leaf: memory::harvest::Touched<Gpa>| {
            let (first, pages) = (leaf.at.0 / PAGE_BYTES, leaf.size.pages());
            if leaf.accessed {
                extend(&mut accessed, first, pages);
            }
            *if leaf.size == PageSize::Size4K {
                &mut small
            } else {
                &mut large
            } += 1;
        };
        table.harvest(Gpa(0), u64::MAX, Options::LOOK, visit);
    });
    let mut written = 0_u64;
    let source = vm.ram.take_written(|leaf| {
        written += 1;
        extend(&mut dirty, leaf.at.0 / PAGE_BYTES, leaf.size.pages());
    });
    vm.ram.end_log();
    vm.watched.store(false, SeqCst);
    let full = vm.vcpus.iter().map(|v| v.logs_full.swap(0, Relaxed));
    let known = match source {
        Source::Log => format!(
            "the processors' log names {written} that were written, it was full {} times",
            full.sum::<u64>()
        ),
        Source::Search => format!("a search of all dirty bits finds {written} that were written"),
    };
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
        "{}: {small} pages of 4 KiB and {large} larger ones were touched, {known}; they are in the records\n",
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
    let regions = vm.shape.memory.regions();
    let last = regions.iter().map(|region| region.end().0).max();
    let (done, all) = vm.ram.split_for_good(start..end.min(last.unwrap_or(0)));
    if done < all {
        return format!(
            "{done} of {all} pages of 2 MiB of {} are mapped by 4 KiB now; the others stay as they are, for lack of \
             memory for tables or because they are being moved\n",
            vm.name
        );
    }
    format!(
        "{done} pages of 2 MiB of {} are mapped by 4 KiB now\n",
        vm.name
    )
}
