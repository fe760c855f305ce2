//! What operations on the CPU share: values as slices, and tensors from them.

use crate::device::Device;
use crate::tape::InputGradients;
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

/// The gradient of input 0, then those of the parameters in the parameters' shapes.
pub(super) fn gradients<const N: usize>(
    input: Option<Tensor>,
    of_parameters: [Vec<f32>; N],
    parameters: &[Tensor],
) -> InputGradients {
    let shaped = of_parameters.into_iter().zip(parameters).map(|(v, p)| Some(made_like(v, p)));
    std::iter::once(input).chain(shaped).collect()
}
