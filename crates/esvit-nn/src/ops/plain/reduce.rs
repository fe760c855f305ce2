//! Sums, means and maxima.

use super::{Real, chunks, made, with_real};
use crate::ops::prelude::*;
use crate::tensor::Dtype;

impl Tensor {
    /// The sum over a dimension, which stays with size 1.
    ///
    /// Over the last dimension, sums are f64, rounded once; over another one, rows are added one
    /// after another in the tensor's type.
    ///
    /// # Panics
    /// When there is no such dimension.
    #[must_use]
    pub fn sum_dim(self, axis: usize) -> Self {
        apply(Sum { axis, is_mean: false }, [self])
    }

    /// The mean over a dimension, which stays with size 1: [`Tensor::sum_dim`] divided by the
    /// number of values, over the last dimension before rounding.
    ///
    /// # Panics
    /// When there is no such dimension or its size is 0.
    #[must_use]
    pub fn mean_dim(self, axis: usize) -> Self {
        apply(Sum { axis, is_mean: true }, [self])
    }

    /// The sum of all values, `[1]`; added up in f64 and rounded once.
    #[must_use]
    pub fn sum(self) -> Self {
        let values = self.numel();
        self.reshape([values]).sum_dim(0)
    }

    /// The mean of all values, `[1]`; added up in f64 and rounded once.
    ///
    /// # Panics
    /// Without values.
    #[must_use]
    pub fn mean(self) -> Self {
        let values = self.numel();
        self.reshape([values]).mean_dim(0)
    }

    /// The largest values along a dimension, which stays with size 1. NaN counts as the largest;
    /// the gradient goes to the first of equal ones.
    ///
    /// # Panics
    /// When there is no such dimension or its size is 0.
    #[must_use]
    pub fn max_dim(self, axis: usize) -> Self {
        apply(Max { axis }, [self])
    }

    /// The index of the largest value along a dimension, which stays with size 1: i32, of equal
    /// values the first. NaN counts as the largest. Without gradient.
    ///
    /// # Panics
    /// When there is no such dimension or its size is 0.
    #[must_use]
    pub fn argmax(self, axis: usize) -> Self {
        let shape = maxima(&self.shape(), axis);
        if self.is_symbolic() {
            return Self::symbolic(shape, Dtype::I32);
        }
        Self::new(argmax(&self, axis), shape, &self.device())
    }
}

#[derive(Debug)]
struct Sum {
    axis: usize,
    is_mean: bool,
}

impl Operation for Sum {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let (axis, shape) = (self.axis, inputs[0]);
        assert!(!self.is_mean || shape[axis] > 0, "the mean along axis {axis} of {shape:?}");
        shape.with(axis, 1)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let x = nodes.input(0);
        if self.is_mean {
            return Some(nodes.reduce("ReduceMean", &x, self.axis));
        }
        // Unlike the other reductions, it takes its axes as an input.
        let axes = nodes.table(&[self.axis as i64]);
        Some(nodes.node("ReduceSum", &[&x, &axes], &[]))
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let x = &inputs[0];
        let [outer, size, inner] = x.shape().around(self.axis);
        let sums = with_real!(x, T => {
            let count = T::from_f64(size as f64);
            let mut sums = vec![T::default(); outer * inner];
            chunks(x.values::<T>(), size * inner, &mut sums, inner, &|x, sums| {
                if inner == 1 {
                    let sum = x.iter().map(|x| x.into_f64()).sum::<f64>();
                    sums[0] = T::from_f64(if self.is_mean { sum / size as f64 } else { sum });
                    return;
                }
                for row in x.chunks_exact(inner) {
                    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += *x);
                }
                if self.is_mean {
                    sums.iter_mut().for_each(|sum| *sum /= count);
                }
            });
            made(sums, x.shape().with(self.axis, 1), x)
        });
        (sums, save.then(|| Saved::new(x.shape())))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let shape: Shape = pass.saved.take();
        let count = shape[self.axis] as f64;
        let gradient = if self.is_mean { pass.gradient / count } else { pass.gradient };
        vec![Some(gradient.expand(shape))]
    }
}

/// The index of the first largest value along a dimension.
fn argmax(x: &Tensor, axis: usize) -> Vec<i32> {
    fn along<T: Real>(x: &[T], [outer, size, inner]: [usize; 3]) -> Vec<i32> {
        let places = (0..outer).flat_map(|o| (0..inner).map(move |i| o * size * inner + i));
        let best = places.map(|first| {
            let larger = |a: T, b: T| a > b || a.is_nan() && !b.is_nan();
            let at = |index: usize| x[first + index * inner];
            (1..size).fold(0, |best, index| if larger(at(index), at(best)) { index } else { best })
                as i32
        });
        best.collect()
    }
    with_real!(x, T => along::<T>(x.values(), x.shape().around(axis)))
}

/// The shape of the largest values.
fn maxima(shape: &Shape, axis: usize) -> Shape {
    assert!(shape[axis] > 0, "the largest along axis {axis} of {shape:?}");
    shape.with(axis, 1)
}

#[derive(Debug)]
struct Max {
    axis: usize,
}

/// Places of the largest values among all, given their indices.
fn places<'a>(indices: &'a [i32], shape: &Shape, axis: usize) -> impl Iterator<Item = usize> + 'a {
    let [_, size, inner] = shape.around(axis);
    let place = move |(at, index): (usize, &i32)| {
        (at / inner * size + *index as usize) * inner + at % inner
    };
    indices.iter().enumerate().map(place)
}

impl Operation for Max {
    fn output(&self, inputs: &[Shape]) -> Shape {
        maxima(&inputs[0], self.axis)
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::default().saving(self.output(inputs).numel(), Precision::F32)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let x = nodes.input(0);
        Some(nodes.reduce("ReduceMax", &x, self.axis))
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let (x, shape) = (&inputs[0], inputs[0].shape());
        let indices = argmax(x, self.axis);
        let largest = with_real!(x, T => {
            let values = x.values::<T>();
            let largest = places(&indices, &shape, self.axis).map(|at| values[at]).collect();
            made(largest, maxima(&shape, self.axis), x)
        });
        (largest, save.then(|| Saved::new((indices, shape))))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let gradient = pass.gradient;
        let (indices, shape): (Vec<i32>, Shape) = pass.saved.take();
        vec![Some(with_real!(gradient, T => {
            let mut dx = vec![T::default(); shape.numel()];
            let places = places(&indices, &shape, self.axis);
            places.zip(gradient.values::<T>()).for_each(|(at, dy)| dx[at] = *dy);
            made(dx, shape, &gradient)
        }))]
    }
}
