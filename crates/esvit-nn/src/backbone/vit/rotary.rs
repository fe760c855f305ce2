//! Rotary positions (RoPE; Su et al., 2021) of two axes, as in DINOv3: queries and keys of patches are
//! turned by angles that grow with their positions, so that their products depend on the distance.
//!
//! Positions are the middles of patches, from -1 to 1 along each side of an image whatever its size.
//! Of a head's `d` channels, channel `i` of the first half and channel `i` of the second are a point of
//! the plane. The first `d / 4` points are turned by the row, the others by the column, point `i` of
//! each by `2 pi position / 100^(4 i / d)`.

use std::f64::consts::TAU;
use std::sync::Arc;

use crate::memo::Memo;
use crate::ops::{self, RotaryAngles, Segment};
use crate::tensor::Tensor;

/// What the periods approach.
const TEMPERATURE: f64 = 100.0;

/// Height and width of a map, and the number of tokens before it.
type Sizes = ([usize; 2], usize);

/// Turns queries and keys by angles that are made once per map.
#[derive(Debug)]
pub(super) struct Rotary {
    /// Channels of a head.
    depth: usize,
    made: Memo<Sizes, RotaryAngles>,
}

impl Rotary {
    /// For heads of `depth` channels.
    pub(super) fn new(depth: usize) -> Self {
        Self { depth, made: Memo::default() }
    }

    /// Queries, keys and values `[tokens of all images, 3 C]` with queries and keys turned. Tokens before
    /// those of a map have no position, and stay.
    pub(super) fn turn(&self, qkv: Tensor, segments: &[Segment]) -> Tensor {
        let angles: Vec<_> = segments.iter().map(|segment| self.angles(segment)).collect();
        ops::rotary(qkv, segments, &angles)
    }

    fn angles(&self, segment: &Segment) -> Arc<RotaryAngles> {
        self.made.get((segment.map, segment.prefix), || angles_of(segment, self.depth))
    }
}

fn angles_of(segment: &Segment, depth: usize) -> RotaryAngles {
    let Segment { map: [height, width], prefix, .. } = *segment;
    let (half, quarter) = (depth / 2, depth / 4);
    // An angle of 0 changes nothing.
    let mut angles = vec![0.0; prefix * half];
    let middle = |at: usize, side: usize| (2 * at + 1) as f64 / side as f64 - 1.0;
    let period = |point: usize| libm::pow(TEMPERATURE, point as f64 / quarter as f64);
    for patch in 0..height * width {
        for position in [middle(patch / width, height), middle(patch % width, width)] {
            angles.extend((0..quarter).map(|point| TAU * position / period(point)));
        }
    }
    let of =
        |function: fn(f64) -> f64| angles.iter().map(|&angle| function(angle) as f32).collect();
    RotaryAngles { tokens: segment.tokens(), cosines: of(libm::cos), sines: of(libm::sin) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    /// One token before a row of four patches, at -3/4, -1/4, 1/4 and 3/4 of a turn. Channels 0 and 2 are
    /// turned by the row, in whose middle they are, 1 and 3 by the column.
    #[test]
    fn quarters_of_a_turn() {
        let rotary = Rotary::new(4);
        let segment = Segment { images: 1, map: [1, 4], prefix: 1 };
        let row = [1f32, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let qkv = Tensor::new(row.repeat(5), [5, 12], &Device::Cpu);
        let found = rotary.turn(qkv, &[segment]).to_vec::<f32>();
        // By -3/4 of a turn, (2, 4) is what it is by 1/4: (-4, 2).
        let points = [[2.0, 4.0], [-4.0, 2.0], [4.0, -2.0], [-4.0, 2.0], [4.0, -2.0]];
        for (token, [x, y]) in points.into_iter().enumerate() {
            let expected = [1.0, x, 3.0, y, 1.0, x, 3.0, y, 5.0, 6.0, 7.0, 8.0];
            for (found, expected) in found[token * 12..].iter().zip(expected) {
                let difference: f32 = found - expected;
                assert!(difference.abs() < 1e-5, "{token}: {found} instead of {expected}");
            }
        }
    }

    /// Of 16 channels, the second of four points on each axis has a period of the fourth root of 100.
    #[test]
    fn periods_grow() {
        let segment = Segment::new(1, [2, 1]);
        let found = angles_of(&segment, 16);
        let root = 100f64.sqrt().sqrt();
        for (point, period) in [1.0, root, root.powi(2), root.powi(3)].into_iter().enumerate() {
            // In the second row, half of the way to the border; in the middle of the only column.
            let angle = TAU * 0.5 / period;
            let [cosine, sine] = [&found.cosines, &found.sines].map(|v| f64::from(v[8 + point]));
            assert!((cosine - angle.cos()).abs() < 1e-6, "{point}");
            assert!((sine - angle.sin()).abs() < 1e-6, "{point}");
            assert_eq!([&found.cosines, &found.sines].map(|v| v[12 + point]), [1.0, 0.0]);
        }
    }

    /// Products of queries and keys depend on how far patches are apart, not on where they are.
    #[test]
    fn products_depend_on_the_distance() {
        let (rotary, segment) = (Rotary::new(8), Segment::new(1, [3, 4]));
        let row: Vec<f32> = (0..48).map(|i| ((i * i) % 7) as f32 - 3.0).collect();
        let qkv = Tensor::new(row.repeat(12), [12, 48], &Device::Cpu);
        let found = rotary.turn(qkv, &[segment]).to_vec::<f32>();
        let product = |query: usize, key: usize, head: usize| -> f32 {
            let [q, k] = [query * 48, key * 48 + 16].map(|start| &found[start + head * 8..][..8]);
            q.iter().zip(k).map(|(q, k)| q * k).sum()
        };
        for head in 0..2 {
            // One row down and two columns to the right.
            let expected = product(0, 6, head);
            for query in [1, 4, 5] {
                let found = product(query, query + 6, head);
                assert!((found - expected).abs() < 1e-4, "{query}: {found}, not {expected}");
            }
            assert!((product(6, 0, head) - expected).abs() > 1e-2, "the other way round");
        }
    }
}
