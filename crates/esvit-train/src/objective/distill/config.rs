//! Settings of distillation.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use esvit_data::{ViewsConfig, counted};
use esvit_nn::ops::Precision;
use esvit_nn::params::Scope;
use esvit_settings::describe::{Describe, Value};
use esvit_settings::{SettingError, check, settings, words};
use serde::{Deserialize, Serialize};

use super::teacher::{Attached, TeacherNetwork};
use super::{Distill, cache};
use crate::config_text::{auto_word, none_word};
use crate::objective::config::{HeadMemory, ObjectiveSettings, Setup};
use crate::objective::esvit::{NamedWeights, Weights};
use crate::objective::{Chunking, Objective};

settings! {
    /// The teacher, what is compared with it, and how.
    pub struct DistillSettings {
        /// The teacher: a file of weights, or a run (its best checkpoint, or else its newest).
        #[serde(with = "none_word")]
        pub teacher: Option<PathBuf> = None,
        /// Network of the teacher's file to take, such as `encoder_k`; `none` for the one that its method
        /// evaluates, or the only one.
        #[serde(with = "none_word")]
        pub teacher_key: Option<String> = None,
        /// Side in pixels at which the teacher sees a global view, others in proportion; `auto` for that of
        /// the images that it was made for. Sides are rounded to its patches.
        #[serde(with = "auto_word")]
        pub teacher_size: Option<usize> = None,
        /// How the student's projected features are compared with the teacher's: `cosine`, the angle between
        /// them; `mse`, the mean square of their difference, the teacher's being standardized; `prototypes`,
        /// the cross-entropy over their similarities to recent features of the teacher.
        pub loss: DistillLoss = DistillLoss::Cosine,
        /// Compares the tokens of the last map as well, each with the teacher's at the same place.
        pub region: bool = true,
        /// `reference` (0.5 each, 1 without regions), `paper` (1 each), `{ view = .., region = .. }`.
        pub weights: Weights = Weights::Named(NamedWeights::Reference),
        /// The student's temperature over `prototypes`.
        pub student_temp: f64 = 0.04,
        /// The teacher's temperature over `prototypes`.
        pub teacher_temp: f64 = 0.04,
        /// Number of prototypes, K: the latest features of the teacher, one of every image.
        pub prototypes: usize = 4096,
        /// Cache for the teacher's features, in MiB, where every image has one view that is the same in all
        /// epochs; 0 for none.
        pub cache_mb: usize = 512,
    }
}

/// How features are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DistillLoss {
    /// One less the cosine of their angle.
    Cosine,
    /// The mean square of their difference, the teacher's standardized.
    Mse,
    /// The cross-entropy of soft assignments to prototypes.
    Prototypes,
}

words! {
    DistillLoss: "cosine", "mse", "prototypes";
}

/// Settings of distillation and, once its file is open, the teacher that they name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DistillConfig {
    /// The settings.
    pub settings: DistillSettings,
    /// The teacher; it is no setting, and not stored.
    #[serde(skip)]
    pub(super) attached: Option<Attached>,
}

impl From<DistillSettings> for DistillConfig {
    fn from(settings: DistillSettings) -> Self {
        Self { settings, attached: None }
    }
}

impl Describe for DistillConfig {
    fn schema() -> Value {
        DistillSettings::schema()
    }
}

impl DistillConfig {
    /// The teacher, if its file was opened.
    pub fn teacher(&self) -> Option<&Arc<TeacherNetwork>> {
        self.attached.as_ref().map(|attached| &attached.network)
    }

    /// Takes a network for the teacher of a student that sees these views.
    ///
    /// # Errors
    /// When the teacher cannot see views of the size that it would have.
    pub fn attach(
        &mut self,
        teacher: Arc<TeacherNetwork>,
        views: &ViewsConfig,
    ) -> Result<(), SettingError> {
        self.attached = Some(Attached::new(teacher, views, self.settings.teacher_size)?);
        Ok(())
    }

    /// Bytes of an image's features in the cache, if there is one.
    fn cached_bytes(&self) -> Option<usize> {
        let attached = self.attached.as_ref().filter(|attached| attached.is_deterministic)?;
        let tokens = attached.network.config.last_map(attached.side).pow(2);
        let rows = 1 + if self.settings.region { tokens } else { 0 };
        (self.settings.cache_mb > 0).then(|| rows * attached.network.width() * size_of::<f32>())
    }

    /// Lowers the cache to what the features of so many images fill.
    pub(crate) fn limit_cache(&mut self, images: usize) {
        if let Some(bytes) = self.cached_bytes() {
            let all = bytes.saturating_mul(images).div_ceil(1 << 20);
            self.settings.cache_mb = self.settings.cache_mb.min(all);
        }
    }

