use super::*;
use crate::element::Bf16;
use crate::isa::tests::under_each;
use crate::testing::{
    add_outer, assert_gradient, assert_near, assert_near_for, cdf, dot, normal, times,
    times_transposed, wide, xhat, xhat_backward,
};
use proptest::prelude::*;

const EPS: f64 = 0.05;

/// Input and parameters in one vector: x, gamma, beta, fc1 weight and bias, fc2 weight and bias.
struct Case {
    seq_lens: Vec<usize>,
    scales: Vec<f32>,
    rows: usize,
    width: usize,
    hidden: usize,
    activation: Activation,
    values: Vec<f32>,
}

impl Case {
    fn new(
        seq_lens: &[usize],
        scales: &[f32],
        width: usize,
        hidden: usize,
        activation: Activation,
    ) -> Self {
        let rows: usize = seq_lens.iter().sum();
        let scaled = |n, stream, scale: f64| {
            normal(n, stream).into_iter().map(move |value| value * scale as f32)
        };
        let values = (normal(rows * width, 7).into_iter())
            .chain(scaled(width, 1, 0.3).map(|gamma| gamma + 1.0))
            .chain(scaled(width, 2, 0.3))
            .chain(scaled(hidden * width, 3, (width as f64).powf(-0.5)))
            .chain(scaled(hidden, 4, 0.3))
            .chain(scaled(hidden * width, 5, (hidden as f64).powf(-0.5)))
            .chain(scaled(width, 6, 0.3));
        let values = values.collect();
        let (seq_lens, scales) = (seq_lens.to_vec(), scales.to_vec());
        Self { seq_lens, scales, rows, width, hidden, activation, values }
    }

    fn split<'a, T>(&self, values: &'a [T]) -> [&'a [T]; 7] {
        let (width, hidden) = (self.width, self.hidden);
        let mut rest = values;
        [self.rows * width, width, width, hidden * width, hidden, hidden * width, width].map(|n| {
            let (piece, tail) = rest.split_at(n);
            rest = tail;
            piece
        })
    }

    fn row_scales(&self) -> impl Iterator<Item = f64> {
        let images = self.seq_lens.iter().zip(&self.scales);
        images.flat_map(|(&n, &scale)| std::iter::repeat_n(f64::from(scale), n))
    }

    fn act(&self, x: f64) -> f64 {
        match self.activation {
            Activation::None => x,
            Activation::Gelu => x * cdf(x),
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        }
    }

    /// `norm(x)` and the pre-activation of one row.
    fn hidden_row(&self, x: &[f64], [gamma, beta, w1, b1]: [&[f64]; 4]) -> [Vec<f64>; 2] {
        let affine = xhat(x, EPS).into_iter().zip(gamma).zip(beta);
        let normed: Vec<f64> = affine.map(|((xhat, gamma), beta)| xhat * gamma + beta).collect();
        let hidden = times(w1, &normed).iter().zip(b1).map(|(h, b)| h + b).collect();
        [normed, hidden]
    }

    /// The output by the definition.
    fn forward(&self, values: &[f64]) -> Vec<f64> {
        let [x, gamma, beta, w1, b1, w2, b2] = self.split(values);
        let rows = x.chunks_exact(self.width).zip(self.row_scales()).flat_map(|(x, scale)| {
            let [_, hidden] = self.hidden_row(x, [gamma, beta, w1, b1]);
            let active: Vec<f64> = hidden.into_iter().map(|h| self.act(h)).collect();
            let branch = times(w2, &active);
            let sums = x.iter().zip(branch).zip(b2);
            sums.map(|((x, branch), b)| x + scale * (branch + b)).collect::<Vec<f64>>()
        });
        rows.collect()
    }

    /// Gradients of all values from that of the output. With `f64::abs` as `term` the terms of sums are
    /// taken without their signs, which gives the sizes that rounding is relative to; else it is the
    /// identity.
    fn backward(&self, values: &[f64], dy: &[f64], term: fn(f64) -> f64) -> Vec<f64> {
        let width = self.width;
        let [x, gamma, beta, w1, b1, w2, _] = self.split(values);
        let [mut dx, mut dgamma, mut dbeta, mut dw1, mut db1, mut dw2, mut db2] =
            self.split(values).map(|values| vec![0.0; values.len()]);
        let terms = |values: &[f64]| values.iter().map(|&v| term(v)).collect::<Vec<f64>>();
        let (w1_terms, w2_terms) = (terms(w1), terms(w2));
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(self.row_scales());
        for (((x, dy), scale), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let [normed, hidden] = self.hidden_row(x, [gamma, beta, w1, b1]);
            let active: Vec<f64> = hidden.iter().map(|&h| term(self.act(h))).collect();
            let dbranch: Vec<f64> = dy.iter().map(|dy| term(dy * scale)).collect();
            let slope = |h: f64| term((self.act(h + 1e-5) - self.act(h - 1e-5)) / 2e-5);
            let dactive = times_transposed(&w2_terms, &dbranch);
            let dhidden: Vec<f64> =
                dactive.iter().zip(&hidden).map(|(d, &h)| d * slope(h)).collect();
            let dnormed = times_transposed(&w1_terms, &dhidden);
            add_outer(&mut dw2, &dbranch, &active, self.hidden);
            add_outer(&mut dw1, &dhidden, &terms(&normed), width);
            add_outer(&mut db2, &dbranch, &[1.0], 1);
            add_outer(&mut db1, &dhidden, &[1.0], 1);
            add_outer(&mut dbeta, &dnormed, &[1.0], 1);
            let xhat = terms(&xhat(x, EPS));
            (0..width).for_each(|i| dgamma[i] += dnormed[i] * xhat[i]);
            let dxhat: Vec<f64> = dnormed.iter().zip(gamma).map(|(d, gamma)| d * gamma).collect();
            let through = xhat_backward(x, EPS, &dxhat);
            (0..width).for_each(|i| dx[i] = dy[i] + through[i]);
        }
        [dx, dgamma, dbeta, dw1, db1, dw2, db2].concat()
    }

    /// Compares the branch and all its gradients with the definition.
    fn check<T: Element>(&self, within: f64) {
        let name = |name| format!("{name}: {} {:?}", T::NAME, self.activation);
        let [x, gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias] = self.split(&self.values);
        let (eps, activation) = (EPS as f32, self.activation);
        let mlp = Mlp { gamma, beta, eps, fc1_weight, fc1_bias, activation, fc2_weight, fc2_bias };
        let sample_scales = SampleScales { seq_lens: &self.seq_lens, scales: Some(&self.scales) };
        let packed = mlp.pack_weights::<T>();
        let (mut y, mut again) = (x.to_vec(), x.to_vec());
        let saved = forward::<T>(&mut y, &mlp, &packed, &sample_scales, true);
        assert!(forward::<T>(&mut again, &mlp, &packed, &sample_scales, false).is_none());
        assert_eq!(y, again);
        let values = wide(&self.values);
        assert_near(&name("y"), &y, &self.forward(&values), within);

        let mut dx = normal(x.len(), 8);
        let expected = self.backward(&values, &wide(&dx), |term| term);
        let sizes = self.backward(&values, &wide(&dx), f64::abs);
        let gradients = backward(saved.unwrap(), &mlp, &sample_scales, &mut dx);
        let Gradients { gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias } = gradients;
        let found = [dx, gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias];
        let names = ["x", "gamma", "beta", "fc1 weight", "fc1 bias", "fc2 weight", "fc2 bias"];
        for (i, found) in found.iter().enumerate() {
            let (expected, sizes) = (self.split(&expected)[i], self.split(&sizes)[i]);
            assert_near_for(&name(names[i]), found, expected, sizes, within);
        }
    }
}

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Gelu, Activation::QuickGelu];

