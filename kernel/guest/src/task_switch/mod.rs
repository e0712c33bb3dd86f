//! Hardware task switches, done by software.
//!
//! Both vendors stop a guest at a task switch and leave the whole of it to the hypervisor: VT-x always
//! (SDM 3C 26.4.2), AMD-V where it is asked to (APM 2 15.14.1). [`switch`] does what the processor would
//! (SDM 3A 8.3, APM 2 12.2.4): it saves the outgoing task into its TSS, loads the incoming one, links them,
//! and marks both busy or not. Memory is reached through a door, [`LinearMemory`], that the kernel
//! implements by walking the guest's page tables, so all of this runs in host tests.
//!
//! A switch has a point of no return. What fails before it is an exception of the outgoing task and
//! leaves its registers alone; what fails after it, while segments are loaded or an error code is pushed, is an
//! exception of the incoming task, whose registers are in place by then ([`Refusal::After`]).
//!
//! Not checked here is what the processor checked before it stopped: whether the instruction or the gate may
//! be used at this privilege level.

pub(crate) mod descriptor;
mod tss;

use crate::entry::{Segment, TableRegister};
use crate::inject::{Exception, GP, NP, SS, TS};
use descriptor::{Descriptor, Kind};
use tss::Width;

/// EFLAGS.NT, a nested task.
const EFLAGS_NT: u32 = 1 << 14;
/// EFLAGS.VM, virtual-8086 mode.
const EFLAGS_VM: u32 = 1 << 17;
/// CR0.TS, task switched; CR0.PG, paging.
const CR0_TS: u64 = 1 << 3;
const CR0_PG: u64 = 1 << 31;
/// DR7.L0 to L3 and LE, which hold for one task only.
const DR7_LOCAL: u64 = 0x155;
/// Error code bit: an event outside of the program caused the fault (SDM 3A 6.13).
const EXT: u32 = 1;

/// Places in [`TaskState::segments`].
pub mod place {
    /// ES.
    pub const ES: usize = 0;
    /// CS.
    pub const CS: usize = 1;
    /// SS.
    pub const SS: usize = 2;
    /// DS.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
}
/// ESP in [`TaskState::gpr`].
const ESP: usize = 4;

/// What a task switch saves and loads. Tasks do not exist in 64-bit mode, so 32 bits are enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskState {
    /// Where the task goes on.
    pub eip: u32,
    /// EFLAGS.
    pub eflags: u32,
    /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
    pub gpr: [u32; 8],
    /// Segments, by [`place`].
    pub segments: [Segment; 6],
    /// LDTR.
    pub ldtr: Segment,
    /// TR.
    pub tr: Segment,
    /// GDTR; not changed.
    pub gdtr: TableRegister,
    /// CR0; TS is set.
    pub cr0: u64,
    /// CR3, loaded if paging is on and the incoming task has 32 bits.
    pub cr3: u64,
    /// DR7; local breakpoints are cleared.
    pub dr7: u64,
    /// Current privilege level.
    pub cpl: u8,
}

/// What caused the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A far JMP.
    Jump,
    /// A far CALL.
    Call,
    /// An IRET with NT set.
    Iret,
    /// INT n, INT3 or INTO through a task gate.
    SoftwareInterrupt,
    /// An exception or interrupt through a task gate.
    Event,
}

impl Cause {
    /// Whether the incoming task is to return to the outgoing one.
    const fn nests(self) -> bool {
        matches!(self, Self::Call | Self::SoftwareInterrupt | Self::Event)
    }
    /// Whether the outgoing task is over.
    const fn leaves(self) -> bool {
        matches!(self, Self::Jump | Self::Iret)
    }
    const fn ext(self) -> u32 {
        if matches!(self, Self::Event) { EXT } else { 0 }
    }
}

/// A task switch to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    /// Selector of the incoming task's TSS.
    pub selector: u16,
    /// Cause.
    pub cause: Cause,
    /// What an exception pushes onto the incoming task's stack.
    pub error_code: Option<u32>,
}

