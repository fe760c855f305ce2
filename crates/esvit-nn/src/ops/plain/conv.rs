//! Two-dimensional convolution by its definition.

use rayon::prelude::*;

use super::{Real, made, with_real};
use crate::ops::prelude::*;

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

/// A convolution of images and filters of certain sizes.
struct Sizes {
    stride: usize,
    padding: usize,
    inputs: usize,
    outputs: usize,
    /// Channels of a group: in, out.
    group: [usize; 2],
    image: [usize; 2],
    filter: [usize; 2],
    result: [usize; 2],
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
        let (group, image, filter) = ([depth, outputs / groups], [height, width], [kh, kw]);
        Sizes { stride, padding, inputs, outputs, group, image, filter, result }
    }
}

impl Sizes {
    /// `visit(tap, y, x, len)` for all pairs of a tap and a row: the tap takes `len` values of an
    /// image's plane, from `x` on in steps of the stride, to those of the result's from `y` on.
    fn rows(&self, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let Self { stride, padding, image: [height, width], filter: [kh, kw], .. } = *self;
        let [rows, columns] = self.result;
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

    fn forward<T: Real>(&self, x: &[T], weight: &[T], y: &mut [T]) {
        let [depth, per_group] = self.group;
        let planes = y.par_chunks_mut(self.result[0] * self.result[1]).enumerate();
        planes.for_each(|(at, y)| {
            let (image, output) = (at / self.outputs, at % self.outputs);
            for input in 0..depth {
                let channel = output / per_group * depth + input;
                let x = plane(x, image * self.inputs + channel, self.image);
                let weight = plane(weight, output * depth + input, self.filter);
                self.rows(|tap, to, from, len| {
                    let x = x[from..].iter().step_by(self.stride);
                    y[to..to + len].iter_mut().zip(x).for_each(|(y, &x)| *y += weight[tap] * x);
                });
            }
        });
    }

    fn gradient_of_images<T: Real>(&self, dy: &[T], weight: &[T], dx: &mut [T]) {
        let [depth, per_group] = self.group;
        let planes = dx.par_chunks_mut(self.image[0] * self.image[1]).enumerate();
        planes.for_each(|(at, dx)| {
            let (image, channel) = (at / self.inputs, at % self.inputs);
            let (group, input) = (channel / depth, channel % depth);
            for output in group * per_group..(group + 1) * per_group {
                let dy = plane(dy, image * self.outputs + output, self.result);
                let weight = plane(weight, output * depth + input, self.filter);
                self.rows(|tap, from, to, len| {
                    let dx = dx[to..].iter_mut().step_by(self.stride);
                    dx.zip(&dy[from..from + len]).for_each(|(dx, &dy)| *dx += weight[tap] * dy);
                });
            }
        });
    }

    /// Sums are f64, rounded once.
    fn gradient_of_filters<T: Real>(&self, x: &[T], dy: &[T], dweight: &mut [T]) {
        let [depth, per_group] = self.group;
        let images = dy.len() / (self.outputs * self.result[0] * self.result[1]);
        let filters = dweight.par_chunks_mut(self.filter[0] * self.filter[1]).enumerate();
        filters.for_each(|(at, dweight)| {
            let (output, input) = (at / depth, at % depth);
            let channel = output / per_group * depth + input;
            let mut sums = vec![0.0; dweight.len()];
            for image in 0..images {
                let x = plane(x, image * self.inputs + channel, self.image);
                let dy = plane(dy, image * self.outputs + output, self.result);
                self.rows(|tap, y, from, len| {
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
            sizes.forward(x.values::<T>(), weight.values(), &mut y);
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
                sizes.gradient_of_images(dy, weight.values(), &mut dx);
                made(dx, x.shape(), &x)
            });
            let dweight = pass.wanted[1].then(|| {
                let mut dweight = vec![T::default(); weight.numel()];
                sizes.gradient_of_filters(x.values(), dy, &mut dweight);
                made(dweight, weight.shape(), weight)
            });
            vec![dx, dweight]
        })
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let [_, depth, kh, kw] = inputs[1].dims();
        let macs = self.output(inputs).numel() * depth * kh * kw;
        Cost::products(macs).saving(inputs[0].numel(), Precision::F32)
    }
}
