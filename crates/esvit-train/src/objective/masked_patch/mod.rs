//! Masked patch prediction: of half of an image's patches the mean color is predicted, after most of them
//! were hidden.
//!
//! Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021), section 4.6 and appendix B.1.2.
//! A patch is what a token of the last map stands for, so that any backbone can be trained: in a vision
//! transformer the patch of its embedding, in a multi-stage one a square of 32 pixels. Corruption acts on
//! the pixels before the backbone: a hidden patch has the mean color of all images, 0 after
//! normalization, where the paper has a learned embedding.

mod corrupt;

use esvit_nn::layers::Linear;
use esvit_nn::ops::{Activation, Precision};
use esvit_nn::params::{Params, Scope};
use esvit_nn::{Collective, Tensor};
use esvit_settings::{SettingError, check, settings};

pub use corrupt::{COLORS, Cut, Patch};

use super::config::{check_share, saved_bytes};
use super::{
    Chunking, HeadMemory, Health, Loss, MicroBatch, Objective, ObjectiveSettings, Pass, Setup,
    StepInfo, Teacher, feature_std,
};

settings! {
    /// Settings of masked patch prediction.
    pub struct MaskedPatchConfig {
        /// Share of the patches that are corrupted, whose colors are predicted.
        pub corrupted: f64 = 0.5,
        /// Share of these that are masked: they have the mean color of all images.
        pub masked: f64 = 0.8,
        /// Share of these that another patch of the image stands for. The rest stays as it is.
        pub replaced: f64 = 0.1,
    }
}

impl ObjectiveSettings for MaskedPatchConfig {
    fn describe(&self) -> String {
        format!("masked patches of {COLORS} colors")
    }

    fn validate(&self) -> Result<(), SettingError> {
        let corrupted = self.corrupted > 0.0 && self.corrupted <= 1.0;
        check(corrupted, "corrupted", self.corrupted, "it must be above 0 and at most 1")?;
        check_share("masked", self.masked)?;
        check_share("replaced", self.replaced)?;
        let need = format!("with the {} of `masked` it must not be above 1", self.masked);
        check(self.masked + self.replaced <= 1.0 + 1e-9, "replaced", self.replaced, need)
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(MaskedPatch::new(self, scope, setup))
    }

    fn chunking(&self) -> Chunking {
        Chunking::ByView
    }

    fn global_views(&self) -> u32 {
        1
    }

    fn memory(&self, tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        // Tokens that are selected, logits and their logarithms.
        let row = (width + 2.0 * COLORS as f64) * saved_bytes(precision);
        HeadMemory { saved: (tokens * self.corrupted).ceil() * row, ..HeadMemory::default() }
    }
}

/// The objective of a run.
#[derive(Debug)]
pub struct MaskedPatch {
    /// Its settings.
    pub config: MaskedPatchConfig,
    /// Logits of the colors, `[rows, COLORS]`, of tokens `[rows, C]`.
    pub head: Linear,
    /// How views are cut into patches.
    pub cut: Cut,
    seed: u64,
    /// The corrupted patches of every view of the micro-batch at hand.
    patches: Vec<Vec<Patch>>,
    health: Option<Health>,
}

/// Corrupted patches whose color is the most likely one, in percent.
const COLOR_ACCURACY: &str = "color_accuracy";
/// [`feature_std`] of their tokens.
const TOKEN_STD: &str = "feature_std";

impl MaskedPatch {
    /// Registers the head.
    pub fn new(config: &MaskedPatchConfig, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        Self {
            config: config.clone(),
            head: Linear::new(&mut scope.head("color"), setup.width, COLORS),
            cut: Cut { side: setup.stride.max(1), normalization: setup.normalization },
            seed: setup.seed,
            patches: Vec::new(),
            health: None,
        }
    }
}

impl Objective for MaskedPatch {
    fn chance_loss(&self) -> f64 {
        (COLORS as f64).ln()
    }

    fn teacher(&self, _at: &StepInfo) -> Teacher {
        Teacher::None
    }

    fn begin_step(&mut self, _student: &mut Params, _at: &StepInfo) {
        self.health = None;
    }

