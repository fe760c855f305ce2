//! Attention inside (shifted) windows, forward and backward.
//!
//! Padding, rolling and partitioning are index arithmetic: a table says which token stands in
//! which slot of which window. The weights of the attention are not kept for the backward pass
//! but computed again, which costs less than reading them would.

use rayon::prelude::*;

use crate::simd::{LANES, dispatch, exp, max, sum};

/// Images of one task. Gradients of table and bias are summed within a task and then over tasks in
/// order.
const TASK_IMAGES: usize = 4;

/// Where tokens stand and how large everything is.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    /// Tokens of an image, T.
    pub tokens: usize,
    /// Slots of a window, n.
    pub slots: usize,
    /// Width of a token, C.
    pub width: usize,
    /// Attention heads; they divide C.
    pub heads: usize,
    /// For every slot of every window its token; T for padding.
    pub slot_token: &'a [i32],
    /// For every pair of slots (query, key) its row in the table of relative positions.
    pub bias_row: &'a [i32],
    /// Added to the logits, `[windows, n, n]`.
    pub mask: Option<&'a [f32]>,
}

impl Windows<'_> {
    fn head_width(&self) -> usize {
        self.width / self.heads
    }

    fn windows(&self) -> usize {
        self.slot_token.len() / self.slots
    }

    /// The token in a slot; none for padding.
    fn token(&self, window: usize, slot: usize) -> Option<usize> {
        let token = self.slot_token[window * self.slots + slot] as usize;
        (token < self.tokens).then_some(token)
    }

    fn check(&self, qkv: &[f32], bias: &[f32], table: &[f32], images: usize) {
        let n = self.slots;
        assert!(self.width.is_multiple_of(self.heads), "heads divide the width");
        assert_eq!(qkv.len(), images * self.tokens * 3 * self.width, "queries, keys and values");
        assert_eq!((bias.len(), self.bias_row.len()), (3 * self.width, n * n), "bias and pairs");
        assert!(self.slot_token.len().is_multiple_of(n), "whole windows");
        assert!(self.mask.is_none_or(|mask| mask.len() == self.windows() * n * n), "mask");
        let rows = table.len() / self.heads;
        assert!(self.bias_row.iter().all(|&row| (row as usize) < rows), "rows of the table");
    }
}

/// Mixes the values of every window: `qkv [B, T, 3 C]` without its `bias [3 C]`, `table [rows,
/// heads]`, into `mixed [B, T, C]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn forward(qkv: &[f32], bias: &[f32], table: &[f32], windows: &Windows<'_>, mixed: &mut [f32]) {
    let image = windows.tokens * windows.width;
    windows.check(qkv, bias, table, mixed.len() / image);
    let positions = positions(table, windows);
    mixed
        .par_chunks_mut(TASK_IMAGES * image)
        .zip(qkv.par_chunks(TASK_IMAGES * 3 * image))
        .for_each(|(mixed, qkv)| {
            let mut scratch = Scratch::new(windows);
            for (mixed, qkv) in mixed.chunks_exact_mut(image).zip(qkv.chunks_exact(3 * image)) {
                for window in 0..windows.windows() {
                    for head in 0..windows.heads {
                        scratch.load(qkv, bias, windows, window, head);
                        scratch.attend(&positions, windows, window, head);
                        scratch.mix(windows);
                        scratch.store_mixed(mixed, windows, window, head);
                    }
                }
            }
        });
}

