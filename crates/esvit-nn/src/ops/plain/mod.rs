//! Plain differentiable operations, as methods and operators of [`Tensor`], for objectives.
//!
//! All take f32 and f64 (for references in tests) and panic on other types. Results do not depend
//! on the number of threads.

mod cast;
mod conv;
mod elementwise;
mod index;
mod matmul;
mod reduce;
mod softmax;
mod strided;
#[cfg(test)]
mod tests;

use std::ops::{AddAssign, DivAssign};

use esvit_kernels::activation::Activation;
use esvit_kernels::{buffer, linear, optimizer};
use num_traits::Float;
use rayon::prelude::*;

use crate::device::Device;
use crate::tensor::{Element, Shape, Tensor};

/// Values per task of elementwise work; less runs on the calling thread.
const TASK_VALUES: usize = 1 << 15;

/// f32 and f64.
trait Real: Element + Float + AddAssign + DivAssign {
    /// The nearest number of this type.
    fn from_f64(value: f64) -> Self {
        num_traits::cast(value).expect("f32 and f64 have every number")
    }

    fn into_f64(self) -> f64 {
        self.to_f64().expect("f64 has every number")
    }

    /// The error function.
    fn erf(self) -> Self;

    /// `len` values of arbitrary content.
    fn uninit(len: usize) -> Vec<Self>;

    /// `a b^T` of `a [m, k]` and `b [n, k]`, none of them 0.
    fn matmul_nt(a: &[Self], b: &[Self], k: usize) -> Vec<Self>;

    /// `sums += values`.
    fn add(sums: &mut [Self], values: &[Self]);
}

impl Real for f32 {
    fn erf(self) -> Self {
        libm::erff(self)
    }

    fn uninit(len: usize) -> Vec<Self> {
        buffer::uninit(len)
    }

    fn matmul_nt(a: &[Self], b: &[Self], k: usize) -> Vec<Self> {
        linear::forward::<Self>(a, k, Activation::None, b, None, false).0
    }

    fn add(sums: &mut [Self], values: &[Self]) {
        optimizer::add(sums, values);
    }
}

impl Real for f64 {
    fn erf(self) -> Self {
        libm::erf(self)
    }

    fn uninit(len: usize) -> Vec<Self> {
        vec![0.0; len]
    }

    fn matmul_nt(a: &[Self], b: &[Self], k: usize) -> Vec<Self> {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        a.chunks_exact(k).flat_map(|a| b.chunks_exact(k).map(move |b| dot(a, b))).collect()
    }

    fn add(sums: &mut [Self], values: &[Self]) {
        assert_eq!(sums.len(), values.len(), "number of values");
        zip(sums, values, |sum, value| sum + value);
    }
}

/// Evaluates an expression with the element type of a tensor.
macro_rules! with_real {
    ($tensor:expr, $real:ident => $body:expr) => {
        match $tensor.dtype() {
            $crate::tensor::Dtype::F32 => {
                type $real = f32;
                $body
            }
            $crate::tensor::Dtype::F64 => {
                type $real = f64;
                $body
            }
            other => panic!("{other:?}: plain operations take F32 and F64"),
        }
    };
}
use with_real;

/// A tensor on the device of another.
fn made<T: Real>(values: Vec<T>, shape: impl Into<Shape>, like: &Tensor) -> Tensor {
    Tensor::new(values, shape, &like.device())
}

/// `x = f(x)`.
fn map<T: Real>(x: &mut [T], f: impl Fn(T) -> T + Sync) {
    chunks(&[], 0, x, TASK_VALUES, &|_, x| x.iter_mut().for_each(|x| *x = f(*x)));
}

/// `x = f(x, y)`.
fn zip<T: Real>(x: &mut [T], y: &[T], f: impl Fn(T, T) -> T + Sync) {
    chunks(y, TASK_VALUES, x, TASK_VALUES, &|y, x| {
        x.iter_mut().zip(y).for_each(|(x, y)| *x = f(*x, *y));
    });
}

/// `f(x, y)` of every `n` values of `x`, 0 for none, with every `m` of `y`; nothing if `y` has none.
///
/// The function is behind a pointer: the thread pool is compiled once for each type, not for each
/// operation.
fn chunks<T: Real>(x: &[T], n: usize, y: &mut [T], m: usize, f: &(dyn Fn(&[T], &mut [T]) + Sync)) {
    if y.is_empty() || (n > 0 && x.is_empty()) {
        return;
    }
    let part = |at: usize| &x[(at * n).min(x.len())..((at + 1) * n).min(x.len())];
    if x.len().max(y.len()) <= TASK_VALUES {
        y.chunks_mut(m).enumerate().for_each(|(at, y)| f(part(at), y));
    } else {
        y.par_chunks_mut(m).enumerate().for_each(|(at, y)| f(part(at), y));
    }
}

impl Tensor {
    /// The identity matrix `[n, n]`, f32.
    pub fn eye(n: usize, device: &Device) -> Self {
        let values = (0..n * n).map(|at| if at / n == at % n { 1f32 } else { 0.0 }).collect();
        Self::new(values, [n, n], device)
    }

    /// Ones in the shape and type of this tensor, without gradient.
    #[must_use]
    pub fn ones_like(&self) -> Self {
        self.full_like(self.shape(), 1.0)
    }

    /// Zeros in the shape and type of this tensor, without gradient.
    #[must_use]
    pub fn zeros_like(&self) -> Self {
        self.full_like(self.shape(), 0.0)
    }

    /// A tensor of one value, of this tensor's type and on its device.
    fn full_like(&self, shape: impl Into<Shape>, value: f64) -> Self {
        with_real!(self, T => Self::full(T::from_f64(value), shape, &self.device()))
    }

    /// `self += other`, whatever their shapes. Not recorded.
    ///
    /// # Panics
    /// When the number of values or the types differ.
    pub(crate) fn add_assign(&mut self, other: &Self) {
        with_real!(self, T => T::add(self.values_mut(), other.values()));
    }
}
