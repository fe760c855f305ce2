//! The objectives of the cases: their settings, and what is compared of their first pass.

use std::any::Any;

use esvit_nn::params::Scope;
use esvit_nn::projection::Projection;
use esvit_nn::{ForwardCtx, Params, Tensor};
use esvit_train::Learner;
use esvit_train::objective::byol::{Byol, ByolConfig};
use esvit_train::objective::densecl::{DenseCl, DenseClConfig};
use esvit_train::objective::infonce::normalized;
use esvit_train::objective::moby::{Moby, MobyConfig};
use esvit_train::objective::mocov2::{MocoV2, MocoV2Config};
use esvit_train::objective::mocov3::{MocoV3, MocoV3Config};
use esvit_train::objective::pairs::rows_of_view;
use esvit_train::objective::swav::{Swav, SwavConfig};
use esvit_train::objective::{Objective, ObjectiveSettings, Setup};
use esvit_train::span::Span;

use super::Settings;

/// A method of the cases.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Method {
    MocoV2,
    MocoV3,
    Moby,
    Byol,
    Swav,
    DenseCl,
}

/// Results by their names in a case.
type Outputs = Vec<(&'static str, Tensor)>;

impl Method {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "moco2" => Self::MocoV2,
            "mocov3" => Self::MocoV3,
            "moby" => Self::Moby,
            "byol" => Self::Byol,
            "swav" => Self::Swav,
            "densecl" => Self::DenseCl,
            _ => return None,
        })
    }

    pub(super) fn objective(
        self,
        case: &Settings,
        scope: &mut Scope<'_>,
        setup: &Setup,
    ) -> Box<dyn Objective> {
        let (temperature, queue_length) = (case.temperature, case.queue_length);
        let (hidden_dim, out_dim) = (case.head.hidden, case.head.out);
        let momentum_teacher = 0.0;
        match self {
            Self::MocoV2 => MocoV2Config { queue_length, temperature, momentum_teacher, out_dim }
                .build(scope, setup),
            Self::MocoV3 => MocoV3Config {
                temperature,
                momentum_teacher,
                freeze_patch_embed: !case.frozen.is_empty(),
                hidden_dim,
                out_dim,
                ..MocoV3Config::default()
            }
            .build(scope, setup),
            Self::Moby => {
                MobyConfig { queue_length, temperature, momentum_teacher, hidden_dim, out_dim }
                    .build(scope, setup)
            }
            Self::Byol => {
                ByolConfig { momentum_teacher, hidden_dim, out_dim, ..ByolConfig::default() }
                    .build(scope, setup)
            }
            Self::Swav => SwavConfig {
                prototypes: case.head.prototypes,
                temperature,
                epsilon: case.epsilon,
                sinkhorn_iterations: case.sinkhorn_iterations,
                queue_length,
                queue_start: Span::NONE,
                freeze_prototypes: Span::Steps(case.freeze_prototypes_steps),
                hidden_dim,
                out_dim,
            }
            .build(scope, setup),
            Self::DenseCl => DenseClConfig {
                queue_length,
                temperature,
                loss_lambda: case.loss_lambda,
                momentum_teacher,
                hidden_dim,
                out_dim,
            }
            .build(scope, setup),
        }
    }

    /// Sets the momentum of the teacher at the start of its schedule.
    pub(super) fn set_momentum(self, learner: &mut Learner, momentum: f64) {
        let objective: &mut dyn Any = &mut *learner.objective;
        match self {
            Self::MocoV2 => own::<MocoV2>(objective).config.momentum_teacher = momentum,
            Self::MocoV3 => own::<MocoV3>(objective).config.momentum_teacher = momentum,
            Self::Moby => own::<Moby>(objective).config.momentum_teacher = momentum,
            Self::Byol => own::<Byol>(objective).config.momentum_teacher = momentum,
            Self::DenseCl => own::<DenseCl>(objective).config.momentum_teacher = momentum,
            Self::Swav => {}
        }
    }

    /// What the networks say of the views of a step that has begun.
    pub(super) fn outputs(self, learner: &Learner, views: &[Tensor]) -> Outputs {
        let objective: &dyn Any = &*learner.objective;
        let student = &learner.student;
        let teacher = learner.teacher.as_ref().unwrap_or(student);
        match self {
            Self::MocoV2 => {
                let MocoV2 { head, queue, config, .. } = shared::<MocoV2>(objective);
                let [q, k] = [(student, 0), (teacher, 1)].map(|(params, view)| {
                    let own = Views::new(learner, params, &views[view..=view]);
                    own.project(&[head]).remove(0)
                });
                let (unit, keys) = (normalized(q.clone()), normalized(k));
                let own = (unit.clone() * keys).sum_dim(1);
                let others = unit.matmul(queue.keys().clone().transpose());
                let logits = Tensor::cat(vec![own, others], 1) / config.temperature;
                vec![("q", q), ("logits", logits)]
            }
            Self::MocoV3 => {
                let MocoV3 { projector, predictor, .. } = shared::<MocoV3>(objective);
                let of_student = Views::new(learner, student, views);
                let [q1, q2] = both(of_student.project(&[projector, predictor]));
                let [k1, k2] = both(Views::new(learner, teacher, views).project(&[projector]));
                vec![("q1", q1), ("q2", q2), ("k1", k1), ("k2", k2)]
            }
            Self::Moby => {
                let Moby { projector, predictor, .. } = shared::<Moby>(objective);
                let of_student = Views::new(learner, student, views);
                let [first, second] = both(of_student.project(&[projector, predictor]));
                let [k1, k2] = both(Views::new(learner, teacher, views).project(&[projector]));
                vec![("pred1", first), ("pred2", second), ("proj1_k", k1), ("proj2_k", k2)]
            }
            Self::Byol => {
                let Byol { projector, predictor, .. } = shared::<Byol>(objective);
                let of_student = Views::new(learner, student, views);
                let [first, second] = both(of_student.project(&[projector, predictor]));
                let [z1, z2] = both(Views::new(learner, teacher, views).project(&[projector]));
                let targets = [("proj1_target", z1), ("proj2_target", z2)];
                [vec![("pred1", first), ("pred2", second)], targets.to_vec()].concat()
            }
            Self::Swav => {
                let Swav { head, .. } = shared::<Swav>(objective);
                let ctx = ForwardCtx::teacher().with_precision(learner.settings.precision);
                let features = learner.network.features(student, views, &ctx);
                let embedding = head.embed(student, features.view, &ctx);
                let scores = embedding.clone().matmul(head.prototypes(student).transpose());
                vec![("embedding", embedding), ("scores", scores)]
            }
            Self::DenseCl => {
                let DenseCl { neck, .. } = shared::<DenseCl>(objective);
                let ctx = ForwardCtx::teacher().with_precision(learner.settings.precision);
                let features = learner.network.features(student, &views[..1], &ctx);
                let embedded = neck.forward(student, features.view, features.region, &ctx);
                let [batch, outputs] = embedded.global.dims();
                let cells = embedded.grid.shape()[0] / batch;
                let grid = embedded.grid.reshape([batch, cells, outputs]).swap_dims(1, 2);
                let (global, dense_mean) = (embedded.global, embedded.dense_mean);
                vec![("global", global), ("grid", grid), ("dense_mean", dense_mean)]
            }
        }
    }
}

