//! Benchmarks of training steps on synthetic images, and of the loss alone.

use std::any::Any;

use esvit_kernels::pool;
use esvit_kernels::rng::Rng;
use esvit_nn::head::HeadConfig;
use esvit_nn::ops::{self, Pairs, Precision, PrototypeLogits, TeacherRows};
use esvit_nn::{BackboneConfig, ForwardCtx, Network, Tape, Tensor};
use esvit_train::learner::LearnerSettings;
use esvit_train::objective::esvit::{Esvit, EsvitConfig};
use esvit_train::objective::{
    Chunking, GLOBAL_VIEWS, MicroBatch, ObjectiveConfig, Setup, StepInfo, Teacher,
};
use esvit_train::optim::OptimizerKind;
use esvit_train::span::RunLength;
use esvit_train::{CropChunks, Learner};

use super::{Bench, BenchError, Report, architecture, repeat, time};

/// RNG purpose of synthetic images.
const IMAGES_PURPOSE: u64 = 0xBE9C;

/// The objective whose heads are counted.
const ESVIT: &str = "esvit";

/// Dimension of the head's bottleneck.
const BOTTLENECK: usize = 256;

/// Classes of an objective that learns labels.
const CLASSES: u32 = 1000;

/// Times whole training steps: forward passes of teacher and student, loss, backward pass, clipping, AdamW, EMA.
///
/// # Errors
/// [`BenchError`] for invalid settings.
pub fn train_step(bench: &Bench) -> Result<Report, BenchError> {
    let mut step = Step::new(bench)?;
    let seconds = repeat(bench.iterations, |number| step.take(number))?;
    Ok(Report::new(bench, seconds, step.macs(bench)))
}

/// What takes training steps on the same images again and again.
pub(super) struct Step {
    config: BackboneConfig,
    drop_path: f64,
    chunking: Chunking,
    learner: Learner,
    micro_batches: Vec<MicroBatch>,
}

impl Step {
    /// Makes network, objective and images.
    pub(super) fn new(bench: &Bench) -> Result<Self, BenchError> {
        let (config, drop_path) = architecture(&bench.model)?;
        let objective_config = objective_of(bench)?;
        let objective = objective_config.settings();
        objective.check_ready().map_err(|_| BenchError::NotReady(bench.objective.clone()))?;
        objective.check_backbone(&config).map_err(|error| error.within("objective"))?;
        config.check_image("global size", [bench.global_size; 2])?;
        if bench.local_crops > 0 {
            config.check_image("local size", [bench.local_size; 2])?;
        }
        let micro_batch = if bench.micro_batch == 0 { bench.batch } else { bench.micro_batch };
        if bench.batch == 0 || !bench.batch.is_multiple_of(micro_batch) {
            return Err(BenchError::Setting(format!(
                "a batch of {} cannot be cut into micro-batches of {micro_batch}",
                bench.batch
            )));
        }
        let chunking = objective.chunking();
        if bench.crops_per_forward > 0 && chunking != Chunking::ByView {
            return Err(BenchError::Setting(format!(
                "`{}` takes all crops at once: they cannot go through {} at a time",
                bench.objective, bench.crops_per_forward
            )));
        }
        let (precision, device) = (bench.precision, bench.device);
        let classes = if objective.needs_labels() { CLASSES } else { 0 };
        let (network, built) = Network::new(&config, drop_path, |scope, width| {
            let setup = Setup {
                width,
                blocks: config.blocks(),
                masking: config.masking(),
                color_tokens: config.color_tokens(),
                stride: config.stages().last().map_or(1, |stage| stage.stride),
                classes: classes as usize,
                images: bench.batch,
                precision,
                device,
                ..Setup::default()
            };
            objective.build(scope, &setup)
        });
        let settings = LearnerSettings {
            clip_grad: Some(3.0),
            precision,
            crop_chunks: crop_chunks(bench, &config, chunking, precision),
            activation_checkpointing: bench.activation_checkpointing,
            ..LearnerSettings::default()
        };
        let learner = Learner::new(network, built, OptimizerKind::AdamW, settings, &device);
        let crops = |size: usize, count: usize, stream: u64| {
            (0..count as u64).map(move |crop| images(bench, micro_batch, size, [stream, crop]))
        };
        let global_crops = objective.global_views() as usize;
        let micro_batches = (0..bench.batch / micro_batch)
            .map(|part| {
                let stream = 2 * part as u64;
                let globals = crops(bench.global_size, global_crops, stream);
                let locals = crops(bench.local_size, bench.local_crops, stream + 1);
                let views = globals.chain(locals).collect();
                let labels = (0..micro_batch as u32).filter(|_| classes > 0);
                let labels = labels.map(|image| image % CLASSES).collect();
                MicroBatch { labels, ..MicroBatch::unlabeled(views) }
            })
            .collect();
        Ok(Self { config, drop_path, chunking, learner, micro_batches })
    }