    /// They come with the views, since these are corrupted by the same draws.
    fn targets(
        &mut self,
        _batch: &MicroBatch,
        _teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        _collective: &dyn Collective,
    ) {
    }

    fn student_views(&mut self, batch: &MicroBatch, [step, _]: [u64; 2]) -> Vec<Tensor> {
        let numbers = batch.numbers();
        let views = (0..).zip(&batch.views).map(|(number, view)| {
            self.cut.corrupt(view, &self.config, self.seed, [step, number], &numbers)
        });
        let (views, patches) = views.unzip();
        self.patches = patches;
        views
    }

    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, _collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, views, batch } = student;
        let maps = features.maps_per_view(batch);
        let found = Corrupted::of(&self.patches[views.at_hand], &maps, batch, views.total);
        if found.rows.is_empty() {
            // All views are smaller than a patch.
            return Loss::single("color", Tensor::zeros([1], &features.region.device()));
        }
        let Corrupted { rows, colors, weights } = found;
        let tokens = features.region.index_select(0, rows);
        let logits = self.head.forward(params, tokens.clone(), Activation::None, ctx);
        if at.health && self.health.is_none() {
            self.health = Some(health(&logits, &colors, tokens));
        }
        Loss::single("color", loss(logits, &colors, weights))
    }

    fn end_micro_batch(&mut self) {
        self.patches.clear();
    }

    fn health(&self) -> Option<Health> {
        self.health.clone()
    }
}

/// The tokens of corrupted patches.
#[derive(Debug, Default)]
struct Corrupted {
    /// Their rows among all tokens of a pass.
    rows: Vec<i32>,
    /// Their colors.
    colors: Vec<i32>,
    /// What each counts: the mean over the patches of a view, and the mean over all views.
    weights: Vec<f32>,
}

impl Corrupted {
    /// Of the views of a pass, of `batch` images, which have these maps and are some of `views`.
    fn of(patches: &[Vec<Patch>], maps: &[[usize; 2]], batch: usize, views: usize) -> Self {
        let mut found = Self::default();
        let mut start = 0;
        for (patches, &[height, width]) in patches.iter().zip(maps) {
            for Patch { image, place: [row, column], color } in patches {
                found.rows.push((start + (image * height + row) * width + column) as i32);
                found.colors.push(*color);
                found.weights.push((1.0 / (patches.len() * views) as f64) as f32);
            }
            start += batch * height * width;
        }
        found
    }
}

/// Cross-entropies of logits `[rows, COLORS]` to colors, weighted and added up, `[1]`.
pub fn loss(logits: Tensor, colors: &[i32], weights: Vec<f32>) -> Tensor {
    let (rows, device) = (weights.len(), logits.device());
    let weights = Tensor::new(weights, [rows], &device);
    -(logits.log_softmax(1).pick(colors) * weights).sum()
}

/// Health of tokens by the logits of their colors.
fn health(logits: &Tensor, colors: &[i32], tokens: Tensor) -> Health {
    let likely = logits.clone().detach().argmax(1).to_vec::<i32>();
    let right = likely.iter().zip(colors).filter(|(likely, color)| likely == color).count();
    let accuracy = 100.0 * right as f64 / colors.len() as f64;
    let std = feature_std(tokens);
    Health {
        signals: vec![(COLOR_ACCURACY, accuracy), (TOKEN_STD, std)],
        summary: format!("color accuracy {accuracy:.1} %, feature std {std:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two views of two images, of two by two tokens and of one by two: rows and weights by hand.
    #[test]
    fn tokens_of_corrupted_patches() {
        let patch = |image, place, color| Patch { image, place, color };
        let patches = [
            vec![patch(0, [0, 1], 5), patch(1, [1, 0], 6)],
            vec![patch(0, [0, 0], 7), patch(0, [0, 1], 8), patch(1, [0, 1], 9)],
        ];
        let found = Corrupted::of(&patches, &[[2, 2], [1, 2]], 2, 4);
        assert_eq!(found.rows, [1, 4 + 2, 8, 9, 8 + 2 + 1]);
        assert_eq!(found.colors, [5, 6, 7, 8, 9]);
        let [first, second] = [1.0 / 8.0, 1.0 / 12.0];
        assert_eq!(found.weights, [first, first, second, second, second]);
    }
}
