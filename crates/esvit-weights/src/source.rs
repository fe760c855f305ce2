//! Positioned reads. Files are not memory-mapped: that takes `unsafe`, and a file truncated by
//! another program would crash the process.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::error::{ErrorKind, corrupt, ensure};

/// Bytes to read at any position, from several threads.
#[derive(Debug)]
pub(crate) struct Source {
    store: Store,
    length: u64,
}

#[derive(Debug)]
enum Store {
    File(File),
    Memory(Vec<u8>),
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, ErrorKind> {
        // Checked before opening, since opening a pipe blocks.
        let found = std::fs::metadata(path)?;
        if !found.is_file() {
            let what = if found.is_dir() { "it is a folder" } else { "it is not a regular file" };
            let hint = "name the file of weights itself";
            return Err(ErrorKind::UnknownFormat { found: what.into(), hint });
        }
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { store: Store::File(file), length })
    }

    pub(crate) fn memory(bytes: Vec<u8>) -> Self {
        let length = bytes.len() as u64;
        Self { store: Store::Memory(bytes), length }
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buffer` with the bytes from `position` on.
    pub(crate) fn read_exact_at(&self, position: u64, buffer: &mut [u8]) -> Result<(), ErrorKind> {
        match &self.store {
            Store::File(file) => Ok(read_exact_at(file, buffer, position)?),
            Store::Memory(bytes) => {
                let from = usize::try_from(position).ok().and_then(|start| bytes.get(start..));
                let found = from.and_then(|rest| rest.get(..buffer.len()));
                buffer.copy_from_slice(
                    found.ok_or(io::ErrorKind::UnexpectedEof).map_err(io::Error::from)?,
                );
                Ok(())
            }
        }
    }

    /// The `count` bytes from `position` on. Nothing is allocated for bytes beyond the end.
    pub(crate) fn read(&self, position: u64, count: u64) -> Result<Vec<u8>, ErrorKind> {
        let length = self.length;
        ensure!(
            position.checked_add(count).is_some_and(|end| end <= length),
            corrupt!("{count} bytes at {position} lie beyond its end at {length}")
        );
        let mut buffer = try_with_capacity(count)?;
        buffer.resize(count as usize, 0);
        self.read_exact_at(position, &mut buffer)?;
        Ok(buffer)
    }
}

/// An empty vector with capacity for `count` elements; an error if out of memory.
pub(crate) fn try_with_capacity<T>(count: u64) -> Result<Vec<T>, ErrorKind> {
    let mut list = Vec::new();
    let reserved = usize::try_from(count).ok().and_then(|n| list.try_reserve_exact(n).ok());
    match reserved {
        Some(()) => Ok(list),
        None => Err(ErrorKind::Io(io::ErrorKind::OutOfMemory.into())),
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], position: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, position)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut position: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buffer.is_empty() {
        match file.seek_read(buffer, position) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer = &mut buffer[count..];
                position += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_and_memory_read_alike() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        for source in [Source::open(&path).unwrap(), Source::memory(b"0123456789".to_vec())] {
            assert_eq!(source.length(), 10);
            assert_eq!(source.read(3, 4).unwrap(), b"3456");
            assert_eq!(source.read(10, 0).unwrap(), b"");
            for (position, count) in [(3, 8), (11, 0), (u64::MAX, 2), (0, u64::MAX)] {
                assert!(matches!(source.read(position, count), Err(ErrorKind::Corrupt(_))));
            }
            assert!(matches!(source.read_exact_at(8, &mut [0; 3]), Err(ErrorKind::Io(_))));
        }
    }
}
