//! The shape of a convolutional vision transformer.

use esvit_settings::{SettingError, check, settings};

use crate::backbone::config::dashed;
use crate::backbone::{CHANNELS, Stage};
use crate::limits::{self, check_count};
use crate::ops::Filter;

/// `eps` of LayerNorm in the official code.
pub const NORM_EPS: f64 = 1e-5;

settings! {
    /// The shape of a convolutional vision transformer.
    pub struct CvtConfig {
        /// Side of the image in pixels that it is made for. Inputs may have any size.
        #[serde(default = "img_size")]
        pub img_size: usize,
        /// Width of every stage.
        pub embed_dims: Vec<usize>,
        /// Number of blocks per stage.
        pub depths: Vec<usize>,
        /// Number of attention heads per stage.
        pub num_heads: Vec<usize>,
        /// Side of the convolution's filter that makes the tokens of each stage.
        pub patch_sizes: Vec<usize>,
        /// Stride of this convolution.
        pub patch_strides: Vec<usize>,
        /// Zeros that it adds on every side.
        pub patch_paddings: Vec<usize>,
        /// Side of each stage's windows in tokens; a map with a shorter side has windows of that.
        pub window_sizes: Vec<usize>,
        /// Width of an MLP's hidden layer per stage, as a multiple of the stage's width.
        pub mlp_ratios: Vec<f64>,
        /// Whether three convolutions of 3 x 3, with batch normalization, make the tokens of the
        /// first stage in place of its own one.
        #[serde(default)]
        pub res_stem: bool,
        /// `eps` of every LayerNorm.
        #[serde(default = "norm_eps")]
        pub norm_eps: f64,
    }
}

fn img_size() -> usize {
    224
}

fn norm_eps() -> f64 {
    NORM_EPS
}

/// Strides of the stem's convolutions.
const STEM_STRIDES: [usize; 3] = [2, 1, 2];

impl CvtConfig {
    /// Checks that the settings fit together and that no size is absurd.
    ///
    /// # Errors
    /// Names the first invalid one.
    pub fn validate(&self) -> Result<(), SettingError> {
        let depths = &self.depths;
        limits::check_depths("depths", depths)?;
        let stages = depths.len();
        let one_each =
            |key: &str, count: usize| limits::check_one_each(key, count, ("depths", stages));
        for (key, list, most) in [
            ("embed_dims", &self.embed_dims, limits::WIDTH),
            ("num_heads", &self.num_heads, limits::WIDTH),
            ("patch_sizes", &self.patch_sizes, limits::PATCH),
            ("patch_strides", &self.patch_strides, limits::PATCH),
            ("window_sizes", &self.window_sizes, limits::WINDOW),
        ] {
            one_each(key, list.len())?;
            for (stage, &value) in list.iter().enumerate() {
                check_count(&format!("{key}[{stage}]"), value, most)?;
            }
        }
        one_each("patch_paddings", self.patch_paddings.len())?;
        one_each("mlp_ratios", self.mlp_ratios.len())?;
        (0..stages).try_for_each(|stage| self.validate_stage(stage))?;
        limits::check_norm_eps(self.norm_eps)?;
        let size = self.img_size;
        check_count("img_size", size, limits::SIDE)?;
        check(self.last_map(size) > 0, "img_size", size, "it leaves no token in the last stage")?;
        limits::check_parameters("depths", format_args!("{depths:?}"), self.parameters())
    }

    /// Checks that the settings of a stage fit together.
    fn validate_stage(&self, stage: usize) -> Result<(), SettingError> {
        let of_stage = |key: &str| format!("{key}[{stage}]");
        let (width, heads) = (self.embed_dims[stage], self.num_heads[stage]);
        let what = format!("the stage's width {width}");
        limits::check_heads(&of_stage("num_heads"), heads, width, what)?;
        let (patch, padding) = (self.patch_sizes[stage], self.patch_paddings[stage]);
        let need = format!("it must be less than the filter's side {patch}");
        check(padding < patch, &of_stage("patch_paddings"), padding, need)?;
        limits::check_ratio(&of_stage("mlp_ratios"), self.mlp_ratios[stage], width)
    }

