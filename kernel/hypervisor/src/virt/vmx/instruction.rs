#![expect(unsafe_code, reason = "VMX exists only as instructions")]
//! The VMX instructions (SDM 3C 31.3).
//!
//! They report failure by flags: CF where there is no current VMCS, ZF where there is one and its
//! error field says more. `setna` catches both.

use core::arch::asm;
use core::marker::PhantomData;
use units::Hpa;
use vmcs::Fields;

/// An instruction did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

const fn outcome(failed: u8) -> Result<(), Failed> {
    if failed == 0 { Ok(()) } else { Err(Failed) }
}

/// VMXON: the calling CPU enters VMX root operation.
///
/// # Safety
/// `region` is a page that belongs to this CPU for ever and begins with the VMCS revision; CR4.VMXE is 1, and CR0, CR4
/// and IA32_FEATURE_CONTROL permit VMX operation.
pub unsafe fn vmxon(region: Hpa) -> Result<(), Failed> {
    let failed: u8;
    // SAFETY: the caller's.
    unsafe {
        asm!("vmxon [{}]", "setna {}", in(reg) &region.0, out(reg_byte) failed, options(nostack))
    };
    outcome(failed)
}

/// VMCLEAR: what the processor caches of a VMCS goes to memory, its launch state becomes clear, and it is current
/// nowhere.
///
/// # Safety
/// The CPU is in VMX root operation; `vmcs` is a VMCS region in the caller's ownership, and active on no other CPU.
pub unsafe fn vmclear(vmcs: Hpa) -> Result<(), Failed> {
    let failed: u8;
    // SAFETY: the caller's.
    unsafe {
        asm!("vmclear [{}]", "setna {}", in(reg) &vmcs.0, out(reg_byte) failed, options(nostack))
    };
    outcome(failed)
}

/// VMPTRLD: makes a VMCS current.
///
/// # Safety
/// As for [`vmclear`]; the region begins with the revision and has been cleared once.
pub unsafe fn vmptrld(vmcs: Hpa) -> Result<(), Failed> {
    let failed: u8;
    // SAFETY: the caller's.
    unsafe {
        asm!("vmptrld [{}]", "setna {}", in(reg) &vmcs.0, out(reg_byte) failed, options(nostack))
    };
    outcome(failed)
}

/// What INVEPT and INVVPID are to forget.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// What belongs to one EPT pointer.
    Single(u64),
    /// Everything.
    All,
}

/// INVEPT: forgets guest-physical and combined translations (SDM 3C 29.4.3.1).
///
/// # Safety
/// The CPU is in VMX root operation and has INVEPT of that scope.
pub unsafe fn invept(scope: Scope) {
    let (kind, descriptor) = match scope {
        Scope::Single(pointer) => (1_u64, [pointer, 0]),
        Scope::All => (2, [0, 0]),
    };
    // SAFETY: forgetting translations changes no meaning; the descriptor is 16 readable bytes.
    unsafe { asm!("invept {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack)) };
}

/// INVVPID of all tags: forgets linear and combined translations of all guests.
///
/// # Safety
/// The CPU is in VMX root operation and has INVVPID of all contexts.
pub unsafe fn invvpid_all() {
    const ALL: u64 = 2;
    let descriptor = [0_u64; 2];
    // SAFETY: as for `invept`.
    unsafe { asm!("invvpid {}, [{}]", in(reg) ALL, in(reg) &descriptor, options(nostack)) };
}

/// The fields of the VMCS that is current on this CPU.
#[derive(Debug)]
pub struct Current(PhantomData<*const ()>);

impl Current {
    /// # Safety
    /// As long as the value lives, this CPU is in VMX root operation with a current VMCS, and nobody else
    /// reads or writes its fields.
    pub const unsafe fn assume() -> Self {
        Self(PhantomData)
    }
}

impl Fields for Current {
    fn read_raw(&self, encoding: u32) -> u64 {
        let mut value = 0_u64;
        // SAFETY: there is a current VMCS (`assume`), and reading a field has no effect. If the processor has no such
        // field, the register keeps its 0.
        unsafe {
            asm!("vmread {}, {}", inout(reg) value, in(reg) u64::from(encoding), options(nomem, nostack));
        }
        value
    }

    fn write_raw(&mut self, encoding: u32, value: u64) {
        // SAFETY: there is a current VMCS (`assume`); a field takes effect only at the next entry, whose
        // safety is `enter`'s affair. A field that the processor does not have is not written.
        unsafe {
            asm!("vmwrite {}, {}", in(reg) u64::from(encoding), in(reg) value, options(nostack));
        }
    }
}
