//! The shape of a residual network.

use esvit_settings::{SettingError, check, settings, words};
use serde::{Deserialize, Serialize};

use crate::backbone::Stage;
use crate::backbone::config::dashed;
use crate::layers::BATCH_NORM_EPS;
use crate::limits::{self, check_count};

/// What a block's branch is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// Convolutions of 1, 3 and 1 pixels, the last of which widens by four: ResNet-50 and larger.
    #[default]
    Bottleneck,
    /// Two convolutions of 3 pixels: ResNet-18 and 34.
    Basic,
}

words! {
    BlockKind: "bottleneck", "basic";
}

impl BlockKind {
    /// The width of a block's result, as a multiple of that of its branch.
    pub fn expansion(self) -> usize {
        match self {
            Self::Bottleneck => 4,
            Self::Basic => 1,
        }
    }
}

settings! {
    /// The shape of a residual network (ResNet).
    pub struct ResNetConfig {
        /// Side in pixels of the images that it is made for. Inputs may have any size.
        #[serde(default = "img_size")]
        pub img_size: usize,
        /// What a block's branch is made of.
        #[serde(default)]
        pub block: BlockKind,
        /// Width of the convolutions before the first stage.
        pub stem_width: usize,
        /// Width of the branches per stage. What a block gives is wider by the factor of its kind.
        pub widths: Vec<usize>,
        /// Number of blocks per stage.
        pub layers: Vec<usize>,
        /// Whether blocks weigh two convolutions against each other (selective kernels), and stem and
        /// shortcuts are those of ResNet-D, as in SimCLR v2.
        #[serde(default)]
        pub selective_kernels: bool,
        /// `eps` of every BatchNorm.
        #[serde(default = "norm_eps")]
        pub norm_eps: f64,
    }
}

fn img_size() -> usize {
    224
}

fn norm_eps() -> f64 {
    BATCH_NORM_EPS
}

/// Side of the first stage's tokens in pixels: the stem halves a map twice.
const FIRST_STRIDE: usize = 4;

impl ResNetConfig {
    /// Checks that the settings fit together and that no size is absurd.
    ///
    /// # Errors
    /// Names the first invalid one.
    pub fn validate(&self) -> Result<(), SettingError> {
        let Self { layers, widths, .. } = self;
        limits::check_depths("layers", layers)?;
        limits::check_one_each("widths", widths.len(), ("layers", layers.len()))?;
        for (stage, &width) in widths.iter().enumerate() {
            let most = limits::WIDTH / self.block.expansion();
            check_count(&format!("widths[{stage}]"), width, most)?;
        }
        check_count("stem_width", self.stem_width, limits::WIDTH)?;
        check_count("img_size", self.img_size, limits::SIDE)?;
        check(
            !self.selective_kernels || self.block == BlockKind::Bottleneck,
            "selective_kernels",
            true,
            "blocks of kind `basic` have none",
        )?;
        let is_even = self.stem_width.is_multiple_of(2);
        check(
            !self.selective_kernels || is_even,
            "stem_width",
            self.stem_width,
            "with selective kernels the first convolutions have half of it",
        )?;
        limits::check_norm_eps(self.norm_eps)?;
        limits::check_parameters("layers", format_args!("{layers:?}"), self.parameters())
    }

    /// Number of weights of convolutions, those of selective kernels and shortcuts about.
    fn parameters(&self) -> f64 {
        let stage = |(&width, &blocks): (&usize, &usize)| {
            let width = width as f64;
            let convolutions = match self.block {
                BlockKind::Bottleneck if self.selective_kernels => 26.0,
                BlockKind::Bottleneck => 17.0,
                BlockKind::Basic => 18.0,
            };
            // The first block also has a shortcut, of about as many as a convolution of it.
            width * width * convolutions * (blocks as f64 + 1.0)
        };
        self.widths.iter().zip(&self.layers).map(stage).sum()
    }

    /// Checks that an image of this size can be computed; `key` says whose it is.
    pub(crate) fn check_image(&self, key: &str, sides: [usize; 2]) -> Result<(), SettingError> {
        limits::check_sides(key, sides, FIRST_STRIDE, FIRST_STRIDE)?;
        let pixels = sides[0] * sides[1];
        limits::check_work(key, sides, pixels, format_args!("it has {pixels} pixels"))
    }

    /// The stages, first to last.
    pub(crate) fn stage_table(&self) -> Vec<Stage> {
        let stage = |(stage, &blocks)| Stage {
            blocks,
            width: self.width(stage),
            stride: FIRST_STRIDE << stage,
            heads: 0,
        };
        self.layers.iter().enumerate().map(stage).collect()
    }

    /// The shape in a few words.
    pub(crate) fn describe(&self) -> String {
        let (layers, width) = (dashed(self.layers.iter().copied()), self.widths[0]);
        let selective = if self.selective_kernels { ", selective kernels" } else { "" };
        format!("{layers} blocks, width {width}{selective}")
    }

