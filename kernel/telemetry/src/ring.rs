//! A ring of the last N items: what a CPU keeps for `why` and for fault reports.

/// The last `N` items pushed; older ones are overwritten and counted.
///
/// One CPU owns it and pushes with interrupts off; whoever else reads it holds the same lock as
/// the owner. There is no hidden synchronisation here.
#[derive(Clone, Debug)]
pub struct Ring<T, const N: usize> {
    items: [Option<T>; N],
    /// Items pushed since start; the next goes to `pushed % N`.
    pushed: u64,
}

impl<T, const N: usize> Ring<T, N> {
    /// An empty ring.
    pub const fn new() -> Self {
        Self {
            items: [const { None }; N],
            pushed: 0,
        }
    }

    /// Adds an item; returns the one it replaced, if the ring was full.
    pub fn push(&mut self, item: T) -> Option<T> {
        let slot = self
            .items
            .get_mut((self.pushed % (N as u64).max(1)) as usize)?;
        self.pushed = self.pushed.wrapping_add(1);
        slot.replace(item)
    }

    /// Items present.
    pub fn len(&self) -> usize {
        self.pushed.min(N as u64) as usize
    }

    /// Whether nothing was pushed yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Items overwritten so far.
    pub fn overwritten(&self) -> u64 {
        self.pushed.saturating_sub(N as u64)
    }

    /// Oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        let oldest = self.overwritten();
        (oldest..self.pushed)
            .filter_map(|i| self.items.get((i % (N as u64).max(1)) as usize)?.as_ref())
    }
}

impl<T, const N: usize> Default for Ring<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_keeps_exactly_the_last_n(items in proptest::collection::vec(0u32..1000, 0..40)) {
            let mut ring: Ring<u32, 8> = Ring::new();
            for &i in &items {
                ring.push(i);
            }
            let kept: Vec<u32> = ring.iter().copied().collect();
            let from = items.len().saturating_sub(8);
            prop_assert_eq!(&kept[..], &items[from..]);
            prop_assert_eq!(ring.overwritten(), from as u64);
        }
    }

    #[test]
    fn a_ring_without_room_keeps_nothing() {
        let mut ring: Ring<u8, 0> = Ring::new();
        assert_eq!(ring.push(1), None);
        assert!(ring.is_empty());
    }
}
