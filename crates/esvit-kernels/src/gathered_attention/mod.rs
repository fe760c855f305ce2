//! Multi-head attention of groups of queries to listed keys, such as tokens of a window to those of
//! the windows around it: `O = softmax(scale Q K^T + B) V` for every head.
//!
//! Index tables say which rows of an image are the queries and the keys of every group. A key may be
//! in several groups. Keys that no query of a group sees are left out. As in
//! [`crate::window_attention`], the weights are computed again in the backward pass.
//!
//! Tasks take images, and where there are few of them some groups and heads of one. In the backward
//! pass groups that share keys stay in one task, which sums their gradients in order.

mod bias;
mod cuts;
mod groups;
mod image;

use rayon::prelude::*;

use crate::buffer::{self, Buffer};
use crate::element::Element;
use crate::elementwise::add;
use crate::profile;
use bias::PairBias;
use cuts::Cuts;
use image::{Columns, Image};

pub use groups::{AttentionGroups, GroupTable, ImageRows};

/// Least number of tasks of a call, if there is as much to share out.
const TASKS: usize = 32;

/// Most parts of a segment's images that have gradients of biases of their own, and most values of
/// these in all.
const BIAS_PARTS: usize = 4;
const BIAS_VALUES: usize = 16 << 20;

/// Which rows attend to which.
#[derive(Debug, Clone, Copy)]
pub struct GatheredAttention<'a> {
    /// Images of one size each, one after the other.
    pub segments: &'a [Segment<'a>],
    /// Width of a token, C.
    pub width: usize,
    /// Attention heads; they divide C.
    pub heads: usize,
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
}

/// Images of one size.
#[derive(Debug, Clone)]
pub struct Segment<'a> {
    /// Number of images.
    pub images: usize,
    /// Their groups.
    pub groups: &'a AttentionGroups,
    /// What is added to the logits of all groups of a table, `[heads, queries, keys]`: one for every
    /// table, or none.
    pub biases: Vec<&'a [f32]>,
}

/// Queries, keys and values as rows.
#[derive(Debug, Clone, Copy)]
pub enum Projections<'a, S = f32> {
    /// Of a token in one row, `[rows, 3 C]`.
    Joint(&'a [S]),
    /// `q [queries, C]` and `kv [keys, 2 C]`, keys before values in a row.
    Separate {
        /// Queries.
        q: &'a [S],
        /// Keys and values.
        kv: &'a [S],
    },
}

/// Gradients of the inputs.
#[derive(Debug)]
pub struct Gradients {
    /// Of the [`Projections`]: one matrix, or two.
    pub projections: Vec<Vec<f32>>,
    /// Of the biases, segment by segment.
    pub biases: Vec<Vec<f32>>,
}

impl<'a, S> Projections<'a, S> {
    /// Queries, keys and values.
    fn columns(self, width: usize) -> [Columns<'a, S>; 3] {
        let columns = |values, stride, first| Columns { values, stride, first };
        match self {
            Self::Joint(qkv) => [0, 1, 2].map(|part| columns(qkv, 3 * width, part * width)),
            Self::Separate { q, kv } => {
                [columns(q, width, 0), columns(kv, 2 * width, 0), columns(kv, 2 * width, width)]
            }
        }
    }
}

impl<'a> GatheredAttention<'a> {
    /// Multiply-accumulates of one of the two products.
    fn macs(&self) -> usize {
        let pairs = self.segments.iter().map(|segment| segment.images * segment.groups.pairs());
        pairs.sum::<usize>() * self.width
    }

    fn head_width(&self) -> usize {
        self.width / self.heads
    }

    /// Rows of all images.
    fn rows(&self, of: fn(ImageRows) -> usize) -> usize {
        self.segments.iter().map(|segment| segment.images * of(segment.groups.rows())).sum()
    }

    /// # Panics
    /// When lengths do not match.
    fn check<S>(&self, projections: &Projections<'_, S>) {
        assert!(self.width.is_multiple_of(self.heads), "heads divide the width");
        let [queries, keys] = [self.rows(|rows| rows.queries), self.rows(|rows| rows.keys)];
        match projections {
            Projections::Joint(qkv) => {
                let mut rows = self.segments.iter().map(|segment| segment.groups.rows());
                assert!(rows.all(|rows| rows.queries == rows.keys), "queries and keys of tokens");
                assert_eq!(qkv.len(), queries * 3 * self.width, "queries, keys and values");
            }
            Projections::Separate { q, kv } => {
                assert_eq!(q.len(), queries * self.width, "queries");
                assert_eq!(kv.len(), keys * 2 * self.width, "keys and values");
            }
        }
        for Segment { groups, biases, .. } in self.segments {
            let tables = groups.tables();
            assert!([0, tables.len()].contains(&biases.len()), "a bias for every table");
            for (table, bias) in tables.iter().zip(biases) {
                assert_eq!(bias.len(), self.heads * table.queries * table.keys, "bias");
            }
        }
    }

