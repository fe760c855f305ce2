use super::*;
use crate::element::{self, Bf16, widened};
use crate::isa::tests::under_each;
use crate::testing::{
    add_outer, assert_near_for, cdf, normal, rounded, times, times_transposed, wide,
};
use proptest::prelude::*;

/// The activation in f64.
fn act(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Gelu => x * cdf(x),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
    }
}

/// A layer in f64: output and gradients of input, weight and bias.
fn definition(
    [x, weight, bias, dy]: [&[f64]; 4],
    [inputs, outputs]: [usize; 2],
    act: impl Fn(f64) -> f64,
    slope: impl Fn(f64) -> f64,
) -> [Vec<f64>; 4] {
    let active: Vec<f64> = x.iter().map(|&x| act(x)).collect();
    let product = active.chunks_exact(inputs).flat_map(|row| times(weight, row));
    let y = product.zip(bias.iter().cycle()).map(|(y, b)| y + b).collect();
    let dactive = dy.chunks_exact(outputs).flat_map(|row| times_transposed(weight, row));
    let dx = dactive.zip(x).map(|(dactive, &x)| dactive * slope(x)).collect();
    let (mut dweight, mut dbias) = (vec![0.0; outputs * inputs], vec![0.0; outputs]);
    add_outer(&mut dweight, dy, &active, inputs);
    add_outer(&mut dbias, dy, &vec![1.0; dy.len() / outputs], 1);
    [y, dx, dweight, dbias]
}

/// Compares output and all gradients with the definition in f64.
fn check<T: Element>(rows: usize, inputs: usize, outputs: usize, by: Activation, within: f64) {
    let (x, weight) = (normal(rows * inputs, 1), normal(outputs * inputs, 2));
    let (bias, dy) = (normal(outputs, 3), normal(rows * outputs, 4));
    let values = [rounded::<T>(&x), rounded::<T>(&weight), wide(&bias), rounded::<T>(&dy)];
    let slope = |x: f64| (act(by, x + 1e-5) - act(by, x - 1e-5)) / 2e-5;
    let shape = [inputs, outputs];
    let expected = definition(values.each_ref().map(Vec::as_slice), shape, |x| act(by, x), slope);
    // The same of absolute values, without a change of what the activation gets.
    let [x64, w64, b64, dy64] = values;
    let [w64, b64, dy64] =
        [w64, b64, dy64].map(|v| v.into_iter().map(f64::abs).collect::<Vec<_>>());
    let (size, steepness) = (|x: f64| act(by, x).abs(), |x: f64| slope(x).abs());
    let sizes = definition([&x64, &w64, &b64, &dy64], shape, size, steepness);
    let near = |i: usize, name: &str, found: &[f32]| {
        let what = format!("{name}: {} {rows} x {inputs} x {outputs} {by:?}", T::NAME);
        assert_near_for(&what, found, &expected[i], &sizes[i], within);
    };

    let (y, saved) = forward::<T>(&x, inputs, by, &weight, Some(&bias), true);
    near(0, "y", &y);
    assert_eq!(y, forward::<T>(&x, inputs, by, &weight, Some(&bias), false).0);
    let without = forward::<T>(&x, inputs, by, &weight, None, false).0;
    let added = without.iter().zip(bias.iter().cycle()).map(|(y, b)| y + b);
    near(0, "without bias", &added.collect::<Vec<f32>>());

    // Rows that come in bf16 and leave in bf16 are the same, rounded.
    let packed = pack::<T>(&weight, inputs, Some(&bias));
    let stored = element::rounded(&x);
    let again = forward::<T>(&widened(&stored), inputs, by, &weight, Some(&bias), false).0;
    let (in_f32, _) = forward_packed::<T, Bf16, f32>(&stored, inputs, by, &packed, false);
    assert_eq!(in_f32[..], again);
    let (in_bf16, _) = forward_packed::<T, Bf16, Bf16>(&stored, inputs, by, &packed, false);
    assert!(in_bf16[..] == element::rounded(&again)[..], "{}", T::NAME);

    let saved = saved.unwrap();
    let found = backward(saved.clone(), inputs, by, &weight, &dy, true);
    let without = backward(saved, inputs, by, &weight, &dy, false);
    assert_eq!((&found.weight, &found.bias), (&without.weight, &without.bias));
    assert!(without.x.is_none());
    near(1, "dx", &found.x.unwrap());
    near(2, "dweight", &found.weight);
    near(3, "dbias", &found.bias);
}

/// A value rounded to bf16 is wrong by 1 / 512 of itself at most, and as much again for what its
/// activation was made of.
fn check_all(rows: usize, inputs: usize, outputs: usize) {
    for activation in [Activation::None, Activation::Gelu, Activation::QuickGelu] {
        check::<f32>(rows, inputs, outputs, activation, 1e-6);
        check::<Bf16>(rows, inputs, outputs, activation, 4e-3);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn layer_and_gradients(rows in 1usize..70, inputs in 1usize..40, outputs in 1usize..70) {
        under_each(|_| check_all(rows, inputs, outputs));
    }
}

/// Several blocks of rows, the last one shorter, and a K chunk of rows and a bit.
#[test]
fn many_rows() {
    under_each(|_| check_all(1601, 5, 19));
}
