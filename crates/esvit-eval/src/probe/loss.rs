//! Softmax cross-entropy of classes, and sigmoid cross-entropy of labels.

use rayon::prelude::*;

use super::Targets;

/// Replaces `logits [rows, heads * outputs]` by the gradient of the mean loss, and returns the mean
/// loss summed over heads. `rows` are the indices of the targets.
///
/// Classes: `ln sum exp(z) - z_class`. Labels: the mean over labels of `ln(1 + exp(z)) - y z`.
pub(super) fn replace_by_gradient(logits: &mut [f32], targets: &Targets, rows: &[usize]) -> f64 {
    if rows.is_empty() {
        return 0.0;
    }
    let width = logits.len() / rows.len();
    let outputs = targets.outputs();
    let losses: Vec<f64> = logits
        .par_chunks_mut(width)
        .zip(rows)
        .map(|(logits, &row)| {
            let heads = logits.chunks_exact_mut(outputs);
            match targets {
                Targets::Classes { of, .. } => {
                    let scale = 1.0 / rows.len() as f32;
                    heads.map(|head| softmax(head, of[row] as usize, scale)).sum()
                }
                Targets::Labels { of, count } => {
                    let scale = 1.0 / (rows.len() * count) as f32;
                    heads.map(|head| sigmoid(head, &of[row], scale)).sum::<f64>() / *count as f64
                }
            }
        })
        .collect();
    losses.iter().sum::<f64>() / rows.len() as f64
}

/// Replaces logits by `scale (softmax(z) - y)` and returns the loss; classes without an output
/// contribute nothing.
fn softmax(logits: &mut [f32], class: usize, scale: f32) -> f64 {
    if class >= logits.len() {
        logits.fill(0.0);
        return 0.0;
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let own = logits[class] - largest;
    let mut sum = 0.0f32;
    for logit in logits.iter_mut() {
        *logit = (*logit - largest).exp();
        sum += *logit;
    }
    let by_sum = scale / sum;
    logits.iter_mut().for_each(|logit| *logit *= by_sum);
    logits[class] -= scale;
    f64::from(sum).ln() - f64::from(own)
}

/// Replaces logits by `scale (sigmoid(z) - y)` and returns the summed loss.
fn sigmoid(logits: &mut [f32], positives: &[u32], scale: f32) -> f64 {
    let of_held: f64 = positives.iter().map(|&label| f64::from(logits[label as usize])).sum();
    let mut loss = -of_held;
    for logit in logits.iter_mut() {
        let small = (-logit.abs()).exp();
        loss += f64::from(logit.max(0.0) + small.ln_1p());
        let negative = small / (1.0 + small);
        *logit = scale * if *logit >= 0.0 { 1.0 - negative } else { negative };
    }
    positives.iter().for_each(|&label| logits[label as usize] -= scale);
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central differences of the mean loss of two heads of three outputs on four rows.
    fn check(targets: &Targets) {
        let logits: Vec<f32> = (0..24).map(|i| ((i * 7 % 11) as f32 - 5.0) / 2.0).collect();
        let rows = [2, 0, 1, 1];
        let mut gradient = logits.clone();
        replace_by_gradient(&mut gradient, targets, &rows);
        for place in 0..logits.len() {
            let step = 1e-2;
            let loss = |change: f32| {
                let mut moved = logits.clone();
                moved[place] += change;
                replace_by_gradient(&mut moved, targets, &rows)
            };
            let difference = (loss(step) - loss(-step)) / f64::from(2.0 * step);
            let error = (difference - f64::from(gradient[place])).abs();
            assert!(error < 2e-5, "{place}: {difference} and {}", gradient[place]);
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        check(&Targets::Classes { of: vec![0, 2, 1], count: 3 });
        check(&Targets::Labels { of: vec![vec![], vec![0, 2], vec![1]], count: 3 });
    }

    #[test]
    fn large_logits_stay_finite() {
        let mut logits = [1e4, -1e4, 0.0];
        let loss = softmax(&mut logits, 1, 1.0);
        assert_eq!((logits, loss), ([1.0, -1.0, 0.0], 2e4));
        let mut logits = [1e4, -1e4];
        let loss = sigmoid(&mut logits, &[1], 1.0);
        assert_eq!((logits, loss), ([1.0, -1.0], 2e4));
    }
}
