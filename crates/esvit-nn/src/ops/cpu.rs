//! What operations on the CPU share: values as slices, and tensors from them.

use crate::device::Device;
use crate::tape::Saved;
use crate::tensor::{Shape, Tensor};

/// The f32 values.
pub(super) fn values(tensor: &Tensor) -> &[f32] {
    tensor.values()
}

/// The f32 values, mutable; copied first if the tensor has another owner.
pub(super) fn values_mut(tensor: &mut Tensor) -> &mut [f32] {
    tensor.values_mut()
}

/// A tensor of these values.
pub(super) fn made(values: Vec<f32>, shape: impl Into<Shape>) -> Tensor {
    Tensor::new(values, shape, &Device::Cpu)
}

/// A tensor in the shape of another.
pub(super) fn made_like(values: Vec<f32>, like: &Tensor) -> Tensor {
    made(values, like.shape())
}

/// Downcasts what an operation saved.
pub(super) fn own<T: 'static>(saved: Saved) -> T {
    *saved.downcast::<T>().expect("an operation gets what it saved")
}
