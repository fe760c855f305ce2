use super::*;
use crate::buffer::Buffer;
use crate::element::padded_row_len;
use crate::isa::tests::under_each;
use crate::rng::Rng;
use crate::testing::{rounded, stored};
use proptest::prelude::*;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod bounds;

fn values(n: usize, stream: u64) -> Vec<f32> {
    let mut rng = Rng::new(stream, [0; 3]);
    (0..n).map(|_| rng.uniform_in(-1.0, 1.0) as f32).collect()
}

fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&a, &b)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(a) - b).abs() < 1e-4 * b.abs().max(1.0), "{what} at {i}: {a} {b}");
    }
}

/// GEMM with all panels of a packed RHS, as one row-major matrix.
fn gemm<T: Element>(lhs: Lhs<'_, T>, packed: &PackedRhs<T>, m: usize) -> Vec<f32> {
    let n = packed.n();
    let mut out = vec![0.0; m * n];
    for (first, panel) in packed.panels() {
        let mut part = vec![f32::NAN; m * panel.width];
        let mut padded = Output { values: &mut part, row_stride: panel.width };
        T::gemm(lhs, panel, Dims { m, k_steps: packed.k_steps() }, &mut padded, false);
        let mut twice = part.clone();
        let mut padded = Output { values: &mut twice, row_stride: panel.width };
        T::gemm(lhs, panel, Dims { m, k_steps: packed.k_steps() }, &mut padded, true);
        for (i, (row, twice)) in
            part.chunks_exact(panel.width).zip(twice.chunks_exact(panel.width)).enumerate()
        {
            for (j, (&value, &twice)) in row.iter().zip(twice).enumerate().take(n - first) {
                let added = (2.0 * value - twice).abs() < 1e-4;
                assert!(added || !value.is_finite(), "added: {value} {twice}");
                out[i * n + first + j] = value;
            }
        }
    }
    out
}

