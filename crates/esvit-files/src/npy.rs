//! NumPy's `.npy` files, version 1.0: matrices of `f32` and vectors of `i64`.
//!
//! A file is a header and then the little-endian values in C order. The header is padded with
//! spaces to a fixed length, so that the number of rows can be filled in at the end.
//!
//! Format: `numpy.lib.format` in the NumPy reference.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use crate::{AtomicFile, FileError};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
const VERSION: [u8; 2] = [1, 0];
const PREAMBLE_LENGTH: usize = 10;
/// A multiple of 64, as the format requires, with room for any two dimensions.
const HEADER_LENGTH: usize = 128;
/// A multiple of every element size.
const READ_CHUNK: usize = 1 << 16;

/// A `.npy` file that could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NpyError {
    /// The file could not be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A matrix needs at least one column.
    #[error("cannot write `{path}` as a matrix without columns")]
    NoColumns {
        /// The file.
        path: PathBuf,
    },
    /// The appended values are not whole rows.
    #[error("cannot append {values} values to `{path}`, whose rows have {columns}")]
    PartialRow {
        /// The file.
        path: PathBuf,
        /// Number of values given.
        values: usize,
        /// Number of columns.
        columns: usize,
    },
    /// It is damaged, of an unsupported kind, or of another element type than asked for.
    #[error("cannot read `{path}` as a `.npy` file: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Element types: `f32` or `i64`.
pub trait Element: Copy + private::Sealed {
    /// NumPy's notation, such as `<f4`.
    const DESCRIPTION: &'static str;
    /// The values in little-endian bytes.
    fn to_bytes(values: &[Self]) -> Vec<u8>;
    /// The values of little-endian bytes.
    fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = Self>;
}

mod private {
    pub trait Sealed {}
}

macro_rules! element {
    ($type:ty, $description:literal) => {
        impl private::Sealed for $type {}

        impl Element for $type {
            const DESCRIPTION: &'static str = $description;

            fn to_bytes(values: &[Self]) -> Vec<u8> {
                values.iter().flat_map(|value| value.to_le_bytes()).collect()
            }

            fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = Self> {
                bytes.as_chunks().0.iter().map(|&bytes| Self::from_le_bytes(bytes))
            }
        }
    };
}

element!(f32, "<f4");
element!(i64, "<i8");

/// Writes a `.npy` file row by row, without holding it in memory.
///
/// The file appears under its name when [`finish`](Self::finish) succeeds.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let path = std::env::temp_dir().join("esvit-example.npy");
/// use esvit_files::npy::{NpyWriter, read};
/// let mut embeddings = NpyWriter::create(&path, 2)?;
/// embeddings.append(&[0.5f32, 1.0])?;
/// embeddings.append(&[2.0, 3.0, 4.0, 5.0])?;
/// assert_eq!(embeddings.finish()?, 3);
/// assert_eq!(read::<f32>(&path)?.shape, [3, 2]);
/// # std::fs::remove_file(&path)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct NpyWriter<E> {
    file: AtomicFile,
    path: PathBuf,
    columns: Option<usize>,
    values: usize,
    element: PhantomData<E>,
}

impl<E: Element> NpyWriter<E> {
    /// Starts a matrix of `columns` columns.
    ///
    /// # Errors
    /// [`NpyError::NoColumns`], and [`NpyError::File`] if the file cannot be created.
    pub fn create(path: &Path, columns: usize) -> Result<Self, NpyError> {
        if columns == 0 {
            return Err(NpyError::NoColumns { path: path.to_owned() });
        }
        Self::start(path, Some(columns))
    }

    /// Starts a vector.
    ///
    /// # Errors
    /// [`NpyError::File`] if the file cannot be created.
    pub fn create_vector(path: &Path) -> Result<Self, NpyError> {
        Self::start(path, None)
    }

    fn start(path: &Path, columns: Option<usize>) -> Result<Self, NpyError> {
        let mut file = AtomicFile::create(path)?;
        file.write_all(&header::<E>(0, columns))?;
        Ok(Self { file, path: path.to_owned(), columns, values: 0, element: PhantomData })
    }

    /// Appends one or more whole rows.
    ///
    /// # Errors
    /// [`NpyError::PartialRow`], after which the writer is still usable, and [`NpyError::File`].
    pub fn append(&mut self, rows: &[E]) -> Result<(), NpyError> {
        let columns = self.columns.unwrap_or(1);
        if !rows.len().is_multiple_of(columns) {
            let path = self.path.clone();
            return Err(NpyError::PartialRow { path, values: rows.len(), columns });
        }
        self.file.write_all(&E::to_bytes(rows))?;
        self.values += rows.len();
        Ok(())
    }

