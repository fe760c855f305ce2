//! Lengths within a run: steps, epochs, or a share of it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use esvit_settings::describe::{Describe, Value, json};
use serde::{Deserialize, Serialize};

/// The length of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunLength {
    /// Optimizer steps of the whole run.
    pub total_steps: u64,
    /// Optimizer steps per epoch.
    pub steps_per_epoch: u64,
}

/// A length within a run, written `500 steps`, `10 epochs` or `10%`. A number alone counts epochs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub enum Span {
    /// Optimizer steps.
    Steps(u64),
    /// Epochs, also parts of one.
    Epochs(f64),
    /// Per cent of the run.
    Percent(f64),
}

impl Describe for Span {
    fn schema() -> Value {
        json!({ "type": ["string", "number"], "minimum": 0 })
    }
}

impl Describe for Time {
    fn schema() -> Value {
        json!({ "type": "string" })
    }
}

impl Span {
    /// No length.
    pub const NONE: Self = Self::Steps(0);

    /// Whether it has no length.
    pub fn is_none(self) -> bool {
        matches!(self, Self::Steps(0)) || self == Self::Epochs(0.0) || self == Self::Percent(0.0)
    }

    /// Its steps, rounded.
    pub fn steps(self, run: RunLength) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Epochs(epochs) => (epochs * run.steps_per_epoch as f64).round() as u64,
            Self::Percent(percent) => (percent / 100.0 * run.total_steps as f64).round() as u64,
        }
    }

    /// Steps between events that come up once in this length, at least one; `None` for no events.
    /// A share is rounded up, so that the last of its events falls on the end of the run and not
    /// some steps before it.
    pub fn interval(self, run: RunLength) -> Option<u64> {
        let steps = match self {
            // What a product has too much by rounding makes no step more.
            Self::Percent(percent) => {
                (percent / 100.0 * run.total_steps as f64 - 1e-6).ceil() as u64
            }
            span => span.steps(run),
        };
        (!self.is_none()).then_some(steps.max(1))
    }

    /// The steps of a phase at the start of a run. One that is longer than the run becomes a tenth
    /// of it.
    pub fn phase(self, run: RunLength) -> u64 {
        let steps = self.steps(run);
        if steps > run.total_steps { run.total_steps / 10 } else { steps }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steps(1) => write!(f, "1 step"),
            Self::Steps(steps) => write!(f, "{steps} steps"),
            Self::Epochs(1.0) => write!(f, "1 epoch"),
            Self::Epochs(epochs) => write!(f, "{epochs} epochs"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

const FORMS: &str = "write `10 epochs`, `500 steps` or `10%`";

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let letters = text.find(|c: char| c.is_ascii_alphabetic() && c != 'e' || c == '%');
        // The `e` of `epochs`, not that of `1e3`.
        let letters = letters.map(|at| if text[..at].ends_with('e') { at - 1 } else { at });
        let (number, unit) = text.split_at(letters.unwrap_or(text.len()));
        let refuse = || format!("`{text}` is no length: {FORMS}");
        let number: f64 = number.trim().parse().map_err(|_| refuse())?;
        if !(number.is_finite() && number >= 0.0) {
            return Err(format!("`{text}` is no length: it must not be negative"));
        }
        match unit {
            "" | "epoch" | "epochs" => Ok(Self::Epochs(number)),
            "step" | "steps" if number.fract() == 0.0 => Ok(Self::Steps(number as u64)),
            "%" if number <= 100.0 => Ok(Self::Percent(number)),
            "%" => Err(format!("`{text}` is more than the run: give at most `100%`")),
            _ => Err(refuse()),
        }
    }
}

/// The forms of a length in a file.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a length such as `10 epochs`, `500 steps` or `10%` was expected")]
enum Written {
    Number(f64),
    Text(String),
}

impl TryFrom<Written> for Span {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Number(number) => number.to_string().parse(),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

/// A time such as `2h` or `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenTime", into = "String")]
pub struct Time(pub Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("`{text}` is no time: write `45m`, `2h` or `1h 30m`");
        let time = humantime::parse_duration(text).map_err(|_| refuse())?;
        if time.is_zero() { Err(refuse()) } else { Ok(Self(time)) }
    }
}

