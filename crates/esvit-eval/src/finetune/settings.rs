//! Settings of fine-tuning.

use esvit_data::augment::RandAugment;
use esvit_data::{Policy, Preprocess, ViewsConfig};
use esvit_nn::ops::Precision;
use esvit_settings::{SettingError, check};
use esvit_train::config::LR_BATCH;
use esvit_train::mixup::{ALPHA_RANGE, MixupConfig};
use esvit_train::schedule::CosineSchedule;
use serde::Serialize;

/// Default warm-up, as a share of the epochs.
const WARMUP_SHARE: f64 = 0.1;

/// The recipe. Its defaults are the usual ones for fine-tuning Swin transformers after
/// self-supervised pre-training.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Random initialization instead of the backbone's weights (supervised training).
    pub from_scratch: bool,
    /// Number of epochs.
    pub epochs: u64,
    /// Batch size; the last batch of an epoch may be smaller.
    pub batch_size: usize,
    /// Peak learning rate for a batch size of 256, scaled linearly with the batch size.
    pub lr: f64,
    /// Epochs of linear warm-up, before a cosine decay to 0.
    pub warmup_epochs: f64,
    /// Layer-wise learning rate decay, per block.
    pub layer_decay: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Maximum global gradient norm; 0 disables clipping.
    pub clip_grad: f64,
    /// Range of the area of a random resized crop, as shares of the image.
    pub scale: [f64; 2],
    /// RandAugment with two operations per crop (`rand-m9-mstd0.5-inc1`).
    pub randaugment: bool,
    /// Mixup alpha; 0 disables mixup.
    pub mixup: f64,
    /// CutMix alpha; 0 disables CutMix. If both are enabled, each step uses either with equal
    /// probability.
    pub cutmix: f64,
    /// Label smoothing.
    pub label_smoothing: f64,
    /// Stochastic depth rate of the last block, increasing linearly from 0 at the first.
    pub drop_path: f64,
    /// Precision of GEMM operands and saved activations in training.
    pub precision: Precision,
    /// Seed of initialization, order, augmentation, mixing and stochastic depth.
    pub seed: u64,
}

impl Settings {
    /// The defaults for a number of epochs. Layer-wise decay is only used with pre-trained weights.
    pub fn new(epochs: u64, from_scratch: bool) -> Self {
        Self {
            from_scratch,
            epochs,
            batch_size: 64,
            lr: 1e-3,
            warmup_epochs: WARMUP_SHARE * epochs as f64,
            layer_decay: if from_scratch { 1.0 } else { 0.8 },
            weight_decay: 0.05,
            clip_grad: 5.0,
            scale: [0.08, 1.0],
            randaugment: false,
            mixup: 0.8,
            cutmix: 1.0,
            label_smoothing: 0.1,
            drop_path: 0.1,
            precision: Precision::auto(),
            seed: 0,
        }
    }

    /// Checks all settings.
    ///
    /// # Errors
    /// [`SettingError`] for the first invalid setting.
    pub fn validate(&self) -> Result<(), SettingError> {
        let number = |key: &str, value: f64, good: bool, need: &str| {
            check(good && value.is_finite(), key, value, need)
        };
        const SHARE: &str = "it must be at least 0 and below 1";
        const DECAY: &str = "it must be 0 to 100";
        const NORM: &str = "it must be 0 to 1e12";
        const MIX: &str = "give 0 for none, or 0.01 to 5";
        let mixes = |value| value == 0.0 || (ALPHA_RANGE[0]..=ALPHA_RANGE[1]).contains(&value);
        let [low, high] = self.scale;
        let epochs = (1..=100_000).contains(&self.epochs);
        check(epochs, "--epochs", self.epochs, "it must be 1 to 100000")?;
        let batch = (1..=65_536).contains(&self.batch_size);
        check(batch, "--batch-size", self.batch_size, "it must be 1 to 65536")?;
        let lr = 0.0 < self.lr && self.lr <= 100.0;
        number("--lr", self.lr, lr, "it must be above 0 and at most 100")?;
        let warmup = (0.0..=self.epochs as f64).contains(&self.warmup_epochs);
        number("--warmup-epochs", self.warmup_epochs, warmup, "give 0 to the number of epochs")?;
        let decays = 0.0 < self.layer_decay && self.layer_decay <= 1.0;
        number("--layer-decay", self.layer_decay, decays, "it must be above 0 and at most 1")?;
        let decay = (0.0..=100.0).contains(&self.weight_decay);
        number("--weight-decay", self.weight_decay, decay, DECAY)?;
        let norm = (0.0..=1e12).contains(&self.clip_grad);
        number("--clip-grad", self.clip_grad, norm, NORM)?;
        check(
            0.0 < low && low <= high && high <= 1.0,
            "--scale",
            format_args!("{low} {high}"),
            "give two shares with 0 < low <= high <= 1",
        )?;
        number("--mixup", self.mixup, mixes(self.mixup), MIX)?;
        number("--cutmix", self.cutmix, mixes(self.cutmix), MIX)?;
        let share = |value: f64| (0.0..1.0).contains(&value);
        number("--label-smoothing", self.label_smoothing, share(self.label_smoothing), SHARE)?;
        number("--drop-path", self.drop_path, share(self.drop_path), SHARE)
    }

    /// The learning rate schedule, before layer-wise decay.
    pub fn schedule(&self, steps_per_epoch: u64, batch: usize) -> CosineSchedule {
        let base = self.lr * batch as f64 / LR_BATCH;
        let warmup_steps = (self.warmup_epochs * steps_per_epoch as f64).round() as u64;
        let total_steps = self.epochs * steps_per_epoch;
        // Warm-up does not start at 0, where the first step would change nothing.
        let start = base / warmup_steps.max(1) as f64;
        CosineSchedule { start, base, last: 0.0, warmup_steps, total_steps }
    }

