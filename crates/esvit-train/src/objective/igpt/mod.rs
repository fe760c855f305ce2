//! Image GPT: a transformer learns to predict the colors of pixels, the next one in raster order or hidden ones,
//! and its middle tells what an image shows.
//!
//! Source: Chen et al., "Generative Pretraining from Pixels" (ICML 2020), and its code. Where an image has no
//! hidden color by chance, the official loss is no number; here one of its colors is hidden then.

mod colors;
pub mod palette;

use std::ops::Range;
use std::path::PathBuf;

use esvit_kernels::rng::Rng;
use esvit_nn::backbone::TokenMask;
use esvit_nn::backbone::igpt::{self, ColorTokens, Variant};
use esvit_nn::ops::Precision;
use esvit_nn::params::Scope;
use esvit_nn::{BackboneConfig, Collective, Params, Tensor};
use esvit_settings::{SettingError, check, settings};

use super::config::{HeadMemory, ObjectiveSettings, Setup};
use super::{Chunking, Health, Loss, MicroBatch, Objective, Pass, StepInfo, Teacher};
use crate::config_text::none_word;

pub use colors::{OutputTable, Predicted, color_loss};

/// RNG purpose of hidden colors.
const HIDDEN_PURPOSE: u64 = u64::from_be_bytes(*b"  hidden");

/// Colors of the published palette, of which the memory of a run is estimated.
const PUBLISHED_COLORS: f64 = 512.0;

settings! {
    /// Settings of iGPT. What is predicted of how many colors is that of the network: `model.variant` and
    /// `model.colors`.
    pub struct IgptConfig {
        /// File of the palette: an array of NumPy (`.npy`), f32 `[colors, 3]` from -1 to 1, as the official one
        /// and `palette.npy` of a run; `none` for a palette of the run's images (k-means).
        #[serde(with = "none_word")]
        pub palette: Option<PathBuf> = None,
        /// Probability that a color is hidden, where hidden ones are predicted (`model.variant=bert`).
        pub mask_rate: f64 = 0.15,
    }
}

impl ObjectiveSettings for IgptConfig {
    fn describe(&self) -> String {
        "prediction of colors (iGPT)".into()
    }

    fn validate(&self) -> Result<(), SettingError> {
        let (rate, need) = (self.mask_rate, "it must be above 0 and at most 1");
        check(0.0 < rate && rate <= 1.0, "mask_rate", rate, need)
    }

    fn check_backbone(&self, backbone: &BackboneConfig) -> Result<(), SettingError> {
        let need = format!(
            "it predicts colors, which a {} network does not see one by one\n\
             hint: choose an image GPT, such as `--arch igpt_micro` or `--arch igpt_s`",
            backbone.family()
        );
        check(backbone.color_tokens().is_some(), "name", "igpt", need)
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(Igpt::new(self, scope, setup))
    }

    fn chunking(&self) -> Chunking {
        Chunking::ByView
    }

    fn global_views(&self) -> u32 {
        1
    }

    /// Inputs of the output table, and logarithms of probabilities with their gradient.
    fn memory(&self, tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let saved = tokens * (width * precision.bytes() as f64 + 12.0 * PUBLISHED_COLORS);
        HeadMemory { saved, ..HeadMemory::default() }
    }
}

/// The objective of a run.
#[derive(Debug)]
pub struct Igpt {
    config: IgptConfig,
    tokens: ColorTokens,
    /// The layer that predicts colors.
    pub output: OutputTable,
    width: usize,
    seed: u64,
    /// The network's palette, as of this step.
    palette: Vec<f32>,
    /// The views of the micro-batch at hand.
    views: Vec<ViewColors>,
    health: Option<Health>,
}

/// The colors of a view of all images of a micro-batch.
#[derive(Debug)]
struct ViewColors {
    /// Number of images, B.
    images: usize,
    /// `[B * tokens]`.
    tokens: Vec<i32>,
    /// Of every token whether it is hidden and to be predicted; None where the next one is.
    hidden: Option<Vec<bool>>,
}

impl ViewColors {
    /// Tokens of some images.
    fn of_images(&self, images: &Range<usize>) -> Range<usize> {
        let tokens = self.tokens.len() / self.images.max(1);
        images.start * tokens..images.end * tokens
    }
}

