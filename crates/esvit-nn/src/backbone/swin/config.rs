//! The shape of a Swin transformer.

use esvit_settings::{SettingError, check};
use serde::{Deserialize, Serialize};

use crate::backbone::Stage;

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

    /// The stages, first to last.
    pub(crate) fn stage_table(&self) -> Vec<Stage> {
        let stage = |(stage, &blocks)| Stage {
            blocks,
            width: self.width(stage),
            stride: self.stride(stage),
            heads: self.num_heads[stage],
        };
        self.depths.iter().enumerate().map(stage).collect()
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

#[cfg(test)]
pub(in crate::backbone) mod tests {
    use super::*;

    /// A shape of three stages, no two numbers of which are alike.
    pub(in crate::backbone) fn config() -> SwinConfig {
        SwinConfig {
            img_size: 32,
            patch_size: 4,
            embed_dim: 6,
            depths: vec![2, 1, 1],
            num_heads: vec![1, 2, 3],
            window_size: 3,
            mlp_ratio: 1.5,
            norm_eps: 1e-5,
        }
    }

    /// Maps of 8, 4 and 2 tokens a side: the last is one window.
    #[test]
    fn sizes_by_stage() {
        let config = config();
        assert_eq!([0, 1, 2].map(|stage| config.width(stage)), [6, 12, 24]);
        assert_eq!([0, 1, 2].map(|stage| config.stride(stage)), [4, 8, 16]);
        assert_eq!([0, 1, 2].map(|stage| config.hidden_width(stage)), [9, 18, 36]);
        assert_eq!((config.stages(), config.output_width()), (3, 24));
        assert_eq!(config.windows(), [3, 3, 2]);
        let blocks = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)];
        let found = blocks.map(|(stage, block)| config.window_and_shift(stage, block));
        assert_eq!(found, [(3, 0), (3, 1), (3, 0), (2, 0), (2, 0)]);
        // A map as large as the window is one window, without shift.
        let config = SwinConfig { window_size: 8, ..config };
        assert_eq!([0, 1].map(|block| config.window_and_shift(0, block)), [(8, 0); 2]);
        let config = SwinConfig { window_size: 7, ..config };
        assert_eq!([0, 1].map(|block| config.window_and_shift(0, block)), [(7, 0), (7, 3)]);
        assert_eq!([32, 36, 35, 52].map(|size| config.last_map(size)), [2, 3, 2, 4]);
    }

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        config().validate().unwrap();
        type Mistake<'a> = (&'a dyn Fn(&mut SwinConfig), &'a str);
        let cases: [Mistake<'_>; 13] = [
            (&|config| config.depths = vec![], "`depths` is []: every stage needs a block"),
            (&|config| config.depths[1] = 0, "`depths` is [2, 0, 1]: every stage needs a block"),
            (
                &|config| config.depths = vec![2, 1],
                "`num_heads` is [1, 2, 3]: `depths` has 2 stages",
            ),
            (&|config| config.patch_size = 0, "`patch_size` is 0: it must be at least 1"),
            (&|config| config.window_size = 0, "`window_size` is 0: it must be at least 1"),
            (&|config| config.embed_dim = 0, "`embed_dim` is 0: it must be at least 1"),
            (&|config| config.mlp_ratio = 0.1, "`mlp_ratio` is 0.1: "),
            (&|config| config.mlp_ratio = f64::INFINITY, "`mlp_ratio` is inf: "),
            (&|config| config.norm_eps = 0.0, "`norm_eps` is 0: "),
            (&|config| config.norm_eps = f64::NAN, "`norm_eps` is NaN: "),
            (
                &|config| config.num_heads[1] = 5,
                "`num_heads[1]` is 5: it must divide the stage's width 12",
            ),
            (&|config| config.num_heads[2] = 0, "`num_heads[2]` is 0: "),
            (
                &|config| config.img_size = 15,
                "`img_size` is 15: it leaves no token in stage 2, use at least 16 pixels",
            ),
        ];
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let error = config.validate().expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        SwinConfig { img_size: 16, mlp_ratio: 0.2, ..config() }.validate().unwrap();
    }
}