/// Linear addresses of the guest, on behalf of its supervisor.
pub trait LinearMemory {
    /// What stops an access.
    type Error;
    /// Reads; all of it or nothing.
    ///
    /// # Errors
    /// The access was stopped.
    fn read(&mut self, address: u32, bytes: &mut [u8]) -> Result<(), Self::Error>;
    /// Writes; all of it or nothing.
    ///
    /// # Errors
    /// The access was stopped.
    fn write(&mut self, address: u32, bytes: &[u8]) -> Result<(), Self::Error>;
    /// From now on addresses translate through another CR3.
    fn use_cr3(&mut self, cr3: u32);
}

/// Whether an IRET here returns to another task instead of by the stack (SDM 3A 8.4, SDM 2A, IRET).
#[must_use]
pub const fn iret_switches(rflags: u64, cr0: u64, efer: u64) -> bool {
    const CR0_PE: u64 = 1;
    const EFER_LMA: u64 = 1 << 10;
    rflags & EFLAGS_NT as u64 != 0
        && rflags & EFLAGS_VM as u64 == 0
        && cr0 & CR0_PE != 0
        && efer & EFER_LMA == 0
}

/// Why a task switch did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop<E> {
    /// An exception.
    Exception(Exception),
    /// Memory that could not be reached.
    Memory(E),
}

/// When it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal<E> {
    /// Before the outgoing task was left: it meets the exception.
    Before(Stop<E>),
    /// When the incoming task had been loaded: it meets the exception.
    After(Stop<E>),
}

/// What follows a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// The incoming task runs.
    Run,
    /// Its TSS asks for a debug exception first (the T bit), with DR6.BT.
    DebugTrap,
}

fn fault<E>(vector: u8, selector: u16, ext: u32) -> Stop<E> {
    Stop::Exception(Exception::new(vector, Some(u32::from(selector & !3) | ext)))
}

/// Switches from the task in `state` to the one that `switch` names.
///
/// # Errors
/// [`Refusal`] says when and why it stopped. `state` is the incoming task's for [`Refusal::After`], unchanged for
/// [`Refusal::Before`].
pub fn switch<M: LinearMemory>(
    state: &mut TaskState,
    switch: &TaskSwitch,
    memory: &mut M,
) -> Result<Done, Refusal<M::Error>> {
    let incoming = leave(state, switch, memory).map_err(Refusal::Before)?;
    arrive(state, &incoming, switch, memory).map_err(Refusal::After)
}

/// The incoming task as its TSS holds it.
struct Incoming {
    image: tss::Image,
    descriptor: Descriptor,
    width: Width,
}

/// Everything up to the point of no return: checks, saves, links.
fn leave<M: LinearMemory>(
    state: &TaskState,
    switch: &TaskSwitch,
    memory: &mut M,
) -> Result<Incoming, Stop<M::Error>> {
    let (selector, ext) = (switch.selector, switch.cause.ext());
    // An IRET finds its target in a TSS, the others in the program (SDM 3A table 8-1).
    let (wrong, wanted) = match switch.cause {
        Cause::Iret => (TS, Kind::BusyTss),
        _ => (GP, Kind::AvailableTss),
    };
    if selector & 4 != 0 || u32::from(selector | 7) > u32::from(state.gdtr.limit) {
        return Err(fault(wrong, selector, ext));
    }
    let at = descriptor_address(state.gdtr, selector);
    let descriptor = Descriptor(read_u64(memory, at)?);
    if descriptor.kind() != wanted {
        return Err(fault(wrong, selector, ext));
    }
    if !descriptor.present() {
        return Err(fault(NP, selector, ext));
    }
    let width = Width::of(descriptor);
    if descriptor.limit() < width.last_byte() {
        return Err(fault(TS, selector, ext));
    }
    let old_width = Width::of_register(state.tr);
    if state.tr.limit < old_width.last_byte() {
        return Err(fault(TS, state.tr.selector, ext));
    }
    // Both are read before either is written, so that a page that is missing leaves no half of a switch.
    let image = tss::Image::read(width, descriptor.base(), memory)?;
    let mut eflags = state.eflags;
    if switch.cause == Cause::Iret {
        eflags &= !EFLAGS_NT;
    }
    tss::save(old_width, state, eflags, memory)?;
    if switch.cause.nests() {
        memory
            .write(descriptor.base(), &state.tr.selector.to_le_bytes())
            .map_err(Stop::Memory)?;
    }
    if switch.cause.leaves() {
        let own = descriptor_address(state.gdtr, state.tr.selector);
        let old = Descriptor(read_u64(memory, own)?);
        write_u64(memory, own, old.with_busy(false))?;
    }
    if switch.cause != Cause::Iret {
        write_u64(memory, at, descriptor.with_busy(true))?;
    }
    Ok(Incoming {
        image,
        descriptor,
        width,
    })
}

