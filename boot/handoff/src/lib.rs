//! The one ABI between `boot` and `kernel/hypervisor`.
//!
//! The loader leaves boot services, switches to page tables of its own and calls the kernel's
//! entry point with the host-physical address of a [`BootInfo`] in `rdi` (System V). Everything
//! that [`BootInfo`] points to is given as a host-physical address and lies in memory of kind
//! [`MemoryKind::Handoff`], so the kernel reads it through the direct map and decides itself when
//! it may be reused.
//!
//! State at the kernel's entry: long mode with four-level paging, interrupts off, `EFER.NXE` and
//! `CR0.WP` set, `rsp` just below [`LOADER_STACK_TOP`], GDT and IDT still firmware's and no longer
//! mapped (load your own before the first segment load, exception or NMI), CR3 on loader tables
//! ([`MemoryKind::Handoff`]) that map
//! * the kernel image at [`KERNEL_BASE`], each segment with its own rights (never W and X),
//! * all of physical memory and device space below [`BootInfo::direct_map_end`] at
//!   [`DIRECT_MAP_BASE`], writable, not executable; and the framebuffer there as well, wherever it
//!   lies. The page tables ask for write-back everywhere: the MTRRs decide what devices get;
//! * the loader's stack, with an unmapped guard page below it,
//! * nothing else but the identity-mapped pages of the jump itself.
//!
//! Before it believes a word the kernel calls [`BootInfo::check`].
#![no_std]
#![forbid(unsafe_code)]

use core::fmt;

/// Virtual address of the kernel image's first byte (ELF address 0).
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Virtual address of host-physical address 0 in the direct map.
pub const DIRECT_MAP_BASE: u64 = 0xffff_8000_0000_0000;
/// First address above the stack that the kernel is entered on; the page below
/// `LOADER_STACK_TOP - LOADER_STACK_BYTES` is not mapped.
pub const LOADER_STACK_TOP: u64 = KERNEL_BASE - 0x10_0000;
/// Bytes of that stack.
pub const LOADER_STACK_BYTES: u64 = 128 * 1024;
/// First word of [`BootInfo`]: "PERIGEE\0".
pub const MAGIC: u64 = u64::from_le_bytes(*b"PERIGEE\0");
/// Changes whenever the layout or the meaning of anything here changes.
pub const VERSION: u32 = 1;

/// What the loader hands to the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// `size_of::<BootInfo>()` as the loader knew it.
    pub size_bytes: u32,
    /// Host-physical address of an array of [`MemoryRegion`], ascending, not overlapping.
    pub memory_map: u64,
    /// Entries in it.
    pub memory_map_len: u64,
    /// Host-physical address of an array of [`Module`].
    pub modules: u64,
    /// Entries in it.
    pub modules_len: u64,
    /// Host-physical address of the ACPI RSDP, 0 when firmware publishes none.
    pub rsdp: u64,
    /// Where the kernel image lies.
    pub kernel_phys: u64,
    /// Bytes of the kernel image in memory, a multiple of 4096.
    pub kernel_bytes: u64,
    /// The direct map covers host-physical addresses below this: at least 4 GiB, a multiple of
    /// 1 GiB, above every byte of memory that is not reserved.
    pub direct_map_end: u64,
    /// Framebuffer; `base == 0` when there is none.
    pub framebuffer: Framebuffer,
    /// TSC when the loader started.
    pub tsc_loader_start: u64,
    /// TSC just before the jump to the kernel.
    pub tsc_handoff: u64,
    /// Seconds since 1970-01-01 UTC at the hand-off by firmware's clock, 0 if it has none.
    pub unix_time_s: u64,
}

/// A linear framebuffer of 32 bits a pixel (UEFI 2.10, 12.9).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Framebuffer {
    /// Host-physical address of the first pixel, 0 when there is no framebuffer.
    pub base: u64,
    /// Bytes.
    pub bytes: u64,
    /// Visible pixels a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Pixels from one line to the next.
    pub stride: u32,
    /// [`Framebuffer::BGRX`] or [`Framebuffer::RGBX`].
    pub format: u32,
}

impl Framebuffer {
    /// Format: blue in the low byte.
    pub const BGRX: u32 = 0;
    /// Format: red in the low byte.
    pub const RGBX: u32 = 1;
}

/// Why a [`BootInfo`] cannot be used. Its `Display` is a sentence for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootInfoError {
    /// The first word is not [`MAGIC`].
    Magic(u64),
    /// Loader and kernel speak different versions.
    Version(u32),
    /// Same version, but another layout.
    Size(u32),
    /// The field named here holds a value that the contract excludes.
    Field(&'static str, u64),
}

impl fmt::Display for BootInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => write!(
                f,
                "boot information starts with {found:#x} instead of {MAGIC:#x}: the kernel was not started by \
                 Perigee's loader"
            ),
            Self::Version(found) => write!(
                f,
                "the loader speaks version {found} of the hand-off, this kernel version {VERSION}: install loader \
                 and kernel.elf of the same build"
            ),
            Self::Size(found) => write!(
                f,
                "the loader's boot information has {found} bytes, this kernel's {}: install loader and kernel.elf \
                 of the same build",
                size_of::<BootInfo>()
            ),
            Self::Field(field, value) => {
                write!(
                    f,
                    "boot information is damaged: {field} cannot be {value:#x}"
                )
            }
        }
    }
}

impl core::error::Error for BootInfoError {}

