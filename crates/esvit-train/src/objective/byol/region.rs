//! EsViT's region term beside BYOL's own: heads of their own on the tokens of the last map, each of which
//! learns from the most similar token of the other view.
//!
//! Source: Li et al., "Efficient Self-supervised Vision Transformers for Representation Learning" (ICLR
//! 2022), section 3.2; BYOL with a region term is one of its ablations.

use esvit_nn::backbone::RowFeatures;
use esvit_nn::head::Head;
use esvit_nn::ops::{self, Precision, PrototypeLogits, TeacherRows};
use esvit_nn::params::{Params, Scope};
use esvit_nn::projection::Projection;
use esvit_nn::{Collective, ForwardCtx, Tensor};

use super::config::{ByolConfig, ByolRegionLoss};
use super::mlp;
use crate::objective::esvit::follow_means;
use crate::objective::infonce::unit_rows;
use crate::objective::regions::{self, Matching, Regions};
use crate::objective::{GLOBAL_VIEWS, Pass, Setup, StateTensor, Views};

const CENTER_GRID: &str = "center_grid";

/// The student's and the teacher's temperature, and the EMA momentum of the center, of the cross-entropy:
/// the defaults of EsViT's own.
const TEMPERATURES: [f64; 2] = [0.1, 0.04];
const CENTER_MOMENTUM: f64 = 0.9;

/// The heads of the region term, and what they hold.
#[derive(Debug)]
pub struct RegionTerm {
    heads: RegionHeads,
    precision: Precision,
    /// The target network's regions of the global views, and its heads' rows.
    targets: Option<(Regions, Rows)>,
}

#[derive(Debug)]
enum RegionHeads {
    Mse {
        projector: Projection,
        /// Of the student alone.
        predictor: Projection,
    },
    Softmax {
        head: Head,
        /// Of the target network's logits, `[K]`.
        center: Tensor,
        /// Means of these since the last step.
        seen: Vec<Tensor>,
    },
}

/// What heads say of tokens.
#[derive(Debug)]
enum Rows {
    Embeddings(Tensor),
    Logits(Box<PrototypeLogits>),
}

impl RegionTerm {
    /// Registers the heads, if there is a region term.
    pub fn new(config: &ByolConfig, scope: &mut Scope<'_>, setup: &Setup) -> Option<Self> {
        let sizes = [config.hidden_dim, config.out_dim];
        let heads = match config.region.loss {
            ByolRegionLoss::None => return None,
            ByolRegionLoss::Mse => RegionHeads::Mse {
                projector: mlp(&mut scope.head("projector_dense"), setup.width, sizes),
                predictor: mlp(&mut scope.student_head("predictor_dense"), config.out_dim, sizes),
            },
            ByolRegionLoss::Softmax => {
                let head =
                    Head::new(&mut scope.head("head_dense"), setup.width, &config.region.head);
                let center = Tensor::zeros([head.prototype_count()], &setup.device);
                RegionHeads::Softmax { head, center, seen: Vec::new() }
            }
        };
        Some(Self { heads, precision: setup.precision, targets: None })
    }

    /// The term of a network whose outputs tell nothing.
    pub fn chance_loss(&self) -> f64 {
        match &self.heads {
            RegionHeads::Mse { .. } => 4.0,
            RegionHeads::Softmax { head, .. } => (head.prototype_count() as f64).ln(),
        }
    }

    /// Forgets what was noted since the last step.
    pub fn begin_step(&mut self) {
        if let RegionHeads::Softmax { seen, .. } = &mut self.heads {
            seen.clear();
        }
    }

    /// Notes what the target network says of the global views.
    pub fn targets(&mut self, teacher: &Pass<'_>) {
        let Pass { params, features, ctx, batch, .. } = teacher;
        let regions = regions_of(features, *batch);
        let rows = self.rows(params, &regions, *batch, ctx);
        if let (RegionHeads::Softmax { seen, .. }, Rows::Logits(logits)) = (&mut self.heads, &rows)
        {
            seen.push(logits.mean());
        }
        self.targets = Some((regions, rows));
    }

