//! Layer normalization, L2 normalization, norms and means.

use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use esvit_kernels::{buffer, layer_norm, optimizer, tokens};

use super::Precision;
use super::extension::{
    Entry, Fused, Kept, Operation, has_kernels, made, made_like, own, reclaim, values, values_mut,
};
use super::precision::with_element;

/// Layer normalization of `x [rows, C]` with biased variance; `gamma`, `beta` are `[C]`.
pub fn layer_norm(
    x: Tensor<2>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    eps: f64,
    precision: Precision,
) -> Tensor<2> {
    if !has_kernels(&x.device()) {
        return composed_layer_norm(x, gamma, beta, eps);
    }
    let operation = Arc::new(LayerNorm { eps: eps as f32, precision });
    let inputs = [gamma, beta].map(Tensor::into_dispatch);
    let [gamma, beta] = inputs;
    Tensor::from_dispatch(Entry::fused3(operation, x.into_dispatch(), gamma, beta))
}

/// [`layer_norm()`] composed of the framework's operations.
pub fn composed_layer_norm(x: Tensor<2>, gamma: Tensor<1>, beta: Tensor<1>, eps: f64) -> Tensor<2> {
    let width = gamma.dims()[0];
    let mean = x.clone().mean_dim(1);
    let centered = x - mean;
    let variance = centered.clone().square().mean_dim(1);
    let normalized = centered / (variance + eps).sqrt();
    normalized * gamma.reshape([1, width]) + beta.reshape([1, width])
}

#[derive(Debug)]
struct LayerNorm {
    eps: f32,
    precision: Precision,
}

impl Operation for LayerNorm {
    fn forward(&self, mut inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let [x, gamma, beta] = [0, 1, 2].map(|i| values(&inputs[i]));
        let mut y = buffer::uninit(x.len());
        let kept = with_element!(self.precision, T => {
            layer_norm::forward::<T>(x, gamma, beta, self.eps, &mut y, keep)
                .map(|kept| Box::new(kept) as Kept)
        });
        let y = made_like(y, &inputs[0]);
        reclaim(inputs.swap_remove(0));
        (y, kept)
    }

    fn backward(
        &self,
        kept: Kept,
        parameters: &[FlexTensor],
        gradient: FlexTensor,
        _: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let dy = values(&gradient);
        let mut dx = buffer::uninit(dy.len());
        let gamma = values(&parameters[0]);
        let (dgamma, dbeta) = with_element!(self.precision, T => {
            layer_norm::backward::<T>(&own(kept), gamma, dy, &mut dx)
        });
        let dx = made_like(dx, &gradient);
        reclaim(gradient);
        vec![
            Some(dx),
            Some(made_like(dgamma, &parameters[0])),
            Some(made_like(dbeta, &parameters[1])),
        ]
    }
}

/// Scales rows to unit L2 norm; norms below `1e-12` count as `1e-12`.
pub fn l2_normalize(x: Tensor<2>) -> Tensor<2> {
    if has_kernels(&x.device()) {
        let operation = Arc::new(UnitRows);
        return Tensor::from_dispatch(Entry::fused1(operation, x.into_dispatch()));
    }
    // Clamps the square, since the root has an infinite gradient at 0.
    let norm = x.clone().square().sum_dim(1).clamp_min(1e-24).sqrt();
    x / norm
}

#[derive(Debug)]
struct UnitRows;

impl Operation for UnitRows {
    fn forward(&self, mut inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let mut x = inputs.swap_remove(0);
        let width = x.shape()[1];
        let lengths = tokens::l2_normalize(values_mut(&mut x), width);
        let kept = keep.then(|| Box::new((x.clone(), lengths)) as Kept);
        (x, kept)
    }

    fn backward(
        &self,
        kept: Kept,
        _: &[FlexTensor],
        mut gradient: FlexTensor,
        _: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let (y, lengths): (FlexTensor, Vec<f32>) = own(kept);
        let width = y.shape()[1];
        tokens::l2_normalize_backward(values(&y), &lengths, width, values_mut(&mut gradient));
        vec![Some(gradient)]
    }
}

/// The Euclidean norm of all values, read back to the host.
pub fn norm(values: &Tensor<1>) -> f64 {
    let norm: Tensor<1> = if has_kernels(&values.device()) {
        let values = values.clone().inner().into_dispatch();
        Tensor::from_dispatch(Entry::fused1(Arc::new(Norm), values))
    } else {
        values.clone().inner().square().sum().sqrt()
    };
    f64::from(norm.into_scalar::<f32>())
}

#[derive(Debug)]
struct Norm;

impl Operation for Norm {
    fn forward(&self, inputs: Vec<FlexTensor>, _: bool) -> (FlexTensor, Option<Kept>) {
        (made(vec![optimizer::norm(values(&inputs[0])) as f32], [1]), None)
    }
}

/// Global average pooling of `x [rows, C]` to `[images, C]`: `images` lists the rows of each.
pub fn global_average_pool(x: Tensor<2>, images: &[usize]) -> Tensor<2> {
    if has_kernels(&x.device()) {
        let operation = Arc::new(ImageMeans { images: images.to_vec() });
        return Tensor::from_dispatch(Entry::fused1(operation, x.into_dispatch()));
    }
    let mut first = 0;
    let means = images.iter().map(|&rows| {
        first += rows;
        x.clone().narrow(0, first - rows, rows).mean_dim(0)
    });
    Tensor::cat(means.collect(), 0)
}

#[derive(Debug)]
struct ImageMeans {
    images: Vec<usize>,
}

impl Operation for ImageMeans {
    fn forward(&self, inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let width = inputs[0].shape()[1];
        let means = tokens::global_average_pool(values(&inputs[0]), width, &self.images);
        (made(means, [self.images.len(), width]), keep.then(|| Box::new(()) as Kept))
    }

    fn backward(
        &self,
        _: Kept,
        _: &[FlexTensor],
        gradient: FlexTensor,
        _: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let width = gradient.shape()[1];
        let rows = tokens::global_average_pool_backward(values(&gradient), width, &self.images);
        let count = rows.len() / width;
        vec![Some(made(rows, [count, width]))]
    }
}
