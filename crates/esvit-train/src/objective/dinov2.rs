//! DINOv2: the view task of DINO, iBOT's masked patch prediction and KoLeo, towards an EMA teacher whose
//! targets are centered or balanced.
//!
//! Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision" (2023), section 4.
//! Each term is a setting of EsViT's objective as well, whose code this is.

use esvit_nn::head::HeadConfig;
use esvit_nn::ops::Precision;
use esvit_nn::params::Scope;
use esvit_settings::{SettingError, check, settings};

use super::esvit::{Centering, Esvit, EsvitConfig, PatchesConfig};
use super::{Chunking, Collapse, HeadMemory, Objective, ObjectiveSettings, Setup};
use crate::span::Span;

settings! {
    /// Settings of DINOv2. Images of a step are compared, however it is cut into micro-batches; these go
    /// through the backbone twice.
    pub struct Dinov2Config {
        /// The student's temperature.
        pub student_temp: f64 = 0.1,
        /// The teacher's temperature after its warm-up.
        pub teacher_temp: f64 = 0.07,
        /// The teacher's temperature in the first step.
        pub warmup_teacher_temp: f64 = 0.04,
        /// Length over which the teacher's temperature grows: `30 epochs`, `500 steps` or `10%`.
        pub teacher_temp_warmup: Span = Span::Percent(30.0),
        /// EMA momentum of the teacher at the start; it grows to 1.
        pub momentum_teacher: f64 = 0.992,
        /// How the teacher's targets for views and masked patches are balanced: `softmax`, less a running
        /// mean of the logits, or `sinkhorn`, by scaling those of a step until all prototypes have as
        /// many.
        pub centering: Centering = Centering::Softmax,
        /// How often `sinkhorn` scales; 0 leaves targets as they are, which collapses.
        pub sinkhorn_iterations: usize = 3,
        /// EMA momentum of the running means.
        pub center_momentum: f64 = 0.9,
        /// Weight of KoLeo, by which the view features of the images of a step spread evenly; 0 for none.
        /// The view task has a weight of 1.
        pub koleo: f64 = 0.1,
        /// Masked patch prediction.
        pub patches: PatchesConfig = PatchesConfig { weight: 1.0, ..PatchesConfig::default() },
        /// Length during which the prototypes are frozen: `1 epoch`, `500 steps` or `10%`. One that
        /// is longer than the run becomes a tenth of it.
        pub freeze_last_layer: Span = Span::Percent(1.0),
        /// Factor of the learning rate of the patch embedding.
        pub patch_embed_lr: f64 = 0.2,
        /// The projection heads.
        pub head: HeadConfig = HeadConfig { norm_last_layer: false, ..HeadConfig::default() },
    }
}

impl Dinov2Config {
    /// The view task with the same terms.
    pub fn view_task(&self) -> EsvitConfig {
        EsvitConfig {
            region: false.into(),
            student_temp: self.student_temp,
            teacher_temp: self.teacher_temp,
            warmup_teacher_temp: self.warmup_teacher_temp,
            teacher_temp_warmup: self.teacher_temp_warmup,
            momentum_teacher: self.momentum_teacher,
            centering: self.centering,
            sinkhorn_iterations: self.sinkhorn_iterations,
            center_momentum: self.center_momentum,
            koleo: self.koleo,
            patches: self.patches.clone(),
            freeze_last_layer: self.freeze_last_layer,
            head: self.head.clone(),
            ..EsvitConfig::default()
        }
    }
}

impl ObjectiveSettings for Dinov2Config {
    fn describe(&self) -> String {
        format!("DINOv2, {}", self.view_task().describe())
    }

    fn validate(&self) -> Result<(), SettingError> {
        let need = "it must be from 0 to 1000";
        let is_factor = (0.0..=1e3).contains(&self.patch_embed_lr);
        check(is_factor, "patch_embed_lr", self.patch_embed_lr, need)?;
        self.view_task().validate()
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        let mut objective = Esvit::new(&self.view_task(), scope, setup);
        objective.patch_embed_lr = self.patch_embed_lr;
        Box::new(objective)
    }

    fn masks_patches(&self) -> bool {
        self.view_task().masks_patches()
    }

    fn chunking(&self) -> Chunking {
        self.view_task().chunking()
    }

    fn global_views(&self) -> u32 {
        self.view_task().global_views()
    }

    fn memory(&self, tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        self.view_task().memory(tokens, width, precision)
    }

    fn less_memory(&self) -> Option<&'static str> {
        self.view_task().less_memory()
    }

    fn collapse(&self, signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
        self.view_task().collapse(signal)
    }
}