    /// Number of weights in blocks and convolutions, biases and norms apart.
    fn parameters(&self) -> f64 {
        let stage = |stage: usize| {
            let width = self.embed_dims[stage] as f64;
            let block = width * (9.0 + width * (4.0 + 2.0 * self.mlp_ratios[stage]));
            let filters = self.filters(stage);
            let filters = filters.iter().map(|filter| filter.values() as f64 * width);
            filters.sum::<f64>() + self.depths[stage] as f64 * block
        };
        (0..self.stages()).map(stage).sum()
    }

    /// Checks that an image of this size has tokens in every stage, and no more of them than can be
    /// computed; `key` says whose it is.
    pub(crate) fn check_image(&self, key: &str, sides: [usize; 2]) -> Result<(), SettingError> {
        let most = limits::SIDE;
        for side in sides {
            let need =
                format!("it must leave a token in every stage, and be at most {most} pixels");
            check(side <= most && self.last_map(side) > 0, key, side, need)?;
        }
        let mut map = sides;
        for stage in 0..self.stages() {
            map = map.map(|side| self.count(stage, side));
            let window = self.window(stage, map);
            let padded = map.map(|side| side.next_multiple_of(window));
            let pairs = padded[0] * padded[1] * window * window;
            let values = map[0] * map[1] * self.patch_sizes[stage].pow(2);
            let what = format!("its windows have {pairs} pairs of tokens");
            limits::check_work(key, sides, pairs, what)?;
            let what = format!("its patches have {values} tokens");
            limits::check_work(key, sides, values, what)?;
        }
        Ok(())
    }

    /// The stages, first to last.
    pub(crate) fn stage_table(&self) -> Vec<Stage> {
        let stage = |(stage, &blocks): (usize, &usize)| Stage {
            blocks,
            width: self.embed_dims[stage],
            stride: self.stride(stage),
            heads: self.num_heads[stage],
        };
        self.depths.iter().enumerate().map(stage).collect()
    }

    /// The shape in a few words.
    pub(crate) fn describe(&self) -> String {
        let [depths, widths, windows] = [&self.depths, &self.embed_dims, &self.window_sizes]
            .map(|list| dashed(list.iter().copied()));
        let stem = if self.res_stem { ", a stem of convolutions" } else { "" };
        format!("{depths} blocks, widths {widths}, windows {windows}{stem}")
    }

    /// Number of stages.
    pub fn stages(&self) -> usize {
        self.depths.len()
    }

    /// The filters of the convolutions that make the tokens of a stage.
    pub(super) fn filters(&self, stage: usize) -> Vec<Filter> {
        let before = stage.checked_sub(1).map_or(CHANNELS, |before| self.embed_dims[before]);
        if stage == 0 && self.res_stem {
            let width = self.embed_dims[stage];
            let inputs = [before, width, width].into_iter();
            let filter = |(channels, stride)| Filter { channels, side: 3, stride, padding: 1 };
            return inputs.zip(STEM_STRIDES).map(filter).collect();
        }
        let [side, stride, padding] =
            [&self.patch_sizes, &self.patch_strides, &self.patch_paddings].map(|list| list[stage]);
        vec![Filter { channels: before, side, stride, padding }]
    }

    /// Side of the windows of a map.
    fn window(&self, stage: usize, [height, width]: [usize; 2]) -> usize {
        self.window_sizes[stage].min(height).min(width)
    }

    pub(super) fn hidden_width(&self, stage: usize) -> usize {
        (self.embed_dims[stage] as f64 * self.mlp_ratios[stage]) as usize
    }

    /// Stride of a stage: side of a token in pixels.
    fn stride(&self, stage: usize) -> usize {
        let filters = (0..=stage).flat_map(|stage| self.filters(stage));
        filters.map(|filter| filter.stride).fold(1, usize::saturating_mul)
    }

