//! How stored values become 8-bit colors.

use std::fmt;
use std::str::FromStr;

use esvit_settings::describe::{Describe, Value, json, one_of};
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Background;

/// How stored values become 8-bit colors. Networks are shown images as they were trained with, so
/// this belongs to their preprocessing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Conversion {
    /// What becomes black and white in images of more than 8 bits.
    pub levels: Levels,
    /// What transparent pixels show.
    pub background: Background,
}

/// How the samples of an image of more than 8 bits are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SampleType {
    /// Unsigned, 16 bits.
    Uint16,
    /// Signed, 16 bits.
    Int16,
    /// Unsigned, 32 bits.
    Uint32,
    /// Signed, 32 bits.
    Int32,
    /// Floating-point numbers of any size.
    Float,
}

impl SampleType {
    /// All of them, in the order of [`Levels`].
    pub const ALL: [Self; 5] = [Self::Uint16, Self::Int16, Self::Uint32, Self::Int32, Self::Float];

    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uint16 => "uint16",
            Self::Int16 => "int16",
            Self::Uint32 => "uint32",
            Self::Int32 => "int32",
            Self::Float => "float",
        }
    }

    /// Smallest and largest value of the type; 0 to 1 for floating-point numbers.
    pub fn full(self) -> [f64; 2] {
        match self {
            Self::Uint16 => [0.0, f64::from(u16::MAX)],
            Self::Int16 => [f64::from(i16::MIN), f64::from(i16::MAX)],
            Self::Uint32 => [0.0, f64::from(u32::MAX)],
            Self::Int32 => [f64::from(i32::MIN), f64::from(i32::MAX)],
            Self::Float => [0.0, 1.0],
        }
    }
}

/// What becomes black and white, by the type of the samples; the whole range of the type where
/// nothing is given. 8 bits are never changed.
///
/// As text `full`, `LOW..HIGH` for all types, or `uint16 LOW..HIGH, float LOW..HIGH`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Levels([Option<[f64; 2]>; SampleType::ALL.len()]);

impl Levels {
    /// The same for all types.
    pub fn all(levels: [f64; 2]) -> Self {
        Self([Some(levels); SampleType::ALL.len()])
    }

    /// The same levels with others for one type.
    #[must_use]
    pub fn with(mut self, kind: SampleType, levels: [f64; 2]) -> Self {
        self.0[kind as usize] = Some(levels);
        self
    }

    /// What was chosen for a type, if anything.
    pub fn chosen(&self, kind: SampleType) -> Option<[f64; 2]> {
        self.0[kind as usize]
    }

    /// What becomes black and white.
    pub fn of(&self, kind: SampleType) -> [f64; 2] {
        self.chosen(kind).unwrap_or(kind.full())
    }

    /// Whether every type has its whole range.
    pub fn is_full(&self) -> bool {
        *self == Self::default()
    }

    /// The levels of all types, if they are the same.
    fn common(&self) -> Option<[f64; 2]> {
        self.0[0].filter(|levels| self.0.iter().all(|other| *other == Some(*levels)))
    }

    /// Whether white is brighter than black everywhere, in finite numbers.
    pub fn is_valid(&self) -> bool {
        let valid = |[low, high]: [f64; 2]| low < high && (high - low).is_finite();
        self.0.iter().flatten().all(|&levels| valid(levels))
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_full() {
            return f.write_str("full");
        }
        if let Some([low, high]) = self.common() {
            return write!(f, "{low}..{high}");
        }
        let chosen = SampleType::ALL.iter().filter_map(|kind| Some((kind, self.chosen(*kind)?)));
        for (place, (kind, [low, high])) in chosen.enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            write!(f, "{comma}{} {low}..{high}", kind.name())?;
        }
        Ok(())
    }
}

impl FromStr for Levels {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let range = |text: &str| {
            let (low, high) = text.split_once("..").ok_or(())?;
            let number = |text: &str| text.trim().parse::<f64>().map_err(drop);
            Ok([number(low)?, number(high)?])
        };
        if text == "full" {
            return Ok(Self::default());
        }
        let levels = match range(text) {
            Ok(levels) => Self::all(levels),
            Err(()) => {
                let mut levels = Self::default();
                for part in text.split(',') {
                    let (name, values) = part.trim().split_once(' ').ok_or(())?;
                    let mut kinds = SampleType::ALL.into_iter();
                    let kind = kinds.find(|kind| kind.name() == name).ok_or(())?;
                    levels = levels.with(kind, range(values)?);
                }
                levels
            }
        };
        if levels.is_valid() { Ok(levels) } else { Err(()) }
    }
}

