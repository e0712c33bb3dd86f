//! What looks at one vCPU met.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
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
    pub(super) fn look(
        &mut self,
        accessor: NodeId,
        pages: impl Iterator<Item = (Gpa, NodeId, u32)> + Clone,
    ) {
        let all: u64 = pages.clone().map(|(_, _, weight)| u64::from(weight)).sum();
        self.hand = !self.hand;
        for (gpa, node, weight) in pages {
            let part = (u64::from(weight) * LOOK).checked_div(all).unwrap_or(0);
            let granule = self.granules.entry(number(gpa)).or_default();
            let seen = &mut granule[usize::from(self.hand)];
            *seen = seen.saturating_add(u32::try_from(part).unwrap_or(u32::MAX));
            let cell = self.cells.entry((accessor, node)).or_default();
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

    /// Its hands of looks, to be compared.
    pub(super) fn hands(&self) -> Hands {
        let all = [0, 1].map(|hand: usize| -> u64 {
            let weights = self.granules.values().filter_map(|hands| hands.get(hand));
            weights.map(|weight| u64::from(*weight)).sum()
        });
        let share = |weight: u32, all: u64| (u64::from(weight) << WHOLE).checked_div(all);
        let shares = self.granules.iter().map(|(granule, [a, b])| {
            let shares = [share(*a, all[0]), share(*b, all[1])];
            (*granule, shares.map(Option::unwrap_or_default))
        });
        Hands(shares.collect())
    }

    /// Bytes that it needs besides itself, about: a tree's nodes are two thirds full.
    pub(super) fn bytes(&self) -> usize {
        (self.granules.len() + self.cells.len()) * 32
    }
}

/// What each granule has of each of a vCPU's two hands of looks, by number of the granule. A list, as a machine with many
/// vCPUs has very many pairs to compare.
pub(super) struct Hands(Vec<(u64, [u64; 2])>);

impl Hands {
    /// How much the two overlap.
    pub(super) fn itself(&self) -> Score {
        let smaller = self.0.iter().map(|(_, [a, b])| a.min(b));
        Score::ratio(smaller.sum::<u64>().into(), 1 << WHOLE)
    }

    /// How much it touches what another touches, measured by what each of them would overlap with itself.
    pub(super) fn similarity(&self, other: &Self, itself: Score) -> Score {
        let mut others = other.0.iter().peekable();
        let mut sum = 0u64;
        for (granule, [a, b]) in &self.0 {
            while others.next_if(|(g, _)| g < granule).is_some() {}
            if let Some((_, [c, d])) = others.next_if(|(g, _)| g == granule) {
                sum += a.min(c) + a.min(d) + b.min(c) + b.min(d);
            }
        }
        let mean = Score::ratio(sum.into(), 4 << WHOLE);
        Score::ratio(mean.0.into(), itself.0.into())
    }
}

fn number(gpa: Gpa) -> u64 {
    gpa.0 / PageSize::Size2M.bytes()
}

fn sum(hands: &[u32; 2]) -> u64 {
    hands.iter().map(|weight| u64::from(*weight)).sum()
}
