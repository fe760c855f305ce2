//! How many steps and checks fit the time of a run.

use std::time::Duration;

use super::{CheckTime, Costs, RunError};
use crate::span::{RunLength, Span, Time};

/// Share of a run's time for all that is neither a step nor a check, such as checkpoints.
const FOR_THE_REST: f64 = 0.04;

/// Share of a run's time that its checks may take, where the first and the last alone take no more.
pub const FOR_CHECKS: f64 = 0.2;

/// Share of a run's time that is left for steps, about.
pub const FOR_STEPS: f64 = 0.86;

/// Fewer steps than this are no run.
pub const FEWEST: u64 = 10;

/// What fits the time of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Within {
    /// Steps that are to be made.
    pub steps: u64,
    /// How often there is a check: as was asked for, or less often.
    pub every: Span,
}

impl CheckTime {
    /// The time of the checks of a run from `first` steps on, without what is measured after it.
    fn of(&self, first: u64, run: RunLength, every: Span) -> Duration {
        let count = checks(first, run, every);
        let before = if first == 0 && count > 0 { self.first } else { Duration::ZERO };
        before + self.each.mul_f64(count as f64)
    }
}

/// The number of checks of a run from `first` steps on, without the one before a first step.
pub fn checks(first: u64, run: RunLength, every: Span) -> u64 {
    let total = run.total_steps;
    match every.interval(run).filter(|_| first < total) {
        Some(every) => total / every - first / every + u64::from(!total.is_multiple_of(every)),
        None => 0,
    }
}

impl Costs {
    /// The time of a run from `first` steps on, with its checks, without what is measured after it.
    pub fn time(&self, first: u64, run: RunLength, every: Span) -> Duration {
        let steps = run.total_steps.saturating_sub(first);
        self.step.of(steps, run.steps_per_epoch) + self.checks.of(first, run, every)
    }

    /// What fits a time of which some is spent, after `first` steps that are done: as many steps as there is room for
    /// beside the checks, and these less often where they would take more than their share.
    ///
    /// # Errors
    /// [`RunError::TooShort`] if a run would have fewer than [`FEWEST`] steps.
    pub fn within(
        &self,
        (time, spent): (Duration, Duration),
        first: u64,
        steps_per_epoch: u64,
        every: Span,
    ) -> Result<Within, RunError> {
        let length = |steps: u64| RunLength { total_steps: first + steps, steps_per_epoch };
        let left = time.mul_f64(1.0 - FOR_THE_REST).saturating_sub(spent + self.checks.end);
        let most = |every: Span| self.most(left, |steps| self.time(first, length(steps), every));
        let mut found = Within { steps: most(every), every };
        let count = checks(first, length(found.steps), every);
        let before = if first == 0 { self.checks.first } else { Duration::ZERO };
        let room = time.mul_f64(FOR_CHECKS).saturating_sub(before + self.checks.end);
        if count > 1 && self.checks.each.mul_f64(count as f64) > room {
            let fewer = (room.as_secs_f64() / self.checks.each.as_secs_f64()) as u64;
            found.every = Span::Percent((100.0 / fewer.max(1) as f64).ceil());
            found.steps = most(found.every);
        }
        if found.steps < FEWEST {
            let run = RunLength { total_steps: FEWEST, steps_per_epoch };
            let last = if every.is_none() { Span::NONE } else { Span::Percent(100.0) };
            let checks = self.checks.of(0, run, last) + self.checks.end;
            return Err(too_short(time, self.step.first, (checks, spent)));
        }
        Ok(found)
    }

    /// The largest number of steps whose `time` is no more than what is left.
    fn most(&self, left: Duration, time: impl Fn(u64) -> Duration) -> u64 {
        let quickest = self.step.first.min(self.step.later).as_secs_f64().max(1e-6);
        let (mut low, mut high) = (0, (left.as_secs_f64() / quickest) as u64 + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if time(middle) <= left { low = middle } else { high = middle }
        }
        low
    }
}

/// Refuses a time in which a run has too few steps of such a length beside its checks, when some of it is spent.
pub(crate) fn too_short(
    time: Duration,
    step: Duration,
    (checks, spent): (Duration, Duration),
) -> RunError {
    let shortest = step.mul_f64(FEWEST as f64) + checks + spent;
    let shortest = shortest.div_f64(1.0 - FOR_THE_REST);
    RunError::TooShort { time: Time(time), step, checks, shortest: Time(rounded_up(shortest)) }
}

/// Whole seconds, from two minutes on whole minutes.
fn rounded_up(time: Duration) -> Duration {
    let unit = if time > Duration::from_secs(120) { 60.0 } else { 1.0 };
    Duration::from_secs_f64((time.as_secs_f64() / unit).ceil().max(1.0) * unit)
}

#[cfg(test)]
mod tests {
    use super::super::StepTime;
    use super::*;

