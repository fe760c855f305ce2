//! The shape of a Swin transformer and what follows from it.

use serde::{Deserialize, Serialize};

/// The official code's `eps` of LayerNorm.
pub const NORM_EPS: f64 = 1e-6;

/// The shape of a Swin transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwinConfig {
    /// Side of the image, in pixels, for which windows are laid out. Other sizes can be put in.
    pub img_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of the first stage; every further stage doubles it.
    pub embed_dim: usize,
    /// Number of blocks of every stage.
    pub depths: Vec<usize>,
    /// Number of attention heads of every stage.
    pub num_heads: Vec<usize>,
    /// Side of a window in tokens.
    pub window_size: usize,
    /// Width of a block's hidden layer, as a multiple of the stage's width.
    pub mlp_ratio: f64,
    /// What every LayerNorm adds to a variance.
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
}

fn norm_eps() -> f64 {
    NORM_EPS
}

/// A [`SwinConfig`] that describes no network.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("model: {0}")]
pub struct SwinConfigError(String);

impl SwinConfig {
    /// Checks that the numbers fit each other.
    ///
    /// # Errors
    /// Names the first setting that does not.
    pub fn validate(&self) -> Result<(), SwinConfigError> {
        let fail = |message: String| Err(SwinConfigError(message));
        if self.depths.is_empty() || self.depths.contains(&0) {
            return fail(format!("`depths` is {:?}, every stage needs a block", self.depths));
        }
        if self.num_heads.len() != self.depths.len() {
            return fail(format!(
                "`num_heads` has {} stages and `depths` has {}, give one number a stage to each",
                self.num_heads.len(),
                self.depths.len()
            ));
        }
        if self.patch_size == 0 || self.window_size == 0 || self.embed_dim == 0 {
            return fail("`patch_size`, `window_size` and `embed_dim` must be at least 1".into());
        }
        let hidden = self.embed_dim as f64 * self.mlp_ratio;
        if !hidden.is_finite() || hidden < 1.0 {
            return fail(format!(
                "`mlp_ratio` is {}, it must be a positive number",
                self.mlp_ratio
            ));
        }
        if !self.norm_eps.is_finite() || self.norm_eps <= 0.0 {
            return fail(format!("`norm_eps` is {}, it must be a positive number", self.norm_eps));
        }
        for (stage, &heads) in self.num_heads.iter().enumerate() {
            if heads == 0 || !self.width(stage).is_multiple_of(heads) {
                return fail(format!(
                    "`num_heads[{stage}]` is {heads}, it must divide the stage's width {}",
                    self.width(stage)
                ));
            }
        }
        if self.resolution(self.depths.len() - 1) == 0 {
            return fail(format!(
                "`img_size` {} leaves no token in stage {}, use at least {} pixels",
                self.img_size,
                self.depths.len() - 1,
                self.patch_size << (self.depths.len() - 1)
            ));
        }
        Ok(())
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

    /// Side of a stage's map for the configured image size.
    fn resolution(&self, stage: usize) -> usize {
        (self.img_size / self.patch_size) >> stage
    }

    /// Side of a stage's windows in tokens.
    pub(crate) fn window(&self, stage: usize) -> usize {
        self.window_and_shift(stage, 0).0
    }

    /// Sides of the windows of every stage, in tokens.
    pub fn windows(&self) -> Vec<usize> {
        (0..self.stages()).map(|stage| self.window(stage)).collect()
    }

    /// Window and shift of a block: a map no larger than the window is one window without shift,
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

    /// Side of what a token of a stage covers, in pixels.
    pub fn stride(&self, stage: usize) -> usize {
        self.patch_size << stage
    }

    /// Side of the last map for a square image of `size` pixels.
    pub fn last_map(&self, size: usize) -> usize {
        (1..self.stages()).fold(size / self.patch_size, |side, _| side.div_ceil(2))
    }
}
