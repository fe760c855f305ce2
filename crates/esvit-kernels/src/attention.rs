//! The attention branch of a block: `x + scale proj(attention(qkv(norm(x))))`, inside windows.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::element::{Element, row_len};
use crate::layer_norm::{shifted_bias, through_linear};
use crate::product::{Columns, Left, Packed, transposed_product};
use crate::profile;
use crate::rows::{DropPath, Rows, add_input_gradients, add_residual, each_strip, store};
use crate::window_attention::{self, Windows};

/// The parameters: a normalisation over `C`, `qkv [3 C, C]`, the table of relative positions
/// `[rows, heads]` and `proj [C, C]`.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the names are those of the layers")]
pub struct Attention<'a> {
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub eps: f32,
    pub qkv_weight: &'a [f32],
    pub qkv_bias: &'a [f32],
    pub table: &'a [f32],
    pub proj_weight: &'a [f32],
    pub proj_bias: &'a [f32],
}

/// Gradients of the parameters, in the order of [`Attention`].
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are those of the layers")]
pub struct Gradients {
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
    pub qkv_weight: Vec<f32>,
    pub qkv_bias: Vec<f32>,
    pub table: Vec<f32>,
    pub proj_weight: Vec<f32>,
    pub proj_bias: Vec<f32>,
}

/// The weights in the layout of the forward pass's products.
#[derive(Debug)]
pub struct Layout<T: Element> {
    qkv: Packed<T>,
    /// With the shift of the normalisation.
    qkv_bias: Vec<f32>,
    proj: Packed<T>,
}

/// Images of one size.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// How many.
    pub images: usize,
    /// Where their tokens stand.
    pub windows: Windows<'a>,
}

/// What the backward pass needs of the rows that were not dropped.
#[derive(Debug, Clone)]
pub struct Kept<T: Element> {
    normalised: Buffer<T>,
    inverse: Vec<f32>,
    qkv: Buffer<T>,
    mixed: Buffer<T>,
}

impl Attention<'_> {
    /// What [`forward`] multiplies by: made once for as many passes as the parameters stay the same.
    pub fn lay_out<T: Element>(&self) -> Layout<T> {
        Layout {
            qkv: Packed::transposed(self.qkv_weight, self.width(), Some(self.gamma)),
            qkv_bias: shifted_bias(self.qkv_weight, self.beta, Some(self.qkv_bias)),
            proj: Packed::transposed(self.proj_weight, self.width(), None),
        }
    }

    fn width(&self) -> usize {
        self.gamma.len()
    }

    /// The rows of `x` in blocks, after a check of all lengths.
    fn rows<T: Element>(&self, x: &[f32], segments: &[Segment<'_>], plan: &DropPath<'_>) -> Rows {
        let width = self.width();
        assert!(x.len().is_multiple_of(width), "whole rows");
        assert_eq!((self.beta.len(), self.proj_bias.len()), (width, width), "vectors");
        assert_eq!(self.qkv_weight.len(), 3 * width * width, "qkv");
        assert_eq!(self.qkv_bias.len(), 3 * width, "qkv");
        assert_eq!(self.proj_weight.len(), width * width, "proj");
        let tokens: usize = segments.iter().map(|s| s.images * s.windows.tokens).sum();
        assert_eq!(x.len(), tokens * width, "rows of all segments");
        assert!(segments.iter().all(|s| s.windows.width == width), "width of the windows");
        plan.rows::<T>(tokens, 3 * width)
    }
}

/// The images of every segment that are not dropped, as ranges of kept rows.
fn kept_rows<'a>(
    segments: &'a [Segment<'a>],
    plan: &DropPath<'a>,
) -> impl Iterator<Item = (&'a Segment<'a>, std::ops::Range<usize>)> {
    let (scales, mut image, mut row) = (plan.scales, 0, 0);
    segments.iter().map(move |segment| {
        let kept = match scales {
            Some(scales) => {
                scales[image..image + segment.images].iter().filter(|&&s| s != 0.0).count()
            }
            None => segment.images,
        };
        image += segment.images;
        let start = row;
        row += kept * segment.windows.tokens;
        (segment, start..row)
    })
}

