//! The plan of a run, its loader and its learner.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use esvit_data::{Loader, LoaderConfig, LoaderError, Source, counted};
use esvit_kernels::pool;
use esvit_nn::ops::Precision;
use esvit_nn::params::Role;
use esvit_nn::{Collective, Device};

use crate::Learner;
use crate::config::Config;
use crate::learner::LearnerSettings;
use crate::objective::StepInfo;
use crate::schedule::{CosineSchedule, LrSchedule};
use crate::span::RunLength;

/// The plan of a run: lengths and schedules.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Steps done before.
    pub first_step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Steps per epoch.
    pub steps_per_epoch: u64,
    /// Images per step, over all processes.
    pub batch: usize,
    /// Steps from one checkpoint to the next.
    pub checkpoint_every: u64,
    /// Steps from one k-NN check to the next, if there are any.
    pub knn_every: Option<u64>,
    /// Images in the source.
    pub images: usize,
    /// How often each image comes up in an epoch.
    pub repeat: u32,
    /// CPU threads.
    pub threads: usize,
    /// The type of GEMM operands and saved activations.
    pub precision: Precision,
    /// The loss of a network whose outputs tell nothing.
    pub chance_loss: f64,
    /// How long the session takes, with its checks, if that was measured.
    pub time: Option<Duration>,
    description: String,
    lr: LrSchedule,
    weight_decay: CosineSchedule,
    log_every: u64,
}

impl Plan {
    pub(super) fn new(
        config: &Config,
        loader: &Loader,
        images: usize,
        learner: &Learner,
        first_step: u64,
    ) -> Self {
        let run = length(config, loader.steps_per_epoch());
        let RunLength { total_steps, steps_per_epoch } = run;
        let optim = &config.optim;
        let batch = config.train.batch_size;
        Self {
            first_step,
            total_steps,
            steps_per_epoch,
            batch,
            checkpoint_every: config.checkpoint.every.interval(run).unwrap_or(total_steps),
            knn_every: config.knn.every.interval(run),
            images,
            repeat: config.data.repeat,
            threads: pool::threads(),
            precision: learner.settings.precision,
            chance_loss: learner.objective.chance_loss(),
            time: None,
            description: describe(config, learner),
            lr: optim.lr_schedule(batch, run),
            weight_decay: CosineSchedule::new(
                optim.weight_decay,
                optim.weight_decay_end,
                total_steps,
            ),
            log_every: config.train.log_every,
        }
    }

    /// The length of the run.
    pub fn run(&self) -> RunLength {
        RunLength { total_steps: self.total_steps, steps_per_epoch: self.steps_per_epoch }
    }

    /// Whether something that comes up every so many steps, and at the end, is due after `done`.
    pub(super) fn is_due(&self, done: u64, every: u64) -> bool {
        done.is_multiple_of(every) || done == self.total_steps
    }

    /// Whole epochs done after a number of steps.
    pub fn epochs_done(&self, steps: u64) -> u64 {
        steps / self.steps_per_epoch.max(1)
    }

    /// The place and the scheduled values of a step.
    pub(super) fn step(&self, step: u64) -> StepInfo {
        StepInfo {
            step,
            epoch: self.epochs_done(step),
            run: self.run(),
            lr: self.lr.at(step),
            weight_decay: self.weight_decay.at(step),
            health: self.is_logged(step + 1),
        }
    }

    /// Whether metrics are logged after `done` steps.
    pub(super) fn is_logged(&self, done: u64) -> bool {
        self.is_due(done, self.log_every)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.description)?;
        write!(
            f,
            "{}, {} of {}, {} an epoch{}, {}, {}; a loss of {:.2} is that of chance",
            counted(self.images, "image"),
            counted(self.total_steps as usize, "step"),
            counted(self.batch, "image"),
            counted(self.steps_per_epoch as usize, "step"),
            match self.repeat {
                1 => String::new(),
                repeat => format!(" (each image {repeat} times)"),
            },
            counted(self.threads, "thread"),
            self.precision.name(),
            self.chance_loss,
        )
    }
}

