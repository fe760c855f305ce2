//! A backbone with the heads that an objective adds, over several crops of each image.

use std::sync::Arc;

use crate::backbone::{Backbone, BackboneConfig, Input, RowFeatures, TokenMask};
use crate::forward_ctx::ForwardCtx;
use crate::params::{ParamList, Params, Part, Registry, Role, Scope};
use crate::tensor::Tensor;

/// A backbone, and the parameters of backbone and heads.
#[derive(Debug, Clone)]
pub struct Network {
    backbone: Arc<dyn Backbone>,
    specs: Arc<ParamList>,
}

impl Network {
    /// A backbone with stochastic depth up to `drop_path`, and the heads that `heads` registers on
    /// features of its width.
    pub fn new<H>(
        backbone: &BackboneConfig,
        drop_path: f64,
        heads: impl FnOnce(&mut Scope<'_>, usize) -> H,
    ) -> (Self, H) {
        Self::with(|scope| backbone.build_in(scope, drop_path), heads)
    }

    /// The same for a backbone that is no [`BackboneConfig`].
    pub fn with<H>(
        backbone: impl FnOnce(&mut Scope<'_>) -> Arc<dyn Backbone>,
        heads: impl FnOnce(&mut Scope<'_>, usize) -> H,
    ) -> (Self, H) {
        let mut registry = Registry::default();
        let mut scope = registry.root();
        let backbone = backbone(&mut scope);
        let width = backbone.output_width();
        let mut scope = registry.root().part(Part::Head("head".into()));
        let heads = heads(&mut scope, width);
        (Self { backbone, specs: registry.finish() }, heads)
    }

    /// The backbone.
    pub fn backbone(&self) -> &dyn Backbone {
        &*self.backbone
    }

    /// The parameters of backbone and heads.
    pub fn specs(&self) -> &Arc<ParamList> {
        &self.specs
    }

    /// View and region features of `crops`, each `[B, 3, H, W]`. All are one batch of rows:
    /// neighboring crops of one size are concatenated into one segment.
    ///
    /// Rows are crop-major: all images of the first crop, then of the second. Region rows are the
    /// tokens of these images, row-major over the map.
    pub fn features(&self, params: &Params, crops: &[Tensor], ctx: &ForwardCtx) -> RowFeatures {
        self.masked_features(params, crops, None, ctx)
    }

    /// The same with some tokens masked; those of `mask` are in the order of the crops.
    pub fn masked_features(
        &self,
        params: &Params,
        crops: &[Tensor],
        mask: Option<&TokenMask>,
        ctx: &ForwardCtx,
    ) -> RowFeatures {
        self.backbone.features(params, Input { images: groups(crops), mask }, ctx)
    }

    /// The same with batch statistics of every crop alone, as if the network ran once for each, where
    /// the backbone has any.
    pub fn features_by_crop(
        &self,
        params: &Params,
        crops: &[Tensor],
        ctx: &ForwardCtx,
    ) -> RowFeatures {
        if self.has_batch_norm() {
            self.backbone.features(params, crops.to_vec(), ctx)
        } else {
            self.features(params, crops, ctx)
        }
    }

    /// [`Network::features`] or, with `by_crop`, [`Network::features_by_crop`]. `stop` is asked after
    /// every block and ends the pass: None then.
    pub fn features_unless(
        &self,
        params: &Params,
        crops: &[Tensor],
        by_crop: bool,
        ctx: &ForwardCtx,
        stop: &dyn Fn() -> bool,
    ) -> Option<RowFeatures> {
        let images = if by_crop && self.has_batch_norm() { crops.to_vec() } else { groups(crops) };
        self.backbone.features_unless(params, images, ctx, stop)
    }

    /// Whether the backbone normalizes by statistics of the batch.
    pub fn has_batch_norm(&self) -> bool {
        self.specs.iter().any(|spec| spec.role == Role::Buffer && spec.part.is_backbone())
    }
}

/// Neighboring crops of one size as one batch.
fn groups(crops: &[Tensor]) -> Vec<Tensor> {
    let joined = |group: &[Tensor]| match group {
        [crop] => crop.clone(),
        group => Tensor::cat(group.to_vec(), 0),
    };
    crops.chunk_by(|a, b| a.shape() == b.shape()).map(joined).collect()
}
