//! SwAV: every view of an image predicts the cluster of each global view. Clusters are prototypes that
//! are learned along, and images are assigned to them so that all prototypes have as many: without that
//! all images would have the same one. There is no teacher.
//!
//! Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments"
//! (NeurIPS 2020), equations 1 to 4.
//!
//! With several processes every one of them assigns the images of all, so that the queue is one.

use esvit_nn::layers::Affine;
use esvit_nn::ops::Precision;
use esvit_nn::params::{Init, ParamId, Params, Scope};
use esvit_nn::projection::{Projection, Start};
use esvit_nn::{Collective, Device, ForwardCtx, Tensor};
use esvit_settings::{SettingError, check, settings};

use super::config::{check_queue, check_temperature, check_widths, saved_bytes};
use super::infonce::normalized;
use super::pairs::rows_of_view;
use super::sinkhorn::assignments;
use super::{
    Chunking, Collapse, GLOBAL_VIEWS, HeadMemory, Health, Loss, MicroBatch, Objective,
    ObjectiveSettings, Pass, Setup, StateTensor, StepInfo, Teacher, feature_std,
};
use crate::span::Span;

settings! {
    /// Settings of SwAV. Images of a step are assigned together, however it is cut into micro-batches;
    /// these go through the backbone twice.
    pub struct SwavConfig {
        /// Number of prototypes, K.
        pub prototypes: usize = 3000,
        /// Temperature of the softmax over prototypes.
        pub temperature: f64 = 0.1,
        /// Sharpness of the assignments: the smaller, the nearer they are to one prototype an image. If
        /// the loss stays at that of chance, 0.03 may help.
        pub epsilon: f64 = 0.05,
        /// How often assignments are balanced; 0 leaves them as they are, which collapses.
        pub sinkhorn_iterations: usize = 3,
        /// Embeddings of earlier steps that are assigned along, for each of both global views; 0 for
        /// none. For batches that are smaller than the number of prototypes. The official code makes it a
        /// multiple of the batch.
        pub queue_length: usize = 0,
        /// Length from the start of the run in which there is no queue: `15 epochs`, `500 steps` or `10%`.
        pub queue_start: Span = Span::Epochs(15.0),
        /// Length during which the prototypes are frozen: `1 epoch`, `313 steps` or `10%`.
        pub freeze_prototypes: Span = Span::Epochs(1.0),
        /// Width of the hidden layer of the head.
        pub hidden_dim: usize = 2048,
        /// Width of embeddings and prototypes.
        pub out_dim: usize = 128,
    }
}

impl ObjectiveSettings for SwavConfig {
    fn describe(&self) -> String {
        let queue = match self.queue_length {
            0 => String::new(),
            length => format!(" and a queue of {length}"),
        };
        format!("SwAV with {} prototypes{queue}", self.prototypes)
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_widths([("hidden_dim", self.hidden_dim), ("out_dim", self.out_dim)])?;
        let (prototypes, most) = (self.prototypes, 1 << 22);
        let need = format!("it must be from 2 to {most}");
        check((2..=most).contains(&prototypes), "prototypes", prototypes, need)?;
        check_temperature("temperature", self.temperature)?;
        check_temperature("epsilon", self.epsilon)?;
        let (iterations, need) = (self.sinkhorn_iterations, "it must be at most 1000");
        check(iterations <= 1000, "sinkhorn_iterations", iterations, need)?;
        match self.queue_length {
            0 => Ok(()),
            length => check_queue("queue_length", length, GLOBAL_VIEWS * self.out_dim),
        }
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(Swav::new(self, scope, setup))
    }

    fn chunking(&self) -> Chunking {
        Chunking::ByImage
    }

    fn global_views(&self) -> u32 {
        2
    }

    fn memory(&self, _tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let [hidden, out] = [self.hidden_dim, self.out_dim].map(|width| width as f64);
        let saved = (width + 3.0 * hidden + 2.0 * out) * saved_bytes(precision);
        // Scores, their logarithms, and assignments.
        let student_logits = 12.0 * self.prototypes as f64;
        HeadMemory { saved: saved + student_logits, ..HeadMemory::default() }
    }

    fn less_memory(&self) -> Option<&'static str> {
        Some("fewer prototypes (`objective.prototypes`)")
    }

    fn state_memory(&self) -> f64 {
        4.0 * (GLOBAL_VIEWS * self.queue_length * self.out_dim) as f64
    }

    fn collapse(&self, signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
        collapse(signal)
    }
}

