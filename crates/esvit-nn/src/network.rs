//! Backbone and heads together, over several crops of a picture.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::backbone::swin::{Swin, SwinConfig};
use crate::head::{Head, HeadConfig};
use crate::params::{ParamSpec, Params, Registry};
use crate::pass::Pass;

/// A backbone with the head of the view task and, when the region task is trained, its own head.
#[derive(Debug)]
pub struct Network {
    backbone: Swin,
    head: Head,
    head_dense: Option<Head>,
    specs: Arc<[ParamSpec]>,
}

/// What the heads say about a list of crops.
///
/// Rows are crop-major: all images of the first crop, then of the second; region rows list the
/// tokens of an image row-major below that.
#[derive(Debug, Clone)]
pub struct Predictions {
    /// View features, `[crops * B, C]`.
    pub view_features: Tensor<2>,
    /// View logits, `[crops * B, K]`.
    pub view_logits: Tensor<2>,
    /// The region task's part.
    pub region: Option<RegionPredictions>,
}

/// The region task's part of [`Predictions`].
#[derive(Debug, Clone)]
pub struct RegionPredictions {
    /// Logits, `[sum over crops of B * T_crop, K]`.
    pub logits: Tensor<2>,
    /// Region features before the head, `[sum over crops of B * T_crop, C]`.
    pub features: Tensor<2>,
    /// Tokens of an image, T, for every crop.
    pub tokens: Vec<usize>,
}

impl Network {
    /// A Swin backbone with its heads; `region` adds the head of the region task, `head_dense`.
    pub fn new(backbone: &SwinConfig, drop_path: f64, head: &HeadConfig, region: bool) -> Self {
        let mut registry = Registry::default();
        let mut scope = registry.root();
        let width = backbone.output_width();
        let backbone = Swin::new(&mut scope, backbone, drop_path);
        let view_head = Head::new(&mut scope.at("head"), width, head);
        let head_dense = region.then(|| Head::new(&mut scope.at("head_dense"), width, head));
        Self { backbone, head: view_head, head_dense, specs: registry.finish() }
    }

    /// The backbone.
    pub fn backbone(&self) -> &Swin {
        &self.backbone
    }

    /// Number of prototypes, K.
    pub fn prototypes(&self) -> usize {
        self.head.prototype_count()
    }

    /// Whether the region task has its head.
    pub fn has_region_head(&self) -> bool {
        self.head_dense.is_some()
    }

    /// The parameters of backbone and heads.
    pub fn specs(&self) -> &Arc<[ParamSpec]> {
        &self.specs
    }

    /// Predictions for `crops`, each `[B, 3, H, W]`. Neighbouring crops of one size run through
    /// the backbone as one batch; the heads run once over all.
    pub fn forward(&self, params: &Params, crops: &[Tensor<4>], pass: &Pass) -> Predictions {
        let mut views = Vec::new();
        let mut regions = Vec::new();
        let mut tokens = Vec::new();
        for group in crops.chunk_by(|a, b| a.dims() == b.dims()) {
            let images = Tensor::cat(group.to_vec(), 0);
            let features = self.backbone.forward(params, images, pass);
            views.push(features.view);
            if self.head_dense.is_some() {
                let [rows, per_image, width] = features.region.dims();
                regions.push(features.region.reshape([rows * per_image, width]));
                tokens.extend(group.iter().map(|_| per_image));
            }
        }
        let view_features = Tensor::cat(views, 0);
        let view_logits = self.head.forward(params, view_features.clone(), pass);
        let region = self.head_dense.as_ref().map(|head| {
            let features = Tensor::cat(regions, 0);
            let logits = head.forward(params, features.clone(), pass);
            RegionPredictions { logits, features, tokens }
        });
        Predictions { view_features, view_logits, region }
    }
}
