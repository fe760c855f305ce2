//! Cases of kind `schedule`: learning rate, weight decay, momentum and temperature schedules.

use esvit_train::schedule::CosineSchedule;
use serde::Deserialize;

use super::objective::TeacherTemp;
use super::{Case, Check, Outcome, Result};

const TOLERANCE: f64 = 1e-7;

#[derive(Deserialize)]
struct Settings {
    schedules: Vec<Schedule>,
    #[serde(default)]
    teacher_temperatures: Vec<Temperature>,
}

#[derive(Deserialize)]
struct Schedule {
    base: f64,
    #[serde(rename = "final")]
    last: f64,
    epochs: u64,
    steps_per_epoch: u64,
    warmup_epochs: u64,
    start_warmup: f64,
}

#[derive(Deserialize)]
struct Temperature {
    #[serde(flatten)]
    schedule: TeacherTemp,
    epochs: u64,
}

pub(super) fn run(case: &Case) -> Result<Outcome> {
    let settings: Settings = case.settings()?;
    let mut checks = Vec::new();
    for (index, schedule) in settings.schedules.iter().enumerate() {
        let values = CosineSchedule {
            start: schedule.start_warmup,
            base: schedule.base,
            last: schedule.last,
            warmup_steps: schedule.warmup_epochs * schedule.steps_per_epoch,
            total_steps: schedule.epochs * schedule.steps_per_epoch,
        };
        let length = schedule.epochs * schedule.steps_per_epoch;
        checks.push(compare(case, &format!("values.{index}"), length, |step| values.at(step))?);
    }
    for (index, temperature) in settings.teacher_temperatures.iter().enumerate() {
        let name = format!("teacher_temperature.{index}");
        let value = |epoch| temperature.schedule.at(epoch);
        checks.push(compare(case, &name, temperature.epochs, value)?);
    }
    Ok(Outcome::Compared(checks))
}

/// Expected values are f32, so ours are rounded first.
fn compare(case: &Case, name: &str, length: u64, value: impl Fn(u64) -> f64) -> Result<Check> {
    let (_, expected) = case.tensor(name)?;
    let mut difference = if expected.len() as u64 == length { 0.0 } else { f64::INFINITY };
    for (i, &expected) in (0..length).zip(&expected) {
        let (found, expected) = (f64::from(value(i) as f32), f64::from(expected));
        let scale = expected.abs().max(f64::MIN_POSITIVE);
        let relative = (found - expected).abs() / scale;
        difference = if relative.is_nan() { f64::INFINITY } else { difference.max(relative) };
    }
    Ok(Check::new(name, difference, TOLERANCE))
}
