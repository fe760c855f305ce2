//! The shape of a vision transformer.

use esvit_settings::{SettingError, check, settings, words};
use serde::{Deserialize, Serialize};

use crate::backbone::Stage;
use crate::limits::{self, check_count};

/// `eps` of LayerNorm in the official code of DeiT, DINO and EsViT, and in timm.
pub const NORM_EPS: f64 = 1e-6;

/// The tokens that have a row of the position table, and what stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionTable {
    /// The class token (and the distillation token), then the patches: DeiT, DINO, DINOv2.
    #[default]
    ClassAndPatches,
    /// The patches alone: DeiT III, and timm's networks with registers.
    Patches,
    /// As `class_and_patches`, but never trained: sines and cosines of a patch's row and column, and
    /// zeros for the tokens before them: MoCo v3.
    SineCosine,
    /// No table: queries and keys of patches are turned by their positions (RoPE): DINOv3.
    Rotary,
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

/// What makes tokens of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchEmbedding {
    /// A linear layer of every patch.
    #[default]
    Linear,
    /// The same, never trained: MoCo v3.
    Frozen,
    /// Four convolutions of stride 2, each with batch normalization and ReLU, and a linear layer
    /// (Xiao et al., 2021): MoCo v3.
    ConvStem,
}

/// Which of queries, keys and values have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkvBias {
    /// All of them.
    #[default]
    All,
    /// Queries and values: DINOv3 in `transformers`.
    QueriesAndValues,
    /// None of them: DINOv3 in timm.
    None,
}

/// The function between the layers of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MlpKind {
    /// GELU.
    #[default]
    Gelu,
    /// SwiGLU (Shazeer, 2020): the first layer has twice the outputs, and the SiLU of one half is
    /// multiplied by the other one. DINOv2's giant.
    SwiGlu,
}

/// The norm before an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpNorm {
    /// Layer normalization.
    #[default]
    LayerNorm,
    /// Batch normalization over all tokens: MoCo v3's ViT-BN.
    BatchNorm,
}

words! {
    PositionTable: "class_and_patches", "patches", "sine_cosine", "rotary";
    PositionResize: "esvit", "dino", "timm";
    PatchEmbedding: "linear", "frozen", "conv_stem";
    QkvBias: "all", "queries_and_values", "none";
    MlpKind: "gelu", "swiglu";
    MlpNorm: "layer_norm", "batch_norm";
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
        /// Width of an MLP's hidden layer, as a multiple of `embed_dim`. Of SwiGLU it is two thirds of
        /// that, rounded up to a multiple of 8.
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
        /// The tokens that have a row of the position table, and what stands in it.
        #[serde(default)]
        pub position_table: PositionTable,
        /// How the position table is resized.
        #[serde(default)]
        pub position_resize: PositionResize,
        /// What makes tokens of an image.
        #[serde(default)]
        pub patch_embedding: PatchEmbedding,
        /// Which of queries, keys and values have a bias.
        #[serde(default)]
        pub qkv_bias: QkvBias,
        /// The function between the layers of an MLP.
        #[serde(default)]
        pub mlp: MlpKind,
        /// The norm before an MLP.
        #[serde(default)]
        pub mlp_norm: MlpNorm,
    }
}

fn norm_eps() -> f64 {
    NORM_EPS
}

/// Most tokens before those of a map.
const PREFIX: usize = 64;

