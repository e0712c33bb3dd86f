//! The setup header of a bzImage (boot.rst, "The Real-Mode Kernel Header").

use super::error::LinuxError;

/// Bytes of a sector, in which the setup code is counted.
const SECTOR: usize = 512;
/// The oldest protocol with a 64-bit entry point.
const OLDEST: u16 = 0x020C;
/// `loadflags`: the protected-mode kernel goes to 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: entry point of 64-bit code at 0x200 in the payload.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `xloadflags`: kernel, boot_params, command line and initrd may lie above 4 GiB.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;

/// Offsets of fields in the file, and in `boot_params`, where the header lies at the same place.
pub(super) mod field {
    pub const SETUP_SECTS: usize = 0x1F1;
    pub const SYSSIZE: usize = 0x1F4;
    pub const VID_MODE: usize = 0x1FA;
    pub const BOOT_FLAG: usize = 0x1FE;
    pub const JUMP_DISTANCE: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const KERNEL_VERSION: usize = 0x20E;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21C;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22C;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE_KERNEL: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    /// First byte after [`INIT_SIZE`]: the least header of protocol 2.12.
    pub const END_OF_2_12: usize = 0x264;
}

/// A bzImage whose setup header was checked.
#[derive(Clone, Copy)]
pub struct KernelImage<'a> {
    file: &'a [u8],
    /// The protected-mode kernel, which is all that is copied into the guest.
    pub payload: &'a [u8],
    /// Boot protocol, major version in the high byte.
    pub protocol: u16,
    /// Where the kernel likes to be.
    pub pref_address: u64,
    /// Alignment in bytes, a power of two, that a relocatable kernel needs.
    pub alignment: u64,
    /// Whether it runs elsewhere than at [`Self::pref_address`].
    pub relocatable: bool,
    /// Bytes of contiguous RAM from its first byte on that the kernel uses before it knows the memory map.
    pub init_size: u64,
    /// Highest address that an initrd byte may have, when it lies below 4 GiB.
    pub initrd_addr_max: u64,
    /// Whether the initrd may also lie above 4 GiB.
    pub above_4g: bool,
    /// Most bytes of command line, without the final zero.
    pub cmdline_size: u64,
}

impl<'a> KernelImage<'a> {
    /// Checks the setup header of the file `bytes`.
    ///
    /// # Errors
    /// [`LinuxError`] says what is wrong with the file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, LinuxError> {
        let has = bytes.len() as u64;
        let truncated = LinuxError::Truncated {
            needs: field::END_OF_2_12 as u64,
            has,
        };
        // A short file may be anything; only one with the signatures is a truncated kernel.
        let signed = u16_at(bytes, field::BOOT_FLAG) == Some(0xAA55)
            && bytes
                .get(field::MAGIC..)
                .is_some_and(|b| b.starts_with(b"HdrS"));
        if !signed {
            return Err(LinuxError::NotBzImage);
        }
        let version = u16_at(bytes, field::VERSION).ok_or(truncated.clone())?;
        if version < OLDEST {
            return Err(LinuxError::TooOld { version });
        }
        if bytes.len() < field::END_OF_2_12 {
            return Err(truncated);
        }
        let byte = |at| bytes.get(at).copied().unwrap_or(0);
        let word = |at| u32_at(bytes, at).unwrap_or(0);
        let xloadflags = u16_at(bytes, field::XLOADFLAGS).unwrap_or(0);
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(LinuxError::Not64Bit);
        }
        if byte(field::LOADFLAGS) & LOADED_HIGH == 0 {
            return Err(LinuxError::LowLoad);
        }

        // "If the value is 0, the real value is 4"; one more sector is the boot sector.
        let sectors = match byte(field::SETUP_SECTS) {
            0 => 4,
            n => usize::from(n),
        };
        let start = (sectors + 1) * SECTOR;
        let size = u64::from(word(field::SYSSIZE)) * 16;
        // The size is rounded up to 16 bytes; the 64-bit entry is at 0x200.
        let needs = start as u64 + size.saturating_sub(15).max(0x201);
        let payload = bytes
            .get(start..)
            .filter(|_| has >= needs)
            .ok_or(LinuxError::Truncated { needs, has })?;
        // What follows, a signature say, is not the kernel's.
        let payload = usize::try_from(size)
            .ok()
            .filter(|n| *n > 0x200)
            .and_then(|n| payload.get(..n))
            .unwrap_or(payload);

        let alignment = u64::from(word(field::KERNEL_ALIGNMENT));
        if !alignment.is_power_of_two() || alignment < 4096 {
            return Err(LinuxError::BadField {
                field: "kernel_alignment",
                value: alignment,
            });
        }
        let pref_address = u64_at(bytes, field::PREF_ADDRESS).unwrap_or(0);
        if !pref_address.is_multiple_of(4096) || pref_address < 1 << 20 {
            return Err(LinuxError::BadField {
                field: "pref_address",
                value: pref_address,
            });
        }
        let init_size = u64::from(word(field::INIT_SIZE));
        if init_size < payload.len() as u64 {
            return Err(LinuxError::BadField {
                field: "init_size",
                value: init_size,
            });
        }
        Ok(Self {
            file: bytes,
            payload,
            protocol: version,
            pref_address,
            alignment,
            relocatable: byte(field::RELOCATABLE_KERNEL) != 0,
            init_size,
            initrd_addr_max: u64::from(word(field::INITRD_ADDR_MAX)),
            above_4g: xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
            cmdline_size: u64::from(word(field::CMDLINE_SIZE)),
        })
    }

    /// The kernel's version string ("6.1.0-18-cloud-amd64 (debian-kernel@...) ..."), empty when it has none.
    #[must_use]
    pub fn version(&self) -> &'a str {
        let Some(at @ 1..) = u16_at(self.file, field::KERNEL_VERSION) else {
            return "";
        };
        let text = self.file.get(usize::from(at) + 0x200..).unwrap_or(&[]);
        let end = text.iter().take(256).position(|b| *b == 0).unwrap_or(0);
        text.get(..end)
            .and_then(|t| core::str::from_utf8(t).ok())
            .unwrap_or("")
    }

    /// The setup header, from `setup_sects` to its end as the jump before it tells: what `boot_params`
    /// takes over.
    pub(super) fn setup_header(&self) -> &'a [u8] {
        let end =
            field::MAGIC + usize::from(self.file.get(field::JUMP_DISTANCE).copied().unwrap_or(0));
        // The header's place in `boot_params` ends at 0x290.
        let end = end.clamp(field::END_OF_2_12, 0x290);
        self.file.get(field::SETUP_SECTS..end).unwrap_or(&[])
    }
}

// Without the megabytes of the file.
impl core::fmt::Debug for KernelImage<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("KernelImage")
            .field("version", &self.version())
            .field("protocol", &self.protocol)
            .field("payload_bytes", &self.payload.len())
            .field("init_size", &self.init_size)
            .finish_non_exhaustive()
    }
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    b.get(at..at.checked_add(2)?)?
        .try_into()
        .ok()
        .map(u16::from_le_bytes)
}
fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    b.get(at..at.checked_add(4)?)?
        .try_into()
        .ok()
        .map(u32::from_le_bytes)
}
fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    b.get(at..at.checked_add(8)?)?
        .try_into()
        .ok()
        .map(u64::from_le_bytes)
}
