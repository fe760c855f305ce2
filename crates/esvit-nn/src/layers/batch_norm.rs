//! Batch normalization.

use crate::backbone::TokenMaps;
use crate::forward_ctx::ForwardCtx;
use crate::ops::{BatchNormValues, Precision};
use crate::params::{Init, ParamId, Params, Role, Scope};
use crate::tensor::Tensor;

/// PyTorch's `eps` of batch normalization.
pub(crate) const BATCH_NORM_EPS: f64 = 1e-5;

/// What batch normalization learns besides its statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affine {
    /// A gain and a shift, `weight` and `bias`.
    Full,
    /// A gain alone.
    Gain,
    /// Nothing: rows have mean 0 and variance 1.
    Off,
}

/// Batch normalization over rows, with running statistics for evaluation.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: Option<ParamId>,
    bias: Option<ParamId>,
    running_mean: ParamId,
    running_var: ParamId,
    channels: usize,
    eps: f64,
}

impl BatchNorm {
    /// Weight of the new batch in the running statistics, as in PyTorch.
    const MOMENTUM: f64 = 0.1;

    /// A norm of rows of `channels` values, with gain and shift.
    pub fn new(scope: &mut Scope<'_>, channels: usize, eps: f64) -> Self {
        Self::with_affine(scope, channels, eps, Affine::Full)
    }

    /// The same with less to learn.
    pub fn with_affine(scope: &mut Scope<'_>, channels: usize, eps: f64, affine: Affine) -> Self {
        let weight =
            (affine != Affine::Off).then(|| scope.param("weight", &[channels], Init::Ones));
        let bias = (affine == Affine::Full).then(|| scope.param("bias", &[channels], Init::Zeros));
        Self {
            weight,
            bias,
            running_mean: scope.register("running_mean", &[channels], Init::Zeros, Role::Buffer),
            running_var: scope.register("running_var", &[channels], Init::Ones, Role::Buffer),
            channels,
            eps,
        }
    }

    /// `[rows, C]` to `[rows, C]`: in training by the statistics of these rows, which the running
    /// ones follow; else by the running ones.
    pub fn forward(&self, params: &Params, x: Tensor, ctx: &ForwardCtx) -> Tensor {
        let rows = [x.shape()[0]];
        self.forward_runs(params, x, &rows, ctx)
    }

    /// The same of maps. In training the maps of every size are a batch of their own, as if the
    /// network ran once for each size, and the running statistics follow them in order.
    pub fn forward_maps(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let norm = self.values(params, &maps, ctx);
        TokenMaps { rows: norm.forward(maps.rows, ctx.precision), ..maps }
    }

    /// The same of several runs of rows one after the other, whose numbers of rows `runs` lists. In
    /// training each is a batch of its own, as if the network ran once for each.
    pub fn forward_runs(
        &self,
        params: &Params,
        x: Tensor,
        runs: &[usize],
        ctx: &ForwardCtx,
    ) -> Tensor {
        let norm = self.values_of_runs(params, &x, runs, ctx);
        norm.forward(x, Precision::F32)
    }

    /// What the norm does to maps: in training by their statistics, those of every size apart, which
    /// the running ones follow; else by the running ones.
    pub fn values(&self, params: &Params, maps: &TokenMaps, ctx: &ForwardCtx) -> BatchNormValues {
        self.values_of_runs(params, &maps.rows, &runs(maps), ctx)
    }

    /// What the norm does by the running statistics.
    pub fn running_values(&self, params: &Params) -> BatchNormValues {
        let running = [self.running_mean, self.running_var].map(|id| params.vector(id));
        BatchNormValues::fixed(self.affine(params), running, self.eps)
    }

    fn affine(&self, params: &Params) -> [Tensor; 2] {
        let constant = |value: f32| Tensor::full(value, [self.channels], &params.device());
        [
            self.weight.map_or_else(|| constant(1.0), |id| params.vector(id)),
            self.bias.map_or_else(|| constant(0.0), |id| params.vector(id)),
        ]
    }

    fn values_of_runs(
        &self,
        params: &Params,
        x: &Tensor,
        runs: &[usize],
        ctx: &ForwardCtx,
    ) -> BatchNormValues {
        if !ctx.is_training() {
            return self.running_values(params);
        }
        let affine = self.affine(params);
        let (norm, statistics) =
            BatchNormValues::of_runs(x, affine, self.eps, runs, &ctx.collective);
        for (&rows, [mean, variance]) in runs.iter().zip(statistics) {
            let rows = rows * ctx.collective.world();
            // PyTorch's running variance is unbiased.
            let unbiased = variance * (rows as f64 / (rows.max(2) - 1) as f64);
            self.blend(params, ctx, self.running_mean, mean);
            self.blend(params, ctx, self.running_var, unbiased);
        }
        norm
    }

    /// Moves a running statistic, from where an earlier batch of the pass has moved it.
    fn blend(&self, params: &Params, ctx: &ForwardCtx, id: ParamId, batch: Tensor) {
        let old = ctx.recorded(id).unwrap_or_else(|| params.vector(id).detach());
        ctx.record(id, old * (1.0 - Self::MOMENTUM) + batch * Self::MOMENTUM);
    }
}

