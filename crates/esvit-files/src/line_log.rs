//! Append-only line logs that can be truncated.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::regular::check_regular;
use crate::{FileError, FileStep};

/// A line log, such as `metrics.jsonl`, of which a kill can spoil no more than the last line.
#[derive(Debug)]
pub struct LineLog {
    file: File,
    path: PathBuf,
    length: u64,
}

impl LineLog {
    /// Opens the log at `path` for appending, creates it if it is missing and removes a
    /// half-written last line.
    ///
    /// # Errors
    /// [`FileError`] with the path and the step that failed.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        retain_lines_while(path, |_| true)?;
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| FileError::writing(FileStep::Open, path, 0, 0, error))?;
        let length =
            file.metadata().map_err(|error| FileError::new(FileStep::Read, path, error))?.len();
        Ok(Self { file, path: path.to_owned(), length })
    }

    /// Appends `line` and a line break in one write. Text with line breaks becomes several lines.
    ///
    /// # Errors
    /// [`FileError`]; a partially written line is removed if possible.
    pub fn append_line(&mut self, line: &str) -> Result<(), FileError> {
        let text = format!("{line}\n");
        let length = text.len() as u64;
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            let described = FileError::writing(FileStep::Write, &self.path, length, 0, error);
            // Best effort: the failed write is what gets reported.
            let _ = self.file.set_len(self.length);
            return Err(described);
        }
        self.length += length;
        Ok(())
    }

    /// Flushes all lines to the disk.
    ///
    /// # Errors
    /// [`FileError`] of the flush.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(|error| FileError::new(FileStep::Sync, &self.path, error))
    }
}

/// Truncates the file at `path` after the leading lines for which `keep` holds and returns the
/// number of bytes removed. A last line without a line break is half-written and removed too, as is
/// everything from the first line that is not UTF-8. A missing file counts as empty.
///
/// A resumed run uses it to drop the metrics of steps that it runs again.
///
/// # Errors
/// [`FileError`] with the path and the step that failed.
pub fn retain_lines_while(path: &Path, keep: impl FnMut(&str) -> bool) -> Result<u64, FileError> {
    let opened = || {
        check_regular(path)?;
        OpenOptions::new().read(true).write(true).open(path)
    };
    let file = match opened() {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(FileError::new(FileStep::Open, path, error)),
    };
    let read_error = |error| FileError::new(FileStep::Read, path, error);
    let length = file.metadata().map_err(read_error)?.len();
    let kept = matching_length(BufReader::new(&file), keep).map_err(read_error)?;
    if kept < length {
        // Truncating in place is atomic and needs no space on a disk that may be full.
        file.set_len(kept)
            .and_then(|()| file.sync_all())
            .map_err(|error| FileError::new(FileStep::Truncate, path, error))?;
    }
    Ok(length.saturating_sub(kept))
}

fn matching_length(
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
    use std::fs;

    type TestResult = Result<(), Box<dyn Error>>;

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
            let dropped = retain_lines_while(&path, at_most_two)?;
            assert_eq!(fs::read_to_string(&path)?, after);
            assert_eq!(dropped, (before.len() - after.len()) as u64);
        }
        assert_eq!(retain_lines_while(&folder.path().join("missing"), at_most_two)?, 0);
        Ok(())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_explained() -> TestResult {
        let mut log = LineLog {
            file: OpenOptions::new().write(true).open("/dev/full")?,
            path: PathBuf::from("/dev/metrics.jsonl"),
            length: 0,
        };
        let error = log.append_line("{}").expect_err("the device is full");
        assert!(matches!(error, FileError::DiskFull { needed: 3, .. }), "{error}");
        Ok(())
    }
}
