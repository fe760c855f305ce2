//! The shape of a vision transformer.

use esvit_settings::{SettingError, check, settings, words};
use serde::{Deserialize, Serialize};

use crate::backbone::Stage;
use crate::limits::{self, check_count};

/// `eps` of LayerNorm in the official code of DeiT, DINO and EsViT, and in timm.
pub const NORM_EPS: f64 = 1e-6;

/// The tokens that have a row of the position table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionTable {
    /// The class token (and the distillation token), then the patches: DeiT, DINO, DINOv2.
    #[default]
    ClassAndPatches,
    /// The patches alone: DeiT III, and timm's networks with registers.
    Patches,
}

/// How the position table is resized to the map of an image of another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionResize {
    /// Bicubic, to the map: EsViT.
    #[default]
    Esvit,
    /// Bicubic, by a scale to which DINO and DINOv2 add a tenth of a token.
    Dino,
    /// Bicubic with antialiasing, to the map: timm, and DINOv2 with registers.
    Timm,
}

words! {
    PositionTable: "class_and_patches", "patches";
    PositionResize: "esvit", "dino", "timm";
}

settings! {
    /// The shape of a vision transformer.
    pub struct VitConfig {
        /// Side of the image in pixels, for whose map the position table is made. Inputs may have any
        /// size.
        pub img_size: usize,
        /// Side of a patch in pixels.
        pub patch_size: usize,
        /// Width of the tokens.
        pub embed_dim: usize,
        /// Number of blocks.
        pub depth: usize,
        /// Number of attention heads.
        pub num_heads: usize,
        /// Width of an MLP's hidden layer, as a multiple of `embed_dim`.
        pub mlp_ratio: f64,
        /// `eps` of every LayerNorm.
        #[serde(default = "norm_eps")]
        pub norm_eps: f64,
        /// Number of register tokens.
        #[serde(default)]
        pub register_tokens: usize,
        /// Whether there is a distillation token, as in DeiT.
        #[serde(default)]
        pub distillation_token: bool,
        /// Whether branches are scaled, channel by channel (LayerScale).
        #[serde(default)]
        pub layer_scale: bool,
        /// The tokens that have a row of the position table.
        #[serde(default)]
        pub position_table: PositionTable,
        /// How the position table is resized.
        #[serde(default)]
        pub position_resize: PositionResize,
    }
}

fn norm_eps() -> f64 {
    NORM_EPS
}

/// Most tokens before those of a map.
const PREFIX: usize = 64;