/// Loads the incoming task.
fn arrive<M: LinearMemory>(
    state: &mut TaskState,
    incoming: &Incoming,
    switch: &TaskSwitch,
    memory: &mut M,
) -> Result<Done, Stop<M::Error>> {
    let Incoming {
        image,
        descriptor,
        width,
    } = incoming;
    let ext = switch.cause.ext();
    state.tr = Descriptor(descriptor.with_busy(true).0).segment(switch.selector);
    state.cr0 |= CR0_TS;
    state.dr7 &= !DR7_LOCAL;
    state.eip = image.eip;
    state.eflags = image.eflags | 2;
    if switch.cause.nests() {
        state.eflags |= EFLAGS_NT;
    }
    state.gpr = image.gpr;
    if let Some(cr3) = image.cr3.filter(|_| state.cr0 & CR0_PG != 0) {
        state.cr3 = u64::from(cr3);
        memory.use_cr3(cr3);
    }
    // Selectors first: should a descriptor be refused, the handler sees them all.
    for (segment, selector) in state.segments.iter_mut().zip(image.selectors) {
        *segment = Segment {
            selector,
            ..Segment::NULL
        };
    }
    state.ldtr = Segment {
        selector: image.ldt,
        ..Segment::NULL
    };
    let [_, cs, ..] = image.selectors;
    let virtual_8086 = state.eflags & EFLAGS_VM != 0;
    state.cpl = if virtual_8086 { 3 } else { (cs & 3) as u8 };
    load_ldt(state, ext, memory)?;
    for (index, selector) in image.selectors.into_iter().enumerate() {
        let segment = if virtual_8086 {
            descriptor::real_mode_segment(selector)
        } else {
            load_segment(state, index, selector, ext, memory)?
        };
        if let Some(place) = state.segments.get_mut(index) {
            *place = segment;
        }
    }
    let code = state.segments[place::CS];
    if state.eip > code.limit {
        return Err(fault(GP, 0, ext));
    }
    if let Some(code) = switch.error_code {
        push(state, *width, code, ext, memory)?;
    }
    Ok(if image.trap {
        Done::DebugTrap
    } else {
        Done::Run
    })
}

fn load_ldt<M: LinearMemory>(
    state: &mut TaskState,
    ext: u32,
    memory: &mut M,
) -> Result<(), Stop<M::Error>> {
    let selector = state.ldtr.selector;
    if selector & !3 == 0 {
        return Ok(());
    }
    if selector & 4 != 0 || u32::from(selector | 7) > u32::from(state.gdtr.limit) {
        return Err(fault(TS, selector, ext));
    }
    let at = descriptor_address(state.gdtr, selector);
    let descriptor = Descriptor(read_u64(memory, at)?);
    if descriptor.kind() != Kind::Ldt || !descriptor.present() {
        return Err(fault(TS, selector, ext));
    }
    state.ldtr = descriptor.segment(selector);
    Ok(())
}