fn own<T: Any>(objective: &mut dyn Any) -> &mut T {
    objective.downcast_mut().expect("the case's objective")
}

fn shared<T: Any>(objective: &dyn Any) -> &T {
    objective.downcast_ref().expect("the case's objective")
}

fn both(views: Vec<Tensor>) -> [Tensor; 2] {
    views.try_into().expect("two views")
}

/// View features of some views, in training and without drop path.
struct Views<'a> {
    params: &'a Params,
    /// View-major.
    features: Tensor,
    count: usize,
    batch: usize,
    ctx: ForwardCtx,
}

impl<'a> Views<'a> {
    fn new(learner: &Learner, params: &'a Params, views: &[Tensor]) -> Self {
        let ctx = ForwardCtx::teacher().with_precision(learner.settings.precision);
        let features = learner.network.features_by_crop(params, views, &ctx).view;
        Self { params, features, count: views.len(), batch: views[0].shape()[0], ctx }
    }

    /// The results of heads one after the other, of every view.
    fn project(self, heads: &[&Projection]) -> Vec<Tensor> {
        let runs = vec![self.batch; self.count];
        let found = heads
            .iter()
            .fold(self.features, |rows, head| head.forward(self.params, rows, &runs, &self.ctx));
        (0..self.count).map(|view| rows_of_view(&found, view, self.batch)).collect()
    }
}
