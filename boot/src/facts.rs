//! What firmware and the CPU say about the machine.
#![expect(
    unsafe_code,
    reason = "reads the time-stamp counter and looks at the screen without taking it away"
)]

use alloc::string::ToString;
use core::arch::x86_64::{__cpuid, _rdtsc};

use handoff::Framebuffer;
use loader::clock::{Civil, unix_seconds};
use uefi::{
    boot::{self, OpenProtocolAttributes, OpenProtocolParams},
    proto::console::gop::{GraphicsOutput, PixelFormat},
    runtime, system,
    table::cfg::ConfigTableEntry,
};
use x86_64::registers::control::{Cr4, Cr4Flags};

use crate::story::Failure;

/// Time-stamp counter now.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and firmware runs us in ring 0.
    unsafe { _rdtsc() }
}

/// Refuses a CPU that the kernel's page tables would not work on.
pub fn require_cpu() -> Result<(), Failure> {
    if extended_features() & NX == 0 {
        let sentence = "the CPU has no execute-disable bit, or firmware hides it: enable \"XD\" or \"NX\" in its setup";
        return Err(Failure(sentence.to_string()));
    }
    if Cr4::read().contains(Cr4Flags::L5_PAGING) {
        let sentence = "firmware runs with five-level paging: switch \"LA57\" off in its setup";
        return Err(Failure(sentence.to_string()));
    }
    Ok(())
}

/// Whether the CPU has 1 GiB pages.
pub fn has_gib_pages() -> bool {
    extended_features() & GIB_PAGES != 0
}

/// CPUID 8000_0001h EDX (SDM 2A, CPUID; APM 3, E.4.2).
fn extended_features() -> u32 {
    const LEAF: u32 = 0x8000_0001;
    if __cpuid(0x8000_0000).eax < LEAF {
        0
    } else {
        __cpuid(LEAF).edx
    }
}
const NX: u32 = 1 << 20;
const GIB_PAGES: u32 = 1 << 26;

/// Address of the ACPI RSDP, that of ACPI 2.0 and later preferred; 0 if firmware publishes none
/// (UEFI 2.10, 4.6).
pub fn rsdp() -> u64 {
    system::with_config_table(|tables| {
        [ConfigTableEntry::ACPI2_GUID, ConfigTableEntry::ACPI_GUID]
            .iter()
            .find_map(|guid| tables.iter().find(|t| t.guid == *guid))
            .map_or(0, |t| t.address as u64)
    })
}

/// The screen as a linear framebuffer; none if there is no screen or its pixels have no 32-bit
/// layout that the kernel draws in.
pub fn framebuffer() -> Framebuffer {
    find_framebuffer().unwrap_or_default()
}

fn find_framebuffer() -> Option<Framebuffer> {
    let handle = boot::get_handle_for_protocol::<GraphicsOutput>().ok()?;
    let params = OpenProtocolParams {
        handle,
        agent: boot::image_handle(),
        controller: None,
    };
    // SAFETY: the protocol is only read, and closed before anybody could remove it; opening it
    // exclusively instead would take the screen away from firmware's console.
    let mut screen = unsafe {
        boot::open_protocol::<GraphicsOutput>(params, OpenProtocolAttributes::GetProtocol)
    }
    .ok()?;
    let mode = screen.current_mode_info();
    let format = match mode.pixel_format() {
        PixelFormat::Rgb => Framebuffer::RGBX,
        PixelFormat::Bgr => Framebuffer::BGRX,
        PixelFormat::Bitmask | PixelFormat::BltOnly => return None,
    };
    let (width, height) = mode.resolution();
    let mut pixels = screen.frame_buffer();
    Some(Framebuffer {
        base: pixels.as_mut_ptr() as u64,
        bytes: pixels.size() as u64,
        width: u32::try_from(width).ok()?,
        height: u32::try_from(height).ok()?,
        stride: u32::try_from(mode.stride()).ok()?,
        format,
    })
}

/// Firmware's clock as seconds since 1970, 0 if it has none.
pub fn unix_time_s() -> u64 {
    let Ok(now) = runtime::get_time() else {
        return 0;
    };
    let civil = Civil {
        year: now.year(),
        month: now.month(),
        day: now.day(),
        hour: now.hour(),
        minute: now.minute(),
        second: now.second(),
        zone_min: now.time_zone(),
    };
    unix_seconds(civil).unwrap_or(0)
}
