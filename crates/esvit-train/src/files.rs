//! Files that survive a kill: whole files replaced in one step, and line logs that can be cut back.
//!
//! A file is written under a temporary name in the folder it is meant for, flushed to the disk and
//! then renamed, so that under its own name there is always either the old file or the new one.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const TEMPORARY_SUFFIX: &str = ".esvit-tmp";

/// What was being done to a file when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileStep {
    /// Opening or creating it.
    Open,
    /// Reading its contents or its length.
    Read,
    /// Writing to it.
    Write,
    /// Waiting until it is on the disk.
    Sync,
    /// Giving the finished temporary file its name.
    Rename,
    /// Waiting until the folder's entry of it is on the disk.
    SyncFolder,
    /// Cutting it back.
    Truncate,
    /// Listing a folder.
    List,
    /// Deleting it.
    Remove,
}

impl fmt::Display for FileStep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "flush to the disk",
            Self::Rename => "rename the temporary file to",
            Self::SyncFolder => "flush the folder of",
            Self::Truncate => "cut back",
            Self::List => "list",
            Self::Remove => "delete",
        })
    }
}

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// One step failed.
    #[error("cannot {step} `{path}`")]
    Io {
        /// The step.
        step: FileStep,
        /// The file, by its final name.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The disk is full.
    #[error(
        "the disk is full: `{path}` needs more than {} and `{folder}` has room for {}, \
         make room there or choose a folder on another disk",
        readable(*.attempted),
        .available.map_or_else(|| "less".to_owned(), readable)
    )]
    DiskFull {
        /// The file, by its final name.
        path: PathBuf,
        /// The folder it was being written in.
        folder: PathBuf,
        /// How many bytes had been handed over to be written.
        attempted: u64,
        /// How many bytes fit into the folder without this file, if that can be told.
        available: Option<u64>,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl FileError {
    fn new(step: FileStep, path: &Path, source: io::Error) -> Self {
        Self::Io { step, path: path.to_owned(), source }
    }

    /// `attempted` bytes were to be written, of which `written` are in a file that will go away.
    fn writing(
        step: FileStep,
        path: &Path,
        attempted: u64,
        written: u64,
        source: io::Error,
    ) -> Self {
        if source.kind() != io::ErrorKind::StorageFull {
            return Self::new(step, path, source);
        }
        let folder = folder_of(path);
        let available = free_bytes(folder).map(|free| free.saturating_add(written));
        Self::DiskFull {
            path: path.to_owned(),
            folder: folder.to_owned(),
            attempted,
            available,
            source,
        }
    }
}

fn readable(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog10() / 3).min(4);
    format!("{:.1} {}", bytes as f64 / 1000f64.powi(power as i32), UNITS[power as usize - 1])
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let status = rustix::fs::statvfs(folder).ok()?;
    Some(status.f_bavail.saturating_mul(status.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

/// A file that appears under its name only when it is complete.
///
/// Dropping it without [`commit`](Self::commit) deletes what was written.
#[derive(Debug)]
pub struct AtomicFile {
    // Declared before `temporary`, so that the file is closed when its name is deleted.
    writer: BufWriter<File>,
    temporary: Temporary,
    destination: PathBuf,
    bytes: u64,
}

#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // Whatever stopped the write is being reported already; a file that stays behind is
            // found by `remove_stale_temporaries`.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AtomicFile {
    /// Opens a temporary file beside `destination`.
    ///
    /// # Errors
    /// [`FileError`] if the folder does not exist or does not take a new file.
    pub fn create(destination: &Path) -> Result<Self, FileError> {
        let path = temporary_path(destination)
            .map_err(|error| FileError::new(FileStep::Open, destination, error))?;
        // A left-over of the same name is overwritten: in a container every run may be process 1.
        let file = File::create(&path)
            .map_err(|error| FileError::writing(FileStep::Open, destination, 0, 0, error))?;
        Ok(Self {
            writer: BufWriter::new(file),
            temporary: Temporary { path, renamed: false },
            destination: destination.to_owned(),
            bytes: 0,
        })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`FileError`], which for a full disk says how much was needed and how much there is.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.bytes += bytes.len() as u64;
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
    /// [`FileError`]; the old file is then still in place, unless only the last step failed, in
    /// which the folder is flushed.
    pub fn commit(mut self) -> Result<(), FileError> {
        self.writer.flush().map_err(|error| self.error(FileStep::Write, error))?;
        self.writer.get_ref().sync_all().map_err(|error| self.error(FileStep::Sync, error))?;
        fs::rename(&self.temporary.path, &self.destination)
            .map_err(|error| self.error(FileStep::Rename, error))?;
        self.temporary.renamed = true;
        sync_folder(folder_of(&self.destination))
            .map_err(|error| self.error(FileStep::SyncFolder, error))
    }

    fn error(&self, step: FileStep, source: io::Error) -> FileError {
        let written = self.writer.get_ref().metadata().map_or(0, |metadata| metadata.len());
        let attempted = self.bytes.max(written + self.writer.buffer().len() as u64);
        FileError::writing(step, &self.destination, attempted, written, source)
    }
}

/// Writes a whole file through `write`; on any failure the file at `path` stays as it was.
///
/// A symbolic link at `path` is replaced, not followed.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = std::env::temp_dir();
/// use std::io::Write;
/// let path = folder.join("esvit-example.json");
/// esvit_train::files::write_atomically(&path, |file| writeln!(file, "{{}}"))?;
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
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FileError> {
    let mut file = AtomicFile::create(path)?;
    write(&mut file.writer).map_err(|error| file.error(FileStep::Write, error))?;
    file.commit()
}

/// A name beside `destination` that no other writer of this machine uses.
pub(crate) fn temporary_path(destination: &Path) -> io::Result<PathBuf> {
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
fn sync_folder(folder: &Path) -> io::Result<()> {
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
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

/// Whether a file of this name is the temporary file of a writer.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY_SUFFIX)
}

/// Deletes the temporary files that killed runs left in `folder` and returns their paths.
///
/// It cannot tell the files of a killed run from those of one that is still writing: call it only
/// where no other run works in `folder`.
///
/// # Errors
/// [`FileError`] if the folder cannot be listed or a file cannot be deleted.
pub fn remove_stale_temporaries(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let list_error = |error| FileError::new(FileStep::List, folder, error);
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder).map_err(list_error)? {
        let entry = entry.map_err(list_error)?;
        let is_file = entry.file_type().map_err(list_error)?.is_file();
        if is_file && is_temporary_name(&entry.file_name().to_string_lossy()) {
            let path = entry.path();
            fs::remove_file(&path)
                .map_err(|error| FileError::new(FileStep::Remove, &path, error))?;
            removed.push(path);
        }
    }
    Ok(removed)
}

fn is_temporary_name(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY_SUFFIX)
}

/// A log of lines, such as `metrics.jsonl`, of which a kill can spoil no more than the last line.
#[derive(Debug)]
pub struct LineLog {
    file: File,
    path: PathBuf,
    length: u64,
}

impl LineLog {
    /// Opens the log at `path` for appending, creates it if it is missing and cuts off a
    /// half-written last line.
    ///
    /// # Errors
    /// [`FileError`] with the path and the step that failed.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        keep_lines_while(path, |_| true)?;
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| FileError::writing(FileStep::Open, path, 0, 0, error))?;
        let length =
            file.metadata().map_err(|error| FileError::new(FileStep::Read, path, error))?.len();
        Ok(Self { file, path: path.to_owned(), length })
    }

    /// Appends `line` and a line break in one write, so that a kill does not interleave or lose
    /// earlier lines. Text with line breaks in it becomes several lines.
    ///
    /// # Errors
    /// [`FileError`]; what was written of the line is then taken back as far as possible.
    pub fn append_line(&mut self, line: &str) -> Result<(), FileError> {
        let text = format!("{line}\n");
        let attempted = text.len() as u64;
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            let described = FileError::writing(FileStep::Write, &self.path, attempted, 0, error);
            // Best effort: the write has failed already and that is what gets reported.
            let _ = self.file.set_len(self.length);
            return Err(described);
        }
        self.length += attempted;
        Ok(())
    }

    /// Waits until all lines are on the disk, where they survive a power failure too.
    ///
    /// # Errors
    /// [`FileError`] of the flush.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(|error| FileError::new(FileStep::Sync, &self.path, error))
    }
}

