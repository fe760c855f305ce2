//! Settings of EsViT.

use esvit_nn::head::HeadConfig;
use esvit_nn::ops::Precision;
use esvit_nn::params::Scope;
use esvit_settings::describe::{Describe, Value, json, one_of, table};
use esvit_settings::{SettingError, check, settings, words};
use serde::{Deserialize, Serialize};

use super::{Esvit, health};
use crate::mixup::MixupConfig;
use crate::objective::config::HeadMemory;
use crate::objective::regions::Matching;
use crate::objective::{Chunking, Collapse, Objective, ObjectiveSettings, Setup};
use crate::span::Span;

settings! {
    /// The tasks, the teacher and its targets, and the heads.
    pub struct EsvitConfig {
        /// The region task.
        pub region: RegionConfig = RegionConfig::default(),
        /// `reference` (0.5 each, 1 for L_V alone), `paper` (1 each), `{ view = .., region = .. }`.
        pub weights: Weights = Weights::Named(NamedWeights::Reference),
        /// The student's temperature.
        pub student_temp: f64 = 0.1,
        /// The teacher's temperature after its warm-up. Above 0.07 training may become unstable.
        pub teacher_temp: f64 = 0.04,
        /// The teacher's temperature in the first epoch.
        pub warmup_teacher_temp: f64 = 0.04,
        /// Length over which the teacher's temperature grows: `30 epochs`, `500 steps` or `10%`.
        pub teacher_temp_warmup: Span = Span::Epochs(0.0),
        /// EMA momentum of the teacher at the start; it grows to 1.
        pub momentum_teacher: f64 = 0.996,
        /// EMA momentum of the centers.
        pub center_momentum: f64 = 0.9,
        /// Length during which the prototypes are frozen: `1 epoch`, `500 steps` or `10%`. One that
        /// is longer than the run becomes a tenth of it.
        pub freeze_last_layer: Span = Span::Epochs(1.0),
        /// How the teacher's targets for views and masked patches are balanced, so that no prototype
        /// dominates: `softmax`, less a running mean of the logits (DINO), or `sinkhorn`, by scaling
        /// those of a step until all prototypes have as many. Regions that are compared over prototypes
        /// have the first.
        pub centering: Centering = Centering::Softmax,
        /// How often `sinkhorn` scales; 0 leaves targets as they are, which collapses.
        pub sinkhorn_iterations: usize = 3,
        /// Weight of KoLeo, by which the view features of the images of a step spread evenly: 0.1 in
        /// DINOv2, 0 for none.
        pub koleo: f64 = 0.0,
        /// Masked patch prediction.
        pub patches: PatchesConfig = PatchesConfig::default(),
        /// Mixup and CutMix of the student's images; view task only.
        pub mixup: MixupConfig = MixupConfig::default(),
        /// The projection heads.
        pub head: HeadConfig = HeadConfig::default(),
    }
}

settings! {
    /// The region task L_R.
    pub struct RegionConfig {
        /// Adds the region task L_R to the view task L_V. `objective.region=false` is short for it.
        pub enabled: bool = true,
        /// What a token learns from: `argmax`, the most similar token of the other view, as published, or
        /// `sinkhorn`, all of its tokens by their shares in an optimal transport between both views.
        pub r#match: Matching = Matching::Argmax,
        /// `cross_entropy` over prototypes, as published, or `mse`, the squared distance of the head's
        /// rows of unit length before the prototypes, which then do not learn.
        pub loss: RegionLoss = RegionLoss::CrossEntropy,
        /// Tokens of every view of an image that take part, drawn anew in every step: for backbones of a
        /// single scale, which have many. 0 for all.
        pub tokens: usize = 0,
    }
}

impl From<bool> for RegionConfig {
    /// As published, or none.
    fn from(enabled: bool) -> Self {
        Self { enabled, ..Self::default() }
    }
}

/// How far a region is from what it learns from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionLoss {
    /// Cross-entropy to the teacher's distribution over prototypes.
    #[default]
    CrossEntropy,
    /// Squared distance of the head's rows of unit length.
    Mse,
}

words! {
    RegionLoss: "cross_entropy", "mse";
}