/// Side in pixels of a token that four convolutions of stride 2 make.
const STEM_STRIDE: usize = 16;

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
        let what = format!("`embed_dim`, which is {width}");
        limits::check_heads("num_heads", heads, width, what)?;
        limits::check_mlp_ratio(self.mlp_ratio, width)?;
        limits::check_norm_eps(self.norm_eps)?;
        let registers = self.register_tokens;
        let need = format!("it must be at most {}", PREFIX - 2);
        check(registers <= PREFIX - 2, "register_tokens", registers, need)?;
        let (size, patch) = (self.img_size, self.patch_size);
        check(size >= patch, "img_size", size, format!("it holds no patch of {patch} pixels"))?;
        self.check_positions()?;
        self.check_stem()?;
        limits::check_parameters("depth", self.depth, self.parameters())
    }

    /// Checks that the channels can be shared among sines and cosines of two axes.
    fn check_positions(&self) -> Result<(), SettingError> {
        let (width, heads) = (self.embed_dim, self.num_heads);
        match self.position_table {
            PositionTable::ClassAndPatches | PositionTable::Patches => Ok(()),
            PositionTable::SineCosine => {
                let need = "`position_table` is `sine_cosine`, which needs a multiple of 4";
                check(width.is_multiple_of(4), "embed_dim", width, need)
            }
            PositionTable::Rotary => {
                let need = format!(
                    "`position_table` is `rotary`, which needs heads of a multiple of 4 channels, \
                     these have {}",
                    width / heads
                );
                check((width / heads).is_multiple_of(4), "num_heads", heads, need)
            }
        }
    }

    /// Checks that the convolutions of the stem make patches, and have whole numbers of channels.
    fn check_stem(&self) -> Result<(), SettingError> {
        let (width, patch) = (self.embed_dim, self.patch_size);
        if self.patch_embedding != PatchEmbedding::ConvStem {
            return Ok(());
        }
        let need = format!("`patch_embedding` is `conv_stem`, which has patches of {STEM_STRIDE}");
        check(patch == STEM_STRIDE, "patch_size", patch, need)?;
        let need = "`patch_embedding` is `conv_stem`, which needs a multiple of 8";
        check(width.is_multiple_of(8), "embed_dim", width, need)
    }

    /// Whether a layer normalizes by statistics of the batch.
    pub(crate) fn has_batch_norm(&self) -> bool {
        self.mlp_norm == MlpNorm::BatchNorm || self.patch_embedding == PatchEmbedding::ConvStem
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
        limits::check_sides(key, sides, patch, format_args!("a patch of {patch}"))?;
        let [height, width] = sides;
        let tokens = self.prefix() + (height / patch) * (width / patch);
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
        let Self { depth, embed_dim, patch_size, register_tokens, .. } = self;
        let registers = match register_tokens {
            0 => String::new(),
            count => format!(", {count} registers"),
        };
        let forms = [
            (self.position_table == PositionTable::SineCosine, ", sine-cosine positions"),
            (self.position_table == PositionTable::Rotary, ", rotary positions"),
            (self.patch_embedding == PatchEmbedding::Frozen, ", frozen patch embedding"),
            (self.patch_embedding == PatchEmbedding::ConvStem, ", convolutional stem"),
            (self.mlp == MlpKind::SwiGlu, ", SwiGLU"),
            (self.mlp_norm == MlpNorm::BatchNorm, ", batch normalization"),
        ];
        let forms: String = forms.iter().filter(|(has, _)| *has).map(|(_, form)| *form).collect();
        format!("{depth} blocks, width {embed_dim}, patch {patch_size}{registers}{forms}")
    }

    /// Tokens before those of the map: class, distillation and registers.
    pub fn prefix(&self) -> usize {
        1 + usize::from(self.distillation_token) + self.register_tokens
    }

    /// Tokens before those of the map that have a row of the position table.
    pub(super) fn placed_prefix(&self) -> usize {
        match self.position_table {
            PositionTable::ClassAndPatches | PositionTable::SineCosine => {
                1 + usize::from(self.distillation_token)
            }
            PositionTable::Patches | PositionTable::Rotary => 0,
        }
    }

    /// Side of the map of which the position table is.
    pub(super) fn grid(&self) -> usize {
        self.img_size / self.patch_size
    }

    /// Rows of the position table, 0 for none.
    pub(super) fn table_rows(&self) -> usize {
        match self.position_table {
            PositionTable::Rotary => 0,
            _ => self.placed_prefix() + self.grid() * self.grid(),
        }
    }

    /// Width of an MLP's hidden layer.
    pub fn hidden_width(&self) -> usize {
        let width = (self.embed_dim as f64 * self.mlp_ratio) as usize;
        match self.mlp {
            MlpKind::Gelu => width,
            // As DINOv2 has it, so that there are as many parameters as with GELU.
            MlpKind::SwiGlu => (width * 2 / 3).max(1).next_multiple_of(8),
        }
    }

    /// Outputs of an MLP's first layer.
    pub(super) fn first_outputs(&self) -> usize {
        match self.mlp {
            MlpKind::Gelu => self.hidden_width(),
            MlpKind::SwiGlu => 2 * self.hidden_width(),
        }
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
            patch_embedding: PatchEmbedding::Linear,
            qkv_bias: QkvBias::All,
            mlp: MlpKind::Gelu,
            mlp_norm: MlpNorm::LayerNorm,
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
        let table_of = |position_table| {
            let config = VitConfig { position_table, ..self::config() };
            (config.prefix(), config.placed_prefix(), config.table_rows())
        };
        assert_eq!(table_of(PositionTable::SineCosine), (6, 2, 27));
        assert_eq!(table_of(PositionTable::Rotary), (6, 0, 0));
    }

    /// Two thirds of 18 are 12, and the next multiple of 8 is 16; of 1536 x 4 they are 4096.
    #[test]
    fn hidden_channels_of_swiglu() {
        let gated = VitConfig { mlp: MlpKind::SwiGlu, ..config() };
        assert_eq!((gated.hidden_width(), gated.first_outputs()), (16, 32));
        let giant = VitConfig { embed_dim: 1536, mlp_ratio: 4.0, ..gated };
        assert_eq!((giant.hidden_width(), giant.first_outputs()), (4096, 8192));
        assert_eq!(config().first_outputs(), 18);
    }

    #[test]
    fn forms_are_told() {
        let plain = VitConfig { register_tokens: 0, ..config() };
        assert_eq!(plain.describe(), "2 blocks, width 12, patch 8");
        assert!(!plain.has_batch_norm());
        let form = |change: fn(&mut VitConfig)| {
            let mut config = config();
            change(&mut config);
            let text = config.describe();
            let form = text.strip_prefix("2 blocks, width 12, patch 8, 4 registers").unwrap();
            (form.to_owned(), config.has_batch_norm())
        };
        for (found, form, has_batch_norm) in [
            (form(|c| c.position_table = PositionTable::Rotary), ", rotary positions", false),
            (
                form(|c| c.position_table = PositionTable::SineCosine),
                ", sine-cosine positions",
                false,
            ),
            (
                form(|c| c.patch_embedding = PatchEmbedding::Frozen),
                ", frozen patch embedding",
                false,
            ),
            (form(|c| c.patch_embedding = PatchEmbedding::ConvStem), ", convolutional stem", true),
            (form(|c| c.mlp = MlpKind::SwiGlu), ", SwiGLU", false),
            (form(|c| c.mlp_norm = MlpNorm::BatchNorm), ", batch normalization", true),
        ] {
            assert_eq!(found, (form.to_owned(), has_batch_norm));
        }
    }

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        config().validate().unwrap();
        type Mistake<'a> = (&'a dyn Fn(&mut VitConfig), &'a str);
        let cases: [Mistake<'_>; 17] = [
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
            (
                &|config| {
                    (config.embed_dim, config.position_table) = (18, PositionTable::SineCosine);
                },
                "`embed_dim` is 18: `position_table` is `sine_cosine`, which needs a multiple of 4",
            ),
            (
                &|config| {
                    (config.embed_dim, config.position_table) = (18, PositionTable::Rotary);
                },
                "`num_heads` is 3: `position_table` is `rotary`, which needs heads of a multiple",
            ),
            (
                &|config| config.patch_embedding = PatchEmbedding::ConvStem,
                "`patch_size` is 8: `patch_embedding` is `conv_stem`, which has patches of 16",
            ),
            (
                &|config| {
                    config.patch_embedding = PatchEmbedding::ConvStem;
                    config.patch_size = 16;
                },
                "`embed_dim` is 12: `patch_embedding` is `conv_stem`, which needs a multiple of 8",
            ),
        ];
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let error = config.validate().expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        VitConfig { img_size: 8, register_tokens: 62, ..config() }.validate().unwrap();
        VitConfig { position_table: PositionTable::Rotary, ..config() }.validate().unwrap();
        VitConfig { position_table: PositionTable::SineCosine, ..config() }.validate().unwrap();
        let stem = PatchEmbedding::ConvStem;
        let wide = VitConfig { patch_embedding: stem, patch_size: 16, embed_dim: 24, ..config() };
        wide.validate().unwrap();
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
            let is_work = sides == [1024, 1024];
            assert_eq!(error.ends_with("\nhint: give a smaller `crop`"), is_work, "{error}");
        }
    }
}
