//! The state of a virtual CPU as text: after a fault of its VM, or when the operator asks.

use super::history::What;
use super::{Hypervisor, Vcpu, VcpuCore, Vm};
use crate::mm;
use crate::virt::{Backend, ControlRegister, Exit, Gpr, SegmentName, VcpuState};
use alloc::format;
use alloc::string::{String, ToString};
use core::sync::atomic::Ordering::SeqCst;
use guest::walk::{self, PagingState, Privilege};
use memory::table::Lookup;
use units::{CpuId, Gpa};

const EFER_LMA: u64 = 1 << 10;
/// Segment attribute L.
const ATTRIBUTE_LONG: u16 = 1 << 9;
/// The general-purpose registers by number.
const GPRS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8 ", "r9 ", "r10", "r11", "r12",
    "r13", "r14", "r15",
];

/// Shows the state of all virtual CPUs of a VM: at once of those that nobody runs, and of the others as soon as the CPU
/// that runs them has left them, which it is asked to do.
pub fn dump_all<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) {
    for vcpu in &vm.vcpus {
        if !try_dump(vm, vcpu) {
            vcpu.dump_wanted.store(true, SeqCst);
            let cpu = vcpu.running_on.load(SeqCst);
            if cpu == super::NOWHERE {
                dump_if_wanted(vm, vcpu); // it has just been left
            } else {
                crate::drive::reschedule(CpuId(cpu));
            }
        }
    }
    let _ = hv;
}

/// The calling CPU has left the virtual CPU: shows its state if somebody waits for that.
pub fn dump_if_wanted<B: Backend>(vm: &Vm<B>, vcpu: &Vcpu<B>) {
    if vcpu.dump_wanted.swap(false, SeqCst) {
        try_dump(vm, vcpu);
    }
}

/// Shows its state unless somebody runs it.
pub fn try_dump<B: Backend>(vm: &Vm<B>, vcpu: &Vcpu<B>) -> bool {
    let Some(core) = vcpu.core.try_lock() else {
        return false;
    };
    let text = describe(vm, vcpu, &core);
    drop(core);
    for line in text.lines() {
        log::error!("{line}");
    }
    true
}

fn describe<B: Backend>(vm: &Vm<B>, vcpu: &Vcpu<B>, core: &VcpuCore<B>) -> String {
    let hw = &core.hw;
    let why = core
        .history
        .last_exit()
        .map_or_else(|| String::from("nothing yet"), |exit| exit.to_string());
    let mut text = format!(
        "{}: vCPU {} had stopped by: {why}\n",
        vm.name, vcpu.id.index
    );
    text += "  hardware says:";
    for (name, value) in hw.vendor_exit() {
        text += &format!(" {name} {value:#x}");
    }
    text += &format!(
        "\n  rip {:04x}:{:016x} rflags {:08x} cpl {} efer {:x} xcr0 {:x}\n",
        hw.segment(SegmentName::Cs).selector,
        hw.rip(),
        hw.rflags(),
        hw.cpl(),
        hw.efer(),
        hw.xcr0()
    );
    for (row, names) in GPRS.chunks(4).enumerate() {
        text += " ";
        for (column, name) in names.iter().enumerate() {
            let value = hw.regs().get(Gpr((row * 4 + column) as u8));
            text += &format!(" {name} {value:016x}");
        }
        text += "\n";
    }
    let cr = |register| hw.cr(register);
    text += &format!(
        "  cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x} cr8 {:x}\n",
        cr(ControlRegister::Cr0),
        cr(ControlRegister::Cr2),
        cr(ControlRegister::Cr3),
        cr(ControlRegister::Cr4),
        hw.cr8()
    );
    for (name, segment) in [
        ("cs", SegmentName::Cs),
        ("ss", SegmentName::Ss),
        ("ds", SegmentName::Ds),
        ("es", SegmentName::Es),
        ("fs", SegmentName::Fs),
        ("gs", SegmentName::Gs),
    ] {
        let s = hw.segment(segment);
        text += &format!(
            "  {name} {:04x} base {:x} limit {:x} attributes {:x}\n",
            s.selector, s.base, s.limit, s.attributes
        );
    }
    for (name, base, limit) in hw.descriptor_tables() {
        text += &format!("  {name} base {base:x} limit {limit:x}\n");
    }
    text += &code(vm, core);
    if let Some(Exit::NestedFault(fault)) = core.history.last_exit() {
        text += &format!("  {}: {}\n", fault.gpa, what_is_at(vm, fault.gpa));
    }
    text += "  what it did before, oldest first:\n";
    for entry in core.history.entries() {
        let what = match &entry.what {
            What::Exit(exit) => format!("left by: {exit}"),
            What::Event(event) => format!("entered with: {event}"),
        };
        text += &format!("    {} rip {:x} {what}\n", entry.at, entry.rip);
    }
    text
}

/// The bytes that it was about to execute.
fn code<B: Backend>(vm: &Vm<B>, core: &VcpuCore<B>) -> String {
    let hw = &core.hw;
    let cs = hw.segment(SegmentName::Cs);
    let long = hw.efer() & EFER_LMA != 0 && cs.attributes & ATTRIBUTE_LONG != 0;
    let linear = match long {
        true => hw.rip(),
        false => u64::from(cs.base.wrapping_add(hw.rip()) as u32),
    };
    let paging = PagingState {
        cr0: hw.cr(ControlRegister::Cr0),
        cr3: hw.cr(ControlRegister::Cr3),
        cr4: hw.cr(ControlRegister::Cr4),
        efer: hw.efer(),
        rflags: hw.rflags(),
        pkru: 0,
        physical_bits: vm.cpuid.physical_bits(),
    };
    let privilege = match hw.cpl() {
        3 => Privilege::User,
        _ => Privilege::Supervisor,
    };
    match walk::fetch(&vm.ram, &paging, linear, privilege) {
        Ok(fetched) => {
            let bytes: String = fetched
                .bytes()
                .iter()
                .map(|b| format!(" {b:02x}"))
                .collect();
            format!("  bytes at rip:{bytes}\n")
        }
        Err(why) => format!("  bytes at rip cannot be read: {why:?}\n"),
    }
}

/// What the nested table and the VM's layout say of an address.
fn what_is_at<B: Backend>(vm: &Vm<B>, gpa: Gpa) -> String {
    let mapped = match vm.ram.with_table(|table| table.translate(gpa)) {
        Ok(Lookup::Mapped(leaf)) => {
            let node = mm::node_of(leaf.frame);
            let node = node.map_or(String::from("no node"), |node| node.to_string());
            format!("mapped by a leaf of {} to memory of {node}", leaf.size)
        }
        _ => String::from("nothing is mapped there"),
    };
    match vm.shape.memory.region_of(gpa) {
        Some(_) => format!("{mapped}; it is the VM's memory"),
        None if vm.board.try_lock().is_some_and(|b| b.mmio_claims(gpa)) => {
            format!("{mapped}; a device is there")
        }
        None => format!("{mapped}; it is neither the VM's memory nor a device on its board"),
    }
}
