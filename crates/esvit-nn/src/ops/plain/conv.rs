//! Two-dimensional convolution by its definition.

use rayon::prelude::*;

use super::{Real, made, with_real};
use crate::cost::Cost;
use crate::onnx::Nodes;
use crate::tape::{Backward, InputGradients, Operation, Saved, apply};
use crate::tensor::{Shape, Tensor};

impl Tensor {
    /// Cross-correlation of images `[n, in, height, width]` with `weight [out, in / groups, kh,
    /// kw]`, plus `bias [out]`; `padding` zeros on all sides. Input channels of a group meet the
    /// filters of that group alone.
    ///
    /// # Panics
    /// When shapes do not fit, or a filter is larger than a padded image.
    #[must_use]
    pub fn conv2d(
        self,
        weight: Self,
        bias: Option<Self>,
        stride: usize,
        padding: usize,
        groups: usize,
    ) -> Self {
        let outputs = weight.shape()[0];
        let y = apply(Conv2d { stride, padding, groups }, [self, weight]);
        match bias {
            Some(bias) => y + bias.reshape([1, outputs, 1, 1]),
            None => y,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Conv2d {
    stride: usize,
    padding: usize,
    groups: usize,
}

/// Sizes of a convolution.
#[derive(Clone, Copy)]
struct Sizes {
    inputs: usize,
    outputs: usize,
    groups: usize,
    image: [usize; 2],
    filter: [usize; 2],
    result: [usize; 2],
}

impl Sizes {
    /// Channels of a group: in, out.
    fn per_group(&self) -> [usize; 2] {
        [self.inputs / self.groups, self.outputs / self.groups]
    }
}

/// The values of plane `index`, of `[height, width]`.
fn plane<T>(values: &[T], index: usize, size: [usize; 2]) -> &[T] {
    let len = size[0] * size[1];
    &values[index * len..][..len]
}

impl Conv2d {
    fn sizes(&self, x: &Shape, weight: &Shape) -> Sizes {
        let ([_, inputs, height, width], [outputs, depth, kh, kw]) = (x.dims(), weight.dims());
        let Self { stride, padding, groups } = *self;
        let fits = inputs == depth * groups
            && outputs % groups == 0
            && height + 2 * padding >= kh
            && width + 2 * padding >= kw;
        assert!(fits, "{self:?} of {x:?} with filters {weight:?}");
        let result = [(height, kh), (width, kw)].map(|(n, k)| (n + 2 * padding - k) / stride + 1);
        Sizes { inputs, outputs, groups, image: [height, width], filter: [kh, kw], result }
    }

    /// `visit(tap, y, x, len)` for all pairs of a tap and a row: the tap takes `len` values of an
    /// image's plane, from `x` on in steps of the stride, to those of the result's from `y` on.
    fn rows(&self, sizes: &Sizes, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let Self { stride, padding, .. } = *self;
        let ([height, width], [kh, kw], [rows, columns]) =
            (sizes.image, sizes.filter, sizes.result);
        for tap in 0..kh * kw {
            let (dy, dx) = (tap / kw, tap % kw);
            let first = padding.saturating_sub(dx).div_ceil(stride);
            let end = (width + padding).saturating_sub(dx).div_ceil(stride).min(columns);
            for row in 0..rows {
                let from = row * stride + dy;
                if first < end && (padding..height + padding).contains(&from) {
                    let x = (from - padding) * width + first * stride + dx - padding;
                    visit(tap, row * columns + first, x, end - first);
                }
            }
        }
    }

    fn forward<T: Real>(&self, sizes: &Sizes, x: &[T], weight: &[T], y: &mut [T]) {
        let [depth, per_group] = sizes.per_group();
        let planes = y.par_chunks_mut(sizes.result[0] * sizes.result[1]).enumerate();
        planes.for_each(|(at, y)| {
            let (image, output) = (at / sizes.outputs, at % sizes.outputs);
            for input in 0..depth {
                let channel = output / per_group * depth + input;
                let x = plane(x, image * sizes.inputs + channel, sizes.image);
                let weight = plane(weight, output * depth + input, sizes.filter);
                self.rows(sizes, |tap, to, from, len| {
                    let x = x[from..].iter().step_by(self.stride);
                    y[to..to + len].iter_mut().zip(x).for_each(|(y, &x)| *y += weight[tap] * x);
                });
            }
        });
    }

    fn gradient_of_images<T: Real>(&self, sizes: &Sizes, dy: &[T], weight: &[T], dx: &mut [T]) {
        let [depth, per_group] = sizes.per_group();
        let planes = dx.par_chunks_mut(sizes.image[0] * sizes.image[1]).enumerate();
        planes.for_each(|(at, dx)| {
            let (image, channel) = (at / sizes.inputs, at % sizes.inputs);
            let (group, input) = (channel / depth, channel % depth);
            for output in group * per_group..(group + 1) * per_group {
                let dy = plane(dy, image * sizes.outputs + output, sizes.result);
                let weight = plane(weight, output * depth + input, sizes.filter);
                self.rows(sizes, |tap, from, to, len| {
                    let dx = dx[to..].iter_mut().step_by(self.stride);
                    dx.zip(&dy[from..from + len]).for_each(|(dx, &dy)| *dx += weight[tap] * dy);
                });
            }
        });
    }

    /// Sums are f64, rounded once.
    fn gradient_of_filters<T: Real>(&self, sizes: &Sizes, x: &[T], dy: &[T], dweight: &mut [T]) {
        let [depth, per_group] = sizes.per_group();
        let images = dy.len() / (sizes.outputs * sizes.result[0] * sizes.result[1]);
        let filters = dweight.par_chunks_mut(sizes.filter[0] * sizes.filter[1]).enumerate();
        filters.for_each(|(at, dweight)| {
            let (output, input) = (at / depth, at % depth);
            let channel = output / per_group * depth + input;
            let mut sums = vec![0.0; dweight.len()];
            for image in 0..images {
                let x = plane(x, image * sizes.inputs + channel, sizes.image);
                let dy = plane(dy, image * sizes.outputs + output, sizes.result);
                self.rows(sizes, |tap, y, from, len| {
                    let x = x[from..].iter().step_by(self.stride);
                    let products =
                        x.zip(&dy[y..y + len]).map(|(x, dy)| x.into_f64() * dy.into_f64());
                    sums[tap] += products.sum::<f64>();
                });
            }
            dweight.iter_mut().zip(sums).for_each(|(dweight, sum)| *dweight = T::from_f64(sum));
        });
    }
}

impl Operation for Conv2d {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let sizes = self.sizes(&inputs[0], &inputs[1]);
        [inputs[0][0], sizes.outputs, sizes.result[0], sizes.result[1]].into()
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let (x, weight) = (nodes.input(0), nodes.input(1));
        let [_, _, height, width] = nodes.shape(1).dims();
        let Self { stride, padding, groups } = *self;
        Some(nodes.conv(&x, &weight, [height, width], stride, padding, groups))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let (x, weight) = (&inputs[0], &inputs[1]);
        let sizes = self.sizes(&x.shape(), &weight.shape());
        let shape = self.output(&[x.shape(), weight.shape()]);
        let y = with_real!(x, T => {
            let mut y = vec![T::default(); shape.numel()];
            self.forward(&sizes, x.values::<T>(), weight.values(), &mut y);
            made(y, shape, x)
        });
        (y, save.then(|| Saved::new(inputs.swap_remove(0))))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let (x, weight): (Tensor, _) = (pass.saved.take(), &pass.parameters[0]);
        let sizes = self.sizes(&x.shape(), &weight.shape());
        with_real!(x, T => {
            let dy = pass.gradient.values::<T>();
            let dx = pass.wanted[0].then(|| {
                let mut dx = vec![T::default(); x.numel()];
                self.gradient_of_images(&sizes, dy, weight.values(), &mut dx);
                made(dx, x.shape(), &x)
            });
            let dweight = pass.wanted[1].then(|| {
                let mut dweight = vec![T::default(); weight.numel()];
                self.gradient_of_filters(&sizes, x.values(), dy, &mut dweight);
                made(dweight, weight.shape(), weight)
            });
            vec![dx, dweight]
        })
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let [_, depth, kh, kw] = inputs[1].dims();
        let macs = (self.output(inputs).numel() * depth * kh * kw) as f64;
        Cost { macs, saved_bytes: (inputs[0].numel() * 4) as f64, ..Cost::default() }
    }
}
