//! Files of weights: safetensors and PyTorch checkpoints.
//!
//! [`WeightsFile::open`] tells a file by its content and reads only what describes its tensors; a
//! tensor's elements are read when asked for. Nothing that a file says is run, and a file of any
//! content gives an error at worst.

mod dtype;
mod error;
mod file;
mod float;
pub mod limits;
mod pickle;
mod place;
mod recognize;
mod safetensors;
mod source;
mod torch;
mod value;
mod write;

pub use dtype::Dtype;
pub use error::{Fault, WeightsError};
pub use file::{TensorInfo, WeightsFile};
pub use float::Float;
pub use recognize::Container;
pub use value::Value;
pub use write::{Tensor, Tree, Values, WriteError, write_safetensors, write_torch};
