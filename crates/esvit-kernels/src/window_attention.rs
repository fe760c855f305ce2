//! Attention inside (shifted) windows, forward and backward.
//!
//! Padding, rolling and partitioning are index arithmetic: a table says which token stands in
//! which slot of which window. The weights of the attention are not kept for the backward pass
//! but computed again, which costs less than reading them would.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::element::{Element, row_len};
use crate::product::{Extent, LANES, Left, Out, STRIP, Strip, interleave, transpose_rows};
use crate::simd::{dispatch, exp, max, prefetch, sum};

/// Tasks into which the windows of a call are cut, whatever the number of threads: gradients of
/// table and padding are summed within a task and then over tasks in order.
const TASKS: usize = 32;

/// A logit that no weight comes from.
const NEVER: f32 = -1e30;

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

    /// Positions of the relative bias, their lanes filled up to registers.
    fn lanes(&self) -> usize {
        self.slots.next_multiple_of(LANES)
    }

    /// # Panics
    /// When the lengths do not fit or a token does not have exactly one slot.
    fn check<T: Element>(&self, qkv: &[T], padding: &[f32], table: &[f32], mixed: &[T]) {
        let (n, width) = (self.slots, self.width);
        assert!(width.is_multiple_of(self.heads), "heads divide the width");
        let rows = mixed.len() / row_len::<T>(width);
        assert!(rows.is_multiple_of(self.tokens), "whole images");
        assert_eq!(qkv.len(), rows * row_len::<T>(3 * width), "queries, keys and values");
        assert_eq!(padding.len(), 3 * width, "query, key and value of padding");
        assert_eq!(table.len() % self.heads, 0, "table");
        let table_rows = table.len() / self.heads;
        assert_eq!(self.bias_row.len(), n * n, "rows of the table");
        assert!(self.bias_row.iter().all(|&row| (row as usize) < table_rows), "rows of the table");
        assert!(self.mask.is_none_or(|mask| mask.len() == self.windows() * n * n), "mask");
        // Tasks write the rows of their own tokens without looking at each other.
        let mut seen = vec![false; self.tokens];
        for &token in self.slot_token.iter().filter(|&&token| (token as usize) < self.tokens) {
            assert!(
                !std::mem::replace(&mut seen[token as usize], true),
                "token {token} stands twice"
            );
        }
        assert!(seen.into_iter().all(|seen| seen), "every token has a slot");
    }
}

/// A matrix whose rows are written by several tasks, none by two.
#[derive(Clone, Copy)]
struct SharedRows<'a, T> {
    values: *mut T,
    len: usize,
    lifetime: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: tasks only write, to places of which no two have the same, as `write` demands.
unsafe impl<T: Send> Send for SharedRows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedRows<'_, T> {}

impl<'a, T: Element> SharedRows<'a, T> {
    fn new(values: &'a mut [T]) -> Self {
        let lifetime = std::marker::PhantomData;
        Self { len: values.len(), values: values.as_mut_ptr(), lifetime }
    }

    /// The `len` values from `at` on.
    ///
    /// # Safety
    /// No other task reads or writes these places, nor does the caller by another slice.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "as its safety section demands")]
    unsafe fn at(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at + len <= self.len, "within the matrix");
        // SAFETY: within the matrix, which is borrowed exclusively, and no other task is here.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(at), len) }
    }
}

dispatch! {
    /// Stores the first `d` values of each row of `from`, which are `width` values apart, at
    /// `places` of a matrix; no two tasks have the same places.
    fn scatter<T: Element>(
        from: &[f32],
        width: usize,
        d: usize,
        places: &[usize],
        to: SharedRows<'_, T>,
    ) {
        for (from, &place) in from.chunks_exact(width).zip(places) {
            // SAFETY: a token has one slot, as `Windows::check` has made sure, and each window and
            // head is in one task: no two tasks have the same place.
            let to = unsafe { to.at(place, d) };
            let from = &from[..d];
            for i in 0..d {
                to[i] = T::from_f32(from[i]);
            }
        }
    }
}

/// Copies a row of a head; the usual width without a call.
#[inline(always)]
fn copy<T: Element>(from: &[T], to: &mut [T]) {
    match (from.as_array::<32>(), to.first_chunk_mut::<32>()) {
        (Some(from), Some(to)) => *to = *from,
        _ => to[..from.len()].copy_from_slice(from),
    }
}

