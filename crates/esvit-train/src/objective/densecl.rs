//! DenseCL: MoCo-v2 for the whole view and, beside it, for each cell of its map. A cell's own key is
//! that of the cell of the other view whose backbone feature is the most similar one.
//!
//! Source: Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training" (CVPR 2021),
//! section 3. Cells are the region features of any backbone.

use std::ops::Range;

use esvit_nn::backbone::RowFeatures;
use esvit_nn::ops::{self, MatchGroup, Precision};
use esvit_nn::params::{Params, Scope};
use esvit_nn::projection::{Projection, Start};
use esvit_nn::{Collective, ForwardCtx, Tensor};
use esvit_settings::{SettingError, settings};

use super::config::{check_queue, check_share, check_temperature, check_widths, saved_bytes};
use super::infonce::{self, NotedPairs, normalized};
use super::pairs::{KEY_VIEW, query_views, rows_of_view};
use super::queue::KeyQueue;
use super::{
    BatchStatistics, Chunking, Collapse, EmaTiming, HeadMemory, Health, Loss, LossPart, MicroBatch,
    Objective, ObjectiveSettings, Pass, Setup, StateTensor, StepInfo, Teacher,
};

settings! {
    /// Settings of DenseCL.
    pub struct DenseClConfig {
        /// Number of keys in each of the two queues, K. The official code needs a multiple of the batch.
        pub queue_length: usize = 65_536,
        /// Temperature of the softmax over keys, of views and of cells.
        pub temperature: f64 = 0.2,
        /// Weight of the loss of cells; that of views has the rest.
        pub loss_lambda: f64 = 0.5,
        /// EMA momentum of the key's encoder, in all steps.
        pub momentum_teacher: f64 = 0.999,
        /// Width of the hidden layers.
        pub hidden_dim: usize = 2048,
        /// Width of queries and keys.
        pub out_dim: usize = 128,
    }
}

impl ObjectiveSettings for DenseClConfig {
    fn describe(&self) -> String {
        format!("DenseCL with {} keys in each of two queues", self.queue_length)
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_widths([("hidden_dim", self.hidden_dim), ("out_dim", self.out_dim)])?;
        check_queue("queue_length", self.queue_length, self.out_dim)?;
        check_temperature("temperature", self.temperature)?;
        check_share("loss_lambda", self.loss_lambda)?;
        check_share("momentum_teacher", self.momentum_teacher)
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(DenseCl::new(self, scope, setup))
    }

    fn chunking(&self) -> Chunking {
        Chunking::ByView
    }

    fn global_views(&self) -> u32 {
        2
    }

    fn memory(&self, tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let [hidden, out] = [self.hidden_dim, self.out_dim].map(|width| width as f64);
        let rows = 1.0 + tokens;
        let saved = rows * (width + 2.0 * hidden + 2.0 * out) * saved_bytes(precision);
        let student_logits = rows * 4.0 * self.queue_length as f64;
        HeadMemory { saved, student_logits, ..HeadMemory::default() }
    }

    fn less_memory(&self) -> Option<&'static str> {
        Some("a shorter queue (`objective.queue_length`)")
    }

    fn state_memory(&self) -> f64 {
        8.0 * (self.queue_length * self.out_dim) as f64
    }

    fn collapse(&self, signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
        let one = signal(MATCHED_CELLS).zip(signal(CELLS)).is_some_and(|(matched, cells)| {
            cells >= LEAST_CELLS && matched * cells < 100.0 * LEAST_MATCHED
        });
        infonce::collapse(signal).or(one.then_some(ONE_CELL))
    }
}

/// The neck: an MLP on view features, and one on each cell.
#[derive(Debug, Clone)]
pub struct Neck {
    view: Projection,
    cells: Projection,
}

