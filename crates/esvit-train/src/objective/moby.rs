//! MoBY: MoCo-v2's queues with BYOL's asymmetry. The predictions of both views of an image are to find
//! the keys of the other view among those in a queue, one for each view.
//!
//! Source: Xie et al., "Self-Supervised Learning with Swin Transformers" (2021), section 3.

use esvit_nn::layers::Affine;
use esvit_nn::ops::{self, Precision};
use esvit_nn::params::{Params, Scope};
use esvit_nn::projection::{Projection, Start};
use esvit_nn::{Collective, Tensor};
use esvit_settings::{SettingError, settings};

use super::config::{check_queue, check_share, check_temperature, check_widths, saved_bytes};
use super::infonce::{self, Contrast, normalized};
use super::pairs::{by_view, first_pair, share, sum_over_pairs};
use super::queue::KeyQueue;
use super::{
    BatchStatistics, Chunking, Collapse, EmaTiming, GLOBAL_VIEWS, HeadMemory, Health, Loss,
    MicroBatch, Objective, ObjectiveSettings, Pass, Setup, StateTensor, StepInfo, Teacher, Views,
};
use crate::schedule::CosineSchedule;

settings! {
    /// Settings of MoBY. The heads normalize by all images of a step, however it is cut into
    /// micro-batches; these go through the backbone twice.
    pub struct MobyConfig {
        /// Number of keys in each of the two queues, K. The official code needs a multiple of the batch.
        pub queue_length: usize = 4096,
        /// Temperature of the softmax over keys.
        pub temperature: f64 = 0.2,
        /// EMA momentum of the key's encoder at the start; it grows to 1.
        pub momentum_teacher: f64 = 0.99,
        /// Width of the hidden layers.
        pub hidden_dim: usize = 4096,
        /// Width of predictions and keys.
        pub out_dim: usize = 256,
    }
}

impl ObjectiveSettings for MobyConfig {
    fn describe(&self) -> String {
        format!("MoBY with {} keys in each of two queues", self.queue_length)
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_widths([("hidden_dim", self.hidden_dim), ("out_dim", self.out_dim)])?;
        check_queue("queue_length", self.queue_length, self.out_dim)?;
        check_temperature("temperature", self.temperature)?;
        check_share("momentum_teacher", self.momentum_teacher)
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(Moby::new(self, scope, setup))
    }

    fn chunking(&self) -> Chunking {
        Chunking::ByImage
    }

    fn global_views(&self) -> u32 {
        2
    }

    fn memory(&self, _tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let [hidden, out] = [self.hidden_dim, self.out_dim].map(|width| width as f64);
        let saved = (width + 6.0 * hidden + 3.0 * out) * saved_bytes(precision);
        let student_logits = 4.0 * self.queue_length as f64;
        HeadMemory { saved, student_logits, ..HeadMemory::default() }
    }

    fn less_memory(&self) -> Option<&'static str> {
        Some("a shorter queue (`objective.queue_length`)")
    }

    fn state_memory(&self) -> f64 {
        8.0 * (self.queue_length * self.out_dim) as f64
    }

    fn collapse(&self, signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
        infonce::collapse(signal)
    }
}

const QUEUES: [&str; GLOBAL_VIEWS] = ["queue1", "queue2"];
const QUEUE_PTR: &str = "queue_ptr";

/// The objective of a run.
#[derive(Debug)]
pub struct Moby {
    /// Its settings.
    pub config: MobyConfig,
    /// The projector, of both networks.
    pub projector: Projection,
    /// The predictor, of the student alone.
    pub predictor: Projection,
    /// Keys of earlier steps, by the view that they are of.
    pub queues: [KeyQueue; GLOBAL_VIEWS],
    /// Keys of the images at hand for each global view, `[B, D]`.
    keys: Vec<Tensor>,
    health: Option<Health>,
}

impl Moby {
    /// Registers projector and predictor.
    pub fn new(config: &MobyConfig, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        let sizes = [config.hidden_dim, config.out_dim];
        let size = [config.queue_length, config.out_dim];
        Self {
            config: config.clone(),
            projector: mlp(&mut scope.head("projector"), setup.width, sizes),
            predictor: mlp(&mut scope.student_head("predictor"), config.out_dim, sizes),
            queues: QUEUES.map(|name| KeyQueue::new(name, size, setup.seed, &setup.device)),
            keys: Vec::new(),
            health: None,
        }
    }

