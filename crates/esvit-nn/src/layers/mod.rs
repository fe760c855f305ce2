//! Linear layers, convolutions and normalization, as descriptions over [`Params`].

mod batch_norm;
mod conv;

use crate::backbone::TokenMaps;
use crate::forward_ctx::ForwardCtx;
use crate::ops::{self, Activation, LinearValues, NormValues};
use crate::params::{Init, ParamId, Params, Scope};
use crate::tensor::Tensor;

pub(crate) use batch_norm::BATCH_NORM_EPS;
pub use batch_norm::{Affine, BatchNorm};
pub use conv::Conv;

/// Standard deviation of the truncated normal that initializes weights.
pub(crate) const WEIGHT_STD: f64 = 0.02;

/// A linear layer, `weight [out, in]` and `bias [out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: ParamId,
    bias: ParamId,
    /// Outputs and inputs.
    size: [usize; 2],
}

impl Linear {
    /// A layer with a truncated-normal weight and zero bias.
    pub fn new(scope: &mut Scope<'_>, inputs: usize, outputs: usize) -> Self {
        Self::of_shape(scope, &[outputs, inputs])
    }

    /// The same as a convolution of 1 x 1, whose weight is `[out, in, 1, 1]` in files.
    pub fn pointwise(scope: &mut Scope<'_>, inputs: usize, outputs: usize) -> Self {
        Self::of_shape(scope, &[outputs, inputs, 1, 1])
    }

    fn of_shape(scope: &mut Scope<'_>, shape: &[usize]) -> Self {
        let weight = scope.param("weight", shape, Init::TruncatedNormal(WEIGHT_STD));
        let bias = scope.param("bias", &shape[..1], Init::Zeros);
        Self { weight, bias, size: [shape[0], shape[1]] }
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
        let compute = ctx.compute(params.packing(self.weight));
        ops::linear(x, weight, bias, activation, compute)
    }

    /// The same without an activation, stored in the precision where nothing learns.
    pub fn forward_in_precision(&self, params: &Params, x: Tensor, ctx: &ForwardCtx) -> Tensor {
        let LinearValues { weight, bias } = self.values(params);
        let compute = ctx.compute(params.packing(self.weight));
        ops::linear_in_precision(x, weight, bias, compute)
    }

    /// Id of its weight.
    pub fn weight(&self) -> ParamId {
        self.weight
    }

    /// Its parameters, for a fused operation that contains the layer.
    pub fn values(&self, params: &Params) -> LinearValues {
        let weight = params.vector(self.weight).reshape(self.size);
        LinearValues { weight, bias: params.vector(self.bias) }
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

    /// The same of the tokens of maps.
    pub fn forward_maps(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        TokenMaps { rows: self.forward(params, maps.rows, ctx), ..maps }
    }

    /// The same of the tokens of maps, stored in the precision where nothing learns.
    pub fn forward_maps_in_precision(
        &self,
        params: &Params,
        maps: TokenMaps,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        let NormValues { gamma, beta, eps } = self.values(params);
        let rows = ops::layer_norm_in_precision(maps.rows, gamma, beta, eps, ctx.precision);
        TokenMaps { rows, ..maps }
    }

    /// Its parameters, for a fused operation that contains the layer.
    pub fn values(&self, params: &Params) -> NormValues {
        let (gamma, beta) = (params.vector(self.weight), params.vector(self.bias));
        NormValues { gamma, beta, eps: self.eps }
    }
}