/// The rows of every size of maps.
fn runs(maps: &TokenMaps) -> Vec<usize> {
    maps.segments.iter().map(|segment| segment.images * segment.tokens()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::ops::Segment;
    use crate::params::{ParamSpec, Registry};

    fn rows(first: i32, count: usize) -> Tensor {
        let values = (0..2 * count as i32).map(|i| ((first + i * i) % 7) as f32 * 0.5).collect();
        Tensor::new(values, [count, 2], &Device::Cpu)
    }

    /// Maps of two sizes in one pass are those of two passes, each with the statistics that the one
    /// before left; evaluation takes what the last one left.
    #[test]
    fn sizes_follow_each_other() {
        let mut registry = Registry::default();
        let norm = BatchNorm::new(&mut registry.root(), 2, 1e-3);
        let params = Params::init(&registry.finish(), 0, &Device::Cpu);
        let runs = || [rows(1, 6), rows(4, 3)];

        let ctx = ForwardCtx::teacher();
        let segments = vec![Segment::new(2, [1, 3]), Segment::new(1, [3, 1])];
        let both = TokenMaps { rows: Tensor::cat(runs().to_vec(), 0), segments };
        let together = norm.forward_maps(&params, both, &ctx).rows;
        let mut found = params.clone();
        found.set_buffers(ctx.into_statistics());

        let mut expected = params.clone();
        let alone = runs().map(|run| {
            let ctx = ForwardCtx::teacher();
            let alone = norm.forward(&expected, run, &ctx).to_vec::<f32>();
            expected.set_buffers(ctx.into_statistics());
            alone
        });
        assert_eq!(together.to_vec::<f32>(), alone.concat());
        assert_eq!(found.flat().to_vec::<f32>(), expected.flat().to_vec::<f32>());
        assert_ne!(found.flat().to_vec::<f32>(), params.flat().to_vec::<f32>());

        let ctx = ForwardCtx::eval();
        let evaluated = norm.forward(&found, rows(1, 5), &ctx).to_vec::<f32>();
        assert!(ctx.into_statistics().is_empty());
        let [mean, variance] =
            [norm.running_mean, norm.running_var].map(|id| found.vector(id).to_vec::<f32>());
        for (i, (value, x)) in evaluated.iter().zip(rows(1, 5).to_vec::<f32>()).enumerate() {
            let expected = (x - mean[i % 2]) / (variance[i % 2] + 1e-3).sqrt();
            assert!((value - expected).abs() < 1e-5, "{value} instead of {expected}");
        }
    }

    /// Running statistics move by a tenth to the mean and the unbiased variance of a batch.
    #[test]
    fn running_statistics_by_hand() {
        let mut registry = Registry::default();
        let norm = BatchNorm::new(&mut registry.root(), 2, 1e-5);
        let mut params = Params::init(&registry.finish(), 0, &Device::Cpu);
        let x: Vec<f32> = vec![1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 4.0];
        let ctx = ForwardCtx::teacher();
        norm.forward(&params, Tensor::new(x, [4, 2], &Device::Cpu), &ctx);
        params.set_buffers(ctx.into_statistics());
        let [mean, variance] =
            [norm.running_mean, norm.running_var].map(|id| params.vector(id).to_vec::<f32>());
        let near = |found: &[f32], expected: [f32; 2]| {
            let pairs = found.iter().zip(expected);
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
        };
        near(&mean, [0.25, 0.1]);
        near(&variance, [0.9 + 0.1 * 5.0 / 3.0, 0.9 + 0.1 * 4.0]);
    }

    /// A gain alone has no shift; without both, rows have mean 0 and variance 1.
    #[test]
    fn norms_that_learn_less() {
        for (affine, names) in [
            (Affine::Full, vec!["weight", "bias", "running_mean", "running_var"]),
            (Affine::Gain, vec!["weight", "running_mean", "running_var"]),
            (Affine::Off, vec!["running_mean", "running_var"]),
        ] {
            let mut registry = Registry::default();
            let norm = BatchNorm::with_affine(&mut registry.root(), 2, 1e-5, affine);
            let list = registry.finish();
            let found: Vec<&str> = list.iter().map(|spec| spec.name.as_str()).collect();
            assert_eq!(found, names);
            // A gain of 3 and a shift of 5, where there are some.
            let params =
                Params::from_fn(&list, &Device::Cpu, |spec: &ParamSpec| match spec.name.as_str() {
                    "weight" => vec![3.0; 2],
                    "bias" => vec![5.0; 2],
                    _ => spec.initial_values(0),
                });
            let y = norm.forward(&params, rows(1, 6), &ForwardCtx::teacher()).to_vec::<f32>();
            let column: Vec<f32> = y.iter().copied().step_by(2).collect();
            let mean = column.iter().sum::<f32>() / 6.0;
            let deviation =
                (column.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 6.0).sqrt();
            let (gain, shift) = match affine {
                Affine::Full => (3.0, 5.0),
                Affine::Gain => (3.0, 0.0),
                Affine::Off => (1.0, 0.0),
            };
            assert!((mean - shift).abs() < 1e-4, "{affine:?}: {mean}");
            assert!((deviation - gain).abs() < 1e-3, "{affine:?}: {deviation}");
        }
    }
}
