//! Cases of kind `schedule-ssl`: learning rates and EMA momenta of MoCo, MoBY, SimCLR, BYOL, SwAV
//! and Swin.

use esvit_train::config::LR_BATCH;
use esvit_train::schedule::{CosineSchedule, LrScaling, LrSchedule, LrScheduleKind};
use serde::Deserialize;

use super::{Case, Check, Outcome, Result, relative_to_max};

const TOLERANCE: f64 = 1e-6;

/// Steps of an epoch where a case has values of epochs.
const STEPS: u64 = 7;
/// The one of them that stands for the epoch: any one does.
const STEP: u64 = 3;

#[derive(Deserialize)]
struct Settings {
    schedules: Vec<Schedule>,
}

#[derive(Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
enum Schedule {
    LrMoco2CosineByEpoch {
        base_lr: f64,
        epochs: u64,
    },
    LrMoco2Steps {
        base_lr: f64,
        epochs: u64,
        milestones: Vec<u64>,
    },
    LrMocov3 {
        #[serde(rename = "base_lr_scaled")]
        peak: f64,
        #[serde(flatten)]
        length: Length,
    },
    EmaMocov3 {
        base_momentum: f64,
        epochs: u64,
        steps_per_epoch: u64,
    },
    EmaMoby(Momentum),
    LrMoby(Timm),
    LrSwinWarmupPrefix(Timm),
    LrSimclr {
        num_examples: u64,
        batch: u64,
        epochs: u64,
        warmup_epochs: u64,
        base_lr: f64,
        scaling: LrScaling,
    },
    LrByol {
        batch: u64,
        base: f64,
        total: u64,
        warm: u64,
    },
    EmaByol(Momentum),
    LrSwav {
        start_warmup: f64,
        base_lr: f64,
        final_lr: f64,
        #[serde(flatten)]
        length: Length,
    },
}

#[derive(Deserialize)]
struct Momentum {
    base_momentum: f64,
    total_steps: u64,
}

/// Settings of timm's schedule.
#[derive(Deserialize)]
struct Timm {
    base_lr: f64,
    min_lr: f64,
    warmup_lr: f64,
    #[serde(flatten)]
    length: Length,
}

#[derive(Clone, Copy, Deserialize)]
struct Length {
    epochs: u64,
    warmup_epochs: u64,
    steps_per_epoch: u64,
}

impl Length {
    /// Steps of the warm-up and of the run.
    fn steps(self) -> [u64; 2] {
        [self.warmup_epochs, self.epochs].map(|epochs| epochs.saturating_mul(self.steps_per_epoch))
    }
}

pub(super) fn run(case: &Case) -> Result<Outcome> {
    let settings: Settings = case.settings()?;
    let check = |(index, schedule): (usize, &Schedule)| {
        let (count, value) = schedule.values();
        compare(case, &format!("values.{index}"), count, &*value)
    };
    let checks = settings.schedules.iter().enumerate().map(check);
    Ok(Outcome::Compared(checks.collect::<Result<_>>()?))
}

/// A value by its number.
type Value = Box<dyn Fn(u64) -> f64>;

