//! Loss and gradients of one part of the rows, over all prototypes.

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

/// Saved values of a chunk of prototypes besides its exponentials.
#[derive(Debug, Clone, Default)]
struct Chunk {
    student: Vec<SoftmaxStats>,
    teacher: Vec<SoftmaxStats>,
    /// For every pair, `<teacher's exponentials, student's logits>`.
    dots: Vec<f32>,
}

/// The loss of a part; adds its gradients to `sums`, if given.
pub(super) fn cross_entropy<T: Element>(
    student: &Side<'_>,
    teacher: &Side<'_>,
    center: &[f32],
    part: &Part,
    chunking: Chunking,
    sums: Option<&mut Gradients>,
) -> f64 {
    let Chunking { prototypes, d, .. } = chunking;
    let pairs = &part.pairs;
    let [rows, teachers] = [&part.rows, &part.teachers].map(Vec::len);
    let z = gather_rows::<T>(student.z, &part.rows, d);
    let teacher_z = gather_rows::<T>(teacher.z, &part.teachers, d);
    let mut chunks = vec![Chunk::default(); chunking.chunks()];
    let macs = (rows + teachers) * prototypes * d;
    let groups: Vec<Buffer<T>> = profile::time("prototypes forward", macs, || {
        let groups = chunks.par_chunks_mut(chunking.per_group()).enumerate();
        let forward = |(group, chunks): (usize, &mut [Chunk])| {
            let exps = chunking.row_capacity * padded_row_len::<T>(chunking.chunk);
            let saved = if sums.is_some() { chunks.len() } else { 1 };
            let mut saved_exps = Buffer::<T>::uninit(saved * exps);
            for (at, chunk) in chunks.iter_mut().enumerate() {
                let index = group * chunking.per_group() + at;
                let (first, count) = (index * chunking.chunk, chunking.count(index));
                let center = Some(&center[first..first + count]);
                let lanes = padded_row_len::<T>(count);
                let exps = &mut saved_exps[at.min(saved - 1) * exps..][..exps];
                let (teacher_exps, student_exps) = exps.split_at_mut(teachers * lanes);
                let teacher_rows = teacher.prototypes.chunk(first, count);
                chunk.teacher = exponentials(
                    &teacher_z,
                    &teacher_rows,
                    d,
                    center,
                    teacher.temperature,
                    teacher_exps,
                    |_, _| {},
                );
                let student_rows = student.prototypes.chunk(first, count);
                let mut dots = vec![0.0; pairs.len()];
                chunk.student = exponentials(
                    &z,
                    &student_rows,
                    d,
                    None,
                    student.temperature,
                    student_exps,
                    |row, logits| {
                        for pair in pairs.range(row) {
                            let (teacher, _) = pairs.get(pair);
                            dots[pair] = dot(&teacher_exps[teacher * lanes..][..count], logits);
                        }
                    },
                );
                chunk.dots = dots;
            }
            saved_exps
        };
        groups.map(forward).collect()
    });

    let teacher_log_sums = log_sums(&chunks, teachers, |chunk| &chunk.teacher);
    let student_log_sums = log_sums(&chunks, rows, |chunk| &chunk.student);
    let mut loss = 0f64;
    for (row, &log_sum) in student_log_sums.iter().enumerate() {
        loss += f64::from(pairs.weight_sum(row)) * f64::from(log_sum);
        for pair in pairs.range(row) {
            let (teacher, weight) = pairs.get(pair);
            let overlap: f64 = chunks
                .iter()
                .map(|chunk| {
                    let [largest, _] = chunk.teacher[teacher];
                    let share = (largest - teacher_log_sums[teacher]).exp();
                    f64::from(share) * f64::from(chunk.dots[pair])
                })
                .sum();
            loss -= f64::from(weight) * overlap;
        }
    }
    if let Some(sums) = sums {
        let log_sums = [&student_log_sums[..], &teacher_log_sums[..]];
        profile::time("prototypes backward", 2 * rows * prototypes * d, || {
            backward(student, &z, &chunks, groups, part, log_sums, chunking, sums);
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

/// Exponentials `e^(s - max)` of the logits of rows `z` for a chunk of prototypes, into
/// `values [rows, chunk]`; `on_logits` gets every row's logits.
fn exponentials<T: Element>(
    z: &[T],
    prototypes: &[f32],
    d: usize,
    center: Option<&[f32]>,
    temperature: f32,
    values: &mut [T],
    mut on_logits: impl FnMut(usize, &[f32]),
) -> Vec<SoftmaxStats> {
    let count = prototypes.len() / d;
    let (row, lanes) = (padded_row_len::<T>(d), padded_row_len::<T>(count));
    let packed = PackedRhs::<T>::from_transposed(prototypes, d, None);
    let rows = z.len() / row;
    let padded = count.next_multiple_of(LANES);
    let mut stats = vec![[0.0; 2]; rows];
    let mut logits = Buffer::<f32>::uninit(BLOCK_ROWS.min(rows) * padded);
    for start in (0..rows).step_by(BLOCK_ROWS) {
        let block = BLOCK_ROWS.min(rows - start);
        let lhs = Lhs::from_rows(&z[start * row..], row);
        packed.gemm(lhs, block, &mut logits, padded, false);
        for (at, logits) in logits.chunks_exact_mut(padded).enumerate().take(block) {
            let logits = &mut logits[..count];
            stats[start + at][0] = scale_logits(logits, center, 1.0 / temperature);
            on_logits(start + at, logits);
            let to = &mut values[(start + at) * lanes..][..lanes];
            to[count..].fill(T::default());
            stats[start + at][1] = exponentiate(logits, stats[start + at][0], &mut to[..count]);
        }
    }
    stats
}

/// logsumexp of every row, combined from all chunks.
fn log_sums(chunks: &[Chunk], rows: usize, side: impl Fn(&Chunk) -> &[SoftmaxStats]) -> Vec<f32> {
    (0..rows)
        .map(|row| {
            let stats = || chunks.iter().map(|chunk| side(chunk)[row]);
            let largest = stats().map(|[largest, _]| largest).fold(f32::NEG_INFINITY, f32::max);
            let total: f64 =
                stats().map(|[own, sum]| f64::from(sum) * f64::from(own - largest).exp()).sum();
            (f64::from(largest) + total.ln()) as f32
        })
        .collect()
}

/// Adds the gradients of a part to `sums`.
#[expect(clippy::too_many_arguments, reason = "one caller, which has them all at hand")]
fn backward<T: Element>(
    student: &Side<'_>,
    z: &[T],
    chunks: &[Chunk],
    groups: Vec<Buffer<T>>,
    part: &Part,
    log_sums: [&[f32]; 2],
    chunking: Chunking,
    sums: &mut Gradients,
) {
    let (pairs, d) = (&part.pairs, chunking.d);
    let (rows, row, width) = (pairs.rows(), padded_row_len::<T>(d), d.next_multiple_of(LANES));
    let steps = rows.div_ceil(T::K_PACK);
    let mut z_packed = Buffer::<T>::zeroed(steps * width * T::K_PACK);
    pack_vnni(z, row, rows, d, &mut z_packed, width * T::K_PACK);

    let per_group = chunking.per_group();
    let teachers = log_sums[1].len();
    let exps = chunking.row_capacity * padded_row_len::<T>(chunking.chunk);
    let dv_groups = sums.v.par_chunks_mut(per_group * chunking.chunk * d);
    let dg_groups = sums.g.par_chunks_mut(per_group * chunking.chunk);
    let parts: Vec<Buffer<f32>> = dv_groups
        .zip(dg_groups)
        .zip(groups)
        .zip(chunks.par_chunks(per_group))
        .enumerate()
        .map(|(group, (((dv, dg), saved), chunks))| {
            let mut dz = Buffer::<f32>::zeroed(rows * width);
            let pieces = dv.chunks_mut(chunking.chunk * d).zip(dg.chunks_mut(chunking.chunk));
            let saved = saved.chunks(exps).zip(chunks);
            for (at, ((dv, dg), (exps, chunk))) in pieces.zip(saved).enumerate() {
                let first = (group * per_group + at) * chunking.chunk;
                let count = dg.len();
                let exps = exps.split_at(teachers * padded_row_len::<T>(count));
                let temperature = student.temperature;
                let dlogits = logit_gradients(chunk, exps, count, pairs, log_sums, temperature);
                let rows_of_chunk = student.prototypes.chunk(first, count);
                let packed = PackedRhs::<T>::from_rows(&rows_of_chunk, d, None);
                let lanes = padded_row_len::<T>(count);
                packed.gemm(Lhs::from_rows(&dlogits, lanes), rows, &mut dz, width, true);
                let mut dlogits_t = Buffer::<T>::uninit(steps * lanes * T::K_PACK);
                pack_vnni(&dlogits, lanes, rows, lanes, &mut dlogits_t, lanes * T::K_PACK);
                let mut dw = Buffer::<f32>::uninit(count * width);
                let lhs = Lhs::from_transposed(&dlogits_t, lanes);
                gemm(lhs, &z_packed, width, Dims { m: count, k_steps: steps }, &mut dw, false);
                let chunk = first * d..(first + count) * d;
                let from = student.prototypes.v[chunk].chunks_exact(d).zip(dw.chunks_exact(width));
                let to = dv.chunks_exact_mut(d).zip(dg);
                for (k, ((v, dw), (dv, dg))) in from.zip(to).enumerate() {
                    *dg += weight_norm_backward(v, student.prototypes.g[first + k], &dw[..d], dv);
                }
            }
            dz
        })
        .collect();
    for dz in parts {
        for (&row, dz) in part.rows.iter().zip(dz.chunks_exact(width)) {
            let sums = &mut sums.z[row * d..][..d];
            sums.iter_mut().zip(dz).for_each(|(sum, dz)| *sum += dz);
        }
    }
}

/// Gradient of the logits before temperature, `(m_r p_rk - t_rk) / temp`, for a chunk, `[rows,
/// count]`.
fn logit_gradients<T: Element>(
    chunk: &Chunk,
    (teacher_exps, student_exps): (&[T], &[T]),
    count: usize,
    pairs: &Pairs,
    [student_log_sums, teacher_log_sums]: [&[f32]; 2],
    temperature: f32,
) -> Buffer<T> {
    let lanes = padded_row_len::<T>(count);
    let mut gradients = Buffer::<T>::rows(pairs.rows(), count);
    let mut sums = Buffer::<f32>::uninit(count);
    for (row, to) in gradients.chunks_exact_mut(lanes).enumerate() {
        let [largest, _] = chunk.student[row];
        let share = (largest - student_log_sums[row]).exp() * pairs.weight_sum(row) / temperature;
        scale_into(&student_exps[row * lanes..][..count], share, &mut sums);
        for (teacher, weight) in pairs.of(row) {
            let [largest, _] = chunk.teacher[teacher];
            let share = (largest - teacher_log_sums[teacher]).exp() * weight / temperature;
            let exps = &teacher_exps[teacher * lanes..];
            update(&mut sums, [exps], |sum, [exp]| sum - exp * share);
        }
        convert(&sums, None, &mut to[..count]);
    }
    gradients
}
