//! Bytes on their way to a slow device.

/// A queue of at most `N` bytes.
#[derive(Debug)]
pub(super) struct Ring<const N: usize> {
    bytes: [u8; N],
    head: usize,
    len: usize,
}

impl<const N: usize> Ring<N> {
    pub(super) const fn new() -> Self {
        Self {
            bytes: [0; N],
            head: 0,
            len: 0,
        }
    }

    /// How many more bytes fit.
    pub(super) fn room(&self) -> usize {
        N - self.len
    }

    /// Appends a byte; `false` if there is no room.
    pub(super) fn push(&mut self, byte: u8) -> bool {
        if self.len == N {
            return false;
        }
        let tail = (self.head + self.len) % N;
        if let Some(slot) = self.bytes.get_mut(tail) {
            *slot = byte;
            self.len += 1;
        }
        true
    }

    /// The oldest bytes that lie side by side; empty if there are none.
    pub(super) fn front(&self) -> &[u8] {
        let end = (self.head + self.len).min(N);
        self.bytes.get(self.head..end).unwrap_or(&[])
    }

    /// Forgets the `count` oldest bytes.
    pub(super) fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.head = (self.head + count) % N;
        self.len -= count;
    }
}
