//! Loss and gradients of some parts of the rows, over all prototypes.

use rayon::prelude::*;

use super::lanes::{exponentiate, scale_logits, weight_norm_backward};
use super::pairs::{Pairs, Part};
use super::{Chunking, Gradients, Side};
use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len};
use crate::elementwise::{dot, scale_into, update};
use crate::gemm::{Dims, LANES, Lhs, PackedRhs, convert, gemm, pack_vnni};
use crate::profile;

/// Rows whose logits of a chunk are computed together, in L2.
const BLOCK_ROWS: usize = 96;

/// Maximum of a row's logits in a chunk, and the sum of exponentials relative to it.
type SoftmaxStats = [f32; 2];

/// A part with its rows as GEMM operands.
struct Operands<'a, T: Element> {
    part: &'a Part,
    student: Buffer<T>,
    teacher: Buffer<T>,
}

/// A chunk of one side's prototypes, packed for the logits of its rows.
struct Logits<'a, T: Element> {
    packed: PackedRhs<T>,
    count: usize,
    center: Option<&'a [f32]>,
    temperature: f32,
}

/// What the forward pass keeps of a part's logits of a chunk.
#[derive(Debug)]
struct Chunk<T: Element> {
    student: Vec<SoftmaxStats>,
    teacher: Vec<SoftmaxStats>,
    /// For every pair, `<teacher's exponentials, student's logits>`.
    dots: Vec<f32>,
    /// Exponentials of all rows, the teacher's first; None where the backward pass computes them
    /// again.
    exps: Option<Buffer<T>>,
}

/// logsumexp of every row of a part.
struct LogSums {
    student: Vec<f32>,
    teacher: Vec<f32>,
}

/// The loss of some parts; adds its gradients to `sums`, if given.
pub(super) fn cross_entropy<T: Element>(
    student: &Side<'_>,
    teacher: &Side<'_>,
    center: &[f32],
    parts: &[Part],
    chunking: Chunking,
    sums: Option<&mut Gradients>,
) -> f64 {
    let Chunking { prototypes, d, .. } = chunking;
    let operands = parts.iter().map(|part| Operands {
        part,
        student: gather_rows::<T>(student.z, &part.rows, d),
        teacher: gather_rows::<T>(teacher.z, &part.teachers, d),
    });
    let operands: Vec<_> = operands.collect();
    let logits = |chunk| {
        let (first, count) = (chunk * chunking.chunk, chunking.count(chunk));
        let of = |side: &Side<'_>, center| {
            let rows = side.prototypes.chunk(first, count);
            let packed = PackedRhs::<T>::from_transposed(&rows, d, None);
            Logits { packed, count, center, temperature: side.temperature }
        };
        [of(student, None), of(teacher, Some(&center[first..first + count]))]
    };
    let is_saved =
        sums.is_some() && chunking.exponential_bytes::<T>(parts.len()) <= chunking.saved_bytes;
    let of_chunk = |chunk| {
        let logits = logits(chunk);
        let of_part = |operands: &Operands<'_, T>| {
            let found = operands.forward(&logits, chunking);
            if is_saved { found } else { Chunk { exps: None, ..found } }
        };
        operands.iter().map(of_part).collect()
    };
    let rows: usize = parts.iter().map(Part::size).sum();
    let mut chunks: Vec<Vec<Chunk<T>>> =
        profile::time("prototypes forward", rows * prototypes * d, || {
            (0..chunking.chunks()).into_par_iter().map(of_chunk).collect()
        });

    let mut loss = 0.0;
    let mut log_sums = Vec::with_capacity(parts.len());
    for (at, part) in parts.iter().enumerate() {
        let of_part: Vec<&Chunk<T>> = chunks.iter().map(|chunk| &chunk[at]).collect();
        let sums = LogSums::new(part, &of_part);
        loss += loss_of(&part.pairs, &of_part, &sums);
        log_sums.push(sums);
    }
    if let Some(sums) = sums {
        let rows: usize = parts.iter().map(|part| part.rows.len()).sum();
        profile::time("prototypes backward", 2 * rows * prototypes * d, || {
            backward(student, &operands, logits, &mut chunks, &log_sums, chunking, sums);
        });
    }
    loss
}