    /// The term of the student's pass.
    pub fn loss(&self, student: &Pass<'_>) -> Tensor {
        let Pass { params, features, ctx, views, batch } = student;
        let regions = regions_of(features, *batch);
        let rows = self.rows(params, &regions, *batch, ctx);
        let (of_target, targets) = self.targets.as_ref().expect("targets come first");
        let pairs = matched(&regions, of_target, *batch, views);
        match (&self.heads, rows, targets) {
            (
                RegionHeads::Mse { predictor, .. },
                Rows::Embeddings(projections),
                Rows::Embeddings(targets),
            ) => {
                let runs = rows_per_view(&regions, *batch);
                mse(predictor.forward(params, projections, &runs, ctx), targets.clone(), pairs)
            }
            (RegionHeads::Softmax { center, .. }, Rows::Logits(logits), Rows::Logits(targets)) => {
                let targets = PrototypeLogits::clone(targets);
                softmax(*logits, targets, center.clone(), pairs, self.precision)
            }
            _ => unreachable!("both networks have the same heads"),
        }
    }

    /// What the heads that both networks have say of tokens.
    fn rows(&self, params: &Params, regions: &Regions, batch: usize, ctx: &ForwardCtx) -> Rows {
        let tokens = regions.features.clone();
        match &self.heads {
            RegionHeads::Mse { projector, .. } => {
                let runs = rows_per_view(regions, batch);
                Rows::Embeddings(projector.forward(params, tokens, &runs, ctx))
            }
            RegionHeads::Softmax { head, .. } => {
                Rows::Logits(Box::new(head.forward(params, tokens, ctx)))
            }
        }
    }

    /// Drops the targets.
    pub fn end_micro_batch(&mut self) {
        self.targets = None;
    }

    /// Moves the center.
    pub fn commit(&mut self, collective: &dyn Collective) {
        if let RegionHeads::Softmax { center, seen, .. } = &mut self.heads {
            let means = std::mem::take(seen);
            *center = follow_means(center.clone(), means, CENTER_MOMENTUM, collective);
        }
    }

    /// The center, if there is one.
    pub fn state(&self) -> Option<StateTensor> {
        let RegionHeads::Softmax { center, .. } = &self.heads else { return None };
        let shape = vec![1, center.numel()];
        Some(StateTensor { name: CENTER_GRID, shape, value: center.clone() })
    }

    /// Restores the center.
    pub fn set_center(&mut self, value: Tensor) {
        if let RegionHeads::Softmax { center, .. } = &mut self.heads {
            *center = value;
        }
    }
}

/// What tokens are matched by.
fn regions_of(features: &RowFeatures, batch: usize) -> Regions {
    Regions { features: features.region.clone(), tokens: features.tokens_per_view(batch) }
}

/// Rows of every view, by whose statistics the heads normalize.
fn rows_per_view(regions: &Regions, batch: usize) -> Vec<usize> {
    regions.tokens.iter().map(|tokens| batch * tokens).collect()
}

/// The most similar token of the other global views, for every token of the student's views: see
/// [`regions::pairs`].
pub fn matched(student: &Regions, target: &Regions, batch: usize, views: &Views) -> TeacherRows {
    let pair_count = (GLOBAL_VIEWS * (views.total - 1)) as f64;
    let first = views.at_hand.start;
    regions::pairs(student, target, batch, first, pair_count, Matching::Argmax)
}

/// Squared distances of unit rows, predictions and the target network's projections, as that of views:
/// twice the mean over the pairs of views.
pub fn mse(predictions: Tensor, targets: Tensor, pairs: TeacherRows) -> Tensor {
    ops::paired_distance(unit_rows(predictions), unit_rows(targets), pairs) * GLOBAL_VIEWS as f64
}

/// EsViT's L_R: the mean cross-entropy to the target network's distributions, whose logits are those less
/// the center.
pub fn softmax(
    student: PrototypeLogits,
    targets: PrototypeLogits,
    center: Tensor,
    pairs: TeacherRows,
    precision: Precision,
) -> Tensor {
    ops::prototype_cross_entropy(student, targets, center, pairs, TEMPERATURES, precision)
}
