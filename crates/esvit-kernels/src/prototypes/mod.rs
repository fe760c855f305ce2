//! DINO's last layer and loss fused: weight-normalized prototypes, softmax, centering and
//! cross-entropy, forward and backward.
//!
//! Student row `r` has logits `s_r = z_r W^T / temp` over prototypes `W`, weight-normalized: `W_k =
//! g_k v_k / |v_k|`. Its target is a weighted sum of teacher distributions `q_j = softmax((z_j W'^T
//! - center) / temp')`. With weights `w_rj` of its pairs and their sum `m_r`:
//!
//! `loss = sum_r -sum_k t_rk log p_rk = sum_r (m_r logsumexp(s_r) - sum_j w_rj <q_j, s_r>)`.
//!
//! Prototypes are processed in chunks, and of the rows a few images at a time, since rows of
//! different images have no pair: the logits matrix is never materialized. Like an online softmax,
//! every chunk has its own row maxima and sums of exponentials, combined at the end. The backward
//! pass computes the exponentials again, unless they are so few that they are saved; the gradient of
//! the logits, `(m_r p_r - t_r) / temp`, is computed from them chunk by chunk and multiplied at once
//! into those of `z`, `v` and `g`.

mod lanes;
mod pairs;
mod part;

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len};
use crate::elementwise::dot;
use crate::gemm::NR;

pub use pairs::Pairs;
use pairs::Part;

/// Maximum prototypes of a chunk.
const CHUNK: usize = 512;

/// Minimum number of chunks, if there are enough panels, so that threads have work.
const CHUNKS: usize = 16;

/// Maximum number of groups of chunks, each one task of the backward pass with its own partial sum
/// of the gradient of `z`, whatever the number of threads.
const GROUPS: usize = 16;

/// Maximum bytes of exponentials that are saved: of 64 rows over 65,536 prototypes in f32, of twice
/// as many in bf16. For so few rows prototypes are not packed a second time.
pub const EXPONENTIALS_BYTES: usize = 16 << 20;

/// Bytes of a part's exponentials of a chunk, in L2, unless one image alone has more.
const PART_BYTES: usize = 1 << 20;

/// Maximum rows of both sides that go through forward and backward together, unless one image alone
/// has more: more would need larger partial sums, fewer would pack prototypes more often.
const ROWS: usize = 4096;

/// Weight-normalized prototypes `[K, D]`: `W_k = g_k v_k / |v_k|`.
#[derive(Debug, Clone, Copy)]
pub struct Prototypes<'a> {
    /// Directions `[K, D]`, of any norm.
    pub v: &'a [f32],
    /// Norms `[K]`.
    pub g: &'a [f32],
}

impl Prototypes<'_> {
    /// `W` of `count` prototypes from `first` on, `[count, D]`.
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
    /// Input rows of the last layer, `[rows, D]`.
    pub z: &'a [f32],
    /// The last layer.
    pub prototypes: Prototypes<'a>,
    /// Temperature.
    pub temperature: f32,
}

/// Gradients of the student.
#[derive(Debug)]
pub struct Gradients {
    /// Of `z`, `[rows, D]`.
    pub z: Vec<f32>,
    /// Of `v`, `[K, D]`.
    pub v: Vec<f32>,
    /// Of `g`, `[K]`.
    pub g: Vec<f32>,
}

/// How prototypes are split into chunks and groups of chunks.
#[derive(Debug, Clone, Copy)]
struct Chunking {
    prototypes: usize,
    /// Prototypes of a chunk; the last one may have fewer.
    chunk: usize,
    d: usize,
    /// Rows of both sides of a part that buffers are allocated for.
    row_capacity: usize,
    /// Maximum bytes of saved exponentials.
    saved_bytes: usize,
}

impl Chunking {
    fn new(prototypes: usize, d: usize) -> Self {
        let chunk = prototypes.div_ceil(CHUNKS).next_multiple_of(NR).min(CHUNK);
        Self { prototypes, chunk, d, row_capacity: 0, saved_bytes: 0 }
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

    /// Bytes of the exponentials of some parts.
    fn exponential_bytes<T: Element>(&self, parts: usize) -> usize {
        let chunk = self.row_capacity * padded_row_len::<T>(self.chunk) * size_of::<T>();
        parts * self.chunks() * chunk
    }
}

/// The loss, summed over rows, and with `gradients` those of the student. `center [K]` is
/// subtracted from the teacher's logits.
///
/// # Panics
/// When lengths do not match.
pub fn cross_entropy<T: Element>(
    student: &Side<'_>,
    teacher: &Side<'_>,
    center: &[f32],
    pairs: &Pairs,
    gradients: bool,
) -> (f32, Option<Gradients>) {
    let part_rows = PART_BYTES / (CHUNK * size_of::<T>());
    let limits = Limits { part_rows, rows: ROWS, saved_bytes: EXPONENTIALS_BYTES };
    cross_entropy_within::<T>([student, teacher], center, pairs, gradients, limits)
}

/// What bounds the memory of [`cross_entropy`].
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Rows of both sides of a part, if the pairs allow.
    part_rows: usize,
    /// Rows of parts that are computed together, unless one has more.
    rows: usize,
    /// Bytes of saved exponentials.
    saved_bytes: usize,
}

/// [`cross_entropy`] within these limits, which change no result but for rounding.
fn cross_entropy_within<T: Element>(
    [student, teacher]: [&Side<'_>; 2],
    center: &[f32],
    pairs: &Pairs,
    gradients: bool,
    Limits { part_rows, rows: most_rows, saved_bytes }: Limits,
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
    let parts = pairs.parts(teachers, part_rows);
    // Allocations do not depend on how many teacher rows have a pair, so that the next step finds
    // buffers of the same size.
    let largest = parts.iter().map(Part::size).max().unwrap_or(0);
    let row_capacity = largest.max(part_rows.min(rows + teachers));
    let chunking = Chunking { row_capacity, saved_bytes, ..Chunking::new(prototypes, d) };
    let mut loss = 0.0;
    let mut left = &parts[..];
    while !left.is_empty() {
        let mut sum = 0;
        let together = left
            .iter()
            .take_while(|part| {
                sum += part.size();
                sum <= most_rows
            })
            .count();
        let (now, later) = left.split_at(together.max(1));
        loss += part::cross_entropy::<T>(student, teacher, center, now, chunking, sums.as_mut());
        left = later;
    }
    (loss as f32, sums)
}

/// The logits `z W^T [rows, K]` of a few rows `z [rows, D]`, in f32, without temperature.
///
/// # Panics
/// When lengths do not match.
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
            rows.flat_map(|z| chunk.chunks_exact(d).map(|w| dot(z, w)).collect::<Vec<f32>>())
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
