//! Own files of weights.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

use burn::tensor::Tensor;
use esvit_weights::{Dtype, Values, WriteError, write_safetensors};

use crate::params::Params;

/// The metadata entry of our files.
pub const METADATA_KEY: &str = "esvit";

/// A named tensor on its way into a file; its values are fetched from the device when written.
pub type Entry = (String, esvit_weights::Tensor<'static>);

/// The values of a tensor of any rank, row-major.
pub fn to_vec<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().try_to_vec().expect("the tensor holds f32")
}

/// An entry of as many values as the shape has.
pub fn entry(name: impl Into<String>, shape: &[usize], values: &Tensor<1>) -> Entry {
    let values = values.clone().inner();
    let values = move || Ok(Values::F32(Cow::Owned(to_vec(&values))));
    (name.into(), esvit_weights::Tensor::new(shape, Dtype::F32, values))
}

/// Entries for all values of `params`, named `prefix` + name.
pub fn entries(prefix: &str, params: &Params) -> Vec<Entry> {
    params
        .iter()
        .map(|(spec, value)| entry(format!("{prefix}{}", spec.name), &spec.shape, value))
        .collect()
}

/// Writes `entries` and `metadata` as a safetensors file.
///
/// # Errors
/// When `writer` cannot take it.
pub fn save(writer: &mut impl Write, entries: &[Entry], metadata: &str) -> io::Result<()> {
    let metadata = BTreeMap::from([(METADATA_KEY.to_owned(), metadata.to_owned())]);
    write_safetensors(writer, entries, &metadata).map_err(write_error)
}

/// What the system said when a file of weights could not be written.
pub fn write_error(error: WriteError) -> io::Error {
    match error {
        WriteError::Io(error) => error,
        error => io::Error::other(error),
    }
}
