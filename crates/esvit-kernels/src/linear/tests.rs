use super::*;
use crate::element::Bf16;
use crate::isa::tests::under_each;
use crate::testing::{add_outer, assert_near, cdf, normal, rounded, times, times_transposed, wide};
use proptest::prelude::*;

/// The activation in f64.
fn act(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Gelu => x * cdf(x),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
    }
}

/// Compares output and all gradients with the definition in f64.
fn check<T: Element>(rows: usize, inputs: usize, outputs: usize, by: Activation, within: f64) {
    let what = |name| format!("{name}: {} {rows} x {inputs} x {outputs} {by:?}", T::NAME);
    let (x, weight) = (normal(rows * inputs, 1), normal(outputs * inputs, 2));
    let (bias, dy) = (normal(outputs, 3), normal(rows * outputs, 4));
    let (x64, w64, dy64) = (rounded::<T>(&x), rounded::<T>(&weight), rounded::<T>(&dy));
    let active: Vec<f64> = x64.iter().map(|&x| act(by, x)).collect();
    let product = active.chunks_exact(inputs).flat_map(|row| times(&w64, row));
    let biased = product.zip(wide(&bias).into_iter().cycle()).map(|(y, b)| y + b);
    let y64: Vec<f64> = biased.collect();

    let (y, saved) = forward::<T>(&x, inputs, by, &weight, Some(&bias), true);
    assert_near(&what("y"), &y, &y64, within);
    assert_eq!(y, forward::<T>(&x, inputs, by, &weight, Some(&bias), false).0);
    let without = forward::<T>(&x, inputs, by, &weight, None, false).0;
    let added = without.iter().zip(bias.iter().cycle()).map(|(y, b)| y + b);
    assert_near(&what("without bias"), &added.collect::<Vec<f32>>(), &y64, within);

    let saved = saved.unwrap();
    let found = backward(saved.clone(), inputs, by, &weight, &dy, true);
    let without = backward(saved, inputs, by, &weight, &dy, false);
    assert_eq!((&found.weight, &found.bias), (&without.weight, &without.bias));
    assert!(without.x.is_none());
    let slope = |x: f64| (act(by, x + 1e-5) - act(by, x - 1e-5)) / 2e-5;
    let dactive = dy64.chunks_exact(outputs).flat_map(|row| times_transposed(&w64, row));
    let dx: Vec<f64> = dactive.zip(&x64).map(|(dactive, &x)| dactive * slope(x)).collect();
    let (mut dweight, mut dbias) = (vec![0.0; outputs * inputs], vec![0.0; outputs]);
    add_outer(&mut dweight, &dy64, &active, inputs);
    add_outer(&mut dbias, &dy64, &vec![1.0; rows], 1);
    assert_near(&what("dx"), &found.x.unwrap(), &dx, within);
    assert_near(&what("dweight"), &found.weight, &dweight, within);
    assert_near(&what("dbias"), &found.bias, &dbias, within);
}

fn check_all(rows: usize, inputs: usize, outputs: usize) {
    for activation in [Activation::None, Activation::Gelu, Activation::QuickGelu] {
        check::<f32>(rows, inputs, outputs, activation, 2e-6);
        check::<Bf16>(rows, inputs, outputs, activation, 5e-3);
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