    /// The mixup configuration, if enabled.
    pub fn mixing(&self) -> Option<MixupConfig> {
        let switch_prob = match (self.mixup > 0.0, self.cutmix > 0.0) {
            (false, false) => return None,
            (true, false) => 0.0,
            (false, true) => 1.0,
            (true, true) => 0.5,
        };
        let (mixup_alpha, cutmix_alpha) = (self.mixup, self.cutmix);
        Some(MixupConfig { enabled: true, mixup_alpha, cutmix_alpha, switch_prob, views: 1 })
    }

    /// Augmentation of training images: the first of these views is used.
    pub fn views(&self, preprocess: &Preprocess) -> ViewsConfig {
        let mut views = ViewsConfig {
            global_size: preprocess.transform.crop,
            global_scale: self.scale,
            interpolation: preprocess.transform.interpolation,
            mean: preprocess.mean,
            std: preprocess.std,
            ..ViewsConfig::for_policy(Policy::Basic)
        };
        if self.randaugment {
            views.randaugment = RandAugment { ops: 2, ..views.randaugment };
        }
        views
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_grows_with_the_batch_and_falls_to_nothing() {
        let settings = Settings { warmup_epochs: 1.0, lr: 1.0, ..Settings::new(10, false) };
        let schedule = settings.schedule(4, 128);
        let rates: Vec<f64> = (0..40).map(|step| schedule.at(step)).collect();
        assert_eq!(rates[..5], [0.125, 0.25, 0.375, 0.5, 0.5]);
        assert!(rates[4..].windows(2).all(|pair| pair[1] < pair[0]) && rates[39] < 0.002);
        // Without a warm-up, the first step takes all of it.
        let settings = Settings { warmup_epochs: 0.0, ..settings };
        assert_eq!(settings.schedule(4, 256).at(0), 1.0);
    }

    #[test]
    fn settings_that_make_no_sense_are_named() {
        let good = Settings::new(3, false);
        assert_eq!(good.validate(), Ok(()));
        let bad = [
            ("epochs", Settings { epochs: 0, warmup_epochs: 0.0, ..good.clone() }),
            ("lr", Settings { lr: f64::NAN, ..good.clone() }),
            ("lr", Settings { lr: f64::INFINITY, ..good.clone() }),
            ("warmup-epochs", Settings { warmup_epochs: 4.0, ..good.clone() }),
            ("layer-decay", Settings { layer_decay: 1.5, ..good.clone() }),
            ("scale", Settings { scale: [0.5, 0.2], ..good.clone() }),
            // Drawing from these distributions would hardly ever end.
            ("epochs", Settings { epochs: u64::MAX, ..good.clone() }),
            ("batch-size", Settings { batch_size: usize::MAX, ..good.clone() }),
            ("lr", Settings { lr: 1e30, ..good.clone() }),
            ("lr", Settings { lr: f64::INFINITY, ..good.clone() }),
            ("weight-decay", Settings { weight_decay: 1e30, ..good.clone() }),
            ("clip-grad", Settings { clip_grad: 1e30, ..good.clone() }),
            ("mixup", Settings { mixup: 100.0, ..good.clone() }),
            ("cutmix", Settings { cutmix: 1e-9, ..good.clone() }),
            ("label-smoothing", Settings { label_smoothing: 1.0, ..good.clone() }),
            ("drop-path", Settings { drop_path: -0.1, ..good.clone() }),
        ];
        for (option, settings) in bad {
            assert_eq!(settings.validate().unwrap_err().key, format!("--{option}"));
        }
    }

    #[test]
    fn mixing_takes_what_is_on() {
        let with = |mixup, cutmix| Settings { mixup, cutmix, ..Settings::new(1, false) }.mixing();
        assert_eq!(with(0.0, 0.0), None);
        let switch = |mixup, cutmix| with(mixup, cutmix).unwrap().switch_prob;
        assert_eq!((switch(0.8, 0.0), switch(0.0, 1.0), switch(0.8, 1.0)), (0.0, 1.0, 0.5));
    }

    #[test]
    fn defaults_are_those_of_the_recipe() {
        let [tuned, scratch] = [false, true].map(|from_scratch| Settings::new(30, from_scratch));
        assert_eq!((tuned.layer_decay, scratch.layer_decay, tuned.warmup_epochs), (0.8, 1.0, 3.0));
        assert_eq!((tuned.mixup, tuned.cutmix, tuned.label_smoothing), (0.8, 1.0, 0.1));
        assert_eq!((tuned.batch_size, tuned.lr, tuned.weight_decay), (64, 1e-3, 0.05));
        assert_eq!((tuned.clip_grad, tuned.drop_path, tuned.scale), (5.0, 0.1, [0.08, 1.0]));
    }

    #[test]
    fn crops_are_made_as_the_backbone_is_shown_images() {
        let mut preprocess = Preprocess::new(96, 0, &ViewsConfig::default());
        (preprocess.mean, preprocess.std) = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]);
        let settings = Settings { scale: [0.3, 0.7], ..Settings::new(1, false) };
        let views = settings.views(&preprocess);
        assert_eq!((views.global_size, views.global_scale), (96, [0.3, 0.7]));
        assert_eq!((views.mean, views.std), (preprocess.mean, preprocess.std));
        assert_eq!(views.interpolation, preprocess.transform.interpolation);
        let more = Settings { randaugment: true, ..settings }.views(&preprocess);
        assert_eq!((views.randaugment.ops, more.randaugment.ops), (0, 2));
    }
}
