//! Layer normalization, L2 normalization, norms and means.

use esvit_kernels::element::Bf16;
use esvit_kernels::{buffer, layer_norm, tokens};

use super::common_size;
use super::cpu::{gradients, made, made_like, values, values_mut};
use super::prelude::*;
use crate::tensor::Dtype;

/// Layer normalization of `x [rows, C]` with biased variance; `gamma`, `beta` are `[C]`.
pub fn layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: f64,
    precision: Precision,
) -> Tensor {
    apply(LayerNorm { eps: eps as f32, precision, to: Dtype::F32 }, [x, gamma, beta])
}

/// The same, stored in `precision` where nothing learns.
pub fn layer_norm_in_precision(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: f64,
    precision: Precision,
) -> Tensor {
    let inputs = [x, gamma, beta];
    apply(LayerNorm { eps: eps as f32, precision, to: precision.dtype_of(&inputs) }, inputs)
}

#[derive(Debug)]
struct LayerNorm {
    eps: f32,
    precision: Precision,
    /// The type of the results.
    to: Dtype,
}

impl Operation for LayerNorm {
    fn dtype(&self, _: Dtype) -> Dtype {
        self.to
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::default().saving(inputs[0].numel(), self.precision)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let x = nodes.input(0);
        Some(nodes.layer_norm(&x, 1, self.eps))
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let [x, gamma, beta] = [0, 1, 2].map(|i| values(&inputs[i]));
        if self.to == Dtype::Bf16 {
            let y = layer_norm::evaluate::<Bf16, Bf16>(x, gamma, beta, self.eps);
            return (Tensor::of_memory::<Bf16>(y, inputs[0].shape()), None);
        }
        let mut y = buffer::uninit(x.len());
        let saved = with_element!(self.precision, T => {
            layer_norm::forward::<T, f32>(x, gamma, beta, self.eps, &mut y, save).map(Saved::new)
        });
        (made_like(y, &inputs[0]), saved)
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let (gamma, dy) = (values(&pass.parameters[0]), values(&pass.gradient));
        let mut dx = buffer::uninit(dy.len());
        let (dgamma, dbeta) = with_element!(self.precision, T => {
            layer_norm::backward::<T>(&pass.saved.take(), gamma, dy, &mut dx)
        });
        gradients(Some(made_like(dx, &pass.gradient)), [dgamma, dbeta], pass.parameters)
    }
}

/// Scales rows to unit L2 norm; norms below `1e-12` count as `1e-12`.
pub fn l2_normalize(x: Tensor) -> Tensor {
    apply(UnitRows, [x])
}

#[derive(Debug)]
struct UnitRows;

impl Operation for UnitRows {
    fn cost(&self, inputs: &[Shape]) -> Cost {
        let [rows, width] = inputs[0].dims();
        Cost::default().saving(rows * width + rows, Precision::F32)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let x = nodes.input(0);
        let lengths = nodes.reduce("ReduceL2", &x, 1);
        let least = nodes.number(1e-12);
        let lengths = nodes.node("Max", &[&lengths, &least], &[]);
        Some(nodes.node("Div", &[&x, &lengths], &[]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let mut x = inputs.swap_remove(0);
        let width = x.shape()[1];
        let lengths = tokens::l2_normalize(values_mut(&mut x), width);
        let saved = save.then(|| Saved::new((x.clone(), lengths)));
        (x, saved)
    }

    fn backward(&self, mut pass: Backward<'_>) -> InputGradients {
        let (y, lengths): (Tensor, Vec<f32>) = pass.saved.take();
        let (width, gradient) = (y.shape()[1], values_mut(&mut pass.gradient));
        tokens::l2_normalize_backward(values(&y), &lengths, width, gradient);
        vec![Some(pass.gradient)]
    }
}

/// Global average pooling of `x [rows, C]` to `[images, C]`: `images` lists the rows of each.
pub fn global_average_pool(x: Tensor, images: &[usize]) -> Tensor {
    apply(ImageMeans { images: images.to_vec() }, [x])
}

#[derive(Debug)]
struct ImageMeans {
    images: Vec<usize>,
}

impl Operation for ImageMeans {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let [rows, width] = inputs[0].dims();
        assert_eq!(rows, self.images.iter().sum::<usize>(), "rows of all images");
        [self.images.len(), width].into()
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let [_, width] = nodes.shape(0).dims();
        let (rows, x) = (common_size(&self.images)?, nodes.input(0));
        let tokens = nodes.reshape(&x, &[rows, width]);
        let over = [("axes", Attribute::Integers(&[1])), ("keepdims", Attribute::Integer(0))];
        Some(nodes.node("ReduceMean", &[&tokens], &over))
    }

    fn forward(&self, inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        let width = inputs[0].shape()[1];
        let means = tokens::global_average_pool(values(&inputs[0]), width, &self.images);
        (made(means, [self.images.len(), width]), None)
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let width = pass.gradient.shape()[1];
        let gradient = values(&pass.gradient);
        let rows = tokens::global_average_pool_backward(gradient, width, &self.images);
        let count = rows.len() / width;
        vec![Some(made(rows, [count, width]))]
    }
}
