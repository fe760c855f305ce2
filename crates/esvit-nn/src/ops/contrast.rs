//! InfoNCE: every query tells its positive from negatives that all queries share.

use esvit_kernels::{linear, optimizer};
use rayon::prelude::*;

use super::Activation;
use super::cpu::{made, values, values_mut};
use super::prelude::*;
use super::prototypes::EXPONENTIALS_BYTES;

/// The mean over rows of `logsumexp([q.p, q.n_1, .. q.n_K] / T) - q.p / T`, a single value `[1]`:
/// `queries` and `positives` are `[rows, D]`, `negatives` are `[K, D]`. Only queries get a gradient.
///
/// The logits `[rows, K]` are made some rows at a time, in f32.
///
/// Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding"; He et
/// al., "Momentum Contrast" (CVPR 2020), equation 1.
///
/// # Panics
/// When the widths differ, or there are no rows or no negatives.
pub fn info_nce(queries: Tensor, positives: Tensor, negatives: Tensor, temperature: f64) -> Tensor {
    let row_bytes = size_of::<f32>() * negatives.shape()[0].max(1);
    let at_a_time = (EXPONENTIALS_BYTES / row_bytes).max(1);
    let operation = InfoNce { temperature, at_a_time };
    apply(operation, [queries, positives.detach(), negatives.detach()])
}

#[derive(Debug)]
struct InfoNce {
    temperature: f64,
    /// Rows whose logits are made at a time.
    at_a_time: usize,
}

impl InfoNce {
    /// The loss of a query, whose products with all negatives become their shares in the softmax, and
    /// the share of its positive.
    fn row(&self, query: &[f32], positive: &[f32], products: &mut [f32]) -> (f64, f64) {
        let pairs = query.iter().zip(positive);
        let own = pairs.map(|(q, p)| f64::from(q * p)).sum::<f64>() / self.temperature;
        let largest = products.iter().fold(f32::NEG_INFINITY, |largest, &x| largest.max(x));
        let largest = own.max(f64::from(largest) / self.temperature);
        let (scale, shift) = ((1.0 / self.temperature) as f32, largest as f32);
        let of_own = (own - largest).exp();
        let mut sum = of_own;
        for product in products.iter_mut() {
            *product = (*product * scale - shift).exp();
            sum += f64::from(*product);
        }
        let share = (1.0 / sum) as f32;
        products.iter_mut().for_each(|product| *product *= share);
        (sum.ln() + largest - own, of_own / sum)
    }
}

/// `a b^T` of `a [.., k]` and `b [.., k]`.
fn products(a: &[f32], b: &[f32], k: usize) -> Vec<f32> {
    linear::forward::<f32>(a, k, Activation::None, b, None, false).0
}

impl Operation for InfoNce {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let [rows, width] = inputs[0].dims();
        let [count, of_negatives] = inputs[2].dims();
        assert_eq!((inputs[1], of_negatives), (inputs[0], width), "queries, positives, negatives");
        assert!(rows > 0 && count > 0, "{rows} queries and {count} negatives");
        [1].into()
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let ([rows, width], [count, _]) = (inputs[0].dims(), inputs[2].dims());
        Cost::products(rows * width * count).saving(rows * width, Precision::F32)
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let [rows, width] = inputs[0].dims();
        let [queries, positives, negatives] = [0, 1, 2].map(|input| values(&inputs[input]));
        let count = negatives.len() / width;
        let transposed = save.then(|| inputs[2].clone().transpose());
        let part = self.at_a_time * width;
        let mut gradient = Vec::with_capacity(if save { rows * width } else { 0 });
        let mut sum = 0.0;
        for (queries, positives) in queries.chunks(part).zip(positives.chunks(part)) {
            let mut logits = products(queries, negatives, width);
            let pairs = queries.par_chunks(width).zip(positives.par_chunks(width));
            let found: Vec<(f64, f64)> = (logits.par_chunks_mut(count).zip(pairs))
                .map(|(logits, (query, positive))| self.row(query, positive, logits))
                .collect();
            sum += found.iter().map(|(loss, _)| loss).sum::<f64>();
            let Some(transposed) = &transposed else { continue };
            // The loss is the root of the graph, so its gradients are computed in the forward pass.
            let mut of_queries = products(&logits, values(transposed), count);
            let scale = (1.0 / (self.temperature * rows as f64)) as f32;
            let of_rows = of_queries.chunks_exact_mut(width).zip(positives.chunks_exact(width));
            for ((gradient, positive), (_, share)) in of_rows.zip(found) {
                let pull = (share - 1.0) as f32;
                for (gradient, positive) in gradient.iter_mut().zip(positive) {
                    *gradient = (*gradient + pull * positive) * scale;
                }
            }
            gradient.extend(of_queries);
        }
        let saved = save.then(|| Saved::new(made(gradient, [rows, width])));
        (made(vec![(sum / rows as f64) as f32], [1]), saved)
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let upstream = values(&pass.gradient)[0];
        let mut gradient: Tensor = pass.saved.take();
        if upstream != 1.0 {
            optimizer::scale(values_mut(&mut gradient), upstream);
        }
        vec![Some(gradient)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::tape::Tape;

    fn rows(count: usize, width: usize, step: usize) -> Tensor {
        let values = (0..count * width).map(|i| ((i * i * step) % 13) as f32 * 0.2 - 1.1);
        Tensor::new(values.collect(), [count, width], &Device::Cpu)
    }

    /// However many rows are at hand at a time, loss and gradient are the same; that of a multiple is the multiple.
    #[test]
    fn rows_at_a_time() {
        let of = |at_a_time: usize, factor: f64| {
            let tape = Tape::new();
            let queries = tape.watch(rows(7, 3, 1));
            let operation = InfoNce { temperature: 0.3, at_a_time };
            let loss = apply(operation, [queries.clone(), rows(7, 3, 2), rows(5, 3, 3)]);
            let gradient = tape.backward(&(loss.clone() * factor)).of(&queries);
            let gradient = gradient.map(|gradient| gradient.to_vec::<f32>()).unwrap_or_default();
            let once = gradient.iter().map(|value| value / factor as f32).collect();
            [loss.to_vec::<f32>(), once].concat()
        };
        let expected = of(7, 1.0);
        assert_eq!(expected.len(), 1 + 7 * 3);
        for at_a_time in [1, 3, 100] {
            for (found, expected) in of(at_a_time, 2.0).iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-6, "{at_a_time}: {found} {expected}");
            }
        }
    }

    /// Logits of hundreds, as of features of no unit length, neither overflow nor vanish.
    #[test]
    fn large_logits_stay_finite() {
        let tape = Tape::new();
        let queries = tape.watch(Tensor::full(40f32, [2, 2], &Device::Cpu));
        let [same, opposite] =
            [40f32, -40.0].map(|value| Tensor::full(value, [2, 2], &Device::Cpu));
        let loss = info_nce(queries.clone(), opposite.clone(), same, 0.01);
        // The distance of both products over the temperature, and two negatives.
        let expected = 2.0 * 3200.0 / 0.01 + 2f64.ln();
        assert!((f64::from(loss.item()) / expected - 1.0).abs() < 1e-6, "{loss:?}");
        let gradient = tape.backward(&loss).of(&queries).map(|g| g.to_vec::<f32>());
        assert!(gradient.is_some_and(|g| g.iter().all(|value| value.is_finite())));
        let none = info_nce(opposite.clone(), opposite.clone(), -opposite, 0.01);
        assert!(none.item().abs() < 1e-6, "{none:?}");
    }
}