    /// Takes the step of this number.
    pub(super) fn take(&mut self, number: usize) -> Result<(), BenchError> {
        pool::run(|| self.learner.step(self.micro_batches.clone(), &at(number)))
            .map(|_| ())
            .map_err(|error| BenchError::Step(error.to_string()))
    }

    /// Takes further steps in another precision than that of `bench`.
    pub(super) fn set_precision(&mut self, bench: &Bench, precision: Precision) {
        self.learner.settings.precision = precision;
        self.learner.settings.crop_chunks =
            crop_chunks(bench, &self.config, self.chunking, precision);
        let objective: &mut dyn Any = &mut *self.learner.objective;
        let objective = objective.downcast_mut::<Esvit>().expect("the objective made above");
        objective.precision = precision;
    }

    /// Multiply-accumulates of a step, at least.
    fn macs(&mut self, bench: &Bench) -> u64 {
        let objective = &mut self.learner.objective;
        let teacher_views = match objective.teacher(&at(0)) {
            Teacher::None => 0,
            _ => objective.teacher_views().len(),
        };
        let micro_batch = &self.micro_batches[0];
        let student_views = objective.student_views(micro_batch, [0, 0]);
        let sides: Vec<usize> = student_views.iter().map(|view| view.shape()[2]).collect();
        step_macs(bench, &self.config, self.drop_path, &sides, teacher_views)
    }
}

/// The objective that a benchmark names.
fn objective_of(bench: &Bench) -> Result<ObjectiveConfig, BenchError> {
    let named = ObjectiveConfig::named(&bench.objective);
    let named = named.ok_or_else(|| BenchError::Objective(bench.objective.clone()))?;
    let ObjectiveConfig::Esvit(_) = named else { return Ok(named) };
    let out_dim = bench.prototypes;
    let head = HeadConfig { out_dim, norm_last_layer: false, ..HeadConfig::default() };
    let region = bench.region.into();
    Ok(ObjectiveConfig::Esvit(EsvitConfig { region, head, ..EsvitConfig::default() }))
}

/// A step of the middle of a long run.
fn at(number: usize) -> StepInfo {
    StepInfo {
        step: number as u64,
        // Prototypes are frozen in the first epoch.
        epoch: 1,
        run: RunLength { total_steps: u64::MAX, steps_per_epoch: u64::MAX },
        lr: 5e-4,
        weight_decay: 0.04,
        health: false,
    }
}

/// How crops are split into forward passes.
fn crop_chunks(
    bench: &Bench,
    config: &BackboneConfig,
    chunking: Chunking,
    precision: Precision,
) -> CropChunks {
    match bench.crops_per_forward {
        _ if chunking != Chunking::ByView => CropChunks::All,
        0 => CropChunks::within_memory(config, precision, bench.activation_checkpointing),
        count => CropChunks::Crops(count),
    }
}

