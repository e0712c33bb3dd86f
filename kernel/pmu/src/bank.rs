//! One physical CPU's counters, and a virtual CPU's way through them.
//!
//! A stay goes `load`, then for each entry `open` and `close`, then `unload`. Between stays the counters stand still
//! or count nothing: on AMD because no guest runs, elsewhere because the global register says so. Firmware's counters
//! run on all the time.

use alloc::vec::Vec;
use units::Nanos;

use crate::events::Event;
use crate::plan::Plan;
use crate::port::{Fault, MsrPort};
use crate::registers::{EN, FW_WRITE, IA32_A_PMC0, IA32_PERF_CAPABILITIES, IA32_PMC0, Style};
use crate::tally::Reading;
use crate::unit::{Absent, Unit};

/// A group gives way to the next after it has run for this long. Long against a slice's beginning, whose misses are not the
/// program's; short against a pass of the footprint.
pub const TURN: Nanos = Nanos::from_millis(10);

/// A virtual CPU's place in the rotation; goes with it wherever it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Course {
    group: usize,
    ran: Nanos,
}

impl Course {
    /// The group whose turn it is.
    fn next(&mut self, groups: usize) -> usize {
        if self.ran >= TURN {
            *self = Self {
                group: self.group + 1,
                ran: Nanos::ZERO,
            };
        }
        if self.group >= groups {
            self.group = 0;
        }
        self.group
    }
}

/// A counter and the event that it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    counter: u8,
    event: Event,
}

/// A stay in progress.
#[derive(Clone, Debug)]
struct Stay {
    began: Nanos,
    group: usize,
    /// What the counters of the group held at the beginning, in its order.
    starts: Vec<u64>,
}

/// The counters of one physical CPU. Only that CPU may use it.
#[derive(Clone, Debug)]
pub struct Bank {
    unit: Unit,
    /// Where the events of each group are counted. What finds no counter is not counted here.
    places: Vec<Vec<Place>>,
    /// Bits of the global register that others have set.
    foreign: u64,
    /// The group that stands in the event select registers.
    selected: Option<usize>,
    stay: Option<Stay>,
    /// For the next stay, so that none allocates.
    spare: Vec<u64>,
    /// Whether the global register lets the group run.
    open: bool,
}

/// A pattern that no counter holds by chance, in the 31 bits that can be written everywhere.
const PROBE: u64 = 0x2a5a_5a5a;
/// The same for counters all of whose bits can be written.
const WIDE_PROBE: u64 = 0x5a5a_2a5a_5a5a_5a5a;

impl Bank {
    /// Takes free counters of the calling CPU, as many as the plan allows, and touches no other.
    ///
    /// A counter that already counts belongs to firmware, or to whoever is below, and stays theirs. The others are tried: what does
    /// not keep a value counts nothing either.
    ///
    /// # Errors
    /// Why there are none.
    pub fn claim(plan: &Plan, port: &mut impl MsrPort) -> Result<Self, Absent> {
        let unit = plan.unit();
        let style = unit.style;
        let foreign = match style.global() {
            Some(global) => port.read(global.control)?,
            None => 0,
        };
        let mut free = Vec::new();
        for counter in 0..unit.counters {
            // Version 2 and later start with all counters let through: only the event select register says who counts.
            if port.read(style.select(counter))? & EN == 0 {
                free.push(counter);
            }
        }
        if free.is_empty() {
            return Err(Absent::Taken);
        }
        // The lower ones can count most.
        free.truncate(plan.room());
        let wide = style == Style::Intel
            && unit.has_capabilities
            && port.read(IA32_PERF_CAPABILITIES)? & FW_WRITE != 0;
        for counter in &free {
            try_out(unit, *counter, wide, port)?;
        }
        let mine = free.iter().fold(0, |bits, counter| bits | 1u64 << counter);
        let places: Vec<Vec<Place>> = plan
            .groups()
            .iter()
            .map(|group| placed(group, &free))
            .collect();
        if places.iter().all(Vec::is_empty) {
            return Err(Absent::Taken);
        }
        let most = places.iter().map(Vec::len).max().unwrap_or(0);
        let mut bank = Self {
            unit: unit.clone(),
            places,
            foreign: foreign & !mine,
            selected: None,
            stay: None,
            spare: Vec::with_capacity(most),
            open: true,
        };
        bank.shut(port)?;
        Ok(bank)
    }

