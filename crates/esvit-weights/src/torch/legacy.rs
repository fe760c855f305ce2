//! Files of `torch.save` before PyTorch 1.6: five pickles, then the storages, each preceded by the
//! number of its elements.

use std::collections::HashMap;
use std::sync::Arc;

use super::zip::big_endian;
use crate::error::{ErrorKind, corrupt, ensure};
use crate::file::Parsed;
use crate::pickle::{ByteRange, Element, Input, Pickle, Unpickler, expand};
use crate::source::Source;
use crate::value::Value;

/// The magic number, as digits of an integer beyond 64 bits.
const MAGIC: [&str; 2] = ["0x1950a86a20f9469cfc6c", "119547037146038801333356"];

/// The format's version.
const VERSION: i64 = 1001;

/// Bytes of the number of elements before a storage.
const COUNT: u64 = 8;

pub(crate) fn read(source: &Source) -> Result<Parsed, ErrorKind> {
    let mut input = Input::new(source, 0, source.length());
    let magic = plain(&Unpickler::run(&mut input)?)?;
    let is_magic = match &magic {
        Value::Object { class, arguments, .. } if class == "int" => {
            arguments.first().and_then(Value::as_str).is_some_and(|digits| MAGIC.contains(&digits))
        }
        _ => false,
    };
    ensure!(
        is_magic,
        ErrorKind::UnknownFormat {
            found: "it is a pickle that `torch.save` did not write".into(),
            hint: "load it with what wrote it, and save its arrays as safetensors",
        }
    );
    if plain(&Unpickler::run(&mut input)?)?.as_i64() != Some(VERSION) {
        let found = "it is of an unknown version of the legacy format".into();
        let hint = "load it in PyTorch and save it again";
        return Err(ErrorKind::Unsupported { found, hint });
    }
    let system = plain(&Unpickler::run(&mut input)?)?;
    ensure!(system.get("little_endian").and_then(Value::as_bool) != Some(false), big_endian());

    let pickle = Unpickler::run(&mut input)?;
    let Value::List(keys) = plain(&Unpickler::run(&mut input)?)? else {
        return Err(corrupt!("its list of storages is missing"));
    };
    let storages = storages(source, input.position(), &pickle, &keys)?;
    expand(&pickle, |storage| {
        let found = storages.get(&*storage.key).copied();
        found.ok_or_else(|| corrupt!("misses its storage `{}`", storage.key))
    })
}

/// Contents of a pickle without tensors.
fn plain(pickle: &Pickle) -> Result<Value, ErrorKind> {
    let none = |_: &_| Err(corrupt!("a tensor is where none is expected"));
    Ok(expand(pickle, none)?.metadata)
}

/// Storages in the file, by key. The length of each gives the position of the next.
fn storages<'k>(
    source: &Source,
    mut position: u64,
    pickle: &Pickle,
    keys: &'k [Value],
) -> Result<HashMap<&'k str, ByteRange>, ErrorKind> {
    // The type of a storage in the file is that of its first use in the pickle.
    let mut elements: HashMap<Arc<str>, Element> = HashMap::new();
    for storage in &pickle.storages {
        elements.entry(storage.key.clone()).or_insert(storage.element);
    }
    let mut found = HashMap::new();
    for key in keys {
        let key = key.as_str().ok_or_else(|| corrupt!("the key of a storage is not text"))?;
        let element =
            elements.get(key).ok_or_else(|| corrupt!("no tensor is of its storage `{key}`"))?;
        let mut count = [0; COUNT as usize];
        count.copy_from_slice(&source.read(position, COUNT)?);
        let start = position + COUNT;
        let length = u64::from_le_bytes(count).checked_mul(element.size);
        let end = length.and_then(|length| start.checked_add(length));
        let (Some(length), Some(end)) = (length, end.filter(|&end| end <= source.length())) else {
            return Err(corrupt!("its storage `{key}` is cut off"));
        };
        let is_new = found.insert(key, (start, length)).is_none();
        ensure!(is_new, corrupt!("its storage `{key}` is in it twice"));
        position = end;
    }
    Ok(found)
}