/// Synthetic normalized images `[B, 3, size, size]`.
pub(super) fn images(bench: &Bench, batch: usize, size: usize, place: [u64; 2]) -> Tensor {
    let [first, second] = place;
    random(bench, [batch, 3, size, size], 2.0, [first, second, size as u64])
}

/// Values between `-bound` and `bound`.
fn random<const D: usize>(bench: &Bench, shape: [usize; D], bound: f64, place: [u64; 3]) -> Tensor {
    let mut rng = Rng::for_purpose(0, IMAGES_PURPOSE, place);
    let values = (0..shape.iter().product()).map(|_| rng.uniform_in(-bound, bound) as f32);
    Tensor::new(values.collect(), shape, &bench.device)
}

/// Lower bound of the multiply-accumulates of a step's GEMMs, with student's views of these sides: padding
/// and dropped residual branches, which are not computed, do not count, nor do heads of other objectives
/// than EsViT's.
fn step_macs(
    bench: &Bench,
    config: &BackboneConfig,
    drop_path: f64,
    sides: &[usize],
    teacher_views: usize,
) -> u64 {
    let macs = |size: usize, drop_path: f64| {
        config.cost([size; 2], drop_path, &ForwardCtx::expected()).macs
    };
    let pass: f64 = sides.iter().map(|&side| macs(side, drop_path)).sum();
    let teacher_views = teacher_views as f64;
    let teacher = teacher_views * macs(bench.global_size, 0.0);
    let mut image = 3.0 * pass + teacher;
    if bench.objective == ESVIT {
        image += head_macs(bench, config, sides, teacher_views);
    }
    (image * bench.batch as f64) as u64
}

/// Those of EsViT's heads for one image.
fn head_macs(bench: &Bench, config: &BackboneConfig, sides: &[usize], teacher_views: f64) -> f64 {
    let tokens = |size: usize| config.last_map(size).pow(2) as f64;
    let width = config.output_width() as f64;
    let hidden = HeadConfig::default().hidden_dim as f64;
    let bottleneck = BOTTLENECK as f64;
    let embedding = width * hidden + hidden * hidden + hidden * bottleneck;
    let logits = bottleneck * bench.prototypes as f64;
    let mut rows = [teacher_views, sides.len() as f64];
    if bench.region {
        rows[0] += teacher_views * tokens(bench.global_size);
        rows[1] += sides.iter().map(|&side| tokens(side)).sum::<f64>();
    }
    // The number of teacher regions that are matched, and hence need logits, is unknown: none are
    // counted.
    rows[0] * embedding + teacher_views * logits + 3.0 * rows[1] * (embedding + logits)
}

/// Times the cross-entropy over the prototypes, forward and backward, without the networks.
///
/// # Errors
/// [`BenchError`] for invalid settings.
pub fn objective(bench: &Bench) -> Result<Report, BenchError> {
    let (config, _) = architecture(&bench.model)?;
    let [global, local] =
        [bench.global_size, bench.local_size].map(|size| config.last_map(size).pow(2));
    let teachers = GLOBAL_VIEWS * bench.batch * global;
    let rows = teachers + bench.local_crops * bench.batch * local;
    let mut pairs = Pairs::new();
    for row in 0..rows {
        let count = if row < teachers { 1 } else { 2 };
        pairs.push((0..count).map(|i| ((row + i * teachers / 2) % teachers, 1.0 / rows as f32)));
    }
    let pairs = TeacherRows::new(&pairs, &bench.device);
    let random = |rows: usize, width: usize, place: u64| {
        random(bench, [rows, width], 1.0, [place, rows as u64, width as u64])
    };
    let k = bench.prototypes;
    let logits = |rows: usize, place: u64| PrototypeLogits {
        z: ops::l2_normalize(random(rows, BOTTLENECK, place)),
        v: random(k, BOTTLENECK, place + 1),
        g: Tensor::ones([k], &bench.device),
    };
    let (student, teacher) = (logits(rows, 0), logits(teachers, 2));
    let center = Tensor::zeros([k], &bench.device);
    let seconds = time(bench.iterations, |_| {
        let tape = Tape::new();
        let PrototypeLogits { z, v, g } = student.clone();
        let [z, v, g] = [z, v, g].map(|tensor| tape.watch(tensor));
        let loss = ops::prototype_cross_entropy(
            PrototypeLogits { z, v, g },
            teacher.clone(),
            center.clone(),
            pairs.clone(),
            [0.1, 0.04],
            bench.precision,
        );
        drop(tape.backward(&loss));
    });
    let macs = (3 * rows + teachers) as u64 * (BOTTLENECK * k) as u64;
    Ok(Report::new(bench, seconds, macs))
}