/// Gathers rows in the element type, each padded.
fn gather_rows<T: Element>(values: &[f32], rows: &[usize], width: usize) -> Buffer<T> {
    let mut stored = Buffer::<T>::rows(rows.len(), width);
    for (&row, to) in rows.iter().zip(stored.chunks_exact_mut(padded_row_len::<T>(width))) {
        convert(&values[row * width..][..width], None, to);
    }
    stored
}

/// Packs rows of `width` values, `stride` apart, whose number becomes the K dimension, with `columns`
/// for the values of each: zeros behind them.
fn pack<T: Element>(
    values: &[T],
    rows: usize,
    stride: usize,
    width: usize,
    columns: usize,
) -> Buffer<T> {
    let len = rows.div_ceil(T::K_PACK) * columns * T::K_PACK;
    let mut packed = if columns > width { Buffer::zeroed(len) } else { Buffer::uninit(len) };
    pack_vnni(values, stride, rows, width, &mut packed, columns * T::K_PACK);
    packed
}

impl<T: Element> Operands<'_, T> {
    /// What the loss needs of a chunk of prototypes.
    fn forward(&self, logits: &[Logits<'_, T>; 2], chunking: Chunking) -> Chunk<T> {
        let pairs = &self.part.pairs;
        let (count, lanes) = (logits[0].count, padded_row_len::<T>(logits[0].count));
        let mut dots = vec![0.0; pairs.len()];
        let ([student, teacher], exps) =
            self.exponentials(logits, chunking, |row, logits, of_teacher| {
                for pair in pairs.range(row) {
                    let (teacher, _) = pairs.get(pair);
                    dots[pair] = dot(&of_teacher[teacher * lanes..][..count], logits);
                }
            });
        Chunk { student, teacher, dots, exps: Some(exps) }
    }

    /// Exponentials of a chunk of prototypes, the teacher's first, and what makes those of student and
    /// teacher a softmax. `on_logits` gets every row's logits of the student, with all exponentials of the
    /// teacher.
    fn exponentials(
        &self,
        [student, teacher]: &[Logits<'_, T>; 2],
        chunking: Chunking,
        mut on_logits: impl FnMut(usize, &[f32], &[T]),
    ) -> ([Vec<SoftmaxStats>; 2], Buffer<T>) {
        let Chunking { d, row_capacity, chunk, .. } = chunking;
        let lanes = padded_row_len::<T>(student.count);
        let mut exps = Buffer::<T>::uninit(row_capacity * padded_row_len::<T>(chunk));
        let (of_teacher, of_student) = exps.split_at_mut(self.part.teachers.len() * lanes);
        let teacher = teacher.exponentials(&self.teacher, d, of_teacher, |_, _| {});
        let student = student.exponentials(&self.student, d, of_student, |row, logits| {
            on_logits(row, logits, of_teacher);
        });
        ([student, teacher], exps)
    }
}

impl<T: Element> Logits<'_, T> {
    /// Exponentials `e^(s - max)` of the logits of rows `z`, into `values [rows, count]`;
    /// `on_logits` gets every row's logits.
    fn exponentials(
        &self,
        z: &[T],
        d: usize,
        values: &mut [T],
        mut on_logits: impl FnMut(usize, &[f32]),
    ) -> Vec<SoftmaxStats> {
        let count = self.count;
        let (row, lanes) = (padded_row_len::<T>(d), padded_row_len::<T>(count));
        let rows = z.len() / row;
        let padded = count.next_multiple_of(LANES);
        let mut stats = vec![[0.0; 2]; rows];
        let mut logits = Buffer::<f32>::uninit(BLOCK_ROWS.min(rows) * padded);
        for start in (0..rows).step_by(BLOCK_ROWS) {
            let block = BLOCK_ROWS.min(rows - start);
            let lhs = Lhs::from_rows(&z[start * row..], row);
            self.packed.gemm(lhs, block, &mut logits, padded, false);
            for (at, logits) in logits.chunks_exact_mut(padded).enumerate().take(block) {
                let logits = &mut logits[..count];
                let largest = scale_logits(logits, self.center, 1.0 / self.temperature);
                on_logits(start + at, logits);
                let to = &mut values[(start + at) * lanes..][..lanes];
                to[count..].fill(T::default());
                stats[start + at] = [largest, exponentiate(logits, largest, &mut to[..count])];
            }
        }
        stats
    }
}

