//! Files that grow under a hidden name and can be continued after a kill.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::atomic::sync_folder;
use crate::error::folder_of;
use crate::{FileError, FileStep};

const SUFFIX: &str = ".esvit-part";

/// A file that is appended to under a hidden name and renamed when it is complete. If dropped
/// before, its contents stay for a later [`open`](Self::open).
#[derive(Debug)]
pub struct GrowingFile {
    file: File,
    part: PathBuf,
    destination: PathBuf,
}

impl GrowingFile {
    /// Opens the unfinished file of `destination`, or creates it, and truncates it to `length`
    /// bytes to drop a partial write. It is locked against other processes.
    ///
    /// # Errors
    /// [`FileError`] if it cannot be opened, is shorter than `length`, or is locked by another
    /// process.
    pub fn open(destination: &Path, length: u64) -> Result<Self, FileError> {
        let fail = |error| FileError::writing(FileStep::Open, destination, 0, 0, error);
        let part = part_path(destination).map_err(fail)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&part);
        let mut file = file.map_err(fail)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                fail(io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it"))
            }
            TryLockError::Error(error) => fail(error),
        })?;
        let found = file.metadata().map_err(fail)?.len();
        if found < length {
            return Err(fail(io::ErrorKind::UnexpectedEof.into()));
        }
        file.set_len(length).and_then(|()| file.seek(SeekFrom::End(0))).map_err(fail)?;
        Ok(Self { file, part, destination: destination.into() })
    }

    /// Length in bytes of the unfinished file of `destination`, if there is one.
    pub fn length(destination: &Path) -> Option<u64> {
        fs::metadata(part_path(destination).ok()?).ok().map(|metadata| metadata.len())
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`FileError`] of the write.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let length = bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|e| FileError::writing(FileStep::Write, &self.destination, length, 0, e))
    }

    /// Where it is until it is complete.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// Where the file will appear.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Whether the destination exists and holds the same bytes.
    pub fn equals_destination(&self) -> bool {
        matches!((fs::read(&self.part), fs::read(&self.destination)), (Ok(a), Ok(b)) if a == b)
    }

    /// Flushes to the disk and returns the length in bytes.
    ///
    /// # Errors
    /// [`FileError`] of the flush.
    pub fn sync(&mut self) -> Result<u64, FileError> {
        let fail = |error| FileError::writing(FileStep::Sync, &self.destination, 0, 0, error);
        self.file.sync_data().map_err(fail)?;
        self.file.stream_position().map_err(fail)
    }

    /// Deletes the unfinished file.
    pub fn discard(self) {
        // The reason is being reported already.
        let _ = fs::remove_file(&self.part);
    }

    /// Overwrites the first bytes with `start`, flushes the file and renames it to its destination,
    /// replacing a file of that name.
    ///
    /// # Errors
    /// [`FileError`] of the step that failed; the unfinished file is kept.
    pub fn commit(mut self, start: &[u8]) -> Result<(), FileError> {
        let fail = |step, error| FileError::writing(step, &self.destination, 0, 0, error);
        let file = &mut self.file;
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(start))
            .map_err(|error| fail(FileStep::Write, error))?;
        file.sync_all().map_err(|error| fail(FileStep::Sync, error))?;
        fs::rename(&self.part, &self.destination).map_err(|e| fail(FileStep::Rename, e))?;
        sync_folder(folder_of(&self.destination)).map_err(|e| fail(FileStep::SyncFolder, e))
    }
}

/// The hidden name beside `destination`.
fn part_path(destination: &Path) -> io::Result<PathBuf> {
    let mut name = OsString::from(".");
    name.push(destination.file_name().ok_or(io::ErrorKind::InvalidFilename)?);
    name.push(SUFFIX);
    Ok(destination.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_continued_and_appears_when_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features.npy");
        let mut file = GrowingFile::open(&path, 0).unwrap();
        file.append(b"head").unwrap();
        file.append(b"one").unwrap();
        assert_eq!(file.sync().unwrap(), 7);
        file.append(b"half").unwrap();
        drop(file);
        assert_eq!((path.exists(), GrowingFile::length(&path)), (false, Some(11)));

        let mut file = GrowingFile::open(&path, 7).unwrap();
        assert_eq!(file.part(), folder.path().join(".features.npy.esvit-part"));
        let busy = GrowingFile::open(&path, 7).unwrap_err();
        assert!(std::error::Error::source(&busy).unwrap().to_string().contains("another process"));
        file.append(b"two").unwrap();
        assert!(!file.equals_destination());
        fs::write(&path, "headonetwo").unwrap();
        assert!(file.equals_destination());
        fs::write(&path, "headonetwo, and more").unwrap();
        assert!(!file.equals_destination());
        file.commit(b"HEAD").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "HEADonetwo");
        assert_eq!(GrowingFile::length(&path), None);
        assert!(GrowingFile::open(&path, 1).is_err(), "there is nothing to continue");

        let mut file = GrowingFile::open(&path, 0).unwrap();
        file.append(b"another").unwrap();
        file.discard();
        assert_eq!(GrowingFile::length(&path), None);
        assert_eq!(fs::read_to_string(&path).unwrap(), "HEADonetwo");
    }
}
