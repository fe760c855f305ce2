//! Chart axes: scale, tick positions and tick labels.

/// Scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From the smallest to the largest value.
    Linear,
    /// From zero, or below if values are negative.
    FromZero,
    /// Logarithmic; linear if values are not positive or span less than a factor of 30.
    Logarithmic,
}

/// An axis: its range and its ticks.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// Value at the start.
    pub low: f64,
    /// Value at the end.
    pub high: f64,
    /// Tick values, ascending, with their labels.
    pub ticks: Vec<(f64, String)>,
    logarithmic: bool,
}

/// Smallest `high / low` for which a logarithmic axis is used.
const MIN_LOG_RATIO: f64 = 30.0;

impl Axis {
    /// An axis that covers `low..=high` with about `ticks` ticks; the ends are rounded out to
    /// ticks.
    pub fn new(low: f64, high: f64, scale: Scale, ticks: usize) -> Self {
        match scale {
            Scale::Logarithmic if low > 0.0 && high / low >= MIN_LOG_RATIO => {
                Self::logarithmic(low, high)
            }
            Scale::FromZero => Self::linear(low.min(0.0), high.max(0.0), ticks),
            _ => Self::linear(low, high, ticks),
        }
    }

    /// An axis of counts from 0 to exactly `high`, with integer ticks.
    pub fn counted(high: f64, ticks: usize) -> Self {
        let high = high.max(1.0);
        let mut axis = Self::linear(0.0, high, ticks.min(high as usize));
        axis.high = high;
        axis.ticks.retain(|(value, _)| *value <= high);
        axis
    }

    fn linear(low: f64, high: f64, ticks: usize) -> Self {
        let (low, high) = widen(low, high);
        let step = Step::for_span(high - low, ticks);
        let first = (low / step.value()).floor();
        let last = (high / step.value()).ceil();
        let count = (last - first).round().max(1.0) as usize;
        let values: Vec<f64> = (0..=count).map(|i| (first + i as f64) * step.value()).collect();
        let (low, high) = (values[0], values[count]);
        let largest = low.abs().max(high.abs());
        let ticks = values.into_iter().map(|value| (value, step.label(value, largest))).collect();
        Self { low, high, ticks, logarithmic: false }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let [first, last] = [low.log10().floor(), high.log10().ceil()].map(|power| power as i32);
        // Keeps it below a dozen ticks: beyond that, decades are skipped.
        let stride = (last - first).div_euclid(6).max(1);
        let powers = (first..=last).step_by(stride as usize);
        let tick = |power: i32| {
            let value = 10f64.powi(power);
            (value, Step { mantissa: 1, power }.label(value, value))
        };
        let [low, high] = [first, last].map(|power| 10f64.powi(power));
        Self { low, high, ticks: powers.map(tick).collect(), logarithmic: true }
    }

    /// Position of a value on the axis: 0 at `low`, 1 at `high`.
    pub fn position(&self, value: f64) -> f64 {
        if self.logarithmic {
            let [low, high, value] = [self.low, self.high, value.max(self.low)].map(f64::log10);
            (value - low) / (high - low)
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }
}

/// Widens an empty range, so that the axis has a length.
fn widen(low: f64, high: f64) -> (f64, f64) {
    let (low, high) = (low.min(high), low.max(high));
    let least = (1e-6 * low.abs().max(high.abs())).max(f64::MIN_POSITIVE * 1e16);
    if high - low >= least {
        return (low, high);
    }
    let around = if low == 0.0 { 0.5 } else { 0.1 * low.abs() };
    (low - around, high + around)
}

/// Tick spacing: 1, 2 or 5 times a power of ten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    mantissa: u8,
    power: i32,
}

impl Step {
    fn for_span(span: f64, ticks: usize) -> Self {
        let rough = span / ticks.max(1) as f64;
        let power = rough.log10().floor() as i32;
        let mantissa = match rough / 10f64.powi(power) {
            fraction if fraction <= 2f64.sqrt() => 1,
            fraction if fraction <= 10f64.sqrt() => 2,
            fraction if fraction <= 50f64.sqrt() => 5,
            _ => return Self { mantissa: 1, power: power + 1 },
        };
        Self { mantissa, power }
    }

    fn value(self) -> f64 {
        f64::from(self.mantissa) * 10f64.powi(self.power)
    }

    /// Label of the tick at `value`, with as many decimals as the spacing needs. `largest`, the
    /// largest tick, decides the unit (k, M, G) of all of them.
    fn label(self, value: f64, largest: f64) -> String {
        if value == 0.0 {
            return "0".into();
        }
        let (divisor, unit) = match largest {
            _ if !(1e-3..1e12).contains(&largest) => return self.scientific(value),
            _ if largest >= 1e9 => (9, "G"),
            _ if largest >= 1e6 => (6, "M"),
            _ if largest >= 1e4 => (3, "k"),
            _ => (0, ""),
        };
        let decimals = (divisor - self.power).clamp(0, 9) as usize;
        format!("{:.decimals$}{unit}", value / 10f64.powi(divisor))
    }

