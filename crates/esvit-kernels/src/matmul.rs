//! The matrix products of a linear layer, in f32.

use gemm::Parallelism;
use rayon::prelude::*;

use crate::TASK_VALUES;

/// Multiply-accumulates from which a product is shared between threads.
const PARALLEL_MACS: usize = 128 * 128 * 64;

/// A matrix in a slice: element (i, j) stands at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
struct Strided<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Strided<'a> {
    /// A whole row-major matrix.
    fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "values of a {rows} x {columns} matrix");
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// `out = a b`, or `out += a b` when `add` is set; `out` is row-major.
fn product(a: Strided<'_>, b: Strided<'_>, out: &mut [f32], add: bool) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!((b.rows, out.len()), (k, m * n), "shapes of a product");
    if m == 0 || n == 0 {
        return;
    }
    let shared = m.saturating_mul(n).saturating_mul(k) >= PARALLEL_MACS;
    let parallelism = if shared { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: `Strided` is only made of whole row-major matrices and their transposes, so every
    // element of `a` (m x k) and `b` (k x n) lies in its slice, as the assertions in `new` and
    // above make sure; `out` holds m x n values, is borrowed exclusively and overlaps neither.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// A linear layer: `y [rows, out] = x [rows, in] w^T + bias`, with `weight [out, in]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn linear(x: &[f32], weight: &[f32], bias: Option<&[f32]>, inputs: usize, y: &mut [f32]) {
    let (rows, outputs) = (x.len() / inputs, weight.len() / inputs);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), outputs, "bias");
        y.par_chunks_mut(outputs * TASK_VALUES.div_ceil(outputs))
            .for_each(|y| y.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias)));
    }
    let weight = Strided::new(weight, outputs, inputs);
    product(Strided::new(x, rows, inputs), weight.transposed(), y, bias.is_some());
}

/// Gradient of a linear layer's input: `dx [rows, in] = dy [rows, out] w`.
///
/// # Panics
/// When the lengths do not fit.
pub fn linear_input_gradient(dy: &[f32], weight: &[f32], inputs: usize, dx: &mut [f32]) {
    let outputs = weight.len() / inputs;
    let rows = dy.len() / outputs;
    product(Strided::new(dy, rows, outputs), Strided::new(weight, outputs, inputs), dx, false);
}

/// Gradient of a linear layer's weight: `dw [out, in] = dy^T x`.
///
/// # Panics
/// When the lengths do not fit.
pub fn linear_weight_gradient(dy: &[f32], x: &[f32], inputs: usize, dw: &mut [f32]) {
    let (rows, outputs) = (x.len() / inputs, dw.len() / inputs);
    let dy = Strided::new(dy, rows, outputs);
    product(dy.transposed(), Strided::new(x, rows, inputs), dw, false);
}

/// Sums of the columns of `values [rows, columns]`: the gradient of a bias.
pub fn column_sums(values: &[f32], columns: usize) -> Vec<f32> {
    let task = columns * TASK_VALUES.div_ceil(columns);
    let parts: Vec<Vec<f32>> = values
        .par_chunks(task)
        .map(|values| {
            let mut sums = vec![0.0; columns];
            for row in values.chunks_exact(columns) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            sums
        })
        .collect();
    parts.into_iter().fold(vec![0.0; columns], |mut total, part| {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        total
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;

    fn values(n: usize, stream: u64) -> Vec<f32> {
        let mut rng = Rng::new(stream, [0; 3]);
        (0..n).map(|_| rng.uniform_in(-1.0, 1.0) as f32).collect()
    }

    fn close(found: &[f32], expected: &[f64]) -> bool {
        found.len() == expected.len()
            && found.iter().zip(expected).all(|(&a, &b)| (f64::from(a) - b).abs() < 1e-4)
    }

    proptest! {
        #[test]
        fn all_products_of_a_linear_layer(
            rows in 1usize..70, inputs in 1usize..70, outputs in 1usize..70,
        ) {
            let (x, w) = (values(rows * inputs, 1), values(outputs * inputs, 2));
            let (bias, dy) = (values(outputs, 3), values(rows * outputs, 4));
            let at = |m: &[f32], i: usize| f64::from(m[i]);
            let sums = |n: usize, m: usize, k: usize, term: &dyn Fn(usize, usize, usize) -> f64| {
                (0..n * m).map(|at| (0..k).map(|l| term(at / m, at % m, l)).sum()).collect::<Vec<f64>>()
            };

            let mut y = vec![f32::NAN; rows * outputs];
            linear(&x, &w, None, inputs, &mut y);
            let plain = sums(rows, outputs, inputs, &|i, j, l| at(&x, i * inputs + l) * at(&w, j * inputs + l));
            prop_assert!(close(&y, &plain));
            linear(&x, &w, Some(&bias), inputs, &mut y);
            let biased: Vec<f64> =
                plain.iter().enumerate().map(|(i, y)| y + at(&bias, i % outputs)).collect();
            prop_assert!(close(&y, &biased));

            let mut dx = vec![f32::NAN; rows * inputs];
            linear_input_gradient(&dy, &w, inputs, &mut dx);
            let expected = sums(rows, inputs, outputs, &|i, j, l| at(&dy, i * outputs + l) * at(&w, l * inputs + j));
            prop_assert!(close(&dx, &expected));

            let mut dw = vec![f32::NAN; outputs * inputs];
            linear_weight_gradient(&dy, &x, inputs, &mut dw);
            let expected = sums(outputs, inputs, rows, &|i, j, l| at(&dy, l * outputs + i) * at(&x, l * inputs + j));
            prop_assert!(close(&dw, &expected));

            let expected = sums(1, outputs, rows, &|_, j, l| at(&dy, l * outputs + j));
            prop_assert!(close(&column_sums(&dy, outputs), &expected));
        }
    }
}