impl LogSums {
    fn new<T: Element>(part: &Part, chunks: &[&Chunk<T>]) -> Self {
        Self {
            student: log_sums(part.rows.len(), chunks.iter().map(|chunk| &chunk.student[..])),
            teacher: log_sums(part.teachers.len(), chunks.iter().map(|chunk| &chunk.teacher[..])),
        }
    }
}

/// logsumexp of every row, combined from all chunks.
fn log_sums<'a>(rows: usize, chunks: impl Iterator<Item = &'a [SoftmaxStats]> + Clone) -> Vec<f32> {
    (0..rows)
        .map(|row| {
            let stats = || chunks.clone().map(|chunk| chunk[row]);
            let largest = stats().map(|[largest, _]| largest).fold(f32::NEG_INFINITY, f32::max);
            let total: f64 =
                stats().map(|[own, sum]| f64::from(sum) * f64::from(own - largest).exp()).sum();
            (f64::from(largest) + total.ln()) as f32
        })
        .collect()
}

/// `sum_r (m_r logsumexp(s_r) - sum_j w_rj <q_j, s_r>)` of a part.
fn loss_of<T: Element>(pairs: &Pairs, chunks: &[&Chunk<T>], log_sums: &LogSums) -> f64 {
    let mut loss = 0.0;
    for (row, &log_sum) in log_sums.student.iter().enumerate() {
        loss += f64::from(pairs.weight_sum(row)) * f64::from(log_sum);
        for pair in pairs.range(row) {
            let (teacher, weight) = pairs.get(pair);
            let overlap: f64 = chunks
                .iter()
                .map(|chunk| {
                    let [largest, _] = chunk.teacher[teacher];
                    let share = (largest - log_sums.teacher[teacher]).exp();
                    f64::from(share) * f64::from(chunk.dots[pair])
                })
                .sum();
            loss -= f64::from(weight) * overlap;
        }
    }
    loss
}

