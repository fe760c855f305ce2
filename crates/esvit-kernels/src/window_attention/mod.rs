//! Multi-head self-attention in (shifted) windows, forward and backward. One window with all tokens
//! and no bias is the attention of a plain transformer (groundwork for ViT backbones).
//!
//! Padding, cyclic shift and window partition are one index table, slot -> token. Per window and
//! head: `S = scale Q K^T + B + mask`, `P = softmax(S)`, `O = P V`. `P` is not saved but recomputed
//! in backward, which costs less than reading it from memory.

mod head;
mod softmax;

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len};
use crate::gemm::LANES;
use crate::reduce::sum_in_order;
use crate::simd::{dispatch, update};
use head::Head;

pub(crate) use head::{QUERIES, vnni_packed};
pub(crate) use softmax::{MASK_VALUE, softmax, softmax_backward};

/// Tasks of a call, whatever the number of threads: gradients of bias table and padding are summed
/// within a task and then over tasks in order.
const TASKS: usize = 32;

/// Geometry of the windows of images of one size.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    /// Tokens of an image, T.
    pub tokens: usize,
    /// Slots of a window, n: tokens and padding.
    pub slots: usize,
    /// Width of a token, C.
    pub width: usize,
    /// Attention heads; they divide C.
    pub heads: usize,
    /// Token of every slot, `[windows, n]`; T for padding.
    pub slot_token: &'a [i32],
    /// Relative position index: row of the bias table for every pair of slots (query, key), `[n,
    /// n]`; empty without a bias.
    pub bias_index: &'a [i32],
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

    /// The slots of a window: those with a token, and padding.
    fn slots_of(&self, window: usize) -> [Vec<usize>; 2] {
        let slots = &self.slot_token[window * self.slots..][..self.slots];
        let (filled, padded) =
            (0..self.slots).partition(|&slot| (slots[slot] as usize) < self.tokens);
        [filled, padded]
    }

    /// n padded to whole registers.
    fn lanes(&self) -> usize {
        self.slots.next_multiple_of(LANES)
    }
}

/// A matrix that several tasks write, no place by two of them.
#[derive(Clone, Copy)]
struct SharedRows<'a, T> {
    values: *mut T,
    len: usize,
    lifetime: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: tasks only write, each to its own places, as `at` demands.
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
    /// Stores the first `d` values of each row of `from` (rows `width` values apart) at `place` of
    /// a matrix and every `step` values further on; no two tasks write the same places.
    fn scatter<T: Element>(
        from: &[f32],
        width: usize,
        d: usize,
        place: usize,
        step: usize,
        to: SharedRows<'_, T>,
    ) {
        for (row, from) in from.chunks_exact(width).enumerate() {
            // SAFETY: each window and head is in one task, and has its own rows and columns.
            let to = unsafe { to.at(place + row * step, d) };
            update(to, [from], |_, [value]| value);
        }
    }
}

/// Window attention for images of one size. Token rows are in window order: those of the first
/// window of the first image by slot, then those of its second window.
pub(crate) struct WindowAttention<'a, T: Element> {
    shape: Windows<'a>,
    /// Tokens of an image in window order.
    order: Vec<u32>,
    /// First row of every window of an image, and the number of rows.
    starts: Vec<usize>,
    /// Query, key and value of padding, `[3 C]`: the bias of `qkv`.
    padding: Vec<T>,
    /// Rows of the bias table.
    bias_rows: usize,
    /// Relative position bias, `[heads, n, lanes]`.
    position_bias: Option<Vec<f32>>,
}

