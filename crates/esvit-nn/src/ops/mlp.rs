//! The MLP branch of a block with its norm and residual, and what it shares with attention.

use std::sync::Arc;

use esvit_kernels::{SampleScales, mlp};

use super::cpu::{gradients, values, values_mut};
use super::linear::Activation;
use super::prelude::*;
use super::{Compute, Segment, tokens_per_image};

/// Layer normalization: `gamma`, `beta` `[C]`.
#[derive(Debug, Clone)]
pub struct NormValues {
    /// The scale.
    pub gamma: Tensor,
    /// The shift.
    pub beta: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

/// A linear layer, `x weight^T + bias`.
#[derive(Debug, Clone)]
pub struct LinearValues {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Tensor,
}

/// Factor of every image's residual branch, `[images]`; None for 1.
pub type Scales = Option<Arc<[f32]>>;

/// The MLP branch: `x + scale * fc2(act(fc1(norm(x))))` for `x [rows, C]`, the tokens of all images
/// of `segments`.
pub fn mlp_branch(
    x: Tensor,
    segments: &[Segment],
    norm: NormValues,
    [fc1, fc2]: [LinearValues; 2],
    activation: Activation,
    scales: Scales,
    compute: Compute,
) -> Tensor {
    let images = tokens_per_image(segments);
    let operation = MlpBranch { images, activation, scales, eps: norm.eps as f32, compute };
    let NormValues { gamma, beta, .. } = norm;
    apply(operation, [x, gamma, beta, fc1.weight, fc1.bias, fc2.weight, fc2.bias])
}

#[derive(Debug)]
struct MlpBranch {
    images: Vec<usize>,
    activation: Activation,
    scales: Scales,
    eps: f32,
    compute: Compute,
}

impl MlpBranch {
    fn parameters<'a>(&self, inputs: &'a [Tensor]) -> mlp::Mlp<'a> {
        let [gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias] =
            std::array::from_fn(|i| values(&inputs[i]));
        let (eps, activation) = (self.eps, self.activation);
        mlp::Mlp { gamma, beta, eps, fc1_weight, fc1_bias, activation, fc2_weight, fc2_bias }
    }

    fn sample_scales(&self) -> SampleScales<'_> {
        SampleScales { seq_lens: &self.images, scales: self.scales.as_deref() }
    }
}

impl Operation for MlpBranch {
    fn cost(&self, inputs: &[Shape]) -> Cost {
        let ([rows, width], [hidden, _]) = (inputs[0].dims(), inputs[3].dims());
        let cost = Cost::products(2 * rows * width * hidden);
        let precision = self.compute.precision;
        let saved = with_element!(precision, T => mlp::saved_values::<T>(width, hidden));
        cost.of_branch(rows * width, rows * saved, &self.scales, &self.compute)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let x = nodes.input(0);
        let normed = nodes.layer_norm(&x, 1, self.eps);
        let hidden = nodes.linear(&normed, 3);
        let hidden = nodes.activation(&hidden, self.activation);
        let y = nodes.linear(&hidden, 5);
        Some(nodes.node("Add", &[&x, &y], &[]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let parameters = inputs.split_off(1);
        let (mlp, scales, compute) =
            (self.parameters(&parameters), self.sample_scales(), &self.compute);
        with_element!(compute.precision, T => {
            let packed = compute.packing.get(compute.precision, || mlp.pack_weights::<T>());
            let branch = |x: &mut [f32], save| mlp::forward(x, &mlp, &packed, &scales, save);
            compute.forward(inputs.remove(0), save, branch)
        })
    }

    fn backward(&self, mut pass: Backward<'_>) -> InputGradients {
        let (mlp, scales) = (self.parameters(pass.parameters), self.sample_scales());
        let gradient = values_mut(&mut pass.gradient);
        let found = with_element!(self.compute.precision, T => {
            let saved = self.compute.saved(pass.saved, |x| {
                mlp::forward(x, &mlp, &mlp.pack_weights::<T>(), &scales, true)
            });
            mlp::backward(saved, &mlp, &scales, gradient)
        });
        let mlp::Gradients { gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias } = found;
        let found = [gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias];
        gradients(Some(pass.gradient), found, pass.parameters)
    }
}
