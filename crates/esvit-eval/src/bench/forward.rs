//! Benchmark of the forward pass.

use std::convert::Infallible;

use burn::tensor::Device;
use esvit_kernels::pool;
use esvit_nn::params::{Params, Registry};
use esvit_nn::weights::to_vec;
use esvit_nn::{ForwardCtx, Swin};

use super::train_step::images;
use super::{Bench, BenchError, Report, architecture, repeat};

/// Times the forward pass of a randomly initialized backbone (view and region features).
///
/// # Errors
/// [`BenchError::Architecture`] for an unknown name.
pub fn forward(bench: &Bench) -> Result<Report, BenchError> {
    let (config, _) = architecture(&bench.model)?;
    let mut registry = Registry::default();
    let swin = Swin::new(&mut registry.root(), &config, 0.0);
    let params = Params::init(&registry.finish(), 0, &Device::flex()).for_inference();
    let images = images(bench.batch, bench.global_size, [0, 0]);
    let seconds = repeat::<Infallible>(bench.iterations, |_| {
        let view = pool::run(|| {
            let pass = ForwardCtx::eval().with_precision(bench.precision);
            to_vec(&swin.forward(&params, images.clone(), &pass).view)
        });
        std::hint::black_box(view);
        Ok(())
    });
    let macs = bench.batch as f64 * config.real_macs(bench.global_size, 0.0);
    let seconds = seconds.unwrap_or_else(|never| match never {});
    Ok(Report::new(bench, seconds, macs as u64))
}