impl Igpt {
    /// Registers the output table.
    pub fn new(config: &IgptConfig, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        // Another backbone is refused before anything is trained.
        let other = ColorTokens { colors: 2, patch_size: 1, variant: Variant::Autoregressive };
        let tokens = setup.color_tokens.unwrap_or(other);
        Self {
            config: config.clone(),
            tokens,
            output: OutputTable::new(scope, [tokens.colors, setup.width]),
            width: setup.width,
            seed: setup.seed,
            palette: Vec::new(),
            views: Vec::new(),
            health: None,
        }
    }

    /// Draws which of an image's tokens are hidden; one at least is. `place` is the step, the image's place in it
    /// and the view.
    fn hidden(&self, tokens: usize, place: [u64; 3]) -> Vec<bool> {
        let mut rng = Rng::for_purpose(self.seed, HIDDEN_PURPOSE, place);
        let mut hidden: Vec<bool> =
            (0..tokens).map(|_| rng.chance(self.config.mask_rate)).collect();
        if !hidden.contains(&true)
            && let Some(one) = hidden.get_mut(rng.below(tokens as u64) as usize)
        {
            *one = true;
        }
        hidden
    }
}

impl Objective for Igpt {
    /// All colors are as likely: the loss at the start, exactly, as the output table is zero.
    fn chance_loss(&self) -> f64 {
        (self.tokens.colors as f64).ln()
    }

    fn teacher(&self, _at: &StepInfo) -> Teacher {
        Teacher::None
    }

    fn begin_step(&mut self, student: &mut Params, _at: &StepInfo) {
        self.palette = igpt::palette(student).unwrap_or_default();
        self.health = None;
    }

    fn targets(
        &mut self,
        batch: &MicroBatch,
        _teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        _collective: &dyn Collective,
    ) {
        let colors = |view: &Tensor| {
            let tokens = igpt::tokens(view.clone(), self.tokens.patch_size, &self.palette);
            ViewColors { images: batch.images(), tokens, hidden: None }
        };
        self.views = batch.views.iter().map(colors).collect();
    }

    fn student_views(&mut self, batch: &MicroBatch, [step, micro_batch]: [u64; 2]) -> Vec<Tensor> {
        if self.tokens.variant == Variant::Bert {
            let images = batch.images() as u64;
            let mut views = std::mem::take(&mut self.views);
            for (number, view) in views.iter_mut().enumerate() {
                let tokens = view.tokens.len() / view.images.max(1);
                let places = (0..images).map(|image| micro_batch * images + image);
                let hidden = places.flat_map(|at| self.hidden(tokens, [step, at, number as u64]));
                view.hidden = Some(hidden.collect());
            }
            self.views = views;
        }
        batch.views.clone()
    }

    /// An embedding of zero stands for a hidden color.
    fn token_mask(
        &self,
        params: &Params,
        views: Range<usize>,
        images: Range<usize>,
    ) -> Option<TokenMask> {
        let mut rows = Vec::new();
        for view in &self.views[views] {
            let hidden = &view.hidden.as_ref()?[view.of_images(&images)];
            rows.extend(hidden.iter().map(|&hidden| f32::from(u8::from(hidden))));
        }
        let device = params.device();
        let token = Tensor::zeros([self.width], &device);
        Some(TokenMask { rows: Tensor::from_vec(rows, &device), token })
    }

    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, _collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, views, .. } = student;
        let share = 1.0 / views.total as f32;
        let mut predicted = Predicted::default();
        for view in &self.views[views.at_hand] {
            predicted.add(&view.tokens, view.hidden.as_deref(), view.images, share);
        }
        let rows = predicted.rows_of(features.region);
        let logits = self.output.forward(params, rows, ctx);
        if at.health && self.health.is_none() {
            let all = self.views.iter().flat_map(|view| &view.tokens);
            self.health = Some(colors::health(&logits, &predicted, all, self.tokens.colors));
        }
        Loss::single("color", color_loss(logits, &predicted))
    }

    fn end_micro_batch(&mut self) {
        self.views.clear();
    }

    fn health(&self) -> Option<Health> {
        self.health.clone()
    }
}
