//! The shape of a vision longformer.

use esvit_settings::{SettingError, check, settings, words};
use serde::{Deserialize, Serialize};

use super::architecture::{StageShape, Stages};
use crate::backbone::Stage;
use crate::backbone::config::dashed;
use crate::limits::{self, check_count};
use crate::ops::{Border, Neighbors};

/// `eps` of LayerNorm in the official code.
pub const NORM_EPS: f64 = 1e-6;

/// Width of an MLP's hidden layer, as a multiple of the stage's.
pub(super) const MLP_RATIO: usize = 4;

/// How the biases of full attention are resized to the map of an image of another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BiasResize {
    /// The matrix of all pairs of tokens as an image, bicubic: EsViT.
    #[default]
    Pairs,
    /// The table of relative positions as an image, bicubic: neighbors stay neighbors.
    Table,
}

words! {
    BiasResize: "pairs", "table";
}

settings! {
    /// The shape of a vision longformer.
    pub struct VilConfig {
        /// Side of the image in pixels, for whose maps positions are made. Inputs may have any size.
        pub img_size: usize,
        /// The stages as in EsViT's code, such as `l1,h3,d96,n2,s1,g1,p4,f7,a0_l2,...`.
        pub stages: Stages,
        /// What tokens of sparse stages see besides global tokens: -1 their window, 0 the eight around
        /// it, too. With 1 to 8 every layer draws one of the eight for each step of training.
        #[serde(default)]
        pub mode: i32,
        /// Whether modes 1 to 8 are that neighbor, in evaluation as in training.
        #[serde(default)]
        pub fixed_neighbor: bool,
        /// 1 for exact sliding windows, 0 for whole windows, -1 for windows that go on at the opposite
        /// border.
        #[serde(default)]
        pub exact: i32,
        /// How the biases of full attention are resized.
        #[serde(default)]
        pub bias_resize: BiasResize,
        /// `eps` of every LayerNorm.
        #[serde(default = "norm_eps")]
        pub norm_eps: f64,
    }
}

fn norm_eps() -> f64 {
    NORM_EPS
}

/// Most global tokens of a stage.
const GLOBALS: usize = 64;
/// Largest side of a window: there are nine times as many keys.
const WINDOW: usize = 32;

impl VilConfig {
    /// Checks that the settings fit together and that no size is absurd.
    ///
    /// # Errors
    /// Names the first invalid one; a letter of stage 2 is `stages.l2.h`.
    pub fn validate(&self) -> Result<(), SettingError> {
        for (index, stage) in self.stages.iter().enumerate() {
            check_stage(stage, index + 1)?;
        }
        let blocks = self.stages.iter().fold(0usize, |sum, s| sum.saturating_add(s.blocks));
        let need = format!("a network has at most {} blocks, these are {blocks}", limits::BLOCKS);
        check(blocks <= limits::BLOCKS, "stages", &self.stages, need)?;
        check((-1..=8).contains(&self.mode), "mode", self.mode, "it must be between -1 and 8")?;
        let is_known = (-1..=1).contains(&self.exact);
        check(is_known, "exact", self.exact, "it must be between -1 and 1")?;
        let fits = self.exact < 1 || self.mode == 0;
        check(fits, "exact", self.exact, "sliding windows go with `mode` 0 alone")?;
        limits::check_norm_eps(self.norm_eps)?;
        check_count("img_size", self.img_size, limits::SIDE)?;
        let (size, least) = (self.img_size, self.least_side());
        let need = format!("it leaves no token in the last stage, use at least {least} pixels");
        check(size >= least, "img_size", size, need)?;
        self.check_image("img_size", [size; 2])?;
        limits::check_parameters("stages", &self.stages, self.parameters())
    }

    /// Number of weights, biases apart.
    fn parameters(&self) -> f64 {
        let mut inputs = 3.0;
        let mut sum = 0.0;
        for (index, stage) in self.stages.iter().enumerate() {
            let width = stage.width as f64;
            let table = match stage.absolute {
                true => 0.0,
                false => (self.table_rows(index) * stage.heads) as f64,
            };
            let block = width * width * (4 + 2 * MLP_RATIO) as f64 + table;
            sum += inputs * width * (stage.patch as f64).powi(2) + stage.blocks as f64 * block;
            inputs = width;
        }
        sum
    }

    /// Checks that attention over an image of this size can be computed; `key` says whose it is.
    pub(crate) fn check_image(&self, key: &str, sides: [usize; 2]) -> Result<(), SettingError> {
        let least = self.least_side();
        let what = format!("{least}, a token of the last stage,");
        limits::check_sides(key, sides, least, what)?;
        for (index, stage) in self.stages.iter().enumerate() {
            let map = sides.map(|side| side / self.stride(index));
            let (queries, keys) = match stage.sparse {
                true => {
                    let padded = map.map(|side| side.next_multiple_of(stage.window));
                    let windows = if self.mode == -1 { 1 } else { 9 };
                    (padded[0] * padded[1], stage.globals + windows * stage.window.pow(2))
                }
                false => {
                    let tokens = stage.globals + map[0] * map[1];
                    (tokens, tokens)
                }
            };
            let (number, pairs) = (index + 1, queries * keys);
            let what = format!("attention in stage {number} has {pairs} pairs of tokens");
            limits::check_work(key, sides, pairs, what)?;
        }
        Ok(())
    }

