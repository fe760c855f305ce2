//! The shape of a pyramid vision transformer.

use esvit_settings::{SettingError, check, settings};

use crate::backbone::config::dashed;
use crate::backbone::{CHANNELS, Stage};
use crate::limits::{self, check_count};

/// `eps` of LayerNorm in the blocks and at the end, in the official code.
pub const NORM_EPS: f64 = 1e-6;

settings! {
    /// The shape of a pyramid vision transformer (PVT).
    pub struct PvtConfig {
        /// Side of the image in pixels, for whose maps the position tables are made. Inputs may have
        /// any size.
        pub img_size: usize,
        /// Side of a patch in pixels. Every further stage joins 2 x 2 tokens.
        pub patch_size: usize,
        /// Width of every stage.
        pub embed_dims: Vec<usize>,
        /// Number of blocks per stage.
        pub depths: Vec<usize>,
        /// Number of attention heads per stage.
        pub num_heads: Vec<usize>,
        /// Width of an MLP's hidden layer per stage, as a multiple of the stage's width.
        pub mlp_ratios: Vec<f64>,
        /// Side of the squares of tokens that are attended to as one, per stage: 1 for attention to
        /// all tokens, as in the last stage.
        pub sr_ratios: Vec<usize>,
        /// `eps` of the LayerNorms in blocks and of the last one. Those after the embeddings and of
        /// reduced maps have 1e-5.
        #[serde(default = "norm_eps")]
        pub norm_eps: f64,
    }
}

fn norm_eps() -> f64 {
    NORM_EPS
}

impl PvtConfig {
    /// Checks that the settings fit together and that no size is absurd.
    ///
    /// # Errors
    /// Names the first invalid one.
    pub fn validate(&self) -> Result<(), SettingError> {
        let Self { depths, norm_eps, .. } = self;
        limits::check_depths("depths", depths)?;
        let stages = depths.len();
        for (key, count) in [
            ("embed_dims", self.embed_dims.len()),
            ("num_heads", self.num_heads.len()),
            ("mlp_ratios", self.mlp_ratios.len()),
            ("sr_ratios", self.sr_ratios.len()),
        ] {
            limits::check_one_each(key, count, ("depths", stages))?;
        }
        check_count("patch_size", self.patch_size, limits::PATCH)?;
        check_count("img_size", self.img_size, limits::SIDE)?;
        limits::check_norm_eps(*norm_eps)?;
        for stage in 0..stages {
            let key = |name: &str| format!("{name}[{stage}]");
            let (width, heads) = (self.embed_dims[stage], self.num_heads[stage]);
            check_count(&key("embed_dims"), width, limits::WIDTH)?;
            let what = format!("the stage's width {width}");
            limits::check_heads(&key("num_heads"), heads, width, what)?;
            limits::check_ratio(&key("mlp_ratios"), self.mlp_ratios[stage], width)?;
            check_count(&key("sr_ratios"), self.sr_ratios[stage], limits::PATCH)?;
        }
        let (last, ratio) = (stages - 1, self.sr_ratios[stages - 1]);
        let need = "the class token of the last stage has no place on a reduced map: it must be 1";
        check(ratio == 1, &format!("sr_ratios[{last}]"), ratio, need)?;
        let least = self.least_side();
        let need = format!("it leaves a stage without tokens to attend to, use at least {least}");
        check(self.img_size >= least, "img_size", self.img_size, need)?;
        limits::check_parameters("depths", format_args!("{depths:?}"), self.parameters())
    }

    /// Number of weights, biases apart.
    fn parameters(&self) -> f64 {
        let stage = |stage: usize| {
            let width = self.embed_dims[stage] as f64;
            let reduction = match self.sr_ratios[stage] {
                1 => 0.0,
                ratio => (ratio * ratio) as f64,
            };
            let block = width * width * (4.0 + 2.0 * self.mlp_ratios[stage] + reduction);
            let patch = self.inputs(stage) as f64 * (self.patch(stage) as f64).powi(2);
            let positions = self.table_rows(stage) as f64;
            self.depths[stage] as f64 * block + width * (patch + positions)
        };
        (0..self.stages()).map(stage).sum()
    }

