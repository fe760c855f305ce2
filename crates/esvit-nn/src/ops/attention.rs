//! The attention branch of a block with its norm and residual: in windows, or global.

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation};
use esvit_kernels::buffer::recycle;
use esvit_kernels::window_attention::Windows;
use esvit_kernels::{SampleScales, attention};

use super::extension::{Entry, Fused, Kept, Operation, has_kernels, own, values, values_mut};
use super::linear::{Activation, composed as linear};
use super::mlp::{LinearValues, NormValues, Scales, copy_of, scaled, with_input};
use super::precision::with_element;
use super::{Compute, Segment, WindowMap, composed_layer_norm, tokens_per_image};
use crate::params::{indices, tensor};

/// Layers of an attention branch; `table [(2 w - 1)^2, heads]` is the relative position bias.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are the usual ones")]
pub struct AttentionValues {
    pub norm: NormValues,
    pub qkv: LinearValues,
    pub proj: LinearValues,
    pub table: Tensor<2>,
}

/// The attention branch: `x + scale * proj(attention(qkv(norm(x))))` for `x [rows, C]`, the tokens
/// of all images of `segments`. `windows` has an entry for each segment.
///
/// Padding has the query, key and value of `qkv`'s bias and is not masked, as in the official code.
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
    let images = tokens_per_image(segments);
    let eps = norm.eps as f32;
    let counts = segments.iter().map(|s| s.images).collect();
    let mixing = Mixing::Windows { counts, maps: windows.to_vec() };
    let operation = Arc::new(AttentionBranch { images, mixing, scales, eps, compute });
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

/// [`attention_branch`] composed of the framework's operations.
pub fn composed_attention_branch(
    x: Tensor<2>,
    segments: &[Segment],
    windows: &[Arc<WindowMap>],
    layers: AttentionValues,
    scales: Scales,
) -> Tensor<2> {
    let AttentionValues { norm, qkv, proj, table } = layers;
    let width = x.dims()[1];
    let normalized = composed_layer_norm(x.clone(), norm.gamma, norm.beta, norm.eps);
    // The bias is added after padding: the official code pads with zeros before the layer.
    let projected = normalized.matmul(qkv.weight.transpose());
    let mut first = 0;
    let context = segments.iter().zip(windows).map(|(segment, windows)| {
        let rows = segment.images * windows.tokens();
        let projected = projected.clone().narrow(0, first, rows);
        first += rows;
        let projected = projected.reshape([segment.images, windows.tokens(), 3 * width]);
        let (weights, values) =
            weights_and_values(projected, qkv.bias.clone(), table.clone(), windows);
        let [count, heads, side, _] = weights.dims();
        let context = weights.matmul(values).swap_dims(1, 2).reshape([
            segment.images,
            count / segment.images * side,
            width,
        ]);
        debug_assert_eq!(width % heads, 0);
        let device = context.device();
        context.select(1, indices(windows.token_slot.clone(), &device)).reshape([rows, width])
    });
    let context = Tensor::cat(context.collect(), 0);
    let branch = linear(context, proj.weight, proj.bias, Activation::None);
    x + scaled(branch, &tokens_per_image(segments), scales)
}

/// The attention branch of a plain vision transformer: global attention within each image, without
/// a position bias. `images` lists the number of tokens of every image.
pub fn plain_attention_branch(
    x: Tensor<2>,
    images: &[usize],
    heads: usize,
    norm: NormValues,
    [qkv, proj]: [LinearValues; 2],
    scales: Scales,
    compute: Compute,
) -> Tensor<2> {
    if !has_kernels(&x.device()) {
        return composed_plain_attention_branch(x, images, heads, norm, [qkv, proj], scales);
    }
    let (images, eps) = (images.to_vec(), norm.eps as f32);
    let most = images.iter().copied().max().unwrap_or(0);
    let mixing = Mixing::Plain { heads, slots: (0..most as i32).collect() };
    let operation = Arc::new(AttentionBranch { images, mixing, scales, eps, compute });
    Tensor::from_dispatch(Entry::fused7(
        operation,
        x.into_dispatch(),
        norm.gamma.into_dispatch(),
        norm.beta.into_dispatch(),
        qkv.weight.into_dispatch(),
        qkv.bias.into_dispatch(),
        proj.weight.into_dispatch(),
        proj.bias.into_dispatch(),
    ))
}

/// [`plain_attention_branch`] composed of the framework's operations.
pub fn composed_plain_attention_branch(
    x: Tensor<2>,
    images: &[usize],
    heads: usize,
    norm: NormValues,
    [qkv, proj]: [LinearValues; 2],
    scales: Scales,
) -> Tensor<2> {
    let width = x.dims()[1];
    let head_dim = width / heads;
    let normalized = composed_layer_norm(x.clone(), norm.gamma, norm.beta, norm.eps);
    let qkv = linear(normalized, qkv.weight, qkv.bias, Activation::None);
    let mut first = 0;
    let context = images.chunk_by(|a, b| a == b).map(|images| {
        let (count, tokens) = (images.len(), images[0]);
        let rows = count * tokens;
        let qkv = qkv.clone().narrow(0, first, rows);
        first += rows;
        let qkv = qkv.reshape([count, tokens, 3, heads, head_dim]).permute([2, 0, 3, 1, 4]);
        let [queries, keys, values] = [0, 1, 2].map(|part| -> Tensor<4> {
            let part = qkv.clone().slice_dim(0, part..part + 1);
            part.reshape([count, heads, tokens, head_dim])
        });
        let scale = (head_dim as f64).powf(-0.5);
        let weights = activation::softmax((queries * scale).matmul(keys.swap_dims(2, 3)), 3);
        weights.matmul(values).swap_dims(1, 2).reshape([rows, width])
    });
    let context = Tensor::cat(context.collect(), 0);
    x + scaled(linear(context, proj.weight, proj.bias, Activation::None), images, scales)
}

