//! Writes safetensors files.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::{Serialize, Serializer};

use super::{Tensor, WriteError};
use crate::error::ensure;
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
    writer.write_all(&header)?;
    for (name, tensor) in order {
        tensor.write(name, |bytes| writer.write_all(bytes))?;
    }
    Ok(())
}

/// An entry of the header.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Metadata(&'a BTreeMap<String, String>),
    Tensor { dtype: String, shape: &'a [usize], data_offsets: [u64; 2] },
}

/// The header, in a fixed order.
fn header(
    tensors: &[&(String, Tensor<'_>)],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, WriteError> {
    let mut entries = Vec::new();
    if !metadata.is_empty() {
        entries.push((METADATA, Entry::Metadata(metadata)));
    }
    let mut names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(WriteError::Name(pair[0].into()));
    }
    WriteError::check_limit("tensors", names.len() as u64, MAX_TENSORS as u64)?;
    let mut start = 0u64;
    for (name, tensor) in tensors {
        let is_free = name != METADATA && name.len() <= MAX_NAME;
        ensure!(is_free, WriteError::Name(name.clone()));
        let too_large = || WriteError::Size { tensor: name.clone(), shape: tensor.shape.clone() };
        let end = start.checked_add(tensor.length(name)?).ok_or_else(too_large)?;
        let (dtype, data_offsets) = (tensor.dtype.to_string().to_uppercase(), [start, end]);
        entries.push((name, Entry::Tensor { dtype, shape: &tensor.shape, data_offsets }));
        start = end;
    }
    let mut header = Vec::new();
    serde_json::Serializer::new(&mut header).collect_map(entries).map_err(io::Error::from)?;
    // The format requires values aligned to 8 bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    WriteError::check_limit("bytes of header", header.len() as u64, MAX_HEADER)?;
    Ok(header)
}
