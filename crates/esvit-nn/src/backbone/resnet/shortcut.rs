//! What stands in a block's shortcut where its branch changes the map.

use super::ResNetConfig;
use super::block::{Branch, ConvNorm};
use crate::backbone::TokenMaps;
use crate::forward_ctx::ForwardCtx;
use crate::ops::Segment;
use crate::params::{Params, Scope};
use crate::tensor::Tensor;

/// Side of the squares that are averaged.
const SIDE: usize = 2;

/// A convolution of single pixels with a norm. In ResNet-D means of 2 x 2 pixels come before it, so
/// that none is passed over.
#[derive(Debug)]
pub(super) struct Shortcut {
    /// Stride of the means; none without them.
    means: Option<usize>,
    conv: ConvNorm,
}

impl Shortcut {
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &ResNetConfig,
        [inputs, outputs]: [usize; 2],
        stride: usize,
    ) -> Self {
        let means = config.selective_kernels.then_some(stride);
        // The means have a place in the sequence.
        let (names, stride) = match means {
            Some(_) => (["1", "2"], 1),
            None => (["0", "1"], stride),
        };
        let conv = ConvNorm::new(scope, names, [inputs, outputs, 1], stride, config.norm_eps);
        Self { means, conv }
    }

    pub(super) fn forward(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let maps = match self.means {
            Some(stride) => averaged(maps, stride),
            None => maps,
        };
        self.conv.finish(params, Branch::Maps(maps), None, ctx)
    }
}

/// Means of the 2 x 2 pixels from every pixel on, or from every second one. As in TensorFlow, a
/// square that reaches beyond the map is, with stride 1, the mean of the pixels that there are, and
/// with stride 2 has zeros in place of the others.
fn averaged(maps: TokenMaps, stride: usize) -> TokenMaps {
    let TokenMaps { rows, segments } = maps.in_f32();
    let [_, channels] = rows.dims();
    let (mut places, mut shares, mut first) = (Vec::new(), Vec::new(), 0);
    for Segment { images, map: [height, width], .. } in &segments {
        for _ in 0..*images {
            for square in squares([*height, *width], stride) {
                let inside = square.iter().flatten().count();
                let share = if stride == 1 { 1.0 / inside as f32 } else { 0.25 };
                for place in square {
                    // What is beyond the map counts for nothing.
                    places.push((first + place.unwrap_or(0)) as i32);
                    shares.push(if place.is_some() { share } else { 0.0 });
                }
            }
            first += height * width;
        }
    }
    let taps = SIDE * SIDE;
    let count = places.len() / taps;
    let shares = Tensor::new(shares, [count * taps, 1], &rows.device());
    let rows = (rows.index_select(0, places) * shares).reshape([count, taps, channels]);
    let rows = rows.sum_dim(1).reshape([count, channels]);
    let map = |side: usize| side.div_ceil(stride);
    let segments =
        segments.into_iter().map(|segment| Segment { map: segment.map.map(map), ..segment });
    TokenMaps { rows, segments: segments.collect() }
}

/// The pixels of every square of a map, row-major; None beyond the map.
fn squares([height, width]: [usize; 2], stride: usize) -> Vec<[Option<usize>; SIDE * SIDE]> {
    let corners = (0..height)
        .step_by(stride)
        .flat_map(|row| (0..width).step_by(stride).map(move |column| [row, column]));
    let square = |[row, column]: [usize; 2]| {
        [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(down, right)| {
            let (row, column) = (row + down, column + right);
            (row < height && column < width).then_some(row * width + column)
        })
    };
    corners.map(square).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    fn averaged_map(values: &[f32], map: [usize; 2], stride: usize) -> (Vec<f32>, [usize; 2]) {
        let rows = Tensor::new(values.to_vec(), [values.len(), 1], &Device::Cpu);
        let images = values.len() / map[0] / map[1];
        let maps = TokenMaps { rows, segments: vec![Segment::new(images, map)] };
        let TokenMaps { rows, segments } = averaged(maps, stride);
        (rows.to_vec(), segments[0].map)
    }

    #[test]
    fn means_by_hand() {
        let map = [0.0, 4.0, 8.0, 12.0, 16.0, 20.0];
        let (found, size) = averaged_map(&map, [2, 3], 1);
        assert_eq!((found, size), (vec![8.0, 12.0, 14.0, 14.0, 18.0, 20.0], [2, 3]));
        // Beyond the third column are zeros.
        let (found, size) = averaged_map(&map, [2, 3], 2);
        assert_eq!((found, size), (vec![8.0, 7.0], [1, 2]));
        let two = [map, map.map(|value| value + 1.0)].concat();
        assert_eq!(averaged_map(&two, [2, 3], 2).0, [8.0, 7.0, 9.0, 7.5]);
    }
}
