//! CSV files of features.

use std::fmt::Write;

use esvit_data::Source;

/// Start of the header line.
pub(super) const START: &str = "name,label,f0";

pub(super) fn header(width: usize) -> String {
    let mut line = String::from("name,label");
    for column in 0..width {
        let _ = write!(line, ",f{column}");
    }
    line + "\n"
}

/// One record: image name, class, and the feature in the fewest digits that read back exactly.
pub(super) fn line(source: &dyn Source, image: usize, row: &[f32]) -> String {
    let class = source.label(image).and_then(|label| source.classes().get(label as usize));
    let class = class.map(String::as_str).unwrap_or_default();
    let mut line = format!("{},{}", quote(&source.name(image)), quote(class));
    for value in row {
        let _ = write!(line, ",{value}");
    }
    line + "\n"
}

/// Quotes a field if it contains a separator, a quote or a line break.
pub fn quote(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.into()
    }
}

/// Parses CSV text into records of fields.
pub(super) fn records(text: &str) -> Vec<Vec<String>> {
    let (mut records, mut record, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut chars, mut in_quotes) = (text.chars().peekable(), false);
    while let Some(c) = chars.next() {
        match c {
            '"' if in_quotes && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => in_quotes = !in_quotes,
            ',' if !in_quotes => record.push(std::mem::take(&mut field)),
            '\n' if !in_quotes => {
                record.push(std::mem::take(&mut field));
                records.push(std::mem::take(&mut record));
            }
            c => field.push(c),
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_one_field() {
        let names = ["plain", "a,b", "say \"no\"", "two\nlines\r", "", "\""];
        let text: String = names.iter().map(|name| format!("{},x\n", quote(name))).collect();
        let expected: Vec<Vec<String>> =
            names.iter().map(|name| vec![(*name).into(), "x".into()]).collect();
        assert_eq!(records(&text), expected);
    }
}