#[test]
fn gradients_of_the_definition() {
    for activation in ACTIVATIONS {
        let case = Case::new(&[3, 2, 4], &[1.25, 0.0, 0.5], 5, 7, activation);
        let (values, dy) = (wide(&case.values), wide(&normal(9 * 5, 8)));
        let loss = |values: &[f64]| dot(&case.forward(values), &dy);
        assert_gradient(loss, &values, &case.backward(&values, &dy, |term| term));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn branch_and_gradients(
        seq_lens in proptest::collection::vec(1usize..30, 1..6),
        // The norm of two values is -1 and 1: gradients cancel, and rounding to bf16 is left.
        width in 3usize..40,
        hidden in 1usize..70,
    ) {
        let scales: Vec<f32> = (0..seq_lens.len()).map(|i| [1.0, 0.0, 1.25][i % 3]).collect();
        under_each(|_| {
            for activation in ACTIVATIONS {
                let case = Case::new(&seq_lens, &scales, width, hidden, activation);
                case.check::<f32>(1e-5);
                case.check::<Bf16>(0.012);
            }
        });
    }
}

#[test]
fn all_images_dropped() {
    let case = Case::new(&[3, 4], &[0.0, 0.0], 8, 16, Activation::Gelu);
    under_each(|_| case.check::<f32>(1e-6));
}

/// More rows than go through the GEMMs of backward together.
#[test]
fn several_bands() {
    let case =
        Case::new(&[5100, 3100, 1100, 2], &[1.0, 0.0, 1.25, 1.0], 3, 5, Activation::QuickGelu);
    let kept = case.row_scales().filter(|&scale| scale != 0.0).count();
    assert!(kept > BAND_ROWS, "{kept} rows are one band");
    under_each(|_| case.check::<f32>(1e-5));
}
