//! Writing files of weights.
//!
//! Tensors are written one by one, and values are requested when needed, so that only one tensor
//! is in memory. Equal input gives equal bytes.

mod pickle;
mod safetensors;
mod torch;

use std::borrow::Cow;
use std::fmt;
use std::io;

pub use safetensors::write_safetensors;
pub use torch::{Tree, write_torch, write_torch_with};

use crate::dtype::Dtype;
use crate::error::ensure;
use crate::float::Float;

/// Values to convert at a time.
const BLOCK: usize = 1 << 14;

/// The values of a tensor, row-major.
#[derive(Debug, Clone)]
pub enum Values<'a> {
    /// For `F32`, and for `F16` and `Bf16` with rounding to nearest even.
    F32(Cow<'a, [f32]>),
    /// For `I64`.
    I64(Cow<'a, [i64]>),
    /// For `U8`.
    U8(Cow<'a, [u8]>),
}

/// A tensor to write.
pub struct Tensor<'a> {
    shape: Vec<usize>,
    dtype: Dtype,
    values: Box<dyn Fn() -> io::Result<Values<'a>> + 'a>,
}

impl<'a> Tensor<'a> {
    /// A tensor to be stored as `dtype`; `values` is called once, when it is written.
    pub fn new(
        shape: &[usize],
        dtype: Dtype,
        values: impl Fn() -> io::Result<Values<'a>> + 'a,
    ) -> Self {
        Self { shape: shape.to_vec(), dtype, values: Box::new(values) }
    }

    /// A tensor of `f32` values in memory.
    pub fn f32(shape: &[usize], values: &'a [f32]) -> Self {
        Self::new(shape, Dtype::F32, move || Ok(Values::F32(values.into())))
    }

    /// Bytes in the file.
    fn length(&self, name: &str) -> Result<u64, WriteError> {
        let count = self
            .shape
            .iter()
            .try_fold(self.dtype.size() as u64, |product, &size| product.checked_mul(size as u64));
        count.ok_or_else(|| WriteError::Size { tensor: name.into(), shape: self.shape.clone() })
    }

    /// Writes the values, block by block.
    fn write(
        &self,
        name: &str,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let values = (self.values)()?;
        let (found, kind) = match &values {
            Values::F32(values) => (values.len(), "f32"),
            Values::I64(values) => (values.len(), "i64"),
            Values::U8(values) => (values.len(), "u8"),
        };
        if found as u64 * self.dtype.size() as u64 != self.length(name)? {
            let shape = self.shape.clone();
            return Err(WriteError::Count { tensor: name.into(), shape, found });
        }
        let mut floats = [Float::F32, Float::F16, Float::Bf16].into_iter();
        match (values, floats.find(|float| float.dtype() == self.dtype)) {
            (Values::F32(values), Some(float)) => {
                values.chunks(BLOCK).try_for_each(|block| sink(&float.to_bytes(block)))?;
            }
            (Values::I64(values), _) if self.dtype == Dtype::I64 => {
                for block in values.chunks(BLOCK) {
                    sink(&block.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
                }
            }
            (Values::U8(values), _) if self.dtype == Dtype::U8 => sink(&values)?,
            _ => {
                let (tensor, dtype) = (name.into(), self.dtype);
                return Err(WriteError::Type { tensor, dtype, given: kind });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}

/// Why weights cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// Writing failed, or a source of values.
    #[error("weights cannot be written: {0}\nhint: check the disk's free space and the folder")]
    Io(#[from] io::Error),
    /// The number of values does not fit the shape.
    #[error("tensor `{tensor}` of shape {shape:?} was given {found} values\nhint: give one each")]
    Count {
        /// Its name.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The number of values.
        found: usize,
    },
    /// The values cannot be stored as this type.
    #[error(
        "tensor `{tensor}` cannot be stored as {dtype}, it was given {given}\n\
         hint: store f32 as f32, f16 or bf16, and other types as themselves"
    )]
    Type {
        /// Its name.
        tensor: String,
        /// The type to store.
        dtype: Dtype,
        /// The type of the values.
        given: &'static str,
    },
    /// The shape is too large for a file.
    #[error("tensor `{tensor}` of shape {shape:?} is too large for a file\nhint: check its shape")]
    Size {
        /// Its name.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A name is a duplicate, too long, or reserved by the format.
    #[error("`{0}` cannot be the name of one more entry\nhint: give every entry a name of its own")]
    Name(String),
    /// A limit for reading would be exceeded.
    #[error("more than {limit} {what} cannot be written\nhint: write several files")]
    Limit {
        /// What exceeds it.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl WriteError {
    /// An error if there are more than `limit`.
    fn check_limit(what: &'static str, count: u64, limit: u64) -> Result<(), Self> {
        ensure!(count <= limit, Self::Limit { what, limit });
        Ok(())
    }
}
