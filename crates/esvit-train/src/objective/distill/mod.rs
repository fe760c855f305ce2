//! Distillation: a student learns the features of a frozen teacher, another backbone of any family.
//!
//! Both see the same view of an image, at sizes of their own (a consistent teacher: Beyer et al. 2022). Linear
//! layers take the student's view and region features to the teacher's width; what they are compared by is
//! in `loss.rs`. Region features are compared place by place, the teacher's map being resized to the
//! student's.

mod cache;
mod config;
mod loss;
mod prototypes;
mod teacher;
mod views;

pub use config::{DistillConfig, DistillLoss, DistillSettings};
pub use loss::Distance;
pub use teacher::{TeacherNetwork, TeacherRecord};

use std::ops::Range;

use esvit_nn::layers::Linear;
use esvit_nn::ops::Activation;
use esvit_nn::params::{Params, Scope};
use esvit_nn::{Collective, Tensor};

use self::cache::FeatureCache;
use self::prototypes::Prototypes;
use self::teacher::Attached;
use self::views::ViewFeatures;
use super::{Loss, LossPart, MicroBatch, Objective, Pass, Setup, StateTensor, StepInfo, Teacher};

const PROTOTYPES: &str = "prototypes";
const PROTOTYPES_DENSE: &str = "prototypes_dense";

/// Distillation of a run.
#[derive(Debug)]
pub struct Distill {
    settings: DistillSettings,
    seed: u64,
    /// What there is with a teacher: without one, nothing can be learned.
    taught: Option<Taught>,
}

/// What follows from the teacher.
#[derive(Debug)]
struct Taught {
    teacher: Attached,
    /// From the student's width to the teacher's, of view features and of region features.
    view: Linear,
    region: Option<Linear>,
    /// Of view features and of region features, as far as these are compared by prototypes.
    prototypes: Vec<Prototypes>,
    cache: Option<FeatureCache>,
    /// The teacher's features of every view of the micro-batch at hand.
    targets: Vec<ViewFeatures>,
}

impl Distill {
    /// Registers the projections: `head.mlp` and, for regions, `head_dense.mlp`, of one layer each.
    pub fn new(config: &DistillConfig, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        let settings = config.settings.clone();
        let taught = config.attached.clone().map(|teacher| {
            let width = teacher.network.width();
            let mut projection =
                |name: &str| Linear::new(&mut scope.head(name).at("mlp"), setup.width, width);
            let prototypes = |task: u64| {
                let shape = [settings.prototypes, width];
                Prototypes::new(shape, setup.seed, task, &setup.device)
            };
            let tasks = match settings.loss {
                DistillLoss::Prototypes if settings.region => 2,
                DistillLoss::Prototypes => 1,
                _ => 0,
            };
            Taught {
                view: projection("head"),
                region: settings.region.then(|| projection("head_dense")),
                prototypes: (0..tasks).map(prototypes).collect(),
                cache: Some(config.cache_bytes()).filter(|&bytes| bytes > 0).map(FeatureCache::new),
                targets: Vec::new(),
                teacher,
            }
        });
        Self { settings, seed: setup.seed, taught }
    }

    /// How rows of a task are compared: 0 for views, 1 for regions.
    fn distance(&self, taught: &Taught, task: usize) -> Distance {
        let DistillSettings { loss, student_temp, teacher_temp, .. } = self.settings;
        match loss {
            DistillLoss::Cosine => Distance::Cosine,
            DistillLoss::Mse => Distance::Mse,
            DistillLoss::Prototypes => Distance::Prototypes {
                anchors: taught.prototypes[task].rows().clone(),
                temperatures: [student_temp, teacher_temp],
            },
        }
    }

    fn taught(&self) -> &Taught {
        self.taught.as_ref().expect("a run is refused without a teacher")
    }

    /// The prototypes of all tasks; none without a teacher.
    fn prototypes(&mut self) -> impl Iterator<Item = &mut Prototypes> {
        self.taught.iter_mut().flat_map(|taught| &mut taught.prototypes)
    }
}

/// The sum of distances `[rows, 1]`, each by the weight of its row.
fn weighted(distances: Tensor, weights: Vec<f32>) -> Tensor {
    let device = distances.device();
    let weights = Tensor::new(weights, distances.shape(), &device);
    (distances * weights).sum()
}

/// Rows `[rows, C]` of several views, one after another.
fn joined(mut rows: Vec<Tensor>) -> Tensor {
    if rows.len() == 1 { rows.remove(0) } else { Tensor::cat(rows, 0) }
}

impl Objective for Distill {
    fn chance_loss(&self) -> f64 {
        let (view, region) = self.settings.weights.factors(self.settings.region);
        let tasks = view + if self.settings.region { region } else { 0.0 };
        // Of features at right angles; of zeros against standardized ones; of equal shares.
        match self.settings.loss {
            DistillLoss::Cosine | DistillLoss::Mse => tasks,
            DistillLoss::Prototypes => tasks * (self.settings.prototypes as f64).ln(),
        }
    }

