//! Writes safetensors files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;

use super::{Tensor, WriteError};
use crate::dtype::Dtype;
use crate::limits::{MAX_HEADER, MAX_NAME, MAX_TENSORS};

/// The reserved name of metadata in the header.
const METADATA: &str = "__metadata__";

/// Writes a safetensors file of `tensors` and `metadata`.
///
/// Tensors are ordered by element size, largest first, which aligns them, then by name. Equal input
/// gives equal bytes.
///
/// # Errors
/// When `writer` or a source of values fails, a name is a duplicate or `__metadata__`, or values do
/// not fit their tensor. The file is then incomplete.
pub fn write_safetensors(
    writer: &mut impl Write,
    tensors: &[(String, Tensor<'_>)],
    metadata: &BTreeMap<String, String>,
) -> Result<(), WriteError> {
    let mut order: Vec<&(String, Tensor<'_>)> = tensors.iter().collect();
    order.sort_by(|(a, x), (b, y)| y.dtype.size().cmp(&x.dtype.size()).then_with(|| a.cmp(b)));

    let header = header(&order, metadata)?;
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(header.as_bytes())?;
    for (name, tensor) in order {
        tensor.write(name, |bytes| writer.write_all(bytes))?;
    }
    Ok(())
}

/// The header, in a fixed order.
fn header(
    tensors: &[&(String, Tensor<'_>)],
    metadata: &BTreeMap<String, String>,
) -> Result<String, WriteError> {
    let quoted_string = |text: &str| serde_json::Value::from(text).to_string();
    let mut parts = Vec::new();
    if !metadata.is_empty() {
        let pair = |(key, value): (&String, &String)| {
            format!("{}:{}", quoted_string(key), quoted_string(value))
        };
        let pairs: Vec<String> = metadata.iter().map(pair).collect();
        parts.push(format!("{}:{{{}}}", quoted_string(METADATA), pairs.join(",")));
    }
    let mut names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(WriteError::Name(pair[0].into()));
    }
    if names.len() > MAX_TENSORS {
        return Err(WriteError::Limit { what: "tensors", limit: MAX_TENSORS as u64 });
    }
    let mut start = 0u64;
    for (name, tensor) in tensors {
        if name == METADATA || name.len() > MAX_NAME {
            return Err(WriteError::Name(name.clone()));
        }
        let shape = tensor.shape.clone();
        let too_large = || WriteError::Size { tensor: name.clone(), shape: shape.clone() };
        let end = start.checked_add(tensor.length(name)?).ok_or_else(too_large)?;
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        let mut part = quoted_string(name);
        let (dtype, shape) = (dtype_name(tensor.dtype), shape.join(","));
        let _ = write!(
            part,
            r#":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{start},{end}]}}"#
        );
        parts.push(part);
        start = end;
    }
    let mut header = format!("{{{}}}", parts.join(","));
    // The format requires values aligned to 8 bytes.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    if header.len() as u64 > MAX_HEADER {
        return Err(WriteError::Limit { what: "bytes of header", limit: MAX_HEADER });
    }
    Ok(header)
}

fn dtype_name(dtype: Dtype) -> String {
    dtype.to_string().to_ascii_uppercase()
}
