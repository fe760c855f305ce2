//! DINOv2: its terms and their gradients, from given logits and features.

use esvit_nn::esvit_heads::Predictions;
use esvit_nn::ops::{self, Pairs, PrototypeLogits, TeacherRows};
use esvit_nn::{Solo, Tape, Tensor};
use esvit_train::objective::esvit::{
    self, Centering, Centers, LossSettings, NamedWeights, RegionLoss, Weights, koleo,
};
use esvit_train::objective::pairs::rows_of_view;
use esvit_train::objective::regions::Matching;
use esvit_train::objective::sinkhorn::balancing_center;
use esvit_train::objective::{GLOBAL_VIEWS, Views};
use serde::Deserialize;

use super::super::checks::{Checks, LOSS};
use super::super::{Case, CaseError, Result};

#[derive(Deserialize)]
struct Settings {
    batch: usize,
    views: usize,
    prototypes: usize,
    dim: usize,
    /// Masked patches of all views.
    masked: usize,
    centering: Centering,
    sinkhorn_iterations: usize,
    student_temp: f64,
    teacher_temp: f64,
    patch_weight: f64,
    koleo_weight: f64,
    loss_view: f64,
    loss_patch: f64,
    loss_koleo: f64,
    loss: f64,
}

impl Settings {
    /// What is subtracted from the teacher's logits of a part before its softmax, `[K]`.
    fn center(&self, case: &Case, part: &str, teacher: &Tensor) -> Result<Tensor> {
        match self.centering {
            Centering::Softmax => case.shaped(&format!("center_{part}"), [self.prototypes]),
            Centering::Sinkhorn => {
                let (epsilon, iterations) = (self.teacher_temp, self.sinkhorn_iterations);
                Ok(balancing_center(teacher.clone(), epsilon, iterations, &Solo))
            }
        }
    }

    /// The view task.
    fn view(&self, case: &Case, student: Tensor, teacher: Tensor) -> Result<Tensor> {
        let predictions = |logits: Tensor| Predictions {
            // The objective does not use them.
            view_features: Tensor::zeros([1, 1], &case.device),
            view_logits: PrototypeLogits::from_matrix(logits),
            region: None,
        };
        let settings = LossSettings {
            student_temp: self.student_temp,
            teacher_temp: self.teacher_temp,
            weights: Weights::Named(NamedWeights::Reference),
            matching: Matching::Argmax,
            region_loss: RegionLoss::CrossEntropy,
            precision: case.precision,
        };
        let centers = Centers::new(self.center(case, "view", &teacher)?, None);
        let (student, teacher) = (predictions(student), predictions(teacher));
        let views = Views::all(self.views);
        Ok(esvit::loss(&student, &teacher, &views, &centers, &settings, None).total())
    }

    /// Masked patches, each by its weight.
    fn patch(&self, case: &Case, student: Tensor, teacher: Tensor) -> Result<Tensor> {
        let weights = case.shaped("patch_weights", [self.masked])?.to_vec::<f32>();
        let mut pairs = Pairs::new();
        for (row, weight) in weights.into_iter().enumerate() {
            pairs.push([(row, weight)]);
        }
        let center = self.center(case, "patch", &teacher)?;
        Ok(ops::prototype_cross_entropy(
            PrototypeLogits::from_matrix(student),
            PrototypeLogits::from_matrix(teacher),
            center,
            TeacherRows::new(&pairs, &case.device),
            [self.student_temp, self.teacher_temp],
            case.precision,
        ))
    }
}

pub(super) fn run(case: &Case) -> Result<Checks<'_>> {
    let settings: Settings = case.settings()?;
    let Settings { batch, views, prototypes, dim, masked, .. } = settings;
    if [batch, prototypes, dim, masked].contains(&0) || views < GLOBAL_VIEWS {
        let message = format!("there are {views} views of {batch} images, {masked} masked patches");
        return Err(CaseError::Settings(message));
    }
    let rows = |views: usize| views.saturating_mul(batch);
    let tape = Tape::new();
    let of_views = tape.watch(case.shaped("student_view", [rows(views), prototypes])?);
    let of_patches = tape.watch(case.shaped("student_patch", [masked, prototypes])?);
    let features = tape.watch(case.shaped("features", [rows(GLOBAL_VIEWS), dim])?);
    let teacher_view = case.shaped("teacher_view", [rows(GLOBAL_VIEWS), prototypes])?;
    let teacher_patch = case.shaped("teacher_patch", [masked, prototypes])?;

    let view = settings.view(case, of_views.clone(), teacher_view)?;
    let patch = settings.patch(case, of_patches.clone(), teacher_patch)?;
    let [first, second] = [0, 1].map(|view| koleo(rows_of_view(&features, view, batch), &Solo));
    let spread = first + second;
    let loss = view.clone()
        + patch.clone() * settings.patch_weight
        + spread.clone() * settings.koleo_weight;
    let mut checks = Checks::of(case);
    for (name, found, expected) in [
        ("loss_view", &view, settings.loss_view),
        ("loss_patch", &patch, settings.loss_patch),
        ("loss_koleo", &spread, settings.loss_koleo),
        ("loss", &loss, settings.loss),
    ] {
        checks.number(name, found.item().into(), expected, LOSS);
    }
    let gradients = tape.backward(&loss);
    for (name, leaf) in [
        ("grad_student_view", &of_views),
        ("grad_student_patch", &of_patches),
        ("grad_features", &features),
    ] {
        checks.gradient(name, gradients.of(leaf))?;
    }
    Ok(checks)
}
