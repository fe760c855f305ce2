//! Positions for the maps of images of any size, by bicubic interpolation.
//!
//! What is interpolated is linear: with the weights of an axis as a matrix `M [to, from]`, a vector
//! along it becomes `M v`, an image `M I N^T`.

use std::sync::Arc;

use super::config::BiasResize;
use crate::bicubic;
use crate::device::Device;
use crate::interpolation;
use crate::memo::Memo;
use crate::ops::WindowMap;
use crate::tensor::Tensor;

/// The matrix `[to, from]` that interpolates `from` positions along an axis at `to`; the scale is that of
/// `scaled` positions.
pub(super) fn along_axis(from: usize, to: usize, scaled: f64, device: &Device) -> Tensor {
    interpolation::matrix(&bicubic::axis(from, to, scaled), device)
}

/// How the biases of a map's pairs of tokens follow from the table of relative positions.
#[derive(Debug, Clone)]
pub(super) struct PairBiases {
    /// Row of every (query, key), `[n * n]`, in the table or in what `table` makes of it.
    pub(super) rows: Vec<i32>,
    /// What the table is multiplied by first.
    pub(super) table: Option<Tensor>,
    /// The matrix `[n, tokens of the map]` that turns the pairs along an axis into those of the map.
    pub(super) pairs: Option<Tensor>,
}

/// The biases of maps of all sizes, made for a map of `side` x `side` tokens.
#[derive(Debug)]
pub(super) struct BiasMaps {
    side: usize,
    resize: BiasResize,
    made: Memo<[usize; 2], PairBiases>,
}

impl BiasMaps {
    pub(super) fn new(side: usize, resize: BiasResize) -> Self {
        Self { side, resize, made: Memo::default() }
    }

    /// Those of a map, made on first use.
    pub(super) fn get(&self, map: [usize; 2], device: &Device) -> Arc<PairBiases> {
        self.made.get(map, || self.of(map, device))
    }

    fn of(&self, map: [usize; 2], device: &Device) -> PairBiases {
        let native = [self.side; 2];
        let tokens = map[0] * map[1];
        match self.resize {
            _ if map == native => PairBiases { rows: pairs(native), table: None, pairs: None },
            BiasResize::Pairs => {
                let from = self.side * self.side;
                let matrix = along_axis(from, tokens, tokens as f64, device).transpose();
                PairBiases { rows: pairs(native), table: None, pairs: Some(matrix) }
            }
            BiasResize::Table => {
                let from = 2 * self.side - 1;
                let [down, across] = map.map(|side| {
                    let to = 2 * side - 1;
                    bicubic::axis(from, to, to as f64)
                });
                let matrix = interpolation::image_matrix(&down, &across, device);
                PairBiases { rows: pairs(map), table: Some(matrix), pairs: None }
            }
        }
    }
}

/// Row in a table of `(2 height - 1) (2 width - 1)` relative positions for every pair of tokens.
fn pairs([height, width]: [usize; 2]) -> Vec<i32> {
    if height == width {
        return WindowMap::new([height; 2], height, 0).bias_row;
    }
    let tokens = height * width;
    let mut rows = Vec::with_capacity(tokens * tokens);
    for query in 0..tokens {
        for key in 0..tokens {
            let down = query / width + height - 1 - key / width;
            let across = query % width + width - 1 - key % width;
            rows.push((down * (2 * width - 1) + across) as i32);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_testing::hashed;

    /// A matrix of 196 pairs of tokens as an image of 36, as `torch.nn.functional.interpolate` with
    /// `scale_factor=36 / 196, mode="bicubic"` makes it.
    #[test]
    fn pairs_are_resized_as_an_image() {
        let maps = BiasMaps::new(14, BiasResize::Pairs);
        let found = maps.get([6, 6], &Device::Cpu);
        assert!(found.table.is_none() && found.rows.len() == 196 * 196);
        let matrix = found.pairs.clone().unwrap();
        assert_eq!(matrix.dims(), [196, 36]);
        let image = Tensor::new(hashed(52, 196 * 196), [196, 196], &Device::Cpu);
        let columns = image.matmul(matrix.clone());
        let resized = columns.transpose().matmul(matrix).transpose().to_vec::<f32>();
        let expected = [-0.313_484, 0.367_758, -0.922_096, -0.250_247];
        for (found, expected) in resized.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-6, "{found} instead of {expected}");
        }
        let native = maps.get([14, 14], &Device::Cpu);
        assert!(native.table.is_none() && native.pairs.is_none());
        assert!(Arc::ptr_eq(&native, &maps.get([14, 14], &Device::Cpu)));
    }

    /// A table whose values grow evenly along both axes, to three rows and five columns.
    #[test]
    fn tables_are_resized_as_images() {
        let maps = BiasMaps::new(4, BiasResize::Table);
        let found = maps.get([2, 3], &Device::Cpu);
        let matrix = found.table.clone().unwrap();
        assert_eq!((matrix.dims(), found.rows.len()), ([15, 49], 36));
        assert!(found.pairs.is_none());
        let table: Vec<f32> = (0..49).map(|row| (row / 7 * 100 + row % 7) as f32).collect();
        let table = Tensor::new(table, [49, 1], &Device::Cpu);
        let resized = matrix.matmul(table).to_vec::<f32>();
        // The middle is where it was. By PyTorch's kernel, which bends straight lines a little.
        let expected = [300.152, 301.576, 303.0, 304.424, 305.848];
        for (found, expected) in resized[5..10].iter().zip(expected) {
            assert!((found - expected).abs() < 1e-3, "{resized:?}");
        }
    }

    /// Of 2 x 3 tokens: the same token is in the middle of 3 x 5 positions.
    #[test]
    fn pairs_of_oblong_maps() {
        let rows = pairs([2, 3]);
        assert_eq!((0..6).map(|token| rows[token * 7]).collect::<Vec<_>>(), [7; 6]);
        assert_eq!(rows[..6], [7, 6, 5, 2, 1, 0]);
        assert_eq!(rows[30..], [14, 13, 12, 9, 8, 7]);
        assert_eq!(pairs([3, 3])[4 * 9..5 * 9], [18, 17, 16, 13, 12, 11, 8, 7, 6]);
    }
}