/// Gradients of the arguments of [`forward`] from that of `mixed`: `dqkv` is filled, those of
/// `bias` and `table` are returned.
///
/// # Panics
/// When the lengths do not fit.
pub fn backward(
    qkv: &[f32],
    bias: &[f32],
    table: &[f32],
    windows: &Windows<'_>,
    dmixed: &[f32],
    dqkv: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let image = windows.tokens * windows.width;
    windows.check(qkv, bias, table, dmixed.len() / image);
    assert_eq!(qkv.len(), dqkv.len(), "gradient of queries, keys and values");
    let positions = positions(table, windows);
    let parts: Vec<(Vec<f32>, Vec<f32>)> = dqkv
        .par_chunks_mut(TASK_IMAGES * 3 * image)
        .zip(qkv.par_chunks(TASK_IMAGES * 3 * image))
        .zip(dmixed.par_chunks(TASK_IMAGES * image))
        .map(|((dqkv, qkv), dmixed)| {
            let mut scratch = Scratch::new(windows);
            let mut dbias = vec![0.0; bias.len()];
            let mut dpositions = vec![0.0; positions.len()];
            let images = dqkv.chunks_exact_mut(3 * image).zip(qkv.chunks_exact(3 * image));
            for ((dqkv, qkv), dmixed) in images.zip(dmixed.chunks_exact(image)) {
                for window in 0..windows.windows() {
                    for head in 0..windows.heads {
                        scratch.load(qkv, bias, windows, window, head);
                        scratch.attend(&positions, windows, window, head);
                        scratch.load_gradient(dmixed, windows, window, head);
                        scratch.differentiate(windows, head, &mut dpositions);
                        scratch.store_gradients(dqkv, &mut dbias, windows, window, head);
                    }
                }
            }
            (dbias, dpositions)
        })
        .collect();
    let mut dbias = vec![0.0; bias.len()];
    let mut dpositions = vec![0.0; positions.len()];
    for (part, position_part) in parts {
        dbias.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        dpositions.iter_mut().zip(position_part).for_each(|(total, part)| *total += part);
    }
    (dbias, table_gradient(&dpositions, table.len(), windows))
}

/// Lanes of a row of `n` values, filled up to whole registers.
fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// The table's bias for every pair of slots, `[heads, n, padded n]`.
fn positions(table: &[f32], windows: &Windows<'_>) -> Vec<f32> {
    let (n, heads) = (windows.slots, windows.heads);
    let row = padded(n);
    let mut positions = vec![0.0; heads * n * row];
    for head in 0..heads {
        for (pair, &table_row) in windows.bias_row.iter().enumerate() {
            positions[(head * n + pair / n) * row + pair % n] =
                table[table_row as usize * heads + head];
        }
    }
    positions
}

/// The sum over all pairs of slots that share a row of the table.
fn table_gradient(dpositions: &[f32], len: usize, windows: &Windows<'_>) -> Vec<f32> {
    let (n, heads) = (windows.slots, windows.heads);
    let row = padded(n);
    let mut dtable = vec![0.0; len];
    for head in 0..heads {
        for (pair, &table_row) in windows.bias_row.iter().enumerate() {
            dtable[table_row as usize * heads + head] +=
                dpositions[(head * n + pair / n) * row + pair % n];
        }
    }
    dtable
}

/// Matrices of one head in one window. Rows are filled up with zeros to whole registers; names
/// that end in `_t` are transposed.
struct Scratch {
    /// Queries times the scale, keys and values, `[n, d]`.
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    /// `[d, n]`.
    keys_t: Vec<f32>,
    values_t: Vec<f32>,
    /// Weights of the attention and their gradient, then that of the logits, `[n, n]`.
    weights: Vec<f32>,
    dlogits: Vec<f32>,
    transposed: Vec<f32>,
    /// What comes out and its gradient, `[n, d]`.
    mixed: Vec<f32>,
    dmixed: Vec<f32>,
    /// `[n, d]`.
    dqueries: Vec<f32>,
    dkeys: Vec<f32>,
    dvalues: Vec<f32>,
}

impl Scratch {
    fn new(windows: &Windows<'_>) -> Self {
        let (n, d) = (windows.slots, windows.head_width());
        let tall = || vec![0.0; n * padded(d)];
        let wide = || vec![0.0; d * padded(n)];
        let square = || vec![0.0; n * padded(n)];
        Self {
            queries: tall(),
            keys: tall(),
            values: tall(),
            keys_t: wide(),
            values_t: wide(),
            weights: square(),
            dlogits: square(),
            transposed: square(),
            mixed: tall(),
            dmixed: tall(),
            dqueries: tall(),
            dkeys: tall(),
            dvalues: tall(),
        }
    }