fn describe(config: &Config, learner: &Learner) -> String {
    let parameters = |of_backbone: bool| -> f64 {
        let specs = learner.network.specs().iter().filter(|spec| spec.role != Role::Buffer);
        let specs = specs.filter(|spec| spec.part.is_backbone() == of_backbone);
        specs.map(|spec| spec.len()).sum::<usize>() as f64 / 1e6
    };
    let views = &config.views;
    let locals = views.local_sizes.iter().zip(&views.local_counts);
    let locals: String = locals
        .filter(|(_, count)| **count > 0)
        .map(|(size, count)| format!(" + {count} x {size} px"))
        .collect();
    let backbone = &config.model.backbone;
    format!(
        "{}, {} `{}` ({}, {:.2} M parameters, heads {:.2} M)\nviews {} x {} px{locals}",
        config.objective.settings().describe(),
        backbone.family(),
        config.model.arch,
        backbone.describe(),
        parameters(true),
        parameters(false),
        views.global_count,
        views.global_size,
    )
}

/// The length of a run with these settings. Where it depends on a time, it has no step yet.
pub(super) fn length(config: &Config, steps_per_epoch: u64) -> RunLength {
    let total_steps = config.train.total_steps(steps_per_epoch).unwrap_or(0);
    RunLength { total_steps, steps_per_epoch }
}

/// The loader of a run.
pub(super) fn loader(
    config: &Config,
    source: Arc<dyn Source>,
    collective: &dyn Collective,
) -> Result<Loader, LoaderError> {
    let data = &config.data;
    let settings = LoaderConfig {
        batch: config.train.batch_size,
        micro_batch: config.train.micro_batch().min(config.train.batch_size / collective.world()),
        world: collective.world(),
        rank: collective.rank(),
        repeat: data.repeat,
        workers: data.workers,
        prefetch: data.prefetch,
        seed: config.seed,
        max_broken: data.max_broken,
        max_side: data.max_side,
        cache_bytes: data.cache_mb << 20,
        levels: data.range.levels(),
        background: data.background.background(),
    };
    Loader::new(source, config.views.clone(), settings).map_err(|error| match error {
        LoaderError::Config(error) if error.key == "repeat" => {
            LoaderError::Config(error.within("data"))
        }
        error => error,
    })
}

/// An initialized learner, for images of `classes` classes.
pub(super) fn learner(
    config: &Config,
    device: &Device,
    classes: usize,
    collective: Arc<dyn Collective>,
) -> Learner {
    let (network, objective) = config.network(device, classes);
    let settings = LearnerSettings {
        seed: config.seed,
        clip_grad: config.optim.clip_grad,
        clip_scope: config.optim.clip_scope,
        precision: config.train.precision(),
        crop_chunks: config.crop_chunks(),
        activation_checkpointing: config.train.activation_checkpointing,
        layer_decay: config.optim.layer_decay,
        freeze_backbone: config.optim.freeze_backbone,
    };
    let optimizer = config.optim.optimizer();
    let learner = Learner::new(network, objective, optimizer, settings, device);
    Learner { collective, ..learner }
}

#[cfg(test)]
mod tests {
    use std::any::Any;

    use super::*;
    use crate::CropChunks;
    use crate::config::{
        CheckpointConfig, DataConfig, KnnConfig, ModelConfig, OptimConfig, PrecisionChoice,
        TrainConfig,
    };
    use crate::mixup::MixupConfig;
    use crate::objective::esvit::{
        Centering, Esvit, EsvitConfig, PatchesConfig, RegionConfig, RegionLoss, Weights,
    };
    use crate::objective::regions::Matching;
    use crate::objective::supervised::SupervisedConfig;
    use crate::objective::{EmaTiming, Objective, ObjectiveConfig, Setup, Teacher};
    use crate::optim::{ClipScope, Decayed, OptimizerConfig, OptimizerKind};
    use crate::schedule::{LrScaling, LrScheduleKind};
    use crate::span::Span;
    use esvit_data::{
        Background, BackgroundSetting, Image, InMemory, Levels, Policy, RangeSetting, ViewsConfig,
    };
    use esvit_nn::backbone::swin::SwinConfig;
    use esvit_nn::head::HeadConfig;
    use esvit_nn::{BackboneConfig, Network, Solo};
    use toml::{Table, Value};

