//! A large leaf that is copied while nobody can reach it.

use super::{Done, Moved, Refused, refuse, target, whereabouts};
use crate::arch::time;
use crate::mm;
use crate::virt::Backend;
use crate::vm::Vm;
use memory::page_move::{Displaced, PageMove, Planned};
use migrate::PageOrder;
use units::NodeId;

/// Moves it.
pub fn carry_out<B: Backend>(vm: &Vm<B>, order: PageOrder, to: NodeId) -> Moved {
    let (here, mapped) = whereabouts(vm, order.gpa)?;
    if here == to {
        return Ok(None);
    }
    let size = mapped.max(order.size);
    let at = order.gpa.align_down(size);
    if mapped < size {
        // It is mapped by small pages for a close look, which ends here, or it stays where it is.
        vm.ram.end_look(at);
    }
    let began = time::now();
    let moved = PageMove::plan(at, size, target(to, size)?).and_then(|page| copy(vm, page));
    let old = moved.map_err(refuse)?;
    let pause = time::now().since(began);
    let from = mm::node_of(old.frame).unwrap_or(here);
    mm::free_displaced(old);
    vm.ram.relocated(size, from, to);
    Ok(Some(Done {
        from,
        size,
        pause,
        again: 0,
    }))
}

fn copy<B: Backend>(vm: &Vm<B>, page: PageMove<Planned>) -> Result<Displaced, Refused> {
    let (ram, at) = (&vm.ram, page.at());
    let frozen = ram.change_table(|table, _| page.freeze(table.all_mut()))?;
    let copied = frozen.shoot_down(&ram.shootdown()).copy(mm::copy_frames);
    let old = ram.change_table(|table, _| copied.commit(table.all_mut()));
    ram.arrived(at);
    old
}