/// What the neck makes of a view.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// Of the views, `[B, D]`.
    pub global: Tensor,
    /// Of their cells, image by image and row-major, `[B * S, D]`.
    pub grid: Tensor,
    /// Its means over the cells of an image, `[B, D]`.
    pub dense_mean: Tensor,
}

impl Neck {
    /// Registers `mlp` and `mlp2`, whose layers are convolutions of 1 x 1.
    pub fn new(scope: &mut Scope<'_>, width: usize, [hidden, outputs]: [usize; 2]) -> Self {
        let mut mlp = scope.head("mlp");
        // He et al.'s normal distribution, of the inputs; the convolutions keep PyTorch's default.
        let view = Projection::new(width, Start::Scaled(2f64.sqrt()))
            .linear(&mut mlp.at("0"), hidden)
            .relu()
            .linear(&mut mlp.at("2"), outputs);
        let mut mlp2 = scope.head("mlp2");
        let cells = Projection::new(width, Start::Uniform)
            .pointwise(&mut mlp2.at("0"), hidden)
            .relu()
            .pointwise(&mut mlp2.at("2"), outputs);
        Self { view, cells }
    }

    /// Embeddings of a view feature `[B, C]` and of as many cells of every image, `[B * S, C]`.
    pub fn forward(
        &self,
        params: &Params,
        view: Tensor,
        cells: Tensor,
        ctx: &ForwardCtx,
    ) -> Embedded {
        let (images, rows) = (view.shape()[0], cells.shape()[0]);
        let global = self.view.forward(params, view, &[images], ctx);
        let grid = self.cells.forward(params, cells, &[rows], ctx);
        let dense_mean = ops::global_average_pool(grid.clone(), &vec![rows / images; images]);
        Embedded { global, grid, dense_mean }
    }
}

const QUEUE: &str = "queue";
const QUEUE_PTR: &str = "queue_ptr";
const QUEUE2: &str = "queue2";
const QUEUE2_PTR: &str = "queue2_ptr";

/// Keys of a view, of unit length but for the cells.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Of the views, `[B, D]`.
    pub global: Tensor,
    /// Of their cells, `[B * S, D]`.
    pub grid: Tensor,
    /// Backbone features of the cells, `[B * S, C]`.
    pub cells: Tensor,
}

/// The cells of queries and their matches, of all micro-batches of a step.
#[derive(Debug, Default)]
struct NotedMatches {
    /// Those of every image, one after another, each by its row among the keys of its micro-batch.
    rows: Vec<i32>,
    images: usize,
    /// Cells of the key's view of an image.
    cells: usize,
}

/// The objective of a run.
#[derive(Debug)]
pub struct DenseCl {
    /// Its settings.
    pub config: DenseClConfig,
    /// The neck.
    pub neck: Neck,
    /// Keys of earlier views.
    pub queue: KeyQueue,
    /// Mean keys of the cells of earlier views, one an image.
    pub queue2: KeyQueue,
    /// Keys of the micro-batch at hand.
    keys: Option<Keys>,
    /// Pairs and matches of the step at hand, if its health is asked for.
    noted: (NotedPairs, NotedMatches),
    health: Option<Health>,
}

impl DenseCl {
    /// Registers the neck.
    pub fn new(config: &DenseClConfig, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        let size = [config.queue_length, config.out_dim];
        let queue = |name| KeyQueue::new(name, size, setup.seed, &setup.device);
        Self {
            config: config.clone(),
            neck: Neck::new(scope, setup.width, [config.hidden_dim, config.out_dim]),
            queue: queue(QUEUE),
            queue2: queue(QUEUE2),
            keys: None,
            noted: Default::default(),
            health: None,
        }
    }
}

