//! Feature maps and images at another size, by bilinear interpolation.

use crate::tensor::Tensor;
use crate::{bilinear, interpolation};

/// Maps `[B, h * w, C]`, row-major, of `from = [h, w]` tokens as maps of `to = [h', w']`, `[B, h' * w', C]`, f32:
/// PyTorch's `interpolate(mode="bilinear", align_corners=False)`. Maps of that size stay as they are.
///
/// # Panics
/// When the tokens are not those of `from`.
pub fn maps(x: Tensor, from: [usize; 2], to: [usize; 2]) -> Tensor {
    let [_, tokens, _] = x.dims();
    assert_eq!(tokens, from[0] * from[1], "tokens of maps of {from:?}");
    if from == to {
        return x;
    }
    let [rows, columns] = [0, 1].map(|axis| bilinear::axis(from[axis], to[axis]));
    let weights = interpolation::image_matrix(&rows, &columns, &x.device());
    x.transpose().matmul(weights.transpose()).transpose()
}

/// Images `[B, C, H, W]` of `to = [height, width]` pixels, f32, with antialiasing: PyTorch's
/// `interpolate(mode="bilinear", antialias=True)`. Images of that size stay as they are.
pub fn images(x: Tensor, to: [usize; 2]) -> Tensor {
    let [batch, channels, height, width] = x.dims();
    if [height, width] == to {
        return x;
    }
    let device = x.device();
    let axis = |from: usize, to: usize| {
        interpolation::matrix(&bilinear::antialiased(from, to), &device).transpose()
    };
    let planes = x.reshape([batch * channels, height, width]);
    let narrow = planes.matmul(axis(width, to[1])).transpose();
    let resized = narrow.matmul(axis(height, to[0])).transpose();
    resized.reshape([batch, channels, to[0], to[1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor {
        Tensor::new(values.to_vec(), shape, &Device::Cpu)
    }

    fn close(found: &Tensor, expected: &[f32]) {
        let found = found.to_vec::<f32>();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
        }
    }

    /// Two images of 2 x 4 tokens of two channels, of which the second is ten times the first.
    #[test]
    fn maps_by_hand() {
        let first: Vec<f32> = (0..16).map(|at| at as f32).collect();
        let values: Vec<f32> = first.iter().flat_map(|&value| [value, 10.0 * value]).collect();
        let x = tensor(&values, [2, 8, 2]);
        let half = maps(x.clone(), [2, 4], [1, 2]);
        assert_eq!(half.dims(), [2, 2, 2]);
        // Means of 2 x 2 tokens.
        close(&half, &[2.5, 25.0, 4.5, 45.0, 10.5, 105.0, 12.5, 125.0]);
        let wider = maps(x.clone(), [2, 4], [2, 8]).narrow(0, 0, 1).narrow(2, 0, 1);
        let expected = [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0];
        let second = expected.map(|value| value + 4.0);
        close(&wider, &[expected, second].concat());
        assert_eq!(maps(x.clone(), [2, 4], [2, 4]).to_vec::<f32>(), x.to_vec::<f32>());
    }

    /// A picture of one channel that is brighter from row to row, and one that is so from column to column.
    #[test]
    fn images_by_hand() {
        let rows: Vec<f32> = (0..16).map(|at| (at / 4) as f32).collect();
        let columns: Vec<f32> = (0..16).map(|at| (at % 4) as f32).collect();
        let x = tensor(&[rows, columns].concat(), [1, 2, 4, 4]);
        let half = images(x.clone(), [2, 2]);
        assert_eq!(half.dims(), [1, 2, 2, 2]);
        // (3 * 0 + 3 * 1 + 2) / 7 and its counterpart.
        let (low, high) = (5.0 / 7.0, 16.0 / 7.0);
        close(&half, &[low, low, high, high, low, high, low, high]);
        let tall = images(x.clone(), [8, 4]).narrow(1, 0, 1).narrow(3, 0, 1);
        close(&tall, &[0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]);
        assert_eq!(images(x.clone(), [4, 4]).to_vec::<f32>(), x.to_vec::<f32>());
        let flat = images(tensor(&[0.5; 75], [1, 3, 5, 5]), [3, 7]);
        close(&flat, &[0.5; 63]);
    }
}
