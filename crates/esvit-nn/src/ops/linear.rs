//! Linear layers.

use esvit_kernels::linear;

use super::cpu::{gradients, made, values};
use super::prelude::*;

pub use esvit_kernels::activation::Activation;

/// `act(x) weight^T + bias`: `x [.., in]`, `weight [out, in]`, `bias [out]`; `activation` is
/// applied to the input.
pub fn linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: Activation,
    precision: Precision,
) -> Tensor {
    let shape = x.shape();
    let [outputs, inputs] = weight.dims();
    let rows = x.reshape([shape.numel() / inputs, inputs]);
    let y = apply(Linear { activation, precision }, [rows, weight, bias]);
    y.reshape(shape.with(shape.len() - 1, outputs))
}

#[derive(Debug)]
struct Linear {
    activation: Activation,
    precision: Precision,
}

impl Operation for Linear {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let ([rows, width], [outputs, inputs]) = (inputs[0].dims(), inputs[1].dims());
        assert_eq!(width, inputs, "width of rows and weight");
        [rows, outputs].into()
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let ([rows, width], [outputs, _]) = (inputs[0].dims(), inputs[1].dims());
        Cost::products(rows * width * outputs).saving(rows * width, self.precision)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let x = nodes.input(0);
        let x = nodes.activation(&x, self.activation);
        Some(nodes.linear(&x, 1))
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let [x, weight, bias] = [0, 1, 2].map(|i| values(&inputs[i]));
        let [rows, width] = [0, 1].map(|axis| inputs[0].shape()[axis]);
        let outputs = bias.len();
        with_element!(self.precision, T => {
            let (y, saved) =
                linear::forward::<T>(x, width, self.activation, weight, Some(bias), save);
            (made(y, [rows, outputs]), saved.map(Saved::new))
        })
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let (weight, dy) = (&pass.parameters[0], &pass.gradient);
        let [rows, width] = [dy.shape()[0], weight.shape()[1]];
        let linear::Gradients { x, weight, bias } = with_element!(self.precision, T => {
            let (saved, weight, dy) = (pass.saved.take(), values(weight), values(dy));
            linear::backward::<T>(saved, width, self.activation, weight, dy, pass.wanted[0])
        });
        let dx = x.map(|dx| made(dx, [rows, width]));
        gradients(dx, [weight, bias], pass.parameters)
    }
}
