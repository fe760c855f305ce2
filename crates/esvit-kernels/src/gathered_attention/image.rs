//! One image: attention in its groups, forward and backward.

use std::ops::Range;

use rayon::prelude::*;

use super::bias::{Added, PairBias};
use super::cuts::{Cut, Cuts, TaskRows};
use super::groups::{AttentionGroups, Group};
use crate::attention_head::{Head, convert};
use crate::buffer::Buffer;
use crate::element::Element;
use crate::elementwise::add;

/// Some columns of rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns<'a, S = f32> {
    pub(super) values: &'a [S],
    /// Length of a row.
    pub(super) stride: usize,
    /// The first column.
    pub(super) first: usize,
}

impl<'a, S: Element> Columns<'a, S> {
    pub(super) fn rows(&self, rows: Range<usize>) -> Self {
        Self { values: &self.values[rows.start * self.stride..rows.end * self.stride], ..*self }
    }

    /// Part of a row; None behind the last one.
    #[inline(always)]
    fn part(&self, row: u32, own: &Range<usize>) -> Option<&'a [S]> {
        let start = row as usize * self.stride;
        (start < self.values.len()).then(|| &self.values[start + self.first..][own.clone()])
    }
}

/// An image: its groups, and its rows.
#[derive(Clone, Copy)]
pub(super) struct Image<'a, S = f32> {
    pub(super) groups: &'a AttentionGroups,
    /// Of every table, or empty.
    pub(super) biases: &'a [PairBias],
    pub(super) heads: usize,
    pub(super) scale: f32,
    /// A head of a key beyond the last row.
    pub(super) zeros: &'a [S],
    pub(super) q: Columns<'a, S>,
    pub(super) k: Columns<'a, S>,
    pub(super) v: Columns<'a, S>,
}

impl<'a, S: Element> Image<'a, S> {
    fn head_width(&self) -> usize {
        self.zeros.len()
    }

    /// Columns of a head.
    fn columns(&self, head: usize) -> Range<usize> {
        head * self.head_width()..(head + 1) * self.head_width()
    }

    /// Buffers that suffice for some groups.
    fn head<T: Element>(&self, groups: &[Group], with_gradients: bool) -> Head<T> {
        let most = |of: fn(&Group) -> usize| groups.iter().map(of).max().unwrap_or(0);
        let queries = most(|group| group.slots.len());
        let keys = most(|group| group.key_rows.len());
        Head::new([queries, keys, self.head_width()], self.scale, with_gradients)
    }

    /// Keys and values of a group.
    fn keys<'g>(
        &self,
        group: &'g Group,
        own: &'g Range<usize>,
    ) -> impl ExactSizeIterator<Item = [&'a [S]; 2]> + use<'a, 'g, S> {
        let Self { k, v, zeros, .. } = *self;
        let rows = group.key_rows.iter();
        rows.map(move |&row| [k, v].map(|columns| columns.part(row, own).unwrap_or(zeros)))
    }

    /// Attention in the groups and heads of a task, into its rows.
    pub(super) fn forward<T: Element>(&self, cut: &Cut, context: &mut TaskRows<'_, S>) {
        let (d, mut added) = (self.head_width(), Added::default());
        for groups in self.by_table(cut) {
            let mut part = self.head::<T>(groups, false);
            for (group, head) in heads_of_groups(groups, cut) {
                let (own, first) = (self.columns(head), (head - cut.heads.start) * d);
                part.load_keys(self.keys(group, &own));
                for block in group.blocks() {
                    part.load_queries(rows_of(self.q, &group.query_rows[block.clone()], &own));
                    let bias = self.biases.get(group.table);
                    part.compute_weights(added.of(bias, group, head, block.clone()));
                    part.apply_weights();
                    for (&row, out) in group.context_rows[block].iter().zip(part.out()) {
                        convert(out, &mut of_task(context, row)[first..first + d]);
                    }
                }
            }
        }
    }

    /// The groups of a task by their tables.
    fn by_table(&self, cut: &Cut) -> impl Iterator<Item = &'a [Group]> + use<'a, S> {
        self.groups.groups()[cut.groups.clone()].chunk_by(|a, b| a.table == b.table)
    }
}

