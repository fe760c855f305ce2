//! A backbone with a linear classifier on its view feature.

use std::sync::Arc;

use esvit_nn::layers::Linear;
use esvit_nn::ops::Activation;
use esvit_nn::params::{ParamList, ParamSpec, Registry};
use esvit_nn::{Backbone, BackboneConfig, ForwardCtx, Params};
use esvit_nn::{Device, Tensor};

use esvit_model::PretrainedBackbone;

/// A classifier network. The backbone's parameters come first, under their official names; the
/// linear layer's are `classifier.weight [classes, C]` and `classifier.bias [classes]`.
#[derive(Debug)]
pub struct Classifier {
    /// The backbone.
    pub backbone: Arc<dyn Backbone>,
    linear: Linear,
    specs: Arc<ParamList>,
}

impl Classifier {
    /// A network with `classes` outputs; `drop_path` is the stochastic depth rate of the last
    /// block.
    pub fn new(shape: &BackboneConfig, classes: usize, drop_path: f64) -> Self {
        let mut registry = Registry::default();
        let mut scope = registry.root();
        let backbone = shape.build_in(&mut scope, drop_path);
        let linear = Linear::new(&mut scope.at("classifier"), shape.output_width(), classes);
        Self { backbone, linear, specs: registry.finish() }
    }

    /// All parameters, the backbone's first.
    pub fn specs(&self) -> &Arc<ParamList> {
        &self.specs
    }

    /// The parameters of a backbone of the same configuration, and a newly initialized classifier.
    pub fn start_from(&self, backbone: &PretrainedBackbone, seed: u64) -> Params {
        let mut known = backbone.params.values().into_iter();
        Params::from_fn(&self.specs, &Device::Cpu, |spec| {
            known.next().map_or_else(|| spec.initial_values(seed), |value| value.to_vec())
        })
    }

    /// Logits `[B, classes]` of normalized pixels `[B, 3, H, W]`.
    pub fn logits(&self, params: &Params, images: Tensor, pass: &ForwardCtx) -> Tensor {
        self.classify(params, self.backbone.forward(params, images, pass).view, pass)
    }

    /// Logits `[B, classes]` of view features `[B, C]`.
    pub fn classify(&self, params: &Params, features: Tensor, pass: &ForwardCtx) -> Tensor {
        self.linear.forward(params, features, Activation::None, pass)
    }
}

/// Layer-wise learning rate decay: a factor for each parameter. Classifier and last norm have 1;
/// each block has `decay` times the factor of the block after it, and the patch embedding comes
/// before the first block. Patch merging belongs to the last block of its stage. (BEiT's grouping,
/// applied to Swin as in SimMIM.)
pub fn layer_lr_scales(specs: &[ParamSpec], depths: &[usize], decay: f64) -> Vec<f64> {
    let last = depths.iter().sum::<usize>() + 1;
    let scale = |spec: &ParamSpec| decay.powi((last - layer_index(&spec.name, depths)) as i32);
    specs.iter().map(scale).collect()
}

/// Layer index of a parameter: 0 for the patch embedding, then the blocks of all stages.
fn layer_index(name: &str, depths: &[usize]) -> usize {
    if name.starts_with("patch_embed.") {
        return 0;
    }
    block_layer(name, depths).unwrap_or(depths.iter().sum::<usize>() + 1)
}

