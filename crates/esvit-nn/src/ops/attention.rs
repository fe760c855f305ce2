//! Attention inside (shifted) windows.

use burn::tensor::{Tensor, activation};

use super::WindowMap;
use crate::params::{indices, tensor};

/// Self-attention inside the windows of a map.
///
/// `qkv [B, H * W, 3 C]` is the product of the normalised tokens with the fused weight, *without*
/// its bias: padding tokens then are exact zeros and get their query, key and value from `bias
/// [3 C]` alone, as zero rows pushed through the layer would. They take part unmasked, as in the
/// official code. `table [(2 w - 1)^2, heads]` holds the relative-position bias. Returns
/// `[B, H * W, C]`, heads concatenated, before the output projection.
pub fn window_attention(
    qkv: Tensor<3>,
    bias: Tensor<1>,
    table: Tensor<2>,
    windows: &WindowMap,
) -> Tensor<3> {
    let [batch, tokens, width] = qkv.dims();
    let device = qkv.device();
    let [attention, values] = attend(qkv, bias, table, windows);
    let mixed = attention.matmul(values).swap_dims(1, 2);
    let slots = windows.windows() * windows.window_tokens();
    let mixed = mixed.reshape([batch, slots, width / 3]);
    debug_assert_eq!(tokens, windows.tokens());
    mixed.select(1, indices(windows.token_slot.clone(), &device))
}

/// The attention weights of [`window_attention`]: `[B * windows, heads, window^2, window^2]`,
/// windows row-major within an image.
pub fn window_attention_weights(
    qkv: Tensor<3>,
    bias: Tensor<1>,
    table: Tensor<2>,
    windows: &WindowMap,
) -> Tensor<4> {
    let [attention, _] = attend(qkv, bias, table, windows);
    attention
}

/// Attention weights and values, `[B * windows, heads, window^2, ..]`.
fn attend(
    qkv: Tensor<3>,
    bias: Tensor<1>,
    table: Tensor<2>,
    windows: &WindowMap,
) -> [Tensor<4>; 2] {
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
    let part = |i: usize| -> Tensor<4> {
        qkv.clone().slice_dim(0, i..i + 1).reshape([batch * count, heads, side, head_dim])
    };
    let [queries, keys, values] = [part(0), part(1), part(2)];

    let scale = (head_dim as f64).powf(-0.5);
    let mut logits = (queries * scale).matmul(keys.swap_dims(2, 3));
    let position = table
        .select(0, indices(windows.bias_row.clone(), &device))
        .reshape([1, side, side, heads])
        .permute([0, 3, 1, 2]);
    logits = logits + position;
    if let Some(mask) = &windows.mask {
        let mask: Tensor<5> = tensor(mask.clone(), [1, count, 1, side, side], &device);
        logits = (logits.reshape([batch, count, heads, side, side]) + mask)
            .reshape([batch * count, heads, side, side]);
    }
    [activation::softmax(logits, 3), values]
}
