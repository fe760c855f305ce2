//! Command lines that are printed so that they can be pasted.

use std::ffi::OsStr;
use std::path::Path;

/// A word as a POSIX shell reads it.
pub(super) fn quoted(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref().to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) && !word.starts_with('-') {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The words of a line, as a POSIX shell splits it; `None` if a quote is not closed.
pub(super) fn words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next()? {
                        end if end == letter => break,
                        '\\' if letter == '"' => word.push(letters.next()?),
                        inner => word.push(inner),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(letters.next()?),
            blank if blank.is_whitespace() => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Some(words)
}

/// The program as it was started: by `cargo run`, by its path or by its name.
pub(super) fn program() -> String {
    let typed = std::env::args_os().next().unwrap_or_default();
    let is_path = Path::new(&typed).components().count() > 1;
    if std::env::var_os("CARGO").is_some() && is_path {
        "cargo run --release --".into()
    } else if is_path {
        quoted(typed)
    } else {
        "esvit".into()
    }
}

#[cfg(test)]
mod tests {
    use super::{quoted, words};

    #[test]
    fn lines_are_split_as_by_a_shell() {
        for (line, expected) in [
            ("", &[][..]),
            ("  a  b=[1,2]\t--c ", &["a", "b=[1,2]", "--c"]),
            ("'my photos' a\"b c\"d ''", &["my photos", "ab cd", ""]),
            (r#"a\ b "say \"hi\"" 'it'\''s'"#, &["a b", "say \"hi\"", "it's"]),
        ] {
            assert_eq!(words(line).unwrap(), expected, "{line}");
        }
        for line in ["'a", "a \"b", "a\\"] {
            assert_eq!(words(line), None, "{line}");
        }
        let odd = "my 'run'; $HOME";
        assert_eq!(words(&quoted(odd)).unwrap(), [odd]);
    }

    #[test]
    fn words_that_a_shell_would_split_are_quoted() {
        for (word, expected) in [
            ("runs/a-1", "runs/a-1"),
            ("epoch=0001-step=00000003.safetensors", "epoch=0001-step=00000003.safetensors"),
            ("my run; echo hi", "'my run; echo hi'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("", "''"),
            ("-rf", "'-rf'"),
            ("größe", "'größe'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