    /// Fills in the number of rows, renames the file to its final name and returns that number.
    ///
    /// # Errors
    /// [`NpyError::File`]; no file is left.
    pub fn finish(mut self) -> Result<usize, NpyError> {
        let rows = self.values / self.columns.unwrap_or(1);
        self.file.overwrite(0, &header::<E>(rows, self.columns))?;
        self.file.commit()?;
        Ok(rows)
    }
}

/// The header of a matrix, or of a vector without `columns`, of fixed length.
pub fn header<E: Element>(rows: usize, columns: Option<usize>) -> Vec<u8> {
    let shape = match columns {
        Some(columns) => format!("({rows}, {columns})"),
        None => format!("({rows},)"),
    };
    let text =
        format!("{{'descr': '{}', 'fortran_order': False, 'shape': {shape}, }}", E::DESCRIPTION);
    let length = HEADER_LENGTH - PREAMBLE_LENGTH;
    let start = [&MAGIC[..], &VERSION, &(length as u16).to_le_bytes()].concat();
    [start, format!("{text:0$}\n", length - 1).into_bytes()].concat()
}

/// The contents of a `.npy` file.
#[derive(Debug, Clone, PartialEq)]
pub struct NpyArray<E> {
    /// Shape, `[rows, columns]` for a matrix.
    pub shape: Vec<usize>,
    /// The values in C order.
    pub values: Vec<E>,
}

/// Reads a `.npy` file of version 1.0 in C order, as `numpy.save` writes it.
///
/// # Errors
/// [`NpyError`]; a file whose length does not fit its shape is refused before memory for its values
/// is allocated.
pub fn read<E: Element>(path: &Path) -> Result<NpyArray<E>, NpyError> {
    let mut reader = NpyReader::open(path)?;
    let values = reader.rows(usize::MAX)?;
    Ok(NpyArray { shape: reader.shape, values })
}

/// Reads a `.npy` file in pieces.
#[derive(Debug)]
pub struct NpyReader<E, R = BufReader<File>> {
    reader: R,
    path: PathBuf,
    shape: Vec<usize>,
    /// Number of values not read yet.
    left: usize,
    element: PhantomData<E>,
}

impl<E: Element> NpyReader<E> {
    /// Opens a file and checks its type and length.
    ///
    /// # Errors
    /// [`NpyError`].
    pub fn open(path: &Path) -> Result<Self, NpyError> {
        let read_error = |source| FileError::reading(path, source);
        let file = File::open(path).map_err(read_error)?;
        let length = file.metadata().map_err(read_error)?.len();
        Self::new(BufReader::new(file), length, path)
    }
}

impl<E: Element, R: Read> NpyReader<E, R> {
    /// Reads an array of `length` bytes, header included; `path` is for messages.
    fn new(mut reader: R, length: u64, path: &Path) -> Result<Self, NpyError> {
        let read_error = |source| FileError::reading(path, source);
        let unusable = |reason| NpyError::Unusable { path: path.to_owned(), reason };
        let text = read_header_text(&mut reader).map_err(read_error)?.map_err(unusable)?;
        let (element, shape) = parse_header(&text).map_err(unusable)?;
        if element != E::DESCRIPTION {
            return Err(unusable(format!(
                "it holds values of type `{element}` instead of `{0}`, convert it with \
                 `.astype('{0}')`",
                E::DESCRIPTION
            )));
        }
        let found = length.saturating_sub((PREAMBLE_LENGTH + text.len()) as u64);
        // Saturates on overflow, which no file length matches.
        let bytes = |bytes: u64, &length: &usize| bytes.saturating_mul(length as u64);
        let expected = shape.iter().fold(size_of::<E>() as u64, bytes);
        if found != expected {
            return Err(unusable(format!(
                "it holds {found} bytes of values, its shape {shape:?} needs {expected}"
            )));
        }
        let too_large = |_| read_error(io::ErrorKind::OutOfMemory.into());
        let left = usize::try_from(expected).map_err(too_large)? / size_of::<E>();
        Ok(Self { reader, path: path.to_owned(), shape, left, element: PhantomData })
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Reads at most `count` rows; empty at the end.
    ///
    /// # Errors
    /// [`NpyError::File`], also if there is not enough memory.
    pub fn rows(&mut self, count: usize) -> Result<Vec<E>, NpyError> {
        let row: usize = self.shape.iter().skip(1).product();
        let wanted = count.saturating_mul(row).min(self.left);
        let values = read_values(&mut self.reader, wanted)
            .map_err(|source| FileError::reading(&self.path, source))?;
        self.left -= wanted;
        Ok(values)
    }
}

fn read_values<E: Element>(mut reader: impl Read, count: usize) -> io::Result<Vec<E>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count)?;
    let mut chunk = [0; READ_CHUNK];
    let mut remaining = count * size_of::<E>();
    while remaining > 0 {
        let chunk = &mut chunk[..remaining.min(READ_CHUNK)];
        reader.read_exact(chunk)?;
        values.extend(E::from_bytes(chunk));
        remaining -= chunk.len();
    }
    Ok(values)
}

