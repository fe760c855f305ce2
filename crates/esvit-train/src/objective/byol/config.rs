//! Settings of BYOL.

use esvit_nn::head::HeadConfig;
use esvit_nn::ops::Precision;
use esvit_nn::params::Scope;
use esvit_settings::{SettingError, check, settings, words};
use serde::{Deserialize, Serialize};

use super::Byol;
use crate::objective::config::{check_share, check_widths, saved_bytes};
use crate::objective::{
    Chunking, Collapse, HeadMemory, Objective, ObjectiveSettings, Setup, infonce,
};

settings! {
    /// Settings of BYOL. The heads normalize by all images of a step, however it is cut into
    /// micro-batches; these go through the backbone twice.
    pub struct ByolConfig {
        /// EMA momentum of the target network at the start; it grows to 1.
        pub momentum_teacher: f64 = 0.99,
        /// Width of the hidden layers.
        pub hidden_dim: usize = 4096,
        /// Width of projections and predictions.
        pub out_dim: usize = 256,
        /// EsViT's region term beside that of views.
        pub region: ByolRegionConfig = ByolRegionConfig::default(),
    }
}

settings! {
    /// EsViT's region term beside BYOL's own, with the same weight: every token learns from the most similar
    /// one of the other view.
    pub struct ByolRegionConfig {
        /// `none`; `mse`, BYOL's own distance for tokens, with a projector and a predictor of their own; or
        /// `softmax`, EsViT's cross-entropy over prototypes.
        pub loss: ByolRegionLoss = ByolRegionLoss::None,
        /// The projection head of `softmax`.
        pub head: HeadConfig = HeadConfig::default(),
    }
}

/// The region term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ByolRegionLoss {
    /// There is none.
    #[default]
    None,
    /// Squared distances of unit rows.
    Mse,
    /// Cross-entropy over prototypes.
    Softmax,
}

words! {
    ByolRegionLoss: "none", "mse", "softmax";
}

impl ObjectiveSettings for ByolConfig {
    fn describe(&self) -> String {
        match self.region.loss {
            ByolRegionLoss::None => "BYOL".into(),
            ByolRegionLoss::Mse => "BYOL with a region MSE".into(),
            ByolRegionLoss::Softmax => {
                format!("BYOL with L_R to {} prototypes", self.region.head.out_dim)
            }
        }
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_widths([("hidden_dim", self.hidden_dim), ("out_dim", self.out_dim)])?;
        check_share("momentum_teacher", self.momentum_teacher)?;
        let head = &self.region.head;
        head.validate().map_err(|error| error.within("region.head"))?;
        let (prototypes, need) = (head.out_dim, "one prototype tells no two regions apart");
        check(prototypes > 1, "region.head.out_dim", prototypes, need)
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(Byol::new(self, scope, setup))
    }

    fn chunking(&self) -> Chunking {
        Chunking::ByImage
    }

    fn global_views(&self) -> u32 {
        2
    }

    fn memory(&self, tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let [hidden, out] = [self.hidden_dim, self.out_dim].map(|width| width as f64);
        let row = (width + 6.0 * hidden + 3.0 * out) * saved_bytes(precision);
        let head = &self.region.head;
        match self.region.loss {
            ByolRegionLoss::None => HeadMemory { saved: row, ..HeadMemory::default() },
            ByolRegionLoss::Mse => {
                HeadMemory { saved: (1.0 + tokens) * row, ..HeadMemory::default() }
            }
            ByolRegionLoss::Softmax => {
                let region = (2.0 * head.hidden_dim as f64 + width) * saved_bytes(precision);
                let logits = tokens * head.out_dim as f64 * precision.bytes() as f64;
                HeadMemory {
                    saved: row + tokens * region,
                    student_logits: logits,
                    teacher_logits: logits,
                    ..HeadMemory::default()
                }
            }
        }
    }

    fn less_memory(&self) -> Option<&'static str> {
        Some(match self.region.loss {
            ByolRegionLoss::Softmax => "fewer prototypes (`objective.region.head.out_dim`)",
            _ => "narrower heads (`objective.hidden_dim`)",
        })
    }

    fn collapse(&self, signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
        infonce::collapse(signal)
    }
}