    /// The biases of every segment.
    fn biases(&self) -> Vec<Vec<PairBias>> {
        let of_segment = |segment: &Segment<'_>| {
            let pairs = segment.biases.iter().zip(segment.groups.tables());
            pairs.map(|(bias, table)| PairBias::new(bias, table)).collect()
        };
        self.segments.iter().map(of_segment).collect()
    }

    /// The images of every segment.
    fn images<'i, S: Element>(
        &self,
        projections: Projections<'i, S>,
        biases: &'i [Vec<PairBias>],
        zeros: &'i [S],
    ) -> Vec<Vec<Image<'i, S>>>
    where
        'a: 'i,
    {
        let [q, k, v] = projections.columns(self.width);
        let [mut query, mut key] = [0, 0];
        let of_segment = |(segment, biases): (&Segment<'a>, &'i Vec<PairBias>)| {
            let rows = segment.groups.rows();
            let image = |_| {
                let [own, keys] = [query..query + rows.queries, key..key + rows.keys];
                [query, key] = [own.end, keys.end];
                Image {
                    groups: segment.groups,
                    biases,
                    heads: self.heads,
                    scale: self.scale,
                    zeros,
                    q: q.rows(own),
                    k: k.rows(keys.clone()),
                    v: v.rows(keys),
                }
            };
            (0..segment.images).map(image).collect()
        };
        self.segments.iter().zip(biases).map(of_segment).collect()
    }

    /// `width` values for every row of a kind of all images, image by image within each segment.
    fn split<'v, S>(
        &self,
        mut values: &'v mut [S],
        width: usize,
        of: fn(ImageRows) -> usize,
    ) -> Vec<Vec<&'v mut [S]>> {
        let of_segment = |segment: &Segment<'_>| {
            let len = of(segment.groups.rows()) * width;
            let image = |_| values.split_off_mut(..len).expect("rows of all images");
            (0..segment.images).map(image).collect()
        };
        self.segments.iter().map(of_segment).collect()
    }
}

/// Attention to `projections`: `[rows of the result, C]` in their type, the rows of all images one after the
/// other.
///
/// # Panics
/// When lengths do not match.
pub fn forward<T: Element, S: Element>(
    projections: Projections<'_, S>,
    attention: &GatheredAttention<'_>,
) -> Buffer<S> {
    attention.check(&projections);
    let (width, d) = (attention.width, attention.head_width());
    let (biases, zeros) = (attention.biases(), vec![S::default(); d]);
    let images = attention.images(projections, &biases, &zeros);
    let mut context = Buffer::<S>::uninit(attention.rows(|rows| rows.context) * width);
    let contexts = attention.split(&mut context, width, |rows| rows.context);
    let images: Vec<_> = images.into_iter().flatten().zip(contexts.into_iter().flatten()).collect();
    let tasks = TASKS.div_ceil(images.len().max(1));
    profile::time("gathered attention forward", 2 * attention.macs(), || {
        images.into_par_iter().for_each(|(image, context)| {
            let groups = image.groups.groups().len();
            let cuts = Cuts::new([groups, attention.heads], tasks, true);
            let owners = &image.groups.owners().context;
            let rows = cuts.deal(context.chunks_exact_mut(width), Some(owners), d);
            let tasks = cuts.tasks().into_par_iter().zip(rows);
            tasks.for_each(|(cut, mut rows)| image.forward::<T>(&cut, &mut rows));
        });
    });
    context
}