    /// Tokens along a side of a stage's map, given those of the map before; 0 when none is left.
    fn count(&self, stage: usize, length: usize) -> usize {
        let filters = self.filters(stage);
        filters.iter().fold(length, |length, filter| filter.positions([length; 2])[0])
    }

    /// Side in pixels of the smallest images that leave a token in every stage, as a multiple of the
    /// first stage's stride.
    pub(crate) fn least_side(&self) -> usize {
        let filters: Vec<Filter> =
            (0..self.stages()).flat_map(|stage| self.filters(stage)).collect();
        // Tokens that a filter needs for this many positions; some may be padding.
        let needed = |positions: usize, filter: &Filter| {
            let padded = (positions - 1).saturating_mul(filter.stride).saturating_add(filter.side);
            padded.saturating_sub(2 * filter.padding).max(1)
        };
        let least = filters.iter().rev().fold(1, needed);
        least.checked_next_multiple_of(self.stride(0)).unwrap_or(least)
    }

    /// Height and width in tokens of the maps of a stage, for an image of `[height, width]` pixels.
    pub(crate) fn map(&self, stage: usize, sides: [usize; 2]) -> [usize; 2] {
        sides.map(|side| (0..=stage).fold(side, |length, stage| self.count(stage, length)))
    }

    /// Side of the last map in tokens, for a square image of `size` pixels; 0 when none is left.
    pub fn last_map(&self, size: usize) -> usize {
        (0..self.stages()).fold(size, |length, stage| self.count(stage, length))
    }
}

#[cfg(test)]
pub(in crate::backbone) mod tests {
    use super::*;

    /// A shape of three stages, no two numbers of which are alike where that can be.
    pub(in crate::backbone) fn config() -> CvtConfig {
        CvtConfig {
            img_size: 40,
            embed_dims: vec![6, 8, 9],
            depths: vec![1, 2, 1],
            num_heads: vec![1, 2, 3],
            patch_sizes: vec![7, 3, 3],
            patch_strides: vec![4, 2, 2],
            patch_paddings: vec![2, 1, 1],
            window_sizes: vec![3, 4, 5],
            mlp_ratios: vec![1.5, 2.0, 3.0],
            res_stem: false,
            norm_eps: 1e-3,
        }
    }

