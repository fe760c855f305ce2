//! The two branches of a block, each with its normalisation and residual.

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation};
use esvit_kernels::buffer::{recycle, stale};
use esvit_kernels::window_attention::Windows;
use esvit_kernels::{DropPath, attention, mlp};

use super::extension::{
    Entry, Fused, Kept, Operation, has_kernels, made_like, own, values, values_mut,
};
use super::linear::{Activation, composed as linear};
use super::precision::with_element;
use super::{Compute, Segment, WindowMap, composed_layer_norm, segment_images};
use crate::params::{indices, tensor};

/// Layer normalisation: `gamma`, `beta` `[C]`.
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

/// The layers of an attention branch; `table [(2 w - 1)^2, heads]` holds the relative-position bias.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are the usual ones")]
pub struct AttentionValues {
    pub norm: NormValues,
    pub qkv: LinearValues,
    pub proj: LinearValues,
    pub table: Tensor<2>,
}

/// What the branch of every image is multiplied by; none for 1.
pub type Scales = Option<Arc<[f32]>>;

/// The perceptron branch: `x + scale fc2(gelu(fc1(norm(x))))` for `x [rows, C]`, the tokens of all
/// images of `segments`.
pub fn mlp_branch(
    x: Tensor<2>,
    segments: &[Segment],
    norm: NormValues,
    [fc1, fc2]: [LinearValues; 2],
    scales: Scales,
    compute: Compute,
) -> Tensor<2> {
    if !has_kernels(&x.device()) {
        return composed_mlp_branch(x, segments, norm, [fc1, fc2], scales);
    }
    let images = segment_images(segments);
    let operation = Arc::new(MlpBranch { images, scales, eps: norm.eps as f32, compute });
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

/// [`mlp_branch`] from the framework's own operations.
pub fn composed_mlp_branch(
    x: Tensor<2>,
    segments: &[Segment],
    norm: NormValues,
    [fc1, fc2]: [LinearValues; 2],
    scales: Scales,
) -> Tensor<2> {
    let normalised = composed_layer_norm(x.clone(), norm.gamma, norm.beta, norm.eps);
    let hidden = linear(normalised, fc1.weight, fc1.bias, Activation::None);
    x + scaled(linear(hidden, fc2.weight, fc2.bias, Activation::Gelu), segments, scales)
}

/// Rows times the scale of their image.
fn scaled(branch: Tensor<2>, segments: &[Segment], scales: Scales) -> Tensor<2> {
    let Some(scales) = scales else { return branch };
    let images = segment_images(segments);
    let rows: Vec<f32> =
        images.iter().zip(&*scales).flat_map(|(&n, &s)| std::iter::repeat_n(s, n)).collect();
    let (count, device) = (rows.len(), branch.device());
    branch * tensor(rows, [count, 1], &device)
}

#[derive(Debug)]
struct MlpBranch {
    images: Vec<usize>,
    scales: Scales,
    eps: f32,
    compute: Compute,
}

impl MlpBranch {
    fn parameters<'a>(&self, inputs: &'a [FlexTensor]) -> mlp::Mlp<'a> {
        let [gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias] =
            std::array::from_fn(|i| values(&inputs[i]));
        mlp::Mlp { gamma, beta, eps: self.eps, fc1_weight, fc1_bias, fc2_weight, fc2_bias }
    }

    fn plan(&self) -> DropPath<'_> {
        DropPath { images: &self.images, scales: self.scales.as_deref() }
    }
}