impl Objective for DenseCl {
    /// All keys are as near, to views and to cells.
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
        self.queue2.forget();
        self.noted = Default::default();
        self.health = None;
    }

    fn targets(
        &mut self,
        _batch: &MicroBatch,
        teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        _collective: &dyn Collective,
    ) {
        let Pass { params, features, ctx, .. } = teacher.expect("an EMA teacher");
        let RowFeatures { view, region, .. } = features;
        let embedded = self.neck.forward(params, view, region.clone(), ctx);
        let Embedded { global, grid, dense_mean } = embedded;
        let global = normalized(global);
        self.queue.note(global.clone());
        self.queue2.note(normalized(dense_mean));
        self.keys = Some(Keys { global, grid: normalized(grid), cells: region });
    }

    fn student_views(&mut self, batch: &MicroBatch, _place: [u64; 2]) -> Vec<Tensor> {
        query_views(batch)
    }

    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, _collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, views, batch } = student;
        let RowFeatures { view, region, segments } = features;
        let keys = self.keys.as_ref().expect("targets come first");
        let sizes = segments.iter().flat_map(|s| std::iter::repeat_n(s.tokens(), s.images / batch));
        let (mut parts, mut start) = (Vec::new(), 0);
        for (place, cells) in sizes.enumerate() {
            let cells = region.clone().narrow(0, start, batch * cells);
            start += cells.shape()[0];
            let own = rows_of_view(&view, place, batch);
            let embedded = self.neck.forward(params, own, cells.clone(), ctx);
            let queries = normalized(embedded.global);
            let matched = matches(&cells, &keys.cells, batch);
            if at.health && views.at_hand.start + place == 0 {
                let (pairs, matches) = &mut self.noted;
                pairs.note(&queries, &keys.global);
                matches.rows.extend(&matched);
                matches.images += batch;
                matches.cells = keys.cells.shape()[0] / batch;
            }
            let queues = [self.queue.keys(), self.queue2.keys()];
            let (grid, config) = (normalized(embedded.grid), &self.config);
            parts.push(losses(queries, grid, keys, matched, queues, config));
        }
        // The mean over the views.
        let share = 1.0 / views.total as f64;
        let sums = parts.into_iter().reduce(|[single, dense], [other_single, other_dense]| {
            [single + other_single, dense + other_dense]
        });
        let [single, dense] = sums.expect("a pass has a view").map(|sum| sum * share);
        let lambda = self.config.loss_lambda;
        Loss {
            parts: vec![
                LossPart { name: "single", value: single, weight: 1.0 - lambda },
                LossPart { name: "dense", value: dense, weight: lambda },
            ],
        }
    }

    fn end_micro_batch(&mut self) {
        self.keys = None;
    }

    fn commit(&mut self, _at: &StepInfo, collective: &dyn Collective) {
        // Beside the keys that the queries were compared with.
        let (mut pairs, matches) = std::mem::take(&mut self.noted);
        let NotedMatches { rows, images, cells } = matches;
        let of_views = pairs.health(self.queue.keys());
        self.health = of_views.map(|health| with_matches(health, &rows, images, cells));
        self.queue.commit(collective);
        self.queue2.commit(collective);
    }

    fn state(&self) -> Vec<StateTensor> {
        [self.queue.state(QUEUE_PTR), self.queue2.state(QUEUE2_PTR)].into_iter().flatten().collect()
    }

    fn set_state(&mut self, name: &str, value: Tensor) {
        self.queue.restore(QUEUE_PTR, name, &value);
        self.queue2.restore(QUEUE2_PTR, name, &value);
    }

    fn schedule(&self, _at: &StepInfo) -> Vec<(&'static str, f64)> {
        vec![("momentum", self.config.momentum_teacher)]
    }

    fn health(&self) -> Option<Health> {
        self.health.clone()
    }
}

/// Of every query cell, `[B * S, C]`, the row of the most similar cell of the same image among those of
/// the keys, `[B * S', C]`. No gradient.
pub fn matches(queries: &Tensor, keys: &Tensor, batch: usize) -> Vec<i32> {
    let [of_query, of_keys] = [queries, keys].map(|cells| cells.shape()[0] / batch);
    let group = |image: usize| MatchGroup {
        queries: image * of_query..(image + 1) * of_query,
        keys: image * of_keys..(image + 1) * of_keys,
        column: 0,
    };
    let groups: Vec<MatchGroup> = (0..batch).map(group).collect();
    ops::best_matches(queries, keys, &groups, 1).to_vec()
}

