//! A writer that knows how large a file is that does not fit on the disk.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};

/// The writer of a whole file. On a full disk it takes the rest, counts it and drops it: the error comes at the
/// end, when it is known how much the file needs.
#[derive(Debug)]
pub struct WholeWriter {
    file: BufWriter<File>,
    /// Where the next bytes go.
    position: u64,
    length: u64,
    /// The error of a full disk.
    full: Option<io::Error>,
}

impl WholeWriter {
    /// Writes an empty file from its beginning.
    pub(crate) fn new(file: File) -> Self {
        Self { file: BufWriter::new(file), position: 0, length: 0, full: None }
    }

    /// Bytes of the file so far, those that did not fit included.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        self.file.get_ref()
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// Those of the write, and that of a disk that was full before.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        self.full.take().map_or(Ok(()), Err)
    }

    /// What an operation gives; `None` if the disk is full.
    fn unless_full<T>(&mut self, result: io::Result<T>) -> io::Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == ErrorKind::StorageFull => {
                self.full = Some(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Write for WholeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut count = bytes.len();
        if self.full.is_none() {
            let written = self.file.write(bytes);
            count = self.unless_full(written)?.unwrap_or(count);
        }
        self.position += count as u64;
        self.length = self.length.max(self.position);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.full.is_none() {
            let flushed = self.file.flush();
            self.unless_full(flushed)?;
        }
        Ok(())
    }
}

impl Seek for WholeWriter {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let place = place.ok_or(ErrorKind::InvalidInput)?;
        self.flush()?;
        if self.full.is_none() {
            self.file.seek(SeekFrom::Start(place))?;
        }
        self.position = place;
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    /// A header that is written again at the end, as archives have it.
    fn write(writer: &mut WholeWriter) -> io::Result<()> {
        writer.write_all(b"....")?;
        writer.write_all(&[7; 100_000])?;
        writer.seek(SeekFrom::Start(0))?;
        writer.write_all(b"head")?;
        assert_eq!(writer.stream_position()?, 4);
        writer.seek(SeekFrom::Current(-1))?;
        writer.write_all(b"!")?;
        writer.seek(SeekFrom::End(0))?;
        writer.write_all(b"tail")
    }

    #[test]
    fn it_writes_as_a_file_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut writer = WholeWriter::new(File::create(&path).unwrap());
        write(&mut writer).unwrap();
        writer.finish().unwrap();
        assert_eq!(writer.length(), 100_008);
        let expected = [&b"hea!"[..], &[7; 100_000], b"tail"].concat();
        assert!(std::fs::read(&path).unwrap() == expected);
        assert!(writer.seek(SeekFrom::Current(-200_000)).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_does_not_fit_is_counted() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut writer = WholeWriter::new(full);
        write(&mut writer).unwrap();
        assert_eq!(writer.length(), 100_008);
        assert_eq!(writer.finish().unwrap_err().kind(), ErrorKind::StorageFull);
        // Other errors come at once.
        let mut writer = WholeWriter::new(File::open("/dev/null").unwrap());
        assert!(writer.write_all(&[0; 100_000]).is_err());
    }
}
