//! Batch normalization.

use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use esvit_kernels::batch_norm::{self, Statistics};
use esvit_kernels::buffer;

use super::extension::{
    Entry, Fused, Kept, Operation, has_kernels, keep_or_reclaim, made, made_like, own, reclaim,
    values,
};

/// Batch normalization of `x [rows, C]` with the statistics of these rows; `gamma`, `beta` are
/// `[C]`. Also returns their mean and biased variance, `[C]` each, without gradient.
pub fn batch_norm(
    x: Tensor<2>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    eps: f64,
) -> (Tensor<2>, [Tensor<1>; 2]) {
    if !has_kernels(&x.device()) {
        return composed_batch_norm(x, gamma, beta, eps);
    }
    let channels = gamma.dims()[0];
    let both = Entry::fused1(Arc::new(RowStatistics), x.clone().inner().into_dispatch());
    let both = Tensor::<2>::from_dispatch(both);
    let statistics = [0, 1].map(|row| both.clone().narrow(0, row, 1).reshape([channels]));
    let operation = Arc::new(BatchNorm { eps: eps as f32 });
    let [gamma, beta] = [gamma, beta].map(Tensor::into_dispatch);
    let both = both.into_dispatch();
    (
        Tensor::from_dispatch(Entry::fused4(operation, x.into_dispatch(), gamma, beta, both)),
        statistics,
    )
}

/// [`batch_norm()`] composed of the framework's operations.
pub fn composed_batch_norm(
    x: Tensor<2>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    eps: f64,
) -> (Tensor<2>, [Tensor<1>; 2]) {
    let channels = gamma.dims()[0];
    let mean = x.clone().mean_dim(0);
    let centered = x - mean.clone();
    let variance = centered.clone().square().mean_dim(0);
    let y = centered / (variance.clone() + eps).sqrt();
    let y = y * gamma.reshape([1, channels]) + beta.reshape([1, channels]);
    (y, [mean, variance].map(|row| row.inner().reshape([channels])))
}

/// Mean and biased variance of every channel: `[2, C]`.
#[derive(Debug)]
struct RowStatistics;

impl Operation for RowStatistics {
    fn forward(&self, inputs: Vec<FlexTensor>, _: bool) -> (FlexTensor, Option<Kept>) {
        let channels = inputs[0].shape()[1];
        let Statistics { mut mean, variance } = Statistics::of(values(&inputs[0]), channels);
        mean.extend(variance);
        (made(mean, [2, channels]), None)
    }
}

/// Inputs: `x`, `gamma`, `beta`, and [`RowStatistics`].
#[derive(Debug)]
struct BatchNorm {
    eps: f32,
}

fn statistics(both: &FlexTensor) -> Statistics {
    let (mean, variance) = values(both).split_at(both.shape()[1]);
    Statistics { mean: mean.to_vec(), variance: variance.to_vec() }
}

impl Operation for BatchNorm {
    fn forward(&self, mut inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let [x, gamma, beta] = [0, 1, 2].map(|i| values(&inputs[i]));
        let mut y = buffer::uninit(x.len());
        batch_norm::forward(x, &statistics(&inputs[3]), [gamma, beta], self.eps, &mut y);
        let y = made_like(y, &inputs[0]);
        (y, keep_or_reclaim(inputs.swap_remove(0), keep))
    }

    fn backward(
        &self,
        kept: Kept,
        parameters: &[FlexTensor],
        gradient: FlexTensor,
        _: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let x: FlexTensor = own(kept);
        let dy = values(&gradient);
        let mut dx = buffer::uninit(dy.len());
        let (gamma, statistics) = (values(&parameters[0]), statistics(&parameters[2]));
        let (dgamma, dbeta) =
            batch_norm::backward(values(&x), &statistics, gamma, self.eps, dy, &mut dx);
        let dx = made_like(dx, &gradient);
        reclaim(gradient);
        reclaim(x);
        vec![
            Some(dx),
            Some(made_like(dgamma, &parameters[0])),
            Some(made_like(dbeta, &parameters[1])),
            None,
        ]
    }
}
