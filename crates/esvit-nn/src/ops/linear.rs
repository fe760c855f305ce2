//! Linear layers.

use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;
use esvit_kernels::linear;

use super::extension::{
    Entry, Fused, Kept, Operation, has_kernels, made, made_like, own, reclaim, values,
};
use super::precision::with_element;
use super::{Precision, gelu};

pub use esvit_kernels::activation::Activation;

/// `act(x) weight^T + bias`: `x [.., in]`, `weight [out, in]`, `bias [out]`; `activation` is
/// applied to the input.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    activation: Activation,
    precision: Precision,
) -> Tensor<D> {
    let mut shape = x.dims();
    let [outputs, inputs] = weight.dims();
    let rows = shape.iter().product::<usize>() / inputs;
    let x = x.reshape([rows, inputs]);
    let y = if has_kernels(&x.device()) {
        let operation = Arc::new(Linear { activation, precision });
        let inputs = [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()];
        let [x, weight, bias] = inputs;
        Tensor::from_dispatch(Entry::fused3(operation, x, weight, bias))
    } else {
        composed(x, weight, bias, activation)
    };
    shape[D - 1] = outputs;
    y.reshape(shape)
}

/// [`linear()`] on rows, composed of the framework's operations.
pub fn composed(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    activation: Activation,
) -> Tensor<2> {
    let x = match activation {
        Activation::None => x,
        Activation::Gelu => gelu(x),
        Activation::QuickGelu => x.clone() * sigmoid(x * 1.702),
    };
    let outputs = bias.dims()[0];
    x.matmul(weight.transpose()) + bias.reshape([1, outputs])
}

#[derive(Debug)]
struct Linear {
    activation: Activation,
    precision: Precision,
}

impl Operation for Linear {
    fn forward(&self, mut inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let [x, weight, bias] = [0, 1, 2].map(|i| values(&inputs[i]));
        let [rows, width] = [0, 1].map(|axis| inputs[0].shape()[axis]);
        let outputs = bias.len();
        let result = with_element!(self.precision, T => {
            let (y, kept) =
                linear::forward::<T>(x, width, self.activation, weight, Some(bias), keep);
            (made(y, [rows, outputs]), kept.map(|kept| Box::new(kept) as Kept))
        });
        reclaim(inputs.swap_remove(0));
        result
    }

    fn backward(
        &self,
        kept: Kept,
        parameters: &[FlexTensor],
        gradient: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let width = parameters[0].shape()[1];
        let rows = gradient.shape()[0];
        let gradients = with_element!(self.precision, T => linear::backward::<T>(
            own(kept),
            width,
            self.activation,
            values(&parameters[0]),
            values(&gradient),
            wanted[0],
        ));
        reclaim(gradient);
        vec![
            gradients.x.map(|x| made(x, [rows, width])),
            Some(made_like(gradients.weight, &parameters[0])),
            Some(made_like(gradients.bias, &parameters[1])),
        ]
    }
}