    /// Most bytes that the cache may take, 0 without one.
    pub(super) fn cache_bytes(&self) -> usize {
        self.cached_bytes().map_or(0, |_| self.settings.cache_mb << 20)
    }
}

impl ObjectiveSettings for DistillConfig {
    fn describe(&self) -> String {
        let DistillSettings { teacher, loss, region, .. } = &self.settings;
        let teacher = teacher
            .as_deref()
            .map_or("a teacher".into(), |path: &Path| format!("`{}`", path.display()));
        let loss = match loss {
            DistillLoss::Cosine => "cosine",
            DistillLoss::Mse => "mean square",
            DistillLoss::Prototypes => "prototypes",
        };
        let what = if *region { "views and regions" } else { "views" };
        format!("distillation from {teacher} ({loss} of {what})")
    }

    fn validate(&self) -> Result<(), SettingError> {
        let DistillSettings { student_temp, teacher_temp, prototypes, .. } = self.settings;
        for (key, value) in [("student_temp", student_temp), ("teacher_temp", teacher_temp)] {
            let need = "it must be from 0.001 to 1000";
            check((1e-3..=1e3).contains(&value), key, value, need)?;
        }
        let need = "give 2 to 4194304: one prototype tells no two images apart";
        check((2..=1 << 22).contains(&prototypes), "prototypes", prototypes, need)?;
        if let Some(side) = self.settings.teacher_size {
            let need = "a view's side is between 1 and 4096 pixels";
            check((1..=4096).contains(&side), "teacher_size", side, need)?;
        }
        let (view, region) = self.settings.weights.factors(self.settings.region);
        let region = if self.settings.region { region } else { 0.0 };
        let is_used = view.max(region) > 0.0 && view.min(region) >= 0.0;
        let need = "one of them must be above 0, and none below";
        let shown = format!("{view}, {region}");
        check(is_used && (view + region).is_finite(), "weights", shown, need)
    }

    fn check_ready(&self) -> Result<(), SettingError> {
        let need = "distillation learns from a teacher\n\
                    hint: name its file of weights, or its run, with `--teacher PATH`";
        check(self.attached.is_some(), "teacher", "none", need)
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(Distill::new(self, scope, setup))
    }

    fn chunking(&self) -> Chunking {
        Chunking::ByView
    }

    fn global_views(&self) -> u32 {
        1
    }

    fn memory(&self, tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let size = precision.bytes() as f64;
        let rows = if self.settings.region { 1.0 + tokens } else { 1.0 };
        let of_teacher = self.teacher().map_or(width, |teacher| teacher.width() as f64);
        // Inputs and outputs of the projection, and what the loss keeps of both networks' features.
        let saved = rows * (width * size + 5.0 * 4.0 * of_teacher);
        let logits = match self.settings.loss {
            DistillLoss::Prototypes => rows * self.settings.prototypes as f64 * 4.0,
            _ => 0.0,
        };
        let student_logits = 3.0 * logits;
        HeadMemory { saved, student_logits, teacher_logits: logits, ..HeadMemory::default() }
    }

    fn state_memory(&self) -> f64 {
        let tasks = match self.settings.loss {
            DistillLoss::Prototypes if self.settings.region => 2,
            DistillLoss::Prototypes => 1,
            _ => 0,
        };
        let width = self.teacher().map_or(0, |teacher| teacher.width());
        4.0 * (tasks * self.settings.prototypes * width) as f64
    }

    fn less_memory(&self) -> Option<&'static str> {
        let has_prototypes = self.settings.loss == DistillLoss::Prototypes;
        has_prototypes.then_some("fewer prototypes (`objective.prototypes`)")
    }

    fn held_bytes(&self) -> f64 {
        let Some(teacher) = self.teacher() else { return 0.0 };
        let parameters = teacher.frozen.network.specs().parameters() as f64;
        // The packed weights are there once more.
        4.0 * 2.0 * parameters + self.cache_bytes() as f64
    }

    fn teacher_bytes(&self, side: usize, precision: Precision) -> f64 {
        self.attached.as_ref().map_or(0.0, |attached| attached.bytes(side, precision))
    }

    fn remarks(&self, images: usize) -> Vec<String> {
        let Some(attached) = &self.attached else { return Vec::new() };
        let mut remarks = vec![attached.to_string()];
        if let Some(bytes) = self.cached_bytes() {
            remarks.push(cache::remark(self.cache_bytes(), bytes, images));
        } else if attached.is_deterministic {
            remarks.push(format!(
                "each of {} has one view, the same in every epoch, and the teacher's features of it are \
                 computed every time (`objective.cache_mb=0`)",
                counted(images, "image")
            ));
        }
        remarks
    }
}
