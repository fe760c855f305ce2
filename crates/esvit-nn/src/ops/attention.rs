//! The attention branch of a block with its norm and residual: in windows, or global.

use std::sync::Arc;

use esvit_kernels::SampleScales;
use esvit_kernels::attention::{self, Attention, Gradients};
use esvit_kernels::window_attention::Windows;

use super::cpu::{gradients, values, values_mut};
use super::mlp::{LinearValues, NormValues, Scales};
use super::prelude::*;
use super::{Compute, Segment, WindowMap, common_size, tokens_per_image};

/// Layers of an attention branch in windows of side `w`.
#[derive(Debug, Clone)]
pub struct AttentionValues {
    /// The norm before all.
    pub norm: NormValues,
    /// Queries, keys and values, `[3 C, C]`.
    pub qkv: LinearValues,
    /// The projection of what attention gives, `[C, C]`.
    pub proj: LinearValues,
    /// Relative position bias, `[(2 w - 1)^2, heads]`.
    pub table: Tensor,
}

/// The attention branch: `x + scale * proj(attention(qkv(norm(x))))` for `x [rows, C]`, the tokens
/// of all images of `segments`. `windows` has an entry for each segment.
///
/// Padding has the query, key and value of `qkv`'s bias and is not masked, as in the official code.
///
/// # Panics
/// When a segment has prefix tokens.
pub fn attention_branch(
    x: Tensor,
    segments: &[Segment],
    windows: &[Arc<WindowMap>],
    layers: AttentionValues,
    scales: Scales,
    compute: Compute,
) -> Tensor {
    segments.iter().for_each(|segment| segment.assert_map("attention in windows"));
    let AttentionValues { norm, qkv, proj, table } = layers;
    let (images, NormValues { gamma, beta, eps }) = (tokens_per_image(segments), norm);
    let counts = segments.iter().map(|s| s.images).collect();
    let mixing = Mixing::Windows { counts, maps: windows.to_vec() };
    let (heads, eps) = (table.shape()[1], eps as f32);
    let operation = AttentionBranch { images, heads, mixing, scales, eps, compute };
    apply(operation, [x, gamma, beta, qkv.weight, qkv.bias, proj.weight, proj.bias, table])
}

/// The attention branch of a plain vision transformer: global attention within each image, without
/// a position bias. `images` lists the number of tokens of every image.
pub fn plain_attention_branch(
    x: Tensor,
    images: &[usize],
    heads: usize,
    norm: NormValues,
    [qkv, proj]: [LinearValues; 2],
    scales: Scales,
    compute: Compute,
) -> Tensor {
    let most = images.iter().copied().max().unwrap_or(0);
    let mixing = Mixing::Plain { slots: (0..most as i32).collect() };
    let (images, NormValues { gamma, beta, eps }) = (images.to_vec(), norm);
    let eps = eps as f32;
    let operation = AttentionBranch { images, heads, mixing, scales, eps, compute };
    apply(operation, [x, gamma, beta, qkv.weight, qkv.bias, proj.weight, proj.bias])
}

#[derive(Debug)]
struct AttentionBranch {
    /// Number of tokens of every image.
    images: Vec<usize>,
    heads: usize,
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
        /// `0..n`, `n` the largest number of tokens of an image.
        slots: Vec<i32>,
    },
}

impl AttentionBranch {
    fn parameters<'a>(&self, inputs: &'a [Tensor]) -> Attention<'a> {
        // Only windows have a table.
        let [gamma, beta, qkv_weight, qkv_bias, proj_weight, proj_bias, bias_table] =
            std::array::from_fn(|i| inputs.get(i).map_or(&[][..], values));
        let eps = self.eps;
        Attention { gamma, beta, eps, qkv_weight, qkv_bias, bias_table, proj_weight, proj_bias }
    }

    fn sample_scales(&self) -> SampleScales<'_> {
        SampleScales { seq_lens: &self.images, scales: self.scales.as_deref() }
    }

    fn segments(&self, width: usize) -> Vec<attention::Segment<'_>> {
        let heads = self.heads;
        match &self.mixing {
            Mixing::Windows { counts, maps } => {
                let windows = maps.iter().map(|map| Windows {
                    tokens: map.tokens(),
                    slots: map.window_tokens(),
                    width,
                    heads,
                    slot_token: &map.slot_token,
                    bias_index: &map.bias_row,
                    mask: map.mask.as_deref(),
                });
                let segments = counts.iter().zip(windows);
                segments.map(|(&images, windows)| attention::Segment { images, windows }).collect()
            }
            Mixing::Plain { slots } => {
                let segments = self.images.chunk_by(|a, b| a == b).map(|images| {
                    let (tokens, slot_token) = (images[0], &slots[..images[0]]);
                    let (slots, bias_index, mask) = (tokens, &[][..], None);
                    let windows =
                        Windows { tokens, slots, width, heads, slot_token, bias_index, mask };
                    attention::Segment { images: images.len(), windows }
                });
                segments.collect()
            }
        }
    }
}

