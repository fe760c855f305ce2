//! Benchmark of the forward pass.

use std::sync::Arc;

use esvit_kernels::pool;
use esvit_nn::ops::Precision;
use esvit_nn::{Backbone, ForwardCtx, Params, Tensor};

use super::train_step::images;
use super::{Bench, BenchError, Report, architecture, time};

/// Times the forward pass of a randomly initialized backbone (view and region features).
///
/// # Errors
/// [`BenchError::Architecture`] for an unknown name.
pub fn forward(bench: &Bench) -> Result<Report, BenchError> {
    let pass = Forward::new(bench)?;
    let seconds = time(bench.iterations, |_| pass.run(bench.precision));
    let (config, _) = architecture(&bench.model)?;
    let cost = config.cost([bench.global_size; 2], 0.0, &ForwardCtx::eval());
    let macs = bench.batch as f64 * cost.macs;
    Ok(Report::new(bench, seconds, macs as u64))
}

/// A forward pass that can be repeated.
pub(super) struct Forward {
    network: Arc<dyn Backbone>,
    params: Params,
    images: Tensor,
}

impl Forward {
    /// Makes network and images.
    pub(super) fn new(bench: &Bench) -> Result<Self, BenchError> {
        let (config, _) = architecture(&bench.model)?;
        config.check_image("size", [bench.global_size; 2])?;
        let (network, specs) = config.build(0.0);
        let params = Params::init(&specs, 0, &bench.device).for_inference();
        let images = images(bench, bench.batch, bench.global_size, [0, 0]);
        Ok(Self { network, params, images })
    }

    /// Computes the features.
    pub(super) fn run(&self, precision: Precision) {
        let view = pool::run(|| {
            let pass = ForwardCtx::eval().with_precision(precision);
            self.network.forward(&self.params, self.images.clone(), &pass).view.to_vec::<f32>()
        });
        std::hint::black_box(view);
    }
}
