//! Schedules of learning rate, weight decay, momentum and temperature. Each is a function of the
//! step.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Linear warm-up from `start` to `base`, both included, then cosine decay towards `last`.
///
/// Of `n` steps after the warm-up, step `i` has `last + (base - last) (1 + cos(pi i / n)) / 2`, so
/// that `last` is never reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CosineSchedule {
    /// Value at the first step of the warm-up.
    pub start: f64,
    /// Value at the end of the warm-up.
    pub base: f64,
    /// Value that the cosine approaches.
    pub last: f64,
    /// Length of the warm-up in steps.
    pub warmup_steps: u64,
    /// Length of the whole schedule in steps.
    pub total_steps: u64,
}

impl CosineSchedule {
    /// A schedule without warm-up.
    pub fn new(base: f64, last: f64, total_steps: u64) -> Self {
        Self { start: base, base, last, warmup_steps: 0, total_steps }
    }

    /// The value at a step, counted from 0 over the whole run.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return linspace(self.start, self.base, self.warmup_steps, step);
        }
        let length = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let position = (step - self.warmup_steps).min(length) as f64 / length as f64;
        self.last + 0.5 * (self.base - self.last) * (1.0 + (PI * position).cos())
    }
}

/// How a learning rate changes over a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduleKind {
    /// DINO, EsViT and SwAV: [`CosineSchedule`], whose warm-up reaches the peak in its last step.
    #[default]
    Cosine,
    /// MoCo v3, SimCLR and BYOL (optax, `transformers`): the same, but a warm-up of `n` steps grows
    /// by an `n`th of the way and reaches the peak in the step after it.
    WarmupCosine,
    /// MoCo v2 and DenseCL: [`LrScheduleKind::Cosine`] at the first step of each epoch.
    EpochCosine,
    /// MoBY, from timm without `warmup_prefix`: the warm-up of [`LrScheduleKind::WarmupCosine`],
    /// then a cosine that began with it, so that the rate drops where the warm-up ends. A step has
    /// the value of the step before, and the first two have the first.
    TimmCosine,
    /// Swin's present code, timm's with `warmup_prefix`: [`LrScheduleKind::WarmupCosine`], a step
    /// late as above.
    TimmPrefixCosine,
    /// MoCo v1: the warm-up of [`LrScheduleKind::WarmupCosine`], then the peak, a tenth of it from
    /// the first milestone on, a hundredth from the second on.
    MultiStep,
}

/// The learning rate over a run.
#[derive(Debug, Clone, PartialEq)]
pub struct LrSchedule {
    /// How it changes.
    pub kind: LrScheduleKind,
    /// Rates at the start and the end of the warm-up and at the end, and lengths in steps.
    pub cosine: CosineSchedule,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Steps at which [`LrScheduleKind::MultiStep`] divides the rate by ten.
    pub milestones: Vec<u64>,
}

impl LrSchedule {
    /// The learning rate of a step, counted from 0 over the whole run.
    pub fn at(&self, step: u64) -> f64 {
        let cosine = self.cosine;
        let warmup = |step: u64| {
            let CosineSchedule { start, base, warmup_steps, .. } = cosine;
            let share = step as f64 / warmup_steps as f64;
            (step < warmup_steps).then_some(start + (base - start) * share)
        };
        let step_before = step.saturating_sub(1);
        match self.kind {
            LrScheduleKind::Cosine => cosine.at(step),
            LrScheduleKind::WarmupCosine => warmup(step).unwrap_or_else(|| cosine.at(step)),
            LrScheduleKind::EpochCosine => cosine.at(step - step % self.steps_per_epoch.max(1)),
            LrScheduleKind::TimmCosine => warmup(step_before).unwrap_or_else(|| {
                let whole = CosineSchedule::new(cosine.base, cosine.last, cosine.total_steps);
                whole.at(step_before)
            }),
            LrScheduleKind::TimmPrefixCosine => {
                warmup(step_before).unwrap_or_else(|| cosine.at(step_before))
            }
            LrScheduleKind::MultiStep => warmup(step).unwrap_or_else(|| {
                let passed = self.milestones.iter().filter(|&&milestone| milestone <= step);
                cosine.base * 0.1f64.powi(passed.count() as i32)
            }),
        }
    }
}

