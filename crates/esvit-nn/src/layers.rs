//! Linear layers, convolutions and normalization, as descriptions over [`Params`].

use crate::tensor::Tensor;

use crate::backbone::TokenMaps;
use crate::forward_ctx::ForwardCtx;
use crate::ops::{self, Activation, LinearValues, NormValues};
use crate::params::{Init, ParamId, Params, Role, Scope};

/// Standard deviation of the truncated normal that initializes weights.
pub(crate) const WEIGHT_STD: f64 = 0.02;

/// PyTorch's `eps` of batch normalization.
pub(crate) const BATCH_NORM_EPS: f64 = 1e-5;

/// A linear layer, `weight [out, in]` and `bias [out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: ParamId,
    bias: ParamId,
}

impl Linear {
    /// A layer with a truncated-normal weight and zero bias.
    pub fn new(scope: &mut Scope<'_>, inputs: usize, outputs: usize) -> Self {
        let init = Init::TruncatedNormal(WEIGHT_STD);
        Self {
            weight: scope.param("weight", &[outputs, inputs], init),
            bias: scope.param("bias", &[outputs], Init::Zeros),
        }
    }

    /// `[rows, in]` to `[rows, out]`; `activation` is applied to the input.
    pub fn forward(
        &self,
        params: &Params,
        x: Tensor,
        activation: Activation,
        ctx: &ForwardCtx,
    ) -> Tensor {
        let LinearValues { weight, bias } = self.values(params);
        ops::linear(x, weight, bias, activation, ctx.precision)
    }

    /// Id of its weight.
    pub fn weight(&self) -> ParamId {
        self.weight
    }

    /// Its parameters, for a fused operation that contains the layer.
    pub fn values(&self, params: &Params) -> LinearValues {
        LinearValues { weight: params.tensor(self.weight), bias: params.vector(self.bias) }
    }
}

/// Layer normalization over the last axis.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: ParamId,
    bias: ParamId,
    eps: f64,
}

impl LayerNorm {
    /// A norm of rows of `channels` values.
    pub fn new(scope: &mut Scope<'_>, channels: usize, eps: f64) -> Self {
        Self {
            weight: scope.param("weight", &[channels], Init::Ones),
            bias: scope.param("bias", &[channels], Init::Zeros),
            eps,
        }
    }

    /// `[rows, C]` to `[rows, C]`.
    pub fn forward(&self, params: &Params, x: Tensor, ctx: &ForwardCtx) -> Tensor {
        let NormValues { gamma, beta, eps } = self.values(params);
        ops::layer_norm(x, gamma, beta, eps, ctx.precision)
    }

    /// Its parameters, for a fused operation that contains the layer.
    pub fn values(&self, params: &Params) -> NormValues {
        let (gamma, beta) = (params.vector(self.weight), params.vector(self.bias));
        NormValues { gamma, beta, eps: self.eps }
    }
}

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
        let weight = scope.param("weight", &[outputs, inputs, side, side], init);
        Self { weight, bias: None, stride, padding: side / 2 }
    }

    /// Filters side by side, with a bias: a linear layer of every patch of `side` x `side` tokens.
    /// It starts with PyTorch's default for convolutions.
    pub fn of_patches(scope: &mut Scope<'_>, [inputs, outputs]: [usize; 2], side: usize) -> Self {
        let uniform = Init::Uniform(((inputs * side * side) as f64).powf(-0.5));
        let weight = scope.param("weight", &[outputs, inputs, side, side], uniform);
        let bias = Some(scope.param("bias", &[outputs], uniform));
        Self { weight, bias, stride: side, padding: 0 }
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
}

/// Batch normalization over rows, with running statistics for evaluation.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: ParamId,
    bias: ParamId,
    running_mean: ParamId,
    running_var: ParamId,
    eps: f64,
}

impl BatchNorm {
    /// Weight of the new batch in the running statistics, as in PyTorch.
    const MOMENTUM: f64 = 0.1;

    /// A norm of rows of `channels` values.
    pub fn new(scope: &mut Scope<'_>, channels: usize, eps: f64) -> Self {
        Self {
            weight: scope.param("weight", &[channels], Init::Ones),
            bias: scope.param("bias", &[channels], Init::Zeros),
            running_mean: scope.register("running_mean", &[channels], Init::Zeros, Role::Buffer),
            running_var: scope.register("running_var", &[channels], Init::Ones, Role::Buffer),
            eps,
        }
    }

    /// `[rows, C]` to `[rows, C]`. In training all rows are one batch.
    pub fn forward(&self, params: &Params, x: Tensor, ctx: &ForwardCtx) -> Tensor {
        let rows = [x.shape()[0]];
        self.forward_runs(params, x, &rows, ctx)
    }

    /// The same of maps. In training the maps of every size are a batch of their own, as if the
    /// network ran once for each size.
    pub fn forward_maps(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let runs: Vec<usize> = maps.segments.iter().map(|s| s.images * s.tokens()).collect();
        TokenMaps { rows: self.forward_runs(params, maps.rows, &runs, ctx), ..maps }
    }

    fn forward_runs(
        &self,
        params: &Params,
        x: Tensor,
        runs: &[usize],
        ctx: &ForwardCtx,
    ) -> Tensor {
        let affine = [self.weight, self.bias].map(|id| params.vector(id));
        if !ctx.is_training() {
            let running = [self.running_mean, self.running_var].map(|id| params.vector(id));
            return ops::fixed_batch_norm(x, affine, running, self.eps);
        }
        let [weight, bias] = affine;
        let (y, statistics) =
            ops::batch_norm_of_runs(x, weight, bias, self.eps, runs, &ctx.collective);
        for (&rows, [mean, variance]) in runs.iter().zip(statistics) {
            let rows = rows * ctx.collective.world();
            // PyTorch's running variance is unbiased.
            let unbiased = variance * (rows as f64 / (rows.max(2) - 1) as f64);
            self.blend(params, ctx, self.running_mean, mean);
            self.blend(params, ctx, self.running_var, unbiased);
        }
        y
    }

    /// Moves a running statistic, from where an earlier batch of the pass has moved it.
    fn blend(&self, params: &Params, ctx: &ForwardCtx, id: ParamId, batch: Tensor) {
        let old = ctx.recorded(id).unwrap_or_else(|| params.vector(id).detach());
        ctx.record(id, old * (1.0 - Self::MOMENTUM) + batch * Self::MOMENTUM);
    }
}
