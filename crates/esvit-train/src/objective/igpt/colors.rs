//! The layer that predicts colors, and its loss.

use esvit_nn::ops::{self, Activation};
use esvit_nn::params::{Init, ParamId, Scope};
use esvit_nn::{ForwardCtx, Params, Tensor};

use crate::objective::Health;

/// `lm_head.weight [colors, C]`, zero at the start: all colors are as likely then. There is no bias.
#[derive(Debug, Clone)]
pub struct OutputTable {
    weight: ParamId,
    /// Colors and channels.
    size: [usize; 2],
}

impl OutputTable {
    /// Registers the table of `[colors, channels]`.
    pub fn new(scope: &mut Scope<'_>, size: [usize; 2]) -> Self {
        let weight = scope.head("lm_head").param("weight", &size, Init::Zeros);
        Self { weight, size }
    }

    /// Logits `[rows, colors]` of region features `[rows, C]`.
    pub fn forward(&self, params: &Params, rows: Tensor, ctx: &ForwardCtx) -> Tensor {
        let weight = params.vector(self.weight).reshape(self.size);
        let bias = Tensor::zeros([self.size[0]], &params.device());
        ops::linear(rows, weight, bias, Activation::None, ctx.precision)
    }
}

/// What is predicted in a pass: where, which colors, and how much each counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Predicted {
    /// Rows of the pass that are predicted, in order.
    pub rows: Vec<i32>,
    /// Their colors.
    pub colors: Vec<i32>,
    /// Their weights in the loss.
    pub weights: Vec<f32>,
    /// Rows of the pass.
    all: usize,
}

impl Predicted {
    /// Adds a view with the colors `tokens` of `images` images. All are predicted, or those that are `hidden`:
    /// of every image their mean counts, and of the images the mean, times `share`.
    pub fn add(&mut self, tokens: &[i32], hidden: Option<&[bool]>, images: usize, share: f32) {
        let of_image = (tokens.len() / images.max(1)).max(1);
        for (image, colors) in tokens.chunks_exact(of_image).enumerate() {
            let first = image * of_image;
            let is_predicted = |at: &usize| hidden.is_none_or(|hidden| hidden[first + at]);
            let places: Vec<usize> = (0..of_image).filter(is_predicted).collect();
            let weight = share / (images * places.len().max(1)) as f32;
            self.rows.extend(places.iter().map(|at| (self.all + first + at) as i32));
            self.colors.extend(places.iter().map(|&at| colors[at]));
            self.weights.extend(places.iter().map(|_| weight));
        }
        self.all += tokens.len();
    }

    /// The rows that are predicted of those of the pass, `[rows, C]`.
    pub fn rows_of(&self, rows: Tensor) -> Tensor {
        if self.rows.len() == self.all { rows } else { rows.index_select(0, self.rows.clone()) }
    }
}

/// The sum of the cross-entropies of logits `[predicted, colors]`, each times its weight, in nats.
pub fn color_loss(logits: Tensor, predicted: &Predicted) -> Tensor {
    let weights = Tensor::from_vec(predicted.weights.clone(), &logits.device());
    -(logits.log_softmax(1).pick(&predicted.colors) * weights).sum()
}

/// How many colors are right, and what those of `tokens` tell alone: a loss that stays at their entropy says
/// that the network sees nothing of an image.
pub(super) fn health<'a>(
    logits: &Tensor,
    predicted: &Predicted,
    tokens: impl Iterator<Item = &'a i32>,
    colors: usize,
) -> Health {
    let best = logits.clone().detach().argmax(1).to_vec::<i32>();
    let right = best.iter().zip(&predicted.colors).filter(|(best, color)| best == color).count();
    let accuracy = 100.0 * right as f64 / best.len().max(1) as f64;
    let mut counts = vec![0usize; colors];
    tokens.for_each(|&token| counts[token as usize] += 1);
    let total = counts.iter().sum::<usize>() as f64;
    let shares = counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 / total);
    let entropy: f64 = shares.map(|share| -share * share.ln()).sum();
    let used = counts.iter().filter(|&&count| count > 0).count();
    Health {
        signals: vec![
            ("color_accuracy", accuracy),
            ("color_entropy", entropy),
            ("colors_used", used as f64),
        ],
        summary: format!(
            "{accuracy:.1} % of the colors are right, the entropy of {used} of {colors} colors is \
             {entropy:.2}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Device;

    /// Two images of three tokens, then one of two: by hand.
    #[test]
    fn what_is_predicted() {
        let mut all = Predicted::default();
        all.add(&[4, 5, 6, 7, 8, 9], None, 2, 0.5);
        all.add(&[1, 2], None, 1, 0.5);
        assert_eq!(all.rows, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(all.colors, [4, 5, 6, 7, 8, 9, 1, 2]);
        assert_eq!(all.weights, [[0.5f32 / 6.0; 6].to_vec(), vec![0.25; 2]].concat());

        let mut some = Predicted::default();
        let hidden = [true, false, true, false, true, false];
        some.add(&[4, 5, 6, 7, 8, 9], Some(&hidden), 2, 1.0);
        some.add(&[1, 2], Some(&[false, true]), 1, 1.0);
        assert_eq!(some.rows, [0, 2, 4, 7]);
        assert_eq!(some.colors, [4, 6, 8, 2]);
        // Every image counts as much, however many of its colors are hidden.
        assert_eq!(some.weights, [0.25, 0.25, 0.5, 1.0]);
        let rows = Tensor::from_vec((0..8).map(|row| row as f32).collect(), &Device::Cpu);
        let found = some.rows_of(rows.reshape([8, 1])).to_vec::<f32>();
        assert_eq!(found, [0.0, 2.0, 4.0, 7.0]);
    }

    /// ln 3 for logits that are all alike, and by the definition.
    #[test]
    fn the_loss_is_a_weighted_cross_entropy() {
        let mut predicted = Predicted::default();
        predicted.add(&[0, 2], None, 1, 1.0);
        let alike = color_loss(Tensor::zeros([2, 3], &Device::Cpu), &predicted);
        assert!((f64::from(alike.item()) - 3f64.ln()).abs() < 1e-6);
        let values = vec![1.0f32, 0.0, -1.0, 0.5, 0.25, 0.0];
        let sum = |row: [f64; 3]| row.iter().map(|value| value.exp()).sum::<f64>().ln();
        let expected = (sum([1.0, 0.0, -1.0]) - 1.0 + sum([0.5, 0.25, 0.0])) / 2.0;
        let found = color_loss(Tensor::new(values, [2, 3], &Device::Cpu), &predicted);
        assert!((f64::from(found.item()) - expected).abs() < 1e-6, "{}", found.item());
    }

    /// Two of three right, and colors of 1/2, 1/4 and 1/4.
    #[test]
    fn what_health_says() {
        let mut predicted = Predicted::default();
        predicted.add(&[0, 1, 1], None, 1, 1.0);
        let logits = vec![2.0f32, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.5, 0.0];
        let logits = Tensor::new(logits, [3, 3], &Device::Cpu);
        let found = health(&logits, &predicted, [0, 0, 1, 2].iter(), 3);
        let signal = |name| found.signal(name).unwrap();
        assert!((signal("color_accuracy") - 200.0 / 3.0).abs() < 1e-9);
        assert!((signal("color_entropy") - 1.5 * 2f64.ln()).abs() < 1e-12);
        assert_eq!(signal("colors_used"), 3.0);
    }
}