    /// EMA momentum of the key's encoder: it grows to 1.
    pub fn momentum(&self, at: &StepInfo) -> f64 {
        CosineSchedule::new(self.config.momentum_teacher, 1.0, at.run.total_steps).at(at.step)
    }
}

/// `linear_hidden`, whose layer 0 is for a norm that is not there: a linear layer, batch normalization
/// and ReLU; then `linear_out`.
fn mlp(scope: &mut Scope<'_>, inputs: usize, [hidden, outputs]: [usize; 2]) -> Projection {
    Projection::new(inputs, Start::Uniform)
        .linear(&mut scope.at("linear_hidden.1"), hidden)
        .norm(&mut scope.at("linear_hidden.2"), Affine::Full)
        .relu()
        .linear(&mut scope.at("linear_out"), outputs)
}

impl Objective for Moby {
    /// All keys are as near, to both views.
    fn chance_loss(&self) -> f64 {
        2.0 * (1.0 + self.config.queue_length as f64).ln()
    }

    fn teacher(&self, at: &StepInfo) -> Teacher {
        Teacher::Ema { timing: EmaTiming::BeforeForward, momentum: self.momentum(at) }
    }

    fn batch_statistics(&self) -> BatchStatistics {
        BatchStatistics::PerView
    }

    fn evaluates_student(&self) -> bool {
        true
    }

    fn compares_images(&self) -> bool {
        true
    }

    fn begin_step(&mut self, _student: &mut Params, _at: &StepInfo) {
        self.queues.iter_mut().for_each(KeyQueue::forget);
        self.health = None;
    }

    fn targets(
        &mut self,
        _batch: &MicroBatch,
        teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        _collective: &dyn Collective,
    ) {
        let Pass { params, features, ctx, batch, .. } = teacher.expect("an EMA teacher");
        let keys = self.projector.forward(params, features.view, &[batch; GLOBAL_VIEWS], ctx);
        let keys = normalized(keys);
        self.keys = by_view(&keys, batch);
        for (queue, keys) in self.queues.iter_mut().zip(&self.keys) {
            queue.note(keys.clone());
        }
    }

    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, _collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, views, batch } = student;
        let runs = vec![batch; views.at_hand.len()];
        let projections = self.projector.forward(params, features.view, &runs, ctx);
        let predictions = normalized(self.predictor.forward(params, projections, &runs, ctx));
        if at.health && self.health.is_none() {
            let (rows, other) = first_pair(&predictions, &views);
            let negatives = self.queues[other].keys();
            let contrast = Contrast::with_others(&rows, &self.keys[other], negatives);
            self.health = Some(infonce::health(&predictions, Some(contrast)));
        }
        let queues = self.queues.each_ref().map(|queue| queue.keys().clone());
        loss(&predictions, &self.keys, &queues, &views, self.config.temperature)
    }

    fn end_micro_batch(&mut self) {
        self.keys.clear();
    }

    fn commit(&mut self, _at: &StepInfo, collective: &dyn Collective) {
        self.queues.iter_mut().for_each(|queue| queue.commit(collective));
    }

    /// Both queues have one place.
    fn state(&self) -> Vec<StateTensor> {
        let [first, second] = self.queues.each_ref().map(|queue| queue.state(QUEUE_PTR));
        let ([first, pointer], [second, _]) = (first, second);
        vec![first, second, pointer]
    }

    fn set_state(&mut self, name: &str, value: Tensor) {
        self.queues.iter_mut().for_each(|queue| queue.restore(QUEUE_PTR, name, &value));
    }

    fn schedule(&self, at: &StepInfo) -> Vec<(&'static str, f64)> {
        vec![("momentum", self.momentum(at))]
    }

    fn health(&self) -> Option<Health> {
        self.health.clone()
    }
}

/// The loss of predictions of views, `[views * B, D]`, against keys `[B, D]` of every global view, each
/// beside the queue of its view; all of unit length. It is summed over both directions.
pub fn loss(
    predictions: &Tensor,
    keys: &[Tensor],
    queues: &[Tensor],
    views: &Views,
    temperature: f64,
) -> Loss {
    let sum = sum_over_pairs(predictions, views, share(views.total), |rows, other| {
        let (keys, queue) = (keys[other].clone(), queues[other].clone());
        ops::info_nce(rows, keys, queue, temperature)
    });
    Loss::single("contrast", sum)
}