    /// The stages, first to last.
    pub(crate) fn stage_table(&self) -> Vec<Stage> {
        let stage = |(index, stage): (usize, &StageShape)| Stage {
            blocks: stage.blocks,
            width: stage.width,
            stride: self.stride(index),
            heads: stage.heads,
        };
        self.stages.iter().enumerate().map(stage).collect()
    }

    /// The shape in a few words.
    pub(crate) fn describe(&self) -> String {
        let depths = dashed(self.stages.iter().map(|stage| stage.blocks));
        let StageShape { width, window, .. } = self.stages[0];
        format!("{depths} blocks, width {width}, window {window}")
    }

    /// Side of a token of a stage in pixels.
    pub fn stride(&self, stage: usize) -> usize {
        self.stages[..=stage].iter().map(|stage| stage.patch).product()
    }

    /// Side in pixels of the smallest image that has a token in every stage.
    pub fn least_side(&self) -> usize {
        self.stride(self.stages.len() - 1)
    }

    /// Side of the last map in tokens, for a square image of `size` pixels.
    pub fn last_map(&self, size: usize) -> usize {
        size / self.least_side()
    }

    /// Side of a stage's map at the configured image size, in tokens.
    pub(super) fn side(&self, stage: usize) -> usize {
        self.img_size / self.stride(stage)
    }

    /// Rows of the table of relative positions of a stage's blocks.
    pub(super) fn table_rows(&self, stage: usize) -> usize {
        let StageShape { sparse, window, .. } = self.stages[stage];
        let side = if sparse { 4 * window - 1 } else { 2 * self.side(stage) - 1 };
        side * side
    }

    /// The windows that tokens of sparse stages see; None where layers draw a neighbor.
    pub(super) fn neighbors(&self) -> Option<Neighbors> {
        match self.mode {
            -1 => Some(Neighbors::Own),
            0 => Some(Neighbors::All),
            mode => self.fixed_neighbor.then_some(Neighbors::One(mode as u8)),
        }
    }

    /// What tokens of sparse stages see at the border.
    pub(super) fn border(&self) -> Border {
        match self.exact {
            -1 => Border::Cyclic,
            0 => Border::Closed,
            _ => Border::Sliding,
        }
    }
}

/// Checks the sizes of stage `number`, counted from 1.
fn check_stage(stage: &StageShape, number: usize) -> Result<(), SettingError> {
    let key = |letter: char| format!("stages.l{number}.{letter}");
    for (letter, value, most) in [
        ('d', stage.width, limits::WIDTH),
        ('n', stage.blocks, limits::BLOCKS),
        ('p', stage.patch, limits::PATCH),
        ('f', stage.window, WINDOW),
    ] {
        check_count(&key(letter), value, most)?;
    }
    let (heads, width, globals) = (stage.heads, stage.width, stage.globals);
    limits::check_heads(&key('h'), heads, width, format_args!("`d`, which is {width}"))?;
    check(globals <= GLOBALS, &key('g'), globals, format!("it must be at most {GLOBALS}"))?;
    let is_even = !stage.absolute || width.is_multiple_of(2);
    check(is_even, &key('d'), width, "half of it is for rows and half for columns, with `a1`")?;
    let need = "the branch of pooled windows is not one that this program has; use `r0`";
    check(!(stage.pooled && stage.sparse), &key('r'), 1, need)
}

#[cfg(test)]
pub(in crate::backbone) mod tests {
    use super::*;

    /// A shape of three stages: windows and a global token, full attention with two, and without.
    pub(in crate::backbone) fn config() -> VilConfig {
        VilConfig {
            img_size: 40,
            stages: "l1,h2,d8,n2,s1,g1,p2,f3,a0_l2,h3,d12,n1,s0,g2,p2,f3,a0_l3,h4,d16,n1,g0,p2,a0"
                .parse()
                .unwrap(),
            mode: 0,
            fixed_neighbor: false,
            exact: 0,
            bias_resize: BiasResize::Pairs,
            norm_eps: 1e-5,
        }
    }

    /// Maps of 20, 10 and 5 tokens a side.
    #[test]
    fn sizes_by_stage() {
        let config = config();
        assert_eq!([0, 1, 2].map(|stage| config.stride(stage)), [2, 4, 8]);
        assert_eq!([0, 1, 2].map(|stage| config.side(stage)), [20, 10, 5]);
        assert_eq!([0, 1, 2].map(|stage| config.table_rows(stage)), [121, 361, 81]);
        assert_eq!((config.least_side(), config.last_map(47)), (8, 5));
        assert_eq!(config.describe(), "2-1-1 blocks, width 8, window 3");
        let (_, list) = crate::BackboneConfig::Vil(config.clone()).build(0.0);
        let is_counted = |name: &str| !name.contains("g2") && !name.contains("cls_token");
        let counted = list.iter().filter(|p| p.shape.len() > 1 && is_counted(&p.name));
        assert_eq!(config.parameters(), counted.map(|p| p.len()).sum::<usize>() as f64);
    }

