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
    use super::quoted;

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
