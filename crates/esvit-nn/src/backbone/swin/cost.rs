//! Cost of a Swin transformer: multiply-accumulates and saved activations.

use super::{CHANNELS, SwinConfig};
use crate::ops::Precision;

/// Values that a block saves per token and unit of width: two normalized inputs, query, key,
/// value, the attention output, and the MLP's hidden layer of four widths.
const SAVED_VALUES: f64 = 10.0;

impl SwinConfig {
    /// Multiply-accumulates of linear layers and attention for one square image of `size` pixels,
    /// padding tokens included, as the official code computes them.
    pub fn macs(&self, size: usize) -> u64 {
        let mut side = size / self.patch_size;
        let mut total = side * side * self.embed_dim * CHANNELS * self.patch_size.pow(2);
        for stage in 0..self.stages() {
            let width = self.width(stage);
            for block in 0..self.depths[stage] {
                let (window, _) = self.window_and_shift(stage, block);
                let padded = side.div_ceil(window).pow(2) * window.pow(2);
                total += padded * width * 4 * width + 2 * padded * window.pow(2) * width;
                total += 2 * side * side * width * self.hidden_width(stage);
            }
            if stage + 1 < self.stages() {
                side = side.div_ceil(2);
                total += side * side * 8 * width * width;
            }
        }
        total as u64
    }

    /// Multiply-accumulates that our kernels compute for one square image of `size` pixels: without
    /// padding and, on average, without branches dropped by stochastic depth (`drop_path` is the
    /// last block's rate).
    pub fn real_macs(&self, size: usize, drop_path: f64) -> f64 {
        let mut side = size / self.patch_size;
        let mut total = (side * side * self.embed_dim * CHANNELS * self.patch_size.pow(2)) as f64;
        let blocks: usize = self.depths.iter().sum();
        let mut index = 0;
        for stage in 0..self.stages() {
            let width = self.width(stage);
            for block in 0..self.depths[stage] {
                let (window, _) = self.window_and_shift(stage, block);
                let survival = 1.0 - drop_path * index as f64 / (blocks.max(2) - 1) as f64;
                let attention = 4 * width * width + 2 * window.pow(2) * width;
                let tokens = side * side;
                total +=
                    survival * (tokens * (attention + 2 * width * self.hidden_width(stage))) as f64;
                index += 1;
            }
            if stage + 1 < self.stages() {
                side = side.div_ceil(2);
                total += (side * side * 8 * width * width) as f64;
            }
        }
        total
    }

    /// Activations that the blocks save for one square image of `size` pixels, in bytes.
    pub fn saved_bytes(
        &self,
        size: usize,
        precision: Precision,
        activation_checkpointing: bool,
    ) -> f64 {
        let blocks = self.depths.iter().map(|&depth| depth as f64);
        let values: f64 = self.stage_values(size).zip(blocks).map(|(values, n)| values * n).sum();
        values
            * match precision {
                _ if activation_checkpointing => 2.0 * 4.0,
                Precision::F32 => SAVED_VALUES * 4.0,
                Precision::Bf16 => SAVED_VALUES * 2.0,
            }
    }

    /// Tokens times width of the largest stage, for a square image of `size` pixels.
    pub fn largest_stage(&self, size: usize) -> f64 {
        self.stage_values(size).fold(0.0, f64::max)
    }

    /// Tokens times width of every stage, for a square image of `size` pixels.
    fn stage_values(&self, size: usize) -> impl Iterator<Item = f64> {
        let mut side = size / self.patch_size;
        (0..self.stages()).map(move |stage| {
            let values = (side * side * self.width(stage)) as f64;
            side = side.div_ceil(2);
            values
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::config;
    use super::*;

    /// For 36 pixels: maps of 9, 5 and 3 tokens a side, padded to 9, 6 and 4 in windows.
    #[test]
    fn multiply_accumulates_by_hand() {
        let config = config();
        let attention =
            |tokens: u64, slots: u64, width: u64| tokens * (4 * width * width + 2 * slots * width);
        let mlp = |tokens: u64, width: u64| tokens * 2 * width * (width * 3 / 2);
        let embed = 81 * 48 * 6;
        let merges = 25 * 24 * 12 + 9 * 48 * 24;
        let block = |tokens: u64, padded: u64, slots: u64, width: u64| {
            attention(padded, slots, width) + mlp(tokens, width)
        };
        let expected =
            embed + 2 * block(81, 81, 9, 6) + merges + block(25, 36, 9, 12) + block(9, 16, 4, 24);
        assert_eq!(config.macs(36), expected);
        // Without padding, and of four blocks a share is dropped: 0, 0.1, 0.2 and 0.3.
        let expected = (embed + merges) as f64
            + 1.9 * block(81, 81, 9, 6) as f64
            + 0.8 * block(25, 25, 9, 12) as f64
            + 0.7 * block(9, 9, 4, 24) as f64;
        assert!((config.real_macs(36, 0.3) / expected - 1.0).abs() < 1e-12);
        let all =
            (embed + merges + 2 * block(81, 81, 9, 6) + block(25, 25, 9, 12) + block(9, 9, 4, 24))
                as f64;
        assert_eq!(config.real_macs(36, 0.0), all);
    }

    /// For 52 pixels: maps of 13, 7 and 4 tokens a side.
    #[test]
    fn saved_values_by_hand() {
        let config = config();
        let all = (2 * 169 * 6 + 49 * 12 + 16 * 24) as f64;
        let saved = |precision, again| config.saved_bytes(52, precision, again);
        assert_eq!(saved(Precision::F32, false), all * 40.0);
        assert_eq!(saved(Precision::Bf16, false), all * 20.0);
        assert_eq!([Precision::F32, Precision::Bf16].map(|p| saved(p, true)), [all * 8.0; 2]);
        assert_eq!(config.largest_stage(52), 169.0 * 6.0);
        let wide = SwinConfig { depths: vec![1, 1], num_heads: vec![1, 1], ..config };
        assert_eq!(wide.largest_stage(4), 12.0);
    }
}