    /// Maps of 10, 5 and 3 tokens a side.
    #[test]
    fn sizes_by_stage() {
        let config = config();
        let maps = [40, 10, 5].into_iter().enumerate();
        let found: Vec<usize> = maps.map(|(stage, length)| config.count(stage, length)).collect();
        assert_eq!(found, [10, 5, 3]);
        assert_eq!([0, 1, 2].map(|stage| config.stride(stage)), [4, 8, 16]);
        assert_eq!([0, 1, 2].map(|stage| config.hidden_width(stage)), [9, 16, 27]);
        assert_eq!([40, 41, 3, 2, 67].map(|size| config.last_map(size)), [3, 3, 1, 0, 5]);
        // Three pixels are one token in every stage; a token is of four.
        assert_eq!(config.least_side(), 4);
        let unpadded = CvtConfig { patch_paddings: vec![2, 0, 0], ..config.clone() };
        assert_eq!([27, 26].map(|size| unpadded.last_map(size)), [1, 0]);
        assert_eq!(unpadded.least_side(), 28);
        assert_eq!([[7, 5], [3, 8], [2, 1]].map(|map| config.window(1, map)), [4, 3, 1]);
        // The stem halves twice, whatever the filter of the first stage would do.
        let stem = CvtConfig { res_stem: true, ..config };
        assert_eq!([40, 41, 3, 1].map(|size| stem.count(0, size)), [10, 11, 1, 1]);
        assert_eq!((stem.stride(0), stem.stride(2)), (4, 16));
        assert_eq!(
            stem.describe(),
            "1-2-1 blocks, widths 6-8-9, windows 3-4-5, a stem of convolutions"
        );
    }

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        config().validate().unwrap();
        type Mistake<'a> = (&'a dyn Fn(&mut CvtConfig), &'a str);
        let cases: [Mistake<'_>; 21] = [
            (&|config| config.depths = vec![], "`depths` is []: every stage needs a block"),
            (&|config| config.depths[1] = 0, "`depths` is [1, 0, 1]: every stage needs a block"),
            (&|config| config.depths = vec![1; 17], "`depths` is a list of 17: a network has at"),
            (
                &|config| config.depths[2] = usize::MAX,
                "`depths` is [1, 2, 18446744073709551615]: a",
            ),
            (
                &|config| config.embed_dims = vec![6, 8],
                "`embed_dims` is a list of 2: `depths` has 3 stages, give one number for each",
            ),
            (&|config| config.num_heads.push(1), "`num_heads` is a list of 4: "),
            (&|config| config.patch_sizes.clear(), "`patch_sizes` is a list of 0: "),
            (&|config| config.patch_paddings.clear(), "`patch_paddings` is a list of 0: "),
            (&|config| config.mlp_ratios.clear(), "`mlp_ratios` is a list of 0: "),
            (
                &|config| config.embed_dims[1] = 1 << 17,
                "`embed_dims[1]` is 131072: it must be between 1 and 65536",
            ),
            (&|config| config.num_heads[0] = 0, "`num_heads[0]` is 0: it must be between 1 and"),
            (
                &|config| config.num_heads[1] = 3,
                "`num_heads[1]` is 3: it must divide the stage's width 8",
            ),
            (&|config| config.patch_sizes[2] = 65, "`patch_sizes[2]` is 65: "),
            (&|config| config.patch_strides[0] = 0, "`patch_strides[0]` is 0: "),
            (
                &|config| config.patch_paddings[1] = 3,
                "`patch_paddings[1]` is 3: it must be less than the filter's side 3",
            ),
            (&|config| config.window_sizes[0] = 65, "`window_sizes[0]` is 65: "),
            (
                &|config| config.mlp_ratios[2] = f64::NAN,
                "`mlp_ratios[2]` is NaN: it must be positive and at most 64",
            ),
            (&|config| config.mlp_ratios[0] = 0.1, "`mlp_ratios[0]` is 0.1: "),
            (&|config| config.norm_eps = 0.0, "`norm_eps` is 0: "),
            (
                &|config| config.img_size = 2,
                "`img_size` is 2: it leaves no token in the last stage",
            ),
            (
                &|config| (config.embed_dims[0], config.depths[0]) = (60_000, 9_000),
                "`depths` is [9000, 2, 1]: that makes 2.3e14 parameters, the most is 6.9e10",
            ),
        ];
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let error = config.validate().expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        CvtConfig { img_size: 3, patch_paddings: vec![2, 0, 0], ..config() }
            .validate()
            .unwrap_err();
        CvtConfig { img_size: 1, res_stem: true, ..config() }.validate().unwrap();
    }

    #[test]
    fn weights_are_counted() {
        for res_stem in [false, true] {
            let config = CvtConfig { res_stem, ..config() };
            let (_, list) = crate::BackboneConfig::Cvt(config.clone()).build(0.0);
            let count: usize = list.iter().filter(|p| p.shape.len() > 1).map(|p| p.len()).sum();
            assert_eq!(config.parameters(), count as f64);
        }
    }

    #[test]
    fn images_are_bounded() {
        let config = config();
        for sides in [[3, 3], [3, 65_536], [5_000, 10_000]] {
            config.check_image("crop", sides).unwrap();
        }
        for (sides, expected) in [
            ([2, 32], "`crop` is 2: it must leave a token in every stage, and be at most 65536"),
            ([32, 65_537], "`crop` is 65537: "),
            ([60_000, 60_000], "`crop` is 60000 x 60000: its windows have 2025000000 pairs of"),
        ] {
            let error = config.check_image("crop", sides).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let coarse = CvtConfig { patch_sizes: vec![64, 3, 3], ..config };
        let error = coarse.check_image("crop", [2_000, 2_000]).unwrap_err().to_string();
        assert!(error.starts_with("`crop` is 2000 x 2000: its patches have "), "{error}");
    }
}
