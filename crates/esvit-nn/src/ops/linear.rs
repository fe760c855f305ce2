//! Linear layers.

use esvit_kernels::buffer::Buffer;
use esvit_kernels::element::{self, Bf16, Bf16x3};
use esvit_kernels::linear;

use super::Compute;
use super::cpu::{gradients, made, values};
use super::prelude::*;
use crate::tensor::{Dtype, Element};

pub use esvit_kernels::activation::Activation;

/// `act(x) weight^T + bias`: `x [.., in]`, `weight [out, in]`, `bias [out]`; `activation` is
/// applied to the input. Where nothing learns, rows may come in the precision.
pub fn linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: Activation,
    compute: impl Into<Compute>,
) -> Tensor {
    let compute = compute.into();
    rows_of_linear([x, weight, bias], Linear { activation, to: Dtype::F32, compute })
}

/// The same without an activation, whose results are stored in the precision where nothing learns: queries,
/// keys and values, say.
pub fn linear_in_precision(x: Tensor, weight: Tensor, bias: Tensor, compute: Compute) -> Tensor {
    let inputs = [x, weight, bias];
    let to = compute.precision.dtype_of(&inputs);
    rows_of_linear(inputs, Linear { activation: Activation::None, to, compute })
}

fn rows_of_linear([x, weight, bias]: [Tensor; 3], layer: Linear) -> Tensor {
    let shape = x.shape();
    let [outputs, inputs] = weight.dims();
    let rows = x.reshape([shape.numel() / inputs, inputs]);
    let y = apply(layer, [rows, weight, bias]);
    y.reshape(shape.with(shape.len() - 1, outputs))
}

#[derive(Debug)]
struct Linear {
    activation: Activation,
    /// The type of the results.
    to: Dtype,
    compute: Compute,
}

impl Linear {
    /// Results in `O` of products in `T`.
    fn results<T, O>(&self, inputs: &[Tensor], save: bool) -> (Tensor, Option<Saved>)
    where
        T: element::Element,
        O: element::Element + Element<Memory = Buffer<O>>,
    {
        let [rows, width] = inputs[0].dims();
        let (weight, bias) = (values(&inputs[1]), values(&inputs[2]));
        let Self { activation, compute, .. } = self;
        let packed =
            compute.packing.get(compute.precision, || linear::pack::<T>(weight, width, Some(bias)));
        let (y, saved) = match inputs[0].dtype() {
            Dtype::Bf16 => {
                let x: &[Bf16] = inputs[0].values();
                linear::forward_packed(x, width, *activation, &packed, save)
            }
            _ => linear::forward_packed(values(&inputs[0]), width, *activation, &packed, save),
        };
        (Tensor::of_memory::<O>(y, [rows, bias.len()]), saved.map(Saved::new))
    }
}

impl Operation for Linear {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let ([rows, width], [outputs, inputs]) = (inputs[0].dims(), inputs[1].dims());
        assert_eq!(width, inputs, "width of rows and weight");
        [rows, outputs].into()
    }

    fn dtype(&self, _: Dtype) -> Dtype {
        self.to
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let ([rows, width], [outputs, _]) = (inputs[0].dims(), inputs[1].dims());
        Cost::products(rows * width * outputs).saving(rows * width, self.compute.precision)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let x = nodes.input(0);
        let x = nodes.activation(&x, self.activation);
        Some(nodes.linear(&x, 1))
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        match (self.compute.precision, self.to) {
            (Precision::F32, _) => self.results::<f32, f32>(&inputs, save),
            (Precision::Bf16, Dtype::Bf16) => self.results::<Bf16, Bf16>(&inputs, save),
            (Precision::Bf16, _) => self.results::<Bf16, f32>(&inputs, save),
            (Precision::Bf16x3, _) => self.results::<Bf16x3, f32>(&inputs, save),
        }
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let (weight, dy) = (&pass.parameters[0], &pass.gradient);
        let [rows, width] = [dy.shape()[0], weight.shape()[1]];
        let linear::Gradients { x, weight, bias } = with_element!(self.compute.precision, T => {
            let (saved, weight, dy) = (pass.saved.take(), values(weight), values(dy));
            linear::backward::<T>(saved, width, self.activation, weight, dy, pass.wanted[0])
        });
        let dx = x.map(|dx| made(dx, [rows, width]));
        gradients(dx, [weight, bias], pass.parameters)
    }
}