impl Schedule {
    /// How many values there are, and each of them.
    fn values(&self) -> (u64, Value) {
        match *self {
            Self::LrMoco2CosineByEpoch { base_lr, epochs } => {
                by_epoch(LrScheduleKind::EpochCosine, base_lr, epochs, &[])
            }
            Self::LrMoco2Steps { base_lr, epochs, ref milestones } => {
                by_epoch(LrScheduleKind::MultiStep, base_lr, epochs, milestones)
            }
            Self::LrMocov3 { peak, length } => {
                rate(LrScheduleKind::WarmupCosine, [0.0, peak, 0.0], length.steps())
            }
            Self::EmaMocov3 { base_momentum, epochs, steps_per_epoch } => {
                momentum(base_momentum, epochs.saturating_mul(steps_per_epoch))
            }
            Self::EmaMoby(Momentum { base_momentum, total_steps })
            | Self::EmaByol(Momentum { base_momentum, total_steps }) => {
                momentum(base_momentum, total_steps)
            }
            Self::LrMoby(ref timm) => timm.rate(LrScheduleKind::TimmCosine),
            Self::LrSwinWarmupPrefix(ref timm) => timm.rate(LrScheduleKind::TimmPrefixCosine),
            Self::LrSimclr { num_examples, batch, epochs, warmup_epochs, base_lr, scaling } => {
                // A length in images, in steps; the run has the last value, too.
                let steps = |epochs: u64| {
                    num_examples.saturating_mul(epochs).checked_div(batch).unwrap_or(0)
                };
                let total = steps(epochs).saturating_add(1);
                let of_one = match scaling {
                    LrScaling::Linear => base_lr,
                    // It is given for a batch of one image.
                    LrScaling::Sqrt => base_lr * LR_BATCH.sqrt(),
                };
                let peak = of_one * scaling.factor(batch as f64 / LR_BATCH);
                let kind = LrScheduleKind::WarmupCosine;
                let (_, value) = rate(kind, [0.0, peak, 0.0], [steps(warmup_epochs), total]);
                (total.saturating_add(1), value)
            }
            Self::LrByol { batch, base, total, warm } => {
                let peak = base * LrScaling::Linear.factor(batch as f64 / LR_BATCH);
                rate(LrScheduleKind::WarmupCosine, [0.0, peak, 0.0], [warm, total])
            }
            Self::LrSwav { start_warmup, base_lr, final_lr, length } => {
                let rates = [start_warmup, base_lr, final_lr];
                rate(LrScheduleKind::Cosine, rates, length.steps())
            }
        }
    }
}

impl Timm {
    fn rate(&self, kind: LrScheduleKind) -> (u64, Value) {
        rate(kind, [self.warmup_lr, self.base_lr, self.min_lr], self.length.steps())
    }
}

/// A rate at every step: at the start and the end of its warm-up and at its end, and the steps of
/// warm-up and run.
fn rate(
    kind: LrScheduleKind,
    [start, base, last]: [f64; 3],
    [warmup_steps, total_steps]: [u64; 2],
) -> (u64, Value) {
    let cosine = CosineSchedule { start, base, last, warmup_steps, total_steps };
    let schedule = LrSchedule { kind, cosine, steps_per_epoch: 1, milestones: Vec::new() };
    (total_steps, Box::new(move |step| schedule.at(step)))
}

/// A rate in every epoch, without a warm-up.
fn by_epoch(kind: LrScheduleKind, base: f64, epochs: u64, milestones: &[u64]) -> (u64, Value) {
    let cosine = CosineSchedule::new(base, 0.0, epochs.saturating_mul(STEPS));
    let milestones = milestones.iter().map(|epoch| epoch.saturating_mul(STEPS)).collect();
    let schedule = LrSchedule { kind, cosine, steps_per_epoch: STEPS, milestones };
    (epochs, Box::new(move |epoch| schedule.at(epoch * STEPS + STEP)))
}

/// An EMA momentum at every step, which grows to 1.
fn momentum(base: f64, total_steps: u64) -> (u64, Value) {
    let schedule = CosineSchedule::new(base, 1.0, total_steps);
    (total_steps, Box::new(move |step| schedule.at(step)))
}

/// Compares `count` values with a tensor.
fn compare(case: &Case, name: &str, count: u64, value: &dyn Fn(u64) -> f64) -> Result<Check> {
    let (_, expected) = case.tensor(name)?;
    // One more than expected is as wrong as many more.
    let found = 0..count.min(expected.len() as u64 + 1);
    let found: Vec<f32> = found.map(|number| value(number) as f32).collect();
    Ok(relative_to_max(name, &found, &expected, TOLERANCE))
}
