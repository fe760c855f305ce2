//! Whole files replaced in one step.
//!
//! A file is written under a temporary name in the folder it is meant for, flushed to the disk and
//! then renamed, so that under its own name there is always either the old file or the new one.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::folder_of;
use crate::{FileError, FileStep, WholeWriter};

const TEMPORARY_SUFFIX: &str = ".esvit-tmp";

/// A file that appears under its name only when it is complete.
///
/// Dropping it without [`commit`](Self::commit) deletes what was written.
#[derive(Debug)]
pub struct AtomicFile {
    // Declared before `temporary`, so that the file is closed when its name is deleted.
    writer: WholeWriter,
    temporary: Temporary,
    destination: PathBuf,
}

#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // The failed write is reported already, and `remove_stale_temporaries` finds a
            // leftover.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AtomicFile {
    /// Opens a temporary file beside `destination`.
    ///
    /// # Errors
    /// [`FileError`] if the folder does not exist or is not writable.
    pub fn create(destination: &Path) -> Result<Self, FileError> {
        let path = temporary_path(destination)
            .map_err(|error| FileError::new(FileStep::Open, destination, error))?;
        // A leftover of the same name is overwritten: in a container every run may be process 1.
        let file = File::create(&path)
            .map_err(|error| FileError::writing(FileStep::Open, destination, 0, 0, error))?;
        Ok(Self {
            writer: WholeWriter::new(file),
            temporary: Temporary { path, renamed: false },
            destination: destination.to_owned(),
        })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`FileError`]; [`commit`](Self::commit) fails for a full disk, when it is known how much is needed.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.writer.write_all(bytes).map_err(|error| self.error(FileStep::Write, error))
    }

    /// Writes `bytes` over those at `offset`; later writes continue at the end.
    ///
    /// # Errors
    /// As [`write_all`](Self::write_all).
    pub fn overwrite(&mut self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        let writer = &mut self.writer;
        writer
            .seek(SeekFrom::Start(offset))
            .and_then(|_| writer.write_all(bytes))
            .and_then(|()| writer.seek(SeekFrom::End(0)))
            .map(drop)
            .map_err(|error| self.error(FileStep::Write, error))
    }

    /// Flushes the file to the disk and gives it its name, replacing a file of that name.
    ///
    /// # Errors
    /// [`FileError`], which for a full disk says how much is needed and how much there is. The old file is
    /// then still in place, unless only the final flush of the folder failed.
    pub fn commit(mut self) -> Result<(), FileError> {
        self.writer.finish().map_err(|error| self.error(FileStep::Write, error))?;
        self.writer.file().sync_all().map_err(|error| self.error(FileStep::Sync, error))?;
        fs::rename(&self.temporary.path, &self.destination)
            .map_err(|error| self.error(FileStep::Rename, error))?;
        self.temporary.renamed = true;
        sync_folder(folder_of(&self.destination))
            .map_err(|error| self.error(FileStep::SyncFolder, error))
    }

    fn error(&self, step: FileStep, source: io::Error) -> FileError {
        let written = self.writer.file().metadata().map_or(0, |metadata| metadata.len());
        FileError::writing(step, &self.destination, self.writer.length(), written, source)
    }
}

/// Writes a whole file through `write`; on any failure the file at `path` is unchanged.
///
/// A symbolic link at `path` is replaced, not followed; a device or a pipe takes the bytes and stays.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = std::env::temp_dir();
/// use std::io::Write;
/// let path = folder.join("esvit-example.json");
/// esvit_files::write_atomically(&path, |file| writeln!(file, "{{}}"))?;
/// assert_eq!(std::fs::read_to_string(&path)?, "{}\n");
/// # std::fs::remove_file(&path)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`FileError`] with the path and the step that failed, the closure's errors included.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut WholeWriter) -> io::Result<()>,
) -> Result<(), FileError> {
    if is_device(path) {
        let fail = |error| FileError::new(FileStep::Write, path, error);
        let mut device = WholeWriter::new(File::options().write(true).open(path).map_err(fail)?);
        return write(&mut device).and_then(|()| device.finish()).map_err(fail);
    }
    let mut file = AtomicFile::create(path)?;
    write(&mut file.writer).map_err(|error| file.error(FileStep::Write, error))?;
    file.commit()
}

/// Whether something is at `path` that is neither a file nor a folder: a device, a pipe, a socket.
pub fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// A name beside `destination` that no other writer of this machine uses.
pub fn temporary_path(destination: &Path) -> io::Result<PathBuf> {
    // Two writers of one process must not share a temporary file.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = destination.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}-{count}{TEMPORARY_SUFFIX}", std::process::id()));
    Ok(destination.with_file_name(temporary))
}

#[cfg(unix)]
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some network file systems cannot flush a folder; the file itself is safe by then.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
        {
            Ok(())
        }
        result => result,
    }
}

#[cfg(not(unix))]
pub(crate) fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

/// Whether `name` is that of a temporary file.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY_SUFFIX)
}