settings! {
    /// Masked patch prediction (iBOT): of patches that are masked in the student's global views, the
    /// teacher's distributions are predicted. For ViT and Swin, of which regions of the last map are masked.
    pub struct PatchesConfig {
        /// Weight of masked patch prediction: 1 in iBOT and DINOv2, 0 for none.
        pub weight: f64 = 0.0,
        /// Share of the global views that have masked patches.
        pub mask_probability: f64 = 0.5,
        /// Least and largest share of masked patches of such a view; views cover the range evenly.
        pub mask_ratio: [f64; 2] = [0.1, 0.5],
        /// Gives masked patches a head of their own, of the same shape; without, they have that of the
        /// views.
        pub separate_head: bool = false,
    }
}

impl PatchesConfig {
    /// Whether patches are masked.
    pub fn is_on(&self) -> bool {
        self.weight > 0.0
    }

    /// Share of masked patches of all global views, about.
    fn share(&self) -> f64 {
        let [least, most] = self.mask_ratio;
        if self.is_on() { self.mask_probability * 0.5 * (least + most) } else { 0.0 }
    }

    fn validate(&self) -> Result<(), SettingError> {
        let need = "it must be at least 0, and finite";
        check((0.0..=f64::MAX).contains(&self.weight), "weight", self.weight, need)?;
        let (probability, need) = (self.mask_probability, "it must be above 0, and at most 1");
        let is_share = probability > 0.0 && probability <= 1.0;
        check(is_share, "mask_probability", probability, need)?;
        let [least, most] = self.mask_ratio;
        let is_range = (0.0..=most).contains(&least) && most > 0.0 && most <= 1.0;
        let need =
            "the second must be above 0, and the first from 0 to the second, which is 1 at most";
        check(is_range, "mask_ratio", format!("[{least}, {most}]"), need)
    }
}

/// How the teacher's targets are balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Centering {
    /// A running mean of the teacher's logits is subtracted before its softmax.
    Softmax,
    /// Sinkhorn and Knopp's iteration over the images of a step.
    Sinkhorn,
}

words! {
    Centering: "softmax", "sinkhorn";
}

/// Weights of the two tasks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected `reference`, `paper` or two numbers, `view` and `region`")]
pub enum Weights {
    /// A named choice.
    Named(NamedWeights),
    /// Explicit weights.
    Free {
        /// Weight of the view task.
        view: f64,
        /// Weight of the region task.
        region: f64,
    },
}

/// Named weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedWeights {
    /// The official code: 0.5 each, or 1 for the view task alone.
    Reference,
    /// The paper's formula: L_V + L_R.
    Paper,
}

impl Describe for Weights {
    fn schema() -> Value {
        let free = table([("view", &[], f64::schema()), ("region", &[], f64::schema())]);
        json!({ "anyOf": [one_of(&["reference", "paper"]), free] })
    }
}

impl Weights {
    /// Weights of the view and of the region task.
    pub fn factors(self, region: bool) -> (f64, f64) {
        match self {
            Self::Named(NamedWeights::Reference) if region => (0.5, 0.5),
            Self::Named(_) => (1.0, 1.0),
            Self::Free { view, region } => (view, region),
        }
    }
}

impl EsvitConfig {
    /// The tasks by their names in the paper.
    pub fn tasks(&self) -> &'static str {
        if self.region.enabled { "L_V + L_R" } else { "L_V" }
    }

    /// Terms beside these tasks, each after a plus sign.
    pub(crate) fn terms(&self) -> String {
        let patches = if self.patches.is_on() { " + masked patches" } else { "" };
        let koleo = if self.koleo > 0.0 { " + KoLeo" } else { "" };
        format!("{patches}{koleo}")
    }

    /// How targets are balanced, if not as in DINO.
    pub(crate) fn balance(&self) -> &'static str {
        match self.centering {
            Centering::Softmax => "",
            Centering::Sinkhorn => ", balanced by Sinkhorn",
        }
    }

    /// Whether targets or loss need all images of a step at once.
    pub fn compares_images(&self) -> bool {
        self.koleo > 0.0 || self.centering == Centering::Sinkhorn
    }

    /// Whether they then need the regions of all images as well.
    pub fn compares_regions(&self) -> bool {
        self.compares_images() && (self.region.enabled || self.patches.is_on())
    }
}

impl ObjectiveSettings for EsvitConfig {
    fn describe(&self) -> String {
        let (tasks, terms, balance) = (self.tasks(), self.terms(), self.balance());
        format!("{tasks}{terms} to {} prototypes{balance}", self.head.out_dim)
    }

