//! Where vCPUs, machines and CPUs are found by number: plain arrays.
//!
//! A pick looks up every member of a queue several times. In an ordered map of ten thousand vCPUs
//! each look-up is a dozen cache misses; numbers are dense (the kernel hands them out from 0), so
//! an array answers with one. Iteration is in order of number, so nothing depends on a hash.

use alloc::vec::Vec;
use units::{CpuId, VcpuId, VmId};

use crate::queue::Cpu;
use crate::scheduler::Vm;
use crate::vcpu::Vcpu;

/// Highest number of a CPU that is accepted, plus one: an array must not grow with a wild number.
pub const MAX_CPUS: u32 = 1 << 16;

/// All vCPUs, and what is known of their machines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vcpus {
    vms: Vec<Row>,
}

#[derive(Clone, Debug, Default)]
struct Row {
    vm: Option<Vm>,
    vcpus: Vec<Option<Vcpu>>,
}

impl Vcpus {
    pub(crate) fn get(&self, id: VcpuId) -> Option<&Vcpu> {
        let row = self.vms.get(usize::from(id.vm.0))?;
        row.vcpus.get(usize::from(id.index))?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: VcpuId) -> Option<&mut Vcpu> {
        let row = self.vms.get_mut(usize::from(id.vm.0))?;
        row.vcpus.get_mut(usize::from(id.index))?.as_mut()
    }

    fn row(&mut self, vm: VmId) -> Option<&mut Row> {
        let i = usize::from(vm.0);
        if self.vms.len() <= i {
            self.vms.resize_with(i + 1, Row::default);
        }
        self.vms.get_mut(i)
    }

    pub(crate) fn insert(&mut self, id: VcpuId, v: Vcpu) {
        let i = usize::from(id.index);
        let Some(row) = self.row(id.vm) else { return };
        if row.vcpus.len() <= i {
            row.vcpus.resize_with(i + 1, || None);
        }
        if let Some(slot) = row.vcpus.get_mut(i) {
            *slot = Some(v);
        }
    }

    pub(crate) fn remove(&mut self, id: VcpuId) {
        let row = self.vms.get_mut(usize::from(id.vm.0));
        if let Some(slot) = row.and_then(|row| row.vcpus.get_mut(usize::from(id.index))) {
            *slot = None;
        }
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = VcpuId> + '_ {
        self.iter().map(|(id, _)| id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (VcpuId, &Vcpu)> + '_ {
        (0u16..)
            .zip(&self.vms)
            .flat_map(|(vm, row)| members(VmId(vm), &row.vcpus))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Vcpu> + '_ {
        self.vms.iter_mut().flat_map(|row| &mut row.vcpus).flatten()
    }

    /// The vCPUs of one machine, to be changed.
    pub(crate) fn of_mut(&mut self, vm: VmId) -> impl Iterator<Item = &mut Vcpu> + '_ {
        let row = self.vms.get_mut(usize::from(vm.0));
        row.into_iter().flat_map(|row| &mut row.vcpus).flatten()
    }

    /// The machine that stands at a place of the table, and how many vCPUs it has at most; None beyond the last.
    pub(crate) fn at(&self, place: usize) -> Option<(VmId, usize)> {
        let row = self.vms.get(place)?;
        Some((VmId(u16::try_from(place).ok()?), row.vcpus.len()))
    }

    /// The vCPUs of one machine.
    pub(crate) fn of(&self, vm: VmId) -> impl Iterator<Item = (VcpuId, &Vcpu)> + '_ {
        let row = self.vms.get(usize::from(vm.0));
        members(vm, row.map_or(&[], |row| &row.vcpus))
    }

    pub(crate) fn vm(&self, vm: VmId) -> Option<&Vm> {
        self.vms.get(usize::from(vm.0))?.vm.as_ref()
    }

    /// What is known of a machine, made if nothing is.
    pub(crate) fn vm_mut(&mut self, vm: VmId) -> Option<&mut Vm> {
        Some(self.row(vm)?.vm.get_or_insert_default())
    }

    pub(crate) fn forget_vm(&mut self, vm: VmId) {
        if let Some(row) = self.vms.get_mut(usize::from(vm.0)) {
            row.vm = None;
        }
    }

    /// Machines of which something is known.
    pub(crate) fn vms(&self) -> impl Iterator<Item = (VmId, &Vm)> + '_ {
        (0u16..)
            .zip(&self.vms)
            .filter_map(|(vm, row)| Some((VmId(vm), row.vm.as_ref()?)))
    }
}

fn members(vm: VmId, vcpus: &[Option<Vcpu>]) -> impl Iterator<Item = (VcpuId, &Vcpu)> + '_ {
    (0u16..)
        .zip(vcpus)
        .filter_map(move |(index, v)| Some((VcpuId { vm, index }, v.as_ref()?)))
}

/// All CPUs that are online.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cpus {
    cpus: Vec<Option<Cpu>>,
    len: usize,
}

impl Cpus {
    pub(crate) fn get(&self, id: CpuId) -> Option<&Cpu> {
        self.cpus.get(id.index())?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: CpuId) -> Option<&mut Cpu> {
        self.cpus.get_mut(id.index())?.as_mut()
    }

    pub(crate) fn insert(&mut self, id: CpuId, cpu: Cpu) {
        let i = id.index();
        if self.cpus.len() <= i {
            self.cpus.resize_with(i + 1, || None);
        }
        if let Some(slot) = self.cpus.get_mut(i)
            && slot.replace(cpu).is_none()
        {
            self.len += 1;
        }
    }

    /// How many are online.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (CpuId, &Cpu)> + '_ {
        (0u32..)
            .zip(&self.cpus)
            .filter_map(|(i, c)| Some((CpuId(i), c.as_ref()?)))
    }
}
