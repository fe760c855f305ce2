//! Patches of images, and patch merging.

use esvit_kernels::{merge, tokens};

use super::Segment;
use super::cpu::{gradients, made, values};
use super::prelude::*;
use crate::device::Device;

/// Non-overlapping patches of `[B, 3, H, W]` as rows `[B * h * w, 3 * p * p]`, row-major over the
/// map of `h = H / p` by `w = W / p`; pixels beyond the last whole patch are dropped.
///
/// A row is ordered channel, row, column, as the weight of a convolution of stride `p`.
pub fn patchify(images: Tensor, patch: usize) -> (Tensor, Segment) {
    let [batch, _, height, width] = images.dims();
    let [h, w] = [height / patch, width / patch];
    let segment = Segment::new(batch, [h, w]);
    let operation = Patches { patch, sizes: images.dims() };
    (apply(operation, [images]), segment)
}

#[derive(Debug)]
struct Patches {
    patch: usize,
    sizes: [usize; 4],
}

impl Operation for Patches {
    fn output(&self, _: &[Shape]) -> Shape {
        let [batch, channels, height, width] = self.sizes;
        let patches = (height / self.patch) * (width / self.patch);
        [batch * patches, channels * self.patch.pow(2)].into()
    }

    /// A convolution that copies every pixel of a patch to a channel of its own: rows without
    /// tensors of more than four dimensions.
    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let ([_, channels, ..], patch) = (self.sizes, self.patch);
        let columns = channels * patch * patch;
        let identity = Tensor::eye(columns, &Device::Cpu).to_vec::<f32>();
        let filters = nodes.constant(
            &format!("pixels_of_{columns}"),
            &[columns, channels, patch, patch],
            &identity,
        );
        let sides = [patch as i64; 2];
        let attributes = [
            ("kernel_shape", Attribute::Integers(&sides)),
            ("strides", Attribute::Integers(&sides)),
        ];
        let images = nodes.input(0);
        let maps = nodes.node("Conv", &[&images, &filters], &attributes);
        let rows = nodes.transpose(&maps, &[0, 2, 3, 1]);
        Some(nodes.reshape(&rows, &[columns]))
    }

    fn forward(&self, inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        let columns = self.sizes[1] * self.patch * self.patch;
        let rows = tokens::patchify(values(&inputs[0]), self.sizes, self.patch);
        let shape = [rows.len() / columns, columns];
        (made(rows, shape), None)
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let images = tokens::patchify_backward(values(&pass.gradient), self.sizes, self.patch);
        vec![Some(made(images, self.sizes))]
    }
}

/// Patch merging: joins each 2 x 2 neighborhood of the maps of `x [rows, C]` into a row of `4 C`,
/// in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1), with zeros beyond odd sides; then
/// layer norm with `gamma`, `beta [4 C]` and a linear layer `weight [out, 4 C]` without bias.
/// Returns rows `[merged rows, out]` and their segments.
///
/// # Panics
/// When a segment has prefix tokens.
pub fn merge_patches(
    x: Tensor,
    segments: &[Segment],
    [gamma, beta]: [Tensor; 2],
    weight: Tensor,
    eps: f64,
    precision: Precision,
) -> (Tensor, Vec<Segment>) {
    let halved = segments
        .iter()
        .map(|segment| Segment { map: segment.map.map(|side| side.div_ceil(2)), ..*segment });
    let halved = halved.collect();
    let neighbors = merging_indices(segments);
    let map = segments[0].map;
    let operation = Merge { neighbors, map, eps: eps as f32, precision };
    (apply(operation, [x, gamma, beta, weight]), halved)
}

/// The four rows of `x` that form each merged row; [`merge::OUTSIDE`] beyond the map.
///
/// # Panics
/// When a segment has prefix tokens.
pub fn merging_indices(segments: &[Segment]) -> Vec<[u32; 4]> {
    let mut table = Vec::new();
    let mut first = 0;
    for segment in segments {
        segment.assert_map("patch merging");
        let Segment { images, map: [height, width], .. } = *segment;
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
    /// Size of the first segment's maps, to name tables by.
    map: [usize; 2],
    neighbors: Vec<[u32; 4]>,
    eps: f32,
    precision: Precision,
}

impl Merge {
    fn parameters<'a>(&self, inputs: &'a [Tensor]) -> merge::Merge<'a> {
        let [gamma, beta, weight] = [0, 1, 2].map(|i| values(&inputs[i]));
        merge::Merge { gamma, beta, eps: self.eps, weight }
    }
}

impl Operation for Merge {
    fn output(&self, inputs: &[Shape]) -> Shape {
        [self.neighbors.len(), inputs[3][0]].into()
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let [outputs, width] = inputs[3].dims();
        let rows = self.neighbors.len();
        Cost::products(rows * width * outputs).saving(rows * width, self.precision)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let [rows, width] = nodes.shape(0).dims();
        let x = nodes.input(0);
        let mut tokens = nodes.reshape(&x, &[rows, width]);
        let places = self.neighbors.as_flattened();
        if places.contains(&merge::OUTSIDE) {
            tokens = nodes.with_zero_row(&tokens);
        }
        let places: Vec<i32> = places.iter().map(|&row| (row as usize).min(rows) as i32).collect();
        let places = nodes.integers(&format!("merge_{}x{}", self.map[0], self.map[1]), &places);
        let quads = nodes.gather(&tokens, &places, 1);
        let quads = nodes.reshape(&quads, &[4 * width]);
        let normed = nodes.layer_norm(&quads, 1, self.eps);
        let weight = nodes.matrix(3);
        Some(nodes.node("MatMul", &[&normed, &weight], &[]))
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let (x, parameters) = (values(&inputs[0]), self.parameters(&inputs[1..]));
        let rows = inputs[0].shape()[0];
        let shape = [self.neighbors.len(), inputs[3].shape()[0]];
        with_element!(self.precision, T => {
            let (y, saved) = merge::forward::<T>(x, &parameters, &self.neighbors, save);
            (made(y, shape), saved.map(|saved| Saved::new((saved, rows))))
        })
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let (merge, dy) = (self.parameters(pass.parameters), values(&pass.gradient));
        let merge::Gradients { x, gamma, beta, weight } = with_element!(self.precision, T => {
            let (saved, rows) = pass.saved.take();
            merge::backward::<T>(saved, &merge, &self.neighbors, dy, rows)
        });
        let width = merge.gamma.len() / 4;
        let shape = [x.len() / width, width];
        gradients(Some(made(x, shape)), [gamma, beta, weight], pass.parameters)
    }
}
