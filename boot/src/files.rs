//! Reading the boot medium.

use alloc::{boxed::Box, format, string::String, vec::Vec};

use handoff::{Module, ModuleKind};
use loader::medium::{self, Size};
use uefi::{
    CString16, Status,
    boot::{self, ScopedProtocol},
    proto::media::{
        file::{Directory, File, FileAttribute, FileInfo, FileMode, FileType},
        fs::SimpleFileSystem,
    },
};

use crate::{
    pages::Pages,
    screen::{say, say_part},
    story::Failure,
};

/// Bytes read at once; a sign of life follows every [`SIGN_OF_LIFE`] chunks.
const CHUNK: usize = 1 << 20;
const SIGN_OF_LIFE: usize = 4;

/// A file in memory that the kernel will see.
pub struct LoadedFile {
    path: String,
    name: [u8; 64],
    kind: ModuleKind,
    memory: &'static [u8],
    bytes: usize,
}

impl LoadedFile {
    /// Path below `\perigee` with backslashes, for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What the file holds.
    pub fn contents(&self) -> &'static [u8] {
        self.memory.get(..self.bytes).unwrap_or(self.memory)
    }

    /// As the kernel sees it.
    pub fn module(&self) -> Module {
        Module {
            name: self.name,
            kind: self.kind as u32,
            reserved: 0,
            base: self.memory.as_ptr() as u64,
            bytes: self.bytes as u64,
        }
    }

    /// First byte and bytes of the whole pages that hold the file.
    pub fn pages(&self) -> (u64, u64) {
        (self.memory.as_ptr() as u64, self.memory.len() as u64)
    }
}

/// The volume that this application was started from.
pub struct Volume {
    root: Directory,
    _open: ScopedProtocol<SimpleFileSystem>,
}

impl Volume {
    /// Opens it.
    pub fn of_this_application() -> Result<Self, Failure> {
        let unreadable = |error: uefi::Error| {
            Failure(format!(
                "the volume that the loader was started from cannot be read ({}): start it from a FAT \
                 volume with the folder {}",
                error.status(),
                medium::ROOT
            ))
        };
        let mut open = boot::get_image_file_system(boot::image_handle()).map_err(unreadable)?;
        let root = open.open_volume().map_err(unreadable)?;
        Ok(Self { root, _open: open })
    }

    /// Reads one file, named by its path below `\perigee`, and says so.
    pub fn load(&mut self, path: &str) -> Result<LoadedFile, Failure> {
        let broken = |problem: &str| Failure(format!("{}\\{path} {problem}", medium::ROOT));
        let name = medium::module_name(path)
            .map_err(|error| broken(&format!("cannot be handed to the kernel: {error}")))?;
        let kind = medium::kind_of(path).ok_or_else(|| broken("has no use: remove it"))?;
        let mut file = match self.open(path)? {
            Some(FileType::Regular(file)) => file,
            Some(FileType::Dir(_)) => {
                return Err(broken("is a folder: put the file of that name there"));
            }
            None => return Err(broken("is missing: copy it to the boot medium")),
        };
        let info: Box<FileInfo> = file
            .get_boxed_info()
            .map_err(|error| broken(&unreadable(error.status())))?;
        let size = info.file_size();
        let mut pages = Pages::allocate(size, path)?;
        say_part!("{path}, {}", Size(size));
        let bytes = usize::try_from(size).map_err(|_| broken("is larger than memory"))?;
        let room = pages.bytes_mut().get_mut(..bytes).unwrap_or(&mut []);
        for (count, chunk) in room.chunks_mut(CHUNK).enumerate() {
            let read = file
                .read(chunk)
                .map_err(|error| broken(&unreadable(error.status())))?;
            if read != chunk.len() {
                return Err(broken(
                    "ends before its stated size: copy it to the medium again",
                ));
            }
            if count % SIGN_OF_LIFE == SIGN_OF_LIFE - 1 {
                say_part!(".");
            }
        }
        say!(" loaded");
        Ok(LoadedFile {
            path: path.into(),
            name,
            kind,
            memory: pages.freeze(),
            bytes,
        })
    }

    /// Paths of the files of use in a folder below `\perigee` and its subfolders, in order of name;
    /// none if there is no such folder.
    pub fn list(&mut self, folder: &str) -> Result<Vec<String>, Failure> {
        let mut found = Vec::new();
        self.collect(folder, medium::DEPTH_LIMIT, &mut found)?;
        found.retain(|path| medium::kind_of(path).is_some());
        found.sort();
        Ok(found)
    }

    fn collect(
        &mut self,
        folder: &str,
        depth: usize,
        found: &mut Vec<String>,
    ) -> Result<(), Failure> {
        let broken =
            |problem: &str| Failure(format!("folder {}\\{folder} {problem}", medium::ROOT));
        let Some(entries) = self.open(folder)? else {
            return Ok(());
        };
        let FileType::Dir(mut entries) = entries else {
            return Err(broken("is a file: make a folder of that name"));
        };
        if depth == 0 {
            return Err(broken("lies too deep: move its files up"));
        }
        while let Some(entry) = entries
            .read_entry_boxed()
            .map_err(|error| broken(&unreadable(error.status())))?
        {
            let name = String::from(entry.file_name());
            if name == "." || name == ".." {
                continue;
            }
            let path = format!("{folder}\\{name}");
            if entry.is_directory() {
                self.collect(&path, depth - 1, found)?;
            } else {
                found.push(path);
            }
        }
        Ok(())
    }

    fn open(&mut self, path: &str) -> Result<Option<FileType>, Failure> {
        let full = format!("{}\\{path}", medium::ROOT);
        let name = CString16::try_from(full.as_str()).map_err(|_| {
            Failure(format!(
                "{full} has a character that UEFI cannot name: rename it"
            ))
        })?;
        let opened = self
            .root
            .open(&name, FileMode::Read, FileAttribute::empty());
        match opened.and_then(|file| file.into_type()) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.status() == Status::NOT_FOUND => Ok(None),
            Err(error) => Err(Failure(format!("{full} {}", unreadable(error.status())))),
        }
    }
}

fn unreadable(status: Status) -> String {
    format!("cannot be read (firmware says {status}): check the medium, then copy it again")
}

/// Four bytes that were checked to be ASCII.
pub fn ascii(bytes: &[u8; 4]) -> &str {
    core::str::from_utf8(bytes).unwrap_or("????")
}
