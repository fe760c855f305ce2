//! Writes our own weight files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::tensor::Tensor;
use esvit_weights::{Dtype, Values, WriteError, write_safetensors};

use crate::params::Params;

/// Key of our metadata in the file.
pub const METADATA_KEY: &str = "esvit";

/// The format of training checkpoints that this version writes and reads: `format` in our metadata.
pub const CHECKPOINT_FORMAT: u32 = 1;

/// A named tensor to write; its values are read from the device when it is written.
pub type Entry = (String, esvit_weights::Tensor<'static>);

/// A tensor of `shape` with flat values.
pub fn entry(name: impl Into<String>, shape: &[usize], values: &Tensor) -> Entry {
    let values = values.clone().detach();
    let values = move || Ok(Values::F32(Cow::Owned(values.to_vec())));
    (name.into(), esvit_weights::Tensor::new(shape, Dtype::F32, values))
}

/// All parameters, named `prefix` + name.
pub fn entries(prefix: &str, params: &Params) -> Vec<Entry> {
    params
        .iter()
        .map(|(spec, value)| entry(format!("{prefix}{}", spec.name), &spec.shape, &value))
        .collect()
}

/// Writes `entries` and `metadata` as a safetensors file.
///
/// # Errors
/// When writing fails.
pub fn save(writer: &mut impl Write, entries: &[Entry], metadata: &str) -> io::Result<()> {
    let metadata = BTreeMap::from([(METADATA_KEY.to_owned(), metadata.to_owned())]);
    write_safetensors(writer, entries, &metadata).map_err(write_error)
}

/// The I/O error of a failed write.
pub fn write_error(error: WriteError) -> io::Error {
    match error {
        WriteError::Io(error) => error,
        error => io::Error::other(error),
    }
}