    /// Side of the smallest image that leaves tokens to attend to in all stages.
    pub(crate) fn least_side(&self) -> usize {
        let side = |(stage, ratio): (usize, &usize)| ratio * (self.patch_size << stage);
        self.sr_ratios.iter().enumerate().map(side).max().unwrap_or(0)
    }

    /// Checks that attention over an image of this size can be computed; `key` says whose it is.
    pub(crate) fn check_image(&self, key: &str, sides: [usize; 2]) -> Result<(), SettingError> {
        let least = self.least_side();
        limits::check_sides(key, sides, least, least)?;
        let pairs = |stage: usize| {
            let map = sides.map(|side| (side / self.patch_size) >> stage);
            let keys: usize = map.map(|side| side / self.sr_ratios[stage]).iter().product();
            let prefix = self.prefix(stage);
            (prefix + map[0] * map[1]) * (prefix + keys)
        };
        let pairs = (0..self.stages()).map(pairs).max().unwrap_or(0);
        limits::check_work(key, sides, pairs, format_args!("a stage has {pairs} pairs of tokens"))
    }

    /// The stages, first to last.
    pub(crate) fn stage_table(&self) -> Vec<Stage> {
        let stage = |stage: usize| Stage {
            blocks: self.depths[stage],
            width: self.embed_dims[stage],
            stride: self.patch_size << stage,
            heads: self.num_heads[stage],
        };
        (0..self.stages()).map(stage).collect()
    }

    /// The shape in a few words.
    pub(crate) fn describe(&self) -> String {
        let (depths, first) = (dashed(self.depths.iter().copied()), self.embed_dims[0]);
        format!("{depths} blocks, widths {first} to {}", self.output_width())
    }

    /// Number of stages.
    pub fn stages(&self) -> usize {
        self.depths.len()
    }

    /// Width of the last stage: that of the view and region features.
    pub fn output_width(&self) -> usize {
        self.embed_dims.last().copied().unwrap_or(0)
    }

    /// Tokens before those of a stage's map: the class token, in the last stage alone.
    pub(super) fn prefix(&self, stage: usize) -> usize {
        usize::from(stage + 1 == self.stages())
    }

    /// Channels of what a stage's patches are of.
    pub(super) fn inputs(&self, stage: usize) -> usize {
        stage.checked_sub(1).map_or(CHANNELS, |before| self.embed_dims[before])
    }

    /// Side of a stage's patches, in tokens of the stage before or in pixels.
    pub(super) fn patch(&self, stage: usize) -> usize {
        if stage == 0 { self.patch_size } else { 2 }
    }

    /// Side of the map of which a stage's position table is.
    pub(super) fn grid(&self, stage: usize) -> usize {
        (self.img_size / self.patch_size) >> stage
    }

    /// Rows of a stage's position table.
    pub(super) fn table_rows(&self, stage: usize) -> usize {
        self.prefix(stage) + self.grid(stage).pow(2)
    }

    /// Width of the hidden layer of a stage's MLPs.
    pub(super) fn hidden_width(&self, stage: usize) -> usize {
        (self.embed_dims[stage] as f64 * self.mlp_ratios[stage]) as usize
    }

    /// Side of the last map in tokens, for a square image of `size` pixels.
    pub fn last_map(&self, size: usize) -> usize {
        (size / self.patch_size) >> (self.stages() - 1)
    }
}

#[cfg(test)]
pub(in crate::backbone) mod tests {
    use super::*;

    /// A shape of three stages, no two numbers of which are alike.
    pub(in crate::backbone) fn config() -> PvtConfig {
        PvtConfig {
            img_size: 48,
            patch_size: 4,
            embed_dims: vec![6, 8, 12],
            depths: vec![2, 1, 1],
            num_heads: vec![1, 2, 3],
            mlp_ratios: vec![1.5, 2.0, 2.5],
            sr_ratios: vec![4, 2, 1],
            norm_eps: 1e-4,
        }
    }

