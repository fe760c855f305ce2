use super::*;
use crate::element::Bf16;
use crate::isa::tests::under_each;
use crate::rng::Rng;
use proptest::prelude::*;

fn values(n: usize, stream: u64, size: f64) -> Vec<f32> {
    let mut rng = Rng::new(stream, [0; 3]);
    (0..n).map(|_| (rng.normal() * size) as f32).collect()
}

/// Parameters in one vector: gamma, beta, fc1 weight and bias, fc2 weight and bias.
struct Parameters {
    values: Vec<f32>,
    width: usize,
    hidden: usize,
    activation: Activation,
}

impl Parameters {
    fn new(width: usize, hidden: usize, activation: Activation) -> Self {
        let mut all = values(width, 1, 0.3);
        all.iter_mut().for_each(|gamma| *gamma += 1.0);
        all.extend(values(width, 2, 0.3));
        all.extend(values(hidden * width, 3, (width as f64).powf(-0.5)));
        all.extend(values(hidden, 4, 0.3));
        all.extend(values(hidden * width, 5, (hidden as f64).powf(-0.5)));
        all.extend(values(width, 6, 0.3));
        Self { values: all, width, hidden, activation }
    }

    fn cut<'a, T>(&self, values: &'a [T]) -> [&'a [T]; 6] {
        let (width, hidden) = (self.width, self.hidden);
        let mut rest = values;
        [width, width, hidden * width, hidden, hidden * width, width].map(|n| {
            let (piece, tail) = rest.split_at(n);
            rest = tail;
            piece
        })
    }

    fn mlp(&self) -> Mlp<'_> {
        let [gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias] = self.cut(&self.values);
        let (eps, activation) = (EPS as f32, self.activation);
        Mlp { gamma, beta, eps, fc1_weight, fc1_bias, activation, fc2_weight, fc2_bias }
    }
}

const EPS: f64 = 0.05;

/// `sum(dy * y)` by the definition, in f64.
fn definition(x: &[f64], parameters: &Parameters, all: &[f64], scales: &[f32], dy: &[f32]) -> f64 {
    let width = parameters.width;
    let [gamma, beta, w1, b1, w2, b2] = parameters.cut(all);
    let mut total = 0.0;
    for ((x, dy), &scale) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(scales) {
        let mean = x.iter().sum::<f64>() / width as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let z: Vec<f64> = (0..width)
            .map(|i| (x[i] - mean) / (variance + EPS).sqrt() * gamma[i] + beta[i])
            .collect();
        let hidden: Vec<f64> = w1
            .chunks_exact(width)
            .zip(b1)
            .map(|(w, b)| {
                let h = w.iter().zip(&z).map(|(w, z)| w * z).sum::<f64>() + b;
                match parameters.activation {
                    Activation::None => h,
                    Activation::Gelu => h * normal_cdf(h),
                    Activation::QuickGelu => h / (1.0 + (-1.702 * h).exp()),
                }
            })
            .collect();
        for (i, (w, b)) in w2.chunks_exact(parameters.hidden).zip(b2).enumerate() {
            let branch = w.iter().zip(&hidden).map(|(w, h)| w * h).sum::<f64>() + b;
            total += (x[i] + f64::from(scale) * branch) * f64::from(dy[i]);
        }
    }
    total
}

/// By the series of the error function.
fn normal_cdf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= x * x / f64::from(2 * n + 1);
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Compares the branch and all its gradients with the definition and its differences.
fn check<T: Element>(
    images: &[usize],
    scales: &[f32],
    width: usize,
    hidden: usize,
    activation: Activation,
    within: f64,
) {
    let parameters = Parameters::new(width, hidden, activation);
    let rows: usize = images.iter().sum();
    let (x, dy) = (values(rows * width, 7, 1.0), values(rows * width, 8, 1.0));
    let row_scales: Vec<f32> =
        images.iter().zip(scales).flat_map(|(&n, &s)| std::iter::repeat_n(s, n)).collect();
    let sample_scales = SampleScales { seq_lens: images, scales: Some(scales) };
    let (mut y, mut again) = (x.clone(), x.clone());
    let (mlp, packed) = (parameters.mlp(), parameters.mlp().pack_weights::<T>());
    let saved = forward::<T>(&mut y, &mlp, &packed, &sample_scales, true);
    assert!(forward::<T>(&mut again, &mlp, &packed, &sample_scales, false).is_none());
    assert_eq!(y, again);
    let (x64, all64) = (wide(&x), wide(&parameters.values));
    let found: f64 = y.iter().zip(&dy).map(|(y, dy)| f64::from(y * dy)).sum();
    let expected = definition(&x64, &parameters, &all64, &row_scales, &dy);
    let size = (x.len() as f64).sqrt();
    assert!((found - expected).abs() < within * size, "{found} {expected}");

    let mut dx = dy.clone();
    let gradients = backward(saved.unwrap(), &parameters.mlp(), &sample_scales, &mut dx);
    let difference = |at: &mut dyn FnMut(f64) -> f64| (at(1e-5) - at(-1e-5)) / 2e-5;
    for i in (0..x.len()).step_by(1 + x.len() / 20) {
        let expected = difference(&mut |h| {
            let mut moved = x64.clone();
            moved[i] += h;
            definition(&moved, &parameters, &all64, &row_scales, &dy)
        });
        assert!((f64::from(dx[i]) - expected).abs() < within, "x {i}: {} {expected}", dx[i]);
    }
    let Gradients { gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias } = gradients;
    let gradients = [gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias].concat();
    for i in (0..gradients.len()).step_by(1 + gradients.len() / 40) {
        let expected = difference(&mut |h| {
            let mut moved = all64.clone();
            moved[i] += h;
            definition(&x64, &parameters, &moved, &row_scales, &dy)
        });
        let error = (f64::from(gradients[i]) - expected).abs();
        assert!(error < within * (rows as f64).sqrt(), "{i}: {} {expected}", gradients[i]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn branch_and_gradients(
        images in proptest::collection::vec(1usize..30, 1..6),
        width in 2usize..40,
        hidden in 1usize..70,
    ) {
        let scales: Vec<f32> = (0..images.len()).map(|i| [1.0, 0.0, 1.25][i % 3]).collect();
        under_each(|_| {
            for activation in [Activation::None, Activation::Gelu, Activation::QuickGelu] {
                check::<f32>(&images, &scales, width, hidden, activation, 2e-4);
                check::<Bf16>(&images, &scales, width, hidden, activation, 0.1);
            }
        });
    }
}

#[test]
fn all_images_dropped() {
    under_each(|_| check::<f32>(&[3, 4], &[0.0, 0.0], 8, 16, Activation::Gelu, 1e-5));
}

/// More rows than go through the products at a time.
#[test]
fn several_bands() {
    let (images, scales) = ([3100, 3100, 900, 2], [1.0, 0.0, 1.25, 1.0]);
    under_each(|_| check::<f32>(&images, &scales, 3, 5, Activation::QuickGelu, 2e-4));
}
