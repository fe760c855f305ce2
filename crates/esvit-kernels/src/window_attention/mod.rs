//! Attention inside (shifted) windows, forward and backward. One window that holds all tokens,
//! without a table, is the attention of a plain transformer.
//!
//! Padding, rolling and partitioning are index arithmetic: a table says which token stands in
//! which slot of which window. The weights of the attention are not kept for the backward pass
//! but computed again, which costs less than reading them would.

mod head;
mod softmax;

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::element::{Element, row_len};
use crate::product::LANES;
use crate::simd::{dispatch, prefetch};
use head::Head;
use softmax::NEVER;

/// Tasks into which the windows of a call are cut, whatever the number of threads: gradients of
/// table and padding are summed within a task and then over tasks in order.
const TASKS: usize = 32;

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
    /// For every pair of slots (query, key) its row in the table of relative positions; empty
    /// without a table.
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
        let pairs = if table.is_empty() { 0 } else { n * n };
        assert_eq!(self.bias_row.len(), pairs, "rows of the table");
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

// SAFETY: tasks only write, to places of which no two have the same, as `at` demands.
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

/// Mixes the values of every window: `qkv [B T, 3 C]` with its bias, and `padding [3 C]`, the
/// query, key and value of a slot without a token; `table [rows, heads]`, which may have no rows;
/// into `mixed [B T, C]`.
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
    let work = Work::new(images, windows);
    work.tasks().into_par_iter().for_each(|task| {
        let (mut part, mut places) = (Head::new(windows, false), Vec::new());
        for at in task {
            let Unit { first, window, heads } = work.unit(at);
            part.choose(windows, window);
            prefetch_window(qkv, row_len::<T>(3 * windows.width), windows, &work, at + 1);
            for head in heads {
                part.load(qkv, &padding, windows, first, head);
                for queries in part.blocks() {
                    part.attend(positions.as_deref(), windows, &queries, head);
                    part.mix(&queries);
                    place(&mut places, &part.queries[queries], first, row, head * part.d);
                    scatter(&part.out, part.width, part.d, &places, mixed);
                }
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
    let work = Work::new(images, windows);
    let parts: Vec<(Vec<f32>, Option<Buffer<f32>>)> = work
        .tasks()
        .into_par_iter()
        .map(|task| {
            let (mut part, mut places) = (Head::new(windows, true), Vec::new());
            let mut dpadding = vec![0.0; padding.len()];
            let mut dpositions =
                positions.as_ref().map(|positions| Buffer::<f32>::zeroed(positions.len()));
            let d = part.d;
            for at in task {
                let Unit { first, window, heads } = work.unit(at);
                part.choose(windows, window);
                prefetch_window(qkv, row3, windows, &work, at + 1);
                prefetch_window(dmixed, row, windows, &work, at + 1);
                for head in heads {
                    part.load(qkv, &padding_values, windows, first, head);
                    part.load_gradient(dmixed, windows, first, head);
                    for queries in part.blocks() {
                        part.attend(positions.as_deref(), windows, &queries, head);
                        part.differentiate(&queries, head, dpositions.as_deref_mut());
                        place(&mut places, &part.queries[queries], first, row3, head * d);
                        scatter(&part.dqueries, part.width, d, &places, dqkv);
                    }
                    for (of, gradients) in [(1, &part.dkeys), (2, &part.dvalues)] {
                        let offset = of * windows.width + head * d;
                        place(&mut places, &part.queries, first, row3, offset);
                        if part.queries.len() == windows.slots {
                            scatter(gradients, part.width, d, &places, dqkv);
                            continue;
                        }
                        for (query, &place) in part.queries.iter().zip(&places) {
                            let gradient = &gradients[query.slot * part.width..][..part.width];
                            scatter(gradient, part.width, d, &[place], dqkv);
                        }
                        for (slot, gradient) in gradients.chunks_exact(part.width).enumerate() {
                            if windows.token(window, slot).is_none() {
                                let sums = dpadding[offset..offset + d].iter_mut().zip(gradient);
                                sums.for_each(|(sum, value)| *sum += value);
                            }
                        }
                    }
                }
            }
            (dpadding, dpositions)
        })
        .collect();
    let mut dpadding = vec![0.0; padding.len()];
    let mut dpositions = vec![0.0; positions.map_or(0, |positions| positions.len())];
    for (part, position_part) in parts {
        dpadding.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        if let Some(part) = position_part {
            dpositions.iter_mut().zip(part.iter()).for_each(|(total, part)| *total += part);
        }
    }
    (dpadding, table_gradient(&dpositions, table.len(), windows))
}

/// Asks for the rows of all tokens of the next unit's window, if there is one.
fn prefetch_window<T: Element>(
    rows: &[T],
    row: usize,
    windows: &Windows<'_>,
    work: &Work,
    at: usize,
) {
    let Unit { first, window, .. } = work.unit(at);
    for slot in 0..windows.slots {
        if let Some(token) = windows.token(window, slot) {
            let start = (first + token) * row;
            if let Some(row_of_token) = rows.get(start..start + row) {
                prefetch(row_of_token, row, row);
            }
        }
    }
}

/// Notes where rows of queries go: in a matrix of rows `row` apart, `offset` into each.
fn place(
    places: &mut Vec<usize>,
    queries: &[head::Query],
    first: usize,
    row: usize,
    offset: usize,
) {
    places.clear();
    places.extend(queries.iter().map(|query| (first + query.token) * row + offset));
}

/// All windows of all images in order; where these are few, with some heads at a time.
struct Work {
    /// Windows of an image, and its tokens.
    windows: usize,
    tokens: usize,
    heads: usize,
    /// Heads of a unit.
    group: usize,
    units: usize,
}

/// Heads of one window.
struct Unit {
    /// The first row of the window's image.
    first: usize,
    /// The window in its image.
    window: usize,
    heads: Range<usize>,
}

impl Work {
    fn new(images: usize, windows: &Windows<'_>) -> Self {
        let (total, heads) = (images * windows.windows(), windows.heads);
        let group = heads.div_ceil(TASKS.div_ceil(total.max(1)));
        let units = total * heads.div_ceil(group);
        Self { windows: windows.windows(), tokens: windows.tokens, heads, group, units }
    }

    /// The units, cut into tasks.
    fn tasks(&self) -> Vec<Range<usize>> {
        let size = self.units.div_ceil(TASKS).max(1);
        (0..self.units).step_by(size).map(|start| start..(start + size).min(self.units)).collect()
    }

    fn unit(&self, at: usize) -> Unit {
        let groups = self.heads.div_ceil(self.group);
        let (at, first) = (at / groups, at % groups * self.group);
        Unit {
            first: at / self.windows * self.tokens,
            window: at % self.windows,
            heads: first..(first + self.group).min(self.heads),
        }
    }
}

/// The table's bias for every pair of slots, `[heads, n, lanes]`; what fills up the lanes is
/// [`NEVER`]. None without a table.
fn positions(table: &[f32], windows: &Windows<'_>) -> Option<Vec<f32>> {
    if table.is_empty() {
        return None;
    }
    let (n, heads, lanes) = (windows.slots, windows.heads, windows.lanes());
    let mut positions = vec![NEVER; heads * n * lanes];
    for (at, row) in positions.chunks_exact_mut(lanes).enumerate() {
        let (head, query) = (at / n, at % n);
        for (position, &table_row) in row.iter_mut().zip(&windows.bias_row[query * n..][..n]) {
            *position = table[table_row as usize * heads + head];
        }
    }
    Some(positions)
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

#[cfg(test)]
mod tests;
