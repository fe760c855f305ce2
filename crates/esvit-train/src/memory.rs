//! Estimates the memory of a step, and the micro-batch that fits into a given amount.

use esvit_nn::Network;
use esvit_nn::ops::{EXPONENTIALS_BYTES, Precision};
use esvit_nn::params::Role;

use crate::config::Config;
use crate::objective::TEACHER_CROPS;
use crate::optim::OptimizerKind;

/// Program, loader and allocator, in bytes.
const BASE: f64 = 200e6;

/// Safety factor for buffers between the phases of a step: measured steps stay below the
/// estimate.
const MARGIN: f64 = 1.2;

/// Estimated peak memory of a step in bytes, with micro-batches of `micro_batch` images.
pub fn estimate(config: &Config, micro_batch: usize) -> f64 {
    let swin = config.model.swin();
    let network = Network::new(&swin, 0.0, &config.head, config.objective.region);
    let count = |trained: bool| -> f64 {
        let specs = network.specs().iter();
        let specs = specs.filter(|spec| !trained || spec.role == Role::Trained);
        specs.map(|spec| spec.len() as f64).sum()
    };
    let moments = match config.optim.name {
        OptimizerKind::AdamW => 2.0,
        OptimizerKind::Sgd | OptimizerKind::Lars => 1.0,
    };
    let sizes: Vec<usize> = config.views.sizes().iter().map(|&size| size as usize).collect();
    let passes = config.crop_chunks().cut(&sizes, micro_batch);
    let several = passes.len() > 1 || micro_batch < config.global_batch();
    let sums = if several { 1.0 } else { 0.0 };
    let state = 4.0 * (2.0 * count(false) + (moments + 1.0 + sums) * count(true));

    let precision = config.train.precision();
    let size = match precision {
        Precision::F32 => 4.0,
        Precision::Bf16 => 2.0,
    };
    let head_width = 2.0 * config.head.hidden_dim as f64 + swin.output_width() as f64;
    let teacher_rows: f64 = TEACHER_CROPS as f64 * region_rows(config, sizes[0]);
    // Memory of the pass over some crops of all images.
    let pass = |crops: &[usize]| -> f64 {
        let [mut saved, mut largest, mut rows] = [0.0; 3];
        for &crop in crops {
            saved += swin.saved_bytes(crop, precision, config.train.activation_checkpointing);
            largest += swin.largest_stage(crop);
            rows += region_rows(config, crop);
        }
        // In the largest stage: gradients of the hidden layer and of the branch, the residual
        // stream and its gradient; besides, the layers of heads and exponentials of logits.
        let transient = largest * (6.0 * size + 8.0);
        let image = saved + transient + rows * head_width * (size + 4.0);
        let exponentials = (rows + teacher_rows) * config.head.out_dim as f64 * size;
        let most = exponentials.max(EXPONENTIALS_BYTES as f64);
        micro_batch as f64 * image + most.min(micro_batch as f64 * exponentials)
    };
    let activations = passes.into_iter().map(|crops| pass(&sizes[crops])).fold(0.0, f64::max);
    let pixels: f64 = sizes.iter().map(|&size| (3 * size * size) as f64 * 4.0).sum();
    let loader = pixels * config.global_batch() as f64 * (config.data.prefetch as f64 + 2.0);
    BASE + MARGIN * (state + activations) + loader
}

/// Rows that go through the heads for a crop of one image.
fn region_rows(config: &Config, size: usize) -> f64 {
    let tokens = config.model.swin().last_map(size).pow(2) as f64;
    if config.objective.region { 1.0 + tokens } else { 1.0 }
}

/// Batch settings that fit into an amount of memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Images per micro-batch.
    pub micro_batch: usize,
    /// Micro-batches per step.
    pub accumulate: usize,
    /// Whether activation checkpointing is on.
    pub activation_checkpointing: bool,
    /// Estimated peak memory, in bytes.
    pub bytes: f64,
}

/// No micro-batch fits.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error(
    "one image at a time takes about {:.1} GB, and {:.1} GB were given\n\
     hint: a smaller network (`model.arch`) or fewer prototypes (`head.out_dim`) take less",
    need / 1e9,
    given / 1e9
)]
pub struct DoesNotFit {
    /// Bytes for one image at a time.
    pub need: f64,
    /// Bytes available.
    pub given: f64,
}

/// The largest micro-batch that divides the global batch and fits into `bytes`. Activation
/// checkpointing is turned on only when nothing fits without.
///
/// # Errors
/// When not even one image at a time fits.
pub fn fit(config: &Config, bytes: f64) -> Result<Fit, DoesNotFit> {
    let global = config.global_batch();
    let mut config = config.clone();
    let mut need = f64::INFINITY;
    for activation_checkpointing in [config.train.activation_checkpointing, true] {
        config.train.activation_checkpointing = activation_checkpointing;
        for micro_batch in (1..=global).rev().filter(|&size| global.is_multiple_of(size)) {
            need = estimate(&config, micro_batch);
            if need <= bytes {
                let accumulate = global / micro_batch;
                return Ok(Fit { micro_batch, accumulate, activation_checkpointing, bytes: need });
            }
        }
    }
    Err(DoesNotFit { need, given: bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::recipe_layer;

    fn recipe() -> Config {
        Config::resolve(vec![recipe_layer("swin_tiny_w7").unwrap()]).unwrap()
    }

    #[test]
    fn more_memory_takes_more_images() {
        let config = recipe();
        let mut last = 0;
        for gigabytes in [8.0, 16.0, 64.0] {
            let fit = fit(&config, gigabytes * 1e9).unwrap();
            assert!(fit.bytes <= gigabytes * 1e9);
            assert_eq!(fit.micro_batch * fit.accumulate, config.global_batch());
            assert!(fit.micro_batch >= last);
            last = fit.micro_batch;
        }
        assert!(last > 16);
    }

    #[test]
    fn more_local_crops_take_little_more_memory() {
        let take = |local: u32| {
            let mut config = recipe();
            (config.train.batch_size, config.train.accumulate) = (16, 1);
            config.views.local_counts = vec![local];
            estimate(&config, 16)
        };
        assert!(take(28) < 1.2 * take(8), "{} {}", take(28), take(8));
    }

    #[test]
    fn too_little_is_said() {
        let error = fit(&recipe(), 1e9).unwrap_err();
        assert!(error.to_string().contains("1.0 GB were given"), "{error}");
    }
}