#[cfg(test)]
mod tests {
    use super::super::tests::bench;
    use super::*;

    /// By hand for one image of a small network: two global crops of four last tokens, three local
    /// ones of one.
    #[test]
    fn a_step_counts_three_passes_of_the_student_and_one_of_the_teacher() {
        let config = esvit_nn::zoo::find("swin_tiny_w7").map(|arch| arch.config()).unwrap();
        let bench = Bench { batch: 5, global_size: 64, prototypes: 100, region: true, ..bench() };
        let [global, local] =
            [64, 32].map(|size| config.cost([size; 2], 0.0, &ForwardCtx::eval()).macs);
        let backbone = 3.0 * (2.0 * global + 3.0 * local) + 2.0 * global;
        let (embedding, logits) = (768.0 * 2048.0 + 2048.0 * 2048.0 + 2048.0 * 256.0, 25_600.0);
        let heads = |teacher: f64, student: f64| {
            teacher * embedding + 2.0 * logits + 3.0 * student * (embedding + logits)
        };
        let off = |bench: &Bench, heads: f64| {
            let found = step_macs(bench, &config, 0.0, &[64, 64, 32, 32, 32], 2) as f64;
            (found / (5.0 * (backbone + heads)) - 1.0).abs()
        };
        let both = off(&bench, heads(2.0 + 2.0 * 4.0, 5.0 + 2.0 * 4.0 + 3.0));
        assert!(both < 1e-9, "{both}");
        let view = off(&Bench { region: false, ..bench }, heads(2.0, 5.0));
        assert!(view < 1e-9, "{view}");
    }

    /// What each takes through the backbone: three times the student's views, and the teacher's.
    #[test]
    fn steps_of_other_objectives_count_what_they_see() {
        let macs_of = |objective: &str, batch: usize| {
            let bench = Bench {
                model: "swin_micro".into(),
                batch,
                global_size: 32,
                local_size: 16,
                local_crops: 0,
                objective: objective.into(),
                ..bench()
            };
            let mut step = Step::new(&bench).unwrap();
            step.take(0).unwrap();
            step.macs(&bench)
        };
        let [one_view, contrast] = [macs_of("supervised", 2), macs_of("simclr", 2)];
        assert_eq!(contrast, 2 * one_view);
        // Two views of a teacher without a backward pass, less what drop path leaves out.
        let with_teacher = macs_of("mocov3", 2) - contrast;
        assert!((3 * with_teacher) as f64 / contrast as f64 > 0.99, "{with_teacher}");
        assert_eq!(macs_of("simclr", 4), 2 * contrast);
    }

    #[test]
    fn objectives_that_cannot_be_timed_are_refused() {
        let error = |objective: &str| {
            let bench = Bench { objective: objective.into(), ..bench() };
            Step::new(&bench).err().unwrap().to_string()
        };
        let cut = Bench { objective: "simclr".into(), crops_per_forward: 3, ..bench() };
        let refused = Step::new(&cut).err().unwrap().to_string();
        assert_eq!(refused, "`simclr` takes all crops at once: they cannot go through 3 at a time");
        assert!(error("dino").contains("there is no objective `dino`"));
        assert!(error("distill").contains("`distill` needs more than its defaults"));
        assert!(error("igpt").contains("objective.name"), "{}", error("igpt"));
    }
}