fn block_layer(name: &str, depths: &[usize]) -> Option<usize> {
    let (stage, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let stage: usize = stage.parse().ok()?;
    let before: usize = depths[..stage].iter().sum();
    match rest.strip_prefix("blocks.") {
        Some(rest) => Some(before + rest.split_once('.')?.0.parse::<usize>().ok()? + 1),
        None => Some(before + depths[stage]),
    }
}

/// Targets `[B, classes]` with label smoothing: one-hot times `1 - smoothing`, plus
/// `smoothing / classes`.
pub fn one_hot(labels: &[u32], classes: usize, smoothing: f64, device: &Device) -> Tensor {
    let spread = smoothing / classes as f64;
    let mut values = vec![spread as f32; labels.len() * classes];
    for (row, &label) in values.chunks_exact_mut(classes).zip(labels) {
        row[label as usize] = (1.0 - smoothing + spread) as f32;
    }
    Tensor::new(values, [labels.len(), classes], device)
}

/// Mean cross-entropy of logits `[B, classes]` against targets that sum to 1 per row.
pub fn cross_entropy(logits: Tensor, targets: Tensor) -> Tensor {
    let rows = logits.shape()[0] as f64;
    -(logits.log_softmax(1) * targets).sum() / rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Tape;
    use esvit_nn::backbone::swin::SwinConfig;
    use esvit_nn::forward_ctx::DropPathKey;
    use esvit_testing::tiny_swin;

    fn shape() -> BackboneConfig {
        BackboneConfig::Swin(SwinConfig { depths: vec![1, 2], ..tiny_swin() })
    }

    #[test]
    fn layers_nearer_to_the_pixels_learn_more_slowly() {
        let network = Classifier::new(&shape(), 3, 0.0);
        let scales = layer_lr_scales(network.specs(), &[1, 2], 0.5);
        let mut groups: Vec<(f64, Vec<&str>)> = Vec::new();
        for (spec, scale) in network.specs().iter().zip(scales) {
            match groups.iter_mut().find(|(known, _)| *known == scale) {
                Some((_, names)) => names.push(&spec.name),
                None => groups.push((scale, vec![&spec.name])),
            }
        }
        let starts = [
            (0.0625, vec!["patch_embed."]),
            (0.125, vec!["layers.0.blocks.0.", "layers.0.downsample."]),
            (0.25, vec!["layers.1.blocks.0."]),
            (0.5, vec!["layers.1.blocks.1."]),
            (1.0, vec!["norm.", "classifier."]),
        ];
        assert_eq!(groups.len(), starts.len());
        for ((scale, names), (expected, starts)) in groups.iter().zip(starts) {
            assert_eq!(*scale, expected, "{names:?}");
            let known = |name: &&str| starts.iter().any(|start| name.starts_with(start));
            assert!(names.iter().all(known), "{scale}: {names:?}");
            assert!(starts.iter().all(|start| names.iter().any(|name| name.starts_with(start))));
        }
        assert!(layer_lr_scales(network.specs(), &[1, 2], 1.0).iter().all(|&scale| scale == 1.0));
    }

    /// By hand: two classes, scores 0 and ln 3, so probabilities 1/4 and 3/4.
    #[test]
    fn soft_cross_entropy() {
        let device = Device::Cpu;
        let logits = Tensor::new(vec![0.0, 3f32.ln(), 0.0, 3f32.ln()], [2, 2], &device);
        let loss = |smoothing| {
            let targets = one_hot(&[1, 0], 2, smoothing, &device);
            cross_entropy(logits.clone(), targets).item()
        };
        let (right, wrong) = (-(0.75f32.ln()), -(0.25f32.ln()));
        assert!((loss(0.0) - 0.5 * (right + wrong)).abs() < 1e-6);
        let one = cross_entropy(logits.clone().narrow(0, 0, 1), one_hot(&[1], 2, 0.2, &device));
        assert!((one.item() - (0.9 * right + 0.1 * wrong)).abs() < 1e-6);
        let sums = one_hot(&[3, 1, 0], 7, 0.3, &device).sum_dim(1).to_vec::<f32>();
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6));
    }

    #[test]
    fn gradients_reach_every_parameter() {
        let device = Device::Cpu;
        let network = Classifier::new(&shape(), 1200, 0.0);
        let tape = Tape::new();
        let params = Params::init(network.specs(), 3, &device).tracked(&tape);
        let pixels = (0..2 * 3 * 32 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
        let images = Tensor::new(pixels, [2, 3, 32, 32], &device);
        let pass = ForwardCtx::student(DropPathKey { seed: 0, step: 0, micro_batch: 0 });
        let logits = network.logits(&params, images, &pass);
        assert_eq!(logits.dims(), [2, 1200]);
        let targets = one_hot(&[1199, 0], 1200, 0.1, &device);
        let gradients = tape.backward(&cross_entropy(logits, targets));
        for (spec, value) in params.iter() {
            let gradient = gradients.of(&value).map(|gradient| gradient.to_vec::<f32>());
            let reached = gradient.is_some_and(|values| values.iter().any(|value| *value != 0.0));
            assert!(reached, "`{}` has no gradient", spec.name);
        }
    }
}
