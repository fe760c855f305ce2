//! A linear classifier.

use esvit_kernels::activation::Activation;
use esvit_kernels::linear::forward;

use super::Subset;

/// Rows whose logits are computed at a time.
const CHUNK: usize = 4096;

/// `logits = x weight^T + bias`, on the feature columns from `first` on.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearClassifier {
    /// First feature column used.
    pub first: usize,
    /// `[outputs, columns]`.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Vec<f32>,
}

impl LinearClassifier {
    /// Logits of all rows, `[rows, outputs]`.
    pub fn logits(&self, subset: &Subset<'_>) -> Vec<f32> {
        let columns = subset.examples.width - self.first;
        let mut logits = Vec::with_capacity(subset.len() * self.bias.len());
        for rows in subset.rows.chunks(CHUNK) {
            let x = subset.gather(&subset.examples.values, rows, self.first);
            let (act, bias) = (Activation::None, Some(&self.bias[..]));
            logits.extend(forward::<f32>(&x, columns, act, &self.weight, bias, false).0);
        }
        logits
    }
}
