//! Weights on disk: safetensors files with the official parameter names.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};

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
        let format = |e: safetensors::SafeTensorError| WeightsError::Format {
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
        let mut names: Vec<String> = self.tensors().names().into_iter().map(String::from).collect();
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
        specs: &Arc<[ParamSpec]>,
        device: &Device,
        ignore: impl Fn(&str) -> bool,
    ) -> Result<Params, WeightsError> {
        self.params_or(prefix, specs, device, ignore, |_| None)
    }

    /// The same, where `other` may give the values of a parameter that the file lacks.
    ///
    /// # Errors
    /// As [`WeightsFile::params`].
    pub fn params_or(
        &self,
        prefix: &str,
        specs: &Arc<[ParamSpec]>,
        device: &Device,
        ignore: impl Fn(&str) -> bool,
        mut other: impl FnMut(&ParamSpec) -> Option<Vec<f32>>,
    ) -> Result<Params, WeightsError> {
        let mut differences = Vec::new();
        let params = Params::from_fn(specs, device, |spec| {
            let difference = match self.values(&format!("{prefix}{}", spec.name)) {
                Some((shape, values)) if shape == spec.shape => return values,
                Some((shape, _)) => {
                    format!("`{}` is {shape:?}, the network has {:?}", spec.name, spec.shape)
                }
                None => match other(spec) {
                    Some(values) => return values,
                    None => format!("`{}` {:?} is missing", spec.name, spec.shape),
                },
            };
            differences.push(difference);
            vec![0.0; spec.len()]
        });
        let known: HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
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

/// Writes `entries`, in their order, and `metadata` as a safetensors file.
///
/// # Errors
/// When `writer` cannot take it.
pub fn save(writer: &mut impl Write, entries: &[Entry], metadata: &str) -> io::Result<()> {
    let mut end = 0;
    let infos = entries.iter().map(|entry| {
        let start = end;
        end += size_of::<f32>() * entry.shape.iter().product::<usize>();
        let info = TensorInfo {
            dtype: Dtype::F32,
            shape: entry.shape.clone(),
            data_offsets: (start, end),
        };
        (entry.name.clone(), info)
    });
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), metadata.to_owned())]);
    let header = Metadata::new(Some(metadata), infos.collect()).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&header)?;
    // The format wants the values aligned to eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(&header)?;
    for entry in entries {
        for block in to_vec(&entry.values).chunks(WRITE_BLOCK) {
            let bytes: Vec<u8> = block.iter().flat_map(|value| value.to_le_bytes()).collect();
            writer.write_all(&bytes)?;
        }
    }
    Ok(())
}

/// Values turned into bytes at a time when writing.
const WRITE_BLOCK: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{Init, Registry};

    fn specs() -> Arc<[ParamSpec]> {
        let mut registry = Registry::default();
        let mut scope = registry.root();
        scope.param("a.weight", &[2, 3], Init::Uniform(1.0));
        scope.param("b", &[5], Init::TruncatedNormal(1.0));
        registry.finish()
    }

    fn file(folder: &Path, bytes: &[u8]) -> Result<WeightsFile, WeightsError> {
        let path = folder.join("file");
        std::fs::write(&path, bytes).unwrap();
        WeightsFile::open(&path)
    }

    #[test]
    fn what_is_written_is_read_back_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::flex();
        let params = Params::init(&specs(), 3, &device);
        let mut bytes = Vec::new();
        save(&mut bytes, &entries("x.", &params), "said").unwrap();
        let file = file(folder.path(), &bytes).unwrap();
        assert_eq!(file.metadata(), Some("said"));
        let again = file.params("x.", &specs(), &device, |_| false).unwrap();
        for ((_, a), (_, b)) in params.iter().zip(again.iter()) {
            assert_eq!(to_vec(a), to_vec(b));
        }
    }

    #[test]
    fn a_file_that_is_cut_off_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let params = Params::init(&specs(), 3, &Device::flex());
        let mut bytes = Vec::new();
        save(&mut bytes, &entries("", &params), "").unwrap();
        for length in 0..bytes.len() {
            let error = file(folder.path(), &bytes[..length]).unwrap_err();
            assert!(matches!(error, WeightsError::Format { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn differences_are_listed_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::flex();
        let entry = |name: &str, shape: &[usize]| Entry {
            name: name.into(),
            shape: shape.to_vec(),
            values: Tensor::zeros([shape.iter().product::<usize>()], &device),
        };
        let mut bytes = Vec::new();
        save(&mut bytes, &[entry("a.weight", &[3, 2]), entry("c", &[1])], "").unwrap();
        let file = file(folder.path(), &bytes).unwrap();
        let error = file.params("", &specs(), &device, |_| false).unwrap_err().to_string();
        for part in ["3 tensors", "`a.weight` is [3, 2]", "`b` [5] is missing", "`c` has no place"]
        {
            assert!(error.contains(part), "{error}");
        }
    }
}
