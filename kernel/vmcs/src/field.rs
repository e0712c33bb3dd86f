//! Fields of a VMCS: encodings with the width in the type (SDM 3D appendix B).
//!
//! Bits 14:13 of an encoding are the width, and bits 11:10 the kind (control, exit information,
//! guest, host). Each constant's type must agree with the former, else it does not compile.

use core::marker::PhantomData;

/// A width of fields.
pub trait Width: Copy {
    /// Bits 14:13 of the encoding (SDM 3C table 25-21).
    const CODE: u32;
    /// What a field of this width holds.
    type Value: Copy;
    /// The value in a register.
    fn widen(value: Self::Value) -> u64;
    /// The value of a register, whose upper bits a shorter field does not have.
    fn narrow(register: u64) -> Self::Value;
}

macro_rules! width {
    ($name:ident, $value:ty, $code:literal, $what:literal) => {
        #[doc = $what]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {}
        impl Width for $name {
            const CODE: u32 = $code;
            type Value = $value;
            fn widen(value: $value) -> u64 {
                value as u64
            }
            fn narrow(register: u64) -> $value {
                register as $value
            }
        }
    };
}
width!(Bits16, u16, 0, "16 bits.");
width!(Bits64, u64, 1, "64 bits.");
width!(Bits32, u32, 2, "32 bits.");
width!(Natural, u64, 3, "As wide as a register: 64 bits here.");

/// A field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<W> {
    encoding: u32,
    name: &'static str,
    width: PhantomData<W>,
}

impl<W: Width> Field<W> {
    const fn new(encoding: u32, name: &'static str) -> Self {
        assert!(
            encoding >> 13 & 3 == W::CODE,
            "the encoding is of another width"
        );
        assert!(
            encoding & 1 == 0,
            "the high half of a 64-bit field is not a field of its own here"
        );
        Self {
            encoding,
            name,
            width: PhantomData,
        }
    }
    /// The number that VMREAD and VMWRITE take.
    #[must_use]
    pub const fn encoding(self) -> u32 {
        self.encoding
    }
    /// Its name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }
}

/// Something with fields: the current VMCS of a processor, or a stand-in.
pub trait Fields {
    /// VMREAD; 0 for a field that does not exist.
    fn read_raw(&self, encoding: u32) -> u64;
    /// VMWRITE; nothing for a field that does not exist.
    fn write_raw(&mut self, encoding: u32, value: u64);

