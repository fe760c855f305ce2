//! Writes a zip archive of uncompressed entries, aligned as PyTorch does.

use std::io::{self, Seek, SeekFrom, Write};

use super::WriteError;

/// Alignment of data in bytes.
const ALIGNMENT: u64 = 64;

/// PyTorch's extra field for padding.
const PADDING_EXTRA: [u8; 2] = *b"FB";

/// The zip64 extra field.
const ZIP64_EXTRA: [u8; 2] = [1, 0];

/// 1 January 1980, so that equal contents make equal files.
const DATE: [u8; 4] = [0, 0, 0x21, 0];

/// Names are UTF-8.
const FLAGS: u16 = 1 << 11;

/// The version of the format with zip64.
const VERSION: u16 = 45;

const LOCAL_LENGTH: u64 = 30;
const CRC_AT: u64 = 14;

#[derive(Debug)]
struct Entry {
    name: String,
    header: u64,
    length: u64,
    crc: u32,
}

/// An archive that starts at the writer's current position.
#[derive(Debug)]
pub(super) struct Archive<'w, W> {
    writer: &'w mut W,
    /// Position of the archive in the writer.
    base: u64,
    entries: Vec<Entry>,
    /// The least number to be written in 64 bits.
    zip64_threshold: u64,
}

impl<'w, W: Write + Seek> Archive<'w, W> {
    pub(super) fn new(writer: &'w mut W) -> io::Result<Self> {
        let base = writer.stream_position()?;
        Ok(Self { writer, base, entries: Vec::new(), zip64_threshold: u32::MAX.into() })
    }