impl Image<'_> {
    /// Backward of all groups in about so many `tasks`: the image's `gradients` of the projections, and
    /// adds to those of the biases.
    pub(super) fn differentiate<T: Element>(
        &self,
        tasks: usize,
        dcontext: Columns<'_>,
        gradients: Vec<&mut [f32]>,
        dbiases: &mut [Buffer<f32>],
    ) {
        let (d, owners) = (self.head_width(), self.groups.owners());
        let is_apart = owners.keys.is_some() && self.biases.is_empty();
        let cuts = Cuts::new([self.groups.groups().len(), self.heads], tasks, is_apart);
        let keys = owners.keys.as_deref().filter(|_| is_apart);
        let [q, k, v] = zeroed_rows(gradients, self.heads * d);
        let q = cuts.deal(q.into_iter(), Some(&owners.queries), d);
        let [k, v] = [k, v].map(|rows| cuts.deal(rows.into_iter(), keys, d));
        let mut rest: Vec<&mut [f32]> = dbiases.iter_mut().map(|values| &mut values[..]).collect();
        let tasks = cuts.tasks().into_iter().zip(q).zip(k.into_iter().zip(v));
        let tasks = tasks.map(|((cut, q), (k, v))| {
            // With biases, tasks are runs of heads.
            let own = rest.iter_mut().zip(self.biases).map(|(rest, bias)| {
                let own = rest.split_off_mut(..cut.heads.len() * bias.of_head());
                own.expect("biases of all heads")
            });
            let own = own.collect();
            (cut, GradientRows { q, k, v }, own)
        });
        let tasks: Vec<(Cut, GradientRows<'_>, Vec<&mut [f32]>)> = tasks.collect();
        tasks.into_par_iter().for_each(|(cut, mut rows, mut dbiases)| {
            self.backward::<T>(&cut, dcontext, &mut rows, &mut dbiases);
        });
    }

    /// Backward of the groups and heads of a task, added to its rows; `dbiases` are those of its heads.
    fn backward<T: Element>(
        &self,
        cut: &Cut,
        dcontext: Columns<'_>,
        rows: &mut GradientRows<'_>,
        dbiases: &mut [&mut [f32]],
    ) {
        let (d, mut added) = (self.head_width(), Added::default());
        for groups in self.by_table(cut) {
            let mut part = self.head::<T>(groups, true);
            for (group, head) in heads_of_groups(groups, cut) {
                let (own, first) = (self.columns(head), (head - cut.heads.start) * d);
                let bias = self.biases.get(group.table);
                part.load_keys(self.keys(group, &own));
                for block in group.blocks() {
                    let query_rows = &group.query_rows[block.clone()];
                    part.load_queries(rows_of(self.q, query_rows, &own));
                    let context_rows = &group.context_rows[block.clone()];
                    part.load_gradient(rows_of(dcontext, context_rows, &own));
                    part.compute_weights(added.of(bias, group, head, block.clone()));
                    let slots = &group.slots[block];
                    match bias.zip(dbiases.get_mut(group.table)) {
                        Some((bias, dbias)) => {
                            let len = bias.of_head();
                            let dbias = &mut dbias[(head - cut.heads.start) * len..][..len];
                            if group.has_all_keys {
                                part.backward(Some((dbias, slots)));
                            } else {
                                part.backward(None);
                                bias.add_gradient(group, slots, part.ds(), dbias);
                            }
                        }
                        None => part.backward(None),
                    }
                    for (&row, dq) in query_rows.iter().zip(part.dq()) {
                        of_task(&mut rows.q, row)[first..first + d].copy_from_slice(dq);
                    }
                }
                let keys = self.groups.rows().keys;
                for (&row, [dk, dv]) in group.key_rows.iter().zip(part.dk_and_dv()) {
                    // Zeros have no gradient.
                    if (row as usize) < keys {
                        add(dk, &mut of_task(&mut rows.k, row)[first..first + d]);
                        add(dv, &mut of_task(&mut rows.v, row)[first..first + d]);
                    }
                }
            }
        }
    }
}

/// Every head of every group, one group after the other.
fn heads_of_groups<'g>(
    groups: &'g [Group],
    cut: &Cut,
) -> impl Iterator<Item = (&'g Group, usize)> + use<'g> {
    let heads = cut.heads.clone();
    groups.iter().flat_map(move |group| heads.clone().map(move |head| (group, head)))
}

/// Columns of a head in some rows.
fn rows_of<'a, S: Element>(
    columns: Columns<'a, S>,
    rows: &[u32],
    own: &Range<usize>,
) -> impl ExactSizeIterator<Item = &'a [S]> {
    rows.iter().map(move |&row| columns.part(row, own).expect("a row of the image"))
}

/// A row that is the task's own.
fn of_task<'r, S>(rows: &'r mut TaskRows<'_, S>, row: u32) -> &'r mut [S] {
    rows[row as usize].as_deref_mut().expect("a row of the task")
}

/// A task's rows of the gradients of queries, keys and values.
struct GradientRows<'v> {
    q: TaskRows<'v>,
    k: TaskRows<'v>,
    v: TaskRows<'v>,
}

/// The rows of the gradients of an image's queries, keys and values, `width` values each.
fn zeroed_rows(gradients: Vec<&mut [f32]>, width: usize) -> [Vec<&mut [f32]>; 3] {
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    let is_joint = gradients.len() == 1;
    for (at, values) in gradients.into_iter().enumerate() {
        values.fill(0.0);
        let (first, parts) = if is_joint { (0, 3) } else { (at, at + 1) };
        for row in values.chunks_exact_mut(parts * width) {
            let parts = row.chunks_exact_mut(width);
            parts.zip(&mut found[first..]).for_each(|(part, rows)| rows.push(part));
        }
    }
    found
}
