//! Rotary positions of queries and keys (RoPE; Su et al., 2021).

use std::sync::Arc;

use esvit_kernels::rotary::{self, Angles};

use super::Segment;
use super::cpu::values_mut;
use super::prelude::*;

/// The angles of the tokens of a map and of those before it, as cosines and sines `[tokens, d / 2]` for
/// heads of `d` channels.
#[derive(Debug)]
pub struct RotaryAngles {
    /// Tokens of an image.
    pub tokens: usize,
    /// The cosines.
    pub cosines: Vec<f32>,
    /// The sines.
    pub sines: Vec<f32>,
}

/// Rows of queries, keys and values `[tokens of all images, 3 C]` with queries and keys turned: channels
/// `i` and `d / 2 + i` of a head, `(x, y)`, become `(x cos - y sin, y cos + x sin)`. `angles` has an
/// entry for each segment.
pub fn rotary(qkv: Tensor, segments: &[Segment], angles: &[Arc<RotaryAngles>]) -> Tensor {
    let images = segments.iter().map(|segment| segment.images).collect();
    apply(Rotary { images, angles: angles.to_vec() }, [qkv])
}

#[derive(Debug)]
struct Rotary {
    /// Number of images of every segment.
    images: Vec<usize>,
    angles: Vec<Arc<RotaryAngles>>,
}

impl Rotary {
    /// Applies a kernel to the rows of every segment.
    fn turn(&self, qkv: &mut Tensor, kernel: fn(&mut [f32], usize, &Angles<'_>)) {
        let [_, width] = qkv.dims();
        let mut rest = values_mut(qkv);
        for (images, angles) in self.images.iter().zip(&self.angles) {
            let RotaryAngles { tokens, cosines, sines } = &**angles;
            let (own, others) = std::mem::take(&mut rest).split_at_mut(images * tokens * width);
            rest = others;
            kernel(own, width, &Angles { tokens: *tokens, cosines, sines });
        }
        assert!(rest.is_empty(), "rows of all images");
    }
}

impl RotaryAngles {
    /// Factors of all channels, and those of the channels in the other half of their head,
    /// `[tokens, 3, 1, d]` each: values keep what they are.
    fn factors(&self) -> [Vec<f32>; 2] {
        let half = self.cosines.len() / self.tokens;
        let (mut own, mut others): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
        for (cosines, sines) in self.cosines.chunks(half).zip(self.sines.chunks(half)) {
            for _ in ["queries", "keys"] {
                own.extend(cosines.iter().chain(cosines));
                others.extend(sines.iter().map(|sine| -sine).chain(sines.iter().copied()));
            }
            own.extend(vec![1.0; 2 * half]);
            others.extend(vec![0.0; 2 * half]);
        }
        [own, others]
    }
}

impl Operation for Rotary {
    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let [angles] = &self.angles[..] else { return None };
        let ([_, width], tokens) = (nodes.shape(0).dims(), angles.tokens);
        let half = angles.cosines.len() / tokens;
        let depth = 2 * half;
        let x = nodes.input(0);
        let x = nodes.reshape(&x, &[tokens, 3, width / 3 / depth, depth]);
        let order: Vec<i32> = (0..depth).map(|at| ((at + half) % depth) as i32).collect();
        let order = nodes.integers(&format!("other_half_of_{depth}"), &order);
        let other = nodes.gather(&x, &order, 4);
        let [own, others] = angles.factors();
        let shape = [tokens, 3, 1, depth];
        let cosines = nodes.constant(&format!("cosines_{tokens}_{depth}"), &shape, &own);
        let sines = nodes.constant(&format!("sines_{tokens}_{depth}"), &shape, &others);
        let own = nodes.node("Mul", &[&x, &cosines], &[]);
        let others = nodes.node("Mul", &[&other, &sines], &[]);
        let turned = nodes.node("Add", &[&own, &others], &[]);
        Some(nodes.reshape(&turned, &[width]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        let mut qkv = inputs.swap_remove(0);
        self.turn(&mut qkv, rotary::turn);
        (qkv, None)
    }

    fn backward(&self, mut pass: Backward<'_>) -> InputGradients {
        self.turn(&mut pass.gradient, rotary::turn_back);
        vec![Some(pass.gradient)]
    }
}
