//! Scalar curves for TensorBoard, without TensorFlow.
//!
//! An event file is a sequence of records: length, payload and a masked CRC-32C of each. A payload
//! is an `Event` message in the protocol-buffer encoding.
//!
//! Source of the formats: `tensorflow/core/lib/io/record_writer.h`, `event.proto` and
//! `summary.proto`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use esvit_files::protobuf::Message;
use esvit_files::{FileError, FileStep};

const FILE_PREFIX: &str = "events.out.tfevents.";
/// From version 2 on, TensorBoard takes a session's start for a resumed run.
const FILE_VERSION: &[u8] = b"brain.Event:2";
const CRC_MASK: u32 = 0xa282_ead8;

const EVENT_WALL_TIME: u64 = 1;
const EVENT_STEP: u64 = 2;
const EVENT_FILE_VERSION: u64 = 3;
const EVENT_SUMMARY: u64 = 5;
const EVENT_SESSION_LOG: u64 = 7;
const SUMMARY_VALUE: u64 = 1;
const VALUE_TAG: u64 = 1;
const VALUE_SIMPLE_VALUE: u64 = 2;
const SESSION_LOG_STATUS: u64 = 1;
const SESSION_START: u64 = 1;

/// Writes the scalars of one run to an event file of its own.
///
/// Dropping it writes out what is still buffered, but only [`flush`](Self::flush) reports a
/// failure to do so.
#[derive(Debug)]
pub struct TensorBoard {
    writer: BufWriter<File>,
    path: PathBuf,
}

impl TensorBoard {
    /// Starts an event file in `folder`, which is created if missing. TensorBoard shows all event
    /// files of a folder as one run.
    ///
    /// # Errors
    /// [`FileError`] with the path.
    pub fn create(folder: &Path) -> Result<Self, FileError> {
        let created = create_event_file(folder);
        let (file, path) = created.map_err(|e| FileError::at(FileStep::Open, folder, e))?;
        let mut board = Self { writer: BufWriter::new(file), path };
        let mut event = event_at(seconds_since_epoch(), 0);
        event.bytes(EVENT_FILE_VERSION, FILE_VERSION);
        board.record(&event)?;
        board.flush()?;
        Ok(board)
    }

    /// Like [`create`](Self::create), for a run that continues at `first_step`: TensorBoard drops
    /// points of earlier files from that step on, which a killed run may have written after its
    /// last checkpoint. (Its default loader does so for a curve when that curve's first new point
    /// arrives, its slower Python loader for all at once.)
    ///
    /// # Errors
    /// [`FileError`] with the path.
    pub fn resume(folder: &Path, first_step: u64) -> Result<Self, FileError> {
        let mut board = Self::create(folder)?;
        let mut session = Message::default();
        session.integer(SESSION_LOG_STATUS, SESSION_START);
        let mut event = event_at(seconds_since_epoch(), first_step);
        event.message(EVENT_SESSION_LOG, &session);
        board.record(&event)?;
        board.flush()?;
        Ok(board)
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds one point at `step` to the curve of each tag; `wall_time` is in seconds since 1970.
    ///
    /// # Errors
    /// [`FileError`] with the path.
    pub fn scalars(
        &mut self,
        step: u64,
        wall_time: f64,
        values: &[(&str, f32)],
    ) -> Result<(), FileError> {
        let mut summary = Message::default();
        for (tag, value) in values {
            let mut entry = Message::default();
            entry.bytes(VALUE_TAG, tag.as_bytes());
            entry.float(VALUE_SIMPLE_VALUE, *value);
            summary.message(SUMMARY_VALUE, &entry);
        }
        let mut event = event_at(wall_time, step);
        event.message(EVENT_SUMMARY, &summary);
        self.record(&event)
    }

    /// Flushes to the operating system: TensorBoard sees all points, and they survive a kill of
    /// this process.
    ///
    /// # Errors
    /// [`FileError`] with the path.
    pub fn flush(&mut self) -> Result<(), FileError> {
        self.writer.flush().map_err(|source| self.write_error(source))
    }

    fn record(&mut self, event: &Message) -> Result<(), FileError> {
        write_record(&mut self.writer, event.as_bytes()).map_err(|source| self.write_error(source))
    }

    fn write_error(&self, source: io::Error) -> FileError {
        FileError::at(FileStep::Write, &self.path, source)
    }
}

fn create_event_file(folder: &Path) -> io::Result<(File, PathBuf)> {
    fs::create_dir_all(folder)?;
    // TensorBoard reads the files of a folder in the order of their names, so a resumed run needs
    // a later second than the run before, even if the clock was set back.
    let now = seconds_since_epoch() as u64;
    let second = newest_second(folder)?.map_or(now, |newest| now.max(newest.saturating_add(1)));
    let (host, process) = (host_name(), std::process::id());
    let mut count = 0;
    loop {
        let path = folder.join(format!("{FILE_PREFIX}{second:010}.{host}.{process}.{count}"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => count += 1,
            result => return Ok((result?, path)),
        }
    }
}

fn newest_second(folder: &Path) -> io::Result<Option<u64>> {
    let mut newest = None;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let second = name
            .to_str()
            .and_then(|name| name.strip_prefix(FILE_PREFIX))
            .and_then(|rest| rest.split('.').next())
            .and_then(|second| second.parse().ok());
        newest = newest.max(second);
    }
    Ok(newest)
}

fn seconds_since_epoch() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(unix)]
fn host_name() -> String {
    file_name_part(&rustix::system::uname().nodename().to_string_lossy())
}

