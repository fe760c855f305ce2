//! The shape of a Swin transformer.

use esvit_settings::{SettingError, check};
use serde::{Deserialize, Serialize};

/// `eps` of LayerNorm in the official code.
pub const NORM_EPS: f64 = 1e-6;

/// The shape of a Swin transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwinConfig {
    /// Side of the image in pixels, from which windows are derived. Inputs may have any size.
    pub img_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of the first stage; every further stage doubles it.
    pub embed_dim: usize,
    /// Number of blocks per stage.
    pub depths: Vec<usize>,
    /// Number of attention heads per stage.
    pub num_heads: Vec<usize>,
    /// Side of a window in tokens.
    pub window_size: usize,
    /// Width of an MLP's hidden layer, as a multiple of the stage's width.
    pub mlp_ratio: f64,
    /// `eps` of every LayerNorm.
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
}

fn norm_eps() -> f64 {
    NORM_EPS
}

impl SwinConfig {
    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// Names the first invalid one.
    pub fn validate(&self) -> Result<(), SettingError> {
        let Self { depths, num_heads, mlp_ratio, norm_eps, .. } = self;
        let has_blocks = !depths.is_empty() && !depths.contains(&0);
        check(has_blocks, "depths", format_args!("{depths:?}"), "every stage needs a block")?;
        let stages = depths.len();
        check(
            num_heads.len() == stages,
            "num_heads",
            format_args!("{num_heads:?}"),
            format!("`depths` has {stages} stages, give one number for each"),
        )?;
        for (key, value) in [
            ("patch_size", self.patch_size),
            ("window_size", self.window_size),
            ("embed_dim", self.embed_dim),
        ] {
            check(value > 0, key, value, "it must be at least 1")?;
        }
        let hidden = self.embed_dim as f64 * mlp_ratio;
        let is_positive = hidden.is_finite() && hidden >= 1.0;
        check(is_positive, "mlp_ratio", mlp_ratio, "it must be a positive number")?;
        let is_positive = norm_eps.is_finite() && *norm_eps > 0.0;
        check(is_positive, "norm_eps", norm_eps, "it must be a positive number")?;
        for (stage, &heads) in num_heads.iter().enumerate() {
            let width = self.width(stage);
            check(
                heads > 0 && width.is_multiple_of(heads),
                &format!("num_heads[{stage}]"),
                heads,
                format!("it must divide the stage's width {width}"),
            )?;
        }
        let last = stages - 1;
        let least = self.patch_size << last;
        check(
            self.resolution(last) > 0,
            "img_size",
            self.img_size,
            format!("it leaves no token in stage {last}, use at least {least} pixels"),
        )
    }

    /// Number of stages.
    pub fn stages(&self) -> usize {
        self.depths.len()
    }

    /// Width of a stage.
    pub fn width(&self, stage: usize) -> usize {
        self.embed_dim << stage
    }

    /// Width of the last stage: that of the view and region features.
    pub fn output_width(&self) -> usize {
        self.width(self.stages() - 1)
    }

    /// Side of a stage's map at the configured image size, in tokens.
    fn resolution(&self, stage: usize) -> usize {
        (self.img_size / self.patch_size) >> stage
    }

    /// Side of a stage's windows in tokens.
    pub(crate) fn window(&self, stage: usize) -> usize {
        self.window_and_shift(stage, 0).0
    }

    /// Side of every stage's windows in tokens.
    pub fn windows(&self) -> Vec<usize> {
        (0..self.stages()).map(|stage| self.window(stage)).collect()
    }

    /// Window side and shift of a block: a map no larger than the window is one unshifted window,
    /// otherwise every second block is shifted by half a window.
    pub(crate) fn window_and_shift(&self, stage: usize, block: usize) -> (usize, usize) {
        let resolution = self.resolution(stage);
        if resolution <= self.window_size {
            (resolution, 0)
        } else {
            (self.window_size, if block % 2 == 1 { self.window_size / 2 } else { 0 })
        }
    }

    pub(super) fn hidden_width(&self, stage: usize) -> usize {
        (self.width(stage) as f64 * self.mlp_ratio) as usize
    }

    /// Stride of a stage: side of a token in pixels.
    pub fn stride(&self, stage: usize) -> usize {
        self.patch_size << stage
    }

    /// Side of the last map in tokens, for a square image of `size` pixels.
    pub fn last_map(&self, size: usize) -> usize {
        (1..self.stages()).fold(size / self.patch_size, |side, _| side.div_ceil(2))
    }
}