fn all_forms<T: Element>(m: usize, k: usize, n: usize) {
    let x = values(m * k, 1);
    let w = values(n * k, 2);
    let scale = values(k, 3);
    let (x64, w64) = (rounded::<T>(&x), rounded::<T>(&w));
    let what = format!("{} {m} x {k} x {n}", T::NAME);

    let lhs = stored::<T>(&x, k);
    let lhs = Lhs::from_rows(&lhs, padded_row_len::<T>(k));
    let expected: Vec<f64> = (0..m * n)
        .map(|at| (0..k).map(|l| x64[at / n * k + l] * w64[at % n * k + l]).sum())
        .collect();
    let found = gemm(lhs, &PackedRhs::from_transposed(&w, k, None), m);
    assert_close(&found, &expected, &format!("transposed {what}"));

    let bias = values(n, 5);
    let biased: Vec<f64> =
        expected.iter().enumerate().map(|(at, e)| e + f64::from(bias[at % n])).collect();
    let found = gemm(lhs, &PackedRhs::from_transposed(&w, k, None).with_bias(bias), m);
    assert_close(&found, &biased, &format!("with bias {what}"));

    let scaled: Vec<f32> = w.iter().enumerate().map(|(i, w)| w * scale[i % k]).collect();
    let scaled = rounded::<T>(&scaled);
    let expected: Vec<f64> = (0..m * n)
        .map(|at| {
            let terms = (0..k).map(|l| x64[at / n * k + l] * scaled[at % n * k + l]);
            terms.sum()
        })
        .collect();
    let found = gemm(lhs, &PackedRhs::from_transposed(&w, k, Some(&scale)), m);
    assert_close(&found, &expected, &format!("scaled {what}"));

    let expected: Vec<f64> = (0..m * n)
        .map(|at| (0..k).map(|l| x64[at / n * k + l] * w64[l * n + at % n]).sum())
        .collect();
    let found = gemm(lhs, &PackedRhs::from_rows(&w, n, None), m);
    assert_close(&found, &expected, &format!("straight {what}"));

    // x^T v with v [rows, columns].
    let v = values(m * n, 4);
    let v64 = rounded::<T>(&v);
    let (a, b) = (stored::<T>(&x, k), stored::<T>(&v, n));
    let mut out = vec![f32::NAN; k * n];
    let mut sums = vec![f32::NAN; k];
    for add in [false, true] {
        let times = if add { 2.0 } else { 1.0 };
        let (a, b) = (Matrix::new(&a, k), Matrix::new(&b, n));
        gemm_tn(a, b, &mut out, &mut sums, add);
        let sum = |at: usize| -> f64 {
            let (i, column) = (at / n, at % n);
            (0..m).map(|r| x64[r * k + i] * v64[r * n + column]).sum()
        };
        let expected: Vec<f64> = (0..k * n).map(|at| times * sum(at)).collect();
        assert_close(&out, &expected, &format!("gemm_tn {what}"));
        let sum = |i: usize| (0..m).map(|r| x64[r * k + i]).sum::<f64>();
        let expected: Vec<f64> = (0..k).map(|i| times * sum(i)).collect();
        assert_close(&sums, &expected, &format!("sums {what}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape(m in 1usize..60, k in 1usize..70, n in 1usize..150) {
        under_each(|_| {
            all_forms::<f32>(m, k, n);
            all_forms::<Bf16>(m, k, n);
        });
    }
}

/// Sizes around those of a tile, a panel, a K block and a K chunk of `gemm_tn`.
#[test]
fn sizes_around_the_blocks() {
    under_each(|_| {
        for (m, k, n) in [
            (5, 95, 63),
            (6, 97, 64),
            (7, 193, 65),
            (8, 192, 48),
            (13, 191, 47),
            (9, 255, 17),
            (6, 257, 63),
            (7, 513, 48),
            (1, 1, 1),
            (1535, 17, 16),
            (1537, 16, 33),
            (3073, 3, 5),
        ] {
            all_forms::<f32>(m, k, n);
            all_forms::<Bf16>(m, k, n);
        }
    });
}

#[test]
fn k_of_zero_gives_the_bias() {
    under_each(|_| {
        let mut out = [f32::NAN; 2 * 16];
        let panel = RhsPanel { values: &[], k_stride: 16, width: 16, bias: None };
        let lhs = Lhs { values: &[0.0f32; 0], row_stride: 0, k_stride: 1 };
        let dims = Dims { m: 2, k_steps: 0 };
        f32::gemm(lhs, panel, dims, &mut Output { values: &mut out, row_stride: 16 }, false);
        assert_eq!(out, [0.0; 32]);
        let bias: [f32; 16] = std::array::from_fn(|column| column as f32);
        let panel = RhsPanel { bias: Some(&bias), ..panel };
        f32::gemm(lhs, panel, dims, &mut Output { values: &mut out, row_stride: 16 }, true);
        assert_eq!(out.as_chunks::<16>().0, [bias; 2]);
    });
}

#[test]
fn no_rows_give_gradients_of_zero() {
    let none = |columns| Matrix { values: &[0.0f32; 0], columns, row_stride: columns };
    let (mut out, mut sums) = ([f32::NAN; 6], [f32::NAN; 2]);
    gemm_tn(none(2), none(3), &mut out, &mut sums, false);
    assert_eq!((out, sums), ([0.0; 6], [0.0; 2]));
}

/// NaN and infinity spoil their own row, and only that.
#[test]
fn non_finite_values_propagate() {
    under_each(|_| {
        for bad in [f32::NAN, f32::INFINITY] {
            let (m, k, n) = (9, 20, 40);
            let mut x = vec![1.0f32; m * k];
            x[3 * k + 7] = bad;
            let w = vec![1.0f32; n * k];
            let lhs = stored::<Bf16>(&x, k);
            let packed = PackedRhs::from_transposed(&w, k, None);
            let found = gemm(Lhs::from_rows(&lhs, k), &packed, m);
            for (at, value) in found.iter().enumerate() {
                assert_eq!(value.is_finite(), at / n != 3, "{bad} {at}");
            }
        }
    });
}

#[test]
fn every_panel_has_its_scales() {
    let (k, n) = (3, 150);
    let (weight, scale, row) = (values(k * n, 1), values(n, 2), values(k, 3));
    let scaled: Vec<f32> = weight.iter().enumerate().map(|(i, w)| w * scale[i % n]).collect();
    let with_scale = PackedRhs::<f32>::from_rows(&weight, n, Some(&scale));
    let before = PackedRhs::<f32>::from_rows(&scaled, n, None);
    // Both by one instruction set.
    under_each(|_| {
        let product = |packed| gemm(Lhs::from_rows(&row, k), packed, 1);
        assert_eq!(product(&with_scale), product(&before));
    });
}

/// To the bit: what else is computed does not change a row or a column.
#[test]
fn a_row_alone() {
    under_each(|isa| {
        let (m, k, n) = (230, 1100, 80);
        let x = stored::<Bf16>(&values(m * k, 1), k);
        let w = values(n * k, 2);
        let all = gemm(Lhs::from_rows(&x, k), &PackedRhs::from_transposed(&w, k, None), m);
        for row in [0, 15, 16, 31, 100, 191, 192, 229] {
            for first in [0, 16, 64] {
                let packed = PackedRhs::from_transposed(&w[first * k..][..16 * k], k, None);
                let found = gemm(Lhs::from_rows(&x[row * k..], k), &packed, 1);
                assert_eq!(found, all[row * n + first..][..16], "{isa:?} {row} {first}");
            }
        }
    });
}

/// A product with a transposed LHS is the same to the bit as one with its rows, and as one with
/// every panel for itself.
#[test]
fn transposed_or_in_rows() {
    under_each(|isa| {
        let (m, k, n) = (70, 98, 144);
        let x = stored::<Bf16>(&values(m * k, 1), k);
        let (mut transposed, mut rhs) = (vec![Bf16(0); m * k], vec![Bf16(0); n * k]);
        transpose_rows(&x, k, m, &mut transposed, m * Bf16::K_PACK);
        transpose_rows(&stored(&values(n * k, 2), k), k, n, &mut rhs, n * Bf16::K_PACK);
        let dims = Dims { m, k_steps: k / Bf16::K_PACK };
        let [mut expected, mut found] = [(); 2].map(|()| vec![f32::NAN; m * n]);
        super::gemm(Lhs::from_rows(&x, k), &rhs, n, dims, &mut expected, false);
        let lhs = Lhs::from_transposed(&transposed, m);
        super::gemm(lhs, &rhs, n, dims, &mut found, false);
        assert_eq!(found, expected, "{isa:?}");
        let panel =
            RhsPanel { values: &rhs[..], k_stride: n * Bf16::K_PACK, width: 64, bias: None };
        let mut out = Output { values: &mut found, row_stride: n };
        Bf16::gemm(lhs, panel, dims, &mut out, false);
        assert_eq!(found, expected, "{isa:?}");
    });
}

/// More rows than one part of the sums takes, and some more.
#[test]
fn parts_of_many_rows() {
    under_each(|_| {
        all_forms::<f32>(13_001, 5, 17);
        all_forms::<Bf16>(13_001, 5, 17);
    });
}

/// The same bits by any number of threads.
#[test]
fn threads_do_not_matter() {
    under_each(|isa| {
        same_by_threads(isa, [1600, 200, 150]);
        same_by_threads(isa, [13_001, 20, 15]);
    });

    fn same_by_threads(isa: Isa, [rows, m, n]: [usize; 3]) {
        let (a, b) = (values(rows * m, 1), values(rows * n, 2));
        let (a, b) = (stored::<Bf16>(&a, m), stored::<Bf16>(&b, n));
        let by = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut out, mut sums) = (vec![0.0; m * n], vec![0.0; m]);
            let (a, b) = (Matrix::new(&a, m), Matrix::new(&b, n));
            pool.install(|| gemm_tn(a, b, &mut out, &mut sums, false));
            (out, sums)
        };
        assert!(by(1) == by(3), "{isa:?}");
    }
}

