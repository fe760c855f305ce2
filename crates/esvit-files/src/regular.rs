//! Reads whole files that must be regular ones: a pipe would wait for a writer, and a device may have
//! no end.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// The bytes of a regular file.
///
/// # Errors
/// That of the operating system, or [`ErrorKind::InvalidInput`] for a pipe, a device or a socket.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    check_regular(path)?;
    fs::read(path)
}

/// The text of a regular file.
///
/// # Errors
/// As [`read_regular`], and [`ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    check_regular(path)?;
    fs::read_to_string(path)
}

/// What to do about a file that cannot be read, for hints.
pub fn read_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => "check the path",
        ErrorKind::NotADirectory => "check the path: a part of it is a file and no folder",
        ErrorKind::IsADirectory => "it is a folder: name the file that is meant in it",
        ErrorKind::InvalidInput => "name a regular file",
        ErrorKind::InvalidData => "name a file of text, in UTF-8",
        ErrorKind::PermissionDenied => "give yourself the right to read it",
        _ => "check that it is whole and may be read",
    }
}

/// That a path, if links are followed, is a regular file or a folder, which cannot be read anyway.
pub(crate) fn check_regular(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "text\n").unwrap();
        assert_eq!(read_regular(&file).unwrap(), b"text\n");
        assert_eq!(read_text(&file).unwrap(), "text\n");
        fs::write(&file, b"\xff").unwrap();
        assert_eq!(read_text(&file).unwrap_err().kind(), ErrorKind::InvalidData);
        let missing = read_text(&folder.path().join("missing")).unwrap_err();
        assert_eq!((missing.kind(), read_hint(&missing)), (ErrorKind::NotFound, "check the path"));
        let error = read_text(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IsADirectory);
        assert!(read_hint(&error).starts_with("it is a folder: "));
        let error = read_text(&file.join("below")).unwrap_err();
        assert!(read_hint(&error).ends_with("a part of it is a file and no folder"));
        assert_eq!(read_hint(&read_text(&file).unwrap_err()), "name a file of text, in UTF-8");
    }

    #[cfg(unix)]
    #[test]
    fn what_has_no_end_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for error in [read_regular(&link).map(drop), read_text(&link).map(drop)] {
            let error = error.unwrap_err();
            assert_eq!(error.to_string(), "it is not a regular file");
        }
    }
}