/// Mixes the values of every window: `qkv [B T, 3 C]` with its bias, and `padding [3 C]`, the
/// query, key and value of a slot without a token; `table [rows, heads]`; into `mixed [B T, C]`.
/// Rows of `qkv` and `mixed` are stored at the length of [`row_len`].
pub(crate) fn forward<T: Element>(
    qkv: &[T],
    padding: &[f32],
    table: &[f32],
    windows: &Windows<'_>,
    mixed: &mut [T],
) {
    windows.check(qkv, padding, table, mixed);
    let row = row_len::<T>(windows.width);
    let images = mixed.len() / row / windows.tokens;
    let positions = positions(table, windows);
    let padding: Vec<T> = padding.iter().map(|&value| T::from_f32(value)).collect();
    let mixed = SharedRows::new(mixed);
    tasks(images, windows).into_par_iter().for_each(|task| {
        let mut scratch = Scratch::new(windows);
        for at in task {
            let (first, window) = scratch.choose(windows, at);
            prefetch_window(qkv, row_len::<T>(3 * windows.width), windows, at + 1);
            for head in 0..windows.heads {
                scratch.load(qkv, &padding, windows, first, head);
                scratch.attend(&positions, windows, window, head);
                scratch.mix();
                scratch.place(first, row, head * scratch.d);
                scatter(&scratch.out, scratch.width, scratch.d, &scratch.places, mixed);
            }
        }
    });
}

/// Gradients of the arguments of [`forward`] from that of `mixed`: `dqkv` is filled, those of
/// `padding` and `table` are returned.
pub(crate) fn backward<T: Element>(
    qkv: &[T],
    padding: &[f32],
    table: &[f32],
    windows: &Windows<'_>,
    dmixed: &[T],
    dqkv: &mut [T],
) -> (Vec<f32>, Vec<f32>) {
    windows.check(qkv, padding, table, dmixed);
    assert_eq!(qkv.len(), dqkv.len(), "gradient of queries, keys and values");
    let (row, row3) = (row_len::<T>(windows.width), row_len::<T>(3 * windows.width));
    let images = dmixed.len() / row / windows.tokens;
    let positions = positions(table, windows);
    let padding_values: Vec<T> = padding.iter().map(|&value| T::from_f32(value)).collect();
    let dqkv = SharedRows::new(dqkv);
    let parts: Vec<(Vec<f32>, Buffer<f32>)> = tasks(images, windows)
        .into_par_iter()
        .map(|task| {
            let mut scratch = Scratch::new(windows);
            let mut dpadding = vec![0.0; padding.len()];
            let mut dpositions = Buffer::<f32>::zeroed(positions.len());
            let d = scratch.d;
            for at in task {
                let (first, window) = scratch.choose(windows, at);
                prefetch_window(qkv, row3, windows, at + 1);
                prefetch_window(dmixed, row, windows, at + 1);
                for head in 0..windows.heads {
                    scratch.load(qkv, &padding_values, windows, first, head);
                    scratch.attend(&positions, windows, window, head);
                    scratch.load_gradient(dmixed, windows, first, head);
                    scratch.differentiate(head, &mut dpositions);
                    scratch.place(first, row3, head * d);
                    scatter(&scratch.dqueries, scratch.width, d, &scratch.places, dqkv);
                    for (part, gradients) in [(1, &scratch.dkeys), (2, &scratch.dvalues)] {
                        let to = part * windows.width + head * d;
                        for (slot, gradient) in gradients.chunks_exact(scratch.width).enumerate() {
                            if windows.token(window, slot).is_none() {
                                let sums = dpadding[to..to + d].iter_mut().zip(gradient);
                                sums.for_each(|(sum, value)| *sum += value);
                            }
                        }
                    }
                    for part in [1, 2] {
                        scratch.place(first, row3, part * windows.width + head * d);
                        let gradients = if part == 1 { &scratch.dkeys } else { &scratch.dvalues };
                        if scratch.queries.len() == scratch.n {
                            scatter(gradients, scratch.width, d, &scratch.places, dqkv);
                            continue;
                        }
                        for (query, &place) in scratch.queries.iter().zip(&scratch.places) {
                            let gradient = &gradients[query.slot * scratch.width..];
                            scatter(&gradient[..scratch.width], scratch.width, d, &[place], dqkv);
                        }
                    }
                }
            }
            (dpadding, dpositions)
        })
        .collect();
    let mut dpadding = vec![0.0; padding.len()];
    let mut dpositions = vec![0.0; positions.len()];
    for (part, position_part) in parts {
        dpadding.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        let sums = dpositions.iter_mut().zip(position_part.iter());
        sums.for_each(|(total, part)| *total += part);
    }
    (dpadding, table_gradient(&dpositions, table.len(), windows))
}

