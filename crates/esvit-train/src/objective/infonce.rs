//! Contrast: queries are to find their own keys among others (InfoNCE). With a queue it is
//! [`ops::info_nce`], among the images of a batch [`among`].
//!
//! Here is also what the health of contrastive objectives has in common.

use esvit_nn::{Device, Tensor, ops};

use super::{Collapse, Health, feature_std};

/// Mean cross-entropy `[1]` of queries `[B, D]` over keys `[N, D]`, both of unit length, at a
/// temperature: the key of query `b` is `first + b`. Keys get a gradient if they are on a tape.
pub fn among(queries: &Tensor, keys: &Tensor, first: usize, temperature: f64) -> Tensor {
    let rows = queries.shape()[0];
    let logits = queries.clone().matmul(keys.clone().transpose()) / temperature;
    -logits.log_softmax(1).pick(&own_columns(first, rows)).mean()
}

/// The columns of `rows` rows' own keys.
pub(super) fn own_columns(first: usize, rows: usize) -> Vec<i32> {
    (first..first + rows).map(|row| row as i32).collect()
}

/// Added to a logit that is not to count.
const HIDDEN: f32 = -1e9;

/// What is added to logits `[B, N]` to hide the one in column `own[b]` of each row `b`.
pub(super) fn hiding(own: &[i32], count: usize, device: &Device) -> Tensor {
    let mut values = vec![0.0; own.len() * count];
    for (row, &column) in values.chunks_exact_mut(count).zip(own) {
        row[column as usize] = HIDDEN;
    }
    Tensor::new(values, [own.len(), count], device)
}

/// Cosine similarities that are no further apart may be equal, but for rounding.
const TIE: f32 = 1e-6;

/// How well queries find their keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contrast {
    /// Queries to which their own key is more similar than every other one, in percent.
    pub accuracy: f64,
    /// Mean cosine similarity to the own key.
    pub positive: f64,
    /// Mean cosine similarity to the other keys.
    pub negative: f64,
}

impl Contrast {
    /// Of queries and their keys, both `[B, D]`, beside others `[K, D]`, all of unit length.
    pub fn with_others(queries: &Tensor, keys: &Tensor, others: &Tensor) -> Self {
        let queries = queries.clone().detach();
        let own = (queries.clone() * keys.clone().detach()).sum_dim(1);
        let products = queries.matmul(others.clone().detach().transpose());
        let negative = mean(&products);
        Self { negative, ..Self::of(&own, &products) }
    }

    /// Of queries `[B, D]` among keys `[N, D]` of unit length; the key of query `b` is `first + b`.
    pub fn among(queries: &Tensor, keys: &Tensor, first: usize) -> Self {
        let [rows, count] = [queries.shape()[0], keys.shape()[0]];
        let queries = queries.clone().detach();
        let products = queries.matmul(keys.clone().detach().transpose());
        let columns = own_columns(first, rows);
        let own = products.clone().pick(&columns).reshape([rows, 1]);
        let (all, of_own) = (mean(&products) * count as f64, mean(&own));
        let negative = (all - of_own) / (count.max(2) - 1) as f64;
        let hiding = hiding(&columns, count, &products.device());
        Self { negative, ..Self::of(&own, &(products + hiding)) }
    }

    /// `own [B, 1]` beside those of other keys, `[B, K]`. A key among equal ones is not found.
    fn of(own: &Tensor, others: &Tensor) -> Self {
        let largest = others.clone().max_dim(1).to_vec::<f32>();
        let values = own.to_vec::<f32>();
        let is_found = |(own, largest): &(&f32, &f32)| **own > **largest + TIE;
        let found = values.iter().zip(&largest).filter(is_found).count();
        let accuracy = 100.0 * found as f64 / values.len() as f64;
        Self { accuracy, positive: mean(own), negative: 0.0 }
    }
}

fn mean(values: &Tensor) -> f64 {
    f64::from(values.clone().mean().item())
}

