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

/// A field for a CSV file: quoted if it contains a separator, a quote or a line break, and with an
/// apostrophe before what a spreadsheet would take for a formula, which reading takes off.
pub fn quote(field: &str) -> String {
    let field = if is_formula(field) { format!("'{field}") } else { field.into() };
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field
    }
}

/// The field that [`quote`] was given.
pub(super) fn unguard(field: &str) -> &str {
    field.strip_prefix('\'').filter(|rest| is_formula(rest)).unwrap_or(field)
}

/// Whether a spreadsheet would compute the field, once apostrophes before it are gone.
fn is_formula(field: &str) -> bool {
    field.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t', '\r'])
}

/// A record of a CSV file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Line on which it begins, from 1.
    pub line: usize,
    /// Its fields, without quotes.
    pub fields: Vec<String>,
}

/// Parses CSV text (RFC 4180) into records. Lines end in LF or CR LF, the last one need not; a
/// byte-order mark at the beginning is no part of the text. A quote within a field that does not
/// begin with one stands for itself.
///
/// # Errors
/// The line of a quote that is not closed.
pub fn records(text: &str) -> Result<Vec<Record>, usize> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut records, mut record, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut chars, mut in_quotes, mut was_quoted) = (text.chars().peekable(), false, false);
    let (mut line, mut began, mut opened) = (1, 1, 1);
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if in_quotes && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if in_quotes => in_quotes = false,
            '"' if field.is_empty() && !was_quoted => {
                (in_quotes, was_quoted, opened) = (true, true, line)
            }
            ',' if !in_quotes => {
                record.push(std::mem::take(&mut field));
                was_quoted = false;
            }
            '\r' if !in_quotes && chars.peek() == Some(&'\n') => {}
            '\n' if !in_quotes => {
                record.push(std::mem::take(&mut field));
                records.push(Record { line: began, fields: std::mem::take(&mut record) });
                (began, was_quoted) = (line, false);
            }
            c => field.push(c),
        }
    }
    if in_quotes {
        return Err(opened);
    }
    if !(field.is_empty() && record.is_empty() && !was_quoted) {
        record.push(field);
        records.push(Record { line: began, fields: record });
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<Vec<String>> {
        records(text).unwrap().into_iter().map(|record| record.fields).collect()
    }

    #[test]
    fn any_name_is_one_field() {
        let names = ["plain", "a,b", "say \"no\"", "two\nlines\r", "", "\"", "5\" disk", "a\r\nb"];
        let text: String = names.iter().map(|name| format!("{},x\n", quote(name))).collect();
        let expected: Vec<Vec<String>> =
            names.iter().map(|name| vec![(*name).into(), "x".into()]).collect();
        assert_eq!(fields(&text), expected);
        assert_eq!(fields(&text.replace("x\n", "x\r\n")), expected);
    }

    #[test]
    fn lines_end_as_any_program_writes_them() {
        let expected = [["a", "b"], ["c d", ""]];
        for text in [
            "a,b\nc d,\n",
            "a,b\r\nc d,\r\n",
            "\u{feff}\"a\",\"b\"\r\n\"c d\",\"\"\r\n",
            "a,b\n\"c d\",\"\"",
            "a,b\nc d,",
        ] {
            assert_eq!(fields(text), expected, "{text:?}");
        }
        assert_eq!(fields(""), [[""; 0]; 0]);
        assert_eq!(fields("a \"b\" c,d\n"), [["a \"b\" c", "d"]]);
        let lines: Vec<usize> =
            records("a\n\"b\nc\"\n\nd").unwrap().iter().map(|record| record.line).collect();
        assert_eq!(lines, [1, 2, 4, 5]);
        assert_eq!(records("a\nb,\"c\n\nd"), Err(2));
    }

    /// What a spreadsheet would run is text to it, and comes back as it was.
    #[test]
    fn a_name_is_no_formula() {
        let names = ["=cmd|calc!A1", "+1+1", "-1", "@SUM(A1)", "\t=1", "'=1", "''-x", "=a,b"];
        for name in names {
            let text = format!("{},x\n", quote(name));
            let field = &fields(&text)[0][0];
            assert!(field.starts_with('\''), "{field}");
            assert_eq!(unguard(field), name);
        }
        for name in ["'quoted'", "a=b", "'", "", "1-2", "''"] {
            assert_eq!((quote(name), unguard(name)), (name.to_owned(), name));
        }
    }
}
