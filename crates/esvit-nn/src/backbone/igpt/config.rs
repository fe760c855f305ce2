//! The shape of an image GPT.

use esvit_settings::{SettingError, check, settings, words};
use serde::{Deserialize, Serialize};

use crate::backbone::Stage;
use crate::limits::{self, check_count};

/// `eps` of the RMS norms in the official code.
pub const NORM_EPS: f64 = 1e-5;

/// Width of an MLP's hidden layer, as a multiple of the tokens'.
pub(super) const MLP_RATIO: usize = 4;

/// What the network predicts, and so what a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// The next color in raster order, from all before it: every position sees earlier ones alone.
    Autoregressive,
    /// Colors that are hidden, from all others: every position sees the whole image.
    Bert,
}

words! {
    Variant: "autoregressive", "bert";
}

settings! {
    /// The shape of an image GPT.
    pub struct IgptConfig {
        /// Side of the image in pixels, for whose map the position table is made. Inputs may have any
        /// size.
        pub img_size: usize,
        /// Side in pixels of the squares whose mean color is a token: 7 makes 32 x 32 tokens of an image of
        /// 224 pixels.
        pub patch_size: usize,
        /// Number of colors in the palette.
        pub colors: usize,
        /// What it predicts: `autoregressive`, the next color from those before it; or `bert`, hidden colors
        /// from all others.
        pub variant: Variant,
        /// Width of the tokens.
        pub embed_dim: usize,
        /// Number of blocks.
        pub depth: usize,
        /// Number of attention heads.
        pub num_heads: usize,
        /// Number of blocks before the one whose normed input, averaged over all positions, is the feature of
        /// an image: features are best in the middle of the network.
        pub feature_block: usize,
        /// `eps` of every RMS norm.
        pub norm_eps: f64,
    }
}

/// How a network sees an image as tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColorTokens {
    /// Number of colors in the palette.
    pub colors: usize,
    /// Side in pixels of the squares whose mean color is a token.
    pub patch_size: usize,
    /// What is predicted of them.
    pub variant: Variant,
}

impl IgptConfig {
    /// Checks that the settings fit together and that no size is absurd.
    ///
    /// # Errors
    /// Names the first invalid one.
    pub fn validate(&self) -> Result<(), SettingError> {
        for (key, value, most) in [
            ("patch_size", self.patch_size, limits::PATCH),
            ("embed_dim", self.embed_dim, limits::WIDTH),
            ("depth", self.depth, limits::BLOCKS),
            ("img_size", self.img_size, limits::SIDE),
            ("feature_block", self.feature_block, self.depth),
        ] {
            check_count(key, value, most)?;
        }
        let (colors, need) = (self.colors, format!("it must be between 2 and {}", limits::WIDTH));
        check((2..=limits::WIDTH).contains(&colors), "colors", colors, need)?;
        let (heads, width) = (self.num_heads, self.embed_dim);
        let what = format!("`embed_dim`, which is {width}");
        limits::check_heads("num_heads", heads, width, what)?;
        limits::check_norm_eps(self.norm_eps)?;
        let (size, patch) = (self.img_size, self.patch_size);
        check(size >= patch, "img_size", size, format!("it holds no patch of {patch} pixels"))?;
        limits::check_parameters("depth", self.depth, self.parameters())
    }

    /// Number of weights.
    fn parameters(&self) -> f64 {
        let width = self.embed_dim as f64;
        let block = width * width * (4 + 2 * MLP_RATIO) as f64;
        let rows = (self.colors + self.grid() * self.grid()) as f64;
        self.depth as f64 * block + rows * width
    }

    /// Checks that attention over an image of this size can be computed; `key` says whose it is.
    pub(crate) fn check_image(&self, key: &str, sides: [usize; 2]) -> Result<(), SettingError> {
        let patch = self.patch_size;
        limits::check_sides(key, sides, patch, format_args!("a patch of {patch}"))?;
        let [height, width] = sides;
        let tokens = (height / patch) * (width / patch);
        let pairs = tokens * tokens;
        limits::check_work(key, sides, pairs, format!("its {tokens} tokens have {pairs} pairs"))
    }

    /// The stages: one.
    pub(crate) fn stage_table(&self) -> Vec<Stage> {
        let Self { depth, embed_dim, patch_size, num_heads, .. } = *self;
        vec![Stage { blocks: depth, width: embed_dim, stride: patch_size, heads: num_heads }]
    }

