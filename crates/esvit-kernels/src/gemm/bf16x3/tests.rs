use super::super::{LANES, Matrix, PackedRhs, gemm_tn};
use super::*;
use crate::isa::tests::under_each;
use crate::testing::{normal, stored};

/// Asserts that a sum of products is found within two roundings of 2^-17 for each product, and those
/// of the sums in f32, `times` over.
fn assert_within(
    found: f32,
    products: impl Iterator<Item = [f32; 2]>,
    times: f64,
    what: &dyn Fn() -> String,
) {
    let (mut sum, mut size, mut count) = (0.0, 0.0, 0);
    for product in products.map(|[a, b]| f64::from(a) * f64::from(b)) {
        (sum, size, count) = (sum + product, size + product.abs(), count + 1);
    }
    let roundings = f64::from(6 * count + 8) * 2f64.powi(-24);
    let bound = times * (2.0 * 2f64.powi(-17) + roundings) * size;
    let error = (f64::from(found) - times * sum).abs();
    // Not `error > bound`, which NaN passes.
    assert!(error <= bound, "{}: {error:.1e}, not {bound:.1e}", what());
}

#[test]
fn within_two_roundings() {
    under_each(|isa| {
        for [m, k, n] in [
            [1, 1, 1],
            [3, 2, 5],
            [5, 17, 63],
            [33, 31, 65],
            [13, 95, 47],
            [97, 257, 17],
            [20, 513, 48],
        ] {
            let (x, w, bias) = (normal(m * k, 1), normal(n * k, 2), normal(n, 3));
            let lhs = stored::<Bf16x3>(&x, k);
            let packed = PackedRhs::from_transposed(&w, k, None).with_bias(bias.clone());
            let row = n.next_multiple_of(LANES);
            let mut out = vec![f32::NAN; m * row];
            for (add, times) in [(false, 1.0), (true, 2.0)] {
                packed.gemm(Lhs::from_rows(&lhs, k), m, &mut out, row, add);
                for (i, j) in (0..m * n).map(|at| (at / n, at % n)) {
                    let products = (0..k).map(|l| [x[i * k + l], w[j * k + l]]);
                    let products = products.chain([[bias[j], 1.0]]);
                    let what = || format!("{isa:?} {m} x {k} x {n}, {add}, {i} {j}");
                    assert_within(out[i * row + j], products, times, &what);
                }
            }
        }
    });
}

#[test]
fn gradients_of_weights_within_two_roundings() {
    under_each(|isa| {
        for [rows, m, n] in [[1, 1, 1], [33, 5, 17], [300, 20, 70], [1537, 3, 16]] {
            let (a, b) = (normal(rows * m, 1), normal(rows * n, 2));
            let (lhs, rhs) = (stored::<Bf16x3>(&a, m), stored::<Bf16x3>(&b, n));
            let (mut out, mut sums) = (vec![f32::NAN; m * n], vec![f32::NAN; m]);
            gemm_tn(Matrix::new(&lhs, m), Matrix::new(&rhs, n), &mut out, &mut sums, false);
            for (i, j) in (0..m * n).map(|at| (at / n, at % n)) {
                let products = (0..rows).map(|r| [a[r * m + i], b[r * n + j]]);
                let what = || format!("{isa:?} {rows} rows, {m} x {n}, {i} {j}");
                assert_within(out[i * n + j], products, 1.0, &what);
            }
        }
    });
}

/// To the bit: what else is computed does not change a row.
#[test]
fn a_row_alone() {
    under_each(|isa| {
        let (m, k, n) = (400, 600, 48);
        let x = stored::<Bf16x3>(&normal(m * k, 1), k);
        let packed = PackedRhs::from_transposed(&normal(n * k, 2), k, None);
        let mut all = vec![0.0; m * n];
        packed.gemm(Lhs::from_rows(&x, k), m, &mut all, n, false);
        for row in [0, 31, 95, 383, 384, 399] {
            let mut alone = vec![0.0; n];
            packed.gemm(Lhs::from_rows(&x[row * k..], k), 1, &mut alone, n, false);
            assert_eq!(alone, all[row * n..][..n], "{isa:?} {row}");
        }
    });
}

/// NaN and infinity spoil their own row, and only that.
#[test]
fn what_is_not_finite_stays_so() {
    under_each(|isa| {
        for bad in [f32::NAN, f32::INFINITY] {
            let (m, k, n) = (9, 20, 16);
            let mut x = vec![1.0f32; m * k];
            x[3 * k + 7] = bad;
            let lhs = stored::<Bf16x3>(&x, k);
            let packed = PackedRhs::from_transposed(&vec![1.0; n * k], k, None);
            let mut out = vec![0.0; m * n];
            packed.gemm(Lhs::from_rows(&lhs, k), m, &mut out, n, false);
            for (at, value) in out.iter().enumerate() {
                assert_eq!(value.is_finite(), at / n != 3, "{isa:?} {bad} {at}");
            }
        }
    });
}

#[test]
fn without_k_steps_there_is_the_bias() {
    under_each(|isa| {
        let bias: [f32; 16] = std::array::from_fn(|column| column as f32);
        let panel = RhsPanel { values: &[], k_stride: 16, width: 16, bias: Some(&bias) };
        let lhs = Lhs { values: &[Bf16x3(0.0); 0], row_stride: 0, k_stride: 1 };
        let mut out = [f32::NAN; 32];
        let mut output = Output { values: &mut out, row_stride: 16 };
        Bf16x3::gemm(lhs, panel, Dims { m: 2, k_steps: 0 }, &mut output, false);
        assert_eq!(out.as_chunks::<16>().0, [bias; 2], "{isa:?}");
    });
}

#[test]
fn parts_of_values() {
    let parts = |value: f32| {
        let [high, low] = parts_of(value);
        (high.to_f32(), low.to_f32())
    };
    assert_eq!(parts(1.0 + 1.0 / 32_768.0), (1.0, 1.0 / 32_768.0));
    // Rounded up, so that the rest is negative.
    assert_eq!(parts(1.0 + 255.0 / 16_384.0), (1.015_625, -1.0 / 16_384.0));
    for value in normal(1000, 1) {
        let (high, low) = parts(value);
        let error = f64::from(value) - f64::from(high) - f64::from(low);
        assert!(error.abs() <= 2f64.powi(-17) * f64::from(value.abs()), "{value}: {error:.1e}");
    }
}
