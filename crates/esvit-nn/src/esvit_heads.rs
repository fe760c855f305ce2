//! The heads of EsViT: one for the view task and, with the region task, a second one.

use crate::backbone::RowFeatures;
use crate::forward_ctx::ForwardCtx;
use crate::head::{Head, HeadConfig};
use crate::ops::PrototypeLogits;
use crate::params::{ParamId, Params, Scope};
use crate::tensor::Tensor;

/// `head` and, with the region task, `head_dense`.
#[derive(Debug, Clone)]
pub struct EsvitHeads {
    view: Head,
    region: Option<Head>,
}

/// Features and logits of a list of crops, crop-major as in [`crate::Network::features`].
#[derive(Debug, Clone)]
pub struct Predictions {
    /// View features, `[crops * B, C]`.
    pub view_features: Tensor,
    /// View logits, `[crops * B, K]`.
    pub view_logits: PrototypeLogits,
    /// Features and logits of the region task, if it has a head.
    pub region: Option<RegionPredictions>,
}

/// Features and logits of the region task.
#[derive(Debug, Clone)]
pub struct RegionPredictions {
    /// Logits, `[sum over crops of B * T_crop, K]`.
    pub logits: PrototypeLogits,
    /// Region features before the head, `[sum over crops of B * T_crop, C]`.
    pub features: Tensor,
    /// Tokens per image, T, of every crop.
    pub tokens: Vec<usize>,
}

impl EsvitHeads {
    /// Registers the heads on features of this width; `region` adds that of the region task.
    pub fn new(scope: &mut Scope<'_>, width: usize, config: &HeadConfig, region: bool) -> Self {
        Self {
            view: Head::new(&mut scope.head("head"), width, config),
            region: region.then(|| Head::new(&mut scope.head("head_dense"), width, config)),
        }
    }

    /// Number of prototypes, K.
    pub fn prototypes(&self) -> usize {
        self.view.prototype_count()
    }

    /// Whether there is a head of the region task.
    pub fn has_region(&self) -> bool {
        self.region.is_some()
    }

    /// The prototypes of all heads.
    pub fn last_layers(&self) -> Vec<ParamId> {
        let heads = std::iter::once(&self.view).chain(&self.region);
        heads.flat_map(Head::last_layer).collect()
    }

    /// Logits for features of crops of `batch` images each.
    pub fn forward(
        &self,
        params: &Params,
        features: RowFeatures,
        batch: usize,
        ctx: &ForwardCtx,
    ) -> Predictions {
        let view_logits = self.view.forward(params, features.view.clone(), ctx);
        let region = self.region.as_ref().map(|head| {
            let logits = head.forward(params, features.region.clone(), ctx);
            let tokens = features.tokens_per_view(batch);
            RegionPredictions { logits, features: features.region.clone(), tokens }
        });
        Predictions { view_features: features.view, view_logits, region }
    }
}