/// The attention weights of [`attention_branch`] for images of one size, `[B * windows, heads,
/// window^2, window^2]`, windows row-major within an image. `qkv [B, H * W, 3 C]` is the layer's
/// output *without* `bias [3 C]`.
pub fn window_attention_weights(
    qkv: Tensor<3>,
    bias: Tensor<1>,
    table: Tensor<2>,
    windows: &WindowMap,
) -> Tensor<4> {
    weights_and_values(qkv, bias, table, windows).0
}

/// Attention weights, and values `[B * windows, heads, window^2, d]`.
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
    /// Number of tokens of every image.
    images: Vec<usize>,
    mixing: Mixing,
    scales: Scales,
    eps: f32,
    compute: Compute,
}

/// Which tokens attend to which.
#[derive(Debug)]
enum Mixing {
    /// Within windows.
    Windows {
        /// Number of images of every segment.
        counts: Vec<usize>,
        /// Windows of every segment.
        maps: Vec<Arc<WindowMap>>,
    },
    /// Within images.
    Plain {
        heads: usize,
        /// `0..n`, `n` the largest number of tokens of an image.
        slots: Vec<i32>,
    },
}

impl AttentionBranch {
    fn parameters<'a>(&self, inputs: &'a [FlexTensor]) -> attention::Attention<'a> {
        let mut inputs = inputs.iter().map(values);
        let mut next = || inputs.next().expect("an input for every parameter");
        let (gamma, beta, eps) = (next(), next(), self.eps);
        let (qkv_weight, qkv_bias) = (next(), next());
        let table = match self.mixing {
            Mixing::Windows { .. } => next(),
            Mixing::Plain { .. } => &[],
        };
        let (proj_weight, proj_bias) = (next(), next());
        attention::Attention {
            gamma,
            beta,
            eps,
            qkv_weight,
            qkv_bias,
            bias_table: table,
            proj_weight,
            proj_bias,
        }
    }

    fn sample_scales(&self) -> SampleScales<'_> {
        SampleScales { seq_lens: &self.images, scales: self.scales.as_deref() }
    }

    fn segments<'a>(&'a self, attention: &attention::Attention<'_>) -> Vec<attention::Segment<'a>> {
        let width = attention.gamma.len();
        match &self.mixing {
            Mixing::Windows { counts, maps } => {
                let segments = counts.iter().zip(maps);
                let segments = segments.map(|(&images, map)| {
                    let rows = (2 * map.window - 1).pow(2);
                    let windows = Windows {
                        tokens: map.tokens(),
                        slots: map.window_tokens(),
                        width,
                        heads: attention.bias_table.len() / rows,
                        slot_token: &map.slot_token,
                        bias_index: &map.bias_row,
                        mask: map.mask.as_deref(),
                    };
                    attention::Segment { images, windows }
                });
                segments.collect()
            }
            Mixing::Plain { heads, slots } => {
                let segments = self.images.chunk_by(|a, b| a == b).map(|images| {
                    let tokens = images[0];
                    let windows = Windows {
                        tokens,
                        slots: tokens,
                        width,
                        heads: *heads,
                        slot_token: &slots[..tokens],
                        bias_index: &[],
                        mask: None,
                    };
                    attention::Segment { images: images.len(), windows }
                });
                segments.collect()
            }
        }
    }
}

impl Operation for AttentionBranch {
    fn forward(&self, mut inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let parameters = inputs.split_off(1);
        let mut x = inputs.remove(0);
        let attention = self.parameters(&parameters);
        let (segments, scales) = (self.segments(&attention), self.sample_scales());
        let input = (keep && self.compute.activation_checkpointing).then(|| copy_of(&x));
        let keep = keep && input.is_none();
        let kept = with_element!(self.compute.precision, T => {
            let x = values_mut(&mut x);
            let packing = &self.compute.packing;
            let packed = packing.get(self.compute.precision, || attention.pack_weights::<T>());
            let kept = attention::forward(x, &attention, &packed, &segments, &scales, keep);
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
        let (segments, scales) = (self.segments(&attention), self.sample_scales());
        let gradients = with_element!(self.compute.precision, T => {
            let kept = if self.compute.activation_checkpointing {
                let mut x: Vec<f32> = own(kept);
                let packed = attention.pack_weights::<T>();
                let kept = attention::forward(&mut x, &attention, &packed, &segments, &scales, true);
                recycle(x);
                kept.expect("the forward pass was asked to save")
            } else {
                own(kept)
            };
            let gradient = values_mut(&mut gradient);
            attention::backward::<T>(kept, &attention, &segments, &scales, gradient)
        });
        let attention::Gradients {
            gamma,
            beta,
            qkv_weight,
            qkv_bias,
            bias_table: table,
            proj_weight,
            proj_bias,
        } = gradients;
        match self.mixing {
            Mixing::Windows { .. } => {
                let gradients = [gamma, beta, qkv_weight, qkv_bias, table, proj_weight, proj_bias];
                with_input(gradient, gradients, parameters)
            }
            Mixing::Plain { .. } => {
                let gradients = [gamma, beta, qkv_weight, qkv_bias, proj_weight, proj_bias];
                with_input(gradient, gradients, parameters)
            }
        }
    }
}
