//! Training steps of a classifier.

use esvit_kernels::{buffer, pool};
use esvit_nn::forward_ctx::DropPathKey;
use esvit_nn::{Device, ParamGradients, Tape, Tensor};
use esvit_nn::{ForwardCtx, Params};
use esvit_train::mixup;
use esvit_train::optim::{self, ClipScope, Optimizer, OptimizerKind};

use super::FinetuneError;
use super::data::Batch;
use super::model::{Classifier, cross_entropy, layer_lr_scales, one_hot};
use super::settings::Settings;

/// A classifier in training.
#[derive(Debug)]
pub struct Trainer {
    /// The network.
    pub network: Classifier,
    /// Its parameters.
    pub params: Params,
    optimizer: Optimizer,
    layer_lr_scales: Vec<f64>,
    settings: Settings,
    classes: usize,
    /// Size of the crops in pixels.
    size: usize,
}

impl Trainer {
    /// A trainer for crops of `size` pixels.
    pub fn new(
        network: Classifier,
        params: Params,
        classes: usize,
        size: usize,
        settings: &Settings,
    ) -> Self {
        let stages = network.backbone.config().stages();
        let depths: Vec<usize> = stages.iter().map(|stage| stage.blocks).collect();
        let layer_lr_scales = layer_lr_scales(network.specs(), &depths, settings.layer_decay);
        let optimizer =
            Optimizer::new(OptimizerKind::AdamW, network.specs(), &params.flat().device());
        Self {
            network,
            params,
            optimizer,
            layer_lr_scales,
            settings: settings.clone(),
            classes,
            size,
        }
    }

    /// One optimizer step on a non-empty batch; returns the loss.
    ///
    /// # Errors
    /// [`FinetuneError::NotFinite`] if the loss or its gradient is not finite; parameters are then
    /// unchanged.
    pub fn step(&mut self, step: u64, lr: f64, batch: Batch) -> Result<f32, FinetuneError> {
        pool::run(|| self.step_on_this_thread(step, lr, batch))
    }

    fn step_on_this_thread(
        &mut self,
        step: u64,
        lr: f64,
        batch: Batch,
    ) -> Result<f32, FinetuneError> {
        let (loss, gradients) = self.gradients(step, batch);
        let limit = Some(self.settings.clip_grad).filter(|&limit| limit > 0.0);
        let (grad_norm, scales) = optim::clip(&gradients, limit, ClipScope::Global);
        if !loss.is_finite() || !grad_norm.is_finite() {
            let Settings { lr, precision, .. } = self.settings;
            return Err(FinetuneError::NotFinite {
                step: step + 1,
                loss,
                grad_norm,
                lr,
                precision,
            });
        }
        let lrs: Vec<f64> = self.layer_lr_scales.iter().map(|scale| lr * scale).collect();
        let weight_decay = self.settings.weight_decay;
        self.optimizer.step_without_ema(&mut self.params, &gradients, &scales, &lrs, weight_decay);
        buffer::end_step();
        Ok(loss)
    }

    /// Loss and gradients of a batch.
    fn gradients(&self, step: u64, batch: Batch) -> (f32, ParamGradients) {
        let (images, targets) = self.apply_mixup(step, batch);
        let key = DropPathKey { seed: self.settings.seed, step, micro_batch: 0 };
        let pass = ForwardCtx::student(key).with_precision(self.settings.precision);
        let tape = Tape::new();
        let params = self.params.tracked(&tape);
        let loss = cross_entropy(self.network.logits(&params, images, &pass), targets);
        let mut gradients = ParamGradients::new(self.params.specs(), &loss.device());
        gradients.add_backward(&tape, &params, &loss);
        (loss.item(), gradients)
    }

    /// Images `[B, 3, size, size]` and targets `[B, classes]` after mixup and CutMix.
    fn apply_mixup(&self, step: u64, batch: Batch) -> (Tensor, Tensor) {
        let device = Device::Cpu;
        let targets = one_hot(&batch.labels, self.classes, self.settings.label_smoothing, &device);
        let shape = [batch.labels.len(), 3, self.size, self.size];
        let images = Tensor::new(batch.pixels, shape, &device);
        let Some(mixing) = self.settings.mixing() else { return (images, targets) };
        let (mut images, mut made_of) =
            mixup::mix(&[images], &mixing, self.settings.seed, [step, 0]);
        (images.swap_remove(0), made_of.swap_remove(0).matmul(targets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::backbone;

    /// A mixed image is made of what its target says.
    #[test]
    fn images_and_targets_are_mixed_alike() {
        let backbone = backbone(1);
        let network = Classifier::new(&backbone.network.config(), 3, 0.0);
        let params = network.start_from(&backbone, 1);
        let settings = Settings { mixup: 1.0, cutmix: 0.0, ..Settings::new(1, false) };
        let settings = Settings { label_smoothing: 0.3, ..settings };
        let trainer = Trainer::new(network, params, 3, 16, &settings);
        let level = [1.0, 10.0, 100.0];
        let pixels = level.iter().flat_map(|&level| vec![level; 3 * 256]).collect();
        let batch = Batch { pixels, labels: vec![0, 1, 2], left_out: Vec::new() };
        let (images, targets) = trainer.apply_mixup(5, batch);
        let (images, targets) = (images.to_vec::<f32>(), targets.to_vec::<f32>());
        let mut apply_mixup = 0;
        for (image, target) in images.chunks(3 * 256).zip(targets.chunks(3)) {
            // Less what smoothing gives to every class.
            let shares: Vec<f32> = target.iter().map(|share| (share - 0.1) / 0.7).collect();
            let expected: f32 = shares.iter().zip(level).map(|(share, level)| share * level).sum();
            assert!(image.iter().all(|v| (v - expected).abs() < 1e-3), "{image:?} {target:?}");
            apply_mixup += usize::from(shares.iter().all(|share| *share < 0.99));
        }
        assert!(apply_mixup > 0);
    }
}
