//! File errors, with the step that failed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileStep {
    /// Opening or creating it.
    Open,
    /// Reading its contents or its length.
    Read,
    /// Writing to it.
    Write,
    /// Flushing it to the disk (`fsync`).
    Sync,
    /// Renaming the finished temporary file.
    Rename,
    /// Flushing its folder to the disk (`fsync`).
    SyncFolder,
    /// Truncating it.
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
            Self::Truncate => "truncate",
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
        "the disk is full: `{path}` needs {} and `{folder}` has room for {}, \
         make room there or choose a folder on another disk",
        amount(*.needed),
        .available.map_or_else(|| "less".to_owned(), format_bytes)
    )]
    DiskFull {
        /// The file, by its final name.
        path: PathBuf,
        /// The folder it was being written in.
        folder: PathBuf,
        /// Bytes that it needs: all of a file that is written whole, what is appended to another one, and 0
        /// where that is not known.
        needed: u64,
        /// Free bytes in the folder not counting this file, if known.
        available: Option<u64>,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl FileError {
    /// The file at `path` cannot be read.
    pub fn reading(path: &Path, source: io::Error) -> Self {
        Self::new(FileStep::Read, path, source)
    }

    /// A step of writing the file at `path` failed.
    pub fn at(step: FileStep, path: &Path, source: io::Error) -> Self {
        Self::writing(step, path, 0, 0, source)
    }

    /// The same error; that of a full disk is of a file that needs so many bytes.
    #[must_use]
    pub fn needing(self, bytes: u64) -> Self {
        match self {
            Self::DiskFull { path, folder, available, source, .. } => {
                Self::DiskFull { path, folder, needed: bytes, available, source }
            }
            other => other,
        }
    }

    pub(crate) fn new(step: FileStep, path: &Path, source: io::Error) -> Self {
        Self::Io { step, path: path.to_owned(), source }
    }

    /// Of the `needed` bytes, `written` are in a temporary file that will be deleted and count as free.
    pub(crate) fn writing(
        step: FileStep,
        path: &Path,
        needed: u64,
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
            needed,
            available,
            source,
        }
    }
}

fn amount(needed: u64) -> String {
    if needed == 0 { "more".into() } else { format_bytes(needed) }
}

/// A number of bytes in a unit that shows it, such as `11.7 MB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog10() / 3).min(4);
    format!("{:.1} {}", bytes as f64 / 1000f64.powi(power as i32), UNITS[power as usize - 1])
}

pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Free bytes on the disk of a folder, which need not exist yet, if the system says.
#[cfg(unix)]
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let status = rustix::fs::statvfs(existing(folder)).ok()?;
    Some(status.f_bavail.saturating_mul(status.f_frsize))
}

/// Free bytes on the disk of a folder, if the system says.
#[cfg(not(unix))]
pub fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

/// The folder, or the nearest one above it that exists.
#[cfg(unix)]
fn existing(folder: &Path) -> &Path {
    folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(format_bytes(bytes), expected);
        }
    }

    #[test]
    fn a_full_disk_says_what_is_needed() {
        let full = |needed| {
            let error = io::ErrorKind::StorageFull.into();
            FileError::writing(FileStep::Write, Path::new("a/f.npy"), needed, 0, error)
        };
        let said = |error: FileError| error.to_string();
        assert!(said(full(0)).starts_with("the disk is full: `a/f.npy` needs more and `a` has "));
        assert!(said(full(12_000)).contains(" needs 12.0 kB and "));
        assert!(said(full(1).needing(3_000_000)).contains(" needs 3.0 MB and "));
        let other = FileError::at(FileStep::Write, Path::new("a"), io::ErrorKind::NotFound.into());
        assert_eq!(said(other.needing(1)), "cannot write `a`");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_free_where_nothing_is_yet() {
        assert_eq!(existing(Path::new("/tmp/none/of/these")), Path::new("/tmp"));
        assert_eq!(existing(Path::new("none/of/these")), Path::new("."));
        assert!(free_bytes(Path::new("none/of/these")).is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn a_bare_name_is_in_the_current_folder() {
        for (path, folder) in [("file", "."), ("a/file", "a"), ("/file", "/")] {
            assert_eq!(folder_of(Path::new(path)), Path::new(folder));
        }
    }
}
