//! The two layers that every network is made of, as descriptions over [`Params`].

use burn::tensor::Tensor;

use crate::ops;
use crate::params::{Init, ParamId, Params, Scope};

/// Standard deviation of the truncated normal from which weights start.
pub(crate) const WEIGHT_STD: f64 = 0.02;

/// A linear layer, `weight [out, in]` and an optional `bias [out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: ParamId,
    /// `[out]`.
    pub bias: Option<ParamId>,
}

impl Linear {
    /// A layer with a bias: truncated-normal weight, zero bias.
    pub fn new(scope: &mut Scope<'_>, inputs: usize, outputs: usize) -> Self {
        let mut layer = Self::without_bias(scope, inputs, outputs);
        layer.bias = Some(scope.param("bias", &[outputs], Init::Zeros));
        layer
    }

    /// A layer without a bias.
    pub fn without_bias(scope: &mut Scope<'_>, inputs: usize, outputs: usize) -> Self {
        let init = Init::TruncatedNormal(WEIGHT_STD);
        Self { weight: scope.param("weight", &[outputs, inputs], init), bias: None }
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward<const D: usize>(&self, params: &Params, x: Tensor<D>) -> Tensor<D> {
        let bias = self.bias.map(|bias| params.vector(bias));
        ops::linear(x, params.tensor(self.weight), bias)
    }
}

/// Layer normalisation over the last axis.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: ParamId,
    bias: ParamId,
    eps: f64,
}

impl LayerNorm {
    /// Over `channels` values.
    pub fn new(scope: &mut Scope<'_>, channels: usize, eps: f64) -> Self {
        Self {
            weight: scope.param("weight", &[channels], Init::Ones),
            bias: scope.param("bias", &[channels], Init::Zeros),
            eps,
        }
    }

    /// `[.., C]` to `[.., C]`.
    pub fn forward<const D: usize>(&self, params: &Params, x: Tensor<D>) -> Tensor<D> {
        ops::layer_norm(x, params.vector(self.weight), params.vector(self.bias), self.eps)
    }
}
