//! Cases of kind `objective`: loss, gradients and centers from given logits.

use esvit_nn::esvit_heads::{Predictions, RegionPredictions};
use esvit_nn::ops::{Precision, PrototypeLogits};
use esvit_nn::{Solo, Tape, Tensor};
use esvit_train::objective::esvit::{self, Centers, LossSettings, NamedWeights, Weights};
use esvit_train::objective::{GLOBAL_VIEWS, Views};
use esvit_train::schedule::TemperatureSchedule;
use serde::Deserialize;

use super::{Case, CaseError, Outcome, relative_error, relative_to_max};

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
    weights: Option<LossWeights>,
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
        TemperatureSchedule { warmup, last, warmup_epochs }.at(epoch)
    }
}

#[derive(Deserialize, Clone, Copy)]
struct LossWeights {
    view: f64,
    region: f64,
}

pub(super) fn run(case: &Case) -> Result<Outcome, CaseError> {
    let settings: Settings = case.settings()?;
    let tape = Tape::new();
    let student_view = tape.watch(case.load::<2>("student_view")?);
    let mut student_region = None;
    let teacher_region = match settings.region_task {
        true => Some(RegionPredictions {
            logits: PrototypeLogits::from_matrix(case.load::<2>("teacher_region")?),
            features: case.load::<2>("teacher_features")?,
            tokens: vec![settings.teacher_regions; GLOBAL_VIEWS],
        }),
        false => None,
    };
    if settings.region_task {
        student_region = Some(RegionPredictions {
            logits: PrototypeLogits::from_matrix(tape.watch(case.load::<2>("student_region")?)),
            features: case.load::<2>("student_features")?,
            tokens: settings.student_regions.clone().unwrap_or_else(|| {
                let mut tokens = vec![settings.teacher_regions; GLOBAL_VIEWS];
                tokens.extend(vec![settings.local_regions; settings.local_crops]);
                tokens
            }),
        });
    }
    // The objective does not use view features.
    let unused = Tensor::zeros([1, 1], &case.device);
    let student = Predictions {
        view_features: unused.clone(),
        view_logits: PrototypeLogits::from_matrix(student_view.clone()),
        region: student_region.clone(),
    };
    let teacher = Predictions {
        view_features: unused,
        view_logits: PrototypeLogits::from_matrix(case.load::<2>("teacher_view")?),
        region: teacher_region,
    };
    let center = |name: &str| -> Result<Tensor, CaseError> {
        let center = case.load::<2>(name)?;
        let prototypes = center.shape()[1];
        Ok(center.reshape([prototypes]))
    };
    let region_center = settings.region_task.then(|| center("center_grid")).transpose()?;
    let mut centers = Centers::new(center("center")?, region_center);
    let weights = match settings.weights {
        Some(LossWeights { view, region }) => Weights::Free { view, region },
        None => Weights::Named(NamedWeights::Reference),
    };
    let mixing: Option<Vec<Vec<f32>>> = settings
        .mixup
        .then(|| {
            let crops = GLOBAL_VIEWS + settings.local_crops;
            let matrix = |crop| Ok(case.tensor(&format!("mixup_target.{crop}"))?.1);
            (0..crops).map(matrix).collect::<Result<_, CaseError>>()
        })
        .transpose()?;

    let loss_settings = LossSettings {
        student_temp: settings.student_temp,
        teacher_temp: settings.teacher_temp.at(settings.epoch),
        weights,
        precision: Precision::F32,
    };
    let loss = esvit::loss(
        &student,
        &teacher,
        &Views::all(GLOBAL_VIEWS + settings.local_crops),
        &centers,
        &loss_settings,
        mixing.as_deref(),
    );
    let total = loss.total();
    let gradients = tape.backward(&total);
    centers.observe(&teacher);
    centers.update(CENTER_MOMENTUM, &Solo);

    let found = f64::from(total.item());
    let mut checks = vec![relative_error("loss", found, settings.loss, LOSS_TOLERANCE)];
    let mut compare = |name: &str, found: Vec<f32>| -> Result<(), CaseError> {
        let (_, expected) = case.tensor(name)?;
        checks.push(relative_to_max(name, &found, &expected, GRADIENT_TOLERANCE));
        Ok(())
    };
    let gradient = |tensor: &Tensor| gradients.of(tensor).map(|g| g.to_vec::<f32>());
    compare("grad_student_view", gradient(&student_view).unwrap_or_default())?;
    compare("center_after", centers.view.to_vec::<f32>())?;
    if let (Some(region), Some(center)) = (&student_region, &centers.region) {
        compare("grad_student_region", gradient(&region.logits.z).unwrap_or_default())?;
        compare("center_grid_after", center.to_vec::<f32>())?;
    }
    Ok(Outcome::Compared(checks))
}
