//! Estimates the memory of a step, and the micro-batch that fits into a given amount.

use std::collections::BTreeMap;

use esvit_data::{Source, counted, decoded_bytes};
use esvit_nn::ops::EXPONENTIALS_BYTES;
use esvit_nn::params::Role;
use esvit_nn::zoo::{self, Architecture};
use esvit_nn::{BackboneConfig, Device, ForwardCtx};

use crate::config::Config;
use crate::learner::seen_by_teacher;
use crate::objective::{Chunking, ObjectiveConfig, StepInfo, Teacher};

/// Program, loader and allocator, in bytes.
const BASE: f64 = 200e6;

/// Safety factor for buffers between the phases of a step: measured steps stay below the
/// estimate.
const MARGIN: f64 = 1.2;

/// Estimated peak memory of a step in bytes, with micro-batches of `micro_batch` images.
pub fn estimate(config: &Config, micro_batch: usize) -> f64 {
    let backbone = &config.model.backbone;
    let (network, objective) = config.network(&Device::Cpu, 0);
    let count = |trained: bool| -> f64 {
        let specs = network.specs().iter();
        let specs = specs.filter(|spec| !trained || spec.role == Role::Trained);
        specs.map(|spec| spec.len() as f64).sum()
    };
    let moments = config.optim.name.moments() as f64;
    let sizes: Vec<usize> = config.views.sizes().iter().map(|&size| size as usize).collect();
    let passes = config.crop_chunks().cut(&sizes, micro_batch);
    let several = passes.len() > 1 || micro_batch < config.train.batch_size;
    let sums = if several { 1.0 } else { 0.0 };
    let follows = matches!(objective.teacher(&StepInfo::FIRST), Teacher::Ema { .. });
    let networks = if follows { 2.0 } else { 1.0 };
    let state = 4.0 * (networks * count(false) + (moments + 1.0 + sums) * count(true))
        + config.objective.settings().state_memory();

    let precision = config.train.precision();
    let size = precision.bytes() as f64;
    let heads = |side: usize| {
        let tokens = backbone.last_map(side).pow(2) as f64;
        config.objective.settings().memory(tokens, backbone.output_width() as f64, precision)
    };
    let seen = seen_by_teacher(&*objective, sizes.len());
    let settings = config.objective.settings();
    let teacher_logits: f64 =
        sizes[seen.clone()].iter().map(|&side| heads(side).teacher_logits).sum();
    let targets: f64 = sizes[seen.clone()].iter().map(|&side| heads(side).targets).sum();
    let teacher: f64 =
        sizes[seen].iter().map(|&side| settings.teacher_bytes(side, precision)).sum();
    let mut ctx = ForwardCtx::expected().with_precision(precision);
    ctx.activation_checkpointing = config.train.activation_checkpointing;
    let mut costs = BTreeMap::new();
    for &size in &sizes {
        costs.entry(size).or_insert_with(|| backbone.cost([size; 2], 0.0, &ctx));
    }
    // Where images of several micro-batches are compared, heads and loss come in a pass of their own.
    let compares = config.objective.settings().chunking() == Chunking::ByImage;
    let is_apart = compares && micro_batch < config.train.batch_size;
    // Memory of the pass over some crops of all images.
    let pass = |crops: &[usize]| -> f64 {
        let [mut saved, mut largest, mut logits] = [0.0, 0.0, teacher_logits];
        for &crop in crops {
            let (cost, heads) = (costs[&crop], heads(crop));
            saved += cost.saved_bytes;
            largest += cost.largest;
            if !is_apart {
                saved += heads.saved;
                logits += heads.student_logits;
            }
        }
        // At the largest map: gradients of the hidden layer and of the branch, the residual
        // stream and its gradient; besides, the layers of heads and exponentials of logits.
        let image = saved + largest * (6.0 * size + 8.0);
        micro_batch as f64 * image + (micro_batch as f64 * logits).min(EXPONENTIALS_BYTES as f64)
    };
    let activations = passes.into_iter().map(|crops| pass(&sizes[crops])).fold(0.0, f64::max);
    let pixels: f64 = sizes.iter().map(|&size| (3 * size * size) as f64).sum();
    let of_heads: f64 = sizes.iter().map(|&side| heads(side).saved).sum();
    // All images wait, one by one and joined.
    let [apart, waiting] = match is_apart {
        true => [of_heads, 8.0 * pixels].map(|bytes| config.train.batch_size as f64 * bytes),
        false => [0.0; 2],
    };
    let loader = pixels * micro_batch as f64 * (config.data.prefetch as f64 + 2.0)
        + (config.data.cache_mb << 20) as f64;
    // Pixels of 8 bits, and normalized.
    let input = pixels * micro_batch as f64 * 5.0;
    let teacher = micro_batch as f64 * teacher + settings.held_bytes();
    let compared = if is_apart { config.train.batch_size } else { micro_batch };
    let targets = compared as f64 * targets;
    let computed = MARGIN * (state + activations.max(apart).max(targets) + teacher);
    BASE + computed + loader + input + waiting
}

