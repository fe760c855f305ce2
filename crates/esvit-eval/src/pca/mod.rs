//! Principal component analysis, and drawings of region features by their first three components.

mod figure;
mod regions;

use nalgebra::{DMatrix, DVector, SymmetricEigen};

pub use figure::{ColorMap, RegionImage, Upsampling, draw};
pub use regions::{Framing, RegionMap, RegionsError, region_map};

/// Components with at most this share of the variance are rounding errors.
const MIN_VARIANCE_SHARE: f64 = 1e-10;
/// Maximum number of iterations of the eigenvalue solver; a few per row are usual.
const MAX_SWEEPS: usize = 100_000;

/// The principal components of a set of rows.
#[derive(Debug, Clone)]
pub struct PrincipalComponents {
    mean: DVector<f64>,
    /// One unit vector per column, in descending order of variance.
    directions: DMatrix<f64>,
    /// Variance of each component.
    variances: Vec<f64>,
    /// Total variance.
    total: f64,
}

/// Principal components cannot be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PcaError {
    /// There are fewer than two rows.
    #[error("there is only one feature (of an image or region), and at least two are needed")]
    Single,
    /// All rows, of which this is the number, are equal.
    #[error("all {0} features are equal\nhint: if the images differ, the network has collapsed")]
    Equal(usize),
    /// A value is not finite.
    #[error("the features hold values that are not finite, so the network is broken")]
    NotFinite,
    /// The eigenvalue solver did not converge.
    #[error("the principal components of the features did not converge")]
    NotConverged,
}

impl PrincipalComponents {
    /// Fits the first `count` components of `values [rows, width]`; fewer if the rows vary in fewer
    /// directions. Signs are fixed: the largest coefficient (the first of equals) is positive.
    ///
    /// # Errors
    /// [`PcaError`] if there are fewer than two rows, all are equal, a value is not finite, or the
    /// solver does not converge.
    pub fn fit(values: &[f32], width: usize, count: usize) -> Result<Self, PcaError> {
        if values.iter().any(|value| !value.is_finite()) {
            return Err(PcaError::NotFinite);
        }
        let mut centered = columns(values, width);
        let rows = centered.ncols();
        let mean = centered.column_mean();
        centered.column_iter_mut().for_each(|mut row| row -= &mean);
        let total = centered.norm_squared();
        let size = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        if rows < 2 {
            return Err(PcaError::Single);
        }
        if total <= MIN_VARIANCE_SHARE * size {
            return Err(PcaError::Equal(rows));
        }

        // X X^T and X^T X have the same nonzero eigenvalues: the smaller matrix is cheaper.
        let few_rows = rows < width;
        let transposed = centered.transpose();
        let product = if few_rows { transposed * &centered } else { &centered * transposed };
        let eigen = SymmetricEigen::try_new(product, f64::EPSILON, MAX_SWEEPS)
            .ok_or(PcaError::NotConverged)?;
        let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
        order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
        order.retain(|&index| eigen.eigenvalues[index] > MIN_VARIANCE_SHARE * total);
        order.truncate(count);

        let mut directions = DMatrix::zeros(width, order.len());
        for (mut direction, &index) in directions.column_iter_mut().zip(&order) {
            let vector = eigen.eigenvectors.column(index);
            direction.copy_from(&if few_rows { &centered * vector } else { vector.into_owned() });
            direction.normalize_mut();
            let first_largest = direction.iter().fold(0.0, |largest: f64, &coefficient| {
                // Rounding must not decide between coefficients of equal size.
                if coefficient.abs() > largest.abs() * (1.0 + 1e-6) { coefficient } else { largest }
            });
            direction *= first_largest.signum();
        }
        let freedom = (rows - 1) as f64;
        let variances = order.iter().map(|&index| eigen.eigenvalues[index] / freedom).collect();
        Ok(Self { mean, directions, variances, total: total / freedom })
    }

    /// Number of components.
    pub fn count(&self) -> usize {
        self.variances.len()
    }

    /// Explained variance of each component, 0 to 1.
    pub fn explained(&self) -> Vec<f64> {
        self.variances.iter().map(|variance| variance / self.total).collect()
    }

