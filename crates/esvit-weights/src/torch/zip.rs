//! Zip archives of `torch.save`: `PREFIX/data.pkl`, and storages as `PREFIX/data/KEY`.

use std::collections::HashMap;

use super::archive::{self, Entry};
use crate::error::{ErrorKind, corrupt};
use crate::file::Parsed;
use crate::limits::{MAX_EXTRA, MAX_PICKLE};
use crate::pickle::{ByteRange, Input, Unpickler, expand};
use crate::source::Source;
use crate::value::Value;

/// Folder of the archive for texts beside the pickle, which PyTorch passes over.
pub(crate) const EXTRA: &str = "extra/";

/// Bytes of the entry `byteorder` to read.
const MAX_BYTE_ORDER: u64 = 16;

pub(crate) fn read(source: &Source) -> Result<Parsed, ErrorKind> {
    let archive = Archive { source, entries: archive::read(source)? };
    let prefix = archive.prefix()?;
    if archive.entries.keys().any(|name| name.starts_with(&format!("{prefix}code/"))) {
        let hint = "in PyTorch: `torch.save(torch.jit.load(path).state_dict(), new_path)`";
        return Err(ErrorKind::Unsupported { found: "it is a TorchScript program".into(), hint });
    }
    archive.check_byte_order(&format!("{prefix}byteorder"))?;

    let (start, length) = archive.find(&format!("{prefix}data.pkl"))?;
    ErrorKind::check_limit("bytes of pickle", length, MAX_PICKLE)?;
    let pickle = Unpickler::run(&mut Input::new(source, start, start + length))?;
    let mut found: HashMap<String, ByteRange> = HashMap::new();
    let mut parsed = expand(&pickle, |storage| {
        let name = format!("{prefix}data/{}", storage.key);
        if let Some(&bytes) = found.get(&name) {
            return Ok(bytes);
        }
        let bytes = archive.find(&name)?;
        found.insert(name, bytes);
        Ok(bytes)
    })?;
    if let Value::Dict(entries) = &mut parsed.metadata {
        entries.extend(archive.extra(&prefix)?);
    }
    Ok(parsed)
}

struct Archive<'s> {
    source: &'s Source,
    entries: HashMap<String, Entry>,
}

impl Archive<'_> {
    /// Common prefix of all entries, with its slash.
    fn prefix(&self) -> Result<String, ErrorKind> {
        let mut prefixes = self.entries.keys().filter_map(|name| {
            let prefix = name.strip_suffix("data.pkl")?;
            (prefix.is_empty() || prefix.find('/') == Some(prefix.len() - 1)).then_some(prefix)
        });
        match (prefixes.next(), prefixes.next()) {
            (Some(prefix), None) => Ok(prefix.into()),
            (Some(_), Some(_)) => Err(corrupt!("its archive has several `data.pkl`")),
            (None, _) => Err(ErrorKind::UnknownFormat {
                found: "it is a zip archive without `data.pkl`".into(),
                hint: "if it holds a file of weights, unpack it and name that file",
            }),
        }
    }

    /// Position and length of an entry's data.
    fn find(&self, name: &str) -> Result<ByteRange, ErrorKind> {
        let missing = || corrupt!("misses the entry `{name}` in its archive");
        let entry = self.entries.get(name).ok_or_else(missing)?;
        if entry.method != 0 {
            return Err(ErrorKind::Unsupported {
                found: format!("entry `{name}` of its archive is compressed"),
                hint: "load it in PyTorch and save it again with `torch.save`",
            });
        }
        Ok((archive::data_offset(self.source, name, entry)?, entry.length))
    }

    /// Texts beside the pickle, by name.
    fn extra(&self, prefix: &str) -> Result<Vec<(Value, Value)>, ErrorKind> {
        let prefix = format!("{prefix}{EXTRA}");
        let mut names: Vec<&String> =
            self.entries.keys().filter(|name| name.starts_with(&prefix)).collect();
        names.sort_unstable();
        let mut texts = Vec::new();
        let mut total = 0u64;
        for name in names {
            let (start, length) = self.find(name)?;
            total = total.saturating_add(length);
            ErrorKind::check_limit("bytes of metadata", total, MAX_EXTRA)?;
            let text = String::from_utf8(self.source.read(start, length)?);
            let text = text.map_err(|_| corrupt!("entry `{name}` of its archive is no text"))?;
            texts.push((Value::Str(name[prefix.len()..].into()), Value::Str(text)));
        }
        Ok(texts)
    }

    fn check_byte_order(&self, name: &str) -> Result<(), ErrorKind> {
        if !self.entries.contains_key(name) {
            return Ok(());
        }
        let (start, length) = self.find(name)?;
        match &*self.source.read(start, length.min(MAX_BYTE_ORDER))? {
            b"little" => Ok(()),
            _ => Err(big_endian()),
        }
    }
}

/// The error for a big-endian file.
pub(super) fn big_endian() -> ErrorKind {
    ErrorKind::Unsupported {
        found: "its numbers have their highest byte first".into(),
        hint: "load it in PyTorch on a little-endian machine and save it again",
    }
}
