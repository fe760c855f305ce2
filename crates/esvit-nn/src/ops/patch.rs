//! Patches of images, and patch merging.

use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use esvit_kernels::{merge, tokens};

use super::extension::{
    Entry, Fused, Kept, Operation, has_kernels, made, made_like, own, reclaim, values,
};
use super::precision::with_element;
use super::{Precision, Segment, composed_layer_norm};
use crate::params::indices;

/// Non-overlapping patches of `[B, 3, H, W]` as rows `[B * h * w, 3 * p * p]`, row-major over the
/// map of `h = H / p` by `w = W / p`; pixels beyond the last whole patch are dropped.
///
/// A row is ordered channel, row, column, as the weight of a convolution of stride `p`.
pub fn patchify(images: Tensor<4>, patch: usize) -> (Tensor<2>, Segment) {
    let [batch, _, height, width] = images.dims();
    let [h, w] = [height / patch, width / patch];
    let segment = Segment { images: batch, map: [h, w] };
    if has_kernels(&images.device()) {
        let operation = Arc::new(Patches { patch, sizes: images.dims() });
        let rows = Entry::fused1(operation, images.into_dispatch());
        return (Tensor::from_dispatch(rows), segment);
    }
    (composed_patchify(images, patch), segment)
}

/// [`patchify`] composed of the framework's operations.
pub fn composed_patchify(images: Tensor<4>, patch: usize) -> Tensor<2> {
    let [batch, channels, height, width] = images.dims();
    let [h, w] = [height / patch, width / patch];
    images
        .slice([0..batch, 0..channels, 0..h * patch, 0..w * patch])
        .reshape([batch, channels, h, patch, w, patch])
        .permute([0, 2, 4, 1, 3, 5])
        .reshape([batch * h * w, channels * patch * patch])
}

#[derive(Debug)]
struct Patches {
    patch: usize,
    sizes: [usize; 4],
}

impl Operation for Patches {
    fn forward(&self, inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let columns = self.sizes[1] * self.patch * self.patch;
        let rows = tokens::patchify(values(&inputs[0]), self.sizes, self.patch);
        let shape = [rows.len() / columns, columns];
        (made(rows, shape), keep.then(|| Box::new(()) as Kept))
    }

    fn backward(
        &self,
        _: Kept,
        _: &[FlexTensor],
        gradient: FlexTensor,
        _: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let images = tokens::patchify_backward(values(&gradient), self.sizes, self.patch);
        vec![Some(made(images, self.sizes))]
    }
}

/// Patch merging: joins each 2 x 2 neighborhood of the maps of `x [rows, C]` into a row of `4 C`,
/// in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1), with zeros beyond odd sides; then
/// layer norm with `gamma`, `beta [4 C]` and a linear layer `weight [out, 4 C]` without bias.
/// Returns rows `[merged rows, out]` and their segments.
pub fn merge_patches(
    x: Tensor<2>,
    segments: &[Segment],
    [gamma, beta]: [Tensor<1>; 2],
    weight: Tensor<2>,
    eps: f64,
    precision: Precision,
) -> (Tensor<2>, Vec<Segment>) {
    let halved = segments
        .iter()
        .map(|&Segment { images, map }| Segment { images, map: map.map(|side| side.div_ceil(2)) });
    let halved = halved.collect();
    let neighbors = merging_indices(segments);
    if !has_kernels(&x.device()) {
        return (composed_merge(x, &neighbors, [gamma, beta], weight, eps), halved);
    }
    let operation = Arc::new(Merge { neighbors, eps: eps as f32, precision });
    let (gamma, beta) = (gamma.into_dispatch(), beta.into_dispatch());
    let y = Entry::fused4(operation, x.into_dispatch(), gamma, beta, weight.into_dispatch());
    (Tensor::from_dispatch(y), halved)
}

/// [`merge_patches`] composed of the framework's operations, with [`merging_indices`].
pub fn composed_merge(
    x: Tensor<2>,
    neighbors: &[[u32; 4]],
    [gamma, beta]: [Tensor<1>; 2],
    weight: Tensor<2>,
    eps: f64,
) -> Tensor<2> {
    let ([rows, width], device) = (x.dims(), x.device());
    // One zero row for everything outside the maps.
    let x = Tensor::cat(vec![x, Tensor::zeros([1, width], &device)], 0);
    let places = neighbors.as_flattened().iter();
    let places = places.map(|&row| if row == merge::OUTSIDE { rows as i32 } else { row as i32 });
    let joined = x.select(0, indices(places.collect(), &device));
    let joined = joined.reshape([neighbors.len(), 4 * width]);
    composed_layer_norm(joined, gamma, beta, eps).matmul(weight.transpose())
}

/// The four rows of `x` that form each merged row; [`merge::OUTSIDE`] beyond the map.
pub fn merging_indices(segments: &[Segment]) -> Vec<[u32; 4]> {
    let mut table = Vec::new();
    let mut first = 0;
    for &Segment { images, map: [height, width] } in segments {
        for _ in 0..images {
            for row in (0..height).step_by(2) {
                for column in (0..width).step_by(2) {
                    table.push([(0, 0), (1, 0), (0, 1), (1, 1)].map(|(down, right)| {
                        let (y, x) = (row + down, column + right);
                        let inside = y < height && x < width;
                        if inside { (first + y * width + x) as u32 } else { merge::OUTSIDE }
                    }));
                }
            }
            first += height * width;
        }
    }
    table
}

#[derive(Debug)]
struct Merge {
    neighbors: Vec<[u32; 4]>,
    eps: f32,
    precision: Precision,
}

impl Merge {
    fn parameters<'a>(&self, inputs: &'a [FlexTensor]) -> merge::Merge<'a> {
        let [gamma, beta, weight] = [0, 1, 2].map(|i| values(&inputs[i]));
        merge::Merge { gamma, beta, eps: self.eps, weight }
    }
}

/// Saved activations, and the number of rows before merging.
type KeptMerge<T> = (merge::Saved<T>, usize);

impl Operation for Merge {
    fn forward(&self, mut inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let (x, parameters) = (values(&inputs[0]), self.parameters(&inputs[1..]));
        let rows = inputs[0].shape()[0];
        let shape = [self.neighbors.len(), inputs[3].shape()[0]];
        let result = with_element!(self.precision, T => {
            let (y, kept) = merge::forward::<T>(x, &parameters, &self.neighbors, keep);
            (made(y, shape), kept.map(|kept| -> Kept { Box::<KeptMerge<T>>::new((kept, rows)) }))
        });
        reclaim(inputs.swap_remove(0));
        result
    }

    fn backward(
        &self,
        kept: Kept,
        parameters: &[FlexTensor],
        gradient: FlexTensor,
        _: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let (merge, dy) = (self.parameters(parameters), values(&gradient));
        let (gradients, rows) = with_element!(self.precision, T => {
            let (kept, rows): KeptMerge<T> = own(kept);
            (merge::backward::<T>(kept, &merge, &self.neighbors, dy, rows), rows)
        });
        reclaim(gradient);
        vec![
            Some(made(gradients.x, [rows, merge.gamma.len() / 4])),
            Some(made_like(gradients.gamma, &parameters[0])),
            Some(made_like(gradients.beta, &parameters[1])),
            Some(made_like(gradients.weight, &parameters[2])),
        ]
    }
}
