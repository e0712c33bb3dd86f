//! The areas of a VMCS as plain values, and their way into fields and out of them.

use crate::field::*;

/// A segment register (SDM 3C 25.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Access rights; bit 16 makes the register unusable.
    pub rights: u32,
}

impl Segment {
    /// Access rights: nothing usable is loaded.
    pub const UNUSABLE: u32 = 1 << 16;

    /// Whether something usable is loaded.
    #[must_use]
    pub const fn usable(self) -> bool {
        self.rights & Self::UNUSABLE == 0
    }
    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(self) -> u8 {
        (self.rights >> 5 & 3) as u8
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Base address.
    pub base: u64,
    /// Limit in bytes; only 16 bits may be used.
    pub limit: u32,
}

/// The four fields of a segment register.
#[derive(Clone, Copy, Debug)]
pub struct SegmentFields {
    selector: Field<Bits16>,
    base: Field<Natural>,
    limit: Field<Bits32>,
    /// Access rights.
    pub rights: Field<Bits32>,
}

macro_rules! segment_fields {
    ($($name:ident: $selector:ident, $base:ident, $limit:ident, $rights:ident;)*) => {
        impl SegmentFields {
            $(#[doc = concat!("Those of ", stringify!($name), ".")]
            pub const $name: Self =
                Self { selector: $selector, base: $base, limit: $limit, rights: $rights };)*
        }
    };
}
segment_fields! {
    ES: GUEST_ES_SELECTOR, GUEST_ES_BASE, GUEST_ES_LIMIT, GUEST_ES_RIGHTS;
    CS: GUEST_CS_SELECTOR, GUEST_CS_BASE, GUEST_CS_LIMIT, GUEST_CS_RIGHTS;
    SS: GUEST_SS_SELECTOR, GUEST_SS_BASE, GUEST_SS_LIMIT, GUEST_SS_RIGHTS;
    DS: GUEST_DS_SELECTOR, GUEST_DS_BASE, GUEST_DS_LIMIT, GUEST_DS_RIGHTS;
    FS: GUEST_FS_SELECTOR, GUEST_FS_BASE, GUEST_FS_LIMIT, GUEST_FS_RIGHTS;
    GS: GUEST_GS_SELECTOR, GUEST_GS_BASE, GUEST_GS_LIMIT, GUEST_GS_RIGHTS;
    LDTR: GUEST_LDTR_SELECTOR, GUEST_LDTR_BASE, GUEST_LDTR_LIMIT, GUEST_LDTR_RIGHTS;
    TR: GUEST_TR_SELECTOR, GUEST_TR_BASE, GUEST_TR_LIMIT, GUEST_TR_RIGHTS;
}

impl SegmentFields {
    /// Reads the register.
    #[must_use]
    pub fn read(self, vmcs: &impl Fields) -> Segment {
        Segment {
            selector: vmcs.read(self.selector),
            base: vmcs.read(self.base),
            limit: vmcs.read(self.limit),
            rights: vmcs.read(self.rights),
        }
    }
    fn write(self, vmcs: &mut impl Fields, segment: Segment) {
        vmcs.write(self.selector, segment.selector);
        vmcs.write(self.base, segment.base);
        vmcs.write(self.limit, segment.limit);
        vmcs.write(self.rights, segment.rights);
    }
}

/// Declares an area: its struct, and one list from which both directions follow.
macro_rules! area {
    (
        $(#[$doc:meta])* $area:ident {
            $($(#[$field_doc:meta])* $name:ident: $type:ty = $field:ident,)*
        }
        $(segments { $($(#[$segment_doc:meta])* $segment:ident = $fields:ident,)* }
        tables { $($(#[$table_doc:meta])* $table:ident = $base:ident / $limit:ident,)* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $area {
            $($(#[$field_doc])* pub $name: $type,)*
            $($($(#[$segment_doc])* pub $segment: Segment,)*
            $($(#[$table_doc])* pub $table: Table,)*)?
        }
        impl $area {
            /// Reads every field.
            #[must_use]
            pub fn read(vmcs: &impl Fields) -> Self {
                Self {
                    $($name: vmcs.read($field),)*
                    $($($segment: SegmentFields::$fields.read(vmcs),)*
                    $($table: Table { base: vmcs.read($base), limit: vmcs.read($limit) },)*)?
                }
            }
            /// Writes every field.
            pub fn write(&self, vmcs: &mut impl Fields) {
                $(vmcs.write($field, self.$name);)*
                $($(SegmentFields::$fields.write(vmcs, self.$segment);)*
                $(vmcs.write($base, self.$table.base);
                vmcs.write($limit, self.$table.limit);)*)?
            }
        }
    };
}

area! {
    /// The guest-state area (SDM 3C 25.4).
    Guest {
        /// CR0.
        cr0: u64 = GUEST_CR0,
        /// CR3.
        cr3: u64 = GUEST_CR3,
        /// CR4.
        cr4: u64 = GUEST_CR4,
        /// DR7.
        dr7: u64 = GUEST_DR7,
        /// RSP.
        rsp: u64 = GUEST_RSP,
        /// RIP.
        rip: u64 = GUEST_RIP,
        /// RFLAGS.
        rflags: u64 = GUEST_RFLAGS,
        /// IA32_DEBUGCTL.
        debugctl: u64 = GUEST_DEBUGCTL,
        /// IA32_PAT.
        pat: u64 = GUEST_PAT,
        /// IA32_EFER.
        efer: u64 = GUEST_EFER,
        /// IA32_SYSENTER_CS.
        sysenter_cs: u32 = GUEST_SYSENTER_CS,
        /// IA32_SYSENTER_ESP.
        sysenter_esp: u64 = GUEST_SYSENTER_ESP,
        /// IA32_SYSENTER_EIP.
        sysenter_eip: u64 = GUEST_SYSENTER_EIP,
        /// Interruptibility state.
        interruptibility: u32 = GUEST_INTERRUPTIBILITY,
        /// Activity state.
        activity: u32 = GUEST_ACTIVITY,
        /// Pending debug exceptions.
        pending_debug: u64 = GUEST_PENDING_DEBUG,
        /// VMCS link pointer.
        link: u64 = GUEST_LINK,
        /// PDPTE 0, used with PAE paging only.
        pdpte0: u64 = GUEST_PDPTE0,
        /// PDPTE 1.
        pdpte1: u64 = GUEST_PDPTE1,
        /// PDPTE 2.
        pdpte2: u64 = GUEST_PDPTE2,
        /// PDPTE 3.
        pdpte3: u64 = GUEST_PDPTE3,
    }
    segments {
        /// ES.
        es = ES,
        /// CS.
        cs = CS,
        /// SS.
        ss = SS,
        /// DS.
        ds = DS,
        /// FS.
        fs = FS,
        /// GS.
        gs = GS,
        /// LDTR.
        ldtr = LDTR,
        /// TR.
        tr = TR,
    }
    tables {
        /// GDTR.
        gdtr = GUEST_GDTR_BASE / GUEST_GDTR_LIMIT,
        /// IDTR.
        idtr = GUEST_IDTR_BASE / GUEST_IDTR_LIMIT,
    }
}

impl Guest {
    /// Interruptibility: blocking by STI (SDM 3C table 25-3).
    pub const BLOCKING_BY_STI: u32 = 1 << 0;
    /// Interruptibility: blocking by MOV SS.
    pub const BLOCKING_BY_MOV_SS: u32 = 1 << 1;
    /// Interruptibility: blocking by NMI.
    pub const BLOCKING_BY_NMI: u32 = 1 << 3;
    /// Pending debug exceptions: a single step (SDM 3C table 25-4).
    pub const PENDING_STEP: u64 = 1 << 14;
    /// The VMCS link pointer that stands for none.
    pub const NO_LINK: u64 = u64::MAX;

    /// The four PDPTEs.
    #[must_use]
    pub const fn pdptes(&self) -> [u64; 4] {
        [self.pdpte0, self.pdpte1, self.pdpte2, self.pdpte3]
    }
    /// Sets the four PDPTEs.
    pub const fn set_pdptes(&mut self, pdptes: [u64; 4]) {
        [self.pdpte0, self.pdpte1, self.pdpte2, self.pdpte3] = pdptes;
    }
}

area! {
    /// The host-state area (SDM 3C 25.5).
    Host {
        /// CR0.
        cr0: u64 = HOST_CR0,
        /// CR3.
        cr3: u64 = HOST_CR3,
        /// CR4.
        cr4: u64 = HOST_CR4,
        /// RSP.
        rsp: u64 = HOST_RSP,
        /// RIP.
        rip: u64 = HOST_RIP,
        /// ES selector.
        es: u16 = HOST_ES_SELECTOR,
        /// CS selector.
        cs: u16 = HOST_CS_SELECTOR,
        /// SS selector.
        ss: u16 = HOST_SS_SELECTOR,
        /// DS selector.
        ds: u16 = HOST_DS_SELECTOR,
        /// FS selector.
        fs: u16 = HOST_FS_SELECTOR,
        /// GS selector.
        gs: u16 = HOST_GS_SELECTOR,
        /// TR selector.
        tr: u16 = HOST_TR_SELECTOR,
        /// FS base.
        fs_base: u64 = HOST_FS_BASE,
        /// GS base.
        gs_base: u64 = HOST_GS_BASE,
        /// TR base.
        tr_base: u64 = HOST_TR_BASE,
        /// GDTR base.
        gdtr_base: u64 = HOST_GDTR_BASE,
        /// IDTR base.
        idtr_base: u64 = HOST_IDTR_BASE,
        /// IA32_SYSENTER_CS.
        sysenter_cs: u32 = HOST_SYSENTER_CS,
        /// IA32_SYSENTER_ESP.
        sysenter_esp: u64 = HOST_SYSENTER_ESP,
        /// IA32_SYSENTER_EIP.
        sysenter_eip: u64 = HOST_SYSENTER_EIP,
        /// IA32_PAT.
        pat: u64 = HOST_PAT,
        /// IA32_EFER.
        efer: u64 = HOST_EFER,
    }
}

area! {
    /// The control fields that Perigee uses (SDM 3C 25.6 to 25.8).
    Controls {
        /// Pin-based controls.
        pin: u32 = PIN_CONTROLS,
        /// Primary processor-based controls.
        primary: u32 = PRIMARY_CONTROLS,
        /// Secondary processor-based controls.
        secondary: u32 = SECONDARY_CONTROLS,
        /// VM-exit controls.
        exit: u32 = EXIT_CONTROLS,
        /// VM-entry controls.
        entry: u32 = ENTRY_CONTROLS,
        /// Exceptions that exit.
        exceptions: u32 = EXCEPTION_BITMAP,
        /// Page-fault error-code mask.
        page_fault_mask: u32 = PAGE_FAULT_MASK,
        /// Page-fault error-code match.
        page_fault_match: u32 = PAGE_FAULT_MATCH,
        /// CR3-target count.
        cr3_targets: u32 = CR3_TARGET_COUNT,
        /// MSRs stored at exits.
        exit_msr_stores: u32 = EXIT_MSR_STORE_COUNT,
        /// MSRs loaded at exits.
        exit_msr_loads: u32 = EXIT_MSR_LOAD_COUNT,
        /// MSRs loaded at entries.
        entry_msr_loads: u32 = ENTRY_MSR_LOAD_COUNT,
        /// Where those that exits store go.
        exit_msr_store: u64 = EXIT_MSR_STORE,
        /// Where those that exits load are.
        exit_msr_load: u64 = EXIT_MSR_LOAD,
        /// Where those that entries load are.
        entry_msr_load: u64 = ENTRY_MSR_LOAD,
        /// I/O bitmap for ports 0 to 7FFFh.
        io_bitmap_a: u64 = IO_BITMAP_A,
        /// I/O bitmap for ports 8000h to FFFFh.
        io_bitmap_b: u64 = IO_BITMAP_B,
        /// MSR bitmaps.
        msr_bitmap: u64 = MSR_BITMAP,
        /// Where the log of written pages is.
        pml_address: u64 = PML_ADDRESS,
        /// Added to the TSC.
        tsc_offset: u64 = TSC_OFFSET,
        /// Root of the extended page tables and how to walk them.
        ept_pointer: u64 = EPT_POINTER,
        /// Tag of translations.
        vpid: u16 = VPID,
        /// Bits of CR0 that the host owns.
        cr0_mask: u64 = CR0_MASK,
        /// Bits of CR4 that the host owns.
        cr4_mask: u64 = CR4_MASK,
        /// What the guest reads in CR0's owned bits.
        cr0_shadow: u64 = CR0_SHADOW,
        /// What the guest reads in CR4's owned bits.
        cr4_shadow: u64 = CR4_SHADOW,
        /// Event to deliver.
        event: u32 = ENTRY_EVENT,
        /// Its error code.
        event_error: u32 = ENTRY_EVENT_ERROR,
        /// Length of the instruction that raised it.
        event_length: u32 = ENTRY_INSTRUCTION_LENGTH,
    }
}