    fn validate(&self) -> Result<(), SettingError> {
        let temperature = |key: &str, value: f64| {
            check((1e-3..=1e3).contains(&value), key, value, "it must be from 0.001 to 1000")
        };
        let share = |key: &str, value: f64| {
            check((0.0..=1.0).contains(&value), key, value, "it must be between 0 and 1")
        };
        temperature("student_temp", self.student_temp)?;
        temperature("teacher_temp", self.teacher_temp)?;
        temperature("warmup_teacher_temp", self.warmup_teacher_temp)?;
        share("momentum_teacher", self.momentum_teacher)?;
        share("center_momentum", self.center_momentum)?;
        let (view, region) = self.weights.factors(self.region.enabled);
        let need = "one of them must be above 0, and none below";
        let is_used = view.max(region) > 0.0 && view.min(region) >= 0.0;
        check(
            is_used && (view + region).is_finite(),
            "weights",
            format!("{view}, {region}"),
            need,
        )?;
        self.head.validate().map_err(|error| error.within("head"))?;
        let (prototypes, need) = (self.head.out_dim, "one prototype tells no two images apart");
        check(prototypes > 1, "head.out_dim", prototypes, need)?;
        let (iterations, need) = (self.sinkhorn_iterations, "it must be at most 1000");
        check(iterations <= 1000, "sinkhorn_iterations", iterations, need)?;
        let need = "it must be at least 0, and finite";
        check((0.0..=f64::MAX).contains(&self.koleo), "koleo", self.koleo, need)?;
        self.patches.validate().map_err(|error| error.within("patches"))?;
        let need = "batch normalization would mix views and masked patches\n\
                    hint: set `objective.patches.weight=0`, or `objective.head.use_bn_in_head=false`";
        let is_mixed = self.head.use_bn_in_head && self.patches.is_on();
        check(!is_mixed, "head.use_bn_in_head", true, need)?;
        self.mixup.validate("mixup")?;
        let need = "of mixed images the teacher has no patches to predict\n\
                    hint: set `objective.patches.weight=0` to train with mixup";
        check(!(self.mixup.enabled && self.patches.is_on()), "mixup.enabled", true, need)?;
        let need = "regions of mixed images have no match\n\
                    hint: set `objective.region=false` to train the view task alone with mixup";
        check(!(self.mixup.enabled && self.region.enabled), "mixup.enabled", true, need)
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(Esvit::new(self, scope, setup))
    }

    fn global_views(&self) -> u32 {
        2
    }

    fn masks_patches(&self) -> bool {
        self.patches.is_on()
    }

    fn chunking(&self) -> Chunking {
        if self.compares_images() {
            return Chunking::ByImage;
        }
        if self.head.use_bn_in_head { Chunking::Whole } else { Chunking::ByView }
    }

    fn memory(&self, tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let size = precision.bytes() as f64;
        let prototypes = self.head.out_dim as f64;
        let masked = self.patches.share() * tokens;
        let RegionConfig { enabled, loss, tokens: most, .. } = self.region;
        let of_regions = match (enabled, most) {
            (false, _) => 0.0,
            (true, 0) => tokens,
            (true, most) => tokens.min(most as f64),
        };
        let rows = 1.0 + of_regions + masked;
        let saved = rows * (2.0 * self.head.hidden_dim as f64 + width) * (size + 4.0);
        // Features of regions wait for the others, and then for their gradients.
        let waiting = if self.compares_regions() { 8.0 * tokens * width } else { 0.0 };
        let saved = saved + waiting;
        // Distances are between rows before the prototypes.
        let rows = if loss == RegionLoss::Mse { 1.0 + masked } else { rows };
        let logits = rows * prototypes * size;
        // Sinkhorn's shares, by rows and by columns.
        let is_balanced = self.centering == Centering::Sinkhorn;
        let targets = if is_balanced { 8.0 * (1.0 + masked) * prototypes } else { 0.0 };
        HeadMemory { saved, student_logits: logits, teacher_logits: logits, targets }
    }

    fn less_memory(&self) -> Option<&'static str> {
        Some("fewer prototypes (`objective.head.out_dim`)")
    }

    fn collapse(&self, signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
        health::collapse(signal)
    }
}