/// The header text after the preamble; the inner error says why the preamble is refused.
fn read_header_text(reader: &mut impl Read) -> io::Result<Result<String, String>> {
    let mut preamble = Vec::new();
    reader.take(PREAMBLE_LENGTH as u64).read_to_end(&mut preamble)?;
    let (Some(MAGIC), &[.., major, minor, low, high]) = (preamble.first_chunk(), &preamble[..])
    else {
        return Ok(Err("it does not begin with `\\x93NUMPY`".to_owned()));
    };
    if [major, minor] != VERSION {
        return Ok(Err(format!("its format version is {major}.{minor} instead of 1.0")));
    }
    let mut text = Vec::new();
    let length = u16::from_le_bytes([low, high]);
    reader.take(length.into()).read_to_end(&mut text)?;
    if text.len() < length.into() {
        return Ok(Err("it ends within the header".to_owned()));
    }
    Ok(String::from_utf8(text).map_err(|_| "its header is not text".to_owned()))
}

/// The element type and the shape.
fn parse_header(text: &str) -> Result<(String, Vec<usize>), String> {
    let element = value_of(text, "descr")?
        .strip_prefix('\'')
        .and_then(|rest| rest.split_once('\''))
        .map(|(element, _)| element.to_owned())
        .ok_or("its `descr` is not a simple type")?;
    if !value_of(text, "fortran_order")?.starts_with("False") {
        return Err("its values are in Fortran order, save `np.ascontiguousarray` of it".into());
    }
    let shape = value_of(text, "shape")?
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .and_then(|(lengths, _)| parse_shape(lengths))
        .ok_or("its `shape` is not a tuple of lengths")?;
    Ok((element, shape))
}

/// The text that follows `key` in a Python dictionary of strings, booleans and tuples.
fn value_of<'a>(dictionary: &'a str, key: &str) -> Result<&'a str, String> {
    dictionary
        .split_once(&format!("'{key}'"))
        .and_then(|(_, rest)| rest.trim_start().strip_prefix(':'))
        .map(str::trim_start)
        .ok_or_else(|| format!("its header has no `{key}`"))
}

