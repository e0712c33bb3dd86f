//! The guests' initramfs: busybox, the workload and an init script, as a gzipped cpio archive.
//!
//! Format: Linux' Documentation/driver-api/early-userspace/buffer-format.rst ("newc").

use std::io::Write;

use anyhow::Result;
use flate2::{Compression, write::GzEncoder};

/// What runs as process 1 of a guest.
const INIT: &str = include_str!("init.sh");

const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// A cpio archive under construction.
struct Archive<W: Write> {
    out: W,
    written: usize,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len();
        // Names and contents each end on a multiple of four bytes.
        let padding = self.written.next_multiple_of(4) - self.written;
        self.out.write_all(&[0; 3][..padding])?;
        self.written += padding;
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len())?;
        // inode, mode, uid, gid, links, mtime, size, device of the file, device it stands for, name, checksum
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            u32::try_from(name.len() + 1)?,
            0,
        ];
        let mut header = b"070701".to_vec();
        for field in fields {
            header.extend(format!("{field:08x}").into_bytes());
        }
        header.extend(name.as_bytes());
        header.push(0);
        self.put(&header)?;
        self.put(content)
    }
}

/// The archive with these two programs.
///
/// # Errors
/// A program of 4 GiB or more.
pub fn build(busybox: &[u8], workload: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive {
        out: GzEncoder::new(Vec::new(), Compression::default()),
        written: 0,
        inode: 0,
    };
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.entry(folder, FOLDER | 0o755, (0, 0), &[])?;
    }
    // Linux opens it for process 1 before anything is mounted.
    archive.entry("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[])?;
    archive.entry("bin/busybox", FILE | 0o755, (0, 0), busybox)?;
    archive.entry("bin/workload", FILE | 0o755, (0, 0), workload)?;
    archive.entry("init", FILE | 0o755, (0, 0), INIT.as_bytes())?;
    archive.entry("TRAILER!!!", 0, (0, 0), &[])?;
    Ok(archive.out.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn entries_are_aligned_and_found_by_their_own_lengths() {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&build(b"busy", b"work!").expect("small")[..])
            .read_to_end(&mut bytes)
            .expect("gzip");
        let (mut at, mut seen) = (0, Vec::new());
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |i: usize| {
                let text =
                    std::str::from_utf8(&bytes[at + 6 + i * 8..at + 14 + i * 8]).expect("hex");
                usize::from_str_radix(text, 16).expect("hex")
            };
            let (size, name_bytes) = (field(6), field(11));
            let name =
                String::from_utf8(bytes[at + 110..at + 109 + name_bytes].to_vec()).expect("name");
            let content = (at + 110 + name_bytes).next_multiple_of(4);
            seen.push((name, bytes[content..content + size].to_vec()));
            at = (content + size).next_multiple_of(4);
        }
        assert!(seen.contains(&("bin/workload".into(), b"work!".to_vec())));
        assert!(seen.contains(&("bin/busybox".into(), b"busy".to_vec())));
        assert_eq!(
            seen.last().map(|(name, _)| name.as_str()),
            Some("TRAILER!!!")
        );
    }
}
