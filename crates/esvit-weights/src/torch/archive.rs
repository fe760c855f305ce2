//! The central directory of a zip archive.
//!
//! PyTorch never compresses, and tensors are read at a position, so that of a zip library only this
//! would be used; and the list is checked and its memory bounded here before anything is made of it.

use std::collections::HashMap;

use crate::error::{ErrorKind, corrupt, ensure};
use crate::limits::{MAX_DIRECTORY, MAX_NAME};
use crate::source::Source;

const END: &[u8] = b"PK\x05\x06";
const END64_LOCATOR: &[u8] = b"PK\x06\x07";
const END64: &[u8] = b"PK\x06\x06";
const CENTRAL: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";
const END_LENGTH: usize = 22;
const END64_LENGTH: u64 = 56;
const LOCATOR_LENGTH: u64 = 20;
const CENTRAL_LENGTH: usize = 46;
const LOCAL_LENGTH: u64 = 30;

/// An entry of the central directory.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Position of the local header.
    header: u64,
    /// Bytes of data, unpacked.
    pub(crate) length: u64,
    /// Bytes of data in the archive; the same without compression.
    stored: u64,
    /// Compression method; 0 is none.
    pub(crate) method: u16,
}

/// Reads the central directory, by name, and checks that entries do not overlap.
pub(crate) fn read(source: &Source) -> Result<HashMap<String, Entry>, ErrorKind> {
    let (count, start, length) = central_directory(source)?;
    ErrorKind::check_limit("bytes of archive directory", length, MAX_DIRECTORY)?;
    let bytes = source.read(start, length)?;
    ensure!(
        count <= length / CENTRAL_LENGTH as u64,
        corrupt!("its archive claims {count} entries in {length} bytes")
    );
    let mut entries = HashMap::new();
    let mut extents = Vec::new();
    let mut rest = &bytes[..];
    for _ in 0..count {
        let (name, entry) = entry(&mut rest)
            .ok_or_else(|| corrupt!("an entry of its archive's directory is incomplete"))?;
        let name = String::from_utf8(name.into())
            .map_err(|_| corrupt!("a name in its archive is not UTF-8"))?;
        ErrorKind::check_limit("bytes of a name", name.len(), MAX_NAME)?;
        let end = entry.header.checked_add(LOCAL_LENGTH + name.len() as u64);
        let end = end.and_then(|end| end.checked_add(entry.stored)).filter(|&end| end <= start);
        let Some(end) = end else {
            return Err(corrupt!("entry `{name}` lies beyond its archive"));
        };
        extents.push((entry.header, end));
        let is_new = entries.insert(name.clone(), entry).is_none();
        ensure!(is_new, corrupt!("entry `{name}` is in its archive twice"));
    }
    extents.sort_unstable();
    let are_apart = extents.windows(2).all(|pair| pair[0].1 <= pair[1].0);
    ensure!(are_apart, corrupt!("entries of its archive overlap"));
    Ok(entries)
}

/// Position of an entry's data.
pub(crate) fn data_offset(source: &Source, name: &str, entry: &Entry) -> Result<u64, ErrorKind> {
    let header = source.read(entry.header, LOCAL_LENGTH)?;
    let lengths = u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
    let start = entry.header + LOCAL_LENGTH + lengths;
    let fits = start.checked_add(entry.length).is_some_and(|end| end <= source.length());
    let is_there = header.starts_with(LOCAL) && fits;
    ensure!(is_there, corrupt!("entry `{name}` is not where its archive says"));
    Ok(start)
}

/// Number of entries, position and length of the central directory.
fn central_directory(source: &Source) -> Result<(u64, u64, u64), ErrorKind> {
    let none = || corrupt!("the directory at the end of its archive is missing");
    let total = source.length();
    // A comment of up to 65535 bytes may follow the end record.
    let tail_length = total.min(END_LENGTH as u64 + u64::from(u16::MAX));
    let tail = source.read(total - tail_length, tail_length)?;
    let is_end = |at: &usize| {
        tail[*at..].starts_with(END)
            && usize::from(u16_at(&tail, at + 20)) == tail.len() - at - END_LENGTH
    };
    let last = tail.len().checked_sub(END_LENGTH).ok_or_else(none)?;
    let at = (0..=last).rev().find(is_end).ok_or_else(none)?;
    let position = total - tail_length + at as u64;

    let end64 = position.checked_sub(LOCATOR_LENGTH).map(|at| source.read(at, LOCATOR_LENGTH));
    if let Some(locator) = end64.transpose()?
        && locator.starts_with(END64_LOCATOR)
    {
        let record_at = u64_at(&locator, 8);
        let record = source.read(record_at, END64_LENGTH)?;
        let (length, start) = (u64_at(&record, 40), u64_at(&record, 48));
        let whole = start.checked_add(length).is_some_and(|end| end <= record_at);
        ensure!(record.starts_with(END64) && whole, none());
        return Ok((u64_at(&record, 32), start, length));
    }
    let record = &tail[at..];
    let (length, start) = (u64::from(u32_at(record, 12)), u64::from(u32_at(record, 16)));
    ensure!(start + length <= position, none());
    Ok((u64::from(u16_at(record, 10)), start, length))
}

/// Splits the first entry off the directory.
fn entry<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], Entry)> {
    let (fixed, behind) = rest.split_at_checked(CENTRAL_LENGTH)?;
    if !fixed.starts_with(CENTRAL) {
        return None;
    }
    let length = |at| usize::from(u16_at(fixed, at));
    let (name, behind) = behind.split_at_checked(length(28))?;
    let (extra, behind) = behind.split_at_checked(length(30))?;
    (_, *rest) = behind.split_at_checked(length(32))?;

    // Values beyond 32 bits are all ones here, and in the zip64 extra field in this order.
    let mut wide = zip64_extra(extra);
    let mut number = |at| match u32_at(fixed, at) {
        u32::MAX => {
            let (number, behind) = wide.split_first_chunk()?;
            wide = behind;
            Some(u64::from_le_bytes(*number))
        }
        number => Some(u64::from(number)),
    };
    let (length, stored, header) = (number(24)?, number(20)?, number(42)?);
    let method = u16_at(fixed, 10);
    if method == 0 && stored != length {
        return None;
    }
    Some((name, Entry { header, length, stored, method }))
}

/// The zip64 extra field; empty if there is none.
fn zip64_extra(mut extra: &[u8]) -> &[u8] {
    while extra.len() >= 4 {
        let (kind, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let Some((field, behind)) = extra[4..].split_at_checked(length) else { break };
        if kind == 1 {
            return field;
        }
        extra = behind;
    }
    &[]
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
