//! The boot medium: a GPT disk with one EFI system partition, as firmware expects it
//! (UEFI 2.10, 5.3 and 13.3), built without any tool of the system.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
/// The partition starts here, where every partitioning tool would start it.
const PARTITION_START: u64 = MIB;
/// Firmware looks up each cluster of a file by itself, which small ones make slow.
const CLUSTER: u32 = 4096;
/// A FAT32 volume needs 65525 clusters. Most of them are empty, and holes in the file.
const SMALLEST: u64 = 260 * MIB;

/// Files by their path on the medium, parts separated by `/`.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Writes a disk with these files to `path`.
///
/// # Errors
/// `path` cannot be written.
pub fn write_disk(path: &Path, files: &Files) -> Result<()> {
    let content: u64 = files
        .values()
        .map(|bytes| bytes.len() as u64 + 64 * 1024)
        .sum();
    let volume = (content + content / 8 + 8 * MIB)
        .max(SMALLEST)
        .next_multiple_of(MIB);
    let disk = PARTITION_START + volume + MIB;

    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    file.set_len(disk)?;
    let blocks = u32::try_from(disk / SECTOR - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(blocks)
        .overwrite_lba0(&mut file)
        .context("cannot write the protective MBR")?;
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(&mut file, None)
        .context("cannot write the partition table")?;
    table.update_partitions(BTreeMap::new())?;
    let alignment = Some(PARTITION_START / SECTOR);
    let id = table.add_partition("Perigee", volume, gpt::partition_types::EFI, 0, alignment)?;
    let start = table
        .partitions()
        .get(&id)
        .context("the partition is not in its table")?
        .first_lba
        * SECTOR;
    table.write().context("cannot write the partition table")?;

    let bytes = fat(volume, files)?;
    // Zeros stay holes: most of the volume is empty.
    const CHUNK: usize = 64 * 1024;
    for (index, chunk) in bytes
        .chunks(CHUNK)
        .enumerate()
        .filter(|(_, chunk)| chunk.iter().any(|b| *b != 0))
    {
        file.seek(SeekFrom::Start(start + (index * CHUNK) as u64))?;
        file.write_all(chunk)?;
    }
    Ok(())
}

/// A FAT32 volume of this size.
fn fat(volume: u64, files: &Files) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(volume)?];
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(CLUSTER)
        .volume_label(*b"PERIGEE    ");
    fatfs::format_volume(Cursor::new(&mut bytes[..]), options)
        .context("cannot format the volume")?;
    let fs = FileSystem::new(Cursor::new(&mut bytes[..]), FsOptions::new())
        .context("cannot open the new volume")?;
    for (path, content) in files {
        let root = fs.root_dir();
        for (end, _) in path.match_indices('/') {
            root.create_dir(&path[..end])
                .with_context(|| format!("cannot create {path} on the volume"))?;
        }
        let mut file = root
            .create_file(path)
            .with_context(|| format!("cannot create {path} on the volume"))?;
        file.write_all(content)
            .with_context(|| format!("{path} does not fit on the volume"))?;
    }
    fs.unmount().context("cannot finish the volume")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn firmware_s_view_of_the_disk_holds_every_file() {
        let path = std::env::temp_dir().join(format!("perigee-image-test-{}", std::process::id()));
        let kernel: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let files = Files::from([
            ("EFI/BOOT/BOOTX64.EFI".to_string(), b"loader".to_vec()),
            ("perigee/guests/vmlinuz-6.1".to_string(), kernel.clone()),
        ]);
        write_disk(&path, &files).expect("a temporary file");
        let disk = gpt::GptConfig::new().open(&path).expect("a GPT disk");
        let partition = disk.partitions().get(&1).expect("one partition").clone();
        assert_eq!(partition.part_type_guid, gpt::partition_types::EFI);
        let start = partition
            .bytes_start(LogicalBlockSize::Lb512)
            .expect("a start");
        assert_eq!(start, PARTITION_START);
        let end = start
            + partition
                .bytes_len(LogicalBlockSize::Lb512)
                .expect("a length");
        let file = File::open(&path).expect("the disk");
        let slice = fscommon::StreamSlice::new(file, start, end).expect("inside the disk");
        let fs = FileSystem::new(slice, FsOptions::new()).expect("a FAT volume");
        assert_eq!(fs.fat_type(), FatType::Fat32);
        let mut read = Vec::new();
        fs.root_dir()
            .open_file("perigee/guests/vmlinuz-6.1")
            .expect("there")
            .read_to_end(&mut read)
            .expect("readable");
        assert!(read == kernel);
        std::fs::remove_file(&path).expect("ours");
    }
}