    fn mixup() -> MixupConfig {
        MixupConfig {
            enabled: true,
            mixup_alpha: 0.6,
            cutmix_alpha: 0.9,
            switch_prob: 0.3,
            views: 2,
        }
    }

    /// The same run with labels.
    fn unusual_supervised() -> Config {
        // Images are mixed by default.
        let mixup = MixupConfig { enabled: false, ..mixup() };
        let config = SupervisedConfig { label_smoothing: 0.2, mixup };
        Config { objective: ObjectiveConfig::Supervised(config), ..unusual() }
    }

    fn esvit(config: &mut Config) -> &mut EsvitConfig {
        match &mut config.objective {
            ObjectiveConfig::Esvit(config) => config,
            other => panic!("{other:?}"),
        }
    }

    /// A run in which no setting has its default value. A setting that is added must be given
    /// here, and then be expected in one of the tests below or used by the program.
    fn unusual() -> Config {
        Config {
            seed: 7,
            data: DataConfig {
                path: esvit_data::Folders::of(&["images".into()]),
                repeat: 2,
                workers: 1,
                prefetch: 3,
                max_broken: 0.25,
                max_pixels: 1000,
                range: RangeSetting::Levels(Levels::all([3.0, 300.0])),
                background: BackgroundSetting::Is(Background::Color([1, 2, 3])),
                max_side: 16,
                cache_mb: 5,
            },
            // Handed on whole.
            views: ViewsConfig {
                global_size: 16,
                local_sizes: vec![8],
                local_counts: vec![3],
                ..ViewsConfig::for_policy(Policy::MocoV2)
            },
            model: ModelConfig {
                arch: "custom".into(),
                drop_path: 0.3,
                backbone: BackboneConfig::Swin(SwinConfig {
                    img_size: 16,
                    patch_size: 2,
                    embed_dim: 4,
                    depths: vec![1, 2],
                    num_heads: vec![1, 2],
                    window_size: 3,
                    mlp_ratio: 1.5,
                    norm_eps: 1e-5,
                }),
            },
            objective: ObjectiveConfig::Esvit(EsvitConfig {
                region: RegionConfig {
                    enabled: false,
                    r#match: Matching::Sinkhorn,
                    loss: RegionLoss::Mse,
                    tokens: 5,
                },
                weights: Weights::Free { view: 0.7, region: 0.2 },
                student_temp: 0.2,
                teacher_temp: 0.07,
                warmup_teacher_temp: 0.05,
                teacher_temp_warmup: Span::Epochs(3.0),
                center_momentum: 0.8,
                freeze_last_layer: Span::Epochs(2.0),
                momentum_teacher: 0.9,
                centering: Centering::Sinkhorn,
                sinkhorn_iterations: 5,
                koleo: 0.3,
                patches: PatchesConfig {
                    weight: 0.4,
                    mask_probability: 0.6,
                    mask_ratio: [0.2, 0.3],
                    separate_head: true,
                },
                mixup: mixup(),
                head: HeadConfig {
                    out_dim: 6,
                    hidden_dim: 8,
                    bottleneck_dim: 5,
                    layers: 2,
                    use_bn_in_head: true,
                    norm_last_layer: false,
                },
            }),
            optim: OptimConfig {
                name: OptimizerKind::Lars,
                lr_in_momentum: true,
                betas: [0.8, 0.95],
                lr: 0.64,
                lr_scaling: LrScaling::Sqrt,
                min_lr: 1e-3,
                schedule: LrScheduleKind::WarmupCosine,
                warmup: Span::Epochs(1.6),
                warmup_lr: 2e-3,
                milestones: vec![Span::Steps(11)],
                decay: Decayed::All,
                weight_decay: 0.03,
                weight_decay_end: 0.5,
                clip_grad: Some(2.0),
                clip_scope: ClipScope::Global,
                layer_decay: 0.75,
                freeze_backbone: Span::Steps(2),
            },
            train: TrainConfig {
                epochs: Some(4),
                steps: None,
                time: None,
                batch_size: 4,
                micro_batch: Some(2),
                crops_per_forward: 3,
                activation_checkpointing: true,
                device: "cpu:0".into(),
                precision: PrecisionChoice::Bf16,
                log_every: 3,
            },
            checkpoint: CheckpointConfig { every: Span::Steps(3), keep_last: 4 },
            knn: KnnConfig {
                every: Span::Percent(40.0),
                train: Some("train".into()),
                val: Some("val".into()),
                k: 3,
                temperature: 0.1,
                max_images: 50,
                crop: 12,
                resize: 14,
            },
        }
    }