    #[test]
    fn sizes_by_stage() {
        let config = config();
        assert_eq!([0, 1, 2].map(|stage| config.grid(stage)), [12, 6, 3]);
        assert_eq!([0, 1, 2].map(|stage| config.table_rows(stage)), [144, 36, 10]);
        assert_eq!([0, 1, 2].map(|stage| config.inputs(stage)), [3, 6, 8]);
        assert_eq!([0, 1, 2].map(|stage| config.patch(stage)), [4, 2, 2]);
        assert_eq!([0, 1, 2].map(|stage| config.hidden_width(stage)), [9, 16, 30]);
        assert_eq!((config.stages(), config.output_width()), (3, 12));
        // What remains at a border is dropped in every stage.
        assert_eq!([48, 47, 63, 64].map(|size| config.last_map(size)), [3, 2, 3, 4]);
    }

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        config().validate().unwrap();
        type Mistake<'a> = (&'a dyn Fn(&mut PvtConfig), &'a str);
        let cases: [Mistake<'_>; 23] = [
            (&|config| config.depths = vec![], "`depths` is []: every stage needs a block"),
            (&|config| config.depths[1] = 0, "`depths` is [2, 0, 1]: every stage needs a block"),
            (&|config| config.depths = vec![1; 17], "`depths` is a list of 17: a network has"),
            (&|config| config.depths[0] = usize::MAX, "`depths` is [18446744073709551615, 1, 1]: "),
            (&|config| config.depths = vec![1, 1], "`embed_dims` is a list of 3: `depths` has 2"),
            (&|config| config.num_heads = vec![1], "`num_heads` is a list of 1: `depths` has 3"),
            (&|config| config.mlp_ratios = vec![1.0], "`mlp_ratios` is a list of 1: "),
            (&|config| config.sr_ratios = vec![], "`sr_ratios` is a list of 0: "),
            (&|config| config.patch_size = 0, "`patch_size` is 0: it must be between 1 and 64"),
            (&|config| config.patch_size = 65, "`patch_size` is 65: "),
            (&|config| config.img_size = 1 << 17, "`img_size` is 131072: "),
            (&|config| config.norm_eps = f64::NAN, "`norm_eps` is NaN: "),
            (&|config| config.norm_eps = 0.0, "`norm_eps` is 0: "),
            (&|config| config.embed_dims[1] = 0, "`embed_dims[1]` is 0: it must be between"),
            (&|config| config.embed_dims[2] = 1 << 17, "`embed_dims[2]` is 131072: "),
            (
                &|config| config.num_heads[1] = 3,
                "`num_heads[1]` is 3: it must divide the stage's width 8",
            ),
            (&|config| config.num_heads[0] = 0, "`num_heads[0]` is 0: "),
            (&|config| config.mlp_ratios[0] = 0.1, "`mlp_ratios[0]` is 0.1: "),
            (&|config| config.mlp_ratios[2] = f64::INFINITY, "`mlp_ratios[2]` is inf: "),
            (&|config| config.sr_ratios[0] = 0, "`sr_ratios[0]` is 0: it must be between 1"),
            (&|config| config.sr_ratios[2] = 2, "`sr_ratios[2]` is 2: the class token"),
            (
                &|config| config.img_size = 15,
                "`img_size` is 15: it leaves a stage without tokens to attend to, use at least 16",
            ),
            (
                &|config| (config.embed_dims[2], config.depths[2]) = (60_000, 9_000),
                "`depths` is [2, 1, 9000]: that makes 2.9e14 parameters",
            ),
        ];
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let error = config.validate().expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        PvtConfig { img_size: 16, ..config() }.validate().unwrap();
        let (_, list) = crate::BackboneConfig::Pvt(config()).build(0.0);
        let count: usize = list.iter().filter(|p| p.shape.len() > 1).map(|p| p.len()).sum();
        // The class token is no weight here.
        assert_eq!(config().parameters(), (count - 12) as f64);
    }

    #[test]
    fn images_are_bounded() {
        let config = config();
        for sides in [[16, 16], [16, 65_536], [1024, 512]] {
            config.check_image("crop", sides).unwrap();
        }
        for (sides, expected) in [
            ([15, 32], "`crop` is 15: it must be between 16 and 65536 pixels"),
            ([16, 65_537], "`crop` is 65537: "),
            // A million tokens of 4 pixels in the first stage, and a sixteenth as many keys.
            ([8192, 2048], "`crop` is 8192 x 2048: a stage has 68719476736 pairs of tokens"),
        ] {
            let error = config.check_image("crop", sides).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