/// The settings with caches of no more than these images fill, by a sample of them: with those an estimate is
/// that of a run on them.
pub fn with_images(config: &Config, source: &dyn Source) -> Config {
    let mut config = config.clone();
    if let Some(bytes) = decoded_bytes(source, config.data.max_side) {
        let all = (bytes / f64::from(1 << 20)).ceil() as usize;
        config.data.cache_mb = config.data.cache_mb.min(all);
    }
    if let ObjectiveConfig::Distill(distill) = &mut config.objective {
        distill.limit_cache(source.len());
    }
    config
}

/// Operations of a micro-batch that is large enough to use the CPU well, and small enough for a run
/// to react within seconds.
const MICRO_BATCH_FLOP: f64 = 1e12;

/// The micro-batch of a run that does not choose one: the largest equal part of a process's share of
/// the batch that is of no more than a trillion operations and takes no more than half of
/// the memory that is `available`, if that is known. Where all images must go through at once, these are
/// all; where images of a step are compared, as many as half of the memory holds, since each micro-batch
/// goes through twice if there are several.
pub fn micro_batch(config: &Config, world: usize, available: Option<f64>) -> usize {
    let share = config.train.batch_size / world;
    if config.sees_all_at_once() {
        return share;
    }
    let ctx = ForwardCtx::expected().with_precision(config.train.precision());
    let macs = |size: u32| config.model.backbone.cost([size as usize; 2], 0.0, &ctx).macs;
    // Forward and backward pass of all views, two operations a multiply-accumulate.
    let flop = 6.0 * config.views.sizes().into_iter().map(macs).sum::<f64>();
    let compares = config.objective.settings().chunking() == Chunking::ByImage;
    let fits = |&images: &usize| {
        share.is_multiple_of(images)
            && (compares || images as f64 * flop <= MICRO_BATCH_FLOP)
            && available.is_none_or(|bytes| estimate(config, images) <= 0.5 * bytes)
    };
    (1..=share).rev().find(fits).unwrap_or(1)
}

/// Size of a checkpoint in bytes: parameters of all networks and moments of the optimizer.
pub fn checkpoint_bytes(config: &Config) -> f64 {
    let (network, objective) = config.network(&Device::Cpu, 0);
    let values: usize = network.specs().iter().map(|spec| spec.len()).sum();
    let follows = matches!(objective.teacher(&StepInfo::FIRST), Teacher::Ema { .. });
    let networks = if follows { 2.0 } else { 1.0 };
    4.0 * values as f64 * (networks + config.optim.name.moments() as f64)
        + config.objective.settings().state_memory()
}

/// Memory that is free for this process, in bytes: what the system has available, and what a control
/// group leaves. `None` where that cannot be told.
pub fn available() -> Option<f64> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<f64>().ok();
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let system = line.trim().trim_end_matches(" kB").parse::<f64>().ok()? * 1024.0;
    // Of what the group uses, cached files can be dropped.
    let stat = std::fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok());
    let used = number("/sys/fs/cgroup/memory.current").unwrap_or(0.0) - cached.unwrap_or(0.0);
    let group = number("/sys/fs/cgroup/memory.max").map(|limit| limit - used);
    Some(group.map_or(system, |group| group.clamp(0.0, system)))
}

/// Batch settings that fit into an amount of memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Images per micro-batch.
    pub micro_batch: usize,
    /// Whether activation checkpointing is on.
    pub activation_checkpointing: bool,
    /// Estimated peak memory, in bytes.
    pub bytes: f64,
}

