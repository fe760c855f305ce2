//! An open file of weights.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::dtype::{Dtype, extend_f32, extend_i64};
use crate::error::{ErrorKind, WeightsError, corrupt, ensure};
use crate::layout::{Layout, gather_strided};
use crate::limits::MAX_TENSORS;
use crate::parts;
use crate::recognize::{Container, recognize};
use crate::source::{Source, try_with_capacity};
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
    pub(crate) layout: Layout,
    /// Which of the file's parts holds it.
    pub(crate) part: usize,
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
pub(crate) struct Parsed {
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) unsupported: Vec<(String, String)>,
    pub(crate) metadata: Value,
}

impl Default for Parsed {
    fn default() -> Self {
        Self { tensors: Vec::new(), unsupported: Vec::new(), metadata: Value::None }
    }
}

/// An open file of weights. Descriptions of tensors are read on opening, their elements on demand.
///
/// A file that changes while it is open yields wrong values or errors, never undefined behavior.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    /// Where the elements are: several, if the weights are a set of files.
    sources: Vec<Source>,
    container: Container,
    parsed: Parsed,
    /// Indices into the list of tensors, by group and name.
    index: HashMap<String, HashMap<String, usize>>,
}

impl WeightsFile {
    /// Opens a file, recognizes its container by content and reads the descriptions of its tensors.
    /// The index of a set of files (`model.safetensors.index.json`) and each of its parts
    /// (`model-00001-of-00003.safetensors`) stand for the whole set.
    ///
    /// # Errors
    /// When it cannot be read, is not a file of weights, is incomplete, or calls dangerous code.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let mut all: Option<Self> = None;
        for part in parts::of(path).map_err(|kind| kind.at(path))? {
            let source = Source::open(&part).map_err(|kind| kind.at(&part))?;
            let found = Self::read(path, source).map_err(|kind| kind.at(&part))?;
            match &mut all {
                None => all = Some(found),
                Some(all) => all.append(found).map_err(|kind| kind.at(&part))?,
            }
        }
        all.ok_or_else(|| corrupt!("it has no parts").at(path))
    }

    /// The same for a file in memory; `path` is its name in errors.
    ///
    /// # Errors
    /// As [`WeightsFile::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        Self::read(path, Source::memory(bytes)).map_err(|kind| kind.at(path))
    }

    fn read(path: &Path, source: Source) -> Result<Self, ErrorKind> {
        let container = recognize(&source)?;
        let parsed = match container {
            Container::Safetensors => safetensors::read(&source)?,
            Container::TorchZip => torch::zip::read(&source)?,
            Container::TorchLegacy => torch::legacy::read(&source)?,
        };
        let (path, sources) = (path.into(), vec![source]);
        let mut file = Self { path, sources, container, parsed, index: HashMap::new() };
        file.index_tensors(0)?;
        Ok(file)
    }

    /// Adds the tensors of another part of the same set; metadata is that of the first one.
    fn append(&mut self, part: Self) -> Result<(), ErrorKind> {
        let (first, number) = (self.parsed.tensors.len(), self.sources.len());
        ErrorKind::check_limit("tensors", first + part.parsed.tensors.len(), MAX_TENSORS)?;
        self.sources.extend(part.sources);
        let tensors = part.parsed.tensors.into_iter();
        self.parsed.tensors.extend(tensors.map(|tensor| TensorInfo { part: number, ..tensor }));
        self.parsed.unsupported.extend(part.parsed.unsupported);
        self.index_tensors(first)
    }

    /// Enters the tensors from `first` on into the index.
    fn index_tensors(&mut self, first: usize) -> Result<(), ErrorKind> {
        for (position, tensor) in self.parsed.tensors.iter().enumerate().skip(first) {
            let names = self.index.entry(tensor.group.clone()).or_default();
            if names.insert(tensor.name.clone(), position).is_some() {
                let reason = "stands in the file twice".into();
                return Err(ErrorKind::CorruptTensor { tensor: tensor.path(), reason });
            }
        }
        Ok(())
    }

    /// Number of files that hold the weights: more than one for a set of parts.
    pub fn parts(&self) -> usize {
        self.sources.len()
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
        &self.parsed.tensors
    }

    /// The tensor of this group and name.
    pub fn find(&self, group: &str, name: &str) -> Option<&TensorInfo> {
        self.index.get(group)?.get(name).map(|&position| &self.parsed.tensors[position])
    }

    /// Everything but the tensors: the metadata of safetensors, the whole tree of PyTorch.
    pub fn metadata(&self) -> &Value {
        &self.parsed.metadata
    }

    /// Tensors that are left out because [`Dtype`] does not have their element type: paths and
    /// names of the types.
    pub fn unsupported(&self) -> &[(String, String)] {
        &self.parsed.unsupported
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
            ensure!(fits, ErrorKind::DtypeMismatch { tensor: tensor.path(), dtype, wanted });
            // The description may have been changed by the caller, or be of another file.
            let extent = tensor
                .layout
                .extent(dtype, &tensor.shape)
                .map_err(|reason| ErrorKind::CorruptTensor { tensor: tensor.path(), reason })?;
            let mut span = try_with_capacity(extent.span)?;
            self.span(tensor, extent.span, |data| extend(dtype, data, &mut span))?;
            if extent.contiguous {
                return Ok(span);
            }
            let mut out = try_with_capacity(extent.count)?;
            gather_strided(&span, &tensor.shape, &tensor.layout.strides, &mut out);
            Ok(out)
        };
        read().map_err(|kind| kind.at(&self.path))
    }

    /// Passes the bytes of `count` elements to `sink`, block by block.
    fn span(
        &self,
        tensor: &TensorInfo,
        count: u64,
        mut sink: impl FnMut(&[u8]),
    ) -> Result<(), ErrorKind> {
        if count == 0 {
            return Ok(());
        }
        // The description may be of another file.
        let source = self.sources.get(tensor.part).ok_or(ErrorKind::CorruptTensor {
            tensor: tensor.path(),
            reason: "is in a part that this file does not have".into(),
        })?;
        let size = count * tensor.dtype.size() as u64;
        let first = tensor.layout.first_byte(tensor.dtype);
        let mut block = vec![0; BLOCK.min(size as usize)];
        let mut done = 0;
        while done < size {
            let length = (size - done).min(BLOCK as u64) as usize;
            source.read_exact_at(first + done, &mut block[..length])?;
            sink(&block[..length]);
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
