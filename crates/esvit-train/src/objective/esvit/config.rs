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
}

impl ObjectiveSettings for EsvitConfig {
    fn describe(&self) -> String {
        format!("{} to {} prototypes", self.tasks(), self.head.out_dim)
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
        self.mixup.validate("mixup")?;
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

    fn chunking(&self) -> Chunking {
        if self.head.use_bn_in_head { Chunking::Whole } else { Chunking::ByView }
    }

    fn memory(&self, tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let size = precision.bytes() as f64;
        let RegionConfig { enabled, loss, tokens: most, .. } = self.region;
        let tokens = if most == 0 { tokens } else { tokens.min(most as f64) };
        let rows = if enabled { 1.0 + tokens } else { 1.0 };
        let saved = rows * (2.0 * self.head.hidden_dim as f64 + width) * (size + 4.0);
        let rows = if loss == RegionLoss::Mse { 1.0 } else { rows };
        let logits = rows * self.head.out_dim as f64 * size;
        HeadMemory { saved, student_logits: logits, teacher_logits: logits }
    }

    fn collapse(&self, signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
        health::collapse(signal)
    }
}
