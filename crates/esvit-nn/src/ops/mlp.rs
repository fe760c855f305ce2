//! The MLP branch of a block with its norm and residual, and what it shares with attention.

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use esvit_kernels::buffer::{recycle, uninit};
use esvit_kernels::{SampleScales, mlp};

use super::extension::{
    Entry, Fused, Kept, Operation, has_kernels, made_like, own, values, values_mut,
};
use super::linear::{Activation, composed as linear};
use super::precision::with_element;
use super::{Compute, Segment, composed_layer_norm, tokens_per_image};
use crate::params::tensor;

/// Layer normalization: `gamma`, `beta` `[C]`.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are the usual ones")]
pub struct NormValues {
    pub gamma: Tensor<1>,
    pub beta: Tensor<1>,
    pub eps: f64,
}

/// A linear layer: `weight [out, in]`, `bias [out]`.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are the usual ones")]
pub struct LinearValues {
    pub weight: Tensor<2>,
    pub bias: Tensor<1>,
}

/// Factor of every image's residual branch, `[images]`; None for 1.
pub type Scales = Option<Arc<[f32]>>;

/// The MLP branch: `x + scale * fc2(act(fc1(norm(x))))` for `x [rows, C]`, the tokens of all images
/// of `segments`.
pub fn mlp_branch(
    x: Tensor<2>,
    segments: &[Segment],
    norm: NormValues,
    [fc1, fc2]: [LinearValues; 2],
    activation: Activation,
    scales: Scales,
    compute: Compute,
) -> Tensor<2> {
    if !has_kernels(&x.device()) {
        return composed_mlp_branch(x, segments, norm, [fc1, fc2], activation, scales);
    }
    let images = tokens_per_image(segments);
    let operation =
        Arc::new(MlpBranch { images, activation, scales, eps: norm.eps as f32, compute });
    Tensor::from_dispatch(Entry::fused7(
        operation,
        x.into_dispatch(),
        norm.gamma.into_dispatch(),
        norm.beta.into_dispatch(),
        fc1.weight.into_dispatch(),
        fc1.bias.into_dispatch(),
        fc2.weight.into_dispatch(),
        fc2.bias.into_dispatch(),
    ))
}

/// [`mlp_branch`] composed of the framework's operations.
pub fn composed_mlp_branch(
    x: Tensor<2>,
    segments: &[Segment],
    norm: NormValues,
    [fc1, fc2]: [LinearValues; 2],
    activation: Activation,
    scales: Scales,
) -> Tensor<2> {
    let normalized = composed_layer_norm(x.clone(), norm.gamma, norm.beta, norm.eps);
    let hidden = linear(normalized, fc1.weight, fc1.bias, Activation::None);
    let branch = linear(hidden, fc2.weight, fc2.bias, activation);
    x + scaled(branch, &tokens_per_image(segments), scales)
}

/// Multiplies rows by the scale of their image; `images` lists the rows of every image.
pub(super) fn scaled(branch: Tensor<2>, images: &[usize], scales: Scales) -> Tensor<2> {
    let Some(scales) = scales else { return branch };
    let rows: Vec<f32> =
        images.iter().zip(&*scales).flat_map(|(&n, &s)| std::iter::repeat_n(s, n)).collect();
    let (count, device) = (rows.len(), branch.device());
    branch * tensor(rows, [count, 1], &device)
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
    fn parameters<'a>(&self, inputs: &'a [FlexTensor]) -> mlp::Mlp<'a> {
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
    fn forward(&self, mut inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let parameters = inputs.split_off(1);
        let mut x = inputs.remove(0);
        let mlp = self.parameters(&parameters);
        let input = (keep && self.compute.activation_checkpointing).then(|| copy_of(&x));
        let keep = keep && input.is_none();
        let kept = with_element!(self.compute.precision, T => {
            let packing = &self.compute.packing;
            let packed = packing.get(self.compute.precision, || mlp.pack_weights::<T>());
            let kept = mlp::forward(values_mut(&mut x), &mlp, &packed, &self.sample_scales(), keep);
            kept.map(|kept| Box::new(kept) as Kept)
        });
        (x, kept.or(input))
    }

    fn backward(
        &self,
        kept: Kept,
        parameters: &[FlexTensor],
        mut gradient: FlexTensor,
        _: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let (mlp, scales) = (self.parameters(parameters), self.sample_scales());
        let gradients = with_element!(self.compute.precision, T => {
            let kept = if self.compute.activation_checkpointing {
                let mut x: Vec<f32> = own(kept);
                let kept = mlp::forward(&mut x, &mlp, &mlp.pack_weights::<T>(), &scales, true);
                recycle(x);
                kept.expect("the forward pass was asked to save")
            } else {
                own(kept)
            };
            mlp::backward::<T>(kept, &mlp, &scales, values_mut(&mut gradient))
        });
        let mlp::Gradients { gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias } = gradients;
        let gradients = [gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias];
        with_input(gradient, gradients, parameters)
    }
}

/// A copy of a branch's input, for activation checkpointing.
pub(super) fn copy_of(x: &FlexTensor) -> Kept {
    let mut copy = uninit(values(x).len());
    copy.copy_from_slice(values(x));
    Box::new(copy)
}

/// The gradient of the input, then those of the parameters in the parameters' shapes.
pub(super) fn with_input<const N: usize>(
    input: FlexTensor,
    gradients: [Vec<f32>; N],
    parameters: &[FlexTensor],
) -> Vec<Option<FlexTensor>> {
    let gradients = gradients.into_iter().zip(parameters);
    let gradients = gradients.map(|(gradient, parameter)| Some(made_like(gradient, parameter)));
    std::iter::once(Some(input)).chain(gradients).collect()
}
