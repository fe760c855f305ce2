//! Standardization of features: a BatchNorm without affine parameters.

/// Added to the variance, as in BatchNorm.
const EPSILON: f64 = 1e-5;

/// Mean and scale of each column.
#[derive(Debug, Clone, PartialEq)]
pub struct Standardization {
    mean: Vec<f32>,
    scale: Vec<f32>,
}

impl Standardization {
    /// Statistics of some rows of `values [.., width]`.
    pub fn of(values: &[f32], width: usize, rows: &[usize]) -> Self {
        let count = rows.len().max(1) as f64;
        let mut mean = vec![0.0f64; width];
        let row = |row: &usize| &values[row * width..(row + 1) * width];
        for values in rows.iter().map(row) {
            mean.iter_mut().zip(values).for_each(|(mean, value)| *mean += f64::from(*value));
        }
        mean.iter_mut().for_each(|mean| *mean /= count);
        let mut variance = vec![0.0f64; width];
        for values in rows.iter().map(row) {
            for ((variance, mean), value) in variance.iter_mut().zip(&mean).zip(values) {
                *variance += (f64::from(*value) - mean).powi(2);
            }
        }
        let scale = |variance: &f64| (variance / count + EPSILON).sqrt().recip() as f32;
        Self {
            scale: variance.iter().map(scale).collect(),
            mean: mean.iter().map(|mean| *mean as f32).collect(),
        }
    }

    /// Standardizes one row, which starts at column `first`.
    pub fn apply(&self, row: &mut [f32], first: usize) {
        for ((value, mean), scale) in
            row.iter_mut().zip(&self.mean[first..]).zip(&self.scale[first..])
        {
            *value = (*value - mean) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_mean_0_and_variance_1_and_constant_ones_are_0() {
        let values = [1.0, 7.0, 100.0, 3.0, 7.0, 300.0, 9.0, 9.0, 9.0];
        let norm = Standardization::of(&values, 3, &[0, 1]);
        let mut row = [3.0, 7.0, 300.0];
        norm.apply(&mut row, 0);
        assert!((row[0] - 1.0).abs() < 1e-4 && row[1] == 0.0 && (row[2] - 1.0).abs() < 1e-4);
        let mut blocks = [7.0, 100.0];
        norm.apply(&mut blocks, 1);
        assert!(blocks[0] == 0.0 && (blocks[1] + 1.0).abs() < 1e-4, "{blocks:?}");
    }
}
