//! Losses of contrastive and clustering objectives by their definitions, in f64, on rows; and gradients
//! of such functions by central differences.

/// Rows of a matrix.
pub type Rows = Vec<Vec<f64>>;

/// Values, row-major, as rows of `width`.
pub fn rows(values: &[f64], width: usize) -> Rows {
    values.chunks_exact(width).map(<[f64]>::to_vec).collect()
}

/// The values of rows, row-major.
pub fn flat(rows: &Rows) -> Vec<f64> {
    rows.concat()
}

/// Rows scaled to unit length.
pub fn unit(rows: &Rows) -> Rows {
    let scaled = |row: &Vec<f64>| {
        let norm = dot(row, row).sqrt();
        row.iter().map(|value| value / norm).collect()
    };
    rows.iter().map(scaled).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `-log softmax(logits)[target]`.
fn cross_entropy(logits: &[f64], target: usize) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum = logits.iter().map(|logit| (logit - largest).exp()).sum::<f64>();
    sum.ln() + largest - logits[target]
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// MoCo: queries and their keys, beside a queue. Rows need no unit length.
pub fn with_queue(queries: &Rows, keys: &Rows, queue: &Rows, temperature: f64) -> f64 {
    let (queries, keys, queue) = (unit(queries), unit(keys), unit(queue));
    let pairs = queries.iter().zip(&keys);
    mean(pairs.map(|(query, key)| {
        let all = std::iter::once(key).chain(&queue);
        let logits: Vec<f64> = all.map(|key| dot(query, key) / temperature).collect();
        cross_entropy(&logits, 0)
    }))
}

/// MoCo-v3, one direction: queries among all keys, of which the same row is theirs; times `2 T`.
pub fn among(queries: &Rows, keys: &Rows, temperature: f64) -> f64 {
    let (queries, keys) = (unit(queries), unit(keys));
    let of = |(row, query): (usize, &Vec<f64>)| {
        let logits: Vec<f64> = keys.iter().map(|key| dot(query, key) / temperature).collect();
        cross_entropy(&logits, row)
    };
    2.0 * temperature * mean(queries.iter().enumerate().map(of))
}

/// SimCLR: first views and second ones; twice the mean over all of them.
pub fn nt_xent(first: &Rows, second: &Rows, temperature: f64) -> f64 {
    let (all, count) = (unit(&[first.clone(), second.clone()].concat()), first.len());
    let of = |anchor: usize| {
        let partner = (anchor + count) % (2 * count);
        let others: Vec<usize> = (0..2 * count).filter(|&other| other != anchor).collect();
        let logits: Vec<f64> =
            others.iter().map(|&other| dot(&all[anchor], &all[other]) / temperature).collect();
        cross_entropy(&logits, others.iter().position(|&other| other == partner).unwrap())
    };
    2.0 * mean((0..2 * count).map(of))
}

/// BYOL, one direction.
pub fn distance(predictions: &Rows, targets: &Rows) -> f64 {
    let (predictions, targets) = (unit(predictions), unit(targets));
    let pairs = predictions.iter().zip(&targets);
    mean(pairs.map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()))
}

/// SwAV's assignments of samples to prototypes, `iterations` times balanced.
pub fn sinkhorn(scores: &Rows, epsilon: f64, iterations: usize) -> Rows {
    let (samples, prototypes) = (scores.len(), scores[0].len());
    let largest = scores.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut shares: Rows = scores
        .iter()
        .map(|row| row.iter().map(|score| ((score - largest) / epsilon).exp()).collect())
        .collect();
    for _ in 0..iterations {
        for k in 0..prototypes {
            let sum: f64 = shares.iter().map(|row| row[k]).sum();
            shares.iter_mut().for_each(|row| row[k] /= sum * prototypes as f64);
        }
        for row in &mut shares {
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|share| *share /= sum * samples as f64);
        }
    }
    shares.iter().map(|row| row.iter().map(|share| share * samples as f64).collect()).collect()
}

/// SwAV's swapped prediction: embeddings by view, prototypes of unit length, and the assignments of the
/// first two views.
pub fn swapped(views: &[Rows], prototypes: &Rows, targets: &[Rows; 2], temperature: f64) -> f64 {
    let mut pairs = Vec::new();
    for (target, shares) in targets.iter().enumerate() {
        for (_, rows) in views.iter().enumerate().filter(|(view, _)| *view != target) {
            pairs.push(mean(unit(rows).iter().zip(shares).map(|(row, shares)| {
                let logits: Vec<f64> =
                    prototypes.iter().map(|prototype| dot(row, prototype) / temperature).collect();
                let losses = (0..logits.len()).map(|k| shares[k] * cross_entropy(&logits, k));
                losses.sum()
            })));
        }
    }
    mean(pairs.into_iter())
}

/// KoLeo: minus the mean logarithm of the distance of each row, of unit length, to the nearest other one.
pub fn koleo(features: &Rows) -> f64 {
    let features = unit(features);
    let distance = |a: &[f64], b: &[f64]| {
        let squares = a.iter().zip(b).map(|(a, b)| (a - b).powi(2));
        squares.sum::<f64>().sqrt()
    };
    -mean(features.iter().enumerate().map(|(row, own)| {
        let others = features.iter().enumerate().filter(|(other, _)| *other != row);
        let distances = others.map(|(_, other)| distance(own, other));
        distances.fold(f64::INFINITY, f64::min).ln()
    }))
}

/// Cross-entropy of a student's logits at its temperature to the softmax of a teacher's, less a center, at
/// the teacher's.
pub fn distillation(
    student: &[f64],
    teacher: &[f64],
    center: &[f64],
    temperatures: [f64; 2],
) -> f64 {
    let logits: Vec<f64> = student.iter().map(|logit| logit / temperatures[0]).collect();
    let targets =
        teacher.iter().zip(center).map(|(logit, center)| (logit - center) / temperatures[1]);
    let targets: Vec<f64> = targets.collect();
    let target = |k: usize| (-cross_entropy(&targets, k)).exp();
    (0..logits.len()).map(|k| target(k) * cross_entropy(&logits, k)).sum()
}

/// Scores of rows of unit length over prototypes.
pub fn scores(rows: &Rows, prototypes: &Rows) -> Rows {
    let score = |row: &Vec<f64>| prototypes.iter().map(|prototype| dot(row, prototype)).collect();
    unit(rows).iter().map(score).collect()
}

/// The gradient of a function at `values`, by central differences.
pub fn gradient(values: &[f64], function: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let slope = |i: usize| {
        let at = |shift: f64| {
            let mut values = values.to_vec();
            values[i] += shift;
            function(&values)
        };
        (at(STEP) - at(-STEP)) / (2.0 * STEP)
    };
    (0..values.len()).map(slope).collect()
}
