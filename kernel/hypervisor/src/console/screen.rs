//! Text on the framebuffer that firmware left.
//!
//! Reading a framebuffer is slow, so the screen's text is kept in memory: scrolling redraws the cells
//! that change and never reads a pixel.
#![expect(unsafe_code, reason = "pixels are device memory")]

use alloc::vec;
use alloc::vec::Vec;

use handoff::Framebuffer;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use units::Hpa;

use crate::mm;

const WEIGHT: FontWeight = FontWeight::Regular;
const SIZE: RasterHeight = RasterHeight::Size16;
const CELL_HEIGHT: u32 = SIZE.val() as u32;
const CELL_WIDTH: u32 = get_raster_width(WEIGHT, SIZE) as u32;

/// Pixels to draw on. Copying it copies the right to draw: whoever draws at once garbles text, no more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surface {
    first: usize,
    stride: u32,
    columns: u32,
    rows: u32,
    rgbx: bool,
}

/// Colours of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    /// Light grey on black.
    Plain,
    /// White on dark red, for what stops the machine.
    Alarm,
}

impl Surface {
    fn new(screen: &Framebuffer) -> Option<Self> {
        let bytes = u64::from(screen.stride) * u64::from(screen.height) * 4;
        let sound = screen.base != 0 && screen.width <= screen.stride && bytes <= screen.bytes;
        let (columns, rows) = (screen.width / CELL_WIDTH, screen.height / CELL_HEIGHT);
        (sound && columns > 0 && rows > 0).then(|| Self {
            first: mm::device(Hpa(screen.base)) as usize,
            stride: screen.stride,
            columns,
            rows,
            rgbx: screen.format == Framebuffer::RGBX,
        })
    }

    /// Characters in a line.
    pub(super) fn columns(&self) -> u32 {
        self.columns
    }
    /// Lines.
    pub(super) fn rows(&self) -> u32 {
        self.rows
    }

    /// Draws a character; anything but ASCII looks like a question mark.
    pub(super) fn draw(&self, column: u32, row: u32, character: u8, paint: Paint) {
        if column >= self.columns || row >= self.rows {
            return;
        }
        let known = if character.is_ascii_graphic() || character == b' ' {
            character
        } else {
            b'?'
        };
        let Some(glyph) = get_raster(char::from(known), WEIGHT, SIZE) else {
            return;
        };
        let corner = row * CELL_HEIGHT * self.stride + column * CELL_WIDTH;
        for (y, line) in (0..).zip(glyph.rows()) {
            for (x, intensity) in (0..CELL_WIDTH).zip(line) {
                let pixel = corner + y * self.stride + x;
                let place = (self.first as *mut u32).wrapping_add(pixel as usize);
                // SAFETY: `new` checked that all pixels of all cells lie inside the framebuffer, which page
                // tables map for ever; column and row were checked above. Volatile: it is a device.
                unsafe { place.write_volatile(self.colour(*intensity, paint)) };
            }
        }
    }

    fn colour(&self, intensity: u8, paint: Paint) -> u32 {
        let mix = |from: u32, to: u32| from + (to - from) * u32::from(intensity) / 255;
        let (red, green, blue) = match paint {
            Paint::Plain => (mix(0, 208), mix(0, 208), mix(0, 208)),
            Paint::Alarm => (mix(144, 255), mix(0, 255), mix(0, 255)),
        };
        if self.rgbx {
            blue << 16 | green << 8 | red
        } else {
            red << 16 | green << 8 | blue
        }
    }
}

/// Where in a terminal's escape sequence the text is (ECMA-48, 5.4): all but "erase to the end of the line" are
/// swallowed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    Control,
}

/// A screen of text.
pub(super) struct Screen {
    surface: Surface,
    shown: Vec<u8>,
    column: u32,
    row: u32,
    escape: Escape,
}

impl Screen {
    /// A blank screen; `None` if the framebuffer has no room for a character.
    pub(super) fn new(framebuffer: &Framebuffer) -> Option<Self> {
        let surface = Surface::new(framebuffer)?;
        let cells = surface.columns as usize * surface.rows as usize;
        let mut screen = Self {
            surface,
            shown: vec![0; cells],
            column: 0,
            row: 0,
            escape: Escape::None,
        };
        (0..surface.rows).for_each(|row| screen.set_line(row, &[]));
        Some(screen)
    }

    /// What it draws on.
    pub(super) fn surface(&self) -> Surface {
        self.surface
    }

    /// Writes text at the cursor.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match (self.escape, *byte) {
                (Escape::None, 0x1b) => self.escape = Escape::Begun,
                (Escape::None, byte) => self.put(byte),
                (Escape::Begun, b'[') => self.escape = Escape::Control,
                (Escape::Control, 0x20..=0x3f) => {}
                (Escape::Control, b'K') => {
                    self.escape = Escape::None;
                    self.erase_to_end();
                }
                (Escape::Begun | Escape::Control, _) => self.escape = Escape::None,
            }
        }
    }

    fn put(&mut self, byte: u8) {
        match byte {
            b'\n' => self.new_line(),
            b'\r' => self.column = 0,
            0x08 => self.column = self.column.saturating_sub(1),
            b'\t' => {
                let stop = (self.column / 8 + 1) * 8;
                (self.column..stop).for_each(|_| self.put(b' '));
            }
            // The rest of a UTF-8 character whose first byte became a question mark.
            0x80..=0xbf => {}
            0x00..=0x1f | 0x7f => {}
            _ => {
                if self.column >= self.surface.columns {
                    self.new_line();
                }
                self.set(self.column, self.row, byte);
                self.column += 1;
            }
        }
    }

    fn erase_to_end(&mut self) {
        (self.column..self.surface.columns).for_each(|column| self.set(column, self.row, b' '));
    }

    fn new_line(&mut self) {
        self.column = 0;
        if self.row + 1 < self.surface.rows {
            self.row += 1;
            return;
        }
        let columns = self.surface.columns as usize;
        let next: Vec<u8> = self.shown.get(columns..).unwrap_or(&[]).to_vec();
        for (row, line) in (0..).zip(next.chunks(columns)) {
            self.set_line(row, line);
        }
        self.set_line(self.row, &[]);
    }

    /// A whole line; blanks follow what is given.
    fn set_line(&mut self, row: u32, line: &[u8]) {
        for column in 0..self.surface.columns {
            self.set(
                column,
                row,
                line.get(column as usize).copied().unwrap_or(b' '),
            );
        }
    }

    fn set(&mut self, column: u32, row: u32, byte: u8) {
        let index = (row * self.surface.columns + column) as usize;
        if let Some(cell) = self.shown.get_mut(index).filter(|cell| **cell != byte) {
            *cell = byte;
            self.surface.draw(column, row, byte, Paint::Plain);
        }
    }
}