    /// The same run with the learning rate as published for EsViT.
    fn with_usual_rate() -> Config {
        let mut config = unusual();
        config.optim.lr_scaling = LrScaling::Linear;
        config.optim.schedule = LrScheduleKind::Cosine;
        config.optim.warmup_lr = 0.0;
        config
    }

    /// Ten images of noise, all different.
    fn source() -> Arc<InMemory> {
        let mut source = InMemory::new(Vec::new());
        for index in 0..10u32 {
            let value =
                |i: u32| ((i + 1).wrapping_mul(2_654_435_761 + 7_919_000 * index) >> 24) as u8;
            let pixels = (0..20 * 20 * 3).map(value).collect();
            source.push(format!("{index}"), None, Image::new(20, 20, pixels).unwrap());
        }
        Arc::new(source)
    }

    fn plan(config: &Config, first_step: u64) -> Plan {
        let source = source();
        let loader = loader(config, source.clone(), &Solo).unwrap();
        let learner = learner(config, &Device::Cpu, 3, Solo::shared());
        Plan::new(config, &loader, source.len(), &learner, first_step)
    }

    fn close(what: &str, found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-8, "{what}: {found} instead of {expected}");
    }

    #[test]
    fn no_setting_of_the_tests_is_a_default() {
        fn alike(path: &str, found: &Table, default: &Table, names: &mut Vec<String>) {
            for (key, value) in found {
                let path = format!("{path}.{key}");
                match (value, &default[key]) {
                    (Value::Table(found), Value::Table(default)) => {
                        alike(&path, found, default, names);
                    }
                    (found, default) if found == default => names.push(path),
                    _ => {}
                }
            }
        }
        let supervised = ObjectiveConfig::named("supervised").unwrap();
        let default = Config { objective: supervised, ..Config::default() };
        for configs in [[unusual(), Config::default()], [unusual_supervised(), default]] {
            let [mut found, default] = configs.map(|config| Table::try_from(config).unwrap());
            found.remove("views");
            let mut names = Vec::new();
            alike("", &found, &default, &mut names);
            // What chooses the settings of a table, and is not one; other ways to give a length.
            assert_eq!(names, [".model.family", ".objective.name", ".train.steps", ".train.time"]);
        }
    }

    /// 10 images, twice each, in steps of 4: epochs of 5 steps, 20 in all, of which 8 are the
    /// warm-up to 0.64 * 4 / 256.
    #[test]
    fn scheduled_values_at_every_border() {
        let plan = plan(&with_usual_rate(), 6);
        let objective = learner(&unusual(), &Device::Cpu, 0, Solo::shared()).objective;
        assert_eq!((plan.first_step, plan.total_steps, plan.steps_per_epoch), (6, 20, 5));
        assert_eq!((plan.batch, plan.images), (4, 10));
        assert_eq!((plan.checkpoint_every, plan.knn_every), (3, Some(8)));
        assert_eq!(plan.precision, Precision::Bf16);
        assert_eq!([0, 4, 5, 9, 10, 20].map(|steps| plan.epochs_done(steps)), [0, 0, 1, 1, 2, 4]);
        for (step, [lr, weight_decay, momentum, teacher_temp], freeze_last_layer, health) in [
            // The first step, the last and the first of an epoch.
            (0, [0.0, 0.03, 0.9, 0.05], true, false),
            (4, [0.04 / 7.0, 0.074881006, 0.909549150, 0.05], true, false),
            (5, [0.05 / 7.0, 0.098829906, 0.914644661, 0.06], true, true),
            // The last of the warm-up and the one after it.
            (7, [0.01, 0.158312233, 0.927300475, 0.06], true, false),
            (8, [0.01, 0.192381006, 0.934549150, 0.06], true, true),
            // The last with a frozen last layer and the one after it, in the middle of the run.
            (9, [0.009846666, 0.228237901, 0.942178277, 0.06], true, false),
            (10, [0.009397114, 0.265, 0.95, 0.07], false, false),
            (14, [0.0055, 0.403129534, 0.979389263, 0.07], false, true),
            // The last: logged, though no third.
            (19, [0.001153334, 0.497106760, 0.999384417, 0.07], false, true),
        ] {
            let found = plan.step(step);
            close(&format!("lr of {step}"), found.lr, lr);
            close(&format!("weight decay of {step}"), found.weight_decay, weight_decay);
            // What the objective makes of the place.
            let [(of_momentum, found_momentum), (of_temp, found_temp)] =
                objective.schedule(&found).try_into().unwrap();
            assert_eq!((of_momentum, of_temp), ("momentum", "teacher_temp"));
            close(&format!("momentum of {step}"), found_momentum, momentum);
            close(&format!("temperature of {step}"), found_temp, teacher_temp);
            let Teacher::Ema { timing: EmaTiming::AfterStep, momentum } = objective.teacher(&found)
            else {
                panic!("an EMA teacher");
            };
            assert_eq!(momentum, found_momentum);
            assert_eq!(!objective.frozen(&found).is_empty(), freeze_last_layer, "{step}");
            // The rest; a value that is added must be compared here too.
            let StepInfo { lr, weight_decay, .. } = found;
            let (epoch, run) = (step / 5, RunLength { total_steps: 20, steps_per_epoch: 5 });
            let expected = StepInfo { step, epoch, run, lr, weight_decay, health };
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_rate_follows_the_images_of_a_step() {
        for (batch, micro_batch, expected) in
            [(4, 2, 0.01), (4, 4, 0.01), (4, 1, 0.01), (2, 1, 0.005), (5, 1, 0.0125)]
        {
            let mut config = with_usual_rate();
            (config.train.batch_size, config.train.micro_batch) = (batch, Some(micro_batch));
            config.optim.warmup = Span::NONE;
            let rate = plan(&config, 0).step(0).lr;
            close(&format!("{batch} in parts of {micro_batch}"), rate, expected);
            assert_eq!(plan(&config, 0).batch, batch);
            config.optim.lr_scaling = LrScaling::Sqrt;
            let rate = plan(&config, 0).step(0).lr;
            close(&format!("root of {batch}"), rate, 0.04 * (batch as f64).sqrt());
        }
    }

    /// A peak of 0.64 * 2 / 16 after eight steps from 0.002, other schedules of the same settings.
    #[test]
    fn rates_of_other_schedules() {
        let rates = |schedule: LrScheduleKind, steps: [u64; 4]| {
            let mut config = unusual();
            config.optim.schedule = schedule;
            let plan = plan(&config, 0);
            steps.map(|step| plan.step(step).lr)
        };
        for (schedule, steps, expected) in [
            (LrScheduleKind::WarmupCosine, [0, 4, 8, 14], [0.002, 0.041, 0.08, 0.0405]),
            (LrScheduleKind::Cosine, [0, 7, 8, 14], [0.002, 0.08, 0.08, 0.0405]),
            // The first steps of epochs of five, the second of which is in the warm-up.
            (LrScheduleKind::EpochCosine, [4, 5, 9, 10], [0.002, SIXTH, SIXTH, 0.074708003]),
            (LrScheduleKind::TimmCosine, [1, 8, 9, 11], [0.002, 0.07025, 0.052706171, 0.0405]),
            (LrScheduleKind::TimmPrefixCosine, [1, 8, 9, 15], [0.002, 0.07025, 0.08, 0.0405]),
            (LrScheduleKind::MultiStep, [4, 8, 10, 11], [0.041, 0.08, 0.08, 0.008]),
        ] {
            for (found, expected) in rates(schedule, steps).into_iter().zip(expected) {
                close(&format!("{schedule:?}"), found, expected);
            }
        }
    }

    /// The sixth of eight points from 0.002 to 0.08.
    const SIXTH: f64 = 0.002 + 0.078 * 5.0 / 7.0;

    /// In steps and per cent as in epochs; phases longer than the run are a tenth of it.
    #[test]
    fn lengths_in_any_unit() {
        let at = |change: &dyn Fn(&mut Config), step: u64| {
            let mut config = with_usual_rate();
            change(&mut config);
            let at = plan(&config, 0).step(step);
            let objective = learner(&config, &Device::Cpu, 0, Solo::shared()).objective;
            let temperature = objective.schedule(&at)[1].1;
            (at.run.total_steps, at.lr, temperature, objective.frozen(&at).is_empty())
        };
        let set = |span: Span| {
            move |config: &mut Config| {
                config.optim.warmup = span;
                (config.train.epochs, config.train.steps) = (None, Some(40));
                let objective = esvit(config);
                (objective.teacher_temp_warmup, objective.freeze_last_layer) = (span, span);
            }
        };
        for span in [Span::Steps(20), Span::Percent(50.0), Span::Epochs(4.0)] {
            let (steps, rate, temperature, is_free) = at(&set(span), 19);
            assert_eq!((steps, is_free), (40, false), "{span}");
            close("rate at the end of the warm-up", rate, 0.01);
            close("temperature at the end of the warm-up", temperature, 0.07);
            assert!(at(&set(span), 20).3, "{span}");
        }
        close("in the middle", at(&set(Span::Steps(21)), 10).2, 0.06);
        let too_long = set(Span::Steps(41));
        assert!(!at(&too_long, 3).3 && at(&too_long, 4).3);
        close("after a tenth", at(&too_long, 4).1, 0.01);
    }

    #[test]
    fn the_plan_in_words() {
        let plan = plan(&unusual(), 0);
        let threads = plan.threads;
        assert_eq!(
            plan.to_string(),
            format!(
                "L_V + masked patches + KoLeo to 6 prototypes, balanced by Sinkhorn, Swin `custom` \
                 (1-2 blocks, width 4, window 3, 0.00 M parameters, heads 0.00 M)\n\
                 views 2 x 16 px + 3 x 8 px\n\
                 10 images, 20 steps of 4 images, 5 steps an epoch (each image 2 times), {threads} threads, bf16; a \
                 loss of 1.97 is that of chance"
            )
        );
        // The view task has a weight of 0.7, masked patches of 0.4.
        close("chance", plan.chance_loss, 1.1 * 6f64.ln());
        let mut config = unusual();
        let objective = esvit(&mut config);
        (objective.region, objective.head.out_dim) = (true.into(), 10_000);
        objective.patches.weight = 0.0;
        let BackboneConfig::Swin(swin) = &mut config.model.backbone else { panic!("a Swin") };
        swin.embed_dim = 32;
        config.views.local_counts = vec![0];
        let plan = super::tests::plan(&config, 0);
        let specs = learner(&config, &Device::Cpu, 0, Solo::shared()).network.specs().clone();
        let [backbone, heads] = [false, true].map(|is_head| {
            let specs = specs.iter().filter(|spec| spec.name.starts_with("head") == is_head);
            specs.map(|spec| spec.len()).sum::<usize>() as f64 / 1e6
        });
        assert!(heads > 0.1 && backbone > 0.05, "{heads} {backbone}");
        let expected = format!(
            "L_V + L_R + KoLeo to 10000 prototypes, balanced by Sinkhorn, Swin `custom` (1-2 blocks, \
             width 32, window 3, {backbone:.2} M parameters, heads {heads:.2} M)\nviews 2 x 16 px\n"
        );
        let text = plan.to_string();
        assert!(text.starts_with(&expected), "{text}");
        close("chance of both", plan.chance_loss, 0.9 * 1e4f64.ln());

        let mut config = unusual_supervised();
        config.views.global_count = 1;
        let plan = super::tests::plan(&config, 0);
        let text = plan.to_string();
        let expected = "classification, Swin `custom` (1-2 blocks, width 4, window 3, 0.00 M \
                        parameters, heads 0.00 M)\nviews 1 x 16 px + 3 x 8 px\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with("; a loss of 1.10 is that of chance"), "{text}");
        close("chance of three classes", plan.chance_loss, 3f64.ln());
    }

    /// The network, initialized by nothing yet, and the objective of these settings.
    fn by_hand(config: &Config) -> (Network, Box<dyn Objective>) {
        let backbone = BackboneConfig::Swin(SwinConfig {
            img_size: 16,
            patch_size: 2,
            embed_dim: 4,
            depths: vec![1, 2],
            num_heads: vec![1, 2],
            window_size: 3,
            mlp_ratio: 1.5,
            norm_eps: 1e-5,
        });
        Network::new(&backbone, 0.3, |scope, width| {
            let setup = Setup {
                width,
                blocks: 3,
                masking: backbone.masking(),
                classes: 3,
                images: config.train.batch_size,
                seed: 7,
                precision: Precision::Bf16,
                device: Device::Cpu,
                ..Setup::default()
            };
            config.objective.settings().build(scope, &setup)
        })
    }

    #[test]
    fn every_setting_reaches_the_learner() {
        let mut both = unusual();
        let objective = esvit(&mut both);
        (objective.region, objective.mixup.enabled) = (true.into(), false);
        for mut config in [unusual(), both, unusual_supervised()] {
            let learner = learner(&config, &Device::Cpu, 3, Solo::shared());
            let expected = LearnerSettings {
                seed: 7,
                clip_grad: Some(2.0),
                clip_scope: ClipScope::Global,
                precision: Precision::Bf16,
                crop_chunks: CropChunks::Crops(3),
                activation_checkpointing: true,
                layer_decay: 0.75,
                freeze_backbone: Span::Steps(2),
            };
            assert_eq!(learner.settings, expected);
            let expected = OptimizerConfig {
                kind: OptimizerKind::Lars,
                decayed: Decayed::All,
                lr_in_momentum: true,
                betas: [0.8, 0.95],
                trust_coefficient: 0.001,
            };
            assert_eq!(learner.optimizer.config(), &expected);
            // All of it, the rates of dropped branches included.
            let (network, objective) = by_hand(&config);
            assert_eq!(format!("{:?}", learner.network), format!("{network:?}"));
            assert_eq!(format!("{:?}", learner.objective), format!("{objective:?}"));
            assert_eq!(learner.teacher.is_some(), config.objective.name() == "esvit");
            if config.objective.name() == "esvit" {
                let config = esvit(&mut config);
                let objective: &dyn Any = &*learner.objective;
                let objective: &Esvit = objective.downcast_ref().unwrap();
                assert_eq!(&objective.config, config);
                assert_eq!(objective.heads.prototypes(), 6);
                assert_eq!(objective.heads.has_region(), config.region.enabled);
                assert_eq!(objective.precision, Precision::Bf16);
            }
        }
    }

    #[test]
    fn settings_reach_the_loader() {
        let config = unusual();
        let expected = LoaderConfig {
            batch: 4,
            micro_batch: 2,
            world: 1,
            rank: 0,
            repeat: 2,
            workers: 1,
            prefetch: 3,
            seed: 7,
            max_broken: 0.25,
            max_side: 16,
            cache_bytes: 5 * 1024 * 1024,
            levels: Levels::all([3.0, 300.0]),
            background: Background::Color([1, 2, 3]),
        };
        let by_plan = loader(&config, source(), &Solo).unwrap();
        assert_eq!((by_plan.steps_per_epoch(), by_plan.parts()), (5, 2));
        let by_hand = Loader::new(source(), config.views, expected).unwrap();
        let [found, expected] =
            [by_plan, by_hand].map(|loader| loader.batches(3..4).next().unwrap().unwrap());
        assert_eq!((found.views, found.samples), (expected.views, expected.samples));
    }
}