impl Operation for MlpBranch {
    fn forward(&self, mut inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let parameters = inputs.split_off(1);
        let mut x = inputs.remove(0);
        let mlp = self.parameters(&parameters);
        let input = (keep && self.compute.recompute).then(|| copy_of(&x));
        let keep = keep && input.is_none();
        let kept = with_element!(self.compute.precision, T => {
            let kept = mlp::forward::<T>(values_mut(&mut x), &mlp, &self.plan(), keep);
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
        let (mlp, plan) = (self.parameters(parameters), self.plan());
        let gradients = with_element!(self.compute.precision, T => {
            let kept = if self.compute.recompute {
                let mut x: Vec<f32> = own(kept);
                let kept = mlp::forward::<T>(&mut x, &mlp, &plan, true);
                recycle(x);
                kept.expect("asked to keep it")
            } else {
                own(kept)
            };
            mlp::backward::<T>(kept, &mlp, &plan, values_mut(&mut gradient))
        });
        let mlp::Gradients { gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias } = gradients;
        let gradients = [gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias];
        with_input(gradient, gradients, parameters)
    }
}

/// A copy of a branch's input, from which the branch can be computed again.
fn copy_of(x: &FlexTensor) -> Kept {
    let mut copy = stale(values(x).len());
    copy.copy_from_slice(values(x));
    Box::new(copy)
}

/// Gradients of the input and of the parameters, each in the shape of its parameter.
fn with_input<const N: usize>(
    input: FlexTensor,
    gradients: [Vec<f32>; N],
    parameters: &[FlexTensor],
) -> Vec<Option<FlexTensor>> {
    let gradients = gradients.into_iter().zip(parameters);
    let gradients = gradients.map(|(gradient, parameter)| Some(made_like(gradient, parameter)));
    std::iter::once(Some(input)).chain(gradients).collect()
}

/// The attention branch: `x + scale proj(attention(qkv(norm(x))))` for `x [rows, C]`, the tokens of
/// all images of `segments`, whose windows are those of `windows`, one map a segment.
///
/// Slots of a window without a token
/// have the query, key and value that `qkv`'s bias gives, and take part unmasked, as in the
/// official code.
pub fn attention_branch(
    x: Tensor<2>,
    segments: &[Segment],
    windows: &[Arc<WindowMap>],
    layers: AttentionValues,
    scales: Scales,
    compute: Compute,
) -> Tensor<2> {
    if !has_kernels(&x.device()) {
        return composed_attention_branch(x, segments, windows, layers, scales);
    }
    let AttentionValues { norm, qkv, proj, table } = layers;
    let images = segment_images(segments);
    let eps = norm.eps as f32;
    let (counts, windows) = (segments.iter().map(|s| s.images).collect(), windows.to_vec());
    let operation = Arc::new(AttentionBranch { images, counts, windows, scales, eps, compute });
    Tensor::from_dispatch(Entry::fused8(
        operation,
        x.into_dispatch(),
        norm.gamma.into_dispatch(),
        norm.beta.into_dispatch(),
        qkv.weight.into_dispatch(),
        qkv.bias.into_dispatch(),
        table.into_dispatch(),
        proj.weight.into_dispatch(),
        proj.bias.into_dispatch(),
    ))
}

/// [`attention_branch`] from the framework's own operations.
pub fn composed_attention_branch(
    x: Tensor<2>,
    segments: &[Segment],
    windows: &[Arc<WindowMap>],
    layers: AttentionValues,
    scales: Scales,
) -> Tensor<2> {
    let AttentionValues { norm, qkv, proj, table } = layers;
    let width = x.dims()[1];
    let normalised = composed_layer_norm(x.clone(), norm.gamma, norm.beta, norm.eps);
    // Without its bias: padding then is rows of zeros here, as it is in the official code before
    // the layer.
    let product = normalised.matmul(qkv.weight.transpose());
    let mut first = 0;
    let mixed = segments.iter().zip(windows).map(|(segment, windows)| {
        let rows = segment.images * windows.tokens();
        let product = product.clone().narrow(0, first, rows);
        first += rows;
        let product = product.reshape([segment.images, windows.tokens(), 3 * width]);
        let (weights, values) =
            weights_and_values(product, qkv.bias.clone(), table.clone(), windows);
        let [count, heads, side, _] = weights.dims();
        let mixed = weights.matmul(values).swap_dims(1, 2).reshape([
            segment.images,
            count / segment.images * side,
            width,
        ]);
        debug_assert_eq!(width % heads, 0);
        let device = mixed.device();
        mixed.select(1, indices(windows.token_slot.clone(), &device)).reshape([rows, width])
    });
    let mixed = Tensor::cat(mixed.collect(), 0);
    let branch = linear(mixed, proj.weight, proj.bias, Activation::None);
    x + scaled(branch, segments, scales)
}

/// The attention weights of [`attention_branch`] for images of one size: `qkv [B, H * W, 3 C]` is
/// the product of the normalised tokens *without* `bias [3 C]`. `[B * windows, heads, window^2,
/// window^2]`, windows row-major within an image.
pub fn window_attention_weights(
    qkv: Tensor<3>,
    bias: Tensor<1>,
    table: Tensor<2>,
    windows: &WindowMap,
) -> Tensor<4> {
    weights_and_values(qkv, bias, table, windows).0
}

/// The weights and the values `[B * windows, heads, window^2, d]`.
fn weights_and_values(
    qkv: Tensor<3>,
    bias: Tensor<1>,
    table: Tensor<2>,
    windows: &WindowMap,
) -> (Tensor<4>, Tensor<4>) {
    let [batch, _, width] = qkv.dims();
    let heads = table.dims()[1];
    let device = qkv.device();
    let side = windows.window_tokens();
    let [count, head_dim] = [windows.windows(), width / 3 / heads];

    let qkv = if windows.is_padded() {
        let padding = Tensor::zeros([batch, 1, width], &device);
        Tensor::cat(vec![qkv, padding], 1)
    } else {
        qkv
    };
    let qkv = qkv.select(1, indices(windows.slot_token.clone(), &device));
    let qkv = (qkv + bias.reshape([1, 1, width]))
        .reshape([batch * count, side, 3, heads, head_dim])
        .permute([2, 0, 3, 1, 4]);
    let [queries, keys, values] = [0, 1, 2].map(|part| -> Tensor<4> {
        qkv.clone().slice_dim(0, part..part + 1).reshape([batch * count, heads, side, head_dim])
    });

    let scale = (head_dim as f64).powf(-0.5);
    let mut logits = (queries * scale).matmul(keys.swap_dims(2, 3));
    let position = table
        .select(0, indices(windows.bias_row.clone(), &device))
        .reshape([1, side, side, heads])
        .permute([0, 3, 1, 2]);
    logits = logits + position;
    if let Some(mask) = &windows.mask {
        let mask: Tensor<5> = tensor(mask.clone(), [1, count, 1, side, side], &device);
        let by_image = logits.reshape([batch, count, heads, side, side]) + mask;
        logits = by_image.reshape([batch * count, heads, side, side]);
    }
    (activation::softmax(logits, 3), values)
}

#[derive(Debug)]
struct AttentionBranch {
    images: Vec<usize>,
    /// Images of every segment.
    counts: Vec<usize>,
    /// Their windows.
    windows: Vec<Arc<WindowMap>>,
    scales: Scales,
    eps: f32,
    compute: Compute,
}

impl AttentionBranch {
    fn parameters<'a>(&self, inputs: &'a [FlexTensor]) -> attention::Attention<'a> {
        let [gamma, beta, qkv_weight, qkv_bias, table, proj_weight, proj_bias] =
            std::array::from_fn(|i| values(&inputs[i]));
        let eps = self.eps;
        attention::Attention {
            gamma,
            beta,
            eps,
            qkv_weight,
            qkv_bias,
            table,
            proj_weight,
            proj_bias,
        }
    }

