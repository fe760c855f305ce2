//! Convolutions over token maps.

use crate::backbone::TokenMaps;
use crate::forward_ctx::ForwardCtx;
use crate::ops::{self, BatchNormValues, Filter, NormEnd};
use crate::params::{Init, ParamId, Params, Scope};

/// A convolution over token maps with square filters: `weight [out, in, k, k]` and, where it has
/// one, `bias [out]`.
#[derive(Debug, Clone)]
pub struct Conv {
    weight: ParamId,
    bias: Option<ParamId>,
    stride: usize,
    padding: usize,
}

impl Conv {
    /// A convolution of `inputs` to `outputs` channels with filters of `side` pixels, without bias.
    /// Maps are padded so that they stay as large, but for the stride.
    pub fn new(
        scope: &mut Scope<'_>,
        [inputs, outputs, side]: [usize; 3],
        stride: usize,
        init: Init,
    ) -> Self {
        let filter = Filter { channels: inputs, side, stride, padding: side / 2 };
        Self::of_filters(scope, filter, outputs, init, None)
    }

    /// Filters side by side, with a bias: a linear layer of every patch of `side` x `side` tokens.
    /// It starts with PyTorch's default for convolutions.
    pub fn of_patches(scope: &mut Scope<'_>, [inputs, outputs]: [usize; 2], side: usize) -> Self {
        let filter = Filter { channels: inputs, side, stride: side, padding: 0 };
        let uniform = Init::Uniform((filter.values() as f64).powf(-0.5));
        Self::of_filters(scope, filter, outputs, uniform, Some(uniform))
    }

    /// `outputs` filters that start as `weight` says, and a bias if `bias` says how that starts.
    pub fn of_filters(
        scope: &mut Scope<'_>,
        filter: Filter,
        outputs: usize,
        weight: Init,
        bias: Option<Init>,
    ) -> Self {
        let Filter { channels, side, stride, padding } = filter;
        Self {
            weight: scope.param("weight", &[outputs, channels, side, side], weight),
            bias: bias.map(|init| scope.param("bias", &[outputs], init)),
            stride,
            padding,
        }
    }

    /// The maps of the filters' results.
    ///
    /// # Panics
    /// When there are tokens before those of a map, or a map is smaller than a filter.
    pub fn forward(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let (rows, segments) = ops::convolution(
            maps.rows,
            &maps.segments,
            params.tensor(self.weight),
            self.bias.map(|id| params.vector(id)),
            [self.stride, self.padding],
            ctx.compute(params.packing(self.weight)),
        );
        TokenMaps { rows, segments }
    }

    /// The results for a norm, which are stored in the precision, as the maps may be: also where something learns.
    ///
    /// # Panics
    /// As [`Conv::forward`], and when the convolution has a bias.
    pub fn forward_to_norm(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        assert!(self.bias.is_none(), "a convolution without bias");
        let (rows, segments) = ops::convolution_before_norm(
            maps.rows,
            &maps.segments,
            params.tensor(self.weight),
            [self.stride, self.padding],
            ctx.compute(params.packing(self.weight)),
        );
        TokenMaps { rows, segments }
    }

    /// The convolution, `norm` after it by given statistics, and `end`: maps in the precision, as they may
    /// come in, where nothing learns.
    ///
    /// # Panics
    /// As [`Conv::forward`], and when the convolution has a bias.
    pub fn forward_with_norm(
        &self,
        params: &Params,
        maps: TokenMaps,
        norm: BatchNormValues,
        end: NormEnd,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        assert!(self.bias.is_none(), "a convolution without bias");
        let (rows, segments) = ops::convolution_batch_norm(
            maps.rows,
            &maps.segments,
            params.tensor(self.weight),
            [self.stride, self.padding],
            norm,
            end,
            ctx.compute(params.packing(self.weight)),
        );
        TokenMaps { rows, segments }
    }

    /// The convolution of maps that `norm` normalizes and that go through ReLU first.
    ///
    /// # Panics
    /// As [`Conv::forward`], and when the convolution has a bias.
    pub fn forward_normalized(
        &self,
        params: &Params,
        maps: TokenMaps,
        norm: BatchNormValues,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        assert!(self.bias.is_none(), "a convolution without bias");
        let (rows, segments) = ops::batch_norm_relu_convolution(
            maps.rows,
            norm,
            &maps.segments,
            params.tensor(self.weight),
            [self.stride, self.padding],
            ctx.compute(params.packing(self.weight)),
        );
        TokenMaps { rows, segments }
    }
}
