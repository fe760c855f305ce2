//! Auto-vectorized loops: one source, compiled for several instruction sets, dispatched at run
//! time.

use crate::element::Element;

/// Independent accumulators of a reduction, so that it vectorizes: one AVX-512 register of f32.
pub(crate) const LANES: usize = 16;

/// Defines functions whose bodies are compiled for AVX-512, for AVX2 with FMA and for the target's
/// baseline, and which call the one of [`crate::isa::vectors`].
macro_rules! dispatch {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$($($generic:ident)+: $bound:ident),+>)? (
            $($arg:ident: $ty:ty),* $(,)?
        ) $(-> $out:ty)? $body:block
    )+) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$($($generic)+: $bound),+>)? ($($arg: $ty),*) $(-> $out)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body $(<$($($generic)+: $bound),+>)? ($($arg: $ty),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512 $(<$($($generic)+: $bound),+>)? ($($arg: $ty),*) $(-> $out)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2 $(<$($($generic)+: $bound),+>)? ($($arg: $ty),*) $(-> $out)? {
                    body($($arg),*)
                }
                let isa = $crate::isa::vectors();
                if isa >= $crate::isa::Isa::Avx512 {
                    // SAFETY: the machine has every feature that `avx512` is compiled for.
                    return unsafe { avx512($($arg),*) };
                }
                if isa >= $crate::isa::Isa::Avx2 {
                    // SAFETY: the machine has every feature that `avx2` is compiled for.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )+};
}
pub(crate) use dispatch;

/// Prefetches the first `columns` values of every row of `values` (rows are `row` values apart)
/// into L2: strided lines that the hardware prefetcher misses.
pub(crate) fn prefetch<T>(values: &[T], row: usize, columns: usize) {
    #[cfg(target_arch = "x86_64")]
    for values in values.chunks(row) {
        let values = &values[..columns.min(values.len())];
        for line in values.chunks((64 / size_of::<T>()).max(1)) {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            // SAFETY: a prefetch reads nothing, and the address is that of a slice.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, row, columns);
}

/// `to = f(to, from)`, value by value, of rows of which none is shorter than `to`.
#[inline(always)]
pub(crate) fn update<const N: usize, T: Element, U: Element>(
    to: &mut [U],
    from: [&[T]; N],
    f: impl Fn(f32, [f32; N]) -> f32,
) {
    let from = from.map(|row| &row[..to.len()]);
    for i in 0..to.len() {
        // `array::map` is a call for some lengths.
        let mut values = [0.0; N];
        for (value, row) in values.iter_mut().zip(from) {
            *value = row[i].to_f32();
        }
        to[i] = U::from_f32(f(to[i].to_f32(), values));
    }
}

/// The same with values of another type: `to = f(to, x, from)`.
#[inline(always)]
pub(crate) fn update_by<const N: usize, X: Element, U: Element>(
    to: &mut [U],
    x: &[X],
    from: [&[f32]; N],
    f: impl Fn(f32, f32, [f32; N]) -> f32,
) {
    let (x, from) = (&x[..to.len()], from.map(|row| &row[..to.len()]));
    for i in 0..to.len() {
        let mut values = [0.0; N];
        for (value, row) in values.iter_mut().zip(from) {
            *value = row[i];
        }
        to[i] = U::from_f32(f(to[i].to_f32(), x[i].to_f32(), values));
    }
}

/// `sum(term(v))` in [`LANES`] accumulators. Chunks of constant length need no bounds checks, which
/// would prevent vectorization.
#[inline(always)]
pub(crate) fn sum<A: Copy>(values: &[A], term: impl Fn(A) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += term(value);
        }
    }
    rest.iter().fold(fold_sums(lanes), |total, &value| total + term(value))
}

/// `sum(term(a, b))` over two slices of equal length, in [`LANES`] accumulators.
#[inline(always)]
pub(crate) fn sum_pairs<A: Copy, B: Copy>(a: &[A], b: &[B], term: impl Fn(A, B) -> f32) -> f32 {
    assert!(a.len() == b.len(), "rows of equal length");
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for (lane, (&a, &b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += term(a, b);
        }
    }
    let rest = a_rest.iter().zip(b_rest);
    rest.fold(fold_sums(lanes), |total, (&a, &b)| total + term(a, b))
}

/// Reduces accumulators by addition. `black_box` hides their origin: otherwise the compiler
/// accumulates in pairs of lanes, the shape of the reduction, instead of whole registers.
#[inline(always)]
fn fold_sums(lanes: [f32; LANES]) -> f32 {
    fold(std::hint::black_box(lanes), |a, b| a + b)
}

/// Maximum, -inf if empty. NaN is ignored here; it reaches the softmax denominator.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(value, *lane);
        }
    }
    rest.iter().fold(fold(lanes, larger), |largest, &value| larger(value, largest))
}