/// A number of bytes, in a unit that shows it.
pub fn size(bytes: f64) -> String {
    match bytes {
        _ if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        _ if bytes >= 1e6 => format!("{:.0} MB", bytes / 1e6),
        _ if bytes >= 1e3 => format!("{:.0} kB", bytes / 1e3),
        _ => counted(bytes as usize, "byte"),
    }
}

/// What makes a run take less memory whose micro-batches have so many images, for hints: the settings of which
/// there may be less.
pub fn savings(config: &Config, micro_batch: usize) -> String {
    let batch = config.train.batch_size;
    // Of images that are compared all are held; else a micro-batch may be the whole that can be split no more.
    let compares = config.objective.settings().chunking() == Chunking::ByImage;
    let least = least_images(config).iter().copied().min().unwrap_or(1);
    let is_held = batch > least && (compares || micro_batch == batch);
    let network = "a smaller network (`model.arch`)";
    let parts = [
        is_held.then_some("a smaller batch (`train.batch_size`)"),
        (!is_smallest(config)).then_some(network),
        config.objective.settings().less_memory(),
        (config.data.cache_mb > 0).then_some("a smaller cache (`data.cache_mb`)"),
    ];
    let mut parts: Vec<&str> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        parts.push(network);
    }
    let listed = match parts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => parts.concat(),
    };
    format!("{listed} takes less")
}

/// Whether the network is an architecture of which its family has none with fewer parameters.
fn is_smallest(config: &Config) -> bool {
    let own = &config.model.backbone;
    let parameters = |backbone: &BackboneConfig| backbone.build(0.0).1.parameters();
    let count = parameters(own);
    let others = zoo::ARCHITECTURES.iter().map(Architecture::config);
    let mut others = others.filter(|other| other.family() == own.family());
    config.model.arch != zoo::CUSTOM && others.all(|other| parameters(&other) >= count)
}

/// No micro-batch fits.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "{} about {}, and {} were given\nhint: {savings}",
    at_a_time(*images),
    size(*need),
    size(*given)
)]
pub struct DoesNotFit {
    /// The fewest images that go through at a time.
    pub images: usize,
    /// Bytes for as many.
    pub need: f64,
    /// Bytes available.
    pub given: f64,
    /// What takes less.
    pub savings: String,
}

fn at_a_time(images: usize) -> String {
    match images {
        1 => "one image at a time takes".into(),
        _ => {
            format!("{images} images at a time, the fewest that batch normalization is given, take")
        }
    }
}

/// Bounds from below of the images of a micro-batch, the first that can be kept first. Batch normalization
/// of a single image compares it with nothing, and that of few with chance.
fn least_images(config: &Config) -> &'static [usize] {
    if config.sees_all_at_once() { &[8, 2] } else { &[1] }
}