/// Gradients of the inputs from that of the output, `dcontext [rows of the result, C]`, for the
/// arguments of [`forward`].
///
/// # Panics
/// When lengths do not match.
pub fn backward<T: Element>(
    projections: Projections<'_>,
    attention: &GatheredAttention<'_>,
    dcontext: &[f32],
) -> Gradients {
    attention.check(&projections);
    let (width, d) = (attention.width, attention.head_width());
    let rows = attention.rows(|rows| rows.context);
    assert_eq!(dcontext.len(), rows * width, "gradient of the output");
    let (biases, zeros) = (attention.biases(), vec![0.0; d]);
    let images = attention.images(projections, &biases, &zeros);
    let mut gradients: Vec<Vec<f32>> = match projections {
        Projections::Joint(qkv) => vec![buffer::uninit(qkv.len())],
        Projections::Separate { q, kv } => [q, kv].map(|v| buffer::uninit(v.len())).into(),
    };
    let parts = parts(attention, images, dcontext, &mut gradients);
    let tasks = TASKS.div_ceil(parts.len().max(1));
    // Q K^T again, and the products of dV, dP, dQ and dK.
    let dbiases: Vec<(usize, Vec<Buffer<f32>>)> =
        profile::time("gathered attention backward", 5 * attention.macs(), || {
            let parts = parts.into_par_iter().map(|Part { segment, images }| {
                let zeroed = |bias: &PairBias| Buffer::<f32>::zeroed(bias.len());
                let mut dbiases: Vec<_> = biases[segment].iter().map(zeroed).collect();
                for (image, dcontext, gradients) in images {
                    image.differentiate::<T>(tasks, dcontext, gradients, &mut dbiases);
                }
                (segment, dbiases)
            });
            parts.collect()
        });

    let mut sums: Vec<Vec<Buffer<f32>>> = attention.segments.iter().map(|_| Vec::new()).collect();
    // In order of the images, whoever took them.
    for (segment, parts) in dbiases {
        if sums[segment].is_empty() {
            sums[segment] = parts;
            continue;
        }
        sums[segment].iter_mut().zip(&parts).for_each(|(sum, part)| add(&part[..], sum));
    }
    let of_segment = |(biases, sums): (&Vec<PairBias>, Vec<Buffer<f32>>)| {
        let zeros = biases[sums.len()..].iter().map(|bias| Buffer::zeroed(bias.len()));
        let sums: Vec<Buffer<f32>> = sums.into_iter().chain(zeros).collect();
        let pairs = biases.iter().zip(sums);
        pairs.map(|(bias, sum)| bias.without_padding(&sum)).collect::<Vec<_>>()
    };
    let dbiases = biases.iter().zip(sums).flat_map(of_segment).collect();
    Gradients { projections: gradients, biases: dbiases }
}

/// Images of a segment that one task takes one after the other: each with the gradient of its result
/// and its rows of the gradients of the projections.
struct Part<'a, 'v> {
    segment: usize,
    images: Vec<(Image<'a>, Columns<'a>, Vec<&'v mut [f32]>)>,
}

/// All images, one by one, or several at a time where they have biases.
fn parts<'a, 'v>(
    attention: &GatheredAttention<'_>,
    images: Vec<Vec<Image<'a>>>,
    dcontext: &'a [f32],
    gradients: &'v mut [Vec<f32>],
) -> Vec<Part<'a, 'v>> {
    let width = attention.width;
    let mut of_images = match gradients {
        [dqkv] => vec![attention.split(dqkv, 3 * width, |rows| rows.queries).into_iter()],
        [dq, dkv] => vec![
            attention.split(dq, width, |rows| rows.queries).into_iter(),
            attention.split(dkv, 2 * width, |rows| rows.keys).into_iter(),
        ],
        _ => unreachable!("one matrix or two"),
    };
    let dcontext = Columns { values: dcontext, stride: width, first: 0 };
    let (mut found, mut row) = (Vec::new(), 0);
    for (number, images) in images.into_iter().enumerate() {
        let Segment { groups, biases, .. } = &attention.segments[number];
        let mut gradients: Vec<_> = of_images
            .iter_mut()
            .map(|segments| segments.next().expect("rows of every segment").into_iter())
            .collect();
        let values: usize = biases.iter().map(|bias| bias.len()).sum();
        let most = if biases.is_empty() {
            images.len()
        } else {
            (BIAS_VALUES / values.max(1)).clamp(1, BIAS_PARTS)
        };
        let size = images.len().div_ceil(most.max(1)).max(1);
        let mut part = Vec::new();
        let count = images.len();
        for (at, image) in images.into_iter().enumerate() {
            let own = row..row + groups.rows().context;
            row = own.end;
            let rows = gradients.iter_mut().map(|rows| rows.next().expect("rows of every image"));
            part.push((image, dcontext.rows(own), rows.collect()));
            if part.len() == size || at + 1 == count {
                found.push(Part { segment: number, images: std::mem::take(&mut part) });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
