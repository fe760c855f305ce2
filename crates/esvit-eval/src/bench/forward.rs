//! Benchmark of the forward pass.

use esvit_kernels::pool;
use esvit_nn::{ForwardCtx, Params};

use super::train_step::images;
use super::{Bench, BenchError, Report, architecture, time};

/// Times the forward pass of a randomly initialized backbone (view and region features).
///
/// # Errors
/// [`BenchError::Architecture`] for an unknown name.
pub fn forward(bench: &Bench) -> Result<Report, BenchError> {
    let (config, _) = architecture(&bench.model)?;
    config.check_image("size", [bench.global_size; 2])?;
    let (network, specs) = config.build(0.0);
    let params = Params::init(&specs, 0, &bench.device).for_inference();
    let images = images(bench, bench.batch, bench.global_size, [0, 0]);
    let seconds = time(bench.iterations, |_| {
        let view = pool::run(|| {
            let pass = ForwardCtx::eval().with_precision(bench.precision);
            network.forward(&params, images.clone(), &pass).view.to_vec::<f32>()
        });
        std::hint::black_box(view);
    });
    let cost = config.cost([bench.global_size; 2], 0.0, &ForwardCtx::eval());
    let macs = bench.batch as f64 * cost.macs;
    Ok(Report::new(bench, seconds, macs as u64))
}