    /// The shape in a few words.
    pub(crate) fn describe(&self) -> String {
        let Self { depth, embed_dim, patch_size, colors, feature_block, .. } = self;
        let variant = match self.variant {
            Variant::Autoregressive => "autoregressive",
            Variant::Bert => "BERT",
        };
        format!(
            "{depth} blocks, width {embed_dim}, {colors} colors of {patch_size} x {patch_size} pixels, \
             {variant}, features after block {feature_block}"
        )
    }

    /// Side of the map of which the position table is.
    pub(super) fn grid(&self) -> usize {
        self.img_size / self.patch_size
    }

    /// Side of the map in tokens, for a square image of `size` pixels.
    pub fn last_map(&self, size: usize) -> usize {
        size / self.patch_size
    }

    /// How it sees an image.
    pub fn color_tokens(&self) -> ColorTokens {
        let Self { colors, patch_size, variant, .. } = *self;
        ColorTokens { colors, patch_size, variant }
    }
}

#[cfg(test)]
pub(in crate::backbone) mod tests {
    use super::*;

    /// A shape no two numbers of which are alike.
    pub(in crate::backbone) fn config() -> IgptConfig {
        IgptConfig {
            img_size: 20,
            patch_size: 4,
            colors: 9,
            variant: Variant::Autoregressive,
            embed_dim: 12,
            depth: 6,
            num_heads: 3,
            feature_block: 2,
            norm_eps: 1e-4,
        }
    }

    #[test]
    fn sizes_and_words() {
        let config = config();
        config.validate().unwrap();
        assert_eq!((config.grid(), config.last_map(39)), (5, 9));
        let tokens = ColorTokens { colors: 9, patch_size: 4, variant: Variant::Autoregressive };
        assert_eq!(config.color_tokens(), tokens);
        let expected = "6 blocks, width 12, 9 colors of 4 x 4 pixels, autoregressive, features \
                        after block 2";
        assert_eq!(config.describe(), expected);
        let bert = IgptConfig { variant: Variant::Bert, ..config };
        assert!(bert.describe().contains(" BERT, "), "{}", bert.describe());
    }

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        type Mistake<'a> = (&'a dyn Fn(&mut IgptConfig), &'a str);
        let cases: [Mistake<'_>; 12] = [
            (&|config| config.patch_size = 0, "`patch_size` is 0: it must be between 1 and 64"),
            (&|config| config.embed_dim = 1 << 17, "`embed_dim` is 131072: "),
            (&|config| config.depth = 10_001, "`depth` is 10001: it must be between 1 and 10000"),
            (&|config| config.img_size = 1 << 17, "`img_size` is 131072: "),
            (&|config| config.img_size = 3, "`img_size` is 3: it holds no patch of 4 pixels"),
            (
                &|config| config.feature_block = 0,
                "`feature_block` is 0: it must be between 1 and 6",
            ),
            (&|config| config.feature_block = 7, "`feature_block` is 7: "),
            (&|config| config.colors = 1, "`colors` is 1: it must be between 2 and 65536"),
            (&|config| config.colors = 65_537, "`colors` is 65537: "),
            (&|config| config.num_heads = 5, "`num_heads` is 5: it must divide `embed_dim`"),
            (&|config| config.norm_eps = 0.0, "`norm_eps` is 0: "),
            (
                &|config| (config.embed_dim, config.depth) = (60_000, 10_000),
                "`depth` is 10000: that makes 4.3e14 parameters",
            ),
        ];
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let error = config.validate().expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let last = IgptConfig { feature_block: 6, colors: 2, img_size: 4, ..config() };
        last.validate().unwrap();
    }

    #[test]
    fn images_are_bounded() {
        let config = config();
        for sides in [[4, 4], [4, 65_536], [512, 512]] {
            config.check_image("crop", sides).unwrap();
        }
        for (sides, expected) in [
            ([3, 32], "`crop` is 3: it must be between a patch of 4 and 65536 pixels"),
            ([4, 65_537], "`crop` is 65537: "),
            ([516, 512], "`crop` is 516 x 512: its 16512 tokens have 272646144 pairs"),
        ] {
            let error = config.check_image("crop", sides).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