/// How a learning rate grows with the number of images of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrScaling {
    /// In proportion to it (Goyal et al. 2017).
    #[default]
    Linear,
    /// With its square root: SimCLR's other choice.
    Sqrt,
}

impl LrScaling {
    /// The factor of a batch that is `ratio` times the one that the rate is given for.
    pub fn factor(self, ratio: f64) -> f64 {
        match self {
            Self::Linear => ratio,
            Self::Sqrt => ratio.sqrt(),
        }
    }
}

/// The teacher's temperature: it grows linearly from `warmup` to `last` over `length` epochs or
/// steps, both included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TemperatureSchedule {
    /// The first value.
    pub warmup: f64,
    /// Value at the end of the warm-up and from there on.
    pub last: f64,
    /// Length of the warm-up.
    pub length: u64,
}

impl TemperatureSchedule {
    /// The value in an epoch or step, counted from 0.
    pub fn at(&self, place: u64) -> f64 {
        if place < self.length {
            linspace(self.warmup, self.last, self.length, place)
        } else {
            self.last
        }
    }
}

/// Point `i` of `n` equally spaced ones from `start` to `end`, both included.
fn linspace(start: f64, end: f64, n: u64, i: u64) -> f64 {
    if n < 2 { start } else { start + (end - start) * i as f64 / (n - 1) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(value: f64, expected: f64) {
        assert!((value - expected).abs() <= 1e-7 * expected.abs().max(1e-3), "{value} {expected}");
    }

    #[test]
    fn learning_rate() {
        let schedule = CosineSchedule {
            start: 0.0,
            base: 1e-3,
            last: 1e-6,
            warmup_steps: 10,
            total_steps: 50,
        };
        for (step, expected) in [
            (0, 0.0),
            (1, 1.11111111e-4),
            (9, 1e-3),
            (10, 1e-3),
            (11, 9.98460208e-4),
            (30, 5.005e-4),
            (49, 2.5397918e-6),
        ] {
            close(schedule.at(step), expected);
        }
    }

    #[test]
    fn momentum() {
        let schedule = CosineSchedule::new(0.996, 1.0, 50);
        for (step, expected) in [(0, 0.996), (1, 0.996003947), (25, 0.998), (49, 0.999996053)] {
            close(schedule.at(step), expected);
        }
    }

    #[test]
    fn temperature() {
        let schedule = TemperatureSchedule { warmup: 0.04, last: 0.07, length: 30 };
        for (epoch, expected) in
            [(0, 0.04), (1, 0.04103448), (15, 0.05551724), (29, 0.07), (30, 0.07), (299, 0.07)]
        {
            close(schedule.at(epoch), expected);
        }
    }

    /// Twelve steps, three an epoch, four of them the warm-up from 0.1 to 0.5; then to 0.02.
    fn schedule(kind: LrScheduleKind) -> LrSchedule {
        let cosine =
            CosineSchedule { start: 0.1, base: 0.5, last: 0.02, warmup_steps: 4, total_steps: 12 };
        LrSchedule { kind, cosine, steps_per_epoch: 3, milestones: vec![6, 9] }
    }

    /// The definitions, as the papers' codes have them, at every step.
    #[test]
    fn every_schedule_by_its_definition() {
        let h = |share: f64| 0.5 * (1.0 + (PI * share).cos());
        let down = |share: f64| 0.02 + 0.48 * h(share);
        let both_ends = |step: f64| {
            if step < 4.0 { 0.1 + 0.4 * step / 3.0 } else { down((step - 4.0) / 8.0) }
        };
        let one_end = |step: f64| {
            if step < 4.0 { 0.1 + 0.1 * step } else { down((step - 4.0) / 8.0) }
        };
        let over_all = |step: f64| if step < 4.0 { 0.1 + 0.1 * step } else { down(step / 12.0) };
        let stairs = |step: f64| match step {
            low if low < 4.0 => 0.1 + 0.1 * low,
            low if low < 6.0 => 0.5,
            middle if middle < 9.0 => 0.05,
            _ => 0.005,
        };
        let late = |step: f64| (step - 1.0).max(0.0);
        for step in 0..12 {
            let at = |kind| schedule(kind).at(step);
            let step = step as f64;
            close(at(LrScheduleKind::Cosine), both_ends(step));
            close(at(LrScheduleKind::WarmupCosine), one_end(step));
            close(at(LrScheduleKind::EpochCosine), both_ends((step / 3.0).floor() * 3.0));
            close(at(LrScheduleKind::TimmCosine), over_all(late(step)));
            close(at(LrScheduleKind::TimmPrefixCosine), one_end(late(step)));
            close(at(LrScheduleKind::MultiStep), stairs(step));
        }
    }

    /// The rate where the warm-up ends: the peak in its last step, in the next, two steps later,
    /// and never.
    #[test]
    fn schedules_differ_where_the_warm_up_ends() {
        for (kind, expected) in [
            (LrScheduleKind::Cosine, [0.1, 0.5, 0.5]),
            (LrScheduleKind::WarmupCosine, [0.1, 0.4, 0.5]),
            (LrScheduleKind::TimmPrefixCosine, [0.1, 0.3, 0.4]),
            (LrScheduleKind::TimmCosine, [0.1, 0.3, 0.4]),
        ] {
            let found = [0, 3, 4].map(|step| schedule(kind).at(step));
            found.into_iter().zip(expected).for_each(|(found, expected)| close(found, expected));
        }
        close(schedule(LrScheduleKind::TimmPrefixCosine).at(5), 0.5);
        // Of 0.48 three quarters are left after a third of the cosine.
        close(schedule(LrScheduleKind::TimmCosine).at(5), 0.38);
    }

    /// Without a warm-up all begin at the peak, and a cosine never rises.
    #[test]
    fn rates_fall_after_the_warm_up() {
        for kind in [
            LrScheduleKind::Cosine,
            LrScheduleKind::WarmupCosine,
            LrScheduleKind::EpochCosine,
            LrScheduleKind::TimmCosine,
            LrScheduleKind::TimmPrefixCosine,
            LrScheduleKind::MultiStep,
        ] {
            let LrSchedule { cosine, .. } = schedule(kind);
            let cosine = CosineSchedule { warmup_steps: 0, ..cosine };
            let schedule = LrSchedule { cosine, ..schedule(kind) };
            close(schedule.at(0), 0.5);
            assert!((1..15).all(|step| schedule.at(step) <= schedule.at(step - 1)), "{kind:?}");
        }
    }

    #[test]
    fn scaling_of_the_rate() {
        close(LrScaling::Linear.factor(16.0), 16.0);
        close(LrScaling::Sqrt.factor(16.0), 4.0);
        // SimCLR: 0.075 for each root of an image is 1.2 for a batch of 256.
        close(1.2 * LrScaling::Sqrt.factor(4096.0 / 256.0), 0.075 * 4096f64.sqrt());
    }

    #[test]
    fn degenerate_lengths_stay_finite() {
        for total_steps in 0..3 {
            for warmup_steps in 0..4 {
                let schedule =
                    CosineSchedule { start: 0.0, base: 1.0, last: 0.0, warmup_steps, total_steps };
                assert!((0..6).all(|step| schedule.at(step).is_finite()));
                for kind in [
                    LrScheduleKind::EpochCosine,
                    LrScheduleKind::TimmCosine,
                    LrScheduleKind::MultiStep,
                ] {
                    let (cosine, milestones) = (schedule, vec![0]);
                    let rate = LrSchedule { kind, cosine, steps_per_epoch: 0, milestones };
                    assert!((0..6).all(|step| rate.at(step).is_finite()));
                }
            }
        }
    }
}