fn parse_shape(lengths: &str) -> Option<Vec<usize>> {
    let lengths = lengths.trim();
    let lengths = lengths.strip_suffix(',').unwrap_or(lengths);
    if lengths.is_empty() {
        return Some(Vec::new());
    }
    lengths.split(',').map(|length| length.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    type TestResult = Result<(), Box<dyn Error>>;

    #[test]
    fn the_header_is_exact() {
        let matrix =
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 768), }";
        let vector =
            b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }";
        for (header, start) in
            [(header::<f32>(3, Some(768)), &matrix[..]), (header::<i64>(3, None), &vector[..])]
        {
            let mut expected = start.to_vec();
            expected.resize(127, b' ');
            expected.push(b'\n');
            assert_eq!(header, expected);
        }
        let largest = header::<f32>(usize::MAX, Some(usize::MAX));
        assert_eq!((largest.len(), &largest[126..]), (HEADER_LENGTH, &b" \n"[..]));
    }

    #[test]
    fn written_files_read_back() -> TestResult {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("embeddings.npy");
        let mut writer = NpyWriter::create(&path, 3)?;
        let partial = writer.append(&[1.0f32; 4]).expect_err("not whole rows");
        assert!(partial.to_string().starts_with("cannot append 4 values"), "{partial}");
        writer.append(&[1.5, -2.0, f32::MAX])?;
        writer.append(&[])?;
        writer.append(&[f32::MIN_POSITIVE, f32::INFINITY, -0.0, 7.0, 8.0, 9.0])?;
        assert!(!path.exists(), "the file appears when it is finished");
        assert_eq!(writer.finish()?, 3);
        let values =
            vec![1.5, -2.0, f32::MAX, f32::MIN_POSITIVE, f32::INFINITY, -0.0, 7.0, 8.0, 9.0];
        assert_eq!(read::<f32>(&path)?, NpyArray { shape: vec![3, 3], values });

        let mut labels = NpyWriter::create_vector(&path)?;
        labels.append(&[i64::MIN, 0, i64::MAX])?;
        labels.finish()?;
        let expected = NpyArray { shape: vec![3], values: vec![i64::MIN, 0, i64::MAX] };
        assert_eq!(read::<i64>(&path)?, expected);

        NpyWriter::<f32>::create(&path, 5)?.finish()?;
        assert_eq!(read::<f32>(&path)?.shape, [0, 5]);
        assert!(matches!(NpyWriter::<f32>::create(&path, 0), Err(NpyError::NoColumns { .. })));
        Ok(())
    }

    fn file_of(dictionary: &str, values: &[u8]) -> Vec<u8> {
        let length = (dictionary.len() as u16).to_le_bytes();
        [&MAGIC[..], &VERSION, &length, dictionary.as_bytes(), values].concat()
    }

    fn parse(bytes: &[u8]) -> Result<NpyArray<f32>, NpyError> {
        let mut reader = NpyReader::new(bytes, bytes.len() as u64, Path::new("bad.npy"))?;
        let values = reader.rows(usize::MAX)?;
        Ok(NpyArray { shape: reader.shape, values })
    }

    #[test]
    fn every_bad_file_has_its_reason() {
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n";
        let cases = [
            (b"".to_vec(), "does not begin with"),
            (b"\x93NUMPX\x01\x00\x00\x00".to_vec(), "does not begin with"),
            (b"\x93NUMPY\x02\x00\x00\x00\x00\x00".to_vec(), "format version is 2.0"),
            (b"\x93NUMPY\x01\x00\x40\x00{".to_vec(), "ends within the header"),
            (b"\x93NUMPY\x01\x00\x01\x00\xff".to_vec(), "header is not text"),
            (file_of("{}", b""), "no `descr`"),
            (file_of(&good.replace("'<f4'", "[('a', '<f4')]"), b""), "not a simple type"),
            (file_of(&good.replace("<f4", "<f8"), &[0; 16]), "type `<f8` instead of `<f4`"),
            (file_of(&good.replace("False", "True"), &[0; 8]), "Fortran order"),
            (file_of(&good.replace("(2,)", "(-2,)"), &[0; 8]), "not a tuple of lengths"),
            (file_of(good, &[0; 7]), "holds 7 bytes of values, its shape [2] needs 8"),
            (file_of(good, &[0; 9]), "holds 9 bytes"),
            (file_of(&good.replace("(2,)", "(9999999999999999, 9999999999)"), &[0; 8]), "needs"),
        ];
        for (bytes, reason) in cases {
            let message = parse(&bytes).expect_err(reason).to_string();
            assert!(message.contains(reason) && message.contains("bad.npy"), "{message}");
        }
        assert_eq!(parse(&file_of(good, &[0; 8])).expect("intact").values, [0.0; 2]);
    }

    #[test]
    fn damaged_headers_never_panic() {
        let intact = [header::<f32>(1, Some(2)), vec![0; 8]].concat();
        for place in 0..intact.len() {
            assert!(parse(&intact[..place]).is_err(), "cut at {place}");
            for byte in 0..=u8::MAX {
                let mut damaged = intact.clone();
                damaged[place] = byte;
                let _ = parse(&damaged);
            }
        }
    }

    #[test]
    fn rows_are_read_piece_by_piece() -> TestResult {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("rows.npy");
        let values: Vec<f32> = (0..60_000).map(|value| value as f32).collect();
        let mut writer = NpyWriter::create(&path, 3)?;
        writer.append(&values)?;
        assert_eq!(writer.finish()?, 20_000);
        let mut reader = NpyReader::<f32>::open(&path)?;
        assert_eq!(reader.shape(), [20_000, 3]);
        assert_eq!(reader.rows(2)?, values[..6]);
        // More than is converted at a time, and then what is left.
        assert_eq!(reader.rows(19_000)?, values[6..57_006]);
        assert_eq!(reader.rows(19_000)?, values[57_006..]);
        assert!(reader.rows(1)?.is_empty());
        Ok(())
    }
}