    fn teacher(&self, _at: &StepInfo) -> Teacher {
        match &self.taught {
            Some(taught) => Teacher::Frozen(taught.teacher.network.frozen.clone()),
            None => Teacher::None,
        }
    }

    /// All.
    fn teacher_views(&self) -> Range<usize> {
        0..usize::MAX
    }

    fn teacher_input(&mut self, batch: &MicroBatch) -> Vec<Tensor> {
        let taught = self.taught();
        let missing = match &taught.cache {
            Some(cache) if batch.samples.len() == batch.images() => cache.missing(&batch.samples),
            _ => return taught.teacher.see(&batch.views),
        };
        match missing.len() {
            0 => Vec::new(),
            all if all == batch.images() => taught.teacher.see(&batch.views),
            _ => {
                let rows = |view: &Tensor| view.clone().index_select(0, missing.clone());
                taught.teacher.see(&batch.views.iter().map(rows).collect::<Vec<_>>())
            }
        }
    }

    fn begin_step(&mut self, _student: &mut Params, _at: &StepInfo) {
        self.prototypes().for_each(Prototypes::forget);
    }

    fn targets(
        &mut self,
        batch: &MicroBatch,
        teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        _collective: &dyn Collective,
    ) {
        let taught = self.taught.as_mut().expect("a run is refused without a teacher");
        let regions = self.settings.region;
        let computed = teacher.map(|pass| views::by_view(&pass.features, pass.batch, regions));
        let mut computed = computed.unwrap_or_default();
        taught.targets = match &mut taught.cache {
            Some(cache) if batch.samples.len() == batch.images() => {
                vec![cache.complete(&batch.samples, computed.pop())]
            }
            _ => computed,
        };
    }

    fn student_views(&mut self, batch: &MicroBatch, place: [u64; 2]) -> Vec<Tensor> {
        let (seed, images) = (self.seed, batch.images());
        if let Some(Taught { prototypes, targets, .. }) = &mut self.taught {
            let ViewFeatures { view, region, map } = &targets[0];
            // One feature of every image, for either task.
            let region = region.as_ref().map(|region| {
                let rows = prototypes::one_token(seed, place, images, map[0] * map[1]);
                region.clone().index_select(0, rows)
            });
            let features = [Some(view.clone()), region].into_iter().flatten();
            prototypes.iter_mut().zip(features).for_each(|(of, features)| of.observe(features));
        }
        batch.views.clone()
    }

    fn loss(&mut self, student: Pass<'_>, _at: &StepInfo, _collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, views, batch } = student;
        let taught = self.taught();
        let targets = &taught.targets[views.at_hand.clone()];
        let maps = views::maps(&features, batch);
        let count = views.total as f64;
        let (view_weight, region_weight) = self.settings.weights.factors(self.settings.region);

        let predicted = taught.view.forward(params, features.view, Activation::None, ctx);
        let target = joined(targets.iter().map(|target| target.view.clone()).collect());
        let distances = self.distance(taught, 0).of_rows(predicted, target);
        let weight = (1.0 / (batch as f64 * count)) as f32;
        let value = weighted(distances, vec![weight; targets.len() * batch]);
        let mut parts = vec![LossPart { name: "view", value, weight: view_weight }];

        if let Some(projection) = &taught.region {
            let predicted = projection.forward(params, features.region, Activation::None, ctx);
            let pairs = || targets.iter().zip(&maps);
            let target = joined(pairs().filter_map(|(of, map)| of.region_at(*map)).collect());
            let distances = self.distance(taught, 1).of_rows(predicted, target);
            // All views count alike, whatever their tokens.
            let weights = maps.iter().flat_map(|map| {
                let rows = batch * map[0] * map[1];
                std::iter::repeat_n((1.0 / (rows as f64 * count)) as f32, rows)
            });
            let value = weighted(distances, weights.collect());
            parts.push(LossPart { name: "region", value, weight: region_weight });
        }
        Loss { parts }
    }

    fn end_micro_batch(&mut self) {
        if let Some(taught) = &mut self.taught {
            taught.targets.clear();
        }
    }

    fn commit(&mut self, _at: &StepInfo, collective: &dyn Collective) {
        self.prototypes().for_each(|prototypes| prototypes.update(collective));
    }

    fn state(&self) -> Vec<StateTensor> {
        let prototypes = self.taught.iter().flat_map(|taught| &taught.prototypes);
        let state = [PROTOTYPES, PROTOTYPES_DENSE].into_iter().zip(prototypes);
        let state = state.map(|(name, prototypes)| {
            let value = prototypes.rows().clone();
            StateTensor { name, shape: value.shape().to_vec(), value }
        });
        state.collect()
    }

    fn set_state(&mut self, name: &str, value: Tensor) {
        let task = usize::from(name == PROTOTYPES_DENSE);
        if let Some(prototypes) = self.prototypes().nth(task) {
            prototypes.set_rows(value);
        }
    }
}
