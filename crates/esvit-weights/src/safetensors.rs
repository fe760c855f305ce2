//! Reading the header of a safetensors file.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::dtype::Dtype;
use crate::error::{ErrorKind, corrupt, ensure};
use crate::file::{Parsed, TensorInfo};
use crate::layout::Layout;
use crate::limits::{MAX_HEADER, MAX_NAME, MAX_TENSORS};
use crate::source::Source;
use crate::value::Value;

/// Bytes of the header's length, before the header.
const LENGTH: u64 = 8;

/// Reads the header and checks that the tensors fill the rest of the file without gap or overlap.
pub(crate) fn read(source: &Source) -> Result<Parsed, ErrorKind> {
    let mut length = [0; LENGTH as usize];
    source.read_exact_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    ensure!(length <= MAX_HEADER, corrupt!("its header claims to have {length} bytes"));
    let header = source.read(LENGTH, length)?;
    let mut header: Header = serde_json::from_slice(&header)
        .map_err(|error| corrupt!("its header is no safetensors header: {error}"))?;
    ErrorKind::check_limit("tensors", header.tensors.len(), MAX_TENSORS)?;
    header.tensors.sort_by_key(|(_, info)| info.data_offsets);

    let metadata = header.metadata.into_iter();
    let metadata = metadata.map(|(key, value)| (Value::Str(key), Value::Str(value)));
    let metadata = Value::Dict(metadata.collect());
    let mut parsed = Parsed { metadata, ..Parsed::default() };
    let data = LENGTH + length;
    let mut end = 0;
    for (name, info) in header.tensors {
        ErrorKind::check_limit("bytes of a tensor's name", name.len(), MAX_NAME)?;
        let corrupt = |reason: String| ErrorKind::CorruptTensor { tensor: name.clone(), reason };
        let (from, to) = info.data_offsets;
        if from != end || to < from {
            let reason = format!("lies at {from}..{to}, where the tensor before it ends at {end}");
            return Err(corrupt(reason));
        }
        end = to;
        let dtype_name = info.dtype;
        ErrorKind::check_limit("bytes of a type's name", dtype_name.len(), MAX_NAME)?;
        let Some(dtype) = Dtype::from_safetensors(&dtype_name) else {
            parsed.unsupported.push((name, dtype_name));
            continue;
        };
        let length = (to - from) as u64;
        let layout = Layout::contiguous(data + from as u64, length, &info.shape);
        let count = layout.extent(dtype, &info.shape).map_err(corrupt)?.count;
        let (group, shape) = (String::new(), info.shape);
        ensure!(
            count * dtype.size() as u64 == length,
            corrupt(format!("of shape {shape:?} in {dtype} has {length} bytes"))
        );
        parsed.tensors.push(TensorInfo { group, name, dtype, shape, layout, part: 0 });
    }
    let (end, length) = (data.checked_add(end as u64), source.length());
    ensure!(
        end == Some(length),
        corrupt!("its tensors end at byte {}, the file at {length}", end.unwrap_or(u64::MAX))
    );
    Ok(parsed)
}

/// A tensor of the header. Its type is text, so that one that is unknown can be named.
#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header as it is written: the map of the format's own library would hide duplicate names.
#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, Info)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                while let Some(name) = map.next_key::<String>()? {
                    match &*name {
                        "__metadata__" => header.metadata = map.next_value()?,
                        _ => header.tensors.push((name, map.next_value()?)),
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
