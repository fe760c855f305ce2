//! Interpolation as matrices: what it makes is linear in the values.

use crate::device::Device;
use crate::tensor::Tensor;

/// The weights of all `from` source positions in an output position, from those of a few `taps`: of
/// the same position they add up.
pub(crate) fn row(from: usize, taps: impl IntoIterator<Item = (usize, f64)>) -> Vec<f64> {
    let mut row = vec![0.0; from];
    for (place, weight) in taps {
        row[place] += weight;
    }
    row
}

/// The matrix `[to, from]` whose rows are those of the output positions of an axis.
pub(crate) fn matrix(rows: &[Vec<f64>], device: &Device) -> Tensor {
    let from = rows.first().map_or(0, Vec::len);
    let values = rows.iter().flatten().map(|&weight| weight as f32);
    Tensor::new(values.collect(), [rows.len(), from], device)
}

/// The matrix that interpolates an image along both axes, row-major: `[rows * columns, from * from]`.
pub(crate) fn image_matrix(rows: &[Vec<f64>], columns: &[Vec<f64>], device: &Device) -> Tensor {
    let pairs = rows.iter().flat_map(|row| columns.iter().map(move |column| (row, column)));
    let outer = pairs.map(|(row, column)| {
        row.iter().flat_map(|a| column.iter().map(move |b| a * b)).collect::<Vec<f64>>()
    });
    matrix(&outer.collect::<Vec<_>>(), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_one_position_add_up() {
        assert_eq!(row(3, [(0, 0.25), (2, 0.5), (0, 0.25)]), [0.5, 0.0, 0.5]);
        let rows = [row(2, [(0, 1.0)]), row(2, [(0, 0.5), (1, 0.5)]), row(2, [(1, 1.0)])];
        let found = matrix(&rows, &Device::Cpu);
        assert_eq!(
            (found.dims(), found.to_vec::<f32>()),
            ([3, 2], vec![1.0, 0.0, 0.5, 0.5, 0.0, 1.0])
        );
        // One row and three columns of an image of 2 x 2.
        let image = image_matrix(&rows[1..2], &rows, &Device::Cpu);
        assert_eq!(image.dims(), [3, 4]);
        let expected = [0.5, 0.0, 0.5, 0.0, 0.25, 0.25, 0.25, 0.25, 0.0, 0.5, 0.0, 0.5];
        assert_eq!(image.to_vec::<f32>(), expected);
    }
}