/// The losses of a view, `single` and `dense`: of its queries `[B, D]`, and of the queries of its cells
/// `[B * S, D]`, whose own keys are those of the rows `matched`. `queues` are those of views and of cells.
pub fn losses(
    queries: Tensor,
    grid: Tensor,
    keys: &Keys,
    matched: Vec<i32>,
    queues: [&Tensor; 2],
    config: &DenseClConfig,
) -> [Tensor; 2] {
    let own = keys.grid.clone().index_select(0, matched);
    let [of_views, of_cells] = queues.map(Tensor::clone);
    let temperature = config.temperature;
    [
        ops::info_nce(queries, keys.global.clone(), of_views, temperature),
        ops::info_nce(grid, own, of_cells, temperature),
    ]
}

/// Cells of the key's view that are the most similar one to a query cell, in percent.
const MATCHED_CELLS: &str = "matched_cells";
/// Cells of the key's view, of an image.
const CELLS: &str = "cells";

/// Cells at least of which a share tells anything.
const LEAST_CELLS: f64 = 9.0;
/// Fewer matched cells than this, of each image, count as one.
const LEAST_MATCHED: f64 = 1.5;

/// All cells of a view have the same match.
pub const ONE_CELL: Collapse = Collapse {
    kind: "one cell",
    advice: "the matches have collapsed: all cells of a view are the most similar to one and the same \
             cell\n\
             hint: lower `optim.lr` or `objective.loss_lambda`",
};

/// Health of views, with that of the matches of an image's cells to as many `cells` of the keys.
fn with_matches(mut health: Health, matched: &[i32], batch: usize, cells: usize) -> Health {
    let distinct = |matched: &[i32]| {
        let mut rows = matched.to_vec();
        rows.sort_unstable();
        rows.dedup();
        rows.len() as f64
    };
    let images = matched.chunks(matched.len() / batch).map(distinct);
    let share = 100.0 * images.sum::<f64>() / (batch * cells) as f64;
    health.signals.extend([(MATCHED_CELLS, share), (CELLS, cells as f64)]);
    health.summary = format!("{}, {share:.0} % of cells matched", health.summary);
    health
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two images of four query cells among nine: three and one of these are matched, one of them by both.
    #[test]
    fn matched_cells_are_counted_by_image() {
        let none = Health { signals: Vec::new(), summary: "well".into() };
        let found = with_matches(none, &[0, 4, 4, 8, 4, 4, 4, 4], 2, 9);
        let share = found.signal(MATCHED_CELLS).unwrap();
        assert!((share - 100.0 * 4.0 / 18.0).abs() < 1e-9, "{share}");
        assert_eq!(found.signal(CELLS), Some(9.0));
        assert_eq!(found.summary, "well, 22 % of cells matched");
    }

    /// One match for all cells is a collapse, two are none; a small map tells nothing.
    #[test]
    fn one_match_for_all_cells() {
        let look = |matched: f64, cells: f64| {
            let signals = [
                (MATCHED_CELLS, 100.0 * matched / cells),
                (CELLS, cells),
                (infonce::EMBEDDING_STD, 1.0),
                (infonce::ROWS, 64.0),
            ];
            let value = |name: &str| signals.iter().find(|signal| signal.0 == name).map(|s| s.1);
            DenseClConfig::default().collapse(&value)
        };
        assert_eq!(look(1.0, 49.0), Some(ONE_CELL));
        assert_eq!(look(1.6, 49.0), None);
        assert_eq!(look(1.0, 4.0), None);
        assert!(ONE_CELL.advice.contains("hint: lower `optim.lr`"));
    }
}