/// The head: an MLP `projection_head`, rows of unit length, and `prototypes`, a linear layer without
/// bias.
#[derive(Debug, Clone)]
pub struct Head {
    mlp: Projection,
    prototypes: ParamId,
}

impl Head {
    /// Registers the head on features of this width.
    pub fn new(scope: &mut Scope<'_>, width: usize, config: &SwavConfig) -> Self {
        let mut mlp = scope.head("projection_head");
        let layers = Projection::new(width, Start::Uniform)
            .linear(&mut mlp.at("0"), config.hidden_dim)
            .norm(&mut mlp.at("1"), Affine::Full)
            .relu()
            .linear(&mut mlp.at("3"), config.out_dim);
        // PyTorch's default for linear layers.
        let uniform = Init::Uniform((config.out_dim as f64).powf(-0.5));
        let shape = [config.prototypes, config.out_dim];
        let prototypes = scope.head("prototypes").param("weight", &shape, uniform);
        Self { mlp: layers, prototypes }
    }

    /// Embeddings `[rows, D]` of unit length of features `[rows, C]`, which are normalized together.
    pub fn embed(&self, params: &Params, features: Tensor, ctx: &ForwardCtx) -> Tensor {
        let rows = [features.shape()[0]];
        normalized(self.mlp.forward(params, features, &rows, ctx))
    }

    /// The prototypes, `[K, D]`.
    pub fn prototypes(&self, params: &Params) -> Tensor {
        params.tensor(self.prototypes)
    }
}

/// Embeddings of the last images, for each of both global views: the newest come first.
#[derive(Debug)]
pub struct SampleQueue {
    /// `[2, L, D]`; zero where nothing has come yet.
    embeddings: Tensor,
    /// Rows that have come, at most L.
    filled: usize,
    /// Embeddings of this step, `[B, D]` for each view.
    noted: Vec<[Tensor; GLOBAL_VIEWS]>,
}

impl SampleQueue {
    /// An empty queue of `length` rows for each view.
    pub fn new(length: usize, width: usize, device: &Device) -> Self {
        let embeddings = Tensor::zeros([GLOBAL_VIEWS, length, width], device);
        Self { embeddings, filled: 0, noted: Vec::new() }
    }

    fn length(&self) -> usize {
        self.embeddings.shape()[1]
    }

    /// The embeddings `[L, D]` of a view, once as many have come.
    pub fn of_view(&self, view: usize) -> Option<Tensor> {
        let [_, length, width] = self.embeddings.dims();
        let is_full = length > 0 && self.filled == length;
        let rows = || self.embeddings.clone().narrow(0, view, 1).reshape([length, width]);
        is_full.then(rows)
    }

    /// Notes embeddings of a micro-batch: they come in with [`SampleQueue::commit`].
    pub fn note(&mut self, embeddings: [Tensor; GLOBAL_VIEWS]) {
        self.noted.push(embeddings.map(Tensor::detach));
    }

    /// Forgets what was noted.
    pub fn forget(&mut self) {
        self.noted.clear();
    }

    /// Puts what was noted in front, of all processes in order of their ranks, and drops the oldest rows.
    pub fn commit(&mut self, collective: &dyn Collective) {
        let noted = std::mem::take(&mut self.noted);
        let length = self.length();
        if noted.is_empty() || length == 0 {
            return;
        }
        let width = self.embeddings.shape()[2];
        let views = (0..GLOBAL_VIEWS).map(|view| {
            let new = Tensor::cat(noted.iter().map(|rows| rows[view].clone()).collect(), 0);
            let new = collective.all_gather(new);
            let old = self.embeddings.clone().narrow(0, view, 1).reshape([length, width]);
            Tensor::cat(vec![new, old], 0).narrow(0, 0, length).reshape([1, length, width])
        });
        let views: Vec<Tensor> = views.collect();
        let images = noted.iter().map(|rows| rows[0].shape()[0]).sum::<usize>();
        self.embeddings = Tensor::cat(views, 0);
        self.filled = (self.filled + images * collective.world()).min(length);
    }
}

const QUEUE: &str = "queue";
const QUEUE_FILLED: &str = "queue_filled";

/// The objective of a run.
#[derive(Debug)]
pub struct Swav {
    /// Its settings.
    pub config: SwavConfig,
    /// The head.
    pub head: Head,
    /// Embeddings of earlier steps.
    pub queue: SampleQueue,
    /// The prototypes as they were before the step at hand, flat.
    before: Option<Tensor>,
    health: Option<Health>,
}