/// Values that are no numbers, in places that a later GEMM pads, do not come back.
#[test]
fn nothing_left_behind() {
    under_each(|isa| {
        let panel = |values: &[Bf16], k_steps: usize| {
            let (lhs, mut out) = (vec![values[0]; 5 * 2 * k_steps], vec![0.0; 5 * 32]);
            let panel = RhsPanel { values, k_stride: 64, width: 32, bias: None };
            let dims = Dims { m: 5, k_steps };
            let mut output = Output { values: &mut out, row_stride: 32 };
            Bf16::gemm(Lhs::from_rows(&lhs, 2 * k_steps), panel, dims, &mut output, false);
            out
        };
        let spoiled = panel(&vec![Bf16::from_f32(f32::NAN); 31 * 64], 31);
        assert!(spoiled.iter().all(|value| value.is_nan()), "{isa:?}");
        assert_eq!(panel(&vec![Bf16::from_f32(1.0); 17 * 64], 17), [34.0; 5 * 32], "{isa:?}");
    });
}

/// Rows that pad packed operands are zeros, whatever the memory held before.
#[test]
fn packed_rows_are_padded_with_zeros() {
    under_each(|isa| {
        let (rows, m, n) = (65, 768, 16);
        let dirty = (0..8).map(|_| {
            let mut buffer = Buffer::<Bf16>::scratch(96 * 96);
            buffer.fill(Bf16::from_f32(f32::NAN));
            buffer
        });
        drop(dirty.collect::<Vec<_>>());
        let (a, b) = (vec![Bf16::from_f32(1.0); rows * m], vec![Bf16::from_f32(1.0); rows * n]);
        let (mut out, mut sums) = (vec![0.0; m * n], vec![0.0; m]);
        gemm_tn(Matrix::new(&a, m), Matrix::new(&b, n), &mut out, &mut sums, false);
        assert!(out.iter().chain(&sums).all(|&value| value == 65.0), "{isa:?}");
    });
}
