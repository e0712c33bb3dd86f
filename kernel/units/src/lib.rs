//! The words Perigee counts in.
//!
//! A hypervisor handles three kinds of address and half a dozen kinds of index, all of them
//! machine words. Mixing two of them compiles silently and fails in the field, so each gets a
//! type of its own here. Nothing in this crate decides anything: newtypes, conversions that
//! cannot lose meaning, and `Display` in the form an operator reads.
//!
//! * addresses and page numbers: [`Gpa`], [`Hpa`], [`Frame`], [`Gfn`], and the three leaf sizes
//!   as [`PageSize`];
//! * names of things: [`NodeId`], [`CpuId`], [`ApicId`], [`ProximityDomain`], [`VmId`], [`VcpuId`];
//! * the pages of a granule: [`PageSet`], and the bits of a word: [`ones`];
//! * quantities: [`Nanos`] for time, [`Credits`] for the scheduler's currency;
//! * ratios in integers: [`Score`] from 0 to 1 and [`PerMille`].
#![no_std]
#![forbid(unsafe_code)]

mod address;
mod name;
mod pages;
mod quantity;
mod ratio;

pub use address::{Frame, Gfn, Gpa, Hpa, PAGE_BYTES, PAGE_SHIFT, PageSize};
pub use name::{ApicId, CpuId, NodeId, ProximityDomain, VcpuId, VmId};
pub use pages::{PageSet, ones};
pub use quantity::{Credits, Nanos};
pub use ratio::{PerMille, Score};
