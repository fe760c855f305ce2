//! Linear layers, normalisation, activation, patches and the loss.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn::tensor::ops::PadMode;

use super::fused::{Device, Fused};

/// Rows times the transposed weight plus the bias: `x [.., in]`, `weight [out, in]`, `bias [out]`.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut shape = x.dims();
    let [outputs, inputs] = weight.dims();
    let x = rows(x, inputs).into_dispatch();
    let weight = weight.into_dispatch();
    let y = match bias {
        Some(bias) => Device::fused_linear_bias(x, weight, bias.into_dispatch()),
        None => Device::fused_linear(x, weight),
    };
    shape[D - 1] = outputs;
    Tensor::<2>::from_dispatch(y).reshape(shape)
}

/// Layer normalisation over the last axis with biased variance: `gamma`, `beta` `[C]`.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    let shape = x.dims();
    let x = rows(x, shape[D - 1]).into_dispatch();
    let (gamma, beta) = (gamma.into_dispatch(), beta.into_dispatch());
    let y = Device::fused_layer_norm(x, gamma, beta, eps as f32);
    Tensor::<2>::from_dispatch(y).reshape(shape)
}

/// `[.., C]` as `[rows, C]`.
fn rows<const D: usize>(x: Tensor<D>, width: usize) -> Tensor<2> {
    let rows = x.shape().num_elements() / width;
    x.reshape([rows, width])
}

/// The exact Gaussian error linear unit, `x * (1 + erf(x / sqrt 2)) / 2`.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Device::fused_gelu(x.into_dispatch()))
}

/// Cross-entropy between target distributions and softmax rows at a temperature, weighted by row:
/// `sum_r w_r ((sum_k t_rk) logsumexp(s_r / temp) - <t_r, s_r / temp>)`, with `logits` and
/// `targets [R, K]`. A row of `targets` need not sum to 1: it may be the sum of several. No
/// gradient goes to the targets.
pub fn soft_cross_entropy(
    logits: Tensor<2>,
    targets: Tensor<2>,
    row_weights: Vec<f32>,
    temperature: f64,
) -> Tensor<1> {
    let targets = if logits.is_autodiff() { targets.autodiff() } else { targets };
    let (loss, _) = Device::fused_cross_entropy(
        logits.into_dispatch(),
        targets.into_dispatch(),
        Arc::from(row_weights),
        temperature as f32,
    );
    Tensor::from_dispatch(loss)
}

/// Rows scaled to unit length; a norm below `1e-12` counts as `1e-12`.
pub fn l2_normalize(x: Tensor<2>) -> Tensor<2> {
    // The limit is on the square: the root's slope at zero is infinite.
    let norm = x.clone().square().sum_dim(1).clamp_min(1e-24).sqrt();
    x / norm
}

/// Non-overlapping patches of `[B, 3, H, W]` as rows `[B, h * w, 3 * p * p]`, row-major over the
/// map of `h = H / p` by `w = W / p`; pixels beyond the last whole patch are dropped.
///
/// A row lists channel, then row, then column, as the weight of a convolution of stride `p` does.
pub fn patches(images: Tensor<4>, patch: usize) -> (Tensor<3>, [usize; 2]) {
    let [batch, channels, height, width] = images.dims();
    let [h, w] = [height / patch, width / patch];
    let images = if [h * patch, w * patch] == [height, width] {
        images
    } else {
        images.slice([0..batch, 0..channels, 0..h * patch, 0..w * patch])
    };
    let rows = images
        .reshape([batch, channels, h, patch, w, patch])
        .permute([0, 2, 4, 1, 3, 5])
        .reshape([batch, h * w, channels * patch * patch]);
    (rows, [h, w])
}

/// Joins each 2 x 2 neighbourhood of a map `[B, H * W, C]` into one row `[B, h * w, 4 C]`, in the
/// order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1); odd sides get one line of zeros.
pub fn merge_patches(tokens: Tensor<3>, [height, width]: [usize; 2]) -> (Tensor<3>, [usize; 2]) {
    let [batch, _, channels] = tokens.dims();
    let [h, w] = [height.div_ceil(2), width.div_ceil(2)];
    let map = tokens.reshape([batch, height, width, channels]);
    let map = if [2 * h, 2 * w] == [height, width] {
        map
    } else {
        let padding = [(0, 0), (0, 2 * h - height), (0, 2 * w - width), (0, 0)];
        map.pad(padding, PadMode::Constant(0.0))
    };
    let rows = map.reshape([batch, h, 2, w, 2, channels]).permute([0, 1, 3, 4, 2, 5]).reshape([
        batch,
        h * w,
        4 * channels,
    ]);
    (rows, [h, w])
}