impl Swav {
    /// Registers the head.
    pub fn new(config: &SwavConfig, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        let head = Head::new(scope, setup.width, config);
        let queue = SampleQueue::new(config.queue_length, config.out_dim, &setup.device);
        Self { config: config.clone(), head, queue, before: None, health: None }
    }

    /// Whether there is a queue in a step.
    fn has_queue(&self, at: &StepInfo) -> bool {
        self.config.queue_length > 0 && !at.is_within(self.config.queue_start)
    }

    /// Assignments `[B, K]` of this process's images to prototypes for each global view, given their
    /// embeddings `[B, D]`. They are balanced over the images of all processes and those of the queue, if
    /// there is one and it is full.
    pub fn assign(
        &self,
        embeddings: &[Tensor; GLOBAL_VIEWS],
        prototypes: &Tensor,
        at: &StepInfo,
        collective: &dyn Collective,
    ) -> [Tensor; GLOBAL_VIEWS] {
        let prototypes = prototypes.clone().detach().transpose();
        std::array::from_fn(|view| {
            let own = embeddings[view].clone().detach();
            let batch = own.shape()[0];
            let mut samples = collective.all_gather(own);
            let mut before = collective.rank() * batch;
            if let Some(queued) = self.queue.of_view(view).filter(|_| self.has_queue(at)) {
                before += queued.shape()[0];
                samples = Tensor::cat(vec![queued, samples], 0);
            }
            let scores = samples.matmul(prototypes.clone());
            let SwavConfig { epsilon, sinkhorn_iterations, .. } = self.config;
            assignments(scores, epsilon, sinkhorn_iterations).narrow(0, before, batch)
        })
    }
}

impl Objective for Swav {
    /// All prototypes are as near.
    fn chance_loss(&self) -> f64 {
        (self.config.prototypes as f64).ln()
    }

    fn teacher(&self, _at: &StepInfo) -> Teacher {
        Teacher::None
    }

    fn compares_images(&self) -> bool {
        true
    }

    fn frozen(&self, at: &StepInfo) -> Vec<ParamId> {
        let is_frozen = at.is_within(self.config.freeze_prototypes);
        if is_frozen { vec![self.head.prototypes] } else { Vec::new() }
    }

    /// Scales the prototypes to unit length.
    fn begin_step(&mut self, student: &mut Params, _at: &StepInfo) {
        self.queue.forget();
        self.health = None;
        let id = self.head.prototypes;
        let unit = normalized(student.tensor(id).detach());
        // A copy: the values that are shared with the parameters would be copied all.
        self.before = Some(Tensor::from_vec(student.vector(id).to_vec::<f32>(), &student.device()));
        student.set(id.index(), &unit.to_vec::<f32>());
    }

    fn abandon_step(&mut self, student: &mut Params) {
        if let Some(before) = self.before.take() {
            student.set(self.head.prototypes.index(), &before.to_vec::<f32>());
        }
    }

    fn targets(
        &mut self,
        _batch: &MicroBatch,
        _teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        _collective: &dyn Collective,
    ) {
    }

    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, batch, .. } = student;
        let embeddings = self.head.embed(params, features.view, ctx);
        let prototypes = self.head.prototypes(params);
        let global: [Tensor; GLOBAL_VIEWS] =
            std::array::from_fn(|view| rows_of_view(&embeddings, view, batch));
        let targets = self.assign(&global, &prototypes, at, collective);
        if self.has_queue(at) {
            self.queue.note(global);
        }
        if at.health && self.health.is_none() {
            self.health = Some(health(&embeddings, &targets));
        }
        loss(&embeddings, &prototypes, &targets, self.config.temperature)
    }

    fn commit(&mut self, _at: &StepInfo, collective: &dyn Collective) {
        self.before = None;
        self.queue.commit(collective);
    }

    fn state(&self) -> Vec<StateTensor> {
        if self.config.queue_length == 0 {
            return Vec::new();
        }
        let value = self.queue.embeddings.clone();
        let filled = Tensor::full(self.queue.filled as f32, [1], &value.device());
        vec![
            StateTensor { name: QUEUE, shape: value.shape().to_vec(), value },
            StateTensor { name: QUEUE_FILLED, shape: vec![1], value: filled },
        ]
    }

    fn set_state(&mut self, name: &str, value: Tensor) {
        match name {
            QUEUE => self.queue.embeddings = value,
            _ => self.queue.filled = (value.item() as usize).min(self.queue.length()),
        }
    }

    fn health(&self) -> Option<Health> {
        self.health.clone()
    }
}