/// The forms of a time in a file. A number lacks its unit.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a time such as `45m`, `2h` or `1h 30m` was expected")]
enum WrittenTime {
    Number(f64),
    Text(String),
}

impl TryFrom<WrittenTime> for Time {
    type Error = String;

    fn try_from(written: WrittenTime) -> Result<Self, String> {
        match written {
            WrittenTime::Number(number) => number.to_string().parse(),
            WrittenTime::Text(text) => text.parse(),
        }
    }
}

impl From<Time> for String {
    fn from(time: Time) -> Self {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: RunLength = RunLength { total_steps: 1000, steps_per_epoch: 50 };

    #[test]
    fn lengths_are_read_in_every_form() {
        for (text, span, steps) in [
            ("500 steps", Span::Steps(500), 500),
            ("1step", Span::Steps(1), 1),
            ("1e2 steps", Span::Steps(100), 100),
            ("10 epochs", Span::Epochs(10.0), 500),
            (" 1 epoch ", Span::Epochs(1.0), 50),
            ("1.61epochs", Span::Epochs(1.61), 81),
            ("3", Span::Epochs(3.0), 150),
            ("0", Span::Epochs(0.0), 0),
            ("10%", Span::Percent(10.0), 100),
            ("0.25 %", Span::Percent(0.25), 3),
            ("100%", Span::Percent(100.0), 1000),
        ] {
            assert_eq!((text, text.parse()), (text, Ok(span)));
            assert_eq!(span.steps(RUN), steps, "{text}");
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        for text in ["", "steps", "-1 epochs", "nan", "inf", "2.5 steps", "101%", "3 weeks", "1 %%"]
        {
            assert!(text.parse::<Span>().unwrap_err().contains("no length") || text == "101%");
        }
    }

    #[test]
    fn lengths_in_files() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct File {
            span: Span,
        }
        for (text, span, stored) in [
            ("span = '5%'", Span::Percent(5.0), "span = \"5%\"\n"),
            ("span = 2", Span::Epochs(2.0), "span = \"2 epochs\"\n"),
            ("span = 0.5", Span::Epochs(0.5), "span = \"0.5 epochs\"\n"),
            ("span = '7 steps'", Span::Steps(7), "span = \"7 steps\"\n"),
        ] {
            let file: File = toml::from_str(text).unwrap();
            assert_eq!(file.span, span);
            assert_eq!(toml::to_string(&file).unwrap(), stored);
        }
        for (text, expected) in
            [("span = 'soon'", "write `10 epochs`"), ("span = true", "such as `10 epochs`")]
        {
            let error = toml::from_str::<File>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn intervals_and_phases() {
        assert_eq!(Span::Percent(0.01).interval(RUN), Some(1));
        assert_eq!(Span::Epochs(2.0).interval(RUN), Some(100));
        // The tenth of them is the end.
        let run = RunLength { total_steps: 7771, steps_per_epoch: 8 };
        assert_eq!(Span::Percent(10.0).interval(run), Some(778));
        for percent in 1..=100 {
            assert_eq!(Span::Percent(percent.into()).interval(RUN), Some(10 * percent as u64));
        }
        for none in [Span::NONE, Span::Epochs(0.0), Span::Percent(0.0)] {
            assert_eq!(none.interval(RUN), None);
        }
        assert_eq!(Span::Steps(1000).phase(RUN), 1000);
        assert_eq!(Span::Steps(1001).phase(RUN), 100);
        assert_eq!(Span::Epochs(30.0).phase(RUN), 100);
    }

    #[test]
    fn times() {
        let time: Time = "1h 30m".parse().unwrap();
        assert_eq!((time.0, time.to_string()), (Duration::from_secs(5400), "1h 30m".into()));
        for text in ["", "2", "0s", "soon", "-1h"] {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
        #[derive(Debug, Deserialize)]
        struct File {
            #[allow(dead_code, reason = "it is not read")]
            time: Time,
        }
        for (text, expected) in [
            ("time = 2", "`2` is no time: write `45m`"),
            ("time = 0.5", "`0.5` is no time: write `45m`"),
            ("time = [1]", "a time such as `45m`"),
        ] {
            let error = toml::from_str::<File>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