/// What settings say about the range of images of more than 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum RangeSetting {
    /// Chosen from a sample of the images.
    #[default]
    Auto,
    /// These.
    Levels(Levels),
}

impl RangeSetting {
    /// The levels; before they are chosen, the whole range.
    pub fn levels(&self) -> Levels {
        match self {
            Self::Auto => Levels::default(),
            Self::Levels(levels) => *levels,
        }
    }
}

impl Serialize for RangeSetting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Levels(levels) => levels.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for RangeSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Stored::deserialize(deserializer)? {
            Stored::Text(text) if text == "auto" => Ok(Self::Auto),
            stored => stored.levels("`auto`, `full` or `[low, high]`").map(Self::Levels),
        }
    }
}

impl Describe for Levels {
    fn schema() -> Value {
        json!({ "anyOf": [one_of(&["full"]), <[f64; 2]>::schema()] })
    }
}

impl Describe for RangeSetting {
    fn schema() -> Value {
        json!({ "anyOf": [one_of(&["auto", "full"]), <[f64; 2]>::schema()] })
    }
}

/// Both spellings of levels.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected `auto`, `full` or `[low, high]`")]
enum Stored {
    Pair([f64; 2]),
    Text(String),
}

impl Stored {
    fn levels<E: Error>(self, expected: &str) -> Result<Levels, E> {
        match self {
            Self::Pair(pair) if Levels::all(pair).is_valid() => Ok(Levels::all(pair)),
            Self::Pair([low, high]) => Err(E::custom(format!(
                "[{low}, {high}] is no range: give `[low, high]` with low < high"
            ))),
            Self::Text(text) => {
                text.parse().map_err(|()| E::invalid_value(Unexpected::Str(&text), &expected))
            }
        }
    }
}

/// A pair if all types have the same levels, else text.
impl Serialize for Levels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.common() {
            Some(pair) => pair.serialize(serializer),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Levels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Stored::deserialize(deserializer)?.levels("`full` or `[low, high]`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_a_round_trip() {
        for (text, expected) in [
            (r#""auto""#, RangeSetting::Auto),
            (r#""full""#, RangeSetting::Levels(Levels::default())),
            ("[0.0,4095.0]", RangeSetting::Levels(Levels::all([0.0, 4095.0]))),
            (
                r#""uint16 12..4012, float -1.5..255""#,
                RangeSetting::Levels(
                    Levels::default()
                        .with(SampleType::Uint16, [12.0, 4012.0])
                        .with(SampleType::Float, [-1.5, 255.0]),
                ),
            ),
        ] {
            let read: RangeSetting = serde_json::from_str(text).unwrap();
            assert_eq!(read, expected);
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        let read: RangeSetting = serde_json::from_str("[0, 1]").unwrap();
        assert_eq!(read.levels().to_string(), "0..1");
    }

    #[test]
    fn senseless_settings_are_refused() {
        for text in ["[1, 0]", "[0, 0]", r#""wide""#, r#""uint8 0..1""#, r#""float 1..0""#, "3"] {
            assert!(serde_json::from_str::<RangeSetting>(text).is_err(), "{text}");
        }
        assert!(!Levels::all([0.0, f64::NAN]).is_valid());
        assert!(!Levels::all([f64::MIN, f64::MAX]).is_valid());
        let error = serde_json::from_str::<RangeSetting>("[2, 1]").unwrap_err().to_string();
        assert!(error.contains("give `[low, high]` with low < high"), "{error}");
    }

    #[test]
    fn what_is_not_chosen_is_the_whole_range() {
        let levels = Levels::default().with(SampleType::Int16, [-1024.0, 3071.0]);
        assert_eq!(levels.of(SampleType::Int16), [-1024.0, 3071.0]);
        assert_eq!(levels.of(SampleType::Uint16), [0.0, 65535.0]);
        assert_eq!(levels.of(SampleType::Float), [0.0, 1.0]);
        assert!(!levels.is_full() && Levels::default().is_full());
    }
}
