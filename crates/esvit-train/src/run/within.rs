//! How many steps fit the time of a run.

use std::time::Duration;

use super::{RunError, StepTime};
use crate::span::Time;

/// Share of a run's time that its steps may take; the rest is for checks and checkpoints.
pub const FOR_STEPS: f64 = 0.92;

/// Fewer steps than this are no run.
pub const FEWEST: u64 = 10;

/// Steps that fit a time beside checks and checkpoints.
///
/// # Errors
/// [`RunError::TooShort`] if a run would have fewer than [`FEWEST`].
pub fn steps_within(
    time: Duration,
    step: &StepTime,
    steps_per_epoch: u64,
) -> Result<u64, RunError> {
    let for_steps = time.mul_f64(FOR_STEPS);
    let epoch = step.first.mul_f64(steps_per_epoch as f64);
    let within =
        |time: Duration, step: Duration| (time.as_secs_f64() / step.as_secs_f64().max(1e-6)) as u64;
    let steps = match for_steps.checked_sub(epoch) {
        Some(rest) => steps_per_epoch + within(rest, step.later),
        None => within(for_steps, step.first),
    };
    match steps < FEWEST {
        true => Err(too_short(time, step.first)),
        false => Ok(steps),
    }
}

/// Refuses a time in which a run has too few steps of such a length.
pub(crate) fn too_short(time: Duration, step: Duration) -> RunError {
    let shortest = step.mul_f64(FEWEST as f64 / FOR_STEPS);
    RunError::TooShort { time: Time(time), step, shortest: Time(rounded_up(shortest)) }
}

/// Whole seconds, from two minutes on whole minutes.
fn rounded_up(time: Duration) -> Duration {
    let unit = if time > Duration::from_secs(120) { 60.0 } else { 1.0 };
    Duration::from_secs_f64((time.as_secs_f64() / unit).ceil().max(1.0) * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(first: f64, later: f64) -> StepTime {
        let [first, later] = [first, later].map(Duration::from_secs_f64);
        StepTime { first, later }
    }

    #[test]
    fn later_steps_are_quicker() {
        let steps = |seconds: f64, step: &StepTime| {
            steps_within(Duration::from_secs_f64(seconds / FOR_STEPS), step, 20).unwrap()
        };
        assert_eq!(steps(15.25, &step(1.0, 0.5)), 15);
        assert_eq!(steps(20.25, &step(1.0, 0.5)), 20);
        assert_eq!(steps(25.25, &step(1.0, 0.5)), 30);
    }

    /// A step of 25.8 s, of which ten are asked for.
    #[test]
    fn what_is_too_short_is_refused_with_what_is_not() {
        let refused = |time: u64, step: &StepTime| {
            steps_within(Duration::from_secs(time), step, 5).unwrap_err().to_string()
        };
        let error = refused(30, &step(25.8, 25.8));
        assert!(error.contains("`train.time` is 30s"), "{error}");
        assert!(error.contains("25.80 s") && error.contains("`--time 5m`"), "{error}");
        assert!(steps_within(Duration::from_secs(300), &step(25.8, 25.8), 5).is_ok());
        let error = refused(1, &step(0.2, 0.2));
        assert!(error.contains("`--time 3s`"), "{error}");
        assert_eq!(steps_within(Duration::from_secs(3), &step(0.2, 0.2), 5).unwrap(), 13);
    }
}