    fn scientific(self, value: f64) -> String {
        let decimals = (value.abs().log10().floor() as i32 - self.power).clamp(0, 9) as usize;
        format!("{value:.decimals$e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, words)| words.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        let axis = Axis::new(3.07, 6.93, Scale::Linear, 4);
        assert_eq!(words(&axis), ["3", "4", "5", "6", "7"]);
        assert_eq!((axis.low, axis.high), (3.0, 7.0));
        assert_eq!(
            words(&Axis::new(0.98, 0.9987, Scale::Linear, 4)),
            ["0.980", "0.985", "0.990", "0.995", "1.000"]
        );
        assert_eq!(
            words(&Axis::new(41.0, 63.0, Scale::FromZero, 4)),
            ["0", "20", "40", "60", "80"]
        );
        assert_eq!(
            words(&Axis::new(-0.4, 0.9, Scale::Linear, 3)),
            ["-0.5", "0.0", "0.5", "1.0"].map(|w| if w == "0.0" { "0" } else { w })
        );
    }

    #[test]
    fn large_and_small_values_stay_short() {
        assert_eq!(words(&Axis::new(0.0, 2.4e-4, Scale::Linear, 3)), ["0", "1e-4", "2e-4", "3e-4"]);
        assert_eq!(words(&Axis::new(0.0, 30_000.0, Scale::Linear, 3)), ["0", "10k", "20k", "30k"]);
        assert_eq!(words(&Axis::new(0.0, 1.5e6, Scale::Linear, 3)), ["0", "0.5M", "1.0M", "1.5M"]);
        assert_eq!(
            words(&Axis::new(1.2e-5, 1.8e-5, Scale::Linear, 3)),
            ["1.2e-5", "1.4e-5", "1.6e-5", "1.8e-5"]
        );
    }

    #[test]
    fn an_axis_of_counts_ends_at_the_last_one() {
        let axis = Axis::counted(453.0, 5);
        assert_eq!(words(&axis), ["0", "100", "200", "300", "400"]);
        assert_eq!((axis.position(0.0), axis.position(453.0)), (0.0, 1.0));
        assert_eq!(words(&Axis::counted(3.0, 4)), ["0", "1", "2", "3"]);
        assert_eq!(words(&Axis::counted(1.0, 4)), ["0", "1"]);
        assert_eq!(words(&Axis::counted(0.0, 4)), ["0", "1"]);
    }

    #[test]
    fn logarithms_only_where_they_help() {
        let axis = Axis::new(0.3, 200.0, Scale::Logarithmic, 4);
        assert_eq!(words(&axis), ["0.1", "1", "10", "100", "1000"]);
        assert!((axis.position(1.0) - 0.25).abs() < 1e-12);
        assert_eq!(
            Axis::new(1.0, 2.0, Scale::Logarithmic, 4),
            Axis::new(1.0, 2.0, Scale::Linear, 4)
        );
        assert_eq!(
            Axis::new(0.0, 2e6, Scale::Logarithmic, 4),
            Axis::new(0.0, 2e6, Scale::Linear, 4)
        );
    }

    /// One value, equal values, zeros, and values that all but overflow.
    #[test]
    fn no_span_is_given_one() {
        for (low, high) in [
            (5.0, 5.0),
            (0.0, 0.0),
            (-2.0, -2.0),
            (1e-300, 1e-300),
            (1e300, 1e300),
            (1.0, 1.0 + 1e-15),
        ] {
            let axis = Axis::new(low, high, Scale::Linear, 4);
            assert!(axis.low < axis.high && (2..12).contains(&axis.ticks.len()), "{low} {axis:?}");
            assert!((0.0..=1.0).contains(&axis.position(low)), "{low} {axis:?}");
        }
    }

    #[test]
    fn logarithmic_axes_have_few_ticks_and_hold_what_is_below_them() {
        let axis = Axis::new(1.0, 1e12, Scale::Logarithmic, 4);
        assert_eq!(
            axis.ticks.iter().map(|tick| tick.0).collect::<Vec<_>>(),
            [1.0, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12]
        );
        let axis = Axis::new(0.02, 200.0, Scale::Logarithmic, 4);
        assert_eq!((axis.position(0.01), axis.position(1e-9)), (0.0, 0.0));
        assert!((axis.position(0.1) - 0.2).abs() < 1e-12, "{}", axis.position(0.1));
    }
}