    /// Writes an entry with these bytes.
    pub(super) fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        self.add_entry(name, bytes.len() as u64, |sink| Ok(sink(bytes)?))
    }

    /// Writes an entry of `length` bytes, which `make` passes to its argument.
    pub(super) fn add_entry(
        &mut self,
        name: &str,
        length: u64,
        make: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let header = self.writer.stream_position()? - self.base;
        let extra = self.local_extra(header, name, length);
        let mut local = b"PK\x03\x04".to_vec();
        local.extend(VERSION.to_le_bytes());
        local.extend(FLAGS.to_le_bytes());
        local.extend([0, 0]);
        local.extend(DATE);
        local.extend([0; 4]);
        local.extend(self.u32_or_max(length).to_le_bytes());
        local.extend(self.u32_or_max(length).to_le_bytes());
        local.extend((name.len() as u16).to_le_bytes());
        local.extend((extra.len() as u16).to_le_bytes());
        local.extend(name.as_bytes());
        local.extend(extra);
        self.writer.write_all(&local)?;

        let mut hasher = crc32fast::Hasher::new();
        make(&mut |bytes| {
            hasher.update(bytes);
            self.writer.write_all(bytes)
        })?;
        let crc = hasher.finalize();
        let end = self.writer.stream_position()?;
        self.writer.seek(SeekFrom::Start(self.base + header + CRC_AT))?;
        self.writer.write_all(&crc.to_le_bytes())?;
        self.writer.seek(SeekFrom::Start(end))?;
        self.entries.push(Entry { name: name.into(), header, length, crc });
        Ok(())
    }

    fn local_extra(&self, header: u64, name: &str, length: u64) -> Vec<u8> {
        let mut extra = Vec::new();
        if length >= self.zip64_threshold {
            extra.extend(ZIP64_EXTRA);
            extra.extend(16u16.to_le_bytes());
            extra.extend(length.to_le_bytes());
            extra.extend(length.to_le_bytes());
        }
        let fixed = header + LOCAL_LENGTH + name.len() as u64 + extra.len() as u64 + 4;
        let padding = fixed.next_multiple_of(ALIGNMENT) - fixed;
        extra.extend(PADDING_EXTRA);
        extra.extend((padding as u16).to_le_bytes());
        extra.resize(extra.len() + padding as usize, b'Z');
        extra
    }

    fn u32_or_max(&self, number: u64) -> u32 {
        if number >= self.zip64_threshold { u32::MAX } else { number as u32 }
    }

    /// Writes the central directory, which completes the archive.
    pub(super) fn finish(self) -> io::Result<()> {
        let start = self.writer.stream_position()? - self.base;
        for entry in &self.entries {
            let record = self.central_header(entry);
            self.writer.write_all(&record)?;
        }
        let end = self.writer.stream_position()? - self.base;
        let (count, length) = (self.entries.len() as u64, end - start);

        let mut record = Vec::new();
        let wide = [
            count >= u16::MAX.into(),
            length >= self.zip64_threshold,
            start >= self.zip64_threshold,
        ];
        if wide.contains(&true) {
            record.extend(b"PK\x06\x06");
            record.extend(44u64.to_le_bytes());
            record.extend(VERSION.to_le_bytes());
            record.extend(VERSION.to_le_bytes());
            record.extend([0; 8]);
            for number in [count, count, length, start] {
                record.extend(number.to_le_bytes());
            }
            record.extend(b"PK\x06\x07\0\0\0\0");
            record.extend(end.to_le_bytes());
            record.extend(1u32.to_le_bytes());
        }
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        record.extend(b"PK\x05\x06\0\0\0\0");
        record.extend(count.to_le_bytes());
        record.extend(count.to_le_bytes());
        record.extend(self.u32_or_max(length).to_le_bytes());
        record.extend(self.u32_or_max(start).to_le_bytes());
        record.extend([0, 0]);
        self.writer.write_all(&record)?;
        self.writer.flush()
    }

    fn central_header(&self, entry: &Entry) -> Vec<u8> {
        let mut wide = Vec::new();
        for number in [entry.length, entry.length, entry.header] {
            if number >= self.zip64_threshold {
                wide.extend(number.to_le_bytes());
            }
        }
        let extra_length = if wide.is_empty() { 0 } else { wide.len() + 4 };
        let mut record = b"PK\x01\x02".to_vec();
        record.extend(VERSION.to_le_bytes());
        record.extend(VERSION.to_le_bytes());
        record.extend(FLAGS.to_le_bytes());
        record.extend([0, 0]);
        record.extend(DATE);
        record.extend(entry.crc.to_le_bytes());
        record.extend(self.u32_or_max(entry.length).to_le_bytes());
        record.extend(self.u32_or_max(entry.length).to_le_bytes());
        record.extend((entry.name.len() as u16).to_le_bytes());
        record.extend((extra_length as u16).to_le_bytes());
        record.extend([0; 10]);
        record.extend(self.u32_or_max(entry.header).to_le_bytes());
        record.extend(entry.name.as_bytes());
        if !wide.is_empty() {
            record.extend(ZIP64_EXTRA);
            record.extend((wide.len() as u16).to_le_bytes());
            record.extend(wide);
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::source::Source;
    use crate::torch::archive::{data_offset, read};

    /// With a low bound, numbers of 64 bits are written without 4 GiB of data.
    #[test]
    fn entries_are_found_with_numbers_of_32_and_64_bits() {
        for zip64_threshold in [u32::MAX.into(), 150, 0] {
            let mut writer = Cursor::new(Vec::new());
            let mut archive = Archive::new(&mut writer).unwrap();
            archive.zip64_threshold = zip64_threshold;
            archive.add_bytes("a/small", b"abc").unwrap();
            archive.add_bytes("a/large", &[7; 200]).unwrap();
            archive.add_bytes("a/empty", b"").unwrap();
            archive.finish().unwrap();
            let source = Source::memory(writer.into_inner());
            let entries = read(&source).unwrap();
            for (name, expected) in
                [("a/small", &b"abc"[..]), ("a/large", &[7; 200]), ("a/empty", b"")]
            {
                let start = data_offset(&source, name, &entries[name]).unwrap();
                assert_eq!(start % ALIGNMENT, 0);
                assert_eq!(source.read(start, entries[name].length).unwrap(), expected);
            }
        }
    }

    /// Other programs compare the checksums, and look at the flag of names in UTF-8.
    #[test]
    fn checksums_and_flags_stand_in_both_headers() {
        let mut writer = Cursor::new(Vec::new());
        let mut archive = Archive::new(&mut writer).unwrap();
        archive.add_bytes("a/ü", b"123456789").unwrap();
        archive.finish().unwrap();
        let bytes = writer.into_inner();
        // The check value of CRC-32.
        let crc = 0xcbf4_3926u32.to_le_bytes();
        let list = bytes.windows(4).position(|part| part == b"PK\x01\x02").unwrap();
        assert_eq!((&bytes[14..18], &bytes[list + 16..list + 20]), (&crc[..], &crc[..]));
        assert_eq!((&bytes[6..8], &bytes[list + 8..list + 10]), (&[0, 8][..], &[0, 8][..]));
        assert_eq!((&bytes[18..22], &bytes[22..26]), (&[9, 0, 0, 0][..], &[9, 0, 0, 0][..]));
    }

    /// Whatever stands before it in the writer is no part of the archive.
    #[test]
    fn an_archive_may_begin_anywhere() {
        let mut writer = Cursor::new(b"before".to_vec());
        writer.set_position(6);
        let mut archive = Archive::new(&mut writer).unwrap();
        archive.add_bytes("a/b", b"abc").unwrap();
        archive.add_bytes("a/c", b"de").unwrap();
        archive.finish().unwrap();
        let source = Source::memory(writer.into_inner()[6..].to_vec());
        let entries = read(&source).unwrap();
        let start = data_offset(&source, "a/c", &entries["a/c"]).unwrap();
        assert_eq!((start % ALIGNMENT, source.read(start, 2).unwrap()), (0, b"de".to_vec()));
    }

    #[test]
    fn more_entries_than_16_bits_count_are_found() {
        let mut writer = Cursor::new(Vec::new());
        let mut archive = Archive::new(&mut writer).unwrap();
        let count = usize::from(u16::MAX) + 2;
        (0..count).for_each(|i| archive.add_bytes(&format!("a/{i}"), b"").unwrap());
        archive.finish().unwrap();
        let entries = read(&Source::memory(writer.into_inner())).unwrap();
        assert_eq!(entries.len(), count);
        assert!(entries.contains_key(&format!("a/{}", count - 1)));
    }
}
