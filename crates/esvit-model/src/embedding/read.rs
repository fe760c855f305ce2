//! Reads feature files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::layout::{TENSOR, unescape};
use super::{EmbeddingError, Format, csv};
use crate::features::first_not_finite;
use crate::npy::{self, NpyReader};
use esvit_files::FileError;
use esvit_weights::WeightsFile;

/// Features with the names and classes of their images.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// Image name of each row; empty if the `.txt` file beside the features is missing.
    pub names: Vec<String>,
    /// Class name of each row, empty for none; only CSV files have them.
    pub labels: Vec<String>,
    /// Row-major `[images, width]`.
    pub values: Vec<f32>,
    /// Feature dimension.
    pub width: usize,
}

/// Reads a file written by [`EmbeddingWriter`](super::EmbeddingWriter), and its names.
///
/// # Errors
/// [`EmbeddingError`] if it cannot be read, is damaged, has a different number of names and rows,
/// or values that are not finite.
pub fn read(path: &Path) -> Result<Embeddings, EmbeddingError> {
    let found = read_unchecked(path)?;
    match first_not_finite(&found.values, found.width) {
        Some((row, value)) => Err(EmbeddingError::Damaged {
            path: path.into(),
            reason: format!("row {row}, counted from 0, holds {value}"),
        }),
        None => Ok(found),
    }
}

fn read_unchecked(path: &Path) -> Result<Embeddings, EmbeddingError> {
    let damaged = |reason: String| EmbeddingError::Damaged { path: path.into(), reason };
    let format = Format::of(path)?;
    let (shape, values) = match format {
        Format::Npy => {
            let array = npy::read::<f32>(path)?;
            (array.shape, array.values)
        }
        Format::Safetensors => {
            let file = WeightsFile::open(path)?;
            let tensor =
                file.find("", TENSOR).ok_or_else(|| damaged(format!("it has no `{TENSOR}`")))?;
            (tensor.shape.clone(), file.read_f32(tensor)?)
        }
        Format::Csv => return read_csv(path),
    };
    let [rows, width] = shape[..] else {
        return Err(damaged(format!("its shape is {shape:?} and not [images, width]")));
    };
    let names_file = format.names_file(path).filter(|names| names.exists());
    let names: Vec<String> = match names_file {
        Some(names) => read_text(&names)?.lines().map(unescape).collect(),
        None => Vec::new(),
    };
    if !names.is_empty() && names.len() != rows {
        return Err(damaged(format!(
            "it has {rows} rows, the file beside it {} names",
            names.len()
        )));
    }
    Ok(Embeddings { names, labels: Vec::new(), values, width })
}

fn read_csv(path: &Path) -> Result<Embeddings, EmbeddingError> {
    let damaged = |reason: String| EmbeddingError::Damaged { path: path.into(), reason };
    let records = csv::records(&read_text(path)?)
        .map_err(|line| damaged(format!("a quote on line {line} is not closed")))?;
    let mut records = records.into_iter().map(|record| record.fields);
    let width = records.next().map_or(0, |head| head.len().saturating_sub(2));
    let (mut names, mut labels, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for (record, line) in records.zip(2..) {
        let [name, label, row @ ..] = &record[..] else {
            return Err(damaged(format!("record {line} has no name and label")));
        };
        if row.len() != width {
            return Err(damaged(format!("record {line} has {} values for {width}", row.len())));
        }
        for value in row {
            values.push(
                value
                    .parse()
                    .map_err(|_| damaged(format!("record {line}: `{value}` is no number")))?,
            );
        }
        names.push(csv::unguard(name).to_owned());
        labels.push(csv::unguard(label).to_owned());
    }
    Ok(Embeddings { names, labels, values, width })
}

fn read_text(path: &Path) -> Result<String, EmbeddingError> {
    Ok(esvit_files::read_text(path).map_err(|source| FileError::reading(path, source))?)
}

/// Whether the file at `path` looks like a feature file, judging by its header.
pub fn is_feature_file(path: &Path, format: Format) -> bool {
    match format {
        Format::Npy => NpyReader::<f32>::open(path).is_ok_and(|file| file.shape().len() == 2),
        Format::Safetensors => WeightsFile::open(path)
            .is_ok_and(|file| file.tensors().len() == 1 && file.find("", TENSOR).is_some()),
        Format::Csv => {
            let mut start = [0; csv::START.len()];
            let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
            read.is_ok() && start == csv::START.as_bytes()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::collections::BTreeMap;

    use super::*;
    use esvit_weights::{Dtype, Tensor, Values, write_safetensors};

    #[test]
    fn rows_names_and_values_are_as_many() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.csv");
        for (text, reason) in [
            ("name,label,f0,f1\na,b,1\n", "record 2 has 1 values for 2"),
            ("name,label,f0\na,b,1\na,b,1,2\n", "record 3 has 2 values for 1"),
            ("name,label,f0\na,b,one\n", "`one` is no number"),
            ("name,label,f0\na\n", "no name and label"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }

        let path = folder.path().join("f.npy");
        let mut writer = npy::NpyWriter::create(&path, 1).unwrap();
        writer.append(&[1.0f32, 2.0]).unwrap();
        writer.finish().unwrap();
        assert_eq!(read(&path).unwrap().names, [""; 0]);
        for (names, are_right) in [("a\n", false), ("a\nb\n", true), ("a\nb\nc\n", false)] {
            std::fs::write(folder.path().join("f.txt"), names).unwrap();
            assert_eq!(read(&path).is_ok(), are_right, "{names}");
        }
    }

    #[test]
    fn features_that_are_not_finite_are_refused_with_their_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.csv");
        for value in ["NaN", "inf", "-inf"] {
            let text = format!("name,label,f0,f1\na,,1,2\nb,,3,{value}\n");
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            let expected = format!("row 1, counted from 0, holds {value}");
            assert!(error.contains("f.csv") && error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn weights_are_no_features() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.safetensors");
        for (name, are_features) in [(TENSOR, true), ("weight", false)] {
            let values = || Ok(Values::F32(Cow::Owned(vec![1.0; 2])));
            let tensors = [(name.to_owned(), Tensor::new(&[1, 2], Dtype::F32, values))];
            let mut bytes = Vec::new();
            write_safetensors(&mut bytes, &tensors, &BTreeMap::new()).unwrap();
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(is_feature_file(&path, Format::Safetensors), are_features);
            assert_eq!(read(&path).is_ok(), are_features);
        }
    }
}
