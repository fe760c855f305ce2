//! The places of a map as a table.

use std::io::Write;
use std::path::Path;

use esvit_files::{FileError, write_atomically};

use super::EmbeddingMap;
use esvit_model::embedding::quoted;

/// Writes comma-separated values: name, label, x, y; no label where there is none.
///
/// # Errors
/// When the file cannot be written; it then is not there.
pub fn write_csv(path: &Path, map: &EmbeddingMap) -> Result<(), FileError> {
    write_atomically(path, |file| {
        writeln!(file, "name,label,x,y")?;
        map.points.iter().try_for_each(|point| {
            let class = point.class.as_deref().unwrap_or_default();
            writeln!(file, "{},{},{},{}", quoted(&point.name), quoted(class), point.x, point.y)
        })
    })
}
