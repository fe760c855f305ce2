use super::*;
use crate::element::Bf16;
use crate::isa::tests::under_each;
use crate::rng::Rng;
use proptest::prelude::*;

fn values(n: usize, stream: u64) -> Vec<f32> {
    let mut rng = Rng::new(stream, [0; 3]);
    (0..n).map(|_| rng.uniform_in(-1.0, 1.0) as f32).collect()
}

fn gelu(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        term *= x * x / f64::from(2 * n + 1);
        sum += term;
    }
    x * (0.5 + sum * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt())
}

/// Compares values and gradients with the definition and differences of it, all in one vector:
/// input, weight, bias.
fn check<T: Element>(rows: usize, inputs: usize, outputs: usize, act: Activation, within: f64) {
    let (x, weight) = (values(rows * inputs, 1), values(outputs * inputs, 2));
    let (bias, dy) = (values(outputs, 3), values(rows * outputs, 4));
    let all: Vec<f64> = [&x[..], &weight, &bias].concat().into_iter().map(f64::from).collect();
    let definition = |all: &[f64]| -> Vec<f64> {
        let (x, rest) = all.split_at(rows * inputs);
        let (weight, bias) = rest.split_at(outputs * inputs);
        let activate = |x: f64| match act {
            Activation::None => x,
            Activation::Gelu => gelu(x),
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        };
        let output = |at: usize| -> f64 {
            let (r, o) = (at / outputs, at % outputs);
            let terms = (0..inputs).map(|i| activate(x[r * inputs + i]) * weight[o * inputs + i]);
            terms.sum::<f64>() + bias[o]
        };
        (0..rows * outputs).map(output).collect()
    };
    let (y, saved) = forward::<T>(&x, inputs, act, &weight, Some(&bias), true);
    let size = (inputs as f64).sqrt().max(1.0);
    for (found, expected) in y.iter().zip(definition(&all)) {
        assert!((f64::from(*found) - expected).abs() < within * size, "{found} {expected}");
    }
    assert_eq!(y, forward::<T>(&x, inputs, act, &weight, Some(&bias), false).0);

    let saved = saved.unwrap();
    let gradients = backward(saved.clone(), inputs, act, &weight, &dy, true);
    let without = backward(saved, inputs, act, &weight, &dy, false);
    assert_eq!((&gradients.weight, &gradients.bias), (&without.weight, &without.bias));
    assert!(without.x.is_none());
    let found = [gradients.x.unwrap(), gradients.weight, gradients.bias].concat();
    for at in (0..all.len()).step_by(1 + all.len() / 30) {
        let moved = |h: f64| -> f64 {
            let mut all = all.clone();
            all[at] += h;
            definition(&all).iter().zip(&dy).map(|(y, &g)| y * f64::from(g)).sum()
        };
        let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        let size = (rows.max(outputs) as f64).sqrt();
        assert!((f64::from(found[at]) - expected).abs() < within * size, "{at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn layer_and_gradients(rows in 1usize..70, inputs in 1usize..40, outputs in 1usize..70) {
        under_each(|_| {
            for activation in [Activation::None, Activation::Gelu, Activation::QuickGelu] {
                check::<f32>(rows, inputs, outputs, activation, 1e-5);
                check::<Bf16>(rows, inputs, outputs, activation, 0.02);
            }
        });
    }
}
