//! Bits of control registers that a guest sees otherwise than the processor has them.
//!
//! SVM has no read shadows as VT-x does (SDM 3C 25.6.6). So as long as a guest believes in a bit that is not so, its reads of
//! that register are intercepted and answered by software: those of CR0 include SMSW (APM 2 15.9). So are its writes to CR0,
//! all of them: the selective intercept compares with what the processor has, and would not notice that the guest
//! takes back a bit which was never there. Guests are seldom in that state for long: they disable caches to change
//! memory types, and set MCE early.

/// The processor's caches stay on, whatever a guest does with CR0.NW and CR0.CD.
const CR0_CACHE: u64 = 1 << 29 | 1 << 30;
/// CR4.MCE is set while any guest runs: a machine check without it shuts the processor down, and it is the host's affair.
const CR4_MCE: u64 = 1 << 6;
/// Reads and writes in the vector of control-register intercepts (APM 2, appendix B).
const ALL_OF_CR0: u32 = 1 << 0 | 1 << 16;
const READS_CR4: u32 = 1 << 4;

/// What the guest has in those bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shadow {
    cr0: u64,
    cr4: u64,
}

impl Shadow {
    /// Notes the guest's CR0, and says what the processor gets.
    pub fn set_cr0(&mut self, value: u64) -> u64 {
        self.cr0 = value & CR0_CACHE;
        value & !CR0_CACHE
    }

    /// Notes the guest's CR4, and says what the processor gets.
    pub fn set_cr4(&mut self, value: u64) -> u64 {
        self.cr4 = value & CR4_MCE;
        value | CR4_MCE
    }

    /// The guest's CR0, where the processor has this.
    pub fn cr0(&self, real: u64) -> u64 {
        real & !CR0_CACHE | self.cr0
    }

    /// The guest's CR4, where the processor has this.
    pub fn cr4(&self, real: u64) -> u64 {
        real & !CR4_MCE | self.cr4
    }

    /// The intercepts without which the guest would see what is so.
    pub fn intercepts(&self) -> u32 {
        let hidden = |differs: bool, intercept| if differs { intercept } else { 0 };
        hidden(self.cr0 != 0, ALL_OF_CR0) | hidden(self.cr4 != CR4_MCE, READS_CR4)
    }
}
