//! Cases of kind `objective`: loss, gradients and centers from given logits.

use esvit_nn::esvit_heads::{Predictions, RegionPredictions};
use esvit_nn::ops::PrototypeLogits;
use esvit_nn::{Solo, Tape, Tensor};
use esvit_train::objective::esvit::{
    self, Centers, LossSettings, NamedWeights, RegionLoss, Weights,
};
use esvit_train::objective::regions::Matching;
use esvit_train::objective::{GLOBAL_VIEWS, Views};
use esvit_train::schedule::TemperatureSchedule;
use serde::Deserialize;

use super::{Case, CaseError, Outcome, Result, relative_error, relative_to_max};

const LOSS_TOLERANCE: f64 = 1e-5;
const GRADIENT_TOLERANCE: f64 = 1e-4;
const CENTER_MOMENTUM: f64 = 0.9;

#[derive(Deserialize)]
struct Settings {
    region_task: bool,
    teacher_regions: usize,
    #[serde(default)]
    local_regions: usize,
    local_crops: usize,
    student_regions: Option<Vec<usize>>,
    epoch: u64,
    teacher_temp: TeacherTemp,
    student_temp: f64,
    #[serde(default)]
    mixup: bool,
    loss: f64,
    weights: Option<Weights>,
}

/// Teacher temperature schedule, as written in cases.
#[derive(Clone, Copy, Deserialize)]
pub(super) struct TeacherTemp {
    pub(super) warmup: f64,
    #[serde(rename = "final")]
    pub(super) last: f64,
    pub(super) warmup_epochs: u64,
}

impl TeacherTemp {
    pub(super) fn at(&self, epoch: u64) -> f64 {
        let Self { warmup, last, warmup_epochs } = *self;
        TemperatureSchedule { warmup, last, length: warmup_epochs }.at(epoch)
    }
}

impl Settings {
    /// Checks the tensors' rows and returns the regions of each of the student's views.
    fn student_tokens(&self, case: &Case) -> Result<Vec<usize>> {
        let check = |name: &str, rows: Option<usize>, what: &str| -> Result<()> {
            let found = case.shape(name)?.first().copied();
            if rows.is_some() && found == rows {
                return Ok(());
            }
            let found = found.unwrap_or(0);
            Err(CaseError::Settings(format!("tensor `{name}` has {found} rows, not {what}")))
        };
        let views = GLOBAL_VIEWS.saturating_add(self.local_crops);
        let batch = case.shape("teacher_view")?.first().copied().unwrap_or(0) / GLOBAL_VIEWS;
        check("teacher_view", batch.checked_mul(GLOBAL_VIEWS), "two for each image")?;
        check("student_view", batch.checked_mul(views), "one for each image and view")?;
        for view in (0..views).filter(|_| self.mixup) {
            check(&format!("mixup_target.{view}"), Some(batch), "one for each image")?;
        }
        let tokens = self.student_regions.clone().unwrap_or_else(|| {
            let local = std::iter::repeat_n(self.local_regions, self.local_crops);
            std::iter::repeat_n(self.teacher_regions, GLOBAL_VIEWS).chain(local).collect()
        });
        if tokens.len() != views {
            let message =
                format!("`student_regions` has {} numbers for {views} views", tokens.len());
            return Err(CaseError::Settings(message));
        }
        if self.region_task {
            let sum = tokens.iter().try_fold(0, |sum: usize, &n| sum.checked_add(n));
            let student = sum.and_then(|sum| sum.checked_mul(batch));
            let teacher = self.teacher_regions.checked_mul(batch * GLOBAL_VIEWS);
            for (network, rows) in [("student", student), ("teacher", teacher)] {
                for tensor in ["region", "features"] {
                    let name = format!("{network}_{tensor}");
                    check(&name, rows, "one for each region of each image and view")?;
                }
            }
        }
        Ok(tokens)
    }
}

pub(super) fn run(case: &Case) -> Result<Outcome> {
    let settings: Settings = case.settings()?;
    let student_tokens = settings.student_tokens(case)?;
    let tape = Tape::new();
    // The logits of one of the networks; gradients are those of the student's.
    let logits = |network: &str, task: &str| -> Result<PrototypeLogits> {
        let logits = case.load::<2>(&format!("{network}_{task}"))?;
        let logits = if network == "student" { tape.watch(logits) } else { logits };
        Ok(PrototypeLogits::from_matrix(logits))
    };
    let predictions = |network: &str, tokens: Vec<usize>| -> Result<Predictions> {
        let region = || -> Result<RegionPredictions> {
            let features = case.load::<2>(&format!("{network}_features"))?;
            Ok(RegionPredictions { logits: logits(network, "region")?, features, tokens })
        };
        Ok(Predictions {
            // The objective does not use them.
            view_features: Tensor::zeros([1, 1], &case.device),
            view_logits: logits(network, "view")?,
            region: settings.region_task.then(region).transpose()?,
        })
    };
    let global_tokens = vec![settings.teacher_regions; GLOBAL_VIEWS];
    let student = predictions("student", student_tokens)?;
    let teacher = predictions("teacher", global_tokens)?;
    let center = |name: &str| -> Result<Tensor> {
        let center = case.load::<2>(name)?;
        let prototypes = center.shape()[1];
        Ok(center.reshape([prototypes]))
    };
    let region_center = settings.region_task.then(|| center("center_grid")).transpose()?;
    let mut centers = Centers::new(center("center")?, region_center);
    let crops = GLOBAL_VIEWS + settings.local_crops;
    let matrix = |crop| Ok(case.tensor(&format!("mixup_target.{crop}"))?.1);
    let matrices = || (0..crops).map(matrix).collect::<Result<Vec<Vec<f32>>>>();
    let mixing = settings.mixup.then(matrices).transpose()?;

    let loss_settings = LossSettings {
        student_temp: settings.student_temp,
        teacher_temp: settings.teacher_temp.at(settings.epoch),
        weights: settings.weights.unwrap_or(Weights::Named(NamedWeights::Reference)),
        matching: Matching::Argmax,
        region_loss: RegionLoss::CrossEntropy,
        precision: case.precision,
    };
    let (views, mixing) = (Views::all(crops), mixing.as_deref());
    let loss = esvit::loss(&student, &teacher, &views, &centers, &loss_settings, mixing);
    let total = loss.total();
    let gradients = tape.backward(&total);
    centers.observe(&teacher);
    centers.update(CENTER_MOMENTUM, &Solo);

    let found = f64::from(total.item());
    let mut checks = vec![relative_error("loss", found, settings.loss, LOSS_TOLERANCE)];
    let mut compare = |name: &str, found: Vec<f32>| -> Result<()> {
        let (_, expected) = case.tensor(name)?;
        checks.push(relative_to_max(name, &found, &expected, GRADIENT_TOLERANCE));
        Ok(())
    };
    let gradient = |logits: &PrototypeLogits| {
        gradients.of(&logits.z).map(|gradient| gradient.to_vec::<f32>()).unwrap_or_default()
    };
    compare("grad_student_view", gradient(&student.view_logits))?;
    compare("center_after", centers.view.to_vec::<f32>())?;
    if let (Some(region), Some(center)) = (&student.region, &centers.region) {
        compare("grad_student_region", gradient(&region.logits))?;
        compare("center_grid_after", center.to_vec::<f32>())?;
    }
    Ok(Outcome::Compared(checks))
}
