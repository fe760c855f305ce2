//! Names of files as text.

use std::ffi::OsStr;
use std::fmt::Write;
use std::path::Path;

/// A name as one line of text that a terminal shows as it is: control characters, and those that
/// change the direction of writing, as `\x1b` or `\u{202e}`, bytes that are no UTF-8 as `\xe8`.
pub fn printable(name: impl AsRef<OsStr>) -> String {
    escape(name.as_ref(), is_unprintable)
}

/// A path as text, in which only bytes that are no UTF-8 are written as `\xe8`, so that different
/// names stay different.
pub(crate) fn text_of(path: impl AsRef<Path>) -> String {
    escape(path.as_ref().as_os_str(), |_| false)
}

/// Most images that a list of reasons names.
const MOST_REASONS: usize = 10;

/// Images with what is wrong with each, a line each and without hints: the first ten, and how many
/// follow.
pub fn list_reasons<N: AsRef<OsStr>, R: AsRef<str>>(
    images: impl IntoIterator<Item = (N, R)>,
    all: usize,
) -> String {
    let mut text = String::new();
    for (name, reason) in images.into_iter().take(MOST_REASONS) {
        let reason = reason.as_ref().split("\nhint:").next().unwrap_or_default();
        // Writing to a string does not fail.
        let _ = write!(text, "\n  `{}`: {reason}", printable(name));
    }
    if all > MOST_REASONS {
        let _ = write!(text, "\n  and {} more", all - MOST_REASONS);
    }
    text
}

fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(name: &OsStr, is_escaped: impl Fn(char) -> bool) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for part in name.as_encoded_bytes().utf8_chunks() {
        for c in part.valid().chars() {
            let _ = match c {
                c if !is_escaped(c) => text.write_char(c),
                c if c.is_ascii() => write!(text, "\\x{:02x}", u32::from(c)),
                c => write!(text, "\\u{{{:x}}}", u32::from(c)),
            };
        }
        for byte in part.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// A count and its noun.
pub fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_reasons_are_listed() {
        let images: Vec<(String, &str)> =
            (0..12).map(|i| (format!("\x1b{i}"), "it is broken\nhint: mend it")).collect();
        let text = list_reasons(images.clone(), 12);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "  `\\x1b0`: it is broken");
        assert_eq!(lines[10..], ["  `\\x1b9`: it is broken", "  and 2 more"]);
        assert_eq!(list_reasons(images[..10].to_vec(), 10).lines().count(), 11);
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(printable("a b/Pêche.jpg"), "a b/Pêche.jpg");
        assert_eq!(
            printable("a\x1b[2J\n\t\x7f\u{9b}\u{202e}b"),
            "a\\x1b[2J\\x0a\\x09\\x7f\\u{9b}\\u{202e}b"
        );
        assert_eq!(text_of("a\n\x1bb"), "a\n\x1bb");
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_no_text_are_shown() {
        use std::os::unix::ffi::OsStrExt;
        let name = OsStr::from_bytes(b"p\xe8che");
        assert_eq!((printable(name).as_str(), text_of(name).as_str()), ("p\\xe8che", "p\\xe8che"));
    }
}