    const EPOCH: u64 = 20;
    const TENTHS: Span = Span::Percent(10.0);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn costs([first, later]: [f64; 2], [before, each, end]: [f64; 3]) -> Costs {
        let step = StepTime { first: seconds(first), later: seconds(later) };
        let [first, each, end] = [before, each, end].map(seconds);
        Costs { step, checks: CheckTime { first, each, end }, spent: Duration::ZERO }
    }

    fn within(costs: &Costs, time: f64, spent: f64, every: Span) -> Result<Within, RunError> {
        costs.within((seconds(time), seconds(spent)), 0, EPOCH, every)
    }

    #[test]
    fn later_steps_are_quicker() {
        let costs = costs([1.0, 0.5], [0.0; 3]);
        let steps =
            |time: f64| within(&costs, time / (1.0 - FOR_THE_REST), 0.0, Span::NONE).unwrap().steps;
        assert_eq!([15.25, 20.25, 25.25].map(steps), [15, 20, 30]);
    }

    /// By going through all numbers of steps.
    #[test]
    fn checks_are_counted_as_they_come() {
        for (first, total_steps, every) in [
            (0, 75, TENTHS),
            (0, 75, Span::Percent(100.0)),
            (0, 75, Span::Epochs(1.0)),
            (30, 75, Span::Epochs(1.0)),
            (40, 75, Span::Epochs(1.0)),
            (0, 7, TENTHS),
            (0, 60, Span::Steps(7)),
            (0, 60, Span::NONE),
            (60, 60, TENTHS),
        ] {
            let run = RunLength { total_steps, steps_per_epoch: EPOCH };
            let is_due = |done: u64| {
                every.interval(run).is_some_and(|e| done.is_multiple_of(e) || done == total_steps)
            };
            let expected = (first + 1..=total_steps).filter(|&done| is_due(done)).count() as u64;
            assert_eq!(checks(first, run, every), expected, "{first} {total_steps} {every}");
        }
    }

    /// 96 of 100 seconds are left; ten checks of one second, one before, two for what comes after.
    #[test]
    fn checks_have_their_room() {
        let all = costs([0.1, 0.1], [1.0, 1.0, 2.0]);
        let found = within(&all, 100.0, 2.95, TENTHS).unwrap();
        assert_eq!(found, Within { steps: 800, every: TENTHS });
        let run = RunLength { total_steps: 800, steps_per_epoch: EPOCH };
        assert!((all.time(0, run, TENTHS).as_secs_f64() - 91.0).abs() < 1e-6);
        // The rest of it: five checks and no first one.
        assert!((all.time(400, run, TENTHS).as_secs_f64() - 45.0).abs() < 1e-6);
        let done = all.within((seconds(100.0), Duration::ZERO), 800, EPOCH, TENTHS).unwrap();
        assert!(done.steps > 840 && done.every == TENTHS, "{done:?}");
    }

    /// Ten checks of three seconds would take half of a minute, and a fifth of it is theirs: of twelve seconds,
    /// three are for the one before, and three more have room.
    #[test]
    fn checks_that_take_more_than_their_share_come_less_often() {
        let all = costs([0.1, 0.1], [3.0, 3.0, 0.0]);
        let found = within(&all, 60.0, 0.05, TENTHS).unwrap();
        assert_eq!(found.every, Span::Percent(34.0));
        // 57.55 seconds without four checks.
        assert_eq!(found.steps, 455);
        // However short it is, there is one at the end.
        let found = within(&all, 12.0, 0.0, Span::Steps(5)).unwrap();
        assert_eq!(found, Within { steps: 55, every: Span::Percent(100.0) });
        let long = within(&all, 3600.0, 0.0, TENTHS).unwrap();
        assert_eq!(long.every, TENTHS);
    }

    /// A step of 25.8 s, of which ten are asked for, and two checks of a minute.
    #[test]
    fn what_is_too_short_is_refused_with_what_is_not() {
        let alone = costs([25.8, 25.8], [0.0; 3]);
        let error = within(&alone, 30.0, 0.0, Span::NONE).unwrap_err().to_string();
        assert!(error.contains("`train.time` is 30s"), "{error}");
        assert!(error.contains("a step takes about 25.80 s\n"), "{error}");
        assert!(error.contains("`--time 5m`"), "{error}");
        assert_eq!(within(&alone, 300.0, 0.0, Span::NONE).unwrap().steps, 11);
        let checked = costs([25.8, 25.8], [60.0, 60.0, 0.0]);
        let error = within(&checked, 300.0, 10.0, TENTHS).unwrap_err().to_string();
        assert!(error.contains("25.80 s, and the checks 120 s"), "{error}");
        assert!(error.contains("`--time 7m`"), "{error}");
        let found = within(&checked, 420.0, 10.0, TENTHS).unwrap();
        assert_eq!(found, Within { steps: 10, every: Span::Percent(100.0) });
        let quick = costs([0.2, 0.2], [0.0; 3]);
        let error = within(&quick, 1.0, 0.0, Span::NONE).unwrap_err().to_string();
        assert!(error.contains("`--time 3s`"), "{error}");
    }
}