    /// Reads a field.
    fn read<W: Width>(&self, field: Field<W>) -> W::Value {
        W::narrow(self.read_raw(field.encoding))
    }
    /// Writes a field.
    fn write<W: Width>(&mut self, field: Field<W>, value: W::Value) {
        self.write_raw(field.encoding, W::widen(value));
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $width:ident = $encoding:literal, $text:literal;)*) => {
        $($(#[$doc])* #[doc = $text] pub const $name: Field<$width> = Field::new($encoding, $text);)*
        /// Every field of this list: encoding, width in bits, name.
        pub const ALL: &[(u32, &str)] = &[$(($encoding, $text)),*];
    };
}

fields! {
    // 16-bit control fields (table B-1)
    VPID: Bits16 = 0x0000, "virtual-processor identifier";
    // 16-bit guest-state fields (table B-2)
    GUEST_ES_SELECTOR: Bits16 = 0x0800, "guest ES selector";
    GUEST_CS_SELECTOR: Bits16 = 0x0802, "guest CS selector";
    GUEST_SS_SELECTOR: Bits16 = 0x0804, "guest SS selector";
    GUEST_DS_SELECTOR: Bits16 = 0x0806, "guest DS selector";
    GUEST_FS_SELECTOR: Bits16 = 0x0808, "guest FS selector";
    GUEST_GS_SELECTOR: Bits16 = 0x080a, "guest GS selector";
    GUEST_LDTR_SELECTOR: Bits16 = 0x080c, "guest LDTR selector";
    GUEST_TR_SELECTOR: Bits16 = 0x080e, "guest TR selector";
    PML_INDEX: Bits16 = 0x0812, "PML index";
    // 16-bit host-state fields (table B-3)
    HOST_ES_SELECTOR: Bits16 = 0x0c00, "host ES selector";
    HOST_CS_SELECTOR: Bits16 = 0x0c02, "host CS selector";
    HOST_SS_SELECTOR: Bits16 = 0x0c04, "host SS selector";
    HOST_DS_SELECTOR: Bits16 = 0x0c06, "host DS selector";
    HOST_FS_SELECTOR: Bits16 = 0x0c08, "host FS selector";
    HOST_GS_SELECTOR: Bits16 = 0x0c0a, "host GS selector";
    HOST_TR_SELECTOR: Bits16 = 0x0c0c, "host TR selector";
    // 64-bit control fields (table B-4)
    IO_BITMAP_A: Bits64 = 0x2000, "address of I/O bitmap A";
    IO_BITMAP_B: Bits64 = 0x2002, "address of I/O bitmap B";
    MSR_BITMAP: Bits64 = 0x2004, "address of the MSR bitmap";
    EXIT_MSR_STORE: Bits64 = 0x2006, "VM-exit MSR-store address";
    EXIT_MSR_LOAD: Bits64 = 0x2008, "VM-exit MSR-load address";
    ENTRY_MSR_LOAD: Bits64 = 0x200a, "VM-entry MSR-load address";
    PML_ADDRESS: Bits64 = 0x200e, "PML address";
    TSC_OFFSET: Bits64 = 0x2010, "TSC offset";
    EPT_POINTER: Bits64 = 0x201a, "EPT pointer";
    XSS_EXIT_BITMAP: Bits64 = 0x202c, "XSS-exiting bitmap";
    // 64-bit read-only data (table B-5)
    GUEST_PHYSICAL_ADDRESS: Bits64 = 0x2400, "guest-physical address";
    // 64-bit guest-state fields (table B-6)
    GUEST_LINK: Bits64 = 0x2800, "VMCS link pointer";
    GUEST_DEBUGCTL: Bits64 = 0x2802, "guest IA32_DEBUGCTL";
    GUEST_PAT: Bits64 = 0x2804, "guest IA32_PAT";
    GUEST_EFER: Bits64 = 0x2806, "guest IA32_EFER";
    GUEST_PDPTE0: Bits64 = 0x280a, "guest PDPTE0";
    GUEST_PDPTE1: Bits64 = 0x280c, "guest PDPTE1";
    GUEST_PDPTE2: Bits64 = 0x280e, "guest PDPTE2";
    GUEST_PDPTE3: Bits64 = 0x2810, "guest PDPTE3";
    // 64-bit host-state fields (table B-7)
    HOST_PAT: Bits64 = 0x2c00, "host IA32_PAT";
    HOST_EFER: Bits64 = 0x2c02, "host IA32_EFER";
    // 32-bit control fields (table B-8)
    PIN_CONTROLS: Bits32 = 0x4000, "pin-based controls";
    PRIMARY_CONTROLS: Bits32 = 0x4002, "primary processor-based controls";
    EXCEPTION_BITMAP: Bits32 = 0x4004, "exception bitmap";
    PAGE_FAULT_MASK: Bits32 = 0x4006, "page-fault error-code mask";
    PAGE_FAULT_MATCH: Bits32 = 0x4008, "page-fault error-code match";
    CR3_TARGET_COUNT: Bits32 = 0x400a, "CR3-target count";
    EXIT_CONTROLS: Bits32 = 0x400c, "VM-exit controls";
    EXIT_MSR_STORE_COUNT: Bits32 = 0x400e, "VM-exit MSR-store count";
    EXIT_MSR_LOAD_COUNT: Bits32 = 0x4010, "VM-exit MSR-load count";
    ENTRY_CONTROLS: Bits32 = 0x4012, "VM-entry controls";
    ENTRY_MSR_LOAD_COUNT: Bits32 = 0x4014, "VM-entry MSR-load count";
    ENTRY_EVENT: Bits32 = 0x4016, "VM-entry interruption information";
    ENTRY_EVENT_ERROR: Bits32 = 0x4018, "VM-entry exception error code";
    ENTRY_INSTRUCTION_LENGTH: Bits32 = 0x401a, "VM-entry instruction length";
    SECONDARY_CONTROLS: Bits32 = 0x401e, "secondary processor-based controls";
    PLE_GAP: Bits32 = 0x4020, "PLE gap";
    PLE_WINDOW: Bits32 = 0x4022, "PLE window";
    // 32-bit read-only data (table B-9)
    INSTRUCTION_ERROR: Bits32 = 0x4400, "VM-instruction error";
    EXIT_REASON: Bits32 = 0x4402, "exit reason";
    EXIT_EVENT: Bits32 = 0x4404, "VM-exit interruption information";
    EXIT_EVENT_ERROR: Bits32 = 0x4406, "VM-exit interruption error code";
    VECTORING_EVENT: Bits32 = 0x4408, "IDT-vectoring information";
    VECTORING_ERROR: Bits32 = 0x440a, "IDT-vectoring error code";
    INSTRUCTION_LENGTH: Bits32 = 0x440c, "VM-exit instruction length";
    // 32-bit guest-state fields (table B-10)
    GUEST_ES_LIMIT: Bits32 = 0x4800, "guest ES limit";
    GUEST_CS_LIMIT: Bits32 = 0x4802, "guest CS limit";
    GUEST_SS_LIMIT: Bits32 = 0x4804, "guest SS limit";
    GUEST_DS_LIMIT: Bits32 = 0x4806, "guest DS limit";
    GUEST_FS_LIMIT: Bits32 = 0x4808, "guest FS limit";
    GUEST_GS_LIMIT: Bits32 = 0x480a, "guest GS limit";
    GUEST_LDTR_LIMIT: Bits32 = 0x480c, "guest LDTR limit";
    GUEST_TR_LIMIT: Bits32 = 0x480e, "guest TR limit";
    GUEST_GDTR_LIMIT: Bits32 = 0x4810, "guest GDTR limit";
    GUEST_IDTR_LIMIT: Bits32 = 0x4812, "guest IDTR limit";
    GUEST_ES_RIGHTS: Bits32 = 0x4814, "guest ES access rights";
    GUEST_CS_RIGHTS: Bits32 = 0x4816, "guest CS access rights";
    GUEST_SS_RIGHTS: Bits32 = 0x4818, "guest SS access rights";
    GUEST_DS_RIGHTS: Bits32 = 0x481a, "guest DS access rights";
    GUEST_FS_RIGHTS: Bits32 = 0x481c, "guest FS access rights";
    GUEST_GS_RIGHTS: Bits32 = 0x481e, "guest GS access rights";
    GUEST_LDTR_RIGHTS: Bits32 = 0x4820, "guest LDTR access rights";
    GUEST_TR_RIGHTS: Bits32 = 0x4822, "guest TR access rights";
    GUEST_INTERRUPTIBILITY: Bits32 = 0x4824, "guest interruptibility state";
    GUEST_ACTIVITY: Bits32 = 0x4826, "guest activity state";
    GUEST_SYSENTER_CS: Bits32 = 0x482a, "guest IA32_SYSENTER_CS";
    PREEMPTION_TIMER: Bits32 = 0x482e, "VMX-preemption timer value";
    // 32-bit host-state field (table B-11)
    HOST_SYSENTER_CS: Bits32 = 0x4c00, "host IA32_SYSENTER_CS";
    // Natural-width control fields (table B-12)
    CR0_MASK: Natural = 0x6000, "CR0 guest/host mask";
    CR4_MASK: Natural = 0x6002, "CR4 guest/host mask";
    CR0_SHADOW: Natural = 0x6004, "CR0 read shadow";
    CR4_SHADOW: Natural = 0x6006, "CR4 read shadow";
    // Natural-width read-only data (table B-13)
    EXIT_QUALIFICATION: Natural = 0x6400, "exit qualification";
    GUEST_LINEAR_ADDRESS: Natural = 0x640a, "guest-linear address";
    // Natural-width guest-state fields (table B-14)
    GUEST_CR0: Natural = 0x6800, "guest CR0";
    GUEST_CR3: Natural = 0x6802, "guest CR3";
    GUEST_CR4: Natural = 0x6804, "guest CR4";
    GUEST_ES_BASE: Natural = 0x6806, "guest ES base";
    GUEST_CS_BASE: Natural = 0x6808, "guest CS base";
    GUEST_SS_BASE: Natural = 0x680a, "guest SS base";
    GUEST_DS_BASE: Natural = 0x680c, "guest DS base";
    GUEST_FS_BASE: Natural = 0x680e, "guest FS base";
    GUEST_GS_BASE: Natural = 0x6810, "guest GS base";
    GUEST_LDTR_BASE: Natural = 0x6812, "guest LDTR base";
    GUEST_TR_BASE: Natural = 0x6814, "guest TR base";
    GUEST_GDTR_BASE: Natural = 0x6816, "guest GDTR base";
    GUEST_IDTR_BASE: Natural = 0x6818, "guest IDTR base";
    GUEST_DR7: Natural = 0x681a, "guest DR7";
    GUEST_RSP: Natural = 0x681c, "guest RSP";
    GUEST_RIP: Natural = 0x681e, "guest RIP";
    GUEST_RFLAGS: Natural = 0x6820, "guest RFLAGS";
    GUEST_PENDING_DEBUG: Natural = 0x6822, "guest pending debug exceptions";
    GUEST_SYSENTER_ESP: Natural = 0x6824, "guest IA32_SYSENTER_ESP";
    GUEST_SYSENTER_EIP: Natural = 0x6826, "guest IA32_SYSENTER_EIP";
    // Natural-width host-state fields (table B-15)
    HOST_CR0: Natural = 0x6c00, "host CR0";
    HOST_CR3: Natural = 0x6c02, "host CR3";
    HOST_CR4: Natural = 0x6c04, "host CR4";
    HOST_FS_BASE: Natural = 0x6c06, "host FS base";
    HOST_GS_BASE: Natural = 0x6c08, "host GS base";
    HOST_TR_BASE: Natural = 0x6c0a, "host TR base";
    HOST_GDTR_BASE: Natural = 0x6c0c, "host GDTR base";
    HOST_IDTR_BASE: Natural = 0x6c0e, "host IDTR base";
    HOST_SYSENTER_ESP: Natural = 0x6c10, "host IA32_SYSENTER_ESP";
    HOST_SYSENTER_EIP: Natural = 0x6c12, "host IA32_SYSENTER_EIP";
    HOST_RSP: Natural = 0x6c14, "host RSP";
    HOST_RIP: Natural = 0x6c16, "host RIP";
}
