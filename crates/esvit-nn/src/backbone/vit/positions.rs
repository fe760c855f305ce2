//! Position tables for the maps of images of any size.
//!
//! A table is resized by bicubic interpolation, which is linear: `resized = M table`, with a matrix
//! that depends on the sizes alone.

use super::config::PositionResize;
use crate::bicubic;
use crate::device::Device;
use crate::interpolation;
use crate::memo::Memo;
use crate::tensor::Tensor;

/// The matrices `[height * width, side * side]` that resize a table of `side` x `side` positions to
/// maps, made once per map.
#[derive(Debug)]
pub(in crate::backbone) struct PositionMatrices {
    side: usize,
    resize: PositionResize,
    made: Memo<[usize; 2], Tensor>,
}

impl PositionMatrices {
    pub(in crate::backbone) fn new(side: usize, resize: PositionResize) -> Self {
        Self { side, resize, made: Memo::default() }
    }

    /// The matrix for a map; None where the table is of that map.
    pub(in crate::backbone) fn get(&self, map: [usize; 2], device: &Device) -> Option<Tensor> {
        if map == [self.side; 2] {
            return None;
        }
        let matrix = self.made.get(map, || {
            let [rows, columns] = map.map(|length| weights(self.side, length, self.resize));
            interpolation::image_matrix(&rows, &columns, device)
        });
        Some((*matrix).clone())
    }
}

/// The weights of `from` positions along an axis in each of `to`, `[to, from]`.
fn weights(from: usize, to: usize, resize: PositionResize) -> Vec<Vec<f64>> {
    match resize {
        PositionResize::Esvit => bicubic::axis(from, to, to as f64),
        // Also along an axis whose length stays.
        PositionResize::Dino => bicubic::axis(from, to, to as f64 + 0.1),
        PositionResize::Timm => bicubic::antialiased(from, to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DINO's scale is that of a tenth of a position more.
    #[test]
    fn kinds_differ() {
        use PositionResize::{Dino, Esvit, Timm};
        let rows = [Esvit, Dino, Timm].map(|resize| weights(6, 4, resize));
        assert!(rows[0] != rows[1] && rows[1] != rows[2]);
        assert!((rows[1][0][1] - bicubic::taps(6, 4.1, 0)[2].1).abs() < 1e-12);
        let keeps = |resize| {
            let rows = weights(6, 6, resize);
            rows.iter().enumerate().all(|(at, row)| (row[at] - 1.0).abs() < 1e-12)
        };
        assert_eq!([Esvit, Dino, Timm].map(keeps), [true, false, true]);
    }

    /// Two rows and three columns of a table of 2 x 2: the matrix is the outer product of both.
    #[test]
    fn maps_need_not_be_square() {
        let matrices = PositionMatrices::new(2, PositionResize::Timm);
        assert!(matrices.get([2, 2], &Device::Cpu).is_none());
        let matrix = matrices.get([2, 3], &Device::Cpu).unwrap();
        assert_eq!(matrix.dims(), [6, 4]);
        let columns = weights(2, 3, PositionResize::Timm);
        let found = matrix.to_vec::<f32>();
        for (column, weights) in columns.iter().enumerate() {
            let row = &found[column * 4..][..4];
            let expected = [weights[0] as f32, weights[1] as f32, 0.0, 0.0];
            assert_eq!(row, expected);
        }
    }
}
