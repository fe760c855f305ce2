//! MoCo-v2: one view of an image, the query, is to find the key of the other view among those of other
//! images in a queue. Keys are a momentum encoder's, which follows slowly, so that those in the queue
//! go together.
//!
//! Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning" (CVPR 2020),
//! algorithm 1; Chen et al., "Improved Baselines with Momentum Contrastive Learning" (2020).
//!
//! The official code encodes keys in shuffled order, so that batch statistics of keys are not those of
//! the queries' images. Here statistics are those of all processes, and the key's encoder sees another
//! view than the query's.

use std::ops::Range;

use esvit_nn::ops::{self, Precision};
use esvit_nn::params::{Params, Scope};
use esvit_nn::projection::{Projection, Start};
use esvit_nn::{Collective, Tensor};
use esvit_settings::{SettingError, settings};

use super::config::{check_queue, check_share, check_temperature, check_widths, saved_bytes};
use super::infonce::{self, NotedPairs, normalized};
use super::pairs::{KEY_VIEW, query_views};
use super::queue::KeyQueue;
use super::{
    BatchStatistics, Chunking, Collapse, EmaTiming, HeadMemory, Health, Loss, MicroBatch,
    Objective, ObjectiveSettings, Pass, Setup, StateTensor, StepInfo, Teacher,
};

settings! {
    /// Settings of MoCo-v2.
    pub struct MocoV2Config {
        /// Number of keys in the queue, K. The official code needs a multiple of the batch.
        pub queue_length: usize = 65_536,
        /// Temperature of the softmax over keys.
        pub temperature: f64 = 0.2,
        /// EMA momentum of the key's encoder, in all steps.
        pub momentum_teacher: f64 = 0.999,
        /// Width of queries and keys.
        pub out_dim: usize = 128,
    }
}

impl ObjectiveSettings for MocoV2Config {
    fn describe(&self) -> String {
        format!("MoCo-v2 with {} keys in a queue", self.queue_length)
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_widths([("out_dim", self.out_dim)])?;
        check_queue("queue_length", self.queue_length, self.out_dim)?;
        check_temperature("temperature", self.temperature)?;
        check_share("momentum_teacher", self.momentum_teacher)
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(MocoV2::new(self, scope, setup))
    }

    fn chunking(&self) -> Chunking {
        Chunking::ByView
    }

    fn global_views(&self) -> u32 {
        2
    }

    fn memory(&self, _tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let saved = (2.0 * width + self.out_dim as f64) * saved_bytes(precision);
        let student_logits = 4.0 * self.queue_length as f64;
        HeadMemory { saved, student_logits, ..HeadMemory::default() }
    }

    fn less_memory(&self) -> Option<&'static str> {
        Some("a shorter queue (`objective.queue_length`)")
    }

    fn state_memory(&self) -> f64 {
        4.0 * (self.queue_length * self.out_dim) as f64
    }

    fn collapse(&self, signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
        infonce::collapse(signal)
    }
}

const QUEUE: &str = "queue";
const QUEUE_PTR: &str = "queue_ptr";

/// The objective of a run.
#[derive(Debug)]
pub struct MocoV2 {
    /// Its settings.
    pub config: MocoV2Config,
    /// The MLP `fc` on view features.
    pub head: Projection,
    /// Keys of earlier steps.
    pub queue: KeyQueue,
    /// Keys of the micro-batch at hand, `[B, D]`.
    keys: Option<Tensor>,
    /// Pairs of the step at hand, if its health is asked for.
    noted: NotedPairs,
    health: Option<Health>,
}

impl MocoV2 {
    /// Registers the head.
    pub fn new(config: &MocoV2Config, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        let head = head(scope, setup.width, config.out_dim);
        let size = [config.queue_length, config.out_dim];
        let queue = KeyQueue::new(QUEUE, size, setup.seed, &setup.device);
        let noted = NotedPairs::default();
        Self { config: config.clone(), head, queue, keys: None, noted, health: None }
    }
}

/// `fc`: a linear layer as wide as the features, ReLU, and a linear layer to `outputs`.
pub fn head(scope: &mut Scope<'_>, width: usize, outputs: usize) -> Projection {
    let mut fc = scope.head("fc");
    Projection::new(width, Start::Uniform)
        .linear(&mut fc.at("0"), width)
        .relu()
        .linear(&mut fc.at("2"), outputs)
}

impl Objective for MocoV2 {
    /// All keys are as near.
    fn chance_loss(&self) -> f64 {
        (1.0 + self.config.queue_length as f64).ln()
    }

    fn teacher(&self, _at: &StepInfo) -> Teacher {
        let momentum = self.config.momentum_teacher;
        Teacher::Ema { timing: EmaTiming::BeforeForward, momentum }
    }

    fn teacher_views(&self) -> Range<usize> {
        KEY_VIEW..KEY_VIEW + 1
    }

    fn batch_statistics(&self) -> BatchStatistics {
        BatchStatistics::PerView
    }

    fn evaluates_student(&self) -> bool {
        true
    }

    fn begin_step(&mut self, _student: &mut Params, _at: &StepInfo) {
        self.queue.forget();
        self.noted.forget();
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
        let keys = normalized(self.head.forward(params, features.view, &[batch], ctx));
        self.queue.note(keys.clone());
        self.keys = Some(keys);
    }

    fn student_views(&mut self, batch: &MicroBatch, _place: [u64; 2]) -> Vec<Tensor> {
        query_views(batch)
    }

    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, _collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, views, batch } = student;
        let count = views.at_hand.len();
        let queries = self.head.forward(params, features.view, &vec![batch; count], ctx);
        let queries = normalized(queries);
        let keys = Tensor::cat(vec![self.keys.clone().expect("targets come first"); count], 0);
        if at.health && views.at_hand.start == 0 {
            self.noted.note(&queries, &keys);
        }
        let negatives = self.queue.keys().clone();
        let loss = ops::info_nce(queries, keys, negatives, self.config.temperature);
        // The mean over the queries of all views.
        Loss::single("contrast", loss * (count as f64 / views.total as f64))
    }

    fn end_micro_batch(&mut self) {
        self.keys = None;
    }

    fn commit(&mut self, _at: &StepInfo, collective: &dyn Collective) {
        // Beside the keys that the queries were compared with.
        self.health = self.noted.health(self.queue.keys());
        self.queue.commit(collective);
    }

    fn state(&self) -> Vec<StateTensor> {
        self.queue.state(QUEUE_PTR).into()
    }

    fn set_state(&mut self, name: &str, value: Tensor) {
        self.queue.restore(QUEUE_PTR, name, &value);
    }

    fn schedule(&self, _at: &StepInfo) -> Vec<(&'static str, f64)> {
        vec![("momentum", self.config.momentum_teacher)]
    }

    fn health(&self) -> Option<Health> {
        self.health.clone()
    }
}