/// Adds the branch to `x [rows, C]` in place: the images of all `segments` one after the other;
/// `layout` is that of `attention`, `plan` says which are dropped or scaled. With `keep` the result
/// holds what [`backward`] needs.
///
/// A slot without a token has the query, key and value of `qkv_bias` and takes part unmasked.
///
/// # Panics
/// When the lengths do not fit.
pub fn forward<T: Element>(
    x: &mut [f32],
    attention: &Attention<'_>,
    layout: &Layout<T>,
    segments: &[Segment<'_>],
    plan: &DropPath<'_>,
    keep: bool,
) -> Option<Kept<T>> {
    let rows = attention.rows::<T>(x, segments, plan);
    let width = attention.width();
    let (row, row3) = (row_len::<T>(width), row_len::<T>(3 * width));
    let Layout { qkv: weight, qkv_bias: bias, proj } = layout;
    assert_eq!((weight.columns(), proj.columns()), (3 * width, width), "layout of these weights");
    let mut normalised =
        if keep { Buffer::<T>::kept_rows(rows.kept, rows.total, width) } else { Buffer::stale(0) };
    let mut inverse = vec![0.0; if keep { rows.kept } else { 0 }];
    // Without a way back they are soon free again.
    let between = if keep { Buffer::<T>::kept_rows } else { Buffer::<T>::brief_kept_rows };
    let mut qkv = between(rows.kept, rows.total, 3 * width);
    let slots: Vec<_> = if keep {
        let normalised = rows.split_kept(&mut normalised, row).into_iter();
        normalised.zip(rows.split_kept(&mut inverse, 1)).map(Some).collect()
    } else {
        rows.blocks.iter().map(|_| None).collect()
    };
    let tasks = rows.blocks.par_iter().zip(rows.split_kept(&mut qkv, row3)).zip(slots);
    let macs = 3 * rows.kept * width * width;
    profile::time("attention forward, qkv", macs, || {
        tasks.for_each(|((block, qkv), slots)| {
            let count = block.kept.len();
            let mut own;
            let (normalised, inverse) = match slots {
                Some(slots) => slots,
                None => {
                    own = (Buffer::<T>::rows(count, width), vec![0.0; count]);
                    (&mut own.0[..], &mut own.1[..])
                }
            };
            let x = &x[block.rows.start * width..block.rows.end * width];
            block.normalise(x, attention.eps, normalised, inverse);
            each_strip(
                Left::rows(normalised, row),
                count,
                weight,
                |first, columns, product, padded| {
                    let bias = &bias[first..first + columns];
                    store(product, padded, Some(bias), columns, &mut qkv[first..], row3);
                },
            );
        })
    });

    let mut mixed = between(rows.kept, rows.total, width);
    for (segment, kept) in kept_rows(segments, plan) {
        let qkv = &qkv[kept.start * row3..kept.end * row3];
        let mixed = &mut mixed[kept.start * row..kept.end * row];
        let (padding, table) = (attention.qkv_bias, attention.table);
        let macs = 2 * kept.len() * segment.windows.slots * width;
        profile::time("attention forward, windows", macs, || {
            window_attention::forward(qkv, padding, table, &segment.windows, mixed);
        });
    }

    let tasks = rows.blocks.par_iter().zip(rows.split(x, width));
    let macs = rows.kept * width * width;
    profile::time("attention forward, proj", macs, || {
        tasks.for_each(|(block, x)| {
            let scales = rows.scales_of(block);
            let left = Left::rows(block.kept_of(&mixed, row), row);
            each_strip(left, block.kept.len(), proj, |first, columns, product, padded| {
                let bias = &attention.proj_bias[first..first + columns];
                let to = &mut x[first..];
                add_residual(product, padded, bias, scales.as_deref(), &block.kept, to, width);
            });
        })
    });
    keep.then_some(Kept { normalised, inverse, qkv, mixed })
}

/// Turns the gradient of the output, `gradient [rows, C]`, in place into that of the input, and
/// returns those of the parameters; other arguments as for the [`forward`] that made `kept`.
///
/// # Panics
/// When the lengths do not fit.
pub fn backward<T: Element>(
    kept: Kept<T>,
    attention: &Attention<'_>,
    segments: &[Segment<'_>],
    plan: &DropPath<'_>,
    gradient: &mut [f32],
) -> Gradients {
    let rows = attention.rows::<T>(gradient, segments, plan);
    let width = attention.width();
    let (row, row3) = (row_len::<T>(width), row_len::<T>(3 * width));
    let Kept { normalised, inverse, qkv, mixed } = kept;
    assert_eq!(inverse.len(), rows.kept, "rows that were kept");

    let weight = Packed::<T>::straight(attention.proj_weight, width, None);
    let mut dbranch = Buffer::<T>::brief_kept_rows(rows.kept, rows.total, width);
    let mut dmixed = Buffer::<T>::brief_kept_rows(rows.kept, rows.total, width);
    let tasks = rows
        .blocks
        .par_iter()
        .zip(rows.split_kept(&mut dbranch, row))
        .zip(rows.split_kept(&mut dmixed, row));
    let macs = rows.kept * width * width;
    profile::time("attention backward, rows", macs, || {
        tasks.for_each(|((block, dbranch), dmixed)| {
            let dy = &gradient[block.rows.start * width..block.rows.end * width];
            rows.scaled(block, dy, width, dbranch);
            let left = Left::rows(dbranch, row);
            each_strip(left, block.kept.len(), &weight, |first, columns, product, padded| {
                store(product, padded, None, columns, &mut dmixed[first..], row);
            });
        })
    });
    let mut proj_weight = Buffer::<f32>::brief(width * width);
    let mut proj_bias = vec![0.0; width];
    let branches = Columns::new(&dbranch, width);
    profile::time("attention backward, weights", macs, || {
        let mixed = Columns::new(&mixed, width);
        transposed_product(branches, mixed, &mut proj_weight, Some(&mut proj_bias), false);
    });
    drop((dbranch, mixed));

    let mut dqkv = Buffer::<T>::brief_kept_rows(rows.kept, rows.total, 3 * width);
    let mut dpadding = vec![0.0; 3 * width];
    let mut table = vec![0.0; attention.table.len()];
    for (segment, kept) in kept_rows(segments, plan) {
        let of = kept.start * row3..kept.end * row3;
        // The weights of the attention, and four products for the gradients.
        let macs = 5 * kept.len() * segment.windows.slots * width;
        let (padding, dtable) = profile::time("attention backward, windows", macs, || {
            window_attention::backward(
                &qkv[of.clone()],
                attention.qkv_bias,
                attention.table,
                &segment.windows,
                &dmixed[kept.start * row..kept.end * row],
                &mut dqkv[of],
            )
        });
        dpadding.iter_mut().zip(padding).for_each(|(sum, part)| *sum += part);
        table.iter_mut().zip(dtable).for_each(|(sum, part)| *sum += part);
    }
    drop((qkv, dmixed));

    let weight = Packed::<T>::straight(attention.qkv_weight, width, Some(attention.gamma));
    let tasks = rows.blocks.par_iter().zip(rows.split(gradient, width));
    let macs = 3 * rows.kept * width * width;
    profile::time("attention backward, rows", macs, || {
        tasks.for_each(|(block, gradient)| {
            let left = Left::rows(block.kept_of(&dqkv, row3), row3);
            add_input_gradients(block, left, &weight, (&normalised, &inverse), gradient);
        })
    });
    let mut qkv_weight = Buffer::<f32>::brief(3 * width * width);
    let mut qkv_bias = vec![0.0; 3 * width];
    let outputs = Columns::new(&dqkv, 3 * width);
    let inputs = Columns::new(&normalised, width);
    profile::time("attention backward, weights", macs, || {
        transposed_product(outputs, inputs, &mut qkv_weight, Some(&mut qkv_bias), false);
    });
    let (gamma, beta) = through_linear(
        &mut qkv_weight,
        attention.qkv_weight,
        attention.gamma,
        attention.beta,
        &qkv_bias,
    );
    qkv_bias.iter_mut().zip(dpadding).for_each(|(sum, padding)| *sum += padding);
    let (qkv_weight, proj_weight) = (qkv_weight.into_vec(), proj_weight.into_vec());
    Gradients { gamma, beta, qkv_weight, qkv_bias, table, proj_weight, proj_bias }
}
