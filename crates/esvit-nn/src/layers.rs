//! Linear layers and normalization layers, as descriptions over [`Params`].

use crate::tensor::Tensor;

use crate::forward_ctx::ForwardCtx;
use crate::ops::{self, Activation, LinearValues, NormValues};
use crate::params::{Init, ParamId, Params, Role, Scope};

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
        ops::linear(x, weight, bias, activation, ctx.precision)
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

    /// Its parameters, for a fused operation that contains the layer.
    pub fn values(&self, params: &Params) -> NormValues {
        let (gamma, beta) = (params.vector(self.weight), params.vector(self.bias));
        NormValues { gamma, beta, eps: self.eps }
    }
}

/// Batch normalization over rows, with PyTorch's defaults.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: ParamId,
    bias: ParamId,
    running_mean: ParamId,
    running_var: ParamId,
}

impl BatchNorm {
    const EPS: f64 = 1e-5;
    /// Weight of the new batch in the running statistics.
    const MOMENTUM: f64 = 0.1;

    /// A norm of rows of `channels` values.
    pub fn new(scope: &mut Scope<'_>, channels: usize) -> Self {
        Self {
            weight: scope.param("weight", &[channels], Init::Ones),
            bias: scope.param("bias", &[channels], Init::Zeros),
            running_mean: scope.register("running_mean", &[channels], Init::Zeros, Role::Buffer),
            running_var: scope.register("running_var", &[channels], Init::Ones, Role::Buffer),
        }
    }

    /// `[rows, C]` to `[rows, C]`: in training by the statistics of these rows, which the running
    /// ones follow; else by the running ones.
    pub fn forward(&self, params: &Params, x: Tensor, ctx: &ForwardCtx) -> Tensor {
        self.forward_runs(params, vec![x], ctx).remove(0)
    }

    /// Several runs of rows `[rows, C]` as if one after another, such as crops of several sizes: in
    /// training each has its own statistics, and the running ones follow them in order.
    pub fn forward_runs(
        &self,
        params: &Params,
        runs: Vec<Tensor>,
        ctx: &ForwardCtx,
    ) -> Vec<Tensor> {
        if !ctx.is_training() {
            let [slope, shift] = self.affine(params);
            return runs.into_iter().map(|x| x * &slope + &shift).collect();
        }
        let [weight, bias] = [self.weight, self.bias].map(|id| params.vector(id));
        let statistics = [self.running_mean, self.running_var];
        let mut running = statistics.map(|id| params.vector(id).detach());
        let normalize = |x: Tensor| {
            let rows = x.shape()[0] * ctx.collective.world();
            let (weight, bias) = (weight.clone(), bias.clone());
            let (y, [mean, variance]) =
                ops::batch_norm(x, weight, bias, Self::EPS, &ctx.collective);
            // PyTorch's running variance is unbiased.
            let unbiased = variance * (rows as f64 / (rows.max(2) - 1) as f64);
            for (old, batch) in running.iter_mut().zip([mean, unbiased]) {
                *old = &*old * (1.0 - Self::MOMENTUM) + batch * Self::MOMENTUM;
            }
            y
        };
        let normalized = runs.into_iter().map(normalize).collect();
        for (id, value) in statistics.into_iter().zip(running) {
            ctx.record(id, value);
        }
        normalized
    }

    /// Slope and shift of every channel by the running statistics, `[C]`.
    fn affine(&self, params: &Params) -> [Tensor; 2] {
        let [weight, bias, mean, variance] =
            [self.weight, self.bias, self.running_mean, self.running_var]
                .map(|id| params.vector(id));
        let slope = weight / (variance + Self::EPS).sqrt();
        let shift = bias - mean * &slope;
        [slope, shift]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::params::Registry;

    fn rows(first: i32, count: usize) -> Tensor {
        let values = (0..2 * count as i32).map(|i| ((first + i * i) % 7) as f32 * 0.5).collect();
        Tensor::new(values, [count, 2], &Device::Cpu)
    }

    /// Two runs in one pass are those of two passes, each with the statistics that the one before
    /// left; evaluation takes what the last one left.
    #[test]
    fn runs_follow_each_other() {
        let mut registry = Registry::default();
        let norm = BatchNorm::new(&mut registry.root(), 2);
        let params = Params::init(&registry.finish(), 0, &Device::Cpu);
        let runs = || vec![rows(1, 5), rows(4, 3)];

        let ctx = ForwardCtx::teacher();
        let together = norm.forward_runs(&params, runs(), &ctx);
        let mut found = params.clone();
        found.set_buffers(ctx.into_statistics());

        let mut expected = params.clone();
        for (run, together) in runs().into_iter().zip(together) {
            let ctx = ForwardCtx::teacher();
            let alone = norm.forward(&expected, run, &ctx);
            assert_eq!(together.to_vec::<f32>(), alone.to_vec::<f32>());
            expected.set_buffers(ctx.into_statistics());
        }
        assert_eq!(found.flat().to_vec::<f32>(), expected.flat().to_vec::<f32>());
        assert_ne!(found.flat().to_vec::<f32>(), params.flat().to_vec::<f32>());

        let ctx = ForwardCtx::eval();
        let evaluated = norm.forward_runs(&found, vec![rows(1, 5)], &ctx).remove(0).to_vec::<f32>();
        assert!(ctx.into_statistics().is_empty());
        let [mean, variance] =
            [norm.running_mean, norm.running_var].map(|id| found.vector(id).to_vec::<f32>());
        for (i, (value, x)) in evaluated.iter().zip(rows(1, 5).to_vec::<f32>()).enumerate() {
            let expected = (x - mean[i % 2]) / (variance[i % 2] + 1e-5).sqrt();
            assert!((value - expected).abs() < 1e-5, "{value} instead of {expected}");
        }
    }
}
