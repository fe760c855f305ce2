//! The attention branch of a transformer block, `x + scale * proj(attention(qkv(norm(x))))`, in
//! windows.
//!
//! Between norm and residual, rows are in window order, so that a task takes a few windows through
//! the whole branch and only saved activations leave the caches. gamma and beta of the norm are
//! folded into weight and bias of `qkv`.

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len, recomputes};
use crate::gemm::{Lhs, Matrix, PackedRhs, layer_gradients};
use crate::layer_norm::{fold_beta_into_bias, folded_affine_backward};
use crate::profile;
use crate::reduce::sum_in_order;
use crate::rows::{BLOCK_SHARES, Block, Rows, SampleScales, block_rows, fitting_rows, linear};
use crate::window_attention::{WindowAttention, Windows};

/// The parameters: layer norm over `C`, `qkv [3 C, C]`, the relative position bias table
/// `[rows, heads]` (may be empty) and `proj [C, C]`.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the names are those of the layers")]
pub struct Attention<'a> {
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub eps: f32,
    pub qkv_weight: &'a [f32],
    pub qkv_bias: &'a [f32],
    pub bias_table: &'a [f32],
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
    pub bias_table: Vec<f32>,
    pub proj_weight: Vec<f32>,
    pub proj_bias: Vec<f32>,
}

/// The weights as packed GEMM operands of the forward pass.
#[derive(Debug)]
pub struct PackedWeights<T: Element> {
    /// LayerNorm folded in: weight * gamma, bias + weight * beta.
    qkv: PackedRhs<T>,
    proj: PackedRhs<T>,
}

/// Images of one size.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Number of images.
    pub images: usize,
    /// Their windows.
    pub windows: Windows<'a>,
}

/// Saved activations of the rows that were not dropped, in window order: `xhat [rows, C]`,
/// `rstd [rows]`, `qkv [rows, 3 C]` unless it is computed again, and the attention output
/// `context [rows, C]`.
#[derive(Debug, Clone)]
pub struct Saved<T: Element> {
    xhat: Buffer<T>,
    rstd: Vec<f32>,
    qkv: Option<Buffer<T>>,
    context: Buffer<T>,
}

/// Values that [`forward`] saves of a row of `width` values.
pub fn saved_values<T: Element>(width: usize) -> usize {
    if recomputes::<T>() { 2 * width } else { 5 * width }
}

impl Attention<'_> {
    /// Packs the weights for [`forward`]; valid as long as the parameters do not change.
    pub fn pack_weights<T: Element>(&self) -> PackedWeights<T> {
        let proj = PackedRhs::from_transposed(self.proj_weight, self.width(), None);
        PackedWeights { qkv: self.pack_qkv(), proj: proj.with_bias(self.proj_bias.to_vec()) }
    }

    /// The weight of `qkv` with the norm's gamma and beta.
    fn pack_qkv<T: Element>(&self) -> PackedRhs<T> {
        let bias = fold_beta_into_bias(self.qkv_weight, self.beta, Some(self.qkv_bias));
        PackedRhs::from_transposed(self.qkv_weight, self.width(), Some(self.gamma)).with_bias(bias)
    }

    fn width(&self) -> usize {
        self.gamma.len()
    }

    /// # Panics
    /// When lengths do not fit.
    fn check(&self, x: &[f32], segments: &[Segment<'_>]) {
        let width = self.width();
        assert!(x.len().is_multiple_of(width), "whole rows");
        assert_eq!((self.beta.len(), self.proj_bias.len()), (width, width), "vectors");
        assert_eq!(self.qkv_weight.len(), 3 * width * width, "qkv");
        assert_eq!(self.qkv_bias.len(), 3 * width, "qkv");
        assert_eq!(self.proj_weight.len(), width * width, "proj");
        let tokens: usize = segments.iter().map(|s| s.images * s.windows.tokens).sum();
        assert_eq!(x.len(), tokens * width, "rows of all segments");
        assert!(segments.iter().all(|s| s.windows.width == width), "width of the windows");
    }
}

