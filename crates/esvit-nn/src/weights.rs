//! Weights on disk: safetensors files with the official parameter names.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, View};

use crate::params::{ParamSpec, Params};

/// The one metadata entry of our files. A single entry keeps the bytes of a file a function of
/// what is in it: the format leaves the order of several open.
const METADATA_KEY: &str = "esvit";

/// How many differing tensors an error lists.
const LISTED_DIFFERENCES: usize = 12;

/// Why a weights file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be opened or read.
    #[error("cannot read `{path}`: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not a whole safetensors file.
    #[error(
        "`{path}` is not a whole safetensors file: {reason}\n\
         hint: it may be cut off, or of another format",
        path = path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Names or shapes differ from those of the network.
    #[error(
        "`{path}` does not fit this network, {count} tensors differ:\n{list}\n\
         hint: use the model settings that the file was made with",
        path = path.display(),
        count = differences.len(),
        list = listed(differences)
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// One line for every tensor that does not fit.
        differences: Vec<String>,
    },
    /// The file cannot be written.
    #[error("cannot write `{path}`: {reason}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
}

fn listed(differences: &[String]) -> String {
    let shown = differences.iter().take(LISTED_DIFFERENCES).cloned();
    let hidden = differences.len().saturating_sub(LISTED_DIFFERENCES);
    let rest = (hidden > 0).then(|| format!("... and {hidden} more"));
    shown.chain(rest).map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// A safetensors file in memory.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    bytes: Vec<u8>,
    metadata: Option<String>,
}

impl WeightsFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read or is not a whole safetensors file.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let bytes = std::fs::read(path)
            .map_err(|source| WeightsError::Read { path: path.into(), source })?;
        let format =
            |e: safetensors::SafeTensorError| WeightsError::Format {
                path: path.into(),
                reason: e.to_string(),
            };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(format)?;
        let metadata = header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY)).cloned();
        SafeTensors::deserialize(&bytes).map_err(format)?;
        Ok(Self { path: path.into(), bytes, metadata })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What [`save`] was given as metadata, if the file is one of ours.
    pub fn metadata(&self) -> Option<&str> {
        self.metadata.as_deref()
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.tensors().names().into_iter().map(String::from).collect();
        names.sort_unstable();
        names
    }

    /// Shape and values of a floating-point tensor; none if there is no such tensor or it holds
    /// something else.
    pub fn values(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let tensors = self.tensors();
        let view = tensors.tensor(name).ok()?;
        Some((view.shape().to_vec(), to_f32(view.dtype(), view.data())?))
    }

    /// Shape and values of a 64-bit integer tensor.
    pub fn integers(&self, name: &str) -> Option<(Vec<usize>, Vec<i64>)> {
        let tensors = self.tensors();
        let view = tensors.tensor(name).ok().filter(|view| view.dtype() == Dtype::I64)?;
        Some((view.shape().to_vec(), words(view.data(), i64::from_le_bytes)))
    }

    /// Shape and bytes of an 8-bit tensor.
    pub fn bytes(&self, name: &str) -> Option<(Vec<usize>, Vec<u8>)> {
        let tensors = self.tensors();
        let view = tensors.tensor(name).ok().filter(|view| view.dtype() == Dtype::U8)?;
        Some((view.shape().to_vec(), view.data().to_vec()))
    }

    /// Values for every parameter of `specs`, read from tensors named `prefix` + name.
    ///
    /// # Errors
    /// Lists every parameter that is missing, misshapen or not a number type, and every tensor
    /// under `prefix` that the network does not have and `ignore` does not accept.
    pub fn params(
        &self,
        prefix: &str,
        specs: &std::sync::Arc<[ParamSpec]>,
        device: &Device,
        ignore: impl Fn(&str) -> bool,
    ) -> Result<Params, WeightsError> {
        let mut differences = Vec::new();
        let params = Params::from_fn(specs, device, |spec| {
            match self.values(&format!("{prefix}{}", spec.name)) {
                Some((shape, values)) if shape == spec.shape => values,
                found => {
                    differences.push(match found {
                        Some((shape, _)) => {
                            format!("`{}` is {shape:?}, the network has {:?}", spec.name, spec.shape)
                        }
                        None => format!("`{}` {:?} is missing", spec.name, spec.shape),
                    });
                    vec![0.0; spec.len()]
                }
            }
        });
        let known: std::collections::HashSet<&str> =
            specs.iter().map(|spec| spec.name.as_str()).collect();
        for name in self.names() {
            if let Some(name) = name.strip_prefix(prefix)
                && !known.contains(name)
                && !is_derived(name)
                && !ignore(name)
            {
                differences.push(format!("`{name}` has no place in the network"));
            }
        }
        if differences.is_empty() {
            Ok(params)
        } else {
            Err(WeightsError::Mismatch { path: self.path.clone(), differences })
        }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("checked when the file was opened")
    }
}

/// Tensors of official files that follow from the settings and are not needed.
fn is_derived(name: &str) -> bool {
    name.ends_with("relative_position_index")
        || name.ends_with("attn_mask")
        || name.ends_with("num_batches_tracked")
}

fn to_f32(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    match dtype {
        Dtype::F32 => Some(words(data, f32::from_le_bytes)),
        Dtype::F64 => Some(words(data, |b| f64::from_le_bytes(b) as f32)),
        Dtype::F16 => Some(words(data, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Some(words(data, |b| bf16::from_le_bytes(b).to_f32())),
        _ => None,
    }
}

fn words<const N: usize, T>(data: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = data.as_chunks::<N>();
    chunks.iter().map(|&chunk| convert(chunk)).collect()
}

/// A named tensor on its way into a file; its values are fetched from the device when written.
#[derive(Debug)]
pub struct Entry {
    /// Name in the file.
    pub name: String,
    /// Shape in the file.
    pub shape: Vec<usize>,
    /// As many values as the shape has.
    pub values: Tensor<1>,
}

impl View for &Entry {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = to_vec(&self.values);
        Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        4 * self.shape.iter().product::<usize>()
    }
}

/// The values of a tensor of any rank, row-major.
pub fn to_vec<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().try_to_vec().expect("the tensor holds f32")
}

/// Entries for all values of `params`, named `prefix` + name.
pub fn entries(prefix: &str, params: &Params) -> Vec<Entry> {
    let entry = |(spec, value): (&ParamSpec, &Tensor<1>)| Entry {
        name: format!("{prefix}{}", spec.name),
        shape: spec.shape.clone(),
        values: value.clone().inner(),
    };
    params.iter().map(entry).collect()
}

/// Writes `entries` and `metadata` to `path`, which is replaced. The caller sees to it that a
/// half-written file is never taken for a whole one.
///
/// # Errors
/// When the file cannot be written.
pub fn save(path: &Path, entries: &[Entry], metadata: &str) -> Result<(), WeightsError> {
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), metadata.to_owned())]);
    let tensors = entries.iter().map(|entry| (entry.name.as_str(), entry));
    safetensors::serialize_to_file(tensors, Some(metadata), path)
        .map_err(|e| WeightsError::Write { path: path.into(), reason: e.to_string() })
}