    /// Gathers queries, keys and values with their bias; a padding slot has the bias alone.
    fn load(
        &mut self,
        qkv: &[f32],
        bias: &[f32],
        windows: &Windows<'_>,
        window: usize,
        head: usize,
    ) {
        let (n, d, width) = (windows.slots, windows.head_width(), windows.width);
        let (row, row_t) = (padded(d), padded(n));
        let scale = (d as f32).powf(-0.5);
        for slot in 0..n {
            let token = windows.token(window, slot).map(|token| &qkv[token * 3 * width..]);
            let at = slot * row..slot * row + d;
            for (part, (rows, scale)) in
                [(&mut self.queries, scale), (&mut self.keys, 1.0), (&mut self.values, 1.0)]
                    .into_iter()
                    .enumerate()
            {
                let from = part * width + head * d;
                let bias = &bias[from..from + d];
                match token {
                    Some(token) => {
                        let values = token[from..from + d].iter().zip(bias);
                        for (row, (value, bias)) in rows[at.clone()].iter_mut().zip(values) {
                            *row = (value + bias) * scale;
                        }
                    }
                    None => {
                        for (row, bias) in rows[at.clone()].iter_mut().zip(bias) {
                            *row = bias * scale;
                        }
                    }
                }
            }
            for i in 0..d {
                self.keys_t[i * row_t + slot] = self.keys[slot * row + i];
                self.values_t[i * row_t + slot] = self.values[slot * row + i];
            }
        }
    }

    /// The weights of the attention.
    fn attend(&mut self, positions: &[f32], windows: &Windows<'_>, window: usize, head: usize) {
        let (n, d) = (windows.slots, windows.head_width());
        product(&self.queries, padded(d), &self.keys_t, padded(n), [n, d], &mut self.weights);
        let square = n * padded(n);
        let positions = &positions[head * square..(head + 1) * square];
        let mask = windows.mask.map(|mask| &mask[window * n * n..(window + 1) * n * n]);
        softmax(&mut self.weights, positions, mask, n);
    }

    fn mix(&mut self, windows: &Windows<'_>) {
        let (n, d) = (windows.slots, windows.head_width());
        product(&self.weights, padded(n), &self.values, padded(d), [n, n], &mut self.mixed);
    }

    /// Scatters what came out to its tokens; padding is dropped.
    fn store_mixed(&self, mixed: &mut [f32], windows: &Windows<'_>, window: usize, head: usize) {
        let (d, width) = (windows.head_width(), windows.width);
        for (slot, row) in self.mixed.chunks_exact(padded(d)).enumerate() {
            if let Some(token) = windows.token(window, slot) {
                let at = token * width + head * d;
                mixed[at..at + d].copy_from_slice(&row[..d]);
            }
        }
    }

    /// Gathers the gradient of what came out; nothing depends on padding.
    fn load_gradient(&mut self, dmixed: &[f32], windows: &Windows<'_>, window: usize, head: usize) {
        let (d, width) = (windows.head_width(), windows.width);
        for (slot, row) in self.dmixed.chunks_exact_mut(padded(d)).enumerate() {
            match windows.token(window, slot) {
                Some(token) => {
                    let at = token * width + head * d;
                    row[..d].copy_from_slice(&dmixed[at..at + d]);
                }
                None => row.fill(0.0),
            }
        }
    }

    /// Gradients of queries, keys, values and positions.
    fn differentiate(&mut self, windows: &Windows<'_>, head: usize, dpositions: &mut [f32]) {
        let (n, d) = (windows.slots, windows.head_width());
        let (row, square_row) = (padded(d), padded(n));
        // With O = P V: dV = P^T dO and dP = dO V^T.
        transpose(&self.weights, n, &mut self.transposed);
        product(&self.transposed, square_row, &self.dmixed, row, [n, n], &mut self.dvalues);
        product(&self.dmixed, row, &self.values_t, square_row, [n, d], &mut self.dlogits);
        let square = n * square_row;
        let dpositions = &mut dpositions[head * square..(head + 1) * square];
        softmax_gradient(&self.weights, &mut self.dlogits, dpositions, n);
        // With S = (scale Q) K^T: dQ = scale dS K and dK = dS^T (scale Q).
        product(&self.dlogits, square_row, &self.keys, row, [n, n], &mut self.dqueries);
        transpose(&self.dlogits, n, &mut self.transposed);
        product(&self.transposed, square_row, &self.queries, row, [n, n], &mut self.dkeys);
        let scale = (d as f32).powf(-0.5);
        self.dqueries.iter_mut().for_each(|value| *value *= scale);
    }

