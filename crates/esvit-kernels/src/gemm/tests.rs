use super::*;
use crate::element::row_len;
use crate::isa::tests::under_each;
use crate::rng::Rng;
use proptest::prelude::*;

fn values(n: usize, stream: u64) -> Vec<f32> {
    let mut rng = Rng::new(stream, [0; 3]);
    (0..n).map(|_| rng.uniform_in(-1.0, 1.0) as f32).collect()
}

/// Rows in the stored type, each at its stored length.
fn stored<T: Element>(values: &[f32], width: usize) -> Vec<T> {
    let row = row_len::<T>(width);
    let mut rows = vec![T::default(); values.len() / width * row];
    for (to, from) in rows.chunks_exact_mut(row).zip(values.chunks_exact(width)) {
        convert(from, None, to);
    }
    rows
}

fn rounded<T: Element>(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(T::from_f32(v).to_f32())).collect()
}

fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&a, &b)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(a) - b).abs() < 1e-4 * b.abs().max(1.0), "{what} at {i}: {a} {b}");
    }
}

/// All products of a packed operand, gathered into one row-major matrix.
fn gemm<T: Element>(left: Left<'_, T>, packed: &Packed<T>, rows: usize) -> Vec<f32> {
    let columns = packed.columns();
    let mut out = vec![0.0; rows * columns];
    for (first, strip) in packed.strips() {
        let mut part = vec![f32::NAN; rows * strip.width];
        let mut padded = Out { values: &mut part, row: strip.width };
        T::gemm(left, strip, Extent { rows, steps: packed.steps() }, &mut padded, false);
        let mut twice = part.clone();
        let mut padded = Out { values: &mut twice, row: strip.width };
        T::gemm(left, strip, Extent { rows, steps: packed.steps() }, &mut padded, true);
        for (i, (row, twice)) in
            part.chunks_exact(strip.width).zip(twice.chunks_exact(strip.width)).enumerate()
        {
            for (j, (&value, &twice)) in row.iter().zip(twice).enumerate().take(columns - first) {
                let added = (2.0 * value - twice).abs() < 1e-4;
                assert!(added || !value.is_finite(), "added: {value} {twice}");
                out[i * columns + first + j] = value;
            }
        }
    }
    out
}

fn all_forms<T: Element>(rows: usize, inner: usize, columns: usize) {
    let x = values(rows * inner, 1);
    let w = values(columns * inner, 2);
    let scale = values(inner, 3);
    let (x64, w64) = (rounded::<T>(&x), rounded::<T>(&w));
    let what = format!("{} {rows} x {inner} x {columns}", T::NAME);

    let left = stored::<T>(&x, inner);
    let left = Left::rows(&left, row_len::<T>(inner));
    let expected: Vec<f64> = (0..rows * columns)
        .map(|at| {
            (0..inner).map(|l| x64[at / columns * inner + l] * w64[at % columns * inner + l]).sum()
        })
        .collect();
    let found = gemm(left, &Packed::transposed(&w, inner, None), rows);
    assert_close(&found, &expected, &format!("transposed {what}"));

    let bias = values(columns, 5);
    let biased: Vec<f64> =
        expected.iter().enumerate().map(|(at, e)| e + f64::from(bias[at % columns])).collect();
    let found = gemm(left, &Packed::transposed(&w, inner, None).with_bias(bias), rows);
    assert_close(&found, &biased, &format!("with bias {what}"));

    let scaled: Vec<f32> = w.iter().enumerate().map(|(i, w)| w * scale[i % inner]).collect();
    let scaled = rounded::<T>(&scaled);
    let expected: Vec<f64> = (0..rows * columns)
        .map(|at| {
            let terms = (0..inner)
                .map(|l| x64[at / columns * inner + l] * scaled[at % columns * inner + l]);
            terms.sum()
        })
        .collect();
    let found = gemm(left, &Packed::transposed(&w, inner, Some(&scale)), rows);
    assert_close(&found, &expected, &format!("scaled {what}"));

    let expected: Vec<f64> = (0..rows * columns)
        .map(|at| {
            (0..inner)
                .map(|l| x64[at / columns * inner + l] * w64[l * columns + at % columns])
                .sum()
        })
        .collect();
    let found = gemm(left, &Packed::straight(&w, columns, None), rows);
    assert_close(&found, &expected, &format!("straight {what}"));

    // x^T v with v [rows, columns].
    let v = values(rows * columns, 4);
    let v64 = rounded::<T>(&v);
    let (a, b) = (stored::<T>(&x, inner), stored::<T>(&v, columns));
    let mut out = vec![f32::NAN; inner * columns];
    let mut sums = vec![f32::NAN; inner];
    for add in [false, true] {
        let times = if add { 2.0 } else { 1.0 };
        let (a, b) = (Columns::new(&a, inner), Columns::new(&b, columns));
        gemm_tn(a, b, &mut out, Some(&mut sums), add);
        let sum = |at: usize| -> f64 {
            let (i, column) = (at / columns, at % columns);
            (0..rows).map(|r| x64[r * inner + i] * v64[r * columns + column]).sum()
        };
        let expected: Vec<f64> = (0..inner * columns).map(|at| times * sum(at)).collect();
        assert_close(&out, &expected, &format!("over rows {what}"));
        let sum = |i: usize| (0..rows).map(|r| x64[r * inner + i]).sum::<f64>();
        let expected: Vec<f64> = (0..inner).map(|i| times * sum(i)).collect();
        assert_close(&sums, &expected, &format!("sums {what}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn products(rows in 1usize..60, inner in 1usize..70, columns in 1usize..150) {
        under_each(|_| {
            all_forms::<f32>(rows, inner, columns);
            all_forms::<Bf16>(rows, inner, columns);
        });
    }
}

/// One less and one more than what a tile, a strip, a block of steps and a chunk of rows hold.
#[test]
fn around_the_blocks() {
    under_each(|_| {
        for (rows, inner, columns) in [
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
            all_forms::<f32>(rows, inner, columns);
            all_forms::<Bf16>(rows, inner, columns);
        }
    });
}

#[test]
fn nothing_to_sum_is_zero() {
    under_each(|_| {
        let mut out = [f32::NAN; 2 * 16];
        let strip = Strip { values: &[], step: 16, width: 16, bias: None };
        let left = Left { values: &[0.0f32; 0], row: 0, step: 1 };
        let extent = Extent { rows: 2, steps: 0 };
        f32::gemm(left, strip, extent, &mut Out { values: &mut out, row: 16 }, false);
        assert_eq!(out, [0.0; 32]);
        let strip = Strip { bias: Some(&[1.5; 16]), ..strip };
        f32::gemm(left, strip, extent, &mut Out { values: &mut out, row: 16 }, true);
        assert_eq!(out, [1.5; 32]);
    });
}

/// What is not a finite number shows in the rows and columns that it belongs to, and only there.
#[test]
fn what_is_not_finite_is_seen() {
    under_each(|_| {
        for bad in [f32::NAN, f32::INFINITY] {
            let (rows, inner, columns) = (9, 20, 40);
            let mut x = vec![1.0f32; rows * inner];
            x[3 * inner + 7] = bad;
            let w = vec![1.0f32; columns * inner];
            let left = stored::<Bf16>(&x, inner);
            let packed = Packed::transposed(&w, inner, None);
            let found = gemm(Left::rows(&left, inner), &packed, rows);
            for (at, value) in found.iter().enumerate() {
                assert_eq!(value.is_finite(), at / columns != 3, "{bad} {at}");
            }
        }
    });
}
