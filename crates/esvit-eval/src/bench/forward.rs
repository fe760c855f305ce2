//! Benchmark of the forward pass.

use esvit_kernels::pool;
use esvit_model::build;
use esvit_nn::Device;
use esvit_nn::{ForwardCtx, Params};

use super::train_step::images;
use super::{Bench, BenchError, Report, architecture, time};

/// Times the forward pass of a randomly initialized backbone (view and region features).
///
/// # Errors
/// [`BenchError::Architecture`] for an unknown name.
pub fn forward(bench: &Bench) -> Result<Report, BenchError> {
    let (config, _) = architecture(&bench.model)?;
    let (swin, specs) = build(&config);
    let params = Params::init(&specs, 0, &Device::Cpu).for_inference();
    let images = images(bench.batch, bench.global_size, [0, 0]);
    let seconds = time(bench.iterations, |_| {
        let view = pool::run(|| {
            let pass = ForwardCtx::eval().with_precision(bench.precision);
            swin.forward(&params, images.clone(), &pass).view.to_vec::<f32>()
        });
        std::hint::black_box(view);
    });
    let macs = bench.batch as f64 * config.real_macs(bench.global_size, 0.0);
    Ok(Report::new(bench, seconds, macs as u64))
}