/// Cuts the file at `path` back to the leading lines for which `keep` holds and returns how many
/// bytes were cut off. A last line without a line break is half-written and goes too; so does
/// everything from a line on that is not UTF-8. A missing file counts as empty.
///
/// On resume it drops the metrics of the steps that will be run again.
///
/// # Errors
/// [`FileError`] with the path and the step that failed.
pub fn keep_lines_while(path: &Path, keep: impl FnMut(&str) -> bool) -> Result<u64, FileError> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(FileError::new(FileStep::Open, path, error)),
    };
    let read_error = |error| FileError::new(FileStep::Read, path, error);
    let length = file.metadata().map_err(read_error)?.len();
    let kept = length_of_lines_while(BufReader::new(&file), keep).map_err(read_error)?;
    if kept < length {
        // Only the end goes, so the file is cut in place, which is one step for the file system
        // and needs no room on a disk that may be full.
        file.set_len(kept)
            .and_then(|()| file.sync_all())
            .map_err(|error| FileError::new(FileStep::Truncate, path, error))?;
    }
    Ok(length.saturating_sub(kept))
}

fn length_of_lines_while(
    mut reader: impl BufRead,
    mut keep: impl FnMut(&str) -> bool,
) -> io::Result<u64> {
    let mut kept = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        let complete = line.strip_suffix(b"\n").and_then(|text| std::str::from_utf8(text).ok());
        match complete {
            Some(text) if keep(text) => kept += length as u64,
            _ => return Ok(kept),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

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
        for name in ["kept", ".kept", "kept.esvit-tmp"] {
            fs::write(folder.path().join(name), "")?;
        }
        let removed = remove_stale_temporaries(folder.path())?;
        assert_eq!(removed, std::slice::from_ref(&left_over.temporary.path));
        assert_eq!(names(folder.path())?, [".kept", "kept", "kept.esvit-tmp"]);
        Ok(())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_explained() -> TestResult {
        let full = OpenOptions::new().write(true).open("/dev/full")?;
        let mut file = AtomicFile {
            writer: BufWriter::new(full),
            temporary: Temporary { path: PathBuf::new(), renamed: true },
            destination: PathBuf::from("/dev/last.safetensors"),
            bytes: 0,
        };
        let error = file.write_all(&[0; 1_234_567]).expect_err("the device is full");
        let message = error.to_string();
        let expected = "the disk is full: `/dev/last.safetensors` needs more than 1.2 MB \
         and `/dev` has room for ";
        assert!(message.starts_with(expected), "{message}");
        assert!(matches!(
            error,
            FileError::DiskFull { attempted: 1_234_567, available: Some(_), .. }
        ));

        file.writer = BufWriter::new(OpenOptions::new().write(true).open("/dev/full")?);
        file.write_all(b"buffered")?;
        let error = file.commit().expect_err("the device is full");
        assert!(matches!(error, FileError::DiskFull { .. }), "{error}");

        let mut log = LineLog {
            file: OpenOptions::new().write(true).open("/dev/full")?,
            path: PathBuf::from("/dev/metrics.jsonl"),
            length: 0,
        };
        let error = log.append_line("{}").expect_err("the device is full");
        assert!(matches!(error, FileError::DiskFull { attempted: 3, .. }), "{error}");
        Ok(())
    }

    #[test]
    fn bytes_are_readable() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_260_000_000, "1.3 GB"),
            (u64::MAX, "18446744.1 TB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(readable(bytes), expected);
        }
    }

    #[test]
    fn a_log_continues_after_a_half_written_line() -> TestResult {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("metrics.jsonl");
        LineLog::open(&path)?.append_line("one")?;
        fs::write(&path, "one\ntw")?;
        let mut log = LineLog::open(&path)?;
        log.append_line("two")?;
        log.append_line("three")?;
        log.sync()?;
        assert_eq!(fs::read_to_string(&path)?, "one\ntwo\nthree\n");
        Ok(())
    }

    #[test]
    fn lines_are_kept_while_the_predicate_holds() -> TestResult {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("metrics.jsonl");
        let at_most_two = |line: &str| line.parse::<u64>().is_ok_and(|step| step <= 2);
        let cases: [(&[u8], &str); 7] = [
            (b"1\n2\n3\n4\n", "1\n2\n"),
            (b"1\n2", "1\n"),
            (b"1\n2\n", "1\n2\n"),
            (b"1\n3\n2\n", "1\n"),
            (b"1\n\0\0\0\0\n", "1\n"),
            (b"1\n\xff\n2\n", "1\n"),
            (b"", ""),
        ];
        for (before, after) in cases {
            fs::write(&path, before)?;
            let dropped = keep_lines_while(&path, at_most_two)?;
            assert_eq!(fs::read_to_string(&path)?, after);
            assert_eq!(dropped, (before.len() - after.len()) as u64);
        }
        assert_eq!(keep_lines_while(&folder.path().join("missing"), at_most_two)?, 0);
        Ok(())
    }
}
