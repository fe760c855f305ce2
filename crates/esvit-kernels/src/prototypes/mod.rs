//! The last layer and the loss in one: prototypes, softmax, targets and cross-entropy, forward and
//! backward.
//!
//! Student row `r` has logits `s_r = z_r W^T / temp` over prototypes `W`, rows of `v` at the length
//! `g`. Its target is a weighted sum of teacher distributions `q_j`, the softmax of
//! `(z_j W'^T - center) / temp'`. With weights `w_rj` over its pairs and `m_r` their sum the loss is
//!
//! `sum_r -sum_k t_rk log p_rk = sum_r (m_r logsumexp(s_r) - sum_j w_rj <q_j, s_r>)`.
//!
//! Rows of different images have no pair, so a few images at a time are worked on from end to
//! end. Prototypes are walked in chunks, so that logits never exist as a whole. The exponentials of
//! a chunk are kept in the stored type, relative to the largest logit of their row in that chunk;
//! the gradient of the logits, `m_r p_r - t_r`, is made from them chunk by chunk and goes at once
//! into the gradients of `z`, `v` and `g`.

mod lanes;
mod pairs;
mod part;

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::element::Element;
use crate::gemm::NR;

pub(crate) use lanes::scale;
pub use pairs::Pairs;
use pairs::Part;

/// Most prototypes of a chunk.
const CHUNK: usize = 512;

/// Chunks there are at least, if there are strips enough, so that threads have work.
const CHUNKS: usize = 16;

/// Groups of chunks, each with its own sums of the gradient of `z`, whatever the number of threads.
/// What is kept of a group is one buffer, so that it is free for other work once the group's
/// gradient is made.
const GROUPS: usize = 16;

/// Bytes of exponentials that are kept at a time, unless one image alone has more. For fewer rows
/// at a time, prototypes are laid out more often: these are 512 rows over 65,536 prototypes in f32
/// and twice as many in bf16.
pub const EXPONENTIALS_BYTES: usize = 128 << 20;

/// Prototypes `[K, D]`: row `k` has the direction of `v_k` and the length `g_k`.
#[derive(Debug, Clone, Copy)]
pub struct Prototypes<'a> {
    /// Directions, `[K, D]`.
    pub v: &'a [f32],
    /// Lengths, `[K]`.
    pub g: &'a [f32],
}

impl Prototypes<'_> {
    /// Prototypes `first ..` of a chunk, at their lengths: `[chunk, D]`.
    fn chunk(&self, first: usize, count: usize) -> Buffer<f32> {
        let d = self.v.len() / self.g.len();
        let mut rows = Buffer::<f32>::uninit(count * d);
        let v = self.v[first * d..].chunks_exact(d);
        for ((row, v), &g) in rows.chunks_exact_mut(d).zip(v).zip(&self.g[first..first + count]) {
            lanes::weight_norm(v, g, row);
        }
        rows
    }
}

/// One side of the loss.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Rows before the last layer, `[rows, D]`.
    pub z: &'a [f32],
    /// The last layer.
    pub prototypes: Prototypes<'a>,
    /// By what logits are divided.
    pub temperature: f32,
}

/// Gradients of the student's side.
#[derive(Debug)]
pub struct Gradients {
    /// Of `z`.
    pub z: Vec<f32>,
    /// Of the prototypes' directions.
    pub v: Vec<f32>,
    /// Of their lengths.
    pub g: Vec<f32>,
}

/// How the prototypes are walked.
#[derive(Debug, Clone, Copy)]
struct Chunking {
    prototypes: usize,
    /// Prototypes of a chunk; the last one may have fewer.
    chunk: usize,
    d: usize,
    /// Rows of both sides that memory is taken for.
    row_capacity: usize,
}

impl Chunking {
    fn new(prototypes: usize, d: usize) -> Self {
        let chunk = prototypes.div_ceil(CHUNKS).next_multiple_of(NR).min(CHUNK);
        Self { prototypes, chunk, d, row_capacity: 0 }
    }

