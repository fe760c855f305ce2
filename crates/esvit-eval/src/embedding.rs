//! Features on disk.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use esvit_data::Source;
use esvit_nn::weights::write_error;
use esvit_train::files::{FileError, write_atomically};
use esvit_weights::{Tensor, write_safetensors};

use crate::features::Features;
use crate::npy::{NpyError, NpyWriter};

/// Kinds of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// NumPy's format, `[pictures, width]` f32.
    Npy,
    /// Safetensors with `features [pictures, width]`.
    Safetensors,
    /// Comma-separated values: name, label, then the feature.
    Csv,
}

/// Why features cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddingError {
    /// The name says no format.
    #[error(
        "`{path}` does not say in which format to write\n\
         hint: let the name end in `.npy`, `.safetensors` or `.csv`",
        path = path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file cannot be written.
    #[error(transparent)]
    Npy(#[from] NpyError),
}

impl Format {
    /// The format that a file's name asks for.
    ///
    /// # Errors
    /// When the name ends in none of the known ways.
    pub fn of(path: &Path) -> Result<Self, EmbeddingError> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => Ok(Self::Npy),
            Some("safetensors") => Ok(Self::Safetensors),
            Some("csv") => Ok(Self::Csv),
            _ => Err(EmbeddingError::Format { path: path.into() }),
        }
    }
}

/// Writes `features` of pictures of `source`. Names go into the file where the format has a place
/// for them, else line by line into a `.txt` file beside it.
///
/// # Errors
/// When a file cannot be written; it then is not there.
pub fn write(
    path: &Path,
    format: Format,
    features: &Features,
    source: &dyn Source,
) -> Result<(), EmbeddingError> {
    let rows = &features.rows;
    match format {
        Format::Npy => {
            let mut writer = NpyWriter::<f32>::create(path, rows.width)?;
            writer.append(&rows.values)?;
            writer.finish()?;
        }
        Format::Safetensors => {
            let shape = [features.pictures.len(), rows.width];
            let features = [("features".into(), Tensor::f32(&shape, &rows.values))];
            write_atomically(path, |file| {
                write_safetensors(file, &features, &BTreeMap::new()).map_err(write_error)
            })?;
        }
        Format::Csv => return Ok(write_atomically(path, |file| csv(file, features, source))?),
    }
    write_atomically(&path.with_extension("txt"), |file| {
        features.pictures.iter().try_for_each(|&picture| writeln!(file, "{}", source.name(picture)))
    })?;
    Ok(())
}

fn csv(file: &mut impl Write, features: &Features, source: &dyn Source) -> std::io::Result<()> {
    let width = features.rows.width;
    write!(file, "name,label")?;
    (0..width).try_for_each(|column| write!(file, ",f{column}"))?;
    writeln!(file)?;
    for (&picture, row) in features.pictures.iter().zip(features.rows.values.chunks_exact(width)) {
        let class = source.label(picture).and_then(|label| source.classes().get(label as usize));
        let class = class.map(String::as_str).unwrap_or_default();
        write!(file, "{},{}", quoted(&source.name(picture)), quoted(class))?;
        row.iter().try_for_each(|value| write!(file, ",{value}"))?;
        writeln!(file)?;
    }
    Ok(())
}

/// A field of a CSV file: in quotes where it holds something that ends a field.
pub(crate) fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.into()
    }
}