/// The loss of embeddings `[views * B, D]` over prototypes `[K, D]`, all of unit length, against the
/// assignments `[B, K]` of both global views: the mean over the pairs of a global view and another view
/// of the cross-entropy at a temperature.
pub fn loss(
    embeddings: &Tensor,
    prototypes: &Tensor,
    targets: &[Tensor; GLOBAL_VIEWS],
    temperature: f64,
) -> Loss {
    let batch = targets[0].shape()[0];
    let views = embeddings.shape()[0] / batch;
    let scores = embeddings.clone().matmul(prototypes.clone().transpose());
    let log = (scores / temperature).log_softmax(1);
    // Of every row the sum of its targets: the cross-entropy is linear in them.
    let of_view = |view: usize| {
        let others = targets.iter().enumerate().filter(|(target, _)| *target != view);
        let others = others.map(|(_, target)| target.clone());
        others.reduce(|sum, target| sum + target).expect("a view has a pair")
    };
    let targets = Tensor::cat((0..views).map(of_view).collect(), 0);
    let pairs = (GLOBAL_VIEWS * (views - 1) * batch) as f64;
    Loss::single("swap", -(log * targets).sum() / pairs)
}

/// Mean entropy of an image's assignment, in nats.
const ASSIGNMENT_ENTROPY: &str = "assignment_entropy";
/// Entropy of the mean assignment over the batch, in nats: ln K if all prototypes have as many.
const MARGINAL_ENTROPY: &str = "marginal_entropy";
/// ln K, the largest entropy possible.
const MAX_ENTROPY: &str = "max_entropy";
/// Prototypes that are the first choice of an image of the batch, in percent.
const PROTOTYPES_USED: &str = "prototypes_used";
/// Images that were assigned.
const ROWS: &str = "rows";
/// [`feature_std`] of the embeddings.
const EMBEDDING_STD: &str = "embedding_std";

/// Share of the largest possible mutual information of image and prototype below which assignments
/// count as independent of the image.
const LEAST_INFORMATION: f64 = 0.02;
/// Share of ln K above which an assignment counts as uniform.
const UNIFORM_SHARE: f64 = 0.9;

/// Every image belongs to all prototypes alike.
pub const UNIFORM: Collapse = Collapse {
    kind: "uniform",
    advice: "the assignments have collapsed: every image belongs to all prototypes alike, since \
             embeddings are the same for all\n\
             hint: lower `objective.epsilon` to 0.03, or give `objective.freeze_prototypes` a longer time",
};

/// Every image belongs to the same prototypes.
pub const CONSTANT: Collapse = Collapse {
    kind: "constant",
    advice: "the assignments have collapsed: all images belong to the same prototypes\n\
             hint: set `objective.sinkhorn_iterations` to 3, and see with `esvit data preview` that the \
             images differ",
};

/// Health of embeddings and of the assignments `[B, K]` of both global views.
fn health(embeddings: &Tensor, targets: &[Tensor; GLOBAL_VIEWS]) -> Health {
    let all = Tensor::cat(targets.to_vec(), 0);
    let [rows, prototypes] = all.dims();
    let entropy = mean_entropy(all.clone());
    let marginal = mean_entropy(all.clone().mean_dim(0));
    let mut used = all.argmax(1).to_vec::<i32>();
    used.sort_unstable();
    used.dedup();
    let used = 100.0 * used.len() as f64 / prototypes as f64;
    let most = (prototypes as f64).ln();
    let std = feature_std(embeddings.clone());
    Health {
        signals: vec![
            (ASSIGNMENT_ENTROPY, entropy),
            (MARGINAL_ENTROPY, marginal),
            (MAX_ENTROPY, most),
            (PROTOTYPES_USED, used),
            (ROWS, rows as f64),
            (EMBEDDING_STD, std),
        ],
        summary: format!(
            "assignment entropy {entropy:.2} of {most:.2}, {used:.1} % of prototypes used, embedding \
             std {std:.2}"
        ),
    }
}

/// Mean entropy of rows in nats, with 0 log 0 = 0.
fn mean_entropy(rows: Tensor) -> f64 {
    let log = rows.clone().clamp_min(f32::MIN_POSITIVE.into()).log();
    -f64::from((rows * log).sum_dim(1).mean().item())
}

