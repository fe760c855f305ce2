//! Products of matrices.

use rayon::prelude::*;

use super::{Real, made, with_real};
use crate::ops::prelude::*;

impl Tensor {
    /// The product of the matrices in the last two dimensions, `[.., m, k]` by `[.., k, n]`, with
    /// equal dimensions before them, or by one matrix `[k, n]`.
    ///
    /// # Panics
    /// When the sizes differ.
    #[must_use]
    pub fn matmul(self, right: Self) -> Self {
        apply(Matmul, [self, right])
    }
}

#[derive(Debug)]
struct Matmul;

/// Number of products, and `m`, `k`, `n` of each; all rows make one product with a single matrix.
fn sizes(x: &Shape, y: &Shape) -> [usize; 4] {
    let ([.., m, k], [.., rows, n]) = (&**x, &**y) else {
        panic!("matrices expected, not {x:?} and {y:?}")
    };
    let (outer, right) = (&x[..x.len() - 2], &y[..y.len() - 2]);
    assert!(k == rows && (right.is_empty() || outer == right), "a product of {x:?} and {y:?}");
    let count = outer.iter().product();
    if right.is_empty() { [1, count * m, *k, *n] } else { [count, *m, *k, *n] }
}

/// `a b^T` of `a [count, m, k]` and `b [count, n, k]`.
fn products<T: Real>(a: &[T], b: &[T], [count, m, k, n]: [usize; 4]) -> Vec<T> {
    if count * m * k * n == 0 {
        return vec![T::zero(); count * m * n];
    }
    if count == 1 {
        return T::matmul_nt(a, b, k);
    }
    let pairs = a.par_chunks(m * k).zip(b.par_chunks(n * k));
    let products: Vec<Vec<T>> = pairs.map(|(a, b)| T::matmul_nt(a, b, k)).collect();
    products.concat()
}

impl Operation for Matmul {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let [_, _, _, n] = sizes(&inputs[0], &inputs[1]);
        inputs[0].with(inputs[0].len() - 1, n)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let (x, y) = (nodes.input(0), nodes.input(1));
        Some(nodes.node("MatMul", &[&x, &y], &[]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let shape = self.output(&[inputs[0].shape(), inputs[1].shape()]);
        let (y, x) = (inputs.swap_remove(1), inputs.swap_remove(0));
        let sizes = sizes(&x.shape(), &y.shape());
        let y = y.transpose();
        let z = with_real!(x, T => made(products::<T>(x.values(), y.values(), sizes), shape, &x));
        (z, save.then(|| Saved::new(x)))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let Backward { saved, parameters, gradient, wanted, .. } = pass;
        let (x, y): (Tensor, _) = (saved.take(), &parameters[0]);
        let [count, m, k, n] = sizes(&x.shape(), &y.shape());
        with_real!(x, T => {
            let dx = wanted[0].then(|| {
                let dx = products::<T>(gradient.values(), y.values(), [count, m, n, k]);
                made(dx, x.shape(), &x)
            });
            let dy = wanted[1].then(|| {
                let x = x.reshape([count, m, k]).transpose();
                let gradient = gradient.reshape([count, m, n]).transpose();
                let dy = products::<T>(x.values(), gradient.values(), [count, k, m, n]);
                made(dy, y.shape(), y)
            });
            vec![dx, dy]
        })
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let macs = sizes(&inputs[0], &inputs[1]).iter().product();
        Cost::products(macs).saving(inputs[0].numel(), Precision::F32)
    }
}