impl VitConfig {
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
        ] {
            check_count(key, value, most)?;
        }
        let (heads, width) = (self.num_heads, self.embed_dim);
        let need = format!("it must divide `embed_dim`, which is {width}");
        check(heads > 0 && width.is_multiple_of(heads), "num_heads", heads, need)?;
        limits::check_mlp_ratio(self.mlp_ratio, width)?;
        limits::check_norm_eps(self.norm_eps)?;
        let registers = self.register_tokens;
        let need = format!("it must be at most {}", PREFIX - 2);
        check(registers <= PREFIX - 2, "register_tokens", registers, need)?;
        let (size, patch) = (self.img_size, self.patch_size);
        check(size >= patch, "img_size", size, format!("it holds no patch of {patch} pixels"))?;
        limits::check_parameters("depth", self.depth, self.parameters())
    }

    /// Number of weights, biases apart.
    fn parameters(&self) -> f64 {
        let width = self.embed_dim as f64;
        let block = width * width * (4.0 + 2.0 * self.mlp_ratio);
        let patch = 3.0 * (self.patch_size as f64).powi(2) * width;
        self.depth as f64 * block + patch + self.table_rows() as f64 * width
    }

    /// Checks that attention over an image of this size can be computed; `key` says whose it is.
    pub(crate) fn check_image(&self, key: &str, sides: [usize; 2]) -> Result<(), SettingError> {
        let patch = self.patch_size;
        let need = format!("it must be between a patch of {patch} and {} pixels", limits::SIDE);
        for side in sides {
            check((patch..=limits::SIDE).contains(&side), key, side, need.clone())?;
        }
        let [height, width] = sides;
        let tokens = self.prefix() + (height / patch) * (width / patch);
        let pairs = tokens * tokens;
        let need = format!("its {tokens} tokens have {pairs} pairs, the most is {}", limits::PAIRS);
        check(pairs <= limits::PAIRS, key, format_args!("{height} x {width}"), need)
    }

    /// The stages: one.
    pub(crate) fn stage_table(&self) -> Vec<Stage> {
        let Self { depth, embed_dim, patch_size, num_heads, .. } = *self;
        vec![Stage { blocks: depth, width: embed_dim, stride: patch_size, heads: num_heads }]
    }

    /// The shape in a few words.
    pub(crate) fn describe(&self) -> String {
        let Self { depth, embed_dim, patch_size, register_tokens, .. } = self;
        let registers = match register_tokens {
            0 => String::new(),
            count => format!(", {count} registers"),
        };
        format!("{depth} blocks, width {embed_dim}, patch {patch_size}{registers}")
    }

    /// Tokens before those of the map: class, distillation and registers.
    pub fn prefix(&self) -> usize {
        1 + usize::from(self.distillation_token) + self.register_tokens
    }

    /// Tokens before those of the map that have a row of the position table.
    pub(super) fn placed_prefix(&self) -> usize {
        match self.position_table {
            PositionTable::ClassAndPatches => 1 + usize::from(self.distillation_token),
            PositionTable::Patches => 0,
        }
    }

    /// Side of the map of which the position table is.
    pub(super) fn grid(&self) -> usize {
        self.img_size / self.patch_size
    }

    /// Rows of the position table.
    pub(super) fn table_rows(&self) -> usize {
        self.placed_prefix() + self.grid() * self.grid()
    }

    /// Width of an MLP's hidden layer.
    pub(super) fn hidden_width(&self) -> usize {
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }

    /// Side of the map in tokens, for a square image of `size` pixels.
    pub fn last_map(&self, size: usize) -> usize {
        size / self.patch_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shape no two numbers of which are alike.
    fn config() -> VitConfig {
        VitConfig {
            img_size: 40,
            patch_size: 8,
            embed_dim: 12,
            depth: 2,
            num_heads: 3,
            mlp_ratio: 1.5,
            norm_eps: 1e-5,
            register_tokens: 4,
            distillation_token: true,
            layer_scale: true,
            position_table: PositionTable::ClassAndPatches,
            position_resize: PositionResize::Timm,
        }
    }

    #[test]
    fn tokens_by_kind() {
        let config = config();
        assert_eq!((config.prefix(), config.placed_prefix(), config.grid()), (6, 2, 5));
        assert_eq!((config.table_rows(), config.hidden_width()), (27, 18));
        let plain = VitConfig {
            register_tokens: 0,
            distillation_token: false,
            position_table: PositionTable::Patches,
            ..config
        };
        assert_eq!((plain.prefix(), plain.placed_prefix(), plain.table_rows()), (1, 0, 25));
        assert_eq!(plain.last_map(39), 4);
    }

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        config().validate().unwrap();
        type Mistake<'a> = (&'a dyn Fn(&mut VitConfig), &'a str);
        let cases: [Mistake<'_>; 13] = [
            (&|config| config.patch_size = 0, "`patch_size` is 0: it must be between 1 and 64"),
            (&|config| config.patch_size = 65, "`patch_size` is 65: "),
            (&|config| config.embed_dim = 1 << 17, "`embed_dim` is 131072: "),
            (&|config| config.depth = 0, "`depth` is 0: it must be between 1 and 10000"),
            (&|config| config.depth = 10_001, "`depth` is 10001: "),
            (&|config| config.img_size = 7, "`img_size` is 7: it holds no patch of 8 pixels"),
            (&|config| config.img_size = 1 << 17, "`img_size` is 131072: "),
            (&|config| config.num_heads = 0, "`num_heads` is 0: it must divide `embed_dim`"),
            (&|config| config.num_heads = 5, "`num_heads` is 5: it must divide `embed_dim`"),
            (&|config| config.mlp_ratio = 0.01, "`mlp_ratio` is 0.01: "),
            (&|config| config.norm_eps = f64::NAN, "`norm_eps` is NaN: "),
            (
                &|config| config.register_tokens = 63,
                "`register_tokens` is 63: it must be at most 62",
            ),
            (
                &|config| (config.embed_dim, config.depth) = (60_000, 10_000),
                "`depth` is 10000: that makes 2.5e14 parameters",
            ),
        ];
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let error = config.validate().expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        VitConfig { img_size: 8, register_tokens: 62, ..config() }.validate().unwrap();
    }

    #[test]
    fn images_are_bounded() {
        let config = VitConfig { register_tokens: 0, distillation_token: false, ..config() };
        for sides in [[8, 8], [8, 65_536], [1016, 1024]] {
            config.check_image("crop", sides).unwrap();
        }
        for (sides, expected) in [
            ([7, 32], "`crop` is 7: it must be between a patch of 8 and 65536 pixels"),
            ([8, 65_537], "`crop` is 65537: "),
            ([1024, 1024], "`crop` is 1024 x 1024: its 16385 tokens have 268468225 pairs"),
        ] {
            let error = config.check_image("crop", sides).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