/// Scaled products of queries and keys `[n, heads, tokens, tokens]`, and values, of `qkv [n, tokens,
/// 3, heads, depth]`.
fn logits_and_values(nodes: &mut Nodes<'_>, qkv: &str, depth: usize) -> (String, String) {
    let qkv = nodes.transpose(qkv, &[2, 0, 3, 1, 4]);
    let [queries, keys, values] = [0, 1, 2].map(|part| nodes.part(&qkv, part));

    let scale = nodes.constant(&format!("scale_{depth}"), &[], &[(depth as f32).powf(-0.5)]);
    let queries = nodes.node("Mul", &[&queries, &scale], &[]);
    let keys = nodes.transpose(&keys, &[0, 1, 3, 2]);
    let logits = nodes.node("MatMul", &[&queries, &keys], &[]);
    (logits, values)
}

/// Means of the values by attention weights, `[n, tokens, heads, depth]`.
fn context(nodes: &mut Nodes<'_>, logits: &str, values: &str) -> String {
    let weights = nodes.softmax(logits);
    let context = nodes.node("MatMul", &[&weights, values], &[]);
    nodes.transpose(&context, &[0, 2, 1, 3])
}

/// Attention of normalized rows within images of `tokens` each.
fn plain_nodes(nodes: &mut Nodes<'_>, normed: &str, tokens: usize, heads: usize) -> String {
    let [_, width] = nodes.shape(0).dims();
    let qkv = nodes.linear(normed, 3);
    let qkv = nodes.reshape(&qkv, &[tokens, 3, heads, width / heads]);
    let (logits, values) = logits_and_values(nodes, &qkv, width / heads);
    context(nodes, &logits, &values)
}

/// Attention of normalized rows in windows, `[images, tokens, C]`; inputs as
/// [`attention_branch`] lists them.
fn window_nodes(nodes: &mut Nodes<'_>, normed: &str, map: &WindowMap, heads: usize) -> String {
    let [_, width] = nodes.shape(0).dims();
    let [height, across] = map.map;
    let layout = format!("map_{height}x{across}_window_{}_shift_{}", map.window, map.shift);
    let [tokens, depth] = [map.window_tokens(), width / heads];

    let weight = nodes.matrix(3);
    let qkv = nodes.node("MatMul", &[normed, &weight], &[]);
    let mut qkv = nodes.reshape(&qkv, &[map.tokens(), 3 * width]);
    // Padding has only the bias: it gathers a zero row past the last token.
    if map.is_padded() {
        qkv = nodes.with_zero_row(&qkv);
    }
    let slots = nodes.integers(&format!("{layout}_slots"), &map.slot_token);
    let qkv = nodes.gather(&qkv, &slots, 1);
    let bias = nodes.parameter(4);
    let qkv = nodes.node("Add", &[&qkv, &bias], &[]);
    let qkv = nodes.reshape(&qkv, &[tokens, 3, heads, depth]);
    let (mut logits, values) = logits_and_values(nodes, &qkv, depth);
    let table = nodes.parameter(7);
    let rows = nodes.integers(&format!("positions_{}", map.window), &map.bias_row);
    let position = nodes.gather(&table, &rows, 0);
    let position = nodes.reshape(&position, &[tokens, heads]);
    let position = nodes.transpose(&position, &[2, 0, 1]);
    logits = nodes.node("Add", &[&logits, &position], &[]);
    if let Some(mask) = &map.mask {
        let shape = [map.windows(), 1, tokens, tokens];
        let mask = nodes.constant(&format!("{layout}_mask"), &shape, mask);
        logits = nodes.reshape(&logits, &[map.windows(), heads, tokens, tokens]);
        logits = nodes.node("Add", &[&logits, &mask], &[]);
        logits = nodes.reshape(&logits, &[heads, tokens, tokens]);
    }
    let context = context(nodes, &logits, &values);
    let context = nodes.reshape(&context, &[map.slot_token.len(), width]);
    let slots = nodes.integers(&format!("{layout}_tokens"), &map.token_slot);
    nodes.gather(&context, &slots, 1)
}