    fn plan(&self) -> DropPath<'_> {
        DropPath { images: &self.images, scales: self.scales.as_deref() }
    }

    fn segments<'a>(&'a self, attention: &attention::Attention<'_>) -> Vec<attention::Segment<'a>> {
        let segments = self.counts.iter().zip(&self.windows);
        let segments = segments.map(|(&images, map)| {
            let rows = (2 * map.window - 1).pow(2);
            let windows = Windows {
                tokens: map.tokens(),
                slots: map.window_tokens(),
                width: attention.gamma.len(),
                heads: attention.table.len() / rows,
                slot_token: &map.slot_token,
                bias_row: &map.bias_row,
                mask: map.mask.as_deref(),
            };
            attention::Segment { images, windows }
        });
        segments.collect()
    }
}

impl Operation for AttentionBranch {
    fn forward(&self, mut inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let parameters = inputs.split_off(1);
        let mut x = inputs.remove(0);
        let attention = self.parameters(&parameters);
        let (segments, plan) = (self.segments(&attention), self.plan());
        let input = (keep && self.compute.recompute).then(|| copy_of(&x));
        let keep = keep && input.is_none();
        let kept = with_element!(self.compute.precision, T => {
            let x = values_mut(&mut x);
            let kept = attention::forward::<T>(x, &attention, &segments, &plan, keep);
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
        let attention = self.parameters(parameters);
        let (segments, plan) = (self.segments(&attention), self.plan());
        let gradients = with_element!(self.compute.precision, T => {
            let kept = if self.compute.recompute {
                let mut x: Vec<f32> = own(kept);
                let kept = attention::forward::<T>(&mut x, &attention, &segments, &plan, true);
                recycle(x);
                kept.expect("asked to keep it")
            } else {
                own(kept)
            };
            let gradient = values_mut(&mut gradient);
            attention::backward::<T>(kept, &attention, &segments, &plan, gradient)
        });
        let attention::Gradients {
            gamma,
            beta,
            qkv_weight,
            qkv_bias,
            table,
            proj_weight,
            proj_bias,
        } = gradients;
        let gradients = [gamma, beta, qkv_weight, qkv_bias, table, proj_weight, proj_bias];
        with_input(gradient, gradients, parameters)
    }
}
