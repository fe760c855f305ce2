//! The last layer and the loss in one: prototypes, softmax, targets and cross-entropy, forward and
//! backward.
//!
//! Student row `r` has logits `s_r = z_r W^T / temp` over prototypes `W`, rows of `v` at the length
//! `g`. Its target is a weighted sum of teacher distributions `q_j`, the softmax of
//! `(z_j W'^T - center) / temp'`. With weights `w_rj` over its pairs and `m_r` their sum the loss is
//!
//! `sum_r -sum_k t_rk log p_rk = sum_r (m_r logsumexp(s_r) - sum_j w_rj <q_j, s_r>)`.
//!
//! Prototypes are walked in chunks, so that logits never exist as a whole. The exponentials of a
//! chunk are kept in the stored type, relative to the largest logit of their row in that chunk;
//! the gradient of the logits, `m_r p_r - t_r`, is made from them chunk by chunk and goes at once
//! into the gradients of `z`, `v` and `g`.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::element::{Element, row_len};
use crate::product::{Extent, LANES, Left, Out, Packed, STRIP, Strip, convert, interleave};
use crate::profile;
use crate::simd::{dispatch, exp, max, sum};

/// Most prototypes of a chunk.
const CHUNK: usize = 512;

/// Chunks there are at least, if there are strips enough, so that threads have work.
const CHUNKS: usize = 16;

/// Groups of chunks, each with its own sums of the gradient of `z`, whatever the number of threads.
/// What is kept of a group is one buffer, so that it is free for other work once the group's
/// gradient is made.
const GROUPS: usize = 16;

/// Rows whose logits of a chunk are worked on together, in the second-level cache.
const BLOCK_ROWS: usize = 96;

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
        let mut rows = Buffer::<f32>::stale(count * d);
        rows.copy_from_slice(&self.v[first * d..(first + count) * d]);
        for (row, &g) in rows.chunks_exact_mut(d).zip(&self.g[first..first + count]) {
            scale(row, g / square_norm(row).sqrt());
        }
        rows
    }
}

/// Which teacher rows make up the target of each student row, and with what weight.
#[derive(Debug, Clone, Default)]
pub struct Pairs {
    starts: Vec<u32>,
    teachers: Vec<u32>,
    weights: Vec<f32>,
}

impl Pairs {
    /// No student row yet.
    pub fn new() -> Self {
        Self { starts: vec![0], teachers: Vec::new(), weights: Vec::new() }
    }

    /// Adds a student row with its teacher rows and their weights.
    pub fn push(&mut self, pairs: impl IntoIterator<Item = (usize, f32)>) {
        for (teacher, weight) in pairs {
            self.teachers.push(teacher as u32);
            self.weights.push(weight);
        }
        self.starts.push(self.teachers.len() as u32);
    }

    /// Number of student rows.
    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Teacher rows and weights of a student row.
    pub fn of(&self, row: usize) -> impl Iterator<Item = (usize, f32)> {
        self.range(row).map(|pair| (self.teachers[pair] as usize, self.weights[pair]))
    }

    fn range(&self, row: usize) -> std::ops::Range<usize> {
        self.starts[row] as usize..self.starts[row + 1] as usize
    }

