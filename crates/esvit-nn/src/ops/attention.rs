//! Attention inside (shifted) windows.

use std::sync::Arc;

use burn::tensor::{Tensor, activation};

use super::WindowMap;
use super::fused::{Device, Fused};
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
    windows: &Arc<WindowMap>,
) -> Tensor<3> {
    debug_assert_eq!(qkv.dims()[1], windows.tokens());
    let mixed = Device::fused_window_attention(
        qkv.into_dispatch(),
        bias.into_dispatch(),
        table.into_dispatch(),
        windows.clone(),
    );
    Tensor::from_dispatch(mixed)
}

/// The attention weights of [`window_attention`]: `[B * windows, heads, window^2, window^2]`,
/// windows row-major within an image.
pub fn window_attention_weights(
    qkv: Tensor<3>,
    bias: Tensor<1>,
    table: Tensor<2>,
    windows: &WindowMap,
) -> Tensor<4> {
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
    let [queries, keys] = [0, 1].map(|part| -> Tensor<4> {
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
        logits = (logits.reshape([batch, count, heads, side, side]) + mask).reshape([
            batch * count,
            heads,
            side,
            side,
        ]);
    }
    activation::softmax(logits, 3)
}
