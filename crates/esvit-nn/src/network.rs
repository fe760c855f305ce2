//! Backbone and heads together, over several crops of each image.

use std::sync::Arc;

use crate::tensor::Tensor;

use crate::backbone::{Backbone, BackboneConfig};
use crate::forward_ctx::ForwardCtx;
use crate::head::{Head, HeadConfig};
use crate::ops::PrototypeLogits;
use crate::params::{ParamList, Params, Registry};

/// A backbone with the head of the view task and, with the region task, a second head.
#[derive(Debug)]
pub struct Network {
    backbone: Arc<dyn Backbone>,
    head: Head,
    head_dense: Option<Head>,
    specs: Arc<ParamList>,
}

/// Features and logits of a list of crops.
///
/// Rows are crop-major: all images of the first crop, then of the second. Region rows are the
/// tokens of these images, row-major over the map.
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

impl Network {
    /// A backbone with its heads; `region` adds the head of the region task, `head_dense`.
    pub fn new(backbone: &BackboneConfig, drop_path: f64, head: &HeadConfig, region: bool) -> Self {
        let mut registry = Registry::default();
        let mut scope = registry.root();
        let width = backbone.output_width();
        let backbone = backbone.build_in(&mut scope, drop_path);
        let view_head = Head::new(&mut scope.at("head"), width, head);
        let head_dense = region.then(|| Head::new(&mut scope.at("head_dense"), width, head));
        Self { backbone, head: view_head, head_dense, specs: registry.finish() }
    }

    /// The backbone.
    pub fn backbone(&self) -> &dyn Backbone {
        &*self.backbone
    }

    /// Number of prototypes, K.
    pub fn prototypes(&self) -> usize {
        self.head.prototype_count()
    }

    /// Whether there is a head of the region task.
    pub fn has_region_head(&self) -> bool {
        self.head_dense.is_some()
    }

    /// The parameters of backbone and heads.
    pub fn specs(&self) -> &Arc<ParamList> {
        &self.specs
    }

    /// Features and logits of `crops`, each `[B, 3, H, W]`. All are one batch of rows: neighboring
    /// crops of one size are concatenated into one segment.
    pub fn forward(&self, params: &Params, crops: &[Tensor], ctx: &ForwardCtx) -> Predictions {
        let groups: Vec<Tensor> = crops
            .chunk_by(|a, b| a.shape() == b.shape())
            .map(|group| match group {
                [crop] => crop.clone(),
                group => Tensor::cat(group.to_vec(), 0),
            })
            .collect();
        let features = self.backbone.features(params, groups, ctx);
        let view_logits = self.head.forward(params, features.view.clone(), ctx);
        let region = self.head_dense.as_ref().map(|head| {
            let logits = head.forward(params, features.region.clone(), ctx);
            let tokens = features.segments.iter().flat_map(|segment| {
                let crops = segment.images / crops[0].shape()[0];
                std::iter::repeat_n(segment.tokens(), crops)
            });
            let tokens = tokens.collect();
            RegionPredictions { logits, features: features.region.clone(), tokens }
        });
        Predictions { view_features: features.view, view_logits, region }
    }
}