    fn chunks(&self) -> usize {
        self.prototypes.div_ceil(self.chunk)
    }

    fn count(&self, chunk: usize) -> usize {
        self.chunk.min(self.prototypes - chunk * self.chunk)
    }

    /// Chunks of a group; the last one may have fewer.
    fn per_group(&self) -> usize {
        self.chunks().div_ceil(GROUPS)
    }
}

/// The loss, and with `gradients` those of the student's side. The teacher's logits are centered by
/// `center [K]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn cross_entropy<T: Element>(
    student: &Side<'_>,
    teacher: &Side<'_>,
    center: &[f32],
    pairs: &Pairs,
    gradients: bool,
) -> (f32, Option<Gradients>) {
    let max_rows = EXPONENTIALS_BYTES / (center.len() * size_of::<T>());
    cross_entropy_in_parts::<T>([student, teacher], center, pairs, gradients, max_rows)
}

/// The same, `max_rows` rows of both sides at a time if their pairs allow.
fn cross_entropy_in_parts<T: Element>(
    [student, teacher]: [&Side<'_>; 2],
    center: &[f32],
    pairs: &Pairs,
    gradients: bool,
    max_rows: usize,
) -> (f32, Option<Gradients>) {
    let prototypes = center.len();
    let d = student.prototypes.v.len() / prototypes;
    for side in [student, teacher] {
        assert_eq!(side.prototypes.g.len(), prototypes, "prototypes");
        assert_eq!(side.prototypes.v.len(), prototypes * d, "width of the prototypes");
    }
    let rows = pairs.rows();
    assert_eq!(student.z.len(), rows * d, "student's rows");

    let mut sums = gradients.then(|| Gradients {
        z: vec![0.0; rows * d],
        v: Buffer::<f32>::zeroed(prototypes * d).into_vec(),
        g: vec![0.0; prototypes],
    });
    let teachers = teacher.z.len() / d;
    let parts = pairs.parts(teachers, max_rows);
    // What is set aside for a part does not depend on how many teacher rows found a pair, so that
    // the next step finds it in the pool.
    let largest = parts.iter().map(Part::size).max().unwrap_or(0);
    let row_capacity = largest.max(max_rows.min(rows + teachers));
    let chunking = Chunking { row_capacity, ..Chunking::new(prototypes, d) };
    let mut loss = 0.0;
    for part in &parts {
        loss += part::cross_entropy::<T>(student, teacher, center, part, chunking, sums.as_mut());
    }
    (loss as f32, sums)
}

/// The logits `[rows, K]` of a few rows `z [rows, D]`, in f32.
///
/// # Panics
/// When the lengths do not fit.
pub fn logits(z: &[f32], prototypes: &Prototypes<'_>) -> Vec<f32> {
    let count = prototypes.g.len();
    let d = prototypes.v.len() / count;
    let (rows, chunking) = (z.len() / d, Chunking::new(count, d));
    assert_eq!(z.len(), rows * d, "whole rows");
    let chunks: Vec<Vec<f32>> = (0..chunking.chunks())
        .into_par_iter()
        .map(|at| {
            let chunk = prototypes.chunk(at * chunking.chunk, chunking.count(at));
            let rows = z.chunks_exact(d);
            rows.flat_map(|z| chunk.chunks_exact(d).map(|w| lanes::dot(z, w)).collect::<Vec<f32>>())
                .collect()
        })
        .collect();
    let mut logits = vec![0.0; rows * count];
    for (row, logits) in logits.chunks_exact_mut(count).enumerate() {
        for (at, chunk) in chunks.iter().enumerate() {
            let n = chunking.count(at);
            logits[at * chunking.chunk..][..n].copy_from_slice(&chunk[row * n..][..n]);
        }
    }
    logits
}

#[cfg(test)]
mod tests;