    #[test]
    fn modes_are_those_of_the_official_code() {
        let of = |mode: i32, fixed_neighbor: bool| {
            VilConfig { mode, fixed_neighbor, ..config() }.neighbors()
        };
        assert_eq!(of(-1, false), Some(Neighbors::Own));
        assert_eq!(of(0, false), Some(Neighbors::All));
        assert_eq!([1, 8].map(|mode| of(mode, false)), [None; 2]);
        assert_eq!([1, 8].map(|mode| of(mode, true)), [1, 8].map(|n| Some(Neighbors::One(n))));
        let borders = [-1, 0, 1].map(|exact| VilConfig { exact, ..config() }.border());
        assert_eq!(borders, [Border::Cyclic, Border::Closed, Border::Sliding]);
    }

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        config().validate().unwrap();
        fn stage(config: &mut VilConfig, number: usize, change: impl Fn(&mut StageShape)) {
            let mut stages = config.stages.to_vec();
            change(&mut stages[number - 1]);
            config.stages = Stages::new(stages);
        }
        type Mistake<'a> = (&'a dyn Fn(&mut VilConfig), &'a str);
        let cases: [Mistake<'_>; 21] = [
            (
                &|c| stage(c, 1, |s| s.width = 0),
                "`stages.l1.d` is 0: it must be between 1 and 65536",
            ),
            (&|c| stage(c, 2, |s| s.blocks = 0), "`stages.l2.n` is 0: it must be between 1"),
            (&|c| stage(c, 2, |s| s.blocks = 20_000), "`stages.l2.n` is 20000: "),
            (&|c| stage(c, 3, |s| s.blocks = 9_999), "`stages` is l1,h2,d8,n2,s1,"),
            (
                &|c| stage(c, 3, |s| s.patch = 65),
                "`stages.l3.p` is 65: it must be between 1 and 64",
            ),
            (
                &|c| stage(c, 1, |s| s.window = 33),
                "`stages.l1.f` is 33: it must be between 1 and 32",
            ),
            (&|c| stage(c, 1, |s| s.window = 0), "`stages.l1.f` is 0: "),
            (
                &|c| stage(c, 2, |s| s.heads = 5),
                "`stages.l2.h` is 5: it must divide `d`, which is 12",
            ),
            (&|c| stage(c, 2, |s| s.heads = 0), "`stages.l2.h` is 0: it must divide `d`"),
            (&|c| stage(c, 1, |s| s.globals = 65), "`stages.l1.g` is 65: it must be at most 64"),
            (
                &|c| stage(c, 2, |s| (s.width, s.absolute) = (9, true)),
                "`stages.l2.d` is 9: half of it is for rows",
            ),
            (&|c| stage(c, 1, |s| s.pooled = true), "`stages.l1.r` is 1: the branch of pooled"),
            (&|c| c.mode = -2, "`mode` is -2: it must be between -1 and 8"),
            (&|c| c.mode = 9, "`mode` is 9: "),
            (&|c| c.exact = 2, "`exact` is 2: it must be between -1 and 1"),
            (&|c| (c.exact, c.mode) = (1, 3), "`exact` is 1: sliding windows go with `mode` 0"),
            (&|c| c.norm_eps = 0.0, "`norm_eps` is 0: "),
            (
                &|c| c.img_size = 7,
                "`img_size` is 7: it leaves no token in the last stage, use at \
                                   least 8 pixels",
            ),
            (&|c| c.img_size = 1 << 17, "`img_size` is 131072: it must be between 1 and 65536"),
            (&|c| c.img_size = 8_000, "`img_size` is 8000 x 8000: attention in stage 1 has"),
            (
                &|c| stage(c, 2, |s| (s.width, s.heads, s.blocks) = (60_000, 3, 9_000)),
                "`stages` is l1,h2,d8,n2,s1,",
            ),
        ];
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let error = config.validate().expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        // Pooled windows are a matter of sparse stages.
        let mut pooled = config();
        stage(&mut pooled, 2, |s| s.pooled = true);
        pooled.validate().unwrap();
        VilConfig { img_size: 8, exact: 1, ..config() }.validate().unwrap();
    }

    #[test]
    fn images_are_bounded() {
        let config = config();
        for sides in [[8, 8], [8, 4096], [500, 500]] {
            config.check_image("crop", sides).unwrap();
        }
        for (sides, expected) in [
            ([7, 32], "`crop` is 7: it must be between 8, a token of the last stage, and 65536"),
            ([8, 65_537], "`crop` is 65537: "),
            ([512, 512], "`crop` is 512 x 512: attention in stage 2 has 268500996 pairs of tokens"),
            ([65_536, 4_096], "`crop` is 65536 x 4096: attention in stage 1 has "),
        ] {
            let error = config.check_image("crop", sides).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
