//! Physical addresses of the guest and of the host, and the pages they fall into.

use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// Bytes in the smallest page.
pub const PAGE_BYTES: u64 = 4096;
/// log2 of [`PAGE_BYTES`].
pub const PAGE_SHIFT: u32 = 12;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $page:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The page that holds this address.
            pub const fn page(self) -> $page {
                $page(self.0 >> PAGE_SHIFT)
            }
            /// Offset inside its 4 KiB page, in bytes.
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_BYTES - 1)
            }
            /// The address `bytes` further on, or `None` past the end of the address space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(a) => Some(Self(a)),
                    None => None,
                }
            }
            /// Rounded down to a multiple of `size`.
            pub const fn align_down(self, size: PageSize) -> Self {
                Self(self.0 & !(size.bytes() - 1))
            }
            /// Whether the address is a multiple of `size`.
            pub const fn is_aligned(self, size: PageSize) -> bool {
                self.0 & (size.bytes() - 1) == 0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

/// Why a text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// It is no number.
    NoNumber,
    /// It is more than 64 bits can hold.
    TooLarge,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoNumber => "is no address: it is written like 0x2f000 or 192512",
            Self::TooLarge => "is no address: it has more than 64 bits",
        })
    }
}

impl core::error::Error for AddressError {}

impl FromStr for Gpa {
    type Err = AddressError;

    /// Hexadecimal behind `0x`, else decimal.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (digits, radix) = match text.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None => (text, 10),
        };
        if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
            return Err(AddressError::NoNumber);
        }
        let number = u64::from_str_radix(digits, radix);
        number.map(Self).map_err(|_| AddressError::TooLarge)
    }
}

macro_rules! page_number {
    ($(#[$doc:meta])* $name:ident, $address:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// First byte of the page.
            pub const fn address(self) -> $address {
                $address(self.0 << PAGE_SHIFT)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address!(
    /// Guest-physical address: what a VM believes is physical memory.
    Gpa, Gfn
);
address!(
    /// Host-physical address: what the memory controller decodes.
    Hpa, Frame
);
page_number!(
    /// Guest frame number: a [`Gpa`] in units of 4 KiB.
    Gfn, Gpa
);
page_number!(
    /// Host frame number: an [`Hpa`] in units of 4 KiB.
    Frame, Hpa
);

/// The leaf sizes that x86-64, EPT and NPT share (SDM 3A 4.5, APM 2 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl PageSize {
    /// Size in bytes.
    pub const fn bytes(self) -> u64 {
        PAGE_BYTES << self.order()
    }
    /// log2 of the size in 4 KiB pages: 0, 9, 18.
    pub const fn order(self) -> u32 {
        match self {
            Self::Size4K => 0,
            Self::Size2M => 9,
            Self::Size1G => 18,
        }
    }
    /// Size in 4 KiB pages.
    pub const fn pages(self) -> u64 {
        1 << self.order()
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size4K => "4 KiB",
            Self::Size2M => "2 MiB",
            Self::Size1G => "1 GiB",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_splits_into_page_and_offset() {
        let a = Hpa(0x1234_5678);
        assert_eq!(a.page().address().0 + a.page_offset(), a.0);
        assert_eq!(a.align_down(PageSize::Size2M), Hpa(0x1220_0000));
        assert!(a.align_down(PageSize::Size1G).is_aligned(PageSize::Size1G));
    }

    #[test]
    fn addresses_are_read_as_they_are_written() {
        assert_eq!("0x2f000".parse(), Ok(Gpa(0x2_f000)));
        assert_eq!("192512".parse(), Ok(Gpa(192_512)));
        assert_eq!("0xffffffffffffffff".parse(), Ok(Gpa(u64::MAX)));
        for text in ["", "0x", "there", "-1", "+1", "0x-1", "2f000", "0X1", "1 "] {
            assert_eq!(text.parse::<Gpa>(), Err(AddressError::NoNumber), "{text:?}");
        }
        for text in ["0x10000000000000000", "18446744073709551616"] {
            assert_eq!(text.parse::<Gpa>(), Err(AddressError::TooLarge), "{text:?}");
        }
    }

    #[test]
    fn addition_past_the_end_is_refused() {
        assert_eq!(Gpa(u64::MAX).checked_add(1), None);
        assert_eq!(Gpa(1).checked_add(2), Some(Gpa(3)));
    }
}
