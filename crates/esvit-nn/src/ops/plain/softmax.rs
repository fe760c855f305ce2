//! Softmax and its logarithm.

use super::{Real, chunks, made, with_real};
use crate::ops::prelude::*;

impl Tensor {
    /// `e^x / sum e^x` over the last dimension, `axis`.
    ///
    /// # Panics
    /// When `axis` is another dimension.
    #[must_use]
    pub fn softmax(self, axis: usize) -> Self {
        apply(Softmax { axis, is_log: false }, [self])
    }

    /// `x - log sum e^x` over the last dimension, `axis`.
    ///
    /// # Panics
    /// When `axis` is another dimension.
    #[must_use]
    pub fn log_softmax(self, axis: usize) -> Self {
        apply(Softmax { axis, is_log: true }, [self])
    }
}

#[derive(Debug)]
struct Softmax {
    axis: usize,
    is_log: bool,
}

impl Softmax {
    fn row<T: Real>(&self, x: &[T], y: &mut [T]) {
        let largest = x.iter().fold(T::neg_infinity(), |largest, &x| largest.max(x));
        let mut sum = 0.0;
        for (y, &x) in y.iter_mut().zip(x) {
            let (shifted, exponential) = (x - largest, (x - largest).exp());
            sum += exponential.into_f64();
            *y = if self.is_log { shifted } else { exponential };
        }
        if self.is_log {
            let log = T::from_f64(sum.ln());
            y.iter_mut().for_each(|y| *y = *y - log);
        } else {
            let sum = T::from_f64(sum);
            y.iter_mut().for_each(|y| *y /= sum);
        }
    }

    /// The gradient of a row in place, given the result.
    fn differentiate<T: Real>(&self, y: &[T], gradient: &mut [T]) {
        let pairs = gradient.iter().zip(y);
        if self.is_log {
            let sum = T::from_f64(pairs.map(|(g, _)| g.into_f64()).sum());
            gradient.iter_mut().zip(y).for_each(|(g, y)| *g = *g - y.exp() * sum);
        } else {
            let dot = T::from_f64(pairs.map(|(g, y)| g.into_f64() * y.into_f64()).sum());
            gradient.iter_mut().zip(y).for_each(|(g, y)| *g = *y * (*g - dot));
        }
    }
}

impl Operation for Softmax {
    fn output(&self, inputs: &[Shape]) -> Shape {
        assert_eq!(self.axis + 1, inputs[0].len(), "softmax over the last axis of {:?}", inputs[0]);
        inputs[0]
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::default().saving(inputs[0].numel(), Precision::F32)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let x = nodes.input(0);
        let operator = if self.is_log { "LogSoftmax" } else { "Softmax" };
        Some(nodes.node(operator, &[&x], &[("axis", Attribute::Integer(-1))]))
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let (x, shape) = (&inputs[0], inputs[0].shape());
        let width = shape[self.axis];
        let y = with_real!(x, T => {
            let mut y = T::uninit(shape.numel());
            chunks(x.values::<T>(), width, &mut y, width, &|x, y| self.row(x, y));
            made(y, shape, x)
        });
        let saved = save.then(|| Saved::new(y.clone()));
        (y, saved)
    }

    fn backward(&self, mut pass: Backward<'_>) -> InputGradients {
        let y: Tensor = pass.saved.take();
        let width = y.shape()[self.axis];
        with_real!(y, T => {
            let gradients = pass.gradient.values_mut::<T>();
            chunks(y.values(), width, gradients, width, &|y, g| self.differentiate(y, g));
        });
        vec![Some(pass.gradient)]
    }
}