/// Adds the gradients of the parts to `sums`. `logits` packs a chunk of prototypes.
fn backward<'a, T: Element>(
    student: &Side<'_>,
    operands: &[Operands<'_, T>],
    logits: impl Fn(usize) -> [Logits<'a, T>; 2] + Sync,
    chunks: &mut [Vec<Chunk<T>>],
    log_sums: &[LogSums],
    chunking: Chunking,
    sums: &mut Gradients,
) {
    let Chunking { d, .. } = chunking;
    let width = d.next_multiple_of(LANES);
    let row = padded_row_len::<T>(d);
    let z_packed = operands.iter().map(|of| pack(&of.student, of.part.rows.len(), row, d, width));
    let z_packed: Vec<Buffer<T>> = z_packed.collect();
    let per_group = chunking.per_group();
    let dv_groups = sums.v.par_chunks_mut(per_group * chunking.chunk * d);
    let dg_groups = sums.g.par_chunks_mut(per_group * chunking.chunk);
    let groups = dv_groups.zip(dg_groups).zip(chunks.par_chunks_mut(per_group)).enumerate();
    let dz_groups: Vec<Vec<Buffer<f32>>> = groups
        .map(|(group, ((dv, dg), chunks))| {
            let zeros = operands.iter().map(|of| Buffer::zeroed(of.part.rows.len() * width));
            let mut dz: Vec<Buffer<f32>> = zeros.collect();
            let pieces = dv.chunks_mut(chunking.chunk * d).zip(dg.chunks_mut(chunking.chunk));
            for (at, ((dv, dg), found)) in pieces.zip(chunks).enumerate() {
                let (index, count) = (group * per_group + at, dg.len());
                let first = index * chunking.chunk;
                let logits = found.iter().any(|found| found.exps.is_none()).then(|| logits(index));
                let prototypes = student.prototypes.chunk(first, count);
                let packed = PackedRhs::<T>::from_rows(&prototypes, d, None);
                let lanes = padded_row_len::<T>(count);
                let mut dw = Buffer::<f32>::uninit(count * width);
                for (of, operands) in operands.iter().enumerate() {
                    let exps = found[of].exps.take().or_else(|| {
                        let logits = logits.as_ref()?;
                        Some(operands.exponentials(logits, chunking, |_, _, _| {}).1)
                    });
                    let exps = exps.expect("saved or computed again");
                    let rows = operands.part.rows.len();
                    let dlogits = found[of].logit_gradients(
                        &exps,
                        count,
                        operands.part,
                        &log_sums[of],
                        student.temperature,
                    );
                    packed.gemm(Lhs::from_rows(&dlogits, lanes), rows, &mut dz[of], width, true);
                    let dims = Dims { m: count, k_steps: rows.div_ceil(T::K_PACK) };
                    let packed = pack(&dlogits, rows, lanes, lanes, lanes);
                    let lhs = Lhs::from_transposed(&packed, lanes);
                    gemm(lhs, &z_packed[of], width, dims, &mut dw, of > 0);
                }
                let v = &student.prototypes.v[first * d..(first + count) * d];
                let from = v.chunks_exact(d).zip(dw.chunks_exact(width));
                for (k, ((v, dw), (dv, dg))) in from.zip(dv.chunks_exact_mut(d).zip(dg)).enumerate()
                {
                    *dg += weight_norm_backward(v, student.prototypes.g[first + k], &dw[..d], dv);
                }
            }
            dz
        })
        .collect();
    for (of, Operands { part, .. }) in operands.iter().enumerate() {
        for group in &dz_groups {
            for (&row, dz) in part.rows.iter().zip(group[of].chunks_exact(width)) {
                let sums = &mut sums.z[row * d..][..d];
                sums.iter_mut().zip(dz).for_each(|(sum, dz)| *sum += dz);
            }
        }
    }
}

impl<T: Element> Chunk<T> {
    /// Gradient of the logits before temperature, `(m_r p_rk - t_rk) / temp`, from the
    /// exponentials of the rows, `[rows, count]`.
    fn logit_gradients(
        &self,
        exps: &[T],
        count: usize,
        part: &Part,
        log_sums: &LogSums,
        temperature: f32,
    ) -> Buffer<T> {
        let pairs = &part.pairs;
        let lanes = padded_row_len::<T>(count);
        let (teacher_exps, student_exps) = exps.split_at(part.teachers.len() * lanes);
        let mut gradients = Buffer::<T>::rows(pairs.rows(), count);
        let mut sums = Buffer::<f32>::uninit(count);
        for (row, to) in gradients.chunks_exact_mut(lanes).enumerate() {
            let [largest, _] = self.student[row];
            let share =
                (largest - log_sums.student[row]).exp() * pairs.weight_sum(row) / temperature;
            scale_into(&student_exps[row * lanes..][..count], share, &mut sums);
            for (teacher, weight) in pairs.of(row) {
                let [largest, _] = self.teacher[teacher];
                let share = (largest - log_sums.teacher[teacher]).exp() * weight / temperature;
                let exps = &teacher_exps[teacher * lanes..];
                update(&mut sums, [exps], |sum, [exp]| sum - exp * share);
            }
            convert(&sums, None, &mut to[..count]);
        }
        gradients
    }
}