/// Queries to which their own key is the most similar one, in percent.
pub const CONTRAST_ACCURACY: &str = "contrast_accuracy";
/// Mean cosine similarity of queries and their own keys.
pub const POSITIVE_SIMILARITY: &str = "positive_similarity";
/// Mean cosine similarity of queries and other keys.
pub const NEGATIVE_SIMILARITY: &str = "negative_similarity";
/// [`feature_std`] of the queries.
pub const EMBEDDING_STD: &str = "embedding_std";
/// Number of queries.
pub const ROWS: &str = "rows";

/// Queries whose spread is below this share of that of directions by chance count as equal.
const LEAST_STD: f64 = 0.02;
/// Queries at least of which the spread tells anything.
const LEAST_ROWS: f64 = 4.0;

/// One embedding for every image.
pub const CONSTANT: Collapse = Collapse {
    kind: "constant",
    advice: "the embeddings have collapsed: they are the same for every image\n\
             hint: lower `optim.lr`, raise `objective.momentum_teacher` if there is one, and see with \
             `esvit data preview` that the images differ",
};

/// Queries and their keys of all micro-batches of a step, of which its health is.
#[derive(Debug, Default)]
pub struct NotedPairs {
    queries: Vec<Tensor>,
    keys: Vec<Tensor>,
}

impl NotedPairs {
    /// Notes queries of a micro-batch and the key of each, both `[B, D]`.
    pub fn note(&mut self, queries: &Tensor, keys: &Tensor) {
        self.queries.push(queries.clone().detach());
        self.keys.push(keys.clone().detach());
    }

    /// Forgets those of a step that was not ended.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// The health of what was noted, beside other keys `[K, D]`. None if nothing was.
    pub fn health(&mut self, others: &Tensor) -> Option<Health> {
        let Self { queries, keys } = std::mem::take(self);
        if queries.is_empty() {
            return None;
        }
        let (queries, keys) = (Tensor::cat(queries, 0), Tensor::cat(keys, 0));
        Some(health(&queries, Some(Contrast::with_others(&queries, &keys, others))))
    }
}

/// Health of queries `[B, D]` and, where queries are told apart by keys, of that. One alone has no spread.
pub fn health(queries: &Tensor, contrast: Option<Contrast>) -> Health {
    let rows = queries.shape()[0];
    let std = (rows > 1).then(|| feature_std(queries.clone()));
    let mut signals: Vec<_> = std.map(|std| (EMBEDDING_STD, std)).into_iter().collect();
    signals.push((ROWS, rows as f64));
    let mut parts = Vec::new();
    if let Some(Contrast { accuracy, positive, negative }) = contrast {
        signals.extend([
            (CONTRAST_ACCURACY, accuracy),
            (POSITIVE_SIMILARITY, positive),
            (NEGATIVE_SIMILARITY, negative),
        ]);
        parts.push(format!(
            "contrast accuracy {accuracy:.1} %, similarity {positive:.2} to the own key and \
             {negative:.2} to others"
        ));
    }
    parts.extend(std.map(|std| format!("embedding std {std:.2}")));
    Health { signals, summary: parts.join(", ") }
}

/// Whether queries with these signals are the same for every image.
pub fn collapse(signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
    let (std, rows) = (signal(EMBEDDING_STD)?, signal(ROWS)?);
    (rows >= LEAST_ROWS && std < LEAST_STD).then_some(CONSTANT)
}

/// Rows scaled to unit length as by SimCLR and BYOL: squares of norms below 1e-12 count as 1e-12.
pub fn unit_rows(rows: Tensor) -> Tensor {
    let norms = rows.clone().square().sum_dim(1).clamp_min(1e-12).sqrt();
    rows / norms
}

