//! Which pages of a granule were touched in an interval, and through whose tables.

use alloc::vec::Vec;
use units::PageSet;

use crate::port::Seen;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    all: PageSet,
    /// By the number of the node.
    by: Vec<(usize, PageSet)>,
    untold: bool,
}

impl Touched {
    /// Nothing, for the next granule.
    pub fn clear(&mut self) {
        self.all = PageSet::default();
        self.by.clear();
        self.untold = false;
    }

    /// These pages were touched, and who did is what `seen` says.
    pub fn add(&mut self, seen: Seen, pages: PageSet) {
        if pages.is_empty() {
            return;
        }
        self.all = self.all.union(pages);
        self.untold |= !seen.is_told();
        for node in seen.nodes() {
            match self.by.iter_mut().find(|(number, _)| *number == node) {
                Some((_, set)) => *set = set.union(pages),
                None => self.by.push((node, pages)),
            }
        }
    }

    /// All pages that were touched.
    pub const fn all(&self) -> &PageSet {
        &self.all
    }

    /// Whether it is known of each page through whose tables it was touched.
    pub(crate) const fn is_told(&self) -> bool {
        !self.untold
    }

    /// Through whose tables is not known.
    pub(crate) fn untell(&mut self) {
        self.untold |= !self.all.is_empty();
        self.by.clear();
    }

    /// The nodes that touched any page, by number, and what they touched.
    pub(crate) fn by_node(&self) -> impl Iterator<Item = (usize, &PageSet)> {
        self.by.iter().map(|(node, pages)| (*node, pages))
    }
}