    /// Number of stages.
    pub fn stages(&self) -> usize {
        self.layers.len()
    }

    /// Channels of a stage's maps.
    pub fn width(&self, stage: usize) -> usize {
        self.widths[stage] * self.block.expansion()
    }

    /// Channels of the last stage: the width of view and region features.
    pub fn output_width(&self) -> usize {
        self.width(self.stages() - 1)
    }

    /// Side of the last map in tokens, for a square image of `size` pixels: convolutions are padded.
    pub fn last_map(&self, size: usize) -> usize {
        size.div_ceil(FIRST_STRIDE << (self.stages() - 1))
    }
}

#[cfg(test)]
pub(in crate::backbone) mod tests {
    use super::*;

    /// A shape of three stages, no two numbers of which are alike.
    pub(in crate::backbone) fn config() -> ResNetConfig {
        ResNetConfig {
            img_size: 40,
            block: BlockKind::Bottleneck,
            stem_width: 6,
            widths: vec![3, 4, 5],
            layers: vec![2, 1, 1],
            selective_kernels: false,
            norm_eps: 1e-3,
        }
    }

    #[test]
    fn sizes_by_stage() {
        let config = config();
        assert_eq!([0, 1, 2].map(|stage| config.width(stage)), [12, 16, 20]);
        assert_eq!((config.stages(), config.output_width()), (3, 20));
        assert_eq!([40, 33, 32, 1].map(|size| config.last_map(size)), [3, 3, 2, 1]);
        let basic = ResNetConfig { block: BlockKind::Basic, ..config };
        assert_eq!(basic.output_width(), 5);
    }

    #[test]
    fn what_is_left_out_is_usual() {
        let text = r#"{"stem_width": 6, "widths": [3, 4, 5], "layers": [2, 1, 1]}"#;
        let found: ResNetConfig = serde_json::from_str(text).unwrap();
        assert_eq!(found, ResNetConfig { img_size: 224, norm_eps: 1e-5, ..config() });
        let basic = text.replace("{\"stem", "{\"block\": \"basic\", \"stem");
        let found: ResNetConfig = serde_json::from_str(&basic).unwrap();
        assert_eq!(found.block, BlockKind::Basic);
    }

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        config().validate().unwrap();
        type Mistake<'a> = (&'a dyn Fn(&mut ResNetConfig), &'a str);
        let cases: [Mistake<'_>; 16] = [
            (&|config| config.layers = vec![], "`layers` is []: every stage needs a block"),
            (&|config| config.layers[1] = 0, "`layers` is [2, 0, 1]: every stage needs a block"),
            (&|config| config.layers = vec![1; 17], "`layers` is a list of 17: a network has"),
            (&|config| config.layers[2] = usize::MAX, "`layers` is [2, 1, 18446744073709551615]: "),
            (&|config| config.widths = vec![1], "`widths` is a list of 1: `layers` has 3 stages"),
            (&|config| config.widths[1] = 0, "`widths[1]` is 0: it must be between 1 and 16384"),
            (&|config| config.widths[1] = 16_385, "`widths[1]` is 16385: "),
            (&|config| config.stem_width = 0, "`stem_width` is 0: it must be between 1 and 65536"),
            (&|config| config.stem_width = 1 << 17, "`stem_width` is 131072: "),
            (&|config| config.img_size = 0, "`img_size` is 0: it must be between 1 and 65536"),
            (&|config| config.img_size = 1 << 17, "`img_size` is 131072: "),
            (&|config| config.norm_eps = -1.0, "`norm_eps` is -1: "),
            (&|config| config.norm_eps = f64::NAN, "`norm_eps` is NaN: "),
            (
                &|config| (config.selective_kernels, config.block) = (true, BlockKind::Basic),
                "`selective_kernels` is true: blocks of kind `basic` have none",
            ),
            (
                &|config| (config.selective_kernels, config.stem_width) = (true, 5),
                "`stem_width` is 5: with selective kernels",
            ),
            (
                &|config| (config.widths[0], config.layers[0]) = (16_000, 9_000),
                "`layers` is [9000, 1, 1]: that makes 3.9e13 parameters",
            ),
        ];
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let error = config.validate().expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn images_are_bounded() {
        let config = config();
        for sides in [[4, 4], [4, 65_536], [16_384, 16_384]] {
            config.check_image("crop", sides).unwrap();
        }
        for (sides, expected) in [
            ([3, 32], "`crop` is 3: it must be between 4 and 65536 pixels"),
            ([4, 65_537], "`crop` is 65537: "),
            ([16_384, 16_385], "`crop` is 16384 x 16385: it has 268451840 pixels"),
        ] {
            let error = config.check_image("crop", sides).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