#[cfg(not(unix))]
fn host_name() -> String {
    file_name_part(&std::env::var("COMPUTERNAME").unwrap_or_default())
}

fn file_name_part(name: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let plain = name.chars().map(|letter| if is_plain(letter) { letter } else { '-' }).collect();
    if name.is_empty() { "localhost".to_owned() } else { plain }
}

fn write_record(writer: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let length = (payload.len() as u64).to_le_bytes();
    writer.write_all(&length)?;
    writer.write_all(&masked_crc(&length).to_le_bytes())?;
    writer.write_all(payload)?;
    writer.write_all(&masked_crc(payload).to_le_bytes())
}

/// The format's mask, for data that itself contains checksums.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(CRC_MASK)
}

fn event_at(wall_time: f64, step: u64) -> Message {
    let mut event = Message::default();
    event.double(EVENT_WALL_TIME, wall_time);
    event.integer(EVENT_STEP, step);
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    type TestResult = Result<(), Box<dyn Error>>;

    /// The payloads of a file, after a check of all checksums.
    fn records(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = checked(bytes, 8)?;
            let length = u64::from_le_bytes(length.try_into().ok()?);
            let (payload, rest) = checked(rest, length as usize)?;
            records.push(payload);
            bytes = rest;
        }
        Some(records)
    }

    fn checked(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
        let (data, rest) = bytes.split_at_checked(length)?;
        let (checksum, rest) = rest.split_first_chunk()?;
        let unmasked = u32::from_le_bytes(*checksum).wrapping_sub(CRC_MASK).rotate_left(15);
        (unmasked == bitwise_crc32c(data)).then_some((data, rest))
    }

    /// The definition, bit by bit.
    fn bitwise_crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
            })
        })
    }

    const WIRE_VARINT: u64 = 0;
    const WIRE_FIXED_64: u64 = 1;
    const WIRE_BYTES: u64 = 2;
    const WIRE_FIXED_32: u64 = 5;

    #[derive(Debug, PartialEq)]
    enum Field<'a> {
        Integer(u64),
        Double(f64),
        Bytes(&'a [u8]),
        Float(f32),
    }

    fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let field = match key & 7 {
                WIRE_VARINT => Field::Integer(varint(&mut bytes)?),
                WIRE_FIXED_64 => Field::Double(f64::from_le_bytes(take(&mut bytes)?)),
                WIRE_FIXED_32 => Field::Float(f32::from_le_bytes(take(&mut bytes)?)),
                WIRE_BYTES => {
                    let length = varint(&mut bytes)? as usize;
                    let (value, rest) = bytes.split_at_checked(length)?;
                    bytes = rest;
                    Field::Bytes(value)
                }
                _ => return None,
            };
            fields.push((key >> 3, field));
        }
        Some(fields)
    }

    fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
        let (value, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(*value)
    }

    fn varint(bytes: &mut &[u8]) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = take(bytes)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    #[test]
    fn checksums_match_the_known_answers() {
        // RFC 3720, appendix B.4, and the check value of the CRC catalogue.
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        let cases: [(&[u8], u32); 5] = [
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (&descending, 0x113f_db5c),
            (b"123456789", 0xe306_9283),
        ];
        for (bytes, expected) in cases {
            assert_eq!(crc32c::crc32c(bytes), expected);
            assert_eq!(bitwise_crc32c(bytes), expected);
        }
    }

    #[test]
    fn the_file_parses_back() -> TestResult {
        let folder = tempfile::tempdir()?;
        let mut board = TensorBoard::create(&folder.path().join("events"))?;
        board.scalars(300, 1.7e9, &[("train/loss", 8.5), ("health/é", f32::NEG_INFINITY)])?;
        board.flush()?;

        let bytes = fs::read(board.path())?;
        let records = records(&bytes).ok_or("a record is damaged")?;
        let [version, scalars] = records[..] else { return Err("not two records".into()) };
        let version = fields(version).ok_or("the first event is damaged")?;
        assert_eq!(version[1..], [(2, Field::Integer(0)), (3, Field::Bytes(b"brain.Event:2"))]);

        let scalars = fields(scalars).ok_or("the second event is damaged")?;
        let [(1, Field::Double(1.7e9)), (2, Field::Integer(300)), (5, Field::Bytes(summary))] =
            scalars[..]
        else {
            return Err(format!("{scalars:?}").into());
        };
        let expected = [("train/loss", 8.5), ("health/é", f32::NEG_INFINITY)];
        let values = fields(summary).ok_or("the summary is damaged")?;
        assert_eq!(values.len(), expected.len());
        for ((field, value), (tag, scalar)) in values.iter().zip(expected) {
            let (1, Field::Bytes(value)) = (field, value) else {
                return Err(format!("{field}: {value:?}").into());
            };
            let expected = vec![(1, Field::Bytes(tag.as_bytes())), (2, Field::Float(scalar))];
            assert_eq!(fields(value), Some(expected));
        }
        Ok(())
    }

    #[test]
    fn a_resumed_run_announces_its_first_step_in_a_later_file() -> TestResult {
        let folder = tempfile::tempdir()?;
        let first = TensorBoard::create(folder.path())?;
        let second = TensorBoard::resume(folder.path(), 7)?;
        assert!(second.path() > first.path());

        let bytes = fs::read(second.path())?;
        let records = records(&bytes).ok_or("a record is damaged")?;
        let start = fields(records[1]).ok_or("the second event is damaged")?;
        assert_eq!(start[1..], [(2, Field::Integer(7)), (7, Field::Bytes(&[8, 1]))]);
        Ok(())
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() -> TestResult {
        let file = tempfile::NamedTempFile::new()?;
        let error = TensorBoard::create(file.path()).expect_err("a file is in the way");
        assert!(error.to_string().ends_with(&format!("`{}`", file.path().display())), "{error}");
        Ok(())
    }

    #[test]
    fn host_names_become_part_of_a_file_name() {
        let cases = [("gpu-3.lab", "gpu-3.lab"), ("a/b c", "a-b-c"), ("", "localhost")];
        for (name, expected) in cases {
            assert_eq!(file_name_part(name), expected);
        }
    }

    /// Also where both were made within a second, by processes of any number.
    #[test]
    fn a_later_file_has_a_later_second() -> TestResult {
        let folder = tempfile::tempdir()?;
        let seconds: Result<Vec<u64>, _> = [0; 3]
            .map(|_| -> Result<u64, Box<dyn Error>> {
                let board = TensorBoard::create(folder.path())?;
                let name = board.path().file_name().and_then(|name| name.to_str());
                let rest = name.and_then(|name| name.strip_prefix(FILE_PREFIX));
                Ok(rest.and_then(|rest| rest.split('.').next()).ok_or("no second")?.parse()?)
            })
            .into_iter()
            .collect();
        assert!(seconds?.is_sorted_by(|a, b| a < b));
        Ok(())
    }
}