/// Tree reduction: 4 dependent steps instead of 15.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// `e^x` within 2 ulp for `x` from -80 to 88, and 0 below: a softmax divides it by a sum, and what is
/// smaller than 2^-126 then takes an Intel processor a hundred cycles in every product. Free of
/// branches, so that loops over it vectorize.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Range reduction e^x = 2^k e^r with |r| <= ln 2 / 2 (Cody-Waite); adding and subtracting ROUND
    // rounds to an integer. Then the Taylor polynomial of degree 6.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let k = rounded - ROUND;
    let r = k.mul_add(-LN2_LOW, k.mul_add(-LN2_HIGH, x));
    let mut series = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = r.mul_add(series, coefficient);
    }
    // The low bits of `rounded` are the integer k.
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    // NaN stays NaN.
    if x < -80.0 { 0.0 } else { series * f32::from_bits(exponent << 23) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;

    dispatch! {
        fn exps(x: &[f32], to: &mut [f32]) {
            for (x, to) in x.iter().zip(to) {
                *to = exp(*x);
            }
        }
    }

    dispatch! {
        fn sums(a: &[f32], b: &[f32]) -> [f32; 3] {
            [sum(a, |value| value), sum_pairs(a, b, |a, b| a * b), max(a)]
        }
    }

    #[test]
    fn exponentials() {
        let x: Vec<f32> = (-80_000..88_000).map(|i| i as f32 / 1000.0).collect();
        under_each(|isa| {
            let mut found = vec![f32::NAN; x.len()];
            exps(&x, &mut found);
            for (&x, &found) in x.iter().zip(&found) {
                let expected = f64::from(x).exp();
                let error = (f64::from(found) - expected).abs() / expected;
                assert!(error < 3e-7, "{isa:?} {x}: {error}");
            }
        });
        assert!(exp(f32::NAN).is_nan());
        for below in [f32::NEG_INFINITY, f32::MIN, -1e30, -87.4, -80.1] {
            assert_eq!(exp(below), 0.0, "{below}");
        }
    }

    /// Of whole numbers, whose sums are exact in any order.
    #[test]
    fn reductions() {
        for n in 0..70 {
            let a: Vec<f32> = (0..n).map(|i| ((i * 7) % 11) as f32 - 14.0).collect();
            let b: Vec<f32> = (0..n).map(|i| ((i * 5) % 13) as f32 - 4.0).collect();
            let expected = [
                a.iter().sum(),
                a.iter().zip(&b).map(|(a, b)| a * b).sum(),
                a.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            ];
            under_each(|isa| assert_eq!(sums(&a, &b), expected, "{isa:?} {n}"));
        }
    }

    /// Wherever it stands, also among the last values that fill no register.
    #[test]
    fn maxima() {
        for n in 1..40 {
            for at in 0..n {
                let mut values = vec![-3.0; n];
                values[at] = -1.0;
                values[(at + n / 2) % n] = if n > 1 { f32::NAN } else { -1.0 };
                values[at] = -1.0;
                assert_eq!(max(&values), -1.0, "{at} of {n}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows of equal length")]
    fn pairs_of_other_lengths() {
        sum_pairs(&[1.0f32], &[1.0f32, 2.0], |a, b| a * b);
    }
}