impl<'a, T: Element> WindowAttention<'a, T> {
    /// For `padding [3 C]` and `bias_table [rows, heads]`, which may have no rows.
    ///
    /// # Panics
    /// When lengths do not match.
    pub(crate) fn new(shape: Windows<'a>, padding: &[f32], bias_table: &[f32]) -> Self {
        let (n, width, heads) = (shape.slots, shape.width, shape.heads);
        assert!(width.is_multiple_of(heads), "heads divide the width");
        assert_eq!(padding.len(), 3 * width, "query, key and value of padding");
        assert_eq!(bias_table.len() % heads, 0, "bias table");
        let bias_rows = bias_table.len() / heads;
        let pairs = if bias_table.is_empty() { 0 } else { n * n };
        assert_eq!(shape.bias_index.len(), pairs, "rows of the bias table");
        assert!(
            shape.bias_index.iter().all(|&row| (row as usize) < bias_rows),
            "rows of the bias table"
        );
        assert!(shape.mask.is_none_or(|mask| mask.len() == shape.windows() * n * n), "mask");
        let (mut order, mut starts) = (Vec::with_capacity(shape.tokens), vec![0]);
        for window in 0..shape.windows() {
            let slots = &shape.slot_token[window * n..];
            let [filled, _] = shape.slots_of(window);
            order.extend(filled.into_iter().map(|slot| slots[slot] as u32));
            starts.push(order.len());
        }
        assert_eq!(order.len(), shape.tokens, "every token has a slot");
        let padding = padding.iter().map(|&value| T::from_f32(value)).collect();
        let position_bias = position_bias(bias_table, &shape);
        Self { shape, order, starts, padding, bias_rows, position_bias }
    }

    /// Windows of an image.
    pub(crate) fn windows(&self) -> usize {
        self.shape.windows()
    }

    /// Slots of a window.
    pub(crate) fn slots(&self) -> usize {
        self.shape.slots
    }

    /// Tokens of an image in window order.
    pub(crate) fn order(&self) -> &[u32] {
        &self.order
    }

    /// Rows of a range of the windows of all images.
    pub(crate) fn rows(&self, windows: Range<usize>) -> Range<usize> {
        self.start(windows.start)..self.start(windows.end)
    }

    fn start(&self, window: usize) -> usize {
        let (image, window) = (window / self.windows(), window % self.windows());
        image * self.shape.tokens + self.starts[window]
    }

    /// Attention of some windows: `qkv [rows, 3 C]`, with its bias, into `context [rows, C]`, both
    /// with rows of [`padded_row_len`]. With `shared`, heads and windows are split into tasks.
    pub(crate) fn forward(
        &self,
        windows: Range<usize>,
        shared: bool,
        qkv: &[T],
        context: &mut [T],
    ) {
        let shape = &self.shape;
        let (row, row3) = (padded_row_len::<T>(shape.width), padded_row_len::<T>(3 * shape.width));
        let first = self.start(windows.start);
        let rows = self.rows(windows.clone()).len();
        assert_eq!(qkv.len(), rows * row3, "queries, keys and values");
        assert_eq!(context.len(), rows * row, "context values");
        let context = SharedRows::new(context);
        let work = Work::new(windows, shape.heads, if shared { TASKS } else { 1 });
        work.tasks().into_par_iter().for_each(|task| {
            let mut part = Head::new(self, false);
            for (window, head) in work.heads(task) {
                let own = self.rows(window..window + 1);
                let own = own.start - first..own.end - first;
                part.load(window % self.windows(), head, &qkv[own.start * row3..own.end * row3]);
                for queries in part.blocks() {
                    part.compute_weights(&queries);
                    part.apply_weights(&queries);
                    let place = (own.start + queries.start) * row + head * part.d;
                    let out = &part.out[..queries.len() * part.width];
                    scatter(out, part.width, part.d, place, row, context);
                }
            }
        });
    }

