//! The shape of a Swin transformer.

use esvit_settings::{SettingError, check, settings};

use crate::backbone::Stage;
use crate::backbone::config::dashed;
use crate::limits::{self, check_count};

/// `eps` of LayerNorm in the official code.
pub const NORM_EPS: f64 = 1e-6;

settings! {
    /// The shape of a Swin transformer.
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
}

fn norm_eps() -> f64 {
    NORM_EPS
}

impl SwinConfig {
    /// Checks that the settings fit together and that no size is absurd.
    ///
    /// # Errors
    /// Names the first invalid one.
    pub fn validate(&self) -> Result<(), SettingError> {
        let Self { depths, num_heads, mlp_ratio, norm_eps, .. } = self;
        limits::check_depths("depths", depths)?;
        limits::check_stages("num_heads", num_heads.len())?;
        let stages = depths.len();
        check(
            num_heads.len() == stages,
            "num_heads",
            format_args!("{num_heads:?}"),
            format!("`depths` has {stages} stages, give one number for each"),
        )?;
        let last = stages - 1;
        for (key, value, most) in [
            ("patch_size", self.patch_size, limits::PATCH),
            ("window_size", self.window_size, limits::WINDOW),
            // The width doubles with each stage.
            ("embed_dim", self.embed_dim, limits::WIDTH >> last),
            ("img_size", self.img_size, limits::SIDE),
        ] {
            check_count(key, value, most)?;
        }
        limits::check_mlp_ratio(*mlp_ratio, self.embed_dim)?;
        limits::check_norm_eps(*norm_eps)?;
        for (stage, &heads) in num_heads.iter().enumerate() {
            let (key, width) = (format!("num_heads[{stage}]"), self.width(stage));
            limits::check_heads(&key, heads, width, format_args!("the stage's width {width}"))?;
        }
        let least = self.patch_size << last;
        check(
            self.resolution(last) > 0,
            "img_size",
            self.img_size,
            format!("it leaves no token in stage {last}, use at least {least} pixels"),
        )?;
        limits::check_parameters("depths", format_args!("{depths:?}"), self.parameters())
    }

    /// Number of weights, biases apart.
    fn parameters(&self) -> f64 {
        let stage = |(stage, &blocks): (usize, &usize)| {
            let width = self.width(stage) as f64;
            let positions = (2.0 * self.window(stage) as f64 - 1.0).powi(2);
            let table = positions * self.num_heads[stage] as f64;
            let block = width * width * (4.0 + 2.0 * self.mlp_ratio) + table;
            blocks as f64 * block + 8.0 * width * width
        };
        self.depths.iter().enumerate().map(stage).sum()
    }

    /// Checks that maps and windows of an image of this size can be made; `key` says whose it is.
    pub(crate) fn check_image(&self, key: &str, sides: [usize; 2]) -> Result<(), SettingError> {
        let patch = self.patch_size;
        limits::check_sides(key, sides, patch, format_args!("a patch of {patch}"))?;
        let [height, width] = sides;
        let pairs = (height / patch) * (width / patch) * self.window(0).pow(2);
        let what = format!("its windows have {pairs} pairs of tokens");
        limits::check_work(key, sides, pairs, what)
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

    /// The shape in a few words.
    pub(crate) fn describe(&self) -> String {
        let depths = dashed(self.depths.iter().copied());
        let (width, window) = (self.embed_dim, self.window_size);
        format!("{depths} blocks, width {width}, window {window}")
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
        let cases: [Mistake<'_>; 25] = [
            (&|config| config.depths = vec![], "`depths` is []: every stage needs a block"),
            (&|config| config.depths[1] = 0, "`depths` is [2, 0, 1]: every stage needs a block"),
            (
                &|config| config.depths = vec![2, 1],
                "`num_heads` is [1, 2, 3]: `depths` has 2 stages",
            ),
            (&|config| config.patch_size = 0, "`patch_size` is 0: it must be between 1 and 64"),
            (&|config| config.window_size = 0, "`window_size` is 0: it must be between 1 and 64"),
            (&|config| config.embed_dim = 0, "`embed_dim` is 0: it must be between 1 and 16384"),
            (&|config| config.mlp_ratio = 0.1, "`mlp_ratio` is 0.1: "),
            (&|config| config.mlp_ratio = f64::INFINITY, "`mlp_ratio` is inf: "),
            (&|config| config.norm_eps = 0.0, "`norm_eps` is 0: "),
            (&|config| config.norm_eps = f64::NAN, "`norm_eps` is NaN: "),
            (&|config| config.norm_eps = 1e-60, "`norm_eps` is 0.0"),
            (&|config| config.norm_eps = 1e9, "`norm_eps` is 1000000000: "),
            (&|config| config.mlp_ratio = f64::NAN, "`mlp_ratio` is NaN: "),
            (&|config| config.mlp_ratio = 65.0, "`mlp_ratio` is 65: "),
            (&|config| config.depths = vec![1; 100_000], "`depths` is a list of 100000: a network"),
            (&|config| config.num_heads = vec![1; 17], "`num_heads` is a list of 17: a network"),
            (
                &|config| config.depths[2] = usize::MAX,
                "`depths` is [2, 1, 18446744073709551615]: a",
            ),
            (&|config| config.embed_dim = 16_386, "`embed_dim` is 16386: "),
            (&|config| config.patch_size = 65, "`patch_size` is 65: "),
            (&|config| config.window_size = 65, "`window_size` is 65: "),
            (&|config| config.img_size = 1 << 17, "`img_size` is 131072: "),
            (
                &|config| (config.embed_dim, config.depths[1]) = (12_000, 1_000),
                "`depths` is [2, 1000, 1]: that makes 4.1e12 parameters, the most is 6.9e10",
            ),
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
        // As large as any, and close to the official code's count.
        let large = SwinConfig { depths: vec![4, 4, 4], ..config() };
        let large = SwinConfig { embed_dim: 1536, num_heads: vec![24, 48, 96], ..large };
        large.validate().unwrap();
        let (_, list) = crate::BackboneConfig::Swin(config()).build(0.0);
        let count: usize = list.iter().filter(|p| p.shape.len() > 1).map(|p| p.len()).sum();
        let merges = 8.0 * 24.0 * 24.0 - 3.0 * 16.0 * 6.0;
        assert_eq!(config().parameters() - merges, count as f64);
    }

    #[test]
    fn images_are_bounded() {
        let config = config();
        for sides in [[4, 4], [4, 65_536], [20_000, 20_000]] {
            config.check_image("crop", sides).unwrap();
        }
        for (sides, expected) in [
            ([3, 32], "`crop` is 3: it must be between a patch of 4 and 65536 pixels"),
            ([32, 65_537], "`crop` is 65537: "),
            ([65_536, 65_536], "`crop` is 65536 x 65536: its windows have 2415919104 pairs"),
        ] {
            let error = config.check_image("crop", sides).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
