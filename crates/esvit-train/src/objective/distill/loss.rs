//! How far a student's projected features are from its teacher's.
//!
//! The cosine is what SimReg (Navaneet et al. 2021) and AM-RADIO (Ranzinger et al. 2024) regress by. The mean
//! square is that of feature distillation (Wei et al. 2022), whose targets are standardized, channels of a
//! row together and without parameters, so that it does not depend on the scale of a teacher. Soft targets
//! are CompRess's (Koohpayegani et al. 2020): similarities to anchor points, which are recent features of the
//! teacher, and SEED's (Fang et al. 2021) in all but the added feature of the image itself.

use esvit_nn::{Tensor, ops};

/// Added to variances before their root.
const EPS: f64 = 1e-6;

/// How rows are compared.
#[derive(Debug, Clone)]
pub enum Distance {
    /// `1 - cos(p, t)`.
    Cosine,
    /// `mean((p - standardized(t))^2)` over channels.
    Mse,
    /// Cross-entropy of softmax over `cos(p, a_k) / student_temp` to that over `cos(t, a_k) / teacher_temp`.
    Prototypes {
        /// The prototypes `a_k`, unit rows `[K, C]`.
        anchors: Tensor,
        /// Temperatures of the student and of the teacher.
        temperatures: [f64; 2],
    },
}

impl Distance {
    /// The distances `[rows, 1]` of `predicted [rows, C]` to `target [rows, C]`, which gets no gradient.
    pub fn of_rows(&self, predicted: Tensor, target: Tensor) -> Tensor {
        let target = target.detach();
        match self {
            Self::Cosine => {
                let products = ops::l2_normalize(predicted) * ops::l2_normalize(target);
                products.sum_dim(1) * -1.0 + 1.0
            }
            Self::Mse => (predicted - standardized(target)).square().mean_dim(1),
            Self::Prototypes { anchors, temperatures: [student, teacher] } => {
                let anchors = anchors.clone().transpose();
                let logits = |rows: Tensor, temperature: f64| {
                    ops::l2_normalize(rows).matmul(anchors.clone()) / temperature
                };
                let shares = logits(target, *teacher).softmax(1);
                -(logits(predicted, *student).log_softmax(1) * shares).sum_dim(1)
            }
        }
    }
}

/// Rows less their mean, over their standard deviation.
fn standardized(rows: Tensor) -> Tensor {
    let centered = rows.clone() - rows.mean_dim(1);
    let deviation = (centered.clone().square().mean_dim(1) + EPS).sqrt();
    centered / deviation
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Device;
    use esvit_testing::{assert_alike, assert_close, check_gradients, hashed, hashed_tensor};

    const ROWS: usize = 3;
    const WIDTH: usize = 5;

    fn rows(values: &[f32]) -> Vec<Vec<f64>> {
        values.chunks(WIDTH).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
    }

    fn unit(row: &[f64]) -> Vec<f64> {
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter().map(|v| v / norm).collect()
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    fn softmax(logits: &[f64]) -> Vec<f64> {
        let sum: f64 = logits.iter().map(|l| l.exp()).sum();
        logits.iter().map(|l| l.exp() / sum).collect()
    }

    /// The distances by their definitions, in f64.
    fn defined(distance: &Distance, predicted: &[f64], target: &[f64]) -> f64 {
        match distance {
            Distance::Cosine => 1.0 - dot(&unit(predicted), &unit(target)),
            Distance::Mse => {
                let mean = target.iter().sum::<f64>() / WIDTH as f64;
                let variance =
                    target.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / WIDTH as f64;
                let pairs = predicted.iter().zip(target);
                let squares =
                    pairs.map(|(p, t)| (p - (t - mean) / (variance + EPS).sqrt()).powi(2));
                squares.sum::<f64>() / WIDTH as f64
            }
            Distance::Prototypes { anchors, temperatures: [student, teacher] } => {
                let anchors = rows(&anchors.to_vec::<f32>());
                let logits = |row: &[f64], temperature: f64| -> Vec<f64> {
                    let row = unit(row);
                    anchors.iter().map(|anchor| dot(anchor, &row) / temperature).collect()
                };
                let shares = softmax(&logits(target, *teacher));
                let found = softmax(&logits(predicted, *student));
                shares.iter().zip(found).map(|(q, p)| -q * p.ln()).sum()
            }
        }
    }

    fn distances() -> [Distance; 3] {
        let anchors = ops::l2_normalize(hashed_tensor(9, [7, WIDTH]));
        let temperatures = [0.5, 0.25];
        [Distance::Cosine, Distance::Mse, Distance::Prototypes { anchors, temperatures }]
    }

    #[test]
    fn values_and_gradients() {
        let (predicted, target) = (hashed(1, ROWS * WIDTH), hashed(2, ROWS * WIDTH));
        let target = target.iter().map(|v| 3.0 * v + 0.5).collect::<Vec<f32>>();
        let tensor = |values: &[f32]| Tensor::new(values.to_vec(), [ROWS, WIDTH], &Device::Cpu);
        for distance in distances() {
            let found = distance.of_rows(tensor(&predicted), tensor(&target));
            assert_eq!(found.dims(), [ROWS, 1]);
            let pairs = rows(&predicted).into_iter().zip(rows(&target));
            let expected: Vec<f64> = pairs.map(|(p, t)| defined(&distance, &p, &t)).collect();
            assert_close("distance", &found.to_vec::<f32>(), &expected, 2e-6);
            check_gradients("distance", std::slice::from_ref(&predicted), |inputs| {
                let predicted = inputs[0].clone().reshape([ROWS, WIDTH]);
                distance.of_rows(predicted, tensor(&target)).reshape([ROWS])
            });
        }
    }

    /// The target is a constant, and the scale of a teacher does not count.
    #[test]
    fn what_a_teacher_gives() {
        let tape = esvit_nn::Tape::new();
        let [predicted, target] =
            [1, 2].map(|stream| tape.watch(hashed_tensor(stream, [ROWS, WIDTH])));
        for distance in distances() {
            let once = distance.of_rows(predicted.clone(), target.clone());
            let larger = distance.of_rows(predicted.clone(), target.clone() * 16.0);
            assert_alike("scaled", &larger.to_vec::<f32>(), &once.to_vec::<f32>(), 1e-4);
        }
        let [cosine, ..] = distances();
        let gradients = tape.backward(&cosine.of_rows(predicted.clone(), target.clone()).sum());
        assert!(gradients.of(&predicted).is_some() && gradients.of(&target).is_none());
    }
}