    /// How many counters it uses at most.
    pub fn counters(&self) -> usize {
        self.places.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Whether nothing of what is planned is left out here.
    pub fn counts_all(&self, plan: &Plan) -> bool {
        self.places
            .iter()
            .map(Vec::len)
            .eq(plan.groups().iter().map(Vec::len))
    }

    /// A virtual CPU comes to this CPU at `now`.
    ///
    /// # Errors
    /// A register refuses; the stay is not counted.
    pub fn load(
        &mut self,
        port: &mut impl MsrPort,
        course: &mut Course,
        now: Nanos,
    ) -> Result<(), Fault> {
        self.stay = None;
        let group = course.next(self.places.len());
        self.select(group, port)?;
        let mut starts = core::mem::take(&mut self.spare);
        starts.clear();
        for place in self.places.get(group).map_or(&[][..], Vec::as_slice) {
            let register = self.unit.style.counter(place.counter);
            let mut value = port.read(register)? & self.unit.mask();
            // As far from a wrap as it can be. Every counter can be set to 0, whatever can be written besides.
            if value > self.unit.mask() / 2 {
                port.write(register, 0)?;
                value = 0;
            }
            starts.push(value);
        }
        if let Some(global) = self.unit.style.global() {
            let stale = port.read(global.status)? & self.bits(group);
            if stale != 0 {
                port.write(global.clear, stale)?;
            }
        }
        self.stay = Some(Stay {
            began: now,
            group,
            starts,
        });
        if self.unit.style.tells_guests() {
            self.let_run(group, port)?;
        }
        Ok(())
    }

    /// Right before the guest is entered.
    ///
    /// # Errors
    /// A register refuses.
    pub fn open(&mut self, port: &mut impl MsrPort) -> Result<(), Fault> {
        match &self.stay {
            Some(stay) if !self.open => {
                let group = stay.group;
                self.let_run(group, port)
            }
            _ => Ok(()),
        }
    }

    /// Right after it has exited.
    ///
    /// # Errors
    /// A register refuses.
    pub fn close(&mut self, port: &mut impl MsrPort) -> Result<(), Fault> {
        if self.unit.style.tells_guests() {
            Ok(())
        } else {
            self.shut(port)
        }
    }

    /// The virtual CPU leaves at `now`. What was counted, if its stay was.
    ///
    /// # Errors
    /// A register refuses; the stay is not counted.
    pub fn unload(
        &mut self,
        port: &mut impl MsrPort,
        course: &mut Course,
        now: Nanos,
    ) -> Result<Option<Reading>, Fault> {
        let Some(stay) = self.stay.take() else {
            return Ok(None);
        };
        self.shut(port)?;
        let mut reading = Reading::of(now.since(stay.began));
        course.ran += reading.enabled;
        let overflowed = match self.unit.style.global() {
            Some(global) => port.read(global.status)?,
            None => 0,
        };
        let places = self.places.get(stay.group).map_or(&[][..], Vec::as_slice);
        for (place, start) in places.iter().zip(&stay.starts) {
            let end = port.read(self.unit.style.counter(place.counter))?;
            let wrapped = overflowed >> place.counter & 1 == 1;
            reading.note(place.event.kind, self.unit.difference(*start, end, wrapped));
        }
        self.spare = stay.starts;
        Ok(Some(reading))
    }

    /// Puts a group into the event select registers, if another one stands there.
    fn select(&mut self, group: usize, port: &mut impl MsrPort) -> Result<(), Fault> {
        if self.selected == Some(group) {
            return Ok(());
        }
        let old = self.selected.take();
        for place in old
            .and_then(|old| self.places.get(old))
            .map_or(&[][..], Vec::as_slice)
        {
            port.write(self.unit.style.select(place.counter), 0)?;
        }
        for place in self.places.get(group).map_or(&[][..], Vec::as_slice) {
            port.write(
                self.unit.style.select(place.counter),
                self.unit.style.selection(&place.event),
            )?;
        }
        self.selected = Some(group);
        Ok(())
    }

    /// The group's bits in the global registers.
    fn bits(&self, group: usize) -> u64 {
        let places = self.places.get(group).map_or(&[][..], Vec::as_slice);
        places
            .iter()
            .fold(0, |bits, place| bits | 1 << place.counter)
    }

    fn let_run(&mut self, group: usize, port: &mut impl MsrPort) -> Result<(), Fault> {
        if let Some(global) = self.unit.style.global() {
            port.write(global.control, self.foreign | self.bits(group))?;
        }
        self.open = true;
        Ok(())
    }

    fn shut(&mut self, port: &mut impl MsrPort) -> Result<(), Fault> {
        if core::mem::replace(&mut self.open, false)
            && let Some(global) = self.unit.style.global()
        {
            port.write(global.control, self.foreign)?;
        }
        Ok(())
    }
}

/// Whether a counter keeps what is written to it.
fn try_out(unit: &Unit, counter: u8, wide: bool, port: &mut impl MsrPort) -> Result<(), Absent> {
    let register = unit.style.counter(counter);
    let (written_to, pattern) = match (unit.style, wide) {
        (Style::Intel, true) => (register - IA32_PMC0 + IA32_A_PMC0, WIDE_PROBE & unit.mask()),
        (Style::Intel, false) => (register, PROBE),
        (Style::Amd { .. }, _) => (register, WIDE_PROBE & unit.mask()),
    };
    port.write(written_to, pattern)?;
    let kept = port.read(register)?;
    port.write(register, 0)?;
    if kept & unit.mask() == pattern {
        Ok(())
    } else {
        Err(Absent::Forgets { register })
    }
}

/// Gives each event of a group a free counter that can count it, those with least choice first.
fn placed(group: &[Event], free: &[u8]) -> Vec<Place> {
    let mut left: Vec<u8> = free.to_vec();
    let mut order: Vec<&Event> = group.iter().collect();
    order.sort_by_key(|event| event.counters.count_ones());
    let mut places = Vec::new();
    for event in order {
        // From above, which leaves the lower ones to events that need them.
        let fits = |counter: &u8| {
            event
                .counters
                .checked_shr(u32::from(*counter))
                .is_some_and(|bits| bits & 1 == 1)
        };
        if let Some(at) = left.iter().rposition(fits) {
            places.push(Place {
                counter: left.remove(at),
                event: *event,
            });
        }
    }
    places
}
