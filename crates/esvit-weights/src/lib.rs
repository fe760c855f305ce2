//! Files of weights: safetensors and PyTorch checkpoints.
//!
//! [`WeightsFile::open`] recognizes a file by its content and reads only the descriptions of its
//! tensors; elements are read on demand. No code in a file is run, and no content of a file causes
//! more than an error.

mod dtype;
mod error;
mod file;
mod float;
mod layout;
pub mod limits;
mod parts;
mod pickle;
mod recognize;
mod safetensors;
mod source;
mod torch;
mod value;
mod write;

pub use dtype::Dtype;
pub use error::{ErrorKind, WeightsError};
pub use file::{TensorInfo, WeightsFile};
pub use float::Float;
pub use recognize::Container;
pub use value::Value;
pub use write::{
    Tensor, Tree, Values, WriteError, write_safetensors, write_torch, write_torch_with,
};