    /// Gradients of all windows from that of `context`: of `qkv` into `dqkv`, and returns those of
    /// `padding` and `bias_table`.
    pub(crate) fn backward(&self, qkv: &[T], dcontext: &[T], dqkv: &mut [T]) -> [Vec<f32>; 2] {
        let shape = &self.shape;
        let (row, row3) = (padded_row_len::<T>(shape.width), padded_row_len::<T>(3 * shape.width));
        let rows = qkv.len() / row3;
        assert!(rows.is_multiple_of(shape.tokens), "whole images");
        assert_eq!(qkv.len(), dqkv.len(), "gradient of queries, keys and values");
        assert_eq!(dcontext.len(), rows * row, "gradient of context values");
        let dqkv = SharedRows::new(dqkv);
        let work = Work::new(0..rows / shape.tokens * self.windows(), shape.heads, TASKS);
        let lens = [self.padding.len(), self.position_bias.as_ref().map_or(0, Vec::len)];
        let parts = work.tasks().into_par_iter().map(|task| {
            let mut part = Head::new(self, true);
            let (d, wide) = (part.d, part.width);
            let [mut dpadding, mut dposition_bias] = lens.map(Buffer::<f32>::zeroed);
            for (window, head) in work.heads(task) {
                let own = self.rows(window..window + 1);
                part.load(window % self.windows(), head, &qkv[own.start * row3..own.end * row3]);
                part.load_gradient(&dcontext[own.start * row..own.end * row]);
                for queries in part.blocks() {
                    part.compute_weights(&queries);
                    part.backward(&queries, &mut dposition_bias);
                    let place = (own.start + queries.start) * row3 + head * d;
                    scatter(&part.dq[..queries.len() * wide], wide, d, place, row3, dqkv);
                }
                for (of, gradients) in [(1, &part.dk), (2, &part.dv)] {
                    let offset = of * shape.width + head * d;
                    let place = own.start * row3 + offset;
                    if part.padded_slots.is_empty() {
                        scatter(gradients, wide, d, place, row3, dqkv);
                        continue;
                    }
                    for (at, slot) in part.query_slots.iter().enumerate() {
                        let gradient = &gradients[slot * wide..][..wide];
                        scatter(gradient, wide, d, place + at * row3, row3, dqkv);
                    }
                    for slot in &part.padded_slots {
                        let gradient = &gradients[slot * wide..][..d];
                        let sums = dpadding[offset..offset + d].iter_mut().zip(gradient);
                        sums.for_each(|(sum, value)| *sum += value);
                    }
                }
            }
            [dpadding, dposition_bias]
        });
        let [dpadding, dposition_bias] = sum_in_order(parts, lens);
        [dpadding, bias_table_gradient(&dposition_bias, self.bias_rows * shape.heads, shape)]
    }
}

/// Units of work: windows in order, or some heads of a window where windows are few.
struct Work {
    windows: Range<usize>,
    heads: usize,
    /// Heads per unit.
    group: usize,
    /// Maximum number of tasks.
    tasks: usize,
}

impl Work {
    fn new(windows: Range<usize>, heads: usize, tasks: usize) -> Self {
        let group = heads.div_ceil(tasks.div_ceil(windows.len().max(1)));
        Self { windows, heads, group, tasks }
    }

    /// The units, split into tasks.
    fn tasks(&self) -> Vec<Range<usize>> {
        let units = self.windows.len() * self.heads.div_ceil(self.group);
        let size = units.div_ceil(self.tasks).max(1);
        (0..units).step_by(size).map(|start| start..(start + size).min(units)).collect()
    }

    /// Window and head of everything in a task.
    fn heads(&self, task: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        let groups = self.heads.div_ceil(self.group);
        task.flat_map(move |unit| {
            let (window, first) = (self.windows.start + unit / groups, unit % groups * self.group);
            (first..(first + self.group).min(self.heads)).map(move |head| (window, head))
        })
    }
}

/// Relative position bias of every pair of slots, `[heads, n, lanes]`; the padding of rows is
/// [`MASK_VALUE`]. None without a table.
fn position_bias(bias_table: &[f32], windows: &Windows<'_>) -> Option<Vec<f32>> {
    if bias_table.is_empty() {
        return None;
    }
    let (n, heads, lanes) = (windows.slots, windows.heads, windows.lanes());
    let mut position_bias = vec![MASK_VALUE; heads * n * lanes];
    for (at, row) in position_bias.chunks_exact_mut(lanes).enumerate() {
        let (head, query) = (at / n, at % n);
        for (position, &bias_row) in row.iter_mut().zip(&windows.bias_index[query * n..][..n]) {
            *position = bias_table[bias_row as usize * heads + head];
        }
    }
    Some(position_bias)
}

/// Gradient of the bias table: the sum over all pairs of slots that share a row.
fn bias_table_gradient(dposition_bias: &[f32], len: usize, windows: &Windows<'_>) -> Vec<f32> {
    let (n, heads, lanes) = (windows.slots, windows.heads, windows.lanes());
    let mut dbias_table = vec![0.0; len];
    for (at, row) in dposition_bias.chunks_exact(lanes).enumerate() {
        let (head, query) = (at / n, at % n);
        for (gradient, &bias_row) in row.iter().zip(&windows.bias_index[query * n..][..n]) {
            dbias_table[bias_row as usize * heads + head] += gradient;
        }
    }
    dbias_table
}

#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod tests;
