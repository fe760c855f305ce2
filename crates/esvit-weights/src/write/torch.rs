//! Writes files for `torch.load`.

use std::io::{self, Seek, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::pickle::Pickler;
use super::{Tensor, WriteError};
use crate::torch::zip::EXTRA;

/// Prefix of the archive's entries; PyTorch accepts any.
const PREFIX: &str = "archive";

/// Stored, aligned as PyTorch does, and of one date, so that equal contents make equal files.
const ENTRY: SimpleFileOptions = SimpleFileOptions::DEFAULT
    .compression_method(CompressionMethod::Stored)
    .last_modified_time(DateTime::DEFAULT)
    .with_alignment(64);

/// A tree of tensors and plain data.
#[derive(Debug)]
pub enum Tree<'a> {
    /// Nothing.
    None,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Str(String),
    /// A dictionary, in this order.
    Dict(Vec<(String, Tree<'a>)>),
    /// A list.
    List(Vec<Tree<'a>>),
    /// A tensor.
    Tensor(Tensor<'a>),
}

/// Writes `tree` as `torch.save` does, for `torch.load(path, weights_only=True)`.
///
/// Equal input gives equal bytes. Values of tensors are requested in the tree's order. `writer` is
/// at its start: positions in the file are counted from there.
///
/// # Errors
/// When `writer` or a source of values fails, a dictionary has a duplicate key, values do not fit
/// their tensor, or the tree is deeper than [`MAX_NESTING`](crate::limits::MAX_NESTING). The file
/// is then incomplete.
pub fn write_torch<W: Write + Seek>(writer: &mut W, tree: &Tree<'_>) -> Result<(), WriteError> {
    write_torch_with(writer, tree, &[])
}

/// Like [`write_torch`], with named texts beside the tree: PyTorch passes over them, and
/// [`WeightsFile::metadata`](crate::WeightsFile::metadata) has them as entries of the dictionary.
///
/// # Errors
/// As [`write_torch`].
pub fn write_torch_with<W: Write + Seek>(
    writer: &mut W,
    tree: &Tree<'_>,
    beside: &[(&str, &str)],
) -> Result<(), WriteError> {
    let pickler = Pickler::of(tree)?;
    let mut archive = ZipWriter::new(writer);
    let start = |archive: &mut ZipWriter<_>, name: &str, length: u64| {
        let options = ENTRY.large_file(length >= u32::MAX.into());
        archive.start_file(format!("{PREFIX}/{name}"), options).map_err(io::Error::from)
    };
    start(&mut archive, "data.pkl", pickler.bytes.len() as u64)?;
    archive.write_all(&pickler.bytes)?;
    start(&mut archive, "byteorder", 0)?;
    archive.write_all(b"little")?;
    for (key, (name, tensor)) in pickler.tensors.iter().enumerate() {
        start(&mut archive, &format!("data/{key}"), tensor.length(name)?)?;
        tensor.write(name, |bytes| archive.write_all(bytes))?;
    }
    for (name, text) in beside {
        start(&mut archive, &format!("{EXTRA}{name}"), text.len() as u64)?;
        archive.write_all(text.as_bytes())?;
    }
    start(&mut archive, "version", 0)?;
    archive.write_all(b"3\n")?;
    archive.finish().map_err(io::Error::from)?.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::source::Source;
    use crate::torch::archive::{data_offset, read};

    fn written(tree: &Tree<'_>) -> Vec<u8> {
        let mut writer = Cursor::new(Vec::new());
        write_torch(&mut writer, tree).unwrap();
        writer.into_inner()
    }

    fn tensors(count: usize, values: &[f32]) -> Tree<'_> {
        let shape = [values.len()];
        Tree::List((0..count).map(|_| Tree::Tensor(Tensor::f32(&shape, values))).collect())
    }

    /// `torch.load(mmap=True)` needs storages where their elements are aligned.
    #[test]
    fn entries_are_aligned_and_in_place() {
        let source = Source::memory(written(&tensors(3, &[1.0, 2.0, 3.0])));
        let entries = read(&source).unwrap();
        assert_eq!(entries.len(), 6);
        for (name, entry) in &entries {
            let start = data_offset(&source, name, entry).unwrap();
            assert_eq!(start % 64, 0, "{name}");
            if name.contains("/data/") {
                let expected = [1f32, 2.0, 3.0].map(f32::to_le_bytes).concat();
                assert_eq!(source.read(start, entry.length).unwrap(), expected);
            }
        }
    }

    /// Other programs compare the checksums and the lengths.
    #[test]
    fn checksums_and_lengths_stand_in_both_headers() {
        let digits = "123456789".as_bytes();
        let values = || Ok(crate::Values::U8(digits.into()));
        let bytes = written(&Tree::Tensor(Tensor::new(&[9], crate::Dtype::U8, values)));
        // The check value of CRC-32.
        let fields = [&0xcbf4_3926u32.to_le_bytes()[..], &[9, 0, 0, 0], &[9, 0, 0, 0]].concat();
        let headers: Vec<&[u8]> = (bytes.windows(fields.len()).enumerate())
            .filter(|(_, part)| *part == fields)
            .map(|(at, _)| &bytes[at - 14..])
            .collect();
        assert_eq!(headers.len(), 2);
        assert!(headers[0].starts_with(b"PK\x03\x04") && bytes.starts_with(b"PK\x03\x04"));
    }

    #[test]
    fn more_entries_than_16_bits_count_are_found() {
        let count = usize::from(u16::MAX) + 2;
        let entries = read(&Source::memory(written(&tensors(count, &[])))).unwrap();
        assert_eq!(entries.len(), count + 3);
        assert!(entries.contains_key(&format!("{PREFIX}/data/{}", count - 1)));
    }
}