/// Whether assignments with these signals tell nothing of the image.
fn collapse(signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
    let [entropy, marginal, most, rows] =
        [ASSIGNMENT_ENTROPY, MARGINAL_ENTROPY, MAX_ENTROPY, ROWS].map(signal);
    let (entropy, most, rows) = (entropy?, most?, rows?);
    // Mutual information of image and prototype, in nats.
    let information = (marginal? - entropy).max(0.0);
    if rows < 4.0 || information > LEAST_INFORMATION * most.min(rows.ln()) {
        return None;
    }
    Some(if entropy > UNIFORM_SHARE * most { UNIFORM } else { CONSTANT })
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Solo;

    fn tensor(rows: &[[f32; 4]]) -> Tensor {
        Tensor::new(rows.as_flattened().to_vec(), [rows.len(), 4], &Device::Cpu)
    }

    fn look(rows: [[f32; 4]; 2]) -> Health {
        // Of both views and two images.
        let embeddings = tensor(&[[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]);
        health(&embeddings, &[tensor(&rows), tensor(&rows)])
    }

    fn collapse_of(health: &Health) -> Option<Collapse> {
        collapse(&|name| health.signal(name))
    }

    #[test]
    fn tells_collapsed_from_healthy() {
        let sure = look([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]);
        assert_eq!(collapse_of(&sure), None);
        assert_eq!(collapse_of(&look([[0.25; 4]; 2])), Some(UNIFORM));
        let constant = look([[1.0, 0.0, 0.0, 0.0]; 2]);
        assert_eq!(collapse_of(&constant), Some(CONSTANT));
        // What four rows tell of their images is little beside what they could.
        let nearly = look([[0.6, 0.4, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]);
        assert_eq!(collapse_of(&nearly), Some(CONSTANT));
        assert_eq!(collapse(&|name| (name != ROWS).then_some(1.0)), None, "a signal is missing");
        assert!(UNIFORM.advice.contains("hint: lower `objective.epsilon`"));
        assert!(CONSTANT.advice.contains("hint: set `objective.sinkhorn_iterations` to 3"));
    }

    #[test]
    fn figures_by_hand() {
        let health = look([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]);
        // Half a bit on average; of all, a quarter, a quarter and a half.
        let two = 2f64.ln();
        for (name, expected) in [
            (ASSIGNMENT_ENTROPY, 0.5 * two),
            (MARGINAL_ENTROPY, 1.5 * two),
            (MAX_ENTROPY, 2.0 * two),
            (PROTOTYPES_USED, 50.0),
            (ROWS, 4.0),
            // Two of four directions, a half from their mean each: 0.5 / 4 on average, times 4.
            (EMBEDDING_STD, 0.5f64.sqrt()),
        ] {
            let found = health.signal(name).unwrap();
            assert!((found - expected).abs() < 1e-6, "{name}: {found} instead of {expected}");
        }
        let expected =
            "assignment entropy 0.35 of 1.39, 50.0 % of prototypes used, embedding std 0.71";
        assert_eq!(health.summary, expected);
    }

    /// Rows `first`, `first + 1`, ... for the first view, and the same negated for the second.
    fn rows(first: usize, count: usize) -> [Tensor; GLOBAL_VIEWS] {
        let values: Vec<f32> = (0..count).map(|row| (first + row) as f32).collect();
        let rows = Tensor::new(values, [count, 1], &Device::Cpu);
        [rows.clone(), -rows]
    }

    /// New rows come in front, in order; it counts as full once as many have come as it holds.
    #[test]
    fn a_queue_of_samples() {
        let mut queue = SampleQueue::new(5, 1, &Device::Cpu);
        for (first, expected) in [
            (1, None),
            (3, None),
            (5, Some([5.0, 6.0, 3.0, 4.0, 1.0])),
            (7, Some([7.0, 8.0, 5.0, 6.0, 3.0])),
        ] {
            queue.note(rows(first + 50, 2));
            queue.forget();
            queue.note(rows(first, 1));
            queue.note(rows(first + 1, 1));
            queue.commit(&Solo);
            let found = queue.of_view(0).map(|rows| rows.to_vec::<f32>());
            assert_eq!(found, expected.map(|rows: [f32; 5]| rows.to_vec()));
            let second = queue.of_view(1).map(|rows| rows.to_vec::<f32>());
            assert_eq!(second, expected.map(|rows| rows.map(|row| -row).to_vec()));
            // Nothing new.
            queue.commit(&Solo);
        }
        let mut none = SampleQueue::new(0, 1, &Device::Cpu);
        none.note(rows(1, 2));
        none.commit(&Solo);
        assert!(none.of_view(0).is_none());
    }
}
