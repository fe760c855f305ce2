//! Two-dimensional coordinates of features.

use serde::Serialize;

use super::{Method, tsne};
use crate::pca::{PcaError, PrincipalComponents};

/// Number of principal components that t-SNE works on (the usual denoising step).
const TSNE_COMPONENTS: usize = 50;
/// Minimum number of images for t-SNE.
pub const MIN_TSNE: usize = 10;

/// How the coordinates were computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Layout {
    /// The method.
    pub method: Method,
    /// Explained variance of x and y, 0 to 1, for [`Method::Pca`].
    pub explained_variance: Option<[f64; 2]>,
    /// Perplexity, for [`Method::Tsne`].
    pub perplexity: Option<f64>,
}

/// A map cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The features have no principal components.
    #[error(transparent)]
    Pca(#[from] PcaError),
    /// Too few images, of which this is the number, for t-SNE.
    #[error("t-SNE needs at least {MIN_TSNE} images, there are {0}\nhint: PCA needs only two")]
    TooFew(usize),
    /// No thread can be started.
    #[error("no thread can be started: {0}")]
    Thread(#[from] rayon::ThreadPoolBuildError),
}

/// Computes coordinates `[x, y]` for each row of `values [rows, width]`; the same on every run and
/// for any number of threads. `done` is called after each step of t-SNE.
///
/// # Errors
/// [`MapError`] if all rows are equal, a value is not finite, or there are too few rows for t-SNE.
pub fn layout(
    values: &[f32],
    width: usize,
    method: Method,
    done: impl FnMut() + Send,
) -> Result<(Layout, Vec<[f64; 2]>), MapError> {
    let rows = values.len() / width.max(1);
    if method == Method::Tsne && rows < MIN_TSNE {
        return Err(MapError::TooFew(rows));
    }
    let wanted = if method == Method::Tsne { TSNE_COMPONENTS } else { 2 };
    let components = PrincipalComponents::fit(values, width, wanted)?;
    let coordinates = components.project(values);
    // Rows on a line have no second coordinate.
    let first_two = |row: &[f64]| [0, 1].map(|index| row.get(index).copied().unwrap_or(0.0));
    let first_coordinates: Vec<[f64; 2]> =
        coordinates.chunks_exact(components.count()).map(first_two).collect();
    let layout = Layout { method, explained_variance: None, perplexity: None };
    Ok(match method {
        Method::Pca => {
            let explained_variance = Some(first_two(&components.explained()));
            (Layout { explained_variance, ..layout }, first_coordinates)
        }
        Method::Tsne => {
            let perplexity = tsne::perplexity(rows);
            let coords = tsne::run(&coordinates, components.count(), &first_coordinates, done)?;
            (Layout { perplexity: Some(perplexity), ..layout }, coords)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_kernels::rng::Rng;

    /// Three groups far from each other, row by row in turn.
    fn groups(rows: usize, width: usize) -> Vec<f32> {
        let mut rng = Rng::new(4, [0; 3]);
        let row = |row: usize| {
            let mut values: Vec<f32> = (0..width).map(|_| rng.normal() as f32 * 0.05).collect();
            values[row % 3] += 1.0;
            values
        };
        (0..rows).flat_map(row).collect()
    }

    fn coords(values: &[f32], width: usize, method: Method) -> Vec<[f64; 2]> {
        layout(values, width, method, || ()).unwrap().1
    }

    #[test]
    fn groups_stay_together() {
        let values = groups(60, 12);
        for method in [Method::Tsne, Method::Pca] {
            let coords = coords(&values, 12, method);
            for (row, place) in coords.iter().enumerate() {
                let distance = |other: &[f64; 2]| (place[0] - other[0]).hypot(place[1] - other[1]);
                let nearest = (0..60)
                    .filter(|&other| other != row)
                    .min_by(|&a, &b| distance(&coords[a]).total_cmp(&distance(&coords[b])));
                assert_eq!(nearest.unwrap() % 3, row % 3, "{method:?}");
            }
        }
    }

    #[test]
    fn maps_do_not_depend_on_threads() {
        let values = groups(300, 60);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| coords(&values, 60, Method::Tsne))
        };
        let one = with(1);
        assert_eq!(one, with(4));
        assert_eq!(one, with(4));
    }

    #[test]
    fn equal_images_lie_in_one_place() {
        let mut values = groups(30, 6);
        let first = values[..6].to_vec();
        values[6 * 10..6 * 11].copy_from_slice(&first);
        for method in [Method::Tsne, Method::Pca] {
            let coords = coords(&values, 6, method);
            assert!(coords.iter().flatten().all(|value| value.is_finite()));
            let [x, y] = [0, 1].map(|axis| (coords[0][axis] - coords[10][axis]).abs());
            let size = coords.iter().map(|place| place[0].abs()).fold(0.0, f64::max);
            assert!(x.max(y) < 0.1 * size, "{method:?} {x} {y} {size}");
        }
        // Two kinds of image only.
        let halves: Vec<f32> = (0..40).flat_map(|row| [(row % 2) as f32, 1.0]).collect();
        assert!(coords(&halves, 2, Method::Tsne).iter().flatten().all(|value| value.is_finite()));
    }

    #[test]
    fn few_images() {
        let two = coords(&[1.0, 0.0, 0.0, 1.0], 2, Method::Pca);
        assert!((two[0][0] + two[1][0]).abs() < 1e-9 && two[0][1] == 0.0);
        assert!(
            coords(&groups(MIN_TSNE, 4), 4, Method::Tsne).iter().flatten().all(|v| v.is_finite())
        );
        let error = layout(&groups(9, 4), 4, Method::Tsne, || ()).unwrap_err();
        assert!(matches!(error, MapError::TooFew(9)));
        for method in [Method::Pca, Method::Tsne] {
            let error = layout(&[0.5; 60], 3, method, || ()).unwrap_err();
            assert!(matches!(error, MapError::Pca(PcaError::Equal(20))));
        }
        let error = layout(&[0.5; 3], 3, Method::Pca, || ()).unwrap_err();
        assert!(matches!(error, MapError::Pca(PcaError::Single)));
    }

    #[test]
    fn the_first_component_is_across_and_explains_most() {
        // Along the first axis four times as far as along the second.
        let values = [4.0, 0.0, -4.0, 0.0, 0.0, 1.0, 0.0, -1.0];
        let (layout, coords) = layout(&values, 2, Method::Pca, || ()).unwrap();
        let [across, up] = layout.explained_variance.unwrap();
        assert!((across - 16.0 / 17.0).abs() < 1e-6 && (up - 1.0 / 17.0).abs() < 1e-6);
        assert!((coords[0][0] - 4.0).abs() < 1e-6 && (coords[2][1] - 1.0).abs() < 1e-6);
        assert_eq!(layout.perplexity, None);
    }

    #[test]
    fn the_perplexity_is_a_third_of_few_rows_and_thirty_of_many() {
        assert_eq!([10, 31, 91, 5000].map(tsne::perplexity), [3.0, 10.0, 30.0, 30.0]);
    }
}