    fn mass(&self, row: usize) -> f32 {
        self.weights[self.range(row)].iter().sum()
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

/// Largest scaled logit of a row in a chunk, and the sum of exponentials relative to it.
type Partition = [f32; 2];

/// How the prototypes are walked.
#[derive(Clone, Copy)]
struct Walk {
    prototypes: usize,
    /// Prototypes of a chunk; the last one may have fewer.
    chunk: usize,
    d: usize,
}

impl Walk {
    fn new(prototypes: usize, d: usize) -> Self {
        let chunk = prototypes.div_ceil(CHUNKS).next_multiple_of(STRIP).min(CHUNK);
        Self { prototypes, chunk, d }
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

/// The loss, and with `gradients` those of the student's side. The teacher's logits are centred by
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
    let prototypes = center.len();
    let d = student.prototypes.v.len() / prototypes;
    for side in [student, teacher] {
        assert_eq!(side.prototypes.g.len(), prototypes, "prototypes");
        assert_eq!(side.prototypes.v.len(), prototypes * d, "width of the prototypes");
    }
    let rows = pairs.rows();
    let teachers = teacher.z.len() / d;
    assert_eq!(student.z.len(), rows * d, "student's rows");
    assert!(pairs.teachers.iter().all(|&row| (row as usize) < teachers), "teacher's rows");

    let walk = Walk::new(prototypes, d);
    let mut chunks = vec![Chunk::default(); walk.chunks()];
    let [z, teacher_z] = [student, teacher].map(|side| stored_rows::<T>(side.z, d));
    let macs = (rows + teachers) * prototypes * d;
    let groups: Vec<Buffer<T>> = profile::time("prototypes forward", macs, || {
        let groups = chunks.par_chunks_mut(walk.per_group()).enumerate();
        let forward = |(group, chunks): (usize, &mut [Chunk])| {
            let exponents = (rows + teachers) * row_len::<T>(walk.chunk);
            let kept = if gradients { chunks.len() } else { 1 };
            let mut kept_exponents = Buffer::<T>::stale(kept * exponents);
            for (at, chunk) in chunks.iter_mut().enumerate() {
                let index = group * walk.per_group() + at;
                let (first, count) = (index * walk.chunk, walk.count(index));
                let center = Some(&center[first..first + count]);
                let lanes = row_len::<T>(count);
                let exponents = &mut kept_exponents[at.min(kept - 1) * exponents..][..exponents];
                let (teacher_exponents, student_exponents) =
                    exponents.split_at_mut(teachers * lanes);
                let teacher_rows = teacher.prototypes.chunk(first, count);
                chunk.teacher = exponentials(
                    &teacher_z,
                    &teacher_rows,
                    d,
                    center,
                    teacher.temperature,
                    teacher_exponents,
                    |_, _| {},
                );
                let student_rows = student.prototypes.chunk(first, count);
                let mut dots = vec![0.0; pairs.teachers.len()];
                chunk.student = exponentials(
                    &z,
                    &student_rows,
                    d,
                    None,
                    student.temperature,
                    student_exponents,
                    |row, logits| {
                        for pair in pairs.range(row) {
                            let teacher = pairs.teachers[pair] as usize;
                            dots[pair] =
                                dot(&teacher_exponents[teacher * lanes..][..count], logits);
                        }
                    },
                );
                chunk.dots = dots;
            }
            kept_exponents
        };
        groups.map(forward).collect()
    });

    let teacher_log_sums = log_sums(&chunks, teachers, |chunk| &chunk.teacher);
    let student_log_sums = log_sums(&chunks, rows, |chunk| &chunk.student);
    let mut loss = 0f64;
    for (row, &log_sum) in student_log_sums.iter().enumerate() {
        loss += f64::from(pairs.mass(row)) * f64::from(log_sum);
        for pair in pairs.range(row) {
            let teacher = pairs.teachers[pair] as usize;
            let overlap: f64 = chunks
                .iter()
                .map(|chunk| {
                    let [largest, _] = chunk.teacher[teacher];
                    let share = (largest - teacher_log_sums[teacher]).exp();
                    f64::from(share) * f64::from(chunk.dots[pair])
                })
                .sum();
            loss -= f64::from(pairs.weights[pair]) * overlap;
        }
    }
    let gradients = gradients.then(|| {
        let log_sums = [&student_log_sums[..], &teacher_log_sums[..]];
        profile::time("prototypes backward", 2 * rows * prototypes * d, || {
            backward(student, &z, &chunks, groups, pairs, log_sums, walk)
        })
    });
    (loss as f32, gradients)
}

/// The logits `[rows, K]` of a few rows `z [rows, D]`, in f32.
///
/// # Panics
/// When the lengths do not fit.
pub fn logits(z: &[f32], prototypes: &Prototypes<'_>) -> Vec<f32> {
    let count = prototypes.g.len();
    let d = prototypes.v.len() / count;
    let (rows, walk) = (z.len() / d, Walk::new(count, d));
    assert_eq!(z.len(), rows * d, "whole rows");
    let chunks: Vec<Vec<f32>> = (0..walk.chunks())
        .into_par_iter()
        .map(|at| {
            let chunk = prototypes.chunk(at * walk.chunk, walk.count(at));
            let rows = z.chunks_exact(d);
            rows.flat_map(|z| chunk.chunks_exact(d).map(|w| dot(z, w)).collect::<Vec<f32>>())
                .collect()
        })
        .collect();
    let mut logits = vec![0.0; rows * count];
    for (row, logits) in logits.chunks_exact_mut(count).enumerate() {
        for (at, chunk) in chunks.iter().enumerate() {
            let n = walk.count(at);
            logits[at * walk.chunk..][..n].copy_from_slice(&chunk[row * n..][..n]);
        }
    }
    logits
}

/// What is kept of a chunk of prototypes beside its exponentials.
#[derive(Debug, Clone, Default)]
struct Chunk {
    student: Vec<Partition>,
    teacher: Vec<Partition>,
    /// For every pair, the teacher's exponentials times the student's scaled logits.
    dots: Vec<f32>,
}

/// Rows in the stored type, each at its stored length.
fn stored_rows<T: Element>(rows: &[f32], width: usize) -> Buffer<T> {
    let row = row_len::<T>(width);
    let mut stored = Buffer::<T>::rows(rows.len() / width, width);
    for (from, to) in rows.chunks_exact(width).zip(stored.chunks_exact_mut(row)) {
        convert(from, None, to);
    }
    stored
}

/// Exponentials of the logits of rows `z` for a chunk of prototypes, relative to the row's largest,
/// into `values [rows, chunk]`; `see` is shown every row's scaled logits.
fn exponentials<T: Element>(
    z: &[T],
    prototypes: &[f32],
    d: usize,
    center: Option<&[f32]>,
    temperature: f32,
    values: &mut [T],
    mut see: impl FnMut(usize, &[f32]),
) -> Vec<Partition> {
    let count = prototypes.len() / d;
    let (row, lanes) = (row_len::<T>(d), row_len::<T>(count));
    let packed = Packed::<T>::transposed(prototypes, d, None);
    let rows = z.len() / row;
    let padded = count.next_multiple_of(LANES);
    let mut partitions = vec![[0.0; 2]; rows];
    let mut logits = Buffer::<f32>::stale(BLOCK_ROWS.min(rows) * padded);
    for start in (0..rows).step_by(BLOCK_ROWS) {
        let block = BLOCK_ROWS.min(rows - start);
        let left = Left::rows(&z[start * row..], row);
        let extent = Extent { rows: block, steps: packed.steps() };
        for (first, strip) in packed.strips() {
            let mut out = Out { values: &mut logits[first..], row: padded };
            T::multiply(left, strip, extent, &mut out, false);
        }
        for (at, logits) in logits.chunks_exact_mut(padded).enumerate().take(block) {
            let logits = &mut logits[..count];
            partitions[start + at][0] = scale_logits(logits, center, 1.0 / temperature);
            see(start + at, logits);
            let to = &mut values[(start + at) * lanes..][..lanes];
            to[count..].fill(T::default());
            partitions[start + at][1] =
                exponentiate(logits, partitions[start + at][0], &mut to[..count]);
        }
    }
    partitions
}

/// The logarithm of the sum of all exponentials of every row.
fn log_sums(chunks: &[Chunk], rows: usize, side: impl Fn(&Chunk) -> &[Partition]) -> Vec<f32> {
    (0..rows)
        .map(|row| {
            let partitions = || chunks.iter().map(|chunk| side(chunk)[row]);
            // A largest logit that is not a number must not be passed over.
            let larger = |a: f32, b: f32| if a >= b || a.is_nan() { a } else { b };
            let largest = partitions().map(|[largest, _]| largest).fold(f32::NEG_INFINITY, larger);
            let total: f64 = partitions()
                .map(|[own, sum]| f64::from(sum) * f64::from(own - largest).exp())
                .sum();
            (f64::from(largest) + total.ln()) as f32
        })
        .collect()
}

fn backward<T: Element>(
    student: &Side<'_>,
    z: &[T],
    chunks: &[Chunk],
    groups: Vec<Buffer<T>>,
    pairs: &Pairs,
    log_sums: [&[f32]; 2],
    walk: Walk,
) -> Gradients {
    let Walk { prototypes, d, .. } = walk;
    let (rows, row, width) = (pairs.rows(), row_len::<T>(d), d.next_multiple_of(LANES));
    let steps = rows.div_ceil(T::PAIR);
    let mut z_down = Buffer::<T>::zeroed(steps * width * T::PAIR);
    interleave(z, row, rows, d, &mut z_down, width * T::PAIR);

    let mut v = Buffer::<f32>::stale(prototypes * d);
    let mut g = vec![0.0; prototypes];
    let per_group = walk.per_group();
    let teachers = log_sums[1].len();
    let exponents = (rows + teachers) * row_len::<T>(walk.chunk);
    let dv_groups = v.par_chunks_mut(per_group * walk.chunk * d);
    let dg_groups = g.par_chunks_mut(per_group * walk.chunk);
    let parts: Vec<Buffer<f32>> = dv_groups
        .zip(dg_groups)
        .zip(groups)
        .zip(chunks.par_chunks(per_group))
        .enumerate()
        .map(|(group, (((dv, dg), kept), chunks))| {
            let mut dz = Buffer::<f32>::zeroed(rows * width);
            let pieces = dv.chunks_mut(walk.chunk * d).zip(dg.chunks_mut(walk.chunk));
            let kept = kept.chunks(exponents).zip(chunks);
            for (at, ((dv, dg), (exponents, chunk))) in pieces.zip(kept).enumerate() {
                let first = (group * per_group + at) * walk.chunk;
                let count = dg.len();
                let exponents = exponents.split_at(teachers * row_len::<T>(count));
                let temperature = student.temperature;
                let dlogits =
                    logit_gradients(chunk, exponents, count, pairs, log_sums, temperature);
                let rows_of_chunk = student.prototypes.chunk(first, count);
                let packed = Packed::<T>::straight(&rows_of_chunk, d, None);
                let lanes = row_len::<T>(count);
                let left = Left::rows(&dlogits, lanes);
                for (first, strip) in packed.strips() {
                    let mut out = Out { values: &mut dz[first..], row: width };
                    let extent = Extent { rows, steps: packed.steps() };
                    T::multiply(left, strip, extent, &mut out, true);
                }
                let mut turned = Buffer::<T>::stale(steps * lanes * T::PAIR);
                interleave(&dlogits, lanes, rows, lanes, &mut turned, lanes * T::PAIR);
                let mut dw = Buffer::<f32>::stale(count * width);
                let left = Left::transposed(&turned, lanes);
                for first in (0..width).step_by(STRIP) {
                    let strip = Strip {
                        values: &z_down[first * T::PAIR..],
                        step: width * T::PAIR,
                        width: STRIP.min(width - first),
                    };
                    let mut out = Out { values: &mut dw[first..], row: width };
                    T::multiply(left, strip, Extent { rows: count, steps }, &mut out, false);
                }
                let chunk = first * d..(first + count) * d;
                let from = student.prototypes.v[chunk].chunks_exact(d).zip(dw.chunks_exact(width));
                let to = dv.chunks_exact_mut(d).zip(dg);
                for (k, ((v, dw), (dv, dg))) in from.zip(to).enumerate() {
                    *dg = direction_gradient(v, student.prototypes.g[first + k], &dw[..d], dv);
                }
            }
            dz
        })
        .collect();
    let mut dz = vec![0.0; rows * d];
    for part in parts {
        for (dz, part) in dz.chunks_exact_mut(d).zip(part.chunks_exact(width)) {
            dz.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
    }
    Gradients { z: dz, v: v.into_vec(), g }
}

/// `(m_r p_rk - t_rk) / temp` for the prototypes of a chunk, `[rows, count]`.
fn logit_gradients<T: Element>(
    chunk: &Chunk,
    (teacher_exponents, student_exponents): (&[T], &[T]),
    count: usize,
    pairs: &Pairs,
    [student_log_sums, teacher_log_sums]: [&[f32]; 2],
    temperature: f32,
) -> Buffer<T> {
    let lanes = row_len::<T>(count);
    let mut gradients = Buffer::<T>::rows(pairs.rows(), count);
    let mut sums = Buffer::<f32>::stale(count);
    for (row, to) in gradients.chunks_exact_mut(lanes).enumerate() {
        let [largest, _] = chunk.student[row];
        let share = (largest - student_log_sums[row]).exp() * pairs.mass(row) / temperature;
        weigh(&student_exponents[row * lanes..][..count], share, &mut sums);
        for (teacher, weight) in pairs.of(row) {
            let [largest, _] = chunk.teacher[teacher];
            let share = (largest - teacher_log_sums[teacher]).exp() * weight / temperature;
            subtract(&teacher_exponents[teacher * lanes..][..count], share, &mut sums);
        }
        convert(&sums, None, &mut to[..count]);
    }
    gradients
}

dispatch! {
    fn square_norm(row: &[f32]) -> f32 {
        sum(row.len(), |i| row[i] * row[i])
    }
}

dispatch! {
    pub(crate) fn scale(row: &mut [f32], factor: f32) {
        for value in row {
            *value *= factor;
        }
    }
}

dispatch! {
    /// Centres and scales logits; returns the largest.
    fn scale_logits(logits: &mut [f32], center: Option<&[f32]>, inverse: f32) -> f32 {
        match center {
            Some(center) => {
                let center = &center[..logits.len()];
                for i in 0..logits.len() {
                    logits[i] = (logits[i] - center[i]) * inverse;
                }
            }
            None => {
                for logit in logits.iter_mut() {
                    *logit *= inverse;
                }
            }
        }
        max(logits)
    }
}

dispatch! {
    /// Stores `e^(logit - largest)` and returns the sum of what was stored.
    fn exponentiate<T: Element>(logits: &mut [f32], largest: f32, to: &mut [T]) -> f32 {
        let to = &mut to[..logits.len()];
        for i in 0..logits.len() {
            to[i] = T::from_f32(exp(logits[i] - largest));
        }
        sum(to.len(), |i| to[i].to_f32())
    }
}

dispatch! {
    fn dot<T: Element>(a: &[T], b: &[f32]) -> f32 {
        let b = &b[..a.len()];
        sum(a.len(), |i| a[i].to_f32() * b[i])
    }
}

dispatch! {
    fn weigh<T: Element>(values: &[T], weight: f32, sums: &mut [f32]) {
        let sums = &mut sums[..values.len()];
        for i in 0..values.len() {
            sums[i] = values[i].to_f32() * weight;
        }
    }
}

dispatch! {
    fn subtract<T: Element>(values: &[T], weight: f32, sums: &mut [f32]) {
        let sums = &mut sums[..values.len()];
        for i in 0..values.len() {
            sums[i] -= values[i].to_f32() * weight;
        }
    }
}

dispatch! {
    /// From the gradient of a prototype `g v / |v|` those of `v` and, returned, of `g`.
    fn direction_gradient(v: &[f32], g: f32, dw: &[f32], dv: &mut [f32]) -> f32 {
        let d = v.len();
        let (dw, dv) = (&dw[..d], &mut dv[..d]);
        let inverse = 1.0 / sum(d, |i| v[i] * v[i]).sqrt();
        let dg = sum(d, |i| v[i] * dw[i]) * inverse;
        for i in 0..d {
            dv[i] = (dw[i] - v[i] * inverse * dg) * inverse * g;
        }
        dg
    }
}

#[cfg(test)]
mod tests;