impl<T: Element> Saved<T> {
    fn new(kept: usize, total: usize, width: usize) -> Self {
        Self {
            xhat: Buffer::kept_rows(kept, total, width),
            rstd: vec![0.0; kept],
            qkv: (!recomputes::<T>()).then(|| Buffer::kept_rows(kept, total, 3 * width)),
            context: Buffer::kept_rows(kept, total, width),
        }
    }

    fn all(&mut self) -> Activations<'_, T> {
        let Self { xhat, rstd, qkv, context } = self;
        Activations { xhat, rstd, qkv: qkv.as_deref_mut(), context }
    }
}

/// [`Saved`] activations of some rows.
struct Activations<'a, T> {
    xhat: &'a mut [T],
    rstd: &'a mut [f32],
    qkv: Option<&'a mut [T]>,
    context: &'a mut [T],
}

impl<T: Element> Activations<'_, T> {
    /// Splits off the first `count` rows, of `width` values.
    fn split_off(&mut self, count: usize, width: usize) -> Self {
        fn cut<'a, U>(values: &mut &'a mut [U], count: usize) -> &'a mut [U] {
            values.split_off_mut(..count).expect("as many rows")
        }
        let (row, row3) = (padded_row_len::<T>(width), padded_row_len::<T>(3 * width));
        Self {
            xhat: cut(&mut self.xhat, count * row),
            rstd: cut(&mut self.rstd, count),
            qkv: self.qkv.as_mut().map(|qkv| cut(qkv, count * row3)),
            context: cut(&mut self.context, count * row),
        }
    }
}

/// The images of a segment that stochastic depth leaves.
struct Images<'a, T: Element> {
    count: usize,
    window_attention: WindowAttention<'a, T>,
}

impl<T: Element> Images<'_, T> {
    fn windows(&self) -> usize {
        self.count * self.window_attention.windows()
    }

    fn rows(&self) -> usize {
        self.window_attention.rows(0..self.windows()).len()
    }
}

