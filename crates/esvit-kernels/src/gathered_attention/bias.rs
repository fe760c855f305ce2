//! What is added to the logits of a group: the bias of its pairs, and what hides keys.

use std::ops::Range;

use super::groups::{Group, GroupTable};
use crate::elementwise::add;
use crate::gemm::LANES;
use crate::window_attention::MASK_VALUE;

/// Biases of the pairs of a table, `[heads, queries, lanes]`: keys padded to whole registers.
#[derive(Debug)]
pub(super) struct PairBias {
    values: Vec<f32>,
    queries: usize,
    keys: usize,
}

impl PairBias {
    /// From `bias [heads, queries, keys]`.
    pub(super) fn new(bias: &[f32], table: &GroupTable) -> Self {
        let (queries, keys) = (table.queries, table.keys);
        let lanes = keys.next_multiple_of(LANES);
        let mut values = vec![MASK_VALUE; bias.len() / keys * lanes];
        for (to, from) in values.chunks_exact_mut(lanes).zip(bias.chunks_exact(keys)) {
            to[..keys].copy_from_slice(from);
        }
        Self { values, queries, keys }
    }

    /// Values of a matrix of all heads.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Values of a head.
    pub(super) fn of_head(&self) -> usize {
        self.queries * self.lanes()
    }

    fn lanes(&self) -> usize {
        self.keys.next_multiple_of(LANES)
    }

    /// Adds dS of some queries of a group, given by their places in the table, to the gradient of
    /// a head, `[queries, lanes]`.
    pub(super) fn add_gradient<'r>(
        &self,
        group: &Group,
        slots: &[usize],
        ds: impl Iterator<Item = &'r [f32]>,
        gradient: &mut [f32],
    ) {
        for (&slot, ds) in slots.iter().zip(ds) {
            let to = &mut gradient[slot * self.lanes()..][..self.keys];
            let mut at = 0;
            for run in &group.columns {
                add(&ds[at..at + run.len()], &mut to[run.clone()]);
                at += run.len();
            }
        }
    }

    /// `[heads, queries, keys]` of such a gradient of all heads.
    pub(super) fn without_padding(&self, gradient: &[f32]) -> Vec<f32> {
        let rows = gradient.chunks_exact(self.lanes());
        rows.flat_map(|row| &row[..self.keys]).copied().collect()
    }
}

/// Rows of what is added to the logits of a block of queries, where they are not those of a [`PairBias`].
#[derive(Debug, Default)]
pub(super) struct Added {
    values: Vec<f32>,
    rows: Vec<usize>,
}

impl Added {
    /// What is added to the logits of a block of queries of a group: rows of values, and the row of every
    /// query. None if it is nothing.
    pub(super) fn of<'b>(
        &'b mut self,
        bias: Option<&'b PairBias>,
        group: &'b Group,
        head: usize,
        block: Range<usize>,
    ) -> Option<(&'b [f32], &'b [usize])> {
        let of_head = bias.map(|bias| &bias.values[head * bias.of_head()..][..bias.of_head()]);
        match of_head {
            None if group.hidden.is_empty() => return None,
            Some(values) if group.has_all_keys && group.hidden.is_empty() => {
                return Some((values, &group.slots[block]));
            }
            _ => {}
        }
        let n = group.key_rows.len();
        let lanes = n.next_multiple_of(LANES);
        self.values.resize(block.len() * lanes, 0.0);
        self.rows.clear();
        self.rows.extend(0..block.len());
        for (query, to) in block.zip(self.values.chunks_exact_mut(lanes)) {
            match (bias, of_head) {
                (Some(bias), Some(values)) => {
                    let from = &values[group.slots[query] * bias.lanes()..];
                    let mut at = 0;
                    for run in &group.columns {
                        to[at..at + run.len()].copy_from_slice(&from[run.clone()]);
                        at += run.len();
                    }
                }
                _ => to[..n].fill(0.0),
            }
            to[n..].fill(MASK_VALUE);
            if let Some(hidden) = group.hidden.get(query * n..(query + 1) * n) {
                for (to, _) in to.iter_mut().zip(hidden).filter(|(_, hidden)| **hidden) {
                    *to = MASK_VALUE;
                }
            }
        }
        Some((&self.values, &self.rows))
    }
}
