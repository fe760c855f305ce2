//! What transparent pixels show.

use esvit_settings::describe::{Describe, Value, json, one_of};
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What transparent pixels show: `mean`, or a color `[r, g, b]` of values from 0 to 255.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Background {
    /// The mean color of the image's visible pixels, weighted by their alpha.
    #[default]
    Mean,
    /// A color.
    Color([u8; 3]),
}

/// What settings say about transparent pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackgroundSetting {
    /// Chosen from a sample of the images.
    #[default]
    Auto,
    /// This.
    Is(Background),
}

impl BackgroundSetting {
    /// The background; before it is chosen, the mean color.
    pub fn background(&self) -> Background {
        match self {
            Self::Auto => Background::default(),
            Self::Is(background) => *background,
        }
    }
}

impl Serialize for Background {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Mean => serializer.serialize_str("mean"),
            Self::Color(color) => color.serialize(serializer),
        }
    }
}

impl Serialize for BackgroundSetting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Is(background) => background.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Background {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Stored::deserialize(deserializer)?.background("`mean` or `[r, g, b]`")
    }
}

impl<'de> Deserialize<'de> for BackgroundSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Stored::deserialize(deserializer)? {
            Stored::Text(text) if text == "auto" => Ok(Self::Auto),
            stored => stored.background("`auto`, `mean` or `[r, g, b]`").map(Self::Is),
        }
    }
}

impl Describe for Background {
    fn schema() -> Value {
        json!({ "anyOf": [one_of(&["mean"]), <[u8; 3]>::schema()] })
    }
}

impl Describe for BackgroundSetting {
    fn schema() -> Value {
        json!({ "anyOf": [one_of(&["auto", "mean"]), <[u8; 3]>::schema()] })
    }
}

/// All spellings.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected `auto`, `mean` or `[r, g, b]` with values from 0 to 255")]
enum Stored {
    Color([u8; 3]),
    Text(String),
}

impl Stored {
    fn background<E: Error>(self, expected: &str) -> Result<Background, E> {
        match self {
            Self::Color(color) => Ok(Background::Color(color)),
            Self::Text(text) if text == "mean" => Ok(Background::Mean),
            Self::Text(text) => Err(E::invalid_value(Unexpected::Str(&text), &expected)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_a_round_trip() {
        let color = Background::Color([1, 2, 255]);
        for (text, expected) in [(r#""mean""#, Background::Mean), ("[1,2,255]", color)] {
            let read: Background = serde_json::from_str(text).unwrap();
            assert_eq!(read, expected);
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
            let setting: BackgroundSetting = serde_json::from_str(text).unwrap();
            assert_eq!((setting, setting.background()), (BackgroundSetting::Is(read), read));
            assert_eq!(serde_json::to_string(&setting).unwrap(), text);
        }
        let auto: BackgroundSetting = serde_json::from_str(r#""auto""#).unwrap();
        assert_eq!((auto, auto.background()), (BackgroundSetting::Auto, Background::Mean));
        assert_eq!(serde_json::to_string(&auto).unwrap(), r#""auto""#);
    }

    #[test]
    fn senseless_settings_are_refused() {
        for text in ["[1, 2]", "[1, 2, 256]", r#""white""#] {
            let error = serde_json::from_str::<Background>(text).unwrap_err().to_string();
            assert!(error.contains("`mean` or `[r, g, b]`"), "{error}");
            let error = serde_json::from_str::<BackgroundSetting>(text).unwrap_err().to_string();
            assert!(error.contains("`auto`, `mean` or `[r, g, b]`"), "{error}");
        }
        // What is stored with weights was chosen.
        assert!(serde_json::from_str::<Background>(r#""auto""#).is_err());
    }
}