/// A segment register of the incoming task (SDM 3A table 8-1: what is checked, and which exception says so).
fn load_segment<M: LinearMemory>(
    state: &TaskState,
    index: usize,
    selector: u16,
    ext: u32,
    memory: &mut M,
) -> Result<Segment, Stop<M::Error>> {
    let wrong = || fault(TS, selector, ext);
    if selector & !3 == 0 {
        return match index {
            place::CS | place::SS => Err(wrong()),
            _ => Ok(Segment {
                selector,
                ..Segment::NULL
            }),
        };
    }
    let table = if selector & 4 == 0 {
        state.gdtr
    } else if state.ldtr.attributes & descriptor::PRESENT == 0 {
        return Err(wrong());
    } else {
        TableRegister {
            base: state.ldtr.base,
            limit: u16::try_from(state.ldtr.limit).unwrap_or(u16::MAX),
        }
    };
    if u32::from(selector | 7) > u32::from(table.limit) {
        return Err(wrong());
    }
    let at = descriptor_address(table, selector);
    let descriptor = Descriptor(read_u64(memory, at)?);
    let (rpl, dpl, cpl) = ((selector & 3) as u8, descriptor.dpl(), state.cpl);
    let (allowed, absent) = match (index, descriptor.kind()) {
        (place::CS, Kind::Code { conforming, .. }) => {
            (if conforming { dpl <= rpl } else { dpl == rpl }, NP)
        }
        (place::SS, Kind::Data { writable: true }) => (dpl == cpl && rpl == cpl, SS),
        (place::CS | place::SS, _) => (false, NP),
        (
            _,
            Kind::Code {
                readable: true,
                conforming: true,
            },
        ) => (true, NP),
        (_, Kind::Data { .. } | Kind::Code { readable: true, .. }) => (dpl >= rpl.max(cpl), NP),
        _ => (false, NP),
    };
    if !allowed {
        return Err(wrong());
    }
    if !descriptor.present() {
        return Err(fault(absent, selector, ext));
    }
    let accessed = descriptor.accessed();
    if accessed != descriptor {
        write_u64(memory, at, accessed)?;
    }
    Ok(accessed.segment(selector))
}

/// Pushes an error code, as wide as the task is (SDM 3A 6.13, 8.3).
fn push<M: LinearMemory>(
    state: &mut TaskState,
    width: Width,
    code: u32,
    ext: u32,
    memory: &mut M,
) -> Result<(), Stop<M::Error>> {
    let stack = state.segments[place::SS];
    let bytes = width.word_bytes();
    let mask = if stack.attributes & descriptor::BIG != 0 {
        u32::MAX
    } else {
        0xFFFF
    };
    let top = state.gpr[ESP].wrapping_sub(bytes) & mask;
    if !descriptor::in_limit(stack, top, bytes) {
        return Err(fault(SS, 0, ext));
    }
    let at = (stack.base as u32).wrapping_add(top);
    let code = code.to_le_bytes();
    let code = code.get(..bytes as usize).unwrap_or(&code);
    memory.write(at, code).map_err(Stop::Memory)?;
    state.gpr[ESP] = state.gpr[ESP] & !mask | top;
    Ok(())
}

const fn descriptor_address(table: TableRegister, selector: u16) -> u32 {
    (table.base as u32).wrapping_add((selector & !7) as u32)
}

fn read_u64<M: LinearMemory>(memory: &mut M, at: u32) -> Result<u64, Stop<M::Error>> {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes).map_err(Stop::Memory)?;
    Ok(u64::from_le_bytes(bytes))
}

fn write_u64<M: LinearMemory>(
    memory: &mut M,
    at: u32,
    descriptor: Descriptor,
) -> Result<(), Stop<M::Error>> {
    memory
        .write(at, &descriptor.0.to_le_bytes())
        .map_err(Stop::Memory)
}

#[cfg(test)]
mod tests;
