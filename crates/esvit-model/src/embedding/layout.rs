//! Headers and rows of each format.

use esvit_data::Source;

use super::{Format, csv};
use crate::npy;

/// Name of the matrix in a safetensors file.
pub(super) const TENSOR: &str = "features";

impl Format {
    /// The file header for `rows` features. Its length depends only on the width, so that it can be
    /// rewritten once the number of rows is known.
    pub(super) fn header(self, rows: usize, width: usize) -> Vec<u8> {
        match self {
            Self::Npy => npy::header::<f32>(rows, Some(width)),
            Self::Safetensors => {
                let entry = |rows: usize| {
                    let bytes = rows as u64 * width as u64 * 4;
                    let entry = serde_json::json!({ TENSOR: {
                        "dtype": "F32", "shape": [rows, width], "data_offsets": [0, bytes],
                    }});
                    entry.to_string()
                };
                // Safetensors headers may be padded with spaces.
                let longest = entry(usize::MAX / (4 * width.max(1))).len();
                let length = longest.next_multiple_of(8);
                let mut header = (length as u64).to_le_bytes().to_vec();
                header.extend(format!("{:length$}", entry(rows)).into_bytes());
                header
            }
            Self::Csv => csv::header(width).into_bytes(),
        }
    }

    /// Encodes one feature.
    pub(super) fn row(self, source: &dyn Source, image: usize, row: &[f32]) -> Vec<u8> {
        match self {
            Self::Npy | Self::Safetensors => {
                row.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
            Self::Csv => csv::line(source, image, row).into_bytes(),
        }
    }
}

/// Escapes a name so that it fits on one line.
pub(super) fn escape(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r")
}

/// The inverse of [`escape`].
pub(super) fn unescape(line: &str) -> String {
    let mut name = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        name.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some(other) => other,
                None => '\\',
            },
            c => c,
        });
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_one_line() {
        for name in ["plain", "a\\nb", "a\nb", "\r\n", "\\", "ends in \\", ""] {
            let line = escape(name);
            assert!(!line.contains(['\n', '\r']) && unescape(&line) == name, "{name:?} {line:?}");
        }
    }

    #[test]
    fn headers_keep_their_length() {
        for format in [Format::Npy, Format::Safetensors, Format::Csv] {
            for width in [1, 7, 768, 100_000] {
                let none = format.header(0, width).len();
                // What follows can be mapped into memory.
                assert!(format == Format::Csv || none.is_multiple_of(8), "{format:?} {width}");
                for rows in [1, 12, 1 << 20, 50_000_000] {
                    assert_eq!(format.header(rows, width).len(), none, "{format:?} {rows} {width}");
                }
            }
        }
    }
}