/// Asks for the rows of all tokens of window `at` of all, if there is one.
fn prefetch_window<T: Element>(rows: &[T], row: usize, windows: &Windows<'_>, at: usize) {
    let (image, window) = (at / windows.windows(), at % windows.windows());
    for slot in 0..windows.slots {
        if let Some(token) = windows.token(window, slot) {
            let start = (image * windows.tokens + token) * row;
            if let Some(row_of_token) = rows.get(start..start + row) {
                prefetch(row_of_token, row, row);
            }
        }
    }
}

/// All windows of all images in order, cut into tasks.
fn tasks(images: usize, windows: &Windows<'_>) -> Vec<std::ops::Range<usize>> {
    let total = images * windows.windows();
    let size = total.div_ceil(TASKS).max(1);
    (0..total).step_by(size).map(|start| start..(start + size).min(total)).collect()
}

/// The table's bias for every pair of slots, `[heads, n, lanes]`; what fills up the lanes is
/// [`NEVER`].
fn positions(table: &[f32], windows: &Windows<'_>) -> Vec<f32> {
    let (n, heads, lanes) = (windows.slots, windows.heads, windows.lanes());
    let mut positions = vec![NEVER; heads * n * lanes];
    for (at, row) in positions.chunks_exact_mut(lanes).enumerate() {
        let (head, query) = (at / n, at % n);
        for (position, &table_row) in row.iter_mut().zip(&windows.bias_row[query * n..][..n]) {
            *position = table[table_row as usize * heads + head];
        }
    }
    positions
}

/// The sum over all pairs of slots that share a row of the table.
fn table_gradient(dpositions: &[f32], len: usize, windows: &Windows<'_>) -> Vec<f32> {
    let (n, heads, lanes) = (windows.slots, windows.heads, windows.lanes());
    let mut dtable = vec![0.0; len];
    for (at, row) in dpositions.chunks_exact(lanes).enumerate() {
        let (head, query) = (at / n, at % n);
        for (gradient, &table_row) in row.iter().zip(&windows.bias_row[query * n..][..n]) {
            dtable[table_row as usize * heads + head] += gradient;
        }
    }
    dtable
}

/// A slot that a token stands in.
#[derive(Debug, Clone, Copy)]
struct Query {
    slot: usize,
    token: usize,
}

/// Matrices of one head in one window. Only slots with a token ask (`m` of them); all `n` are
/// keys.
struct Scratch<T: Element> {
    d: usize,
    n: usize,
    /// Stored length of a row of a head.
    row: usize,
    /// `d` filled up to registers.
    width: usize,
    /// `n` filled up to registers.
    lanes: usize,
    window: usize,
    queries: Vec<Query>,
    /// Where the row of every query goes.
    places: Vec<usize>,
    /// `[m, row]`, `[n, row]`, `[n, row]`, `[m, row]`.
    query_rows: Buffer<T>,
    key_rows: Buffer<T>,
    value_rows: Buffer<T>,
    gradient_rows: Buffer<T>,
    /// Keys or values as a right operand, `[d, lanes]`.
    across: Buffer<T>,
    /// Rows of a head as a right operand, `[n, width]`.
    down: Buffer<T>,
    /// Weights of the attention, `[m, lanes]`, and in the stored type.
    weights: Buffer<f32>,
    stored: Buffer<T>,
    /// Gradient of the weights, then of the logits, and in the stored type.
    dlogits: Buffer<f32>,
    dstored: Buffer<T>,
    /// A transposed left operand, `[m, lanes]` in pairs of rows.
    turned: Buffer<T>,
    /// What comes out, `[m, width]`.
    out: Buffer<f32>,
    dqueries: Buffer<f32>,
    dkeys: Buffer<f32>,
    dvalues: Buffer<f32>,
}

impl<T: Element> Scratch<T> {
    fn new(windows: &Windows<'_>) -> Self {
        let (n, d, lanes) = (windows.slots, windows.head_width(), windows.lanes());
        let (row, width) = (row_len::<T>(d), d.next_multiple_of(LANES));
        let pairs = n.next_multiple_of(T::PAIR);
        // Zeros where nothing is written: they stand in operands.
        let stored = Buffer::<T>::zeroed;
        let sums = Buffer::<f32>::zeroed;
        Self {
            d,
            n,
            row,
            width,
            lanes,
            window: usize::MAX,
            queries: Vec::new(),
            places: Vec::new(),
            query_rows: stored(n * row),
            key_rows: stored(n * row),
            value_rows: stored(n * row),
            gradient_rows: stored(n * row),
            across: stored(row * lanes),
            down: stored(pairs * width),
            weights: sums(n * lanes),
            stored: stored(n * lanes),
            dlogits: sums(n * lanes),
            dstored: stored(n * lanes),
            turned: stored(pairs * lanes),
            out: sums(n * width),
            dqueries: sums(n * width),
            dkeys: sums(n * width),
            dvalues: sums(n * width),
        }
    }

