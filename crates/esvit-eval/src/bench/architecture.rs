//! Architectures for benchmarks.

use esvit_nn::backbone::swin::NORM_EPS;
use esvit_nn::{SwinConfig, zoo};

use super::BenchError;

/// Name of the single-scale baseline.
pub const MONOLITHIC: &str = "monolithic_small";

/// Configuration and stochastic depth rate of an architecture: those of the zoo, and
/// [`MONOLITHIC`], a single stage like DeiT-S/16 (12 blocks of width 384, 16-pixel patches, global
/// attention).
///
/// # Errors
/// [`BenchError::Architecture`] for an unknown name.
pub fn architecture(name: &str) -> Result<(SwinConfig, f64), BenchError> {
    if name == MONOLITHIC {
        return Ok((monolithic(), 0.1));
    }
    let arch = zoo::find(name).ok_or_else(|| BenchError::Architecture(name.into()))?;
    Ok((arch.config(), arch.drop_path))
}

fn monolithic() -> SwinConfig {
    SwinConfig {
        img_size: 224,
        patch_size: 16,
        embed_dim: 384,
        depths: vec![12],
        num_heads: vec![6],
        // The whole map of an image of 224 pixels.
        window_size: 14,
        mlp_ratio: 4.0,
        norm_eps: NORM_EPS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DeiT-S/16: 4.24 G in linear layers and 0.36 G in attention.
    #[test]
    fn the_single_scale_network_costs_what_its_model_does() {
        let macs = monolithic().macs(224) as f64;
        assert!((macs / 4.6e9 - 1.0).abs() < 0.01, "{macs}");
    }
}