/// Rows scaled to unit length as by PyTorch's `normalize`.
pub fn normalized(rows: Tensor) -> Tensor {
    ops::l2_normalize(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Tape;
    use esvit_testing::{assert_close, hash, hashed_tensor};

    const ROWS_AT_HAND: usize = 4;
    const WIDTH: usize = 5;

    fn unit(stream: u32, count: usize) -> Tensor {
        normalized(hashed_tensor(stream, [count, WIDTH]))
    }

    fn unit_f64(stream: u32, count: usize) -> Vec<Vec<f64>> {
        let row = |row: usize| {
            let row: Vec<f64> = (0..WIDTH).map(|i| hash(stream, row * WIDTH + i)).collect();
            let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
            row.iter().map(|value| value / norm).collect()
        };
        (0..count).map(row).collect()
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// Four queries among six keys, of which the third to the sixth are theirs: loss and gradients in
    /// f64.
    #[test]
    fn contrast_among_keys_by_its_definition() {
        const TEMPERATURE: f64 = 0.3;
        let (queries, keys) = (unit_f64(1, ROWS_AT_HAND), unit_f64(2, 6));
        let (mut loss, mut gradient) = (0.0, vec![0.0; ROWS_AT_HAND * WIDTH]);
        for (b, query) in queries.iter().enumerate() {
            let logits: Vec<f64> = keys.iter().map(|key| dot(query, key) / TEMPERATURE).collect();
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            loss += (sum.ln() - logits[2 + b]) / ROWS_AT_HAND as f64;
            for (k, key) in keys.iter().enumerate() {
                let share = logits[k].exp() / sum - if k == 2 + b { 1.0 } else { 0.0 };
                for i in 0..WIDTH {
                    gradient[b * WIDTH + i] += share * key[i] / TEMPERATURE / ROWS_AT_HAND as f64;
                }
            }
        }
        let tape = Tape::new();
        let leaf = tape.watch(unit(1, ROWS_AT_HAND));
        let found = among(&leaf, &unit(2, 6), 2, TEMPERATURE);
        assert_close("loss", &[found.item()], &[loss], 1e-6);
        let found = tape.backward(&found).of(&leaf).unwrap().to_vec::<f32>();
        assert_close("gradient", &found, &gradient, 1e-6);
    }

    /// Random directions of many values are as far from each other as chance has it.
    #[test]
    fn directions_by_chance() {
        let [queries, keys] = [1, 2].map(|stream| normalized(hashed_tensor(stream, [64, 2048])));
        for temperature in [0.2, 1.0] {
            let found = f64::from(among(&queries, &keys, 0, temperature).item());
            let chance = 64f64.ln();
            assert!((found / chance - 1.0).abs() < 0.03, "{found} instead of {chance}");
        }
        let spread = feature_std(queries);
        assert!((spread - 1.0).abs() < 0.02, "{spread}");
    }

    /// Queries that are nearer to their keys than to others, and some that are not.
    #[test]
    fn accuracy_and_similarities_by_hand() {
        let rows =
            |values: &[f32]| Tensor::new(values.to_vec(), [values.len() / 2, 2], &Device::Cpu);
        let queries = rows(&[1.0, 0.0, 0.0, 1.0, 0.6, 0.8, 0.0, -1.0]);
        let keys = rows(&[1.0, 0.0, 1.0, 0.0, 0.6, 0.8, 0.0, 1.0]);
        let others = rows(&[0.0, 1.0, 0.8, 0.6]);
        let found = Contrast::with_others(&queries, &keys, &others);
        // Own: 1, 0, 1, -1; the nearest of the others: 0.8, 1, 0.96, -0.6.
        let expected = [50.0, 0.25, (0.8 + 1.6 + 1.76 - 1.6) / 8.0];
        let all = |found: Contrast| [found.accuracy, found.positive, found.negative];
        for (found, expected) in all(found).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
        // Among themselves: the first two keys are one. The sums of products, by query.
        let found = Contrast::among(&queries, &keys, 0);
        let products = 2.6 + 1.8 + 3.0 - 1.8;
        // To the first query both are as near.
        let expected = [25.0, 0.25, (products - 1.0) / 12.0];
        for (found, expected) in all(found).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
    }

    /// Equal embeddings are not told apart, however their similarities are rounded.
    #[test]
    fn ties_are_misses() {
        let equal = normalized(Tensor::cat(vec![hashed_tensor(7, [1, 129]); 8], 0));
        let among = Contrast::among(&equal, &equal, 0);
        let beside = Contrast::with_others(&equal, &equal, &equal);
        for Contrast { accuracy, positive, negative } in [among, beside] {
            assert_eq!(accuracy, 0.0);
            assert!((positive - 1.0).abs() < 1e-5 && (negative - 1.0).abs() < 1e-5);
        }
        // What is apart is found.
        let queries = unit(1, 8);
        assert_eq!(Contrast::among(&queries, &queries, 0).accuracy, 100.0);
    }

    #[test]
    fn equal_embeddings_are_a_collapse() {
        let look = |queries: &Tensor| {
            let health = health(queries, None);
            collapse(&|name| health.signal(name))
        };
        assert_eq!(look(&unit(1, 8)), None);
        let equal = Tensor::ones([8, WIDTH], &Device::Cpu);
        assert_eq!(look(&equal), Some(CONSTANT));
        let nearly = equal.clone() + hashed_tensor(3, [8, WIDTH]) * 0.005;
        assert_eq!(look(&nearly), Some(CONSTANT));
        assert_eq!(look(&(equal.clone() + hashed_tensor(3, [8, WIDTH]) * 0.1)), None);
        assert_eq!(look(&equal.narrow(0, 0, 3)), None, "too few to tell");
        assert_eq!(collapse(&|_| None), None);
        assert!(CONSTANT.advice.contains("the same for every image"));
    }

    /// Those of two micro-batches are those of one.
    #[test]
    fn health_of_all_that_was_noted() {
        let [queries, keys, others] = [unit(1, 6), unit(2, 6), unit(3, 9)];
        let contrast = Contrast::with_others(&queries, &keys, &others);
        let expected = health(&queries, Some(contrast));
        let mut noted = NotedPairs::default();
        noted.note(&keys, &queries);
        noted.forget();
        for (first, count) in [(0, 1), (1, 5)] {
            let part = |rows: &Tensor| rows.clone().narrow(0, first, count);
            noted.note(&part(&queries), &part(&keys));
        }
        assert_eq!(noted.health(&others), Some(expected));
        assert_eq!(noted.health(&others), None, "they are those of one step");
    }

    #[test]
    fn one_query_has_no_spread() {
        let one = unit(1, 1);
        let found = health(&one, Some(Contrast::with_others(&one, &one, &unit(2, 3))));
        assert_eq!((found.signal(EMBEDDING_STD), found.signal(ROWS)), (None, Some(1.0)));
        assert!(found.signal(CONTRAST_ACCURACY).is_some());
        assert!(!found.summary.contains("std") && !found.summary.ends_with(", "), "{found:?}");
        let two = health(&unit(1, 2), None);
        assert!(two.signal(EMBEDDING_STD).is_some() && two.summary.starts_with("embedding std "));
    }

    /// Small rows are divided by the least norm, and the gradient of others is orthogonal to them.
    #[test]
    fn rows_of_unit_length() {
        let tape = Tape::new();
        let rows = tape.watch(hashed_tensor(4, [3, WIDTH]));
        let unit = unit_rows(rows.clone());
        for row in unit.to_vec::<f32>().chunks_exact(WIDTH) {
            let square = row.iter().map(|value| value * value).sum::<f32>();
            assert!((square - 1.0).abs() < 1e-6, "{square}");
        }
        let gradient = tape.backward(&(unit * hashed_tensor(5, [3, WIDTH])).sum()).of(&rows);
        let products = (gradient.unwrap() * hashed_tensor(4, [3, WIDTH])).sum_dim(1);
        assert!(products.to_vec::<f32>().iter().all(|product| product.abs() < 1e-6));
        let tiny = unit_rows(Tensor::full(1e-8f32, [1, 4], &Device::Cpu)).to_vec::<f32>();
        assert_close("tiny", &tiny, &[0.01; 4], 1e-6);
    }
}
