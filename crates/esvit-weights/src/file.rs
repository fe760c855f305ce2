//! An open file of weights.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::dtype::{Dtype, extend_f32, extend_i64};
use crate::error::{Fault, WeightsError};
use crate::place::{Place, gather};
use crate::recognize::{Container, recognize};
use crate::source::{Source, reserved};
use crate::value::Value;
use crate::{safetensors, torch};

/// Bytes to read and convert at a time.
const BLOCK: usize = 1 << 20;

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Keys of the dictionaries around the one that holds the tensor, joined by `/`. Empty for a
    /// plain dictionary of tensors.
    pub group: String,
    /// Key of the tensor in its dictionary; inside a pickled module, the path of its parameter.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    pub(crate) place: Place,
}

impl TensorInfo {
    /// Group and name, joined by `/`.
    pub fn path(&self) -> String {
        join(&self.group, &self.name)
    }
}

/// Appends a key to a path.
pub(crate) fn join(group: &str, name: &str) -> String {
    if group.is_empty() { name.into() } else { format!("{group}/{name}") }
}

/// Contents of a file, as read by its container's reader.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) unsupported: Vec<(String, String)>,
    pub(crate) facts: Value,
}

impl Default for Contents {
    fn default() -> Self {
        Self { tensors: Vec::new(), unsupported: Vec::new(), facts: Value::None }
    }
}

/// An open file of weights. Descriptions of tensors are read on opening, their elements on demand.
///
/// A file that changes while it is open yields wrong values or errors, never undefined behavior.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    source: Source,
    container: Container,
    contents: Contents,
    /// Indices into the list of tensors, by group and name.
    index: HashMap<String, HashMap<String, usize>>,
}

impl WeightsFile {
    /// Opens a file, recognizes its container by content and reads the descriptions of its tensors.
    ///
    /// # Errors
    /// When it cannot be read, is not a file of weights, is incomplete, or calls dangerous code.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        Source::open(path).and_then(|source| Self::read(path, source)).map_err(|f| f.at(path))
    }

    /// The same for a file in memory; `path` is its name in errors.
    ///
    /// # Errors
    /// As [`WeightsFile::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        Self::read(path, Source::memory(bytes)).map_err(|fault| fault.at(path))
    }

    fn read(path: &Path, source: Source) -> Result<Self, Fault> {
        let container = recognize(&source)?;
        let contents = match container {
            Container::Safetensors => safetensors::read(&source)?,
            Container::TorchZip => torch::zip::read(&source)?,
            Container::TorchLegacy => torch::legacy::read(&source)?,
        };
        let mut index: HashMap<String, HashMap<String, usize>> = HashMap::new();
        for (place, tensor) in contents.tensors.iter().enumerate() {
            if !index.contains_key(&tensor.group) {
                index.insert(tensor.group.clone(), HashMap::new());
            }
            let names = index.get_mut(&tensor.group);
            if names.and_then(|names| names.insert(tensor.name.clone(), place)).is_some() {
                let reason = "stands in the file twice".into();
                return Err(Fault::Tensor { tensor: tensor.path(), reason });
            }
        }
        Ok(Self { path: path.into(), source, container, contents, index })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's container format.
    pub fn container(&self) -> Container {
        self.container
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.contents.tensors
    }

    /// The tensor of this group and name.
    pub fn find(&self, group: &str, name: &str) -> Option<&TensorInfo> {
        self.index.get(group)?.get(name).map(|&place| &self.contents.tensors[place])
    }

    /// Everything but the tensors: the metadata of safetensors, the whole tree of PyTorch.
    pub fn facts(&self) -> &Value {
        &self.contents.facts
    }

    /// Tensors that are left out because [`Dtype`] does not have their element type: paths and
    /// names of the types.
    pub fn unsupported(&self) -> &[(String, String)] {
        &self.contents.unsupported
    }

    /// The elements of a floating-point tensor of this file, row-major; `f64` is rounded.
    ///
    /// # Errors
    /// When the tensor has another type or its bytes cannot be read.
    pub fn read_f32(&self, tensor: &TensorInfo) -> Result<Vec<f32>, WeightsError> {
        let wanted = "floating-point numbers";
        self.elements(tensor, tensor.dtype.is_float(), wanted, extend_f32)
    }

    /// The elements of a tensor of integers or booleans, row-major.
    ///
    /// # Errors
    /// As [`WeightsFile::read_f32`].
    pub fn read_i64(&self, tensor: &TensorInfo) -> Result<Vec<i64>, WeightsError> {
        self.elements(tensor, !tensor.dtype.is_float(), "integers", extend_i64)
    }

    /// The elements of a tensor of `u8` or booleans, row-major.
    ///
    /// # Errors
    /// As [`WeightsFile::read_f32`].
    pub fn read_u8(&self, tensor: &TensorInfo) -> Result<Vec<u8>, WeightsError> {
        let fits = matches!(tensor.dtype, Dtype::U8 | Dtype::Bool);
        self.elements(tensor, fits, "bytes", |_, data, out| out.extend_from_slice(data))
    }

    fn elements<T: Copy>(
        &self,
        tensor: &TensorInfo,
        fits: bool,
        wanted: &'static str,
        extend: impl Fn(Dtype, &[u8], &mut Vec<T>),
    ) -> Result<Vec<T>, WeightsError> {
        let dtype = tensor.dtype;
        let read = || {
            if !fits {
                return Err(Fault::WrongType { tensor: tensor.path(), dtype, wanted });
            }
            // The description may have been changed by the caller, or be of another file.
            let extent = tensor
                .place
                .extent(dtype, &tensor.shape)
                .map_err(|reason| Fault::Tensor { tensor: tensor.path(), reason })?;
            let mut span = reserved(extent.span)?;
            self.span(tensor, extent.span, |data| extend(dtype, data, &mut span))?;
            if extent.contiguous {
                return Ok(span);
            }
            let mut out = reserved(extent.count)?;
            gather(&span, &tensor.shape, &tensor.place.strides, &mut out);
            Ok(out)
        };
        read().map_err(|fault| fault.at(&self.path))
    }

    /// Passes the bytes of `count` elements to `take`, block by block.
    fn span(
        &self,
        tensor: &TensorInfo,
        count: u64,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), Fault> {
        if count == 0 {
            return Ok(());
        }
        let size = count * tensor.dtype.size() as u64;
        let first = tensor.place.first(tensor.dtype);
        let mut block = vec![0; BLOCK.min(size as usize)];
        let mut done = 0;
        while done < size {
            let length = (size - done).min(BLOCK as u64) as usize;
            self.source.fill(first + done, &mut block[..length])?;
            take(&block[..length]);
            done += length as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_by_slashes() {
        let joined = [("", "x"), ("a", "x"), ("a/b", ""), ("", "")].map(|(a, b)| join(a, b));
        assert_eq!(joined, ["x", "a/x", "a/b/", ""]);
    }
}
