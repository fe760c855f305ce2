//! Reading the header of a safetensors file.

use safetensors::tensor::{Dtype as Named, Metadata};

use crate::dtype::Dtype;
use crate::error::Fault;
use crate::file::{Contents, TensorInfo};
use crate::limits::{MAX_HEADER, MAX_NAME, MAX_TENSORS};
use crate::place::Place;
use crate::source::Source;
use crate::value::Value;

/// Bytes before the header: its length.
const LENGTH: u64 = 8;

/// Reads the header and checks that the tensors fill the rest of the file without gap or overlap.
pub(crate) fn read(source: &Source) -> Result<Contents, Fault> {
    let mut length = [0; LENGTH as usize];
    source.fill(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(Fault::damaged(format!("its header claims to have {length} bytes")));
    }
    let header = source.read(LENGTH, length)?;
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|error| Fault::damaged(format!("its header is no safetensors header: {error}")))?;

    let mut contents = Contents { facts: facts(&header), ..Contents::default() };
    let data = LENGTH + length;
    let mut end = 0;
    let tensors = header.offset_keys();
    if tensors.len() > MAX_TENSORS {
        return Err(Fault::Limit { what: "tensors", limit: MAX_TENSORS as u64 });
    }
    for name in tensors {
        let Some(info) = header.info(&name) else { continue };
        if name.len() > MAX_NAME {
            return Err(Fault::Limit { what: "bytes of a tensor's name", limit: MAX_NAME as u64 });
        }
        let fault = |reason: String| Fault::Tensor { tensor: name.clone(), reason };
        let (from, to) = info.data_offsets;
        if from != end || to < from {
            let reason = format!("lies at {from}..{to}, where the tensor before it ends at {end}");
            return Err(fault(reason));
        }
        end = to;
        let Some(dtype) = known(info.dtype) else {
            contents.unsupported.push((name, format!("{:?}", info.dtype)));
            continue;
        };
        let length = (to - from) as u64;
        let place = Place::row_major(data + from as u64, length, &info.shape);
        let count = place.extent(dtype, &info.shape).map_err(fault)?.count;
        if count * dtype.size() as u64 != length {
            return Err(fault(format!("of shape {:?} in {dtype} has {length} bytes", info.shape)));
        }
        let shape = info.shape.clone();
        contents.tensors.push(TensorInfo { group: String::new(), name, dtype, shape, place });
    }
    if data.checked_add(end as u64) != Some(source.length()) {
        return Err(Fault::damaged(format!(
            "its tensors end at byte {}, the file at {}",
            data.saturating_add(end as u64),
            source.length()
        )));
    }
    Ok(contents)
}

fn facts(header: &Metadata) -> Value {
    let mut pairs: Vec<(&String, &String)> = header.metadata().iter().flatten().collect();
    pairs.sort();
    let text = |text: &String| Value::Str(text.clone());
    Value::Dict(pairs.into_iter().map(|(key, value)| (text(key), text(value))).collect())
}

fn known(dtype: Named) -> Option<Dtype> {
    Some(match dtype {
        Named::F64 => Dtype::F64,
        Named::F32 => Dtype::F32,
        Named::F16 => Dtype::F16,
        Named::BF16 => Dtype::Bf16,
        Named::I64 => Dtype::I64,
        Named::I32 => Dtype::I32,
        Named::I16 => Dtype::I16,
        Named::I8 => Dtype::I8,
        Named::U8 => Dtype::U8,
        Named::BOOL => Dtype::Bool,
        _ => return None,
    })
}
