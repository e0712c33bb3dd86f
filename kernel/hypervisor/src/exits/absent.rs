//! [`Sabotage::AbsentGates`]: what an event needs on its way is absent just when it is delivered.
//!
//! Pages that move and leaves that are split are absent for a moment, and now and then that moment meets the delivery of an event: the
//! exit then interrupts the delivery, and the event must come once, neither lost nor twice (SDM 3C 28.2.4, APM 2 15.7.2).
//! The same with an IRET that ends an NMI's handler, unblocks NMIs, and then cannot read its stack (SDM 3C 28.2.3).
//! Here the moment is chosen: a page is taken out of the table before an entry and put back behind the exit, which is
//! all that the guest and the handlers of exits can see of a move.

use super::{Context, decode};
use crate::sabotage;
use crate::virt::{Backend, Exit, Gpr, VcpuState};
use crate::vm::DirectTables;
use config::Sabotage;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest::walk::{self, Access, AccessKind, Privilege};
use memory::table::{Leaf, NoProcessor};
use units::{Gpa, PageSize};

/// What is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// The page of the interrupt descriptor table that holds the event's gate.
    Gate,
    /// The first page of the global descriptor table.
    Descriptor,
    /// The page that the event is pushed to.
    Stack,
    /// The page that the IRET of an NMI's handler reads.
    Return,
}

/// How often each was missed where it was meant to be.
static MISSED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
/// Entries that could have been made harder.
static TURNS: AtomicU64 = AtomicU64::new(0);

/// A page that is out of its table.
#[derive(Debug)]
pub struct Hidden {
    leaf: Leaf<Gpa>,
    what: What,
    entered_at: u64,
}

/// Before an entry: takes a page away that it is going to need.
pub fn hide<B: Backend>(ctx: &mut Context<'_, B>) -> Option<Hidden> {
    if !sabotage::on(Sabotage::AbsentGates) {
        return None;
    }
    let event = ctx.core.hw.pending_event();
    if event.is_none() && !ctx.core.hw.nmi_blocked() {
        return None;
    }
    let turn = TURNS.fetch_add(1, Relaxed);
    // Asking for DR7 has the backend fetch everything that it keeps elsewhere, descriptor tables among it.
    let _dr7 = ctx.core.hw.dr7();
    let tables = ctx.core.hw.descriptor_tables();
    let base = |name: &str| tables.iter().find(|t| t.0 == name).map(|t| t.1);
    let rsp = ctx.core.hw.regs().get(Gpr::RSP);
    // Each event meets all of them, and then none.
    let (what, linear) = match (event, turn % 4) {
        (Some(event), 0) => (What::Gate, base("idtr")? + 16 * u64::from(event.vector)),
        (Some(_), 1) => (What::Descriptor, base("gdtr")?),
        (Some(_), 2) => (What::Stack, rsp.wrapping_sub(8)),
        (None, 0 | 2) => (What::Return, rsp),
        _ => return None,
    };
    let access = Access {
        kind: AccessKind::Read,
        privilege: Privilege::Supervisor,
    };
    let found = walk::peek(&ctx.vm.ram, &decode::paging(ctx), linear, access).ok()?;
    let page = found.gpa.align_down(PageSize::Size4K);
    let granule = page.align_down(PageSize::Size2M).0;
    ctx.vm.ram.split_for_good(granule..granule + 1);
    let leaf = ctx.vm.ram.change_table(|table, shootdown| {
        let unmapped = table.unmap(page, PageSize::Size4K).ok()?;
        unmapped.finish(shootdown, &DirectTables)
    })?;
    Some(Hidden {
        leaf,
        what,
        entered_at: ctx.core.hw.rip(),
    })
}

/// Behind the exit, if there was an entry: puts the page back before anybody else can miss it.
pub fn show<B: Backend>(ctx: &mut Context<'_, B>, hidden: Option<Hidden>, exit: Option<&Exit>) {
    let Some(Hidden {
        leaf,
        what,
        entered_at,
    }) = hidden
    else {
        return;
    };
    let back = ctx.vm.ram.change_table(|table, _| {
        table.map(
            leaf.at,
            leaf.frame,
            leaf.size,
            leaf.attributes,
            &NoProcessor,
        )
    });
    match back {
        Ok(flush) => flush.carry_out(&NoProcessor),
        Err(why) => return log::error!("sabotage: {} did not come back: {why}", leaf.at),
    }
    let Some(Exit::NestedFault(fault)) = exit else {
        return;
    };
    // An event that was not delivered leaves the guest where it was, and so does an instruction that could not be done.
    let meant = match what {
        What::Return => is_iret(ctx),
        _ => ctx.core.hw.rip() == entered_at,
    };
    if meant && !fault.fetch && fault.gpa.align_down(PageSize::Size4K) == leaf.at {
        let missed = MISSED
            .get(what as usize)
            .map(|n| n.fetch_add(1, Relaxed) + 1);
        if let Some(times) = missed.filter(|n| n.is_power_of_two()) {
            log::error!("sabotage: missed {what:?} {times} times");
        }
    }
}

/// Whether the guest is at an IRET of 64-bit code.
fn is_iret<B: Backend>(ctx: &mut Context<'_, B>) -> bool {
    decode::fetch(ctx).is_ok_and(|code| code.bytes().starts_with(&[0x48, 0xcf]))
}