/// Deletes temporary files that killed runs left in `folder` and returns their paths.
///
/// It would also delete those of a run that is still writing: call it only where no other run works
/// in `folder`.
///
/// # Errors
/// [`FileError`] if the folder cannot be listed or a file cannot be deleted.
pub fn remove_stale_temporaries(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let list_error = |error| FileError::new(FileStep::List, folder, error);
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder).map_err(list_error)? {
        let entry = entry.map_err(list_error)?;
        let is_file = entry.file_type().map_err(list_error)?.is_file();
        if is_file && is_temporary(&entry.file_name().to_string_lossy()) {
            let path = entry.path();
            fs::remove_file(&path)
                .map_err(|error| FileError::new(FileStep::Remove, &path, error))?;
            removed.push(path);
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;
    use std::fs::OpenOptions;

    type TestResult = Result<(), Box<dyn Error>>;

    fn names(folder: &Path) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(folder)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    #[test]
    fn replaces_the_file_and_leaves_nothing_else() -> TestResult {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("last.safetensors");
        fs::write(&path, "old")?;
        write_atomically(&path, |file| file.write_all(b"new"))?;
        assert_eq!(fs::read_to_string(&path)?, "new");
        assert_eq!(names(folder.path())?, ["last.safetensors"]);
        Ok(())
    }

    #[test]
    fn a_failure_keeps_the_old_file_and_names_the_step() -> TestResult {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("last.safetensors");
        fs::write(&path, "old")?;
        let error = write_atomically(&path, |file| {
            file.write_all(&[0; 100_000])?;
            Err(io::Error::other("no more"))
        })
        .expect_err("the closure fails");
        assert_eq!(error.to_string(), format!("cannot write `{}`", path.display()));
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("no more"));
        assert_eq!(fs::read_to_string(&path)?, "old");
        assert_eq!(names(folder.path())?, ["last.safetensors"]);
        Ok(())
    }

    #[test]
    fn the_other_steps_are_named_too() -> TestResult {
        let folder = tempfile::tempdir()?;
        let occupied = folder.path().join("occupied");
        fs::create_dir_all(occupied.join("inner"))?;
        let step = |path: &Path| match write_atomically(path, |_| Ok(())) {
            Err(FileError::Io { step, path: named, .. }) if named == path => Some(step),
            _ => None,
        };
        assert_eq!(step(&occupied), Some(FileStep::Rename));
        assert_eq!(step(&folder.path().join("missing/file")), Some(FileStep::Open));
        assert_eq!(step(Path::new("/")), Some(FileStep::Open));
        assert_eq!(names(folder.path())?, ["occupied"]);
        Ok(())
    }

    #[test]
    fn overwriting_continues_at_the_end() -> TestResult {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        let mut file = AtomicFile::create(&path)?;
        file.write_all(b"....body")?;
        file.overwrite(0, b"head")?;
        file.write_all(b"tail")?;
        file.commit()?;
        assert_eq!(fs::read_to_string(&path)?, "headbodytail");
        Ok(())
    }

    #[test]
    fn only_temporaries_are_stale() -> TestResult {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("last.safetensors");
        let left_over = AtomicFile::create(&path)?;
        fs::create_dir(folder.path().join(".folder.esvit-tmp"))?;
        for name in ["kept", ".kept", "kept.esvit-tmp"] {
            fs::write(folder.path().join(name), "")?;
        }
        let removed = remove_stale_temporaries(folder.path())?;
        assert_eq!(removed, std::slice::from_ref(&left_over.temporary.path));
        let kept = [".folder.esvit-tmp", ".kept", "kept", "kept.esvit-tmp"];
        assert_eq!(names(folder.path())?, kept);
        Ok(())
    }

    #[test]
    fn two_writers_of_one_file_do_not_mix() -> TestResult {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        let (mut first, mut second) = (AtomicFile::create(&path)?, AtomicFile::create(&path)?);
        first.write_all(b"the first")?;
        second.write_all(b"second")?;
        first.commit()?;
        assert_eq!(fs::read_to_string(&path)?, "the first");
        second.commit()?;
        assert_eq!(fs::read_to_string(&path)?, "second");
        Ok(())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_explained() -> TestResult {
        let full = || -> Result<AtomicFile, Box<dyn Error>> {
            Ok(AtomicFile {
                writer: WholeWriter::new(OpenOptions::new().write(true).open("/dev/full")?),
                temporary: Temporary { path: PathBuf::new(), renamed: true },
                destination: PathBuf::from("/dev/last.safetensors"),
            })
        };
        let mut file = full()?;
        // What comes after the first error is needed, too.
        for _ in 0..3 {
            file.write_all(&[0; 1_234_567])?;
        }
        file.overwrite(8, b"head")?;
        let error = file.commit().expect_err("the device is full");
        let message = error.to_string();
        let expected =
            "the disk is full: `/dev/last.safetensors` needs 3.7 MB and `/dev` has room for ";
        assert!(message.starts_with(expected), "{message}");
        assert!(matches!(error, FileError::DiskFull { needed: 3_703_701, available: Some(_), .. }));

        let mut file = full()?;
        file.write_all(b"buffered")?;
        let error = file.commit().expect_err("the device is full");
        assert!(matches!(error, FileError::DiskFull { needed: 8, .. }), "{error}");
        Ok(())
    }
}
