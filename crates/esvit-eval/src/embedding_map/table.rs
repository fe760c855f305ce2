//! Coordinates of a map as CSV.

use std::io::Write;
use std::path::Path;

use esvit_files::{FileError, write_atomically};

use super::EmbeddingMap;
use esvit_model::embedding::quote;

/// Writes a CSV file with the columns name, label, x, y; the label is empty if there is none.
///
/// # Errors
/// [`FileError`] if the file cannot be written; an existing file is then unchanged.
pub fn write_csv(path: &Path, map: &EmbeddingMap) -> Result<(), FileError> {
    write_atomically(path, |file| {
        writeln!(file, "name,label,x,y")?;
        map.points.iter().try_for_each(|point| {
            let class = point.class.as_deref().unwrap_or_default();
            writeln!(file, "{},{},{},{}", quote(&point.name), quote(class), point.x, point.y)
        })
    })
}