/// The rows of `x` in window order, and their images by segment.
fn prepare<'x, 'a, T: Element>(
    x: &'x mut [f32],
    attention: &Attention<'_>,
    segments: &[Segment<'a>],
    sample_scales: &SampleScales<'_>,
) -> (Rows<'x>, Vec<Images<'a, T>>) {
    attention.check(x, segments);
    let mut first = 0;
    let images = segments.iter().map(|segment| {
        let all = first..first + segment.images;
        first = all.end;
        let window_attention =
            WindowAttention::new(segment.windows, attention.qkv_bias, attention.bias_table);
        Images {
            count: all.filter(|&image| sample_scales.scale(image) != 0.0).count(),
            window_attention,
        }
    });
    let images: Vec<Images<'a, T>> = images.collect();
    let orders = segments.iter().zip(&images).flat_map(|(segment, images)| {
        std::iter::repeat_n(
            (segment.windows.tokens, Some(images.window_attention.order())),
            segment.images,
        )
    });
    (Rows::in_order(x, attention.width(), sample_scales, orders), images)
}

/// Windows of a segment that one task takes through the branch.
struct Part {
    segment: usize,
    windows: Range<usize>,
    /// A whole segment whose windows are too few or too large for one task each: tasks split rows
    /// and heads instead.
    shared: bool,
}

/// All windows, as many at a time as fit L2 with their rows.
fn parts<T: Element>(images: &[Images<'_, T>], width: usize) -> Vec<Part> {
    let mut parts = Vec::new();
    for (segment, images) in images.iter().enumerate() {
        let (windows, rows) = (images.windows(), images.rows());
        let fitting = fitting_rows::<T>(3 * width);
        let shared = windows < BLOCK_SHARES || rows > 2 * fitting * windows;
        let size = if shared {
            windows.max(1)
        } else {
            let count = rows.div_ceil(fitting).next_multiple_of(BLOCK_SHARES);
            ((windows + count / 2) / count).max(1)
        };
        parts.extend((0..windows).step_by(size).map(|start| {
            let windows = start..(start + size).min(windows);
            Part { segment, windows, shared }
        }));
    }
    parts
}

/// Adds the branch to `x [rows, C]` in place: the images of all `segments` one after the other,
/// each branch times its scale. `packed` are the weights of `attention`. With `save_for_backward`,
/// returns what [`backward`] needs.
///
/// A slot without a token (padding) has the key and value of `qkv_bias` and is attended to
/// unmasked.
///
/// # Panics
/// When lengths do not match.
pub fn forward<T: Element>(
    x: &mut [f32],
    attention: &Attention<'_>,
    packed: &PackedWeights<T>,
    segments: &[Segment<'_>],
    sample_scales: &SampleScales<'_>,
    save_for_backward: bool,
) -> Option<Saved<T>> {
    let width = attention.width();
    let columns = (packed.qkv.n(), packed.proj.n());
    assert_eq!(columns, (3 * width, width), "packed weights of other sizes");
    let (mut rows, images) = prepare::<T>(x, attention, segments, sample_scales);
    let mut saved = save_for_backward.then(|| Saved::new(rows.kept(), rows.total(), width));
    let window_attention =
        images.iter().map(|images| images.rows() * images.window_attention.slots());
    let macs = 4 * rows.kept() * width * width + 2 * window_attention.sum::<usize>() * width;

    let (mut left, mut activations) = (rows.all(), saved.as_mut().map(Saved::all));
    let tasks: Vec<_> = parts(&images, width)
        .into_iter()
        .map(|part| {
            let count = images[part.segment].window_attention.rows(part.windows.clone()).len();
            let activations = activations.as_mut().map(|all| all.split_off(count, width));
            (part, left.split_off(count), activations)
        })
        .collect();
    profile::time("attention forward", macs, || {
        tasks.into_par_iter().for_each(|(part, rows, activations)| {
            let window_attention = &images[part.segment].window_attention;
            let mut own;
            let activations = match activations {
                Some(activations) => activations,
                None => {
                    own = Saved::new(rows.len(), rows.len(), width);
                    own.all()
                }
            };
            forward_part(part, rows, window_attention, packed, attention.eps, activations);
        });
    });
    saved
}

/// The forward pass of a part.
fn forward_part<T: Element>(
    part: Part,
    mut rows: Block<'_, '_>,
    window_attention: &WindowAttention<'_, T>,
    packed: &PackedWeights<T>,
    eps: f32,
    Activations { xhat, rstd, qkv, context }: Activations<'_, T>,
) {
    let width = packed.proj.n();
    let (row, row3) = (padded_row_len::<T>(width), padded_row_len::<T>(3 * width));
    let mut own;
    let qkv = match qkv {
        Some(qkv) => qkv,
        None => {
            own = Buffer::<T>::rows(rows.len(), 3 * width);
            &mut own[..]
        }
    };
    let size = if part.shared { block_rows::<T>(rows.len(), 3 * width) } else { rows.len().max(1) };
    (rows.reborrow().cut(size).into_par_iter())
        .zip(xhat.par_chunks_mut(size * row).zip(rstd.par_chunks_mut(size)))
        .zip(qkv.par_chunks_mut(size * row3))
        .for_each(|((rows, (xhat, rstd)), qkv)| {
            rows.normalize(eps, xhat, rstd);
            linear(Lhs::from_rows(xhat, row), rows.len(), &packed.qkv, qkv, row3);
        });
    window_attention.forward(part.windows, part.shared, qkv, context);
    (rows.cut(size).into_par_iter()).zip(context.par_chunks(size * row)).for_each(
        |(mut rows, context)| rows.add_linear(Lhs::from_rows(context, row), &packed.proj),
    );
}

/// Turns the gradient of the output, `gradient [rows, C]`, in place into that of the input, and
/// returns those of the parameters. `saved` comes from [`forward`] with the same arguments.
///
/// # Panics
/// When lengths do not match.
pub fn backward<T: Element>(
    saved: Saved<T>,
    attention: &Attention<'_>,
    segments: &[Segment<'_>],
    sample_scales: &SampleScales<'_>,
    gradient: &mut [f32],
) -> Gradients {
    let width = attention.width();
    let (row, row3) = (padded_row_len::<T>(width), padded_row_len::<T>(3 * width));
    let (mut rows, images) = prepare::<T>(gradient, attention, segments, sample_scales);
    let Saved { xhat, rstd, qkv, context } = saved;
    let (kept, total) = (rows.kept(), rows.total());
    assert_eq!(rstd.len(), kept, "saved rows");
    let size = block_rows::<T>(kept, 3 * width);

    let weight = PackedRhs::<T>::from_rows(attention.proj_weight, width, None);
    let mut dbranch = Buffer::<T>::scratch_kept_rows(kept, total, width);
    let mut dcontext = Buffer::<T>::scratch_kept_rows(kept, total, width);
    let macs = kept * width * width;
    profile::time("attention backward, rows", macs, || {
        (rows.all().cut(size).into_par_iter())
            .zip(dbranch.par_chunks_mut(size * row))
            .zip(dcontext.par_chunks_mut(size * row))
            .for_each(|((rows, dbranch), dcontext)| {
                rows.scaled(dbranch);
                linear(Lhs::from_rows(dbranch, row), rows.len(), &weight, dcontext, row);
            });
    });
    let [dy, x] = [&dbranch, &context].map(|rows| Matrix::new(rows, width));
    let (proj_weight, proj_bias) = layer_gradients("attention backward, weights", dy, x);
    drop((dbranch, context));

    let qkv = qkv.unwrap_or_else(|| {
        let weight = attention.pack_qkv::<T>();
        let mut qkv = Buffer::<T>::scratch_kept_rows(kept, total, 3 * width);
        profile::time("attention backward, forward again", 3 * kept * width * width, || {
            (qkv.par_chunks_mut(size * row3)).zip(xhat.par_chunks(size * row)).for_each(
                |(qkv, xhat)| {
                    linear(Lhs::from_rows(xhat, row), xhat.len() / row, &weight, qkv, row3);
                },
            );
        });
        qkv
    });
    let mut dqkv = Buffer::<T>::scratch_kept_rows(kept, total, 3 * width);
    let mut start = 0;
    let windows = images.iter().map(|images| {
        let of = start..start + images.rows();
        start = of.end;
        // Q K^T again, and the GEMMs of dV, dP, dQ and dK.
        let macs = 5 * of.len() * images.window_attention.slots() * width;
        profile::time("attention backward, windows", macs, || {
            let of3 = of.start * row3..of.end * row3;
            let dcontext = &dcontext[of.start * row..of.end * row];
            images.window_attention.backward(&qkv[of3.clone()], dcontext, &mut dqkv[of3])
        })
    });
    let lens = [3 * width, attention.bias_table.len()];
    let [dpadding, bias_table] = sum_in_order(windows.collect::<Vec<_>>(), lens);
    drop((qkv, dcontext));

    let weight = PackedRhs::<T>::from_rows(attention.qkv_weight, width, Some(attention.gamma));
    let macs = 3 * kept * width * width;
    profile::time("attention backward, rows", macs, || {
        (rows.all().cut(size).into_par_iter())
            .zip(dqkv.par_chunks(size * row3))
            .zip(xhat.par_chunks(size * row).zip(rstd.par_chunks(size)))
            .for_each(|((mut rows, dqkv), (xhat, rstd))| {
                rows.add_input_gradients(Lhs::from_rows(dqkv, row3), &weight, xhat, rstd);
            });
    });
    let (dy, x) = (Matrix::new(&dqkv, 3 * width), Matrix::new(&xhat, width));
    let (mut qkv_weight, mut qkv_bias) = layer_gradients("attention backward, weights", dy, x);
    let (gamma, beta) = folded_affine_backward(
        &mut qkv_weight,
        attention.qkv_weight,
        attention.gamma,
        attention.beta,
        &qkv_bias,
    );
    qkv_bias.iter_mut().zip(dpadding).for_each(|(sum, padding)| *sum += padding);
    // A key bias adds the same to all logits of a query, so the softmax does not change with it. The sum
    // is zero but for rounding, which AdamW would turn into steps as large as the learning rate.
    qkv_bias[width..2 * width].fill(0.0);
    Gradients { gamma, beta, qkv_weight, qkv_bias, bias_table, proj_weight, proj_bias }
}

#[cfg(test)]
mod tests;