    /// Projects `values [rows, width]` to coordinates `[rows, count]`.
    pub fn project(&self, values: &[f32]) -> Vec<f64> {
        let mut centered = columns(values, self.mean.len());
        centered.column_iter_mut().for_each(|mut row| row -= &self.mean);
        (self.directions.transpose() * centered).as_slice().to_vec()
    }
}

/// Rows as the columns of a matrix, which is their memory order.
fn columns(values: &[f32], width: usize) -> DMatrix<f64> {
    let rows = values.len() / width.max(1);
    DMatrix::from_iterator(width, rows, values.iter().map(|&value| f64::from(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_kernels::rng::Rng;

    /// Rows with standard deviations 3, 2 and 1 along three known directions of `width`, far from
    /// the origin.
    fn rows(count: usize, width: usize) -> (Vec<f32>, [Vec<f64>; 3]) {
        let mut rng = Rng::new(1, [0; 3]);
        let mut directions: Vec<DVector<f64>> = Vec::new();
        for _ in 0..3 {
            let mut direction = DVector::from_fn(width, |_, _| rng.normal());
            for earlier in &directions {
                direction -= earlier * earlier.dot(&direction);
            }
            directions.push(direction.normalize());
        }
        let mut values = Vec::new();
        for _ in 0..count {
            let mut row = DVector::repeat(width, 5.0);
            for (direction, deviation) in directions.iter().zip([3.0, 2.0, 1.0]) {
                row += direction * (deviation * rng.normal());
            }
            values.extend(row.iter().map(|&value| value as f32));
        }
        let directions = [0, 1, 2].map(|index| directions[index].as_slice().to_vec());
        (values, directions)
    }

    /// Unit vector of a component.
    fn direction(components: &PrincipalComponents, component: usize) -> Vec<f64> {
        components.directions.column(component).iter().copied().collect()
    }

    fn cosine(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()
    }

    /// Once by the product of the features, once by that of the rows.
    #[test]
    fn known_directions_and_variances_are_found() {
        for (count, width) in [(4000, 8), (300, 400)] {
            let (values, directions) = rows(count, width);
            let components = PrincipalComponents::fit(&values, width, 5).unwrap();
            assert_eq!(components.count(), 3, "rows vary in three directions only");
            for (index, expected) in directions.iter().enumerate() {
                let found = direction(&components, index);
                assert!(cosine(&found, expected).abs() > 0.99, "{count} {width} {index}");
                assert!((cosine(&found, &found) - 1.0).abs() < 1e-9);
            }
            let explained = components.explained();
            assert!((explained.iter().sum::<f64>() - 1.0).abs() < 1e-6);
            for (found, expected) in explained.iter().zip([9.0, 4.0, 1.0]) {
                assert!((found - expected / 14.0).abs() < 0.06, "{explained:?}");
            }
            let coordinates = components.project(&values);
            let mean = coordinates.chunks_exact(3).map(|row| row[0]).sum::<f64>() / count as f64;
            let square = coordinates.chunks_exact(3).map(|row| row[0] * row[0]).sum::<f64>();
            assert!(mean.abs() < 1e-6);
            let variance = square / (count - 1) as f64;
            assert!((variance / components.variances[0] - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn the_sense_does_not_depend_on_that_of_the_rows() {
        let (values, _) = rows(50, 6);
        let mirrored: Vec<f32> = values.iter().map(|value| -value).collect();
        let [a, b] = [&values, &mirrored].map(|rows| PrincipalComponents::fit(rows, 6, 3).unwrap());
        for component in 0..3 {
            let [a, b] = [&a, &b].map(|components| direction(components, component));
            assert!(cosine(&a, &b) > 0.999_999);
            assert!(a.iter().fold(0.0, |m: f64, &v| if v.abs() > m.abs() { v } else { m }) > 0.0);
        }
    }

    #[test]
    fn what_has_no_components_is_told() {
        let equal = PrincipalComponents::fit(&[0.3, 0.7, 0.3, 0.7, 0.3, 0.7], 2, 2);
        assert_eq!(equal.unwrap_err(), PcaError::Equal(3));
        assert_eq!(PrincipalComponents::fit(&[1.0, 2.0], 2, 2).unwrap_err(), PcaError::Single);
        let broken = PrincipalComponents::fit(&[1.0, f32::NAN, 0.0, 1.0], 2, 2);
        assert_eq!(broken.unwrap_err(), PcaError::NotFinite);
    }
}