impl Operation for AttentionBranch {
    fn cost(&self, inputs: &[Shape]) -> Cost {
        let [rows, width] = inputs[0].dims();
        let macs = |rows: usize, keys: usize| rows * (4 * width * width + 2 * keys * width);
        let cost = match &self.mixing {
            Mixing::Windows { counts, maps } => {
                let mut cost = Cost::default();
                for (images, map) in counts.iter().zip(maps) {
                    let (tokens, slots) = (images * map.tokens(), images * map.slot_token.len());
                    let keys = map.window_tokens();
                    cost.macs += macs(tokens, keys) as f64;
                    cost.padding_macs += (macs(slots, keys) - macs(tokens, keys)) as f64;
                }
                cost
            }
            Mixing::Plain { .. } => {
                Cost::products(self.images.iter().map(|&tokens| macs(tokens, tokens)).sum())
            }
        };
        let saved = with_element!(self.compute.precision, T => attention::saved_values::<T>(width));
        cost.of_branch(rows * width, rows * saved, &self.scales, &self.compute)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let [_, width] = nodes.shape(0).dims();
        let x = nodes.input(0);
        let normed = nodes.layer_norm(&x, 1, self.eps);
        let context = match &self.mixing {
            Mixing::Windows { maps, .. } => window_nodes(nodes, &normed, &maps[0], self.heads),
            Mixing::Plain { .. } => {
                plain_nodes(nodes, &normed, common_size(&self.images)?, self.heads)
            }
        };
        let context = nodes.reshape(&context, &[width]);
        let projected = nodes.linear(&context, 5);
        Some(nodes.node("Add", &[&x, &projected], &[]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let parameters = inputs.split_off(1);
        let (attention, compute) = (self.parameters(&parameters), &self.compute);
        let (segments, scales) = (self.segments(attention.gamma.len()), self.sample_scales());
        with_element!(compute.precision, T => {
            let packed = compute.packing.get(compute.precision, || attention.pack_weights::<T>());
            compute.forward(inputs.remove(0), save, |x, save| {
                attention::forward(x, &attention, &packed, &segments, &scales, save)
            })
        })
    }

    fn backward(&self, mut pass: Backward<'_>) -> InputGradients {
        let attention = self.parameters(pass.parameters);
        let (segments, scales) = (self.segments(attention.gamma.len()), self.sample_scales());
        let gradient = values_mut(&mut pass.gradient);
        let found = with_element!(self.compute.precision, T => {
            let saved = self.compute.saved(pass.saved, |x| {
                let packed = attention.pack_weights::<T>();
                attention::forward(x, &attention, &packed, &segments, &scales, true)
            });
            attention::backward(saved, &attention, &segments, &scales, gradient)
        });
        let Gradients { gamma, beta, qkv_weight, qkv_bias, bias_table, proj_weight, proj_bias } =
            found;
        let found = [gamma, beta, qkv_weight, qkv_bias, proj_weight, proj_bias, bias_table];
        gradients(Some(pass.gradient), found, pass.parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two maps of 5 x 5 tokens in four windows of 16 slots each, 39 of them padding.
    #[test]
    fn padding_is_counted_apart() {
        let maps = vec![Arc::new(WindowMap::new([5, 5], 4, 0))];
        let mixing = Mixing::Windows { counts: vec![2], maps };
        let compute = Compute::default();
        let operation = AttentionBranch {
            images: vec![25; 2],
            heads: 1,
            mixing,
            scales: None,
            eps: 1e-6,
            compute,
        };
        let cost = operation.cost(&[[50, 8].into()]);
        let macs_of_row = f64::from(4 * 8 * 8 + 2 * 16 * 8);
        assert_eq!(cost.macs, 50.0 * macs_of_row);
        assert_eq!(cost.padding_macs, 78.0 * macs_of_row);
    }
}