    /// Takes up window `at` of all; returns the first row of its image and its window there.
    fn choose(&mut self, windows: &Windows<'_>, at: usize) -> (usize, usize) {
        let window = at % windows.windows();
        if window != self.window {
            self.window = window;
            self.queries.clear();
            let slots = (0..self.n)
                .filter_map(|slot| windows.token(window, slot).map(|token| Query { slot, token }));
            self.queries.extend(slots);
        }
        (at / windows.windows() * windows.tokens, window)
    }

    /// Notes where the rows of the queries go: in a matrix of rows `row` apart, `offset` into
    /// each.
    fn place(&mut self, first: usize, row: usize, offset: usize) {
        self.places.clear();
        self.places.extend(self.queries.iter().map(|query| (first + query.token) * row + offset));
    }

    /// Gathers queries, keys and values.
    fn load(&mut self, qkv: &[T], padding: &[T], windows: &Windows<'_>, first: usize, head: usize) {
        let (d, row, width) = (self.d, self.row, windows.width);
        let row3 = row_len::<T>(3 * width);
        for (query, to) in self.queries.iter().zip(self.query_rows.chunks_exact_mut(row)) {
            copy(&qkv[(first + query.token) * row3 + head * d..][..d], to);
        }
        let rows = self.key_rows.chunks_exact_mut(row).zip(self.value_rows.chunks_exact_mut(row));
        for (slot, (key, value)) in rows.enumerate().take(self.n) {
            let from = match windows.token(self.window, slot) {
                Some(token) => &qkv[(first + token) * row3..][..3 * width],
                None => padding,
            };
            copy(&from[width + head * d..][..d], key);
            copy(&from[2 * width + head * d..][..d], value);
        }
    }

    /// The weights of the attention.
    fn attend(&mut self, positions: &[f32], windows: &Windows<'_>, window: usize, head: usize) {
        let (n, m, lanes) = (self.n, self.queries.len(), self.lanes);
        transpose_rows(&self.key_rows, self.row, n, &mut self.across, lanes * T::PAIR);
        let queries = Left::rows(&self.query_rows, self.row);
        let extent = Extent { rows: m, steps: self.row / T::PAIR };
        product(queries, &self.across, lanes, extent, &mut self.weights);
        let positions = &positions[head * n * lanes..][..n * lanes];
        let mask = windows.mask.map(|mask| &mask[window * n * n..][..n * n]);
        let scale = (self.d as f32).powf(-0.5);
        softmax(&mut self.weights, scale, positions, mask, &self.queries, n, &mut self.stored);
    }

    /// Sums of values by weight.
    fn mix(&mut self) {
        let (n, width) = (self.n, self.width);
        let down = width * T::PAIR;
        let values = paired(&self.value_rows, self.row, [n, self.d], &mut self.down, down);
        let weights = Left::rows(&self.stored, self.lanes);
        let extent = Extent { rows: self.queries.len(), steps: n.div_ceil(T::PAIR) };
        product(weights, values, width, extent, &mut self.out);
    }

    /// Gathers the gradient of what came out.
    fn load_gradient(&mut self, dmixed: &[T], windows: &Windows<'_>, first: usize, head: usize) {
        let (d, row_of_all) = (self.d, row_len::<T>(windows.width));
        let rows = self.gradient_rows.chunks_exact_mut(self.row);
        for (query, to) in self.queries.iter().zip(rows) {
            copy(&dmixed[(first + query.token) * row_of_all + head * d..][..d], to);
        }
    }

