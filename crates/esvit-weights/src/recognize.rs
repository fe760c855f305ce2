//! Recognizes the format of a file by its first bytes, since names are often wrong.

use std::fmt;

use crate::error::ErrorKind;
use crate::source::Source;

/// The container format of a file of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Container {
    /// A JSON header and the tensors.
    Safetensors,
    /// A zip archive of a pickle and the tensors, from `torch.save`.
    TorchZip,
    /// Pickles, then the tensors, from `torch.save` before PyTorch 1.6.
    TorchLegacy,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "PyTorch zip",
            Self::TorchLegacy => "PyTorch legacy",
        })
    }
}

/// Bytes to look at: up to the magic number of a tar archive.
const HEAD_LENGTH: u64 = 512;

/// Magic number of a legacy file in the text protocols of pickle.
const LEGACY_MAGIC_TEXT: &[u8] = b"L119547037146038801333356";

const FETCH_AGAIN: &str =
    "fetch the file again, and compare its size with the one that is published";
const UNPACK: &str = "unpack it and name the file of weights in it";
const CONVERT: &str = "convert it to safetensors, or to PyTorch with `torch.save`";

pub(crate) fn recognize(source: &Source) -> Result<Container, ErrorKind> {
    let head = source.read(0, source.length().min(HEAD_LENGTH))?;
    match *head {
        [b'P', b'K', 3, 4, ..] => return Ok(Container::TorchZip),
        // First, as the length of the header may begin like a pickle: 384 bytes are `80 01 00 ..`.
        [_, _, _, _, 0, 0, 0, 0, b'{', ..] => return Ok(Container::Safetensors),
        [0x80, 0..=5, ..] => return Ok(Container::TorchLegacy),
        [_, _, _, _, _, _, _, _, b'{', ..] => return Ok(Container::Safetensors),
        _ if head.starts_with(LEGACY_MAGIC_TEXT) || starts_with_global(&head) => {
            return Ok(Container::TorchLegacy);
        }
        _ => {}
    }
    let (found, hint) = describe(&head);
    Err(ErrorKind::UnknownFormat { found, hint })
}

/// Whether a pickle of the text protocols starts with a function: `cmodule\nname\n`.
fn starts_with_global(head: &[u8]) -> bool {
    let mut lines = head.splitn(3, |&byte| byte == b'\n');
    let name = |line: &[u8]| {
        let part = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.');
        !line.is_empty() && line.iter().all(part)
    };
    let module = lines.next().and_then(|line| line.strip_prefix(b"c"));
    module.is_some_and(name) && lines.next().is_some_and(name) && lines.next().is_some()
}

fn describe(head: &[u8]) -> (String, &'static str) {
    let text = head.trim_ascii_start();
    let starts = |mark: &[u8]| head.starts_with(mark);
    let (found, hint) = if head.is_empty() {
        ("the file is empty", FETCH_AGAIN)
    } else if text.get(..1) == Some(b"<") {
        let hint = "the server sent a page instead of the file; open the address in a browser";
        ("it looks like a web page (HTML or XML)", hint)
    } else if starts(b"version https://git-lfs") {
        ("it is a git-lfs pointer to the file, not the file", "run `git lfs pull` in its folder")
    } else if starts(&[0x1f, 0x8b]) {
        ("it looks like a gzip file", UNPACK)
    } else if starts(b"BZh") || starts(&[0xfd, b'7', b'z', b'X', b'Z']) || starts(b"7z\xbc\xaf") {
        ("it looks like a compressed archive", UNPACK)
    } else if starts(&[0x28, 0xb5, 0x2f, 0xfd]) {
        ("it looks like a zstd file", UNPACK)
    } else if head.get(257..262) == Some(b"ustar") {
        let hint = "unpack it; a `tar` of PyTorch before 0.2 has to be saved again by PyTorch";
        ("it looks like a tar archive", hint)
    } else if starts(b"PK") {
        ("it looks like an empty or damaged zip archive", FETCH_AGAIN)
    } else if starts(b"\x89HDF") {
        ("it looks like an HDF5 file (Keras, MATLAB)", CONVERT)
    } else if starts(b"\x93NUMPY") {
        ("it looks like a NumPy array", CONVERT)
    } else if starts(b"GGUF") {
        ("it looks like a GGUF file", CONVERT)
    } else if starts(&[8]) {
        ("it looks like an ONNX model or another protocol buffer", CONVERT)
    } else if text.get(..1) == Some(b"{") {
        ("it looks like JSON", "the weights are in another file, as a rule beside it")
    } else {
        let shown: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let found = format!("its first bytes are `{}`", shown.join(" "));
        return (found, "give a safetensors file or one written by `torch.save`");
    };
    (found.into(), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_told_by_their_first_bytes() {
        for (head, expected) in [
            (&b"PK\x03\x04"[..], Container::TorchZip),
            (b"\x80\x02\x8a", Container::TorchLegacy),
            (b"cos\nsystem\n(S'id'\ntR.", Container::TorchLegacy),
            (b"L119547037146038801333356L\n.", Container::TorchLegacy),
            (b"\x02\0\0\0\0\0\0\0{}", Container::Safetensors),
            // Headers of 384 and 1408 bytes.
            (b"\x80\x01\0\0\0\0\0\0{\"", Container::Safetensors),
            (b"\x80\x05\0\0\0\0\0\0{\"", Container::Safetensors),
        ] {
            assert_eq!(recognize(&Source::memory(head.into())).unwrap(), expected);
        }
    }

    #[test]
    fn other_files_are_named() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (head, part) in [
            (&b""[..], "empty"),
            (b"\n<!DOCTYPE html>", "web page"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\x89HDF\r\n\x1a\n", "HDF5"),
            (b"\x08\x07\x12\x07pytorch", "ONNX"),
            (b"{\"error\": 404}", "JSON"),
            (b"cold as ice", "63 6f 6c 64"),
            (&tar, "tar"),
        ] {
            let error = recognize(&Source::memory(head.into())).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("hint: "), "{error}");
        }
    }

    #[test]
    fn compressed_files_are_named() {
        for (head, part) in [
            (&b"\x28\xb5\x2f\xfd"[..], "zstd"),
            (b"BZh9", "compressed archive"),
            (b"\xfd7zXZ\0", "compressed archive"),
            (b"7z\xbc\xaf\x27\x1c", "compressed archive"),
            (b"PK\x05\x06", "empty or damaged zip archive"),
            (b"\x93NUMPY\x01", "NumPy"),
            (b"GGUF\x03", "GGUF"),
        ] {
            let error = recognize(&Source::memory(head.into())).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("hint: "), "{error}");
        }
    }
}
