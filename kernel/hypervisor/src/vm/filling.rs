//! A VM's memory: claimed as a whole or not at all, then zeroed and mapped a granule at a time.

use super::GuestRam;
use crate::mm;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use config::NodeShare;
use guest::VmShape;
use guest::shape::MEMORY_GRANULE;
use memory::buddy::{Allocation, Claim, Want};
use units::{Gpa, PAGE_BYTES, PageSize};

/// Memory on its way to a guest. What has been claimed and not mapped goes back when this is dropped.
#[derive(Debug)]
pub struct Filling {
    claims: Vec<Claim>,
    /// Granules that are mapped.
    done: usize,
}

impl Filling {
    /// Takes frames from the nodes of the placement, all in one critical section or none.
    ///
    /// # Errors
    /// A sentence that names the node that cannot give what it should.
    pub fn claim(placement: &[NodeShare]) -> Result<Self, String> {
        let want = |share: &NodeShare| Want {
            node: share.node,
            order: PageSize::Size2M.into(),
            count: share.bytes.div_ceil(MEMORY_GRANULE),
        };
        let wants: Vec<Want> = placement.iter().map(want).collect();
        let claims = mm::claim_all(&wants).map_err(|e| format!("{e}; the VM was not started"))?;
        Ok(Self { claims, done: 0 })
    }

    /// Maps the guest's memory in ascending order to what is claimed, as long as `more` says so. Returns whether all is
    /// mapped.
    ///
    /// # Errors
    /// A sentence; some of the memory is mapped then.
    pub fn go_on<F>(
        &mut self,
        ram: &GuestRam<F>,
        shape: &VmShape,
        mut more: impl FnMut() -> bool,
    ) -> Result<bool, String>
    where
        F: memory::table::TableFormat<Address = Gpa>,
    {
        for at in granules(shape).skip(self.done) {
            if !more() {
                return Ok(false);
            }
            let block = self.claims.iter_mut().find_map(mm::draw);
            let block =
                block.ok_or("its memory map is larger than its memory; the VM was not started")?;
            map_granule(ram, shape, at, block)?;
            self.done += 1;
        }
        Ok(true)
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.claims.drain(..).for_each(mm::return_claim);
    }
}

/// The blocks of 2 MiB that hold memory of the guest, ascending.
fn granules(shape: &VmShape) -> impl Iterator<Item = Gpa> {
    let of_region = |region: &guest::shape::Region| {
        let first = region.gpa.align_down(PageSize::Size2M).0;
        (first..region.end().0).step_by(MEMORY_GRANULE as usize)
    };
    let mut last = None;
    let all = shape.memory.regions().iter().flat_map(of_region);
    all.filter(move |at| last.replace(*at) != Some(*at))
        .map(Gpa)
}

/// Maps one 2 MiB block: as one leaf, or, where the guest's map has holes, by the pages around them.
fn map_granule<F>(
    ram: &GuestRam<F>,
    shape: &VmShape,
    at: Gpa,
    block: Allocation,
) -> Result<(), String>
where
    F: memory::table::TableFormat<Address = Gpa>,
{
    let is_memory = |gpa: Gpa| shape.memory.region_of(gpa).is_some();
    let pages = PageSize::Size2M.pages();
    let page = |i: u64| Gpa(at.0 + i * PAGE_BYTES);
    if (0..pages).all(|i| is_memory(page(i))) {
        return ram
            .map(at, block.into_frame(), PageSize::Size2M)
            .map_err(|e| e.to_string());
    }
    for (i, frame) in (0..pages).zip(mm::into_pages(block)) {
        if is_memory(page(i)) {
            ram.map(page(i), frame, PageSize::Size4K)
                .map_err(|e| e.to_string())?;
        } else {
            mm::free(frame, PageSize::Size4K);
        }
    }
    Ok(())
}
