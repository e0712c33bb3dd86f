//! What looks at one vCPU met.

use alloc::collections::BTreeMap;
use units::{Gpa, NodeId, PAGE_BYTES, PageSize, Score};

use crate::fading::Fading;

/// Granules that are remembered of a vCPU.
pub const GRANULES: usize = 1024;
/// What a look weighs; it is divided among what it met.
pub(super) const LOOK: u64 = 1 << 12;
/// Share of a hand of looks, where shares are summed.
const WHOLE: u32 = 32;

/// Fading counts by granule, and by node.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    /// By number of the granule: weight in each hand.
    granules: BTreeMap<u64, [u32; 2]>,
    /// By accessing node and by the node that holds the memory.
    cells: BTreeMap<(NodeId, NodeId), u64>,
    /// Which hand gets the next look.
    hand: bool,
}

impl Trace {
    /// Takes in what one look met; all weights are above 0.
    pub(super) fn look(&mut self, accessor: NodeId, pages: &[(Gpa, NodeId, u32)]) {
        let all: u64 = pages.iter().map(|(_, _, weight)| u64::from(*weight)).sum();
        self.hand = !self.hand;
        for (gpa, node, weight) in pages {
            let part = (u64::from(*weight) * LOOK).checked_div(all).unwrap_or(0);
            let granule = self.granules.entry(number(*gpa)).or_default();
            let seen = &mut granule[usize::from(self.hand)];
            *seen = seen.saturating_add(u32::try_from(part).unwrap_or(u32::MAX));
            let cell = self.cells.entry((accessor, *node)).or_default();
            *cell = cell.saturating_add(part);
        }
        // Who touches so much is seen too seldom anywhere; what is met least is forgotten first.
        let mut least = 1;
        while self.granules.len() > GRANULES {
            self.granules
                .retain(|_, [a, b]| a.saturating_add(*b) > least);
            least = least.saturating_mul(2);
        }
    }

    /// What was seen counts for less; false if nothing is left.
    pub(super) fn fade(&mut self, fading: Fading) -> bool {
        let less = |weight: &mut u32| {
            *weight = u32::try_from(fading.of((*weight).into())).unwrap_or(u32::MAX);
        };
        self.granules.retain(|_, hands| {
            hands.iter_mut().for_each(less);
            *hands != [0, 0]
        });
        self.cells.retain(|_, weight| {
            *weight = fading.of(*weight);
            *weight > 0
        });
        !self.granules.is_empty()
    }

    /// A page went from one node to another.
    pub(super) fn relocated(&mut self, gpa: Gpa, size: PageSize, from: NodeId, to: NodeId) {
        let pages = size.bytes().min(PageSize::Size2M.bytes()) / PAGE_BYTES;
        let last = gpa.0.saturating_add(size.bytes() - 1);
        let granules = self.granules.range(number(gpa)..=number(Gpa(last)));
        let weight: u64 = granules.map(|(_, hands)| sum(hands)).sum();
        // Of a granule's small pages nothing is known one by one.
        let weight = weight * pages / (PageSize::Size2M.bytes() / PAGE_BYTES);
        let column = self.cells.iter().filter(|((_, n), _)| *n == from);
        let column: u64 = column.map(|(_, weight)| *weight).sum();
        let part = Score::ratio(weight.into(), column.into());
        let moving = self.cells.iter_mut().filter(|((_, n), _)| *n == from);
        let mut moved = BTreeMap::new();
        for ((accessor, _), weight) in moving {
            let gone = part.of(*weight);
            *weight -= gone;
            moved.insert((*accessor, to), gone);
        }
        for (cell, weight) in moved {
            let sum = self.cells.entry(cell).or_default();
            *sum = sum.saturating_add(weight);
        }
    }

    /// Looks, as far as they still count.
    pub(super) fn looks(&self) -> u64 {
        let weights = self.cells.values();
        weights.fold(0u64, |sum, weight| sum.saturating_add(*weight)) / LOOK
    }

    /// Touches by accessing node and memory node.
    pub(super) fn cells(&self) -> impl Iterator<Item = (NodeId, NodeId, u64)> {
        self.cells.iter().map(|((k, n), weight)| (*k, *n, *weight))
    }

    /// Weight of each granule, by its first address.
    pub(super) fn granules(&self) -> impl Iterator<Item = (Gpa, u64)> {
        let start = |number: &u64| Gpa(number.saturating_mul(PageSize::Size2M.bytes()));
        let granules = self.granules.iter();
        granules.map(move |(number, hands)| (start(number), sum(hands)))
    }

    /// How much its two hands of looks overlap.
    pub(super) fn itself(&self) -> Score {
        self.overlap(0, self, 1)
    }

    /// How much it touches what another touches, measured by what each of them would overlap with itself.
    pub(super) fn similarity(&self, other: &Self, itself: Score) -> Score {
        let hands = [(0, 0), (0, 1), (1, 0), (1, 1)];
        let overlaps = hands.map(|(mine, theirs)| self.overlap(mine, other, theirs));
        let mean = overlaps.iter().map(|s| s.0 / 4).sum::<u32>();
        Score::ratio(mean.into(), itself.0.into())
    }

    fn overlap(&self, mine: usize, other: &Self, theirs: usize) -> Score {
        let all = (self.all(mine), other.all(theirs));
        let mut theirs_by_granule = other.granules.iter().peekable();
        let mut sum = 0u64;
        for (granule, hands) in &self.granules {
            while theirs_by_granule.next_if(|(g, _)| *g < granule).is_some() {}
            if let Some((_, others)) = theirs_by_granule.next_if(|(g, _)| *g == granule) {
                let share = |hands: &[u32; 2], hand: usize, all: u64| {
                    let weight = u64::from(hands.get(hand).copied().unwrap_or(0));
                    (weight << WHOLE).checked_div(all).unwrap_or(0)
                };
                sum += share(hands, mine, all.0).min(share(others, theirs, all.1));
            }
        }
        Score::ratio(sum.into(), 1 << WHOLE)
    }

    fn all(&self, hand: usize) -> u64 {
        let weights = self.granules.values().filter_map(|hands| hands.get(hand));
        weights.map(|weight| u64::from(*weight)).sum()
    }

    /// Bytes that it needs besides itself, about: a tree's nodes are two thirds full.
    pub(super) fn bytes(&self) -> usize {
        (self.granules.len() + self.cells.len()) * 32
    }
}

fn number(gpa: Gpa) -> u64 {
    gpa.0 / PageSize::Size2M.bytes()
}

fn sum(hands: &[u32; 2]) -> u64 {
    hands.iter().map(|weight| u64::from(*weight)).sum()
}
