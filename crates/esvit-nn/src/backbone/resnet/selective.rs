//! Selective kernels (Li et al., 2019) as in SimCLR v2: two convolutions, weighed against each other
//! in every channel by what the whole image holds.

use super::block::{Branch, ConvNorm};
use super::he_normal;
use crate::backbone::TokenMaps;
use crate::forward_ctx::ForwardCtx;
use crate::layers::Conv;
use crate::ops::{self, Segment};
use crate::params::{Params, Scope};

/// Width of the layer between means and weights, as a share of the block's, and its least.
const RATIO: usize = 16;
const LEAST: usize = 32;

/// `a x + b y` with `x`, `y` of two convolutions of 3 pixels, and in every channel of an image
/// `(a, b) = softmax(f(mean of x + y))`.
#[derive(Debug)]
pub(super) struct SelectiveKernels {
    width: usize,
    /// Both convolutions, one after the other.
    both: ConvNorm,
    reduce: ConvNorm,
    select: Conv,
}

impl SelectiveKernels {
    pub(super) fn new(scope: &mut Scope<'_>, width: usize, stride: usize, norm_eps: f64) -> Self {
        let hidden = (width / RATIO).max(LEAST);
        let both = ConvNorm::new(scope, ["conv", "bn"], [width, 2 * width, 3], stride, norm_eps);
        let mut attention = scope.at("attn");
        let names = ["fc_reduce", "bn"];
        let reduce = ConvNorm::new(&mut attention, names, [width, hidden, 1], 1, norm_eps);
        let sizes = [hidden, 2 * width, 1];
        let init = he_normal(2 * width, 1);
        let select = Conv::new(&mut attention.at("fc_select"), sizes, 1, init);
        Self { width, both, reduce, select }
    }

    pub(super) fn forward(&self, params: &Params, branch: Branch, ctx: &ForwardCtx) -> TokenMaps {
        let TokenMaps { rows, segments } =
            self.both.forward(params, branch, ctx).finished(ctx).in_f32();
        let half = |of: usize| rows.clone().narrow(1, of * self.width, self.width);
        let (x, y) = (half(0), half(1));

        let images = ops::tokens_per_image(&segments);
        let means = ops::global_average_pool(x.clone() + y.clone(), &images);
        let of_images = segments.iter().map(|segment| Segment::new(segment.images, [1, 1]));
        let means = TokenMaps { rows: means, segments: of_images.collect() };
        let hidden = self.reduce.forward(params, Branch::Maps(means), ctx).finished(ctx).in_f32();
        let logits = self.select.forward(params, hidden, ctx).rows;
        let logit = |of: usize| logits.clone().narrow(1, of * self.width, self.width);
        // The softmax of two is a sigmoid of their difference.
        let share = (logit(0) - logit(1)).sigmoid();

        // That of every row's image.
        let images = images.into_iter().enumerate();
        let images = images.flat_map(|(image, rows)| std::iter::repeat_n(image as i32, rows));
        let share = share.index_select(0, images.collect::<Vec<_>>());
        TokenMaps { rows: (x - y.clone()) * share + y, segments }
    }
}
