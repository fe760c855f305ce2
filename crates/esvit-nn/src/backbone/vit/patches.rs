//! What makes tokens of patches: a linear layer, or convolutions.

use super::TokenMaps;
use super::config::{PatchEmbedding, VitConfig};
use crate::backbone::CHANNELS;
use crate::backbone::maps::joined;
use crate::forward_ctx::ForwardCtx;
use crate::layers::{BATCH_NORM_EPS, BatchNorm, Conv};
use crate::ops::{self, Activation};
use crate::params::{Init, ParamId, Params, Role, Scope};
use crate::tensor::Tensor;

/// Convolutions of stride 2 in the stem.
const STEM: usize = 4;

/// The patch embedding.
#[derive(Debug)]
pub(super) enum Patches {
    /// A linear layer of the pixels of every patch.
    Linear(Projection),
    /// Convolutions, each with batch normalization and ReLU, and a linear layer of what they make.
    Stem {
        /// Side of a token in pixels.
        patch: usize,
        layers: Vec<(Conv, BatchNorm)>,
        last: Conv,
    },
}

/// A linear layer of patches, which is a convolution in files.
#[derive(Debug)]
pub(super) struct Projection {
    patch: usize,
    width: usize,
    weight: ParamId,
    bias: ParamId,
}

impl Patches {
    pub(super) fn new(scope: &mut Scope<'_>, config: &VitConfig) -> Self {
        let (patch, width) = (config.patch_size, config.embed_dim);
        let mut scope = scope.at("patch_embed.proj");
        let fan_in = CHANNELS * patch * patch;
        // PyTorch's default for convolutions, which the official code does not change.
        let uniform = Init::Uniform((fan_in as f64).powf(-0.5));
        match config.patch_embedding {
            PatchEmbedding::Linear => {
                Self::linear(&mut scope, config, Role::Trained, [uniform, uniform])
            }
            PatchEmbedding::Frozen => {
                // Glorot and Bengio's, as in MoCo v3.
                let glorot = Init::Uniform((6.0 / (fan_in + width) as f64).sqrt());
                Self::linear(&mut scope, config, Role::Frozen, [glorot, Init::Zeros])
            }
            PatchEmbedding::ConvStem => {
                let mut inputs = CHANNELS;
                let layer = |layer: usize| {
                    // Places in PyTorch's `nn.Sequential`: convolution, normalization, ReLU.
                    let outputs = width >> (STEM - 1 - layer);
                    let init = Init::Uniform(((9 * inputs) as f64).powf(-0.5));
                    let size = [inputs, outputs, 3];
                    let conv = Conv::new(&mut scope.at(3 * layer), size, 2, init);
                    let mut norm = scope.at(3 * layer + 1);
                    inputs = outputs;
                    (conv, BatchNorm::new(&mut norm, outputs, BATCH_NORM_EPS))
                };
                let layers = (0..STEM).map(layer).collect();
                let last = Conv::of_patches(&mut scope.at(3 * STEM), [width, width], 1);
                Self::Stem { patch, layers, last }
            }
        }
    }

    fn linear(
        scope: &mut Scope<'_>,
        config: &VitConfig,
        role: Role,
        [weight, bias]: [Init; 2],
    ) -> Self {
        let (patch, width) = (config.patch_size, config.embed_dim);
        let shape = [width, CHANNELS, patch, patch];
        let weight = scope.register("weight", &shape, weight, role);
        let bias = scope.register("bias", &[width], bias, role);
        Self::Linear(Projection { patch, width, weight, bias })
    }

    /// The tokens of images, each batch of its own size. Pixels beyond the last whole patch are dropped.
    pub(super) fn forward(
        &self,
        params: &Params,
        images: Vec<Tensor>,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        match self {
            Self::Linear(Projection { patch, width, weight, bias }) => {
                let (rows, segments): (Vec<_>, Vec<_>) =
                    images.into_iter().map(|images| ops::patchify(images, *patch)).unzip();
                let columns = CHANNELS * patch * patch;
                let weight = params.vector(*weight).reshape([*width, columns]);
                let (bias, none) = (params.vector(*bias), Activation::None);
                let rows = ops::linear(joined(rows), weight, bias, none, ctx.precision);
                TokenMaps { rows, segments }
            }
            Self::Stem { patch, layers, last } => {
                let images = images.into_iter().map(|images| whole_patches(images, *patch));
                let mut maps = TokenMaps::of_pixels(images.collect());
                for (conv, norm) in layers {
                    let convolved = conv.forward(params, maps, ctx);
                    maps = norm.forward_maps(params, convolved, ctx);
                    maps.rows = maps.rows.relu();
                }
                last.forward(params, maps, ctx)
            }
        }
    }
}

/// The pixels of whole patches.
fn whole_patches(images: Tensor, patch: usize) -> Tensor {
    let [_, _, height, width] = images.dims();
    let [height, width] = [height, width].map(|side| side / patch * patch);
    images.narrow(2, 0, height).narrow(3, 0, width)
}