    /// Scatters the gradients to their tokens and adds all, padding too, to that of the bias.
    fn store_gradients(
        &self,
        dqkv: &mut [f32],
        dbias: &mut [f32],
        windows: &Windows<'_>,
        window: usize,
        head: usize,
    ) {
        let (n, d, width) = (windows.slots, windows.head_width(), windows.width);
        let row = padded(d);
        for (part, gradients) in [&self.dqueries, &self.dkeys, &self.dvalues].iter().enumerate() {
            let to = part * width + head * d;
            for slot in 0..n {
                let gradient = &gradients[slot * row..slot * row + d];
                let sums = dbias[to..to + d].iter_mut().zip(gradient);
                sums.for_each(|(sum, value)| *sum += value);
                if let Some(token) = windows.token(window, slot) {
                    let at = token * 3 * width + to;
                    dqkv[at..at + d].copy_from_slice(gradient);
                }
            }
        }
    }
}

/// Rows that are multiplied at a time, so that a value that was read serves several times.
const BLOCK_ROWS: usize = 8;

dispatch! {
    /// `out [m, columns] = a [m, k] b [k, columns]` for a `shape` of `[m, k]`, with rows of `a` at `a_row` and `columns` a
    /// multiple of a register.
    fn product(
        a: &[f32],
        a_row: usize,
        b: &[f32],
        columns: usize,
        shape: [usize; 2],
        out: &mut [f32],
    ) {
        let [m, k] = shape;
        let (b, out) = (&b[..k * columns], &mut out[..m * columns]);
        for start in (0..m).step_by(BLOCK_ROWS) {
            let rows = BLOCK_ROWS.min(m - start);
            // The last block takes its last row several times instead of a slower path.
            let a_rows: [&[f32]; BLOCK_ROWS] =
                std::array::from_fn(|i| &a[(start + i.min(rows - 1)) * a_row..][..k]);
            for column in (0..columns).step_by(LANES) {
                let mut sums = [[0f32; LANES]; BLOCK_ROWS];
                for l in 0..k {
                    let b = &b[l * columns + column..][..LANES];
                    for i in 0..BLOCK_ROWS {
                        let a = a_rows[i][l];
                        for lane in 0..LANES {
                            sums[i][lane] = a.mul_add(b[lane], sums[i][lane]);
                        }
                    }
                }
                for i in 0..rows {
                    out[(start + i) * columns + column..][..LANES].copy_from_slice(&sums[i]);
                }
            }
        }
    }
}

dispatch! {
    /// Turns the first `n` logits of every row into weights, after adding positions and mask.
    fn softmax(logits: &mut [f32], positions: &[f32], mask: Option<&[f32]>, n: usize) {
        let row = n.next_multiple_of(LANES);
        let rows = logits.chunks_exact_mut(row).zip(positions.chunks_exact(row));
        for (query, (logits, positions)) in rows.enumerate() {
            let (logits, positions) = (&mut logits[..n], &positions[..n]);
            for i in 0..n {
                logits[i] += positions[i];
            }
            if let Some(mask) = mask {
                let mask = &mask[query * n..][..n];
                for i in 0..n {
                    logits[i] += mask[i];
                }
            }
            let largest = max(logits);
            for logit in logits.iter_mut() {
                *logit = exp(*logit - largest);
            }
            let inverse = 1.0 / sum(n, |i| logits[i]);
            for weight in logits.iter_mut() {
                *weight *= inverse;
            }
        }
    }
}

dispatch! {
    /// Turns gradients of weights into those of logits, and adds them to those of the positions.
    fn softmax_gradient(weights: &[f32], gradients: &mut [f32], dpositions: &mut [f32], n: usize) {
        let row = n.next_multiple_of(LANES);
        let rows = weights.chunks_exact(row).zip(gradients.chunks_exact_mut(row));
        for ((weights, gradients), dpositions) in rows.zip(dpositions.chunks_exact_mut(row)) {
            let (weights, dpositions) = (&weights[..n], &mut dpositions[..n]);
            let gradients = &mut gradients[..n];
            let mean = sum(n, |i| weights[i] * gradients[i]);
            for i in 0..n {
                gradients[i] = weights[i] * (gradients[i] - mean);
                dpositions[i] += gradients[i];
            }
        }
    }
}

/// The transpose of an `[n, n]` matrix with filled-up rows.
fn transpose(matrix: &[f32], n: usize, transposed: &mut [f32]) {
    let row = padded(n);
    for i in 0..n {
        for j in 0..n {
            transposed[j * row + i] = matrix[i * row + j];
        }
    }
}

#[cfg(test)]
mod tests;