/// The largest micro-batch that divides the batch and fits into `bytes`. Activation checkpointing is
/// turned on only when nothing fits without; where batch normalization has the statistics of a
/// micro-batch, also when fewer than eight images would. It never has those of one image of several.
///
/// # Errors
/// When not even one image at a time fits, or two with batch normalization.
pub fn fit(config: &Config, bytes: f64) -> Result<Fit, DoesNotFit> {
    let batch = config.train.batch_size;
    let mut config = config.clone();
    let (mut images, mut need) = (batch, f64::INFINITY);
    let again = [config.train.activation_checkpointing, true];
    let tries = least_images(&config).iter().flat_map(|&least| again.map(|again| (least, again)));
    for (least, activation_checkpointing) in tries {
        config.train.activation_checkpointing = activation_checkpointing;
        let sizes = (least.min(batch)..=batch).rev();
        for micro_batch in sizes.filter(|&size| batch.is_multiple_of(size)) {
            (images, need) = (micro_batch, estimate(&config, micro_batch));
            if need <= bytes {
                return Ok(Fit { micro_batch, activation_checkpointing, bytes: need });
            }
        }
    }
    Err(DoesNotFit { images, need, given: bytes, savings: savings(&config, images) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PrecisionChoice, recipe_layers};
    use crate::objective::ObjectiveConfig;
    use crate::objective::esvit::{
        Centering, EsvitConfig, PatchesConfig, RegionConfig, RegionLoss,
    };
    use crate::optim::OptimizerKind;
    use esvit_nn::ops::Precision;

    fn recipe() -> Config {
        Config::resolve(recipe_layers("swin_tiny_w7").unwrap()).unwrap()
    }

    fn esvit(config: &mut Config) -> &mut EsvitConfig {
        match &mut config.objective {
            ObjectiveConfig::Esvit(config) => config,
            other => panic!("{other:?}"),
        }
    }

    /// Number of values of a network's backbone and heads.
    fn values(config: &Config) -> usize {
        let (network, _) = config.network(&Device::Cpu, 0);
        network.specs().iter().map(|spec| spec.len()).sum()
    }

    #[test]
    fn more_memory_takes_more_images() {
        let config = recipe();
        let mut last = 0;
        for gigabytes in [8.0, 16.0, 64.0] {
            let fit = fit(&config, gigabytes * 1e9).unwrap();
            assert!(fit.bytes <= gigabytes * 1e9);
            assert!(config.train.batch_size.is_multiple_of(fit.micro_batch));
            assert!(fit.micro_batch >= last);
            last = fit.micro_batch;
        }
        assert!(last > 16);
    }

    #[test]
    fn more_local_crops_take_little_more_memory() {
        let take = |local: u32| {
            let mut config = recipe();
            config.train.batch_size = 16;
            config.train.precision = Precision::F32.into();
            config.views.local_counts = vec![local];
            estimate(&config, 16)
        };
        assert!(take(28) < 1.2 * take(8), "{} {}", take(28), take(8));
    }

    #[test]
    fn too_little_is_said() {
        let error = fit(&recipe(), 1e9).unwrap_err();
        assert!(error.to_string().contains("1.0 GB were given"), "{error}");
        let error = fit(&recipe(), 4e7).unwrap_err();
        assert!(error.to_string().contains("40 MB were given"), "{error}");
        let sizes = [1e9, 999e6, 1024.0, 999.0, 1.0].map(size);
        assert_eq!(sizes, ["1.0 GB", "999 MB", "1 kB", "999 bytes", "1 byte"]);
    }

    /// Two stages of 8 and 16 values, two global crops of 32 pixels and a local one of 16, eight
    /// images a step of which four go through at a time, globals and locals apart.
    fn small() -> Config {
        let texts = [
            "model.arch=custom",
            "model.img_size=32",
            "model.embed_dim=8",
            "model.depths=[2,1]",
            "model.num_heads=[1,2]",
            "model.mlp_ratio=2.0",
            "objective.head.out_dim=64",
            "objective.head.hidden_dim=16",
            "objective.head.bottleneck_dim=8",
            "views.global_size=32",
            "views.local_sizes=[16]",
            "views.local_counts=[1]",
            "train.batch_size=8",
            "data.cache_mb=1",
            "train.crops_per_forward=2",
            "train.precision=f32",
        ];
        let layers = texts.map(|text| crate::config_text::parse_override(text).unwrap());
        Config::resolve(layers.into()).unwrap()
    }

    #[test]
    fn an_estimate_by_hand() {
        let config = small();
        let all = values(&config);
        // The lengths of 64 prototypes in both heads stay.
        let trained = all - 128;
        // Student and teacher; two moments, a gradient and a sum of gradients.
        let state =
            |moments: usize, sums: usize| (4 * (2 * all + (moments + 1 + sums) * trained)) as f64;
        // Globals: blocks keep 8 values of 4 bytes of 1,280 each; patch embedding, its norm, merging
        // and the last norm keep 3,072 + 512 + 512 + 256 more; the largest map is that of patches,
        // 3,072; the heads see 17 rows, 2 * 16 + 16 wide.
        let image = (2 * (1280 * 32 + 4352 * 4) + 2 * 3072 * 32 + 34 * 48 * 8) as f64;
        let exponentials = ((34 + 34) * 64 * 4) as f64;
        let pixels = (2 * 3 * 32 * 32 + 3 * 16 * 16) as f64;
        let expected = |state: f64, images: f64| {
            200e6
                + 1.2 * (state + images * (image + exponentials))
                + pixels * images * (2.0 + 2.0 + 1.0 + 4.0)
                + 1048576.0
        };
        let check = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 1e-12, "{found} instead of {expected}");
        };
        check(estimate(&config, 4), expected(state(2, 1), 4.0));
        // Several passes need a sum also where all images go through at once.
        check(estimate(&config, 8), expected(state(2, 1), 8.0));
        let with = |change: &dyn Fn(&mut Config)| {
            let mut config = small();
            change(&mut config);
            config
        };
        for name in [OptimizerKind::Sgd, OptimizerKind::Lars, OptimizerKind::Larc] {
            let found = estimate(&with(&|config| config.optim.name = name), 4);
            check(found, expected(state(1, 1), 4.0));
        }
        // One more micro-batch in the queue.
        let found = estimate(&with(&|config| config.data.prefetch = 3), 4);
        check(found, expected(state(2, 1), 4.0) + pixels * 4.0);
        // One pass of all crops: no sum, and the local crop (320 values in blocks, 768 + 128 + 128 +
        // 64 beside them, 5 rows) beside the others.
        let all_at_once = with(&|config| config.train.crops_per_forward = 3);
        let local = (320 * 32 + 1088 * 4 + 768 * 32 + 5 * 48 * 8) as f64 + (5 * 64 * 4) as f64;
        let found = estimate(&all_at_once, 8);
        check(found, expected(state(2, 0), 8.0) + 1.2 * 8.0 * local);
        // The view task alone: one row a crop.
        let view = with(&|config| esvit(config).region = false.into());
        let all = values(&view);
        let state = (4 * (2 * all + 4 * (all - 64))) as f64;
        let image =
            (2 * (1280 * 32 + 4352 * 4) + 2 * 3072 * 32 + 2 * 48 * 8 + (2 + 2) * 64 * 4) as f64;
        let expected = 200e6 + 1.2 * (state + 4.0 * image) + pixels * 4.0 * 9.0 + 1048576.0;
        check(estimate(&view, 4), expected);
    }

    /// Tokens that take no part in the region task have no rows in its head, and distances have no logits.
    #[test]
    fn variants_of_the_region_task_take_less_memory() {
        let with = |change: &dyn Fn(&mut RegionConfig)| {
            let mut config = small();
            change(&mut esvit(&mut config).region);
            estimate(&config, 4)
        };
        let check = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 1e-9, "{found} instead of {expected}");
        };
        let published = with(&|_| ());
        check(with(&|region| region.tokens = 16), published);
        // Of both global crops, four of 16 tokens: rows of student and teacher.
        let rows = 2.0 * 12.0;
        let fewer = published - with(&|region| region.tokens = 4);
        check(fewer, 1.2 * 4.0 * rows * (48.0 * 8.0 + 2.0 * 64.0 * 4.0));
        let distances = published - with(&|region| region.loss = RegionLoss::Mse);
        check(distances, 1.2 * 4.0 * 2.0 * 16.0 * 2.0 * 64.0 * 4.0);
    }

    /// A queue counts once, whatever the batch is, and is in checkpoints.
    #[test]
    fn queues_take_memory() {
        let with = |length: usize| {
            let length = format!("objective.queue_length={length}");
            let texts = ["objective.name=mocov2", "objective.out_dim=1024", &length];
            let layers = texts.map(|text| crate::config_text::parse_override(text).unwrap());
            Config::resolve(layers.into()).unwrap()
        };
        let (short, long) = (with(1000), with(2000));
        let keys = 1000.0 * 1024.0 * 4.0;
        assert_eq!(checkpoint_bytes(&long) - checkpoint_bytes(&short), keys);
        for images in [1, 4] {
            // Besides, a few logits of each view.
            let found = estimate(&long, images) - estimate(&short, images);
            assert!((1.2 * keys..1.5 * keys).contains(&found), "{found} instead of {keys}");
        }
    }

    /// Images that are compared go through together as far as the memory holds, and no less than one by
    /// one.
    #[test]
    fn compared_images_fill_the_memory() {
        let layers = ["objective.name=mocov3", "train.batch_size=64", "train.precision=f32"]
            .map(|text| crate::config_text::parse_override(text).unwrap());
        let config = Config::resolve(layers.into()).unwrap();
        assert_eq!(micro_batch(&config, 1, None), 64);
        let half = |images| 2.0 * estimate(&config, images);
        assert_eq!(micro_batch(&config, 1, Some(half(16))), 16);
        assert_eq!(micro_batch(&config, 1, Some(1.0)), 1);
    }

    /// As much as is quick, or as half of the memory holds; all at once where all are compared.
    #[test]
    fn a_micro_batch_that_suits() {
        let mut config = recipe();
        config.train.precision = PrecisionChoice::F32;
        // Two crops of 4.5 and eight of 0.83 billion multiply-accumulates, six operations each.
        assert_eq!(micro_batch(&config, 1, None), 8);
        assert_eq!(micro_batch(&config, 128, None), 4);
        let half = |images| 2.0 * estimate(&config, images);
        assert_eq!(micro_batch(&config, 1, Some(half(4))), 4);
        assert_eq!(micro_batch(&config, 1, Some(half(4) - 1.0)), 2);
        assert_eq!(micro_batch(&config, 1, Some(1.0)), 1);
        assert_eq!(micro_batch(&small(), 1, None), 8);
        esvit(&mut config).head.use_bn_in_head = true;
        assert_eq!(micro_batch(&config, 2, Some(1.0)), 256);
    }

    /// A frozen teacher is there as values and packed, and its pass takes more the larger its views are.
    #[test]
    fn a_teacher_takes_memory() {
        use crate::objective::distill::TeacherNetwork;
        use esvit_nn::BackboneConfig;
        let texts = [
            "objective.name=distill",
            "model.arch=swin_micro",
            "views.global_size=32",
            "views.local_counts=[0]",
            "train.batch_size=8",
        ];
        let layers = texts.map(|text| crate::config_text::parse_override(text).unwrap());
        let alone = Config::resolve(layers.into()).unwrap();
        let taught = |size: usize| {
            let shape = BackboneConfig::Vit(esvit_testing::tiny_vit());
            let (_, specs) = shape.build(0.0);
            let (params, path) = (esvit_testing::fill(&specs, 1), "teacher".into());
            let teacher = TeacherNetwork::new(path, shape, params, size, [[0.5; 3], [0.2; 3]]);
            let mut config = alone.clone();
            config.attach_teacher(teacher.into()).unwrap();
            (estimate(&config, 8), specs.parameters() as f64)
        };
        let (large, parameters) = taught(64);
        assert!(large > estimate(&alone, 8) + 1.2 * 8.0 * parameters);
        assert!(large > taught(32).0);
    }

    /// Exponentials of logits take no more than a buffer, however many rows and prototypes there are.
    #[test]
    fn exponentials_are_bounded() {
        let mut config = small();
        for out_dim in [20_000, 65_536, 1 << 22] {
            esvit(&mut config).head.out_dim = out_dim;
            let image = 68.0 * out_dim as f64 * 4.0;
            let added = estimate(&config, 4) - estimate(&config, 2);
            let others = (2 * (1280 * 32 + 4352 * 4) + 2 * 3072 * 32 + 34 * 48 * 8) as f64;
            let [four, two] =
                [4.0, 2.0].map(|images| (EXPONENTIALS_BYTES as f64).min(images * image));
            let pixels = (2 * 3 * 32 * 32 + 3 * 16 * 16) as f64;
            let expected = 1.2 * (2.0 * others + four - two) + 2.0 * 9.0 * pixels;
            assert!((added - expected).abs() < 1e3, "{added} instead of {expected}");
        }
    }

    /// Rows of masked patches, a quarter of a map of 16 regions; regions that wait where images are compared;
    /// and the shares of balanced targets, which many prototypes make larger than all else of a step.
    #[test]
    fn terms_of_dinov2_take_memory() {
        let memory = |change: &dyn Fn(&mut EsvitConfig)| {
            let mut config = small();
            esvit(&mut config).region = false.into();
            change(esvit(&mut config));
            config.objective.settings().memory(16.0, 16.0, Precision::F32)
        };
        // The heads are 2 * 16 + 16 wide.
        let (row, logits) = (48.0 * 8.0, 64.0 * 4.0);
        let plain = memory(&|_| ());
        assert_eq!([plain.saved, plain.student_logits, plain.targets], [row, logits, 0.0]);
        let patches = PatchesConfig {
            weight: 1.0,
            mask_probability: 0.5,
            mask_ratio: [0.25, 0.75],
            ..PatchesConfig::default()
        };
        let masked = memory(&|config| config.patches = patches.clone());
        let expected = [5.0 * row, 5.0 * logits, 0.0];
        assert_eq!([masked.saved, masked.student_logits, masked.targets], expected);
        let balanced = memory(&|config| {
            (config.patches, config.centering) = (patches.clone(), Centering::Sinkhorn);
        });
        // Patches are masked among all tokens, also where some take part in the region task.
        for (loss, rows) in [(RegionLoss::CrossEntropy, 9.0), (RegionLoss::Mse, 5.0)] {
            let found = memory(&|config| {
                config.patches = patches.clone();
                config.region = RegionConfig { tokens: 4, loss, ..RegionConfig::default() };
            });
            assert_eq!([found.saved, found.student_logits], [9.0 * row, rows * logits], "{loss:?}");
        }
        let waiting = 16.0 * 16.0 * 8.0;
        let found = [balanced.saved, balanced.student_logits, balanced.targets];
        assert_eq!(found, [5.0 * row + waiting, 5.0 * logits, 5.0 * 64.0 * 8.0]);
        let estimated = |centering| {
            let mut config = small();
            let objective = esvit(&mut config);
            (objective.region, objective.centering) = (false.into(), centering);
            objective.head.out_dim = 1 << 22;
            estimate(&config, 8)
        };
        let more = estimated(Centering::Sinkhorn) - estimated(Centering::Softmax);
        // Of two global views of eight images, less exponentials of logits.
        let expected = 1.2 * (16.0 * 8.0 * f64::from(1 << 22) - EXPONENTIALS_BYTES as f64);
        assert!((more / expected - 1.0).abs() < 0.1, "{more} instead of {expected}");
    }

    /// The largest divisor of the step that fits, exactly; blocks are computed again only where not
    /// even one image fits otherwise.
    #[test]
    fn what_fits_exactly() {
        let config = small();
        let need = |images: usize, again: bool| {
            let mut config = config.clone();
            config.train.activation_checkpointing = again;
            estimate(&config, images)
        };
        for micro_batch in [8, 4, 2, 1] {
            let bytes = need(micro_batch, false);
            let expected = Fit { micro_batch, activation_checkpointing: false, bytes };
            assert_eq!(fit(&config, bytes), Ok(expected));
        }
        let given = need(1, false) - 1.0;
        assert!(need(1, true) < given && given < need(8, true));
        let found = fit(&config, given).unwrap();
        assert!(found.activation_checkpointing && found.bytes <= given);
        let next = need(2 * found.micro_batch, true);
        assert!(next > given, "{found:?} and {next}");
        let (need, given) = (need(1, true), need(1, true) - 1.0);
        let savings = "a smaller network (`model.arch`), fewer prototypes (`objective.head.out_dim`) or a \
                       smaller cache (`data.cache_mb`) takes less";
        let savings = savings.to_owned();
        assert_eq!(fit(&config, given), Err(DoesNotFit { images: 1, need, given, savings }));
    }

    /// Whatever a hint names is a setting of the objective, and less of it takes less memory.
    #[test]
    fn savings_are_settings_that_count() {
        let cases = ObjectiveConfig::NAMES.iter().map(|name| (*name, "seed=0"));
        let variants = [
            ("byol", "objective.region.loss=softmax"),
            ("distill", "objective.loss=prototypes"),
            ("esvit", "objective.koleo=0.1"),
        ];
        for (name, setting) in cases.chain(variants) {
            let arch = if name == "igpt" { "igpt_micro" } else { "swin_micro" };
            let common = [
                format!("objective.name={name}"),
                format!("model.arch={arch}"),
                "train.batch_size=4".into(),
                "views.global_size=32".into(),
                "views.local_counts=[0]".into(),
                setting.into(),
            ];
            let with = |more: Option<String>| {
                let texts = common.iter().chain(&more);
                let layers = texts.map(|text| crate::config_text::parse_override(text).unwrap());
                Config::resolve(layers.collect()).unwrap()
            };
            let config = with(None);
            let (table, text) = (toml::Table::try_from(&config).unwrap(), savings(&config, 1));
            let compares = config.objective.settings().chunking() == Chunking::ByImage;
            assert_eq!(text.starts_with("a smaller batch"), compares, "{name}: {text}");
            assert!(!text.contains(", or") && text.ends_with(" takes less"), "{text}");
            let keys: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
            // There is no smaller network than these.
            assert!(!keys.contains(&"model.arch") && keys.contains(&"data.cache_mb"), "{text}");
            for key in keys {
                let value = crate::config_text::value_of(&table, key);
                let value = value.and_then(toml::Value::as_integer);
                let value = value.unwrap_or_else(|| panic!("{name} has no {key}: {text}"));
                let less = with(Some(format!("{key}={}", value / 2)));
                assert!(estimate(&less, 1) < estimate(&config, 1), "{name}: {key}");
            }
        }
        // A step that is not split can be made smaller, but for batch normalization not of one image.
        let starts =
            |config: &Config, images| savings(config, images).starts_with("a smaller batch");
        let mut config = small();
        assert_eq!([1, 8].map(|images| starts(&config, images)), [false, true]);
        esvit(&mut config).head.use_bn_in_head = true;
        (config.train.batch_size, config.data.cache_mb) = (2, 0);
        assert!(!starts(&config, 2));
        let words =
            "a smaller network (`model.arch`) or fewer prototypes (`objective.head.out_dim`)";
        assert!(savings(&config, 2).starts_with(words));
    }

    /// A smaller network is named where there is one.
    #[test]
    fn the_smallest_network_is_not_to_be_smaller() {
        let named = |arch: &str| {
            let layer = crate::config_text::parse_override(arch).unwrap();
            is_smallest(&Config::resolve(vec![layer]).unwrap())
        };
        assert!(named("model.arch=vit_micro"));
        assert!(!named("model.arch=vit_tiny16"));
        assert!(!is_smallest(&recipe()) && !is_smallest(&small()));
    }

    /// Caches that the images cannot fill count as far as they do.
    #[test]
    fn a_cache_is_no_larger_than_the_images() {
        use esvit_data::{Image, InMemory};
        let mut source = InMemory::new(Vec::new());
        for index in 0..16 {
            let image = Image::new(512, 256, vec![7; 3 * 512 * 256]).unwrap();
            source.push(index.to_string(), None, image);
        }
        // Three eighths of a MiB each.
        let cache = |cache_mb: usize, max_side: u32| {
            let mut config = small();
            (config.data.cache_mb, config.data.max_side) = (cache_mb, max_side);
            let judged = with_images(&config, &source);
            assert_eq!(Config { data: config.data.clone(), ..judged.clone() }, config);
            let less = (config.data.cache_mb - judged.data.cache_mb) as f64 * f64::from(1 << 20);
            assert!((estimate(&config, 4) - estimate(&judged, 4) - less).abs() < 1.0);
            judged.data.cache_mb
        };
        assert_eq!([cache(512, 0), cache(512, 128), cache(4, 0), cache(0, 0)], [6, 2, 4, 0]);
        assert_eq!(with_images(&small(), &InMemory::new(Vec::new())), small());
    }

    /// Eight images whose blocks are computed again rather than fewer, then two at least.
    #[test]
    fn batch_normalization_is_given_several_images() {
        let mut config = small();
        (config.train.batch_size, config.train.crops_per_forward) = (16, 0);
        esvit(&mut config).head.use_bn_in_head = true;
        let need = |images: usize, again: bool| {
            let mut config = config.clone();
            config.train.activation_checkpointing = again;
            estimate(&config, images)
        };
        let fitted = |bytes: f64| {
            fit(&config, bytes).map(|fit| (fit.micro_batch, fit.activation_checkpointing))
        };
        assert_eq!(fitted(need(16, false)), Ok((16, false)));
        assert_eq!(fitted(need(8, false)), Ok((8, false)));
        assert!(need(8, true) < need(8, false));
        assert_eq!(fitted(need(8, true)), Ok((8, true)));
        let (images, _) = fitted(need(8, true) - 1.0).unwrap();
        assert!((2..8).contains(&images), "{images}");
        let least = need(2, true);
        assert_eq!(fitted(least), Ok((2, true)));
        assert!(need(1, true) < least - 1.0, "a single image would fit");
        let error = fitted(least - 1.0).unwrap_err();
        assert_eq!((error.images, error.need), (2, least));
        let words = "2 images at a time, the fewest that batch normalization is given, take about";
        assert!(error.to_string().starts_with(words), "{error}");
        // A batch of one has no other.
        config.train.batch_size = 1;
        assert_eq!(fit(&config, 1e12).unwrap().micro_batch, 1);
    }
}
