//! Schedules of learning rate, weight decay, momentum and temperature.

use std::f64::consts::PI;

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

    #[test]
    fn degenerate_lengths_stay_finite() {
        for total_steps in 0..3 {
            for warmup_steps in 0..4 {
                let schedule =
                    CosineSchedule { start: 0.0, base: 1.0, last: 0.0, warmup_steps, total_steps };
                assert!((0..6).all(|step| schedule.at(step).is_finite()));
            }
        }
    }
}