impl BootInfo {
    /// Whether this is boot information of this version, complete and within its own bounds.
    ///
    /// # Errors
    /// The first thing that is wrong. Nothing in the structure may be used then.
    pub fn check(&self) -> Result<(), BootInfoError> {
        if self.magic != MAGIC {
            return Err(BootInfoError::Magic(self.magic));
        }
        if self.version != VERSION {
            return Err(BootInfoError::Version(self.version));
        }
        if usize::try_from(self.size_bytes) != Ok(size_of::<Self>()) {
            return Err(BootInfoError::Size(self.size_bytes));
        }
        let end = self.direct_map_end;
        if end < FOUR_GIB || !end.is_multiple_of(ONE_GIB) || end > KERNEL_BASE - DIRECT_MAP_BASE {
            return Err(BootInfoError::Field("direct_map_end", end));
        }
        let reachable = |base: u64, count: u64, unit: usize| {
            count
                .checked_mul(unit as u64)
                .and_then(|bytes| base.checked_add(bytes))
                .is_some_and(|last| base != 0 && last <= end)
        };
        if self.memory_map_len == 0
            || !reachable(
                self.memory_map,
                self.memory_map_len,
                size_of::<MemoryRegion>(),
            )
        {
            return Err(BootInfoError::Field("memory_map", self.memory_map));
        }
        if self.modules_len != 0 && !reachable(self.modules, self.modules_len, size_of::<Module>())
        {
            return Err(BootInfoError::Field("modules", self.modules));
        }
        let aligned =
            self.kernel_phys.is_multiple_of(4096) && self.kernel_bytes.is_multiple_of(4096);
        if !aligned || self.kernel_bytes == 0 || !reachable(self.kernel_phys, self.kernel_bytes, 1)
        {
            return Err(BootInfoError::Field("kernel_phys", self.kernel_phys));
        }
        Ok(())
    }
}

const ONE_GIB: u64 = 1 << 30;
const FOUR_GIB: u64 = 4 << 30;

/// One range of host-physical memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// First byte, a multiple of 4096.
    pub base: u64,
    /// Bytes, a multiple of 4096.
    pub bytes: u64,
    /// A [`MemoryKind`] as its number (a number, so that a damaged one is no undefined behaviour).
    pub kind: u32,
    /// UEFI memory type this came from (UEFI 2.10, 7.2.1), for the log.
    pub uefi_type: u32,
    /// UEFI attribute bits.
    pub attributes: u64,
}

/// What a range of memory may be used for.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Free for any use from the first instruction of the kernel.
    Usable = 1,
    /// The loader's code, stack, page tables, and what [`BootInfo`] points to: free once the kernel runs
    /// on its own tables and stacks and has copied what it keeps.
    Handoff = 2,
    /// The kernel image.
    Kernel = 3,
    /// Modules: free when the kernel has consumed them.
    Module = 4,
    /// ACPI tables; free after they have been copied.
    AcpiReclaim = 5,
    /// ACPI NVS: never touched.
    AcpiNvs = 6,
    /// Runtime services code and data: kept as it is.
    Runtime = 7,
    /// Memory-mapped devices.
    Mmio = 8,
    /// Reserved, unusable, unaccepted, persistent, special-purpose or unknown: never touched.
    Reserved = 9,
}

impl MemoryKind {
    /// Every kind, for counting by kind.
    pub const ALL: [Self; 9] = [
        Self::Usable,
        Self::Handoff,
        Self::Kernel,
        Self::Module,
        Self::AcpiReclaim,
        Self::AcpiNvs,
        Self::Runtime,
        Self::Mmio,
        Self::Reserved,
    ];

    /// The kind with this number, or `None` if there is none.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Usable,
            2 => Self::Handoff,
            3 => Self::Kernel,
            4 => Self::Module,
            5 => Self::AcpiReclaim,
            6 => Self::AcpiNvs,
            7 => Self::Runtime,
            8 => Self::Mmio,
            9 => Self::Reserved,
            _ => return None,
        })
    }
}

impl MemoryRegion {
    /// The first byte after the region.
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(self.bytes)
    }
    /// What the region may be used for; a number that no kind has reads as [`MemoryKind::Reserved`].
    pub const fn kind(&self) -> MemoryKind {
        match MemoryKind::from_number(self.kind) {
            Some(kind) => kind,
            None => MemoryKind::Reserved,
        }
    }
}

/// A file that the loader read from the boot medium.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Path on the medium below `/perigee`, UTF-8, padded with zeros ("perigee.toml", "acpi/srat.aml").
    pub name: [u8; 64],
    /// A [`ModuleKind`] as its number.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
    /// Host-physical address, a multiple of 4096.
    pub base: u64,
    /// Bytes of the file (the memory behind it is a multiple of 4096).
    pub bytes: u64,
}

impl Module {
    /// What the module is, or `None` for a number that no kind has.
    pub const fn kind(&self) -> Option<ModuleKind> {
        Some(match self.kind {
            1 => ModuleKind::Config,
            2 => ModuleKind::KernelElf,
            3 => ModuleKind::AcpiOverride,
            4 => ModuleKind::GuestImage,
            _ => return None,
        })
    }

    /// The name without its padding; empty when it is not UTF-8.
    pub fn name(&self) -> &str {
        let end = self
            .name
            .iter()
            .position(|b| *b == 0)
            .unwrap_or(self.name.len());
        self.name
            .get(..end)
            .and_then(|b| core::str::from_utf8(b).ok())
            .unwrap_or("")
    }
}

/// What a module is; the loader decides it by the file's place on the medium.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// `perigee.toml`.
    Config = 1,
    /// The kernel's own ELF file, for symbols in backtraces.
    KernelElf = 2,
    /// An ACPI table that replaces firmware's of the same signature, or is added.
    AcpiOverride = 3,
    /// A guest's kernel or initrd, named by the configuration.
    GuestImage = 4,
}

#[cfg(test)]
mod tests;