    /// Gradients of queries, keys, values and positions.
    fn differentiate(&mut self, head: usize, dpositions: &mut [f32]) {
        let (n, m, row, width, lanes) =
            (self.n, self.queries.len(), self.row, self.width, self.lanes);
        let (down, turned) = (width * T::PAIR, lanes * T::PAIR);
        let over_queries = Extent { rows: n, steps: m.div_ceil(T::PAIR) };
        // With O = P V: dV = P^T dO and dP = dO V^T.
        let d = self.d;
        let weights = paired(&self.stored, lanes, [m, lanes], &mut self.turned, turned);
        let gradients = paired(&self.gradient_rows, row, [m, d], &mut self.down, down);
        let left = Left::transposed(weights, lanes);
        product(left, gradients, width, over_queries, &mut self.dvalues);
        transpose_rows(&self.value_rows, row, n, &mut self.across, turned);
        let gradients = Left::rows(&self.gradient_rows, row);
        let over_width = Extent { rows: m, steps: row / T::PAIR };
        product(gradients, &self.across, lanes, over_width, &mut self.dlogits);
        let dpositions = &mut dpositions[head * n * lanes..][..n * lanes];
        let scale = (self.d as f32).powf(-0.5);
        softmax_gradient(
            &self.weights,
            &mut self.dlogits,
            dpositions,
            &self.queries,
            n,
            scale,
            &mut self.dstored,
        );
        // With S = scale Q K^T: dQ = scale dS K and dK = scale dS^T Q.
        let keys = paired(&self.key_rows, row, [n, d], &mut self.down, down);
        let left = Left::rows(&self.dstored, lanes);
        let over_keys = Extent { rows: m, steps: n.div_ceil(T::PAIR) };
        product(left, keys, width, over_keys, &mut self.dqueries);
        let dlogits = paired(&self.dstored, lanes, [m, lanes], &mut self.turned, turned);
        let queries = paired(&self.query_rows, row, [m, d], &mut self.down, down);
        let left = Left::transposed(dlogits, lanes);
        product(left, queries, width, over_queries, &mut self.dkeys);
    }
}

/// Rows in pairs, steps `step` values apart: laid out in `to`, unless they lie like that already.
fn paired<'a, T: Element>(
    rows: &'a [T],
    row: usize,
    [count, columns]: [usize; 2],
    to: &'a mut [T],
    step: usize,
) -> &'a [T] {
    if T::PAIR == 1 && row == step {
        return rows;
    }
    interleave(rows, row, count, columns, to, step);
    to
}

/// `out [rows, columns]` for a right operand `[steps, columns]`, strip by strip.
fn product<T: Element>(
    left: Left<'_, T>,
    right: &[T],
    columns: usize,
    extent: Extent,
    out: &mut [f32],
) {
    for first in (0..columns).step_by(STRIP) {
        let width = STRIP.min(columns - first);
        let strip = Strip { values: &right[first * T::PAIR..], step: columns * T::PAIR, width };
        let mut out = Out { values: &mut out[first..], row: columns };
        T::multiply(left, strip, extent, &mut out, false);
    }
}

dispatch! {
    /// Turns the logits of every query into weights, after scaling and adding positions and mask;
    /// also stores them.
    fn softmax<T: Element>(
        logits: &mut [f32],
        scale: f32,
        positions: &[f32],
        mask: Option<&[f32]>,
        queries: &[Query],
        n: usize,
        stored: &mut [T],
    ) {
        let lanes = n.next_multiple_of(LANES);
        let rows = logits.chunks_exact_mut(lanes).zip(stored.chunks_exact_mut(lanes));
        for (query, (logits, stored)) in queries.iter().zip(rows) {
            let positions = &positions[query.slot * lanes..][..lanes];
            for i in 0..lanes {
                logits[i] = logits[i].mul_add(scale, positions[i]);
            }
            if let Some(mask) = mask {
                let mask = &mask[query.slot * n..][..n];
                for i in 0..n {
                    logits[i] += mask[i];
                }
            }
            let largest = max(logits);
            for logit in logits.iter_mut() {
                *logit = exp(*logit - largest);
            }
            let inverse = 1.0 / sum(lanes, |i| logits[i]);
            for i in 0..lanes {
                logits[i] *= inverse;
                stored[i] = T::from_f32(logits[i]);
            }
        }
    }
}

dispatch! {
    /// Turns gradients of weights into those of logits, adds them to those of the positions and
    /// stores them times the scale.
    fn softmax_gradient<T: Element>(
        weights: &[f32],
        gradients: &mut [f32],
        dpositions: &mut [f32],
        queries: &[Query],
        n: usize,
        scale: f32,
        stored: &mut [T],
    ) {
        let lanes = n.next_multiple_of(LANES);
        let rows = weights.chunks_exact(lanes).zip(gradients.chunks_exact_mut(lanes));
        for (query, ((weights, gradients), stored)) in
            queries.iter().zip(rows.zip(stored.chunks_exact_mut(lanes)))
        {
            let dpositions = &mut dpositions[query.slot * lanes..][..lanes];
            let mean = sum(lanes, |i| weights[i] * gradients[i]);
            for i in 0..lanes {
                let gradient = weights[i] * (gradients[i] - mean);
                dpositions[i] += gradient;
                stored[i] = T::from_f32(gradient * scale);
            }
        }
    }
}

#[cfg(test)]
mod tests;
