//! Architectures for benchmarks.

use esvit_nn::{BackboneConfig, zoo};

use super::BenchError;

/// Name of the single-scale baseline.
pub const MONOLITHIC: &str = "monolithic_small";

/// Configuration and stochastic depth rate of an architecture: those of the zoo, and
/// [`MONOLITHIC`], a single stage like DeiT-S/16 (12 blocks of width 384, 16-pixel patches, global
/// attention).
///
/// # Errors
/// [`BenchError::Architecture`] for an unknown name.
pub fn architecture(name: &str) -> Result<(BackboneConfig, f64), BenchError> {
    if name == MONOLITHIC {
        return Ok((zoo::single_stage(), 0.1));
    }
    let arch = zoo::find(name).ok_or_else(|| BenchError::Architecture(name.into()))?;
    Ok((arch.config(), arch.drop_path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::ForwardCtx;

    /// DeiT-S/16: 4.24 G in linear layers and 0.36 G in attention.
    #[test]
    fn the_single_scale_network_costs_what_its_model_does() {
        let cost = zoo::single_stage().cost([224; 2], 0.0, &ForwardCtx::eval());
        let macs = cost.official_macs() as f64;
        assert!((macs / 4.6e9 - 1.0).abs() < 0.01, "{macs}");
    }
}
