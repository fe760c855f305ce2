//! What settings are, as JSON Schema (draft 2020-12): for editors, and for pages that list them.

use serde_json::Map;

pub use serde_json::{Value, json};

/// A type of settings that says what it holds.
pub trait Describe {
    /// The JSON schema of its serialized form.
    fn schema() -> Value;
}

/// One of some words.
pub fn one_of(words: &[&str]) -> Value {
    json!({ "enum": words })
}

/// Implements [`Describe`] for enums that are written as words.
#[macro_export]
macro_rules! words {
    ($($kind:ty: $($word:literal),+;)*) => {
        $(impl $crate::describe::Describe for $kind {
            fn schema() -> $crate::describe::Value {
                $crate::describe::one_of(&[$($word),+])
            }
        })*
    };
}

/// A list of `length` values of the schema `items`.
pub fn tuple(items: Value, length: usize) -> Value {
    json!({ "type": "array", "items": items, "minItems": length, "maxItems": length })
}

/// A table of fields: name, what it is as the tokens of its attributes, and schema. [`settings!`]
/// calls it. A name that is a keyword of Rust is that of the field without `r#`, as in files.
///
/// [`settings!`]: crate::settings
pub fn table<const N: usize>(fields: [(&str, &[&str], Value); N]) -> Value {
    let fields = fields.into_iter().map(|(name, attributes, mut schema)| {
        if let Value::Object(schema) = &mut schema {
            schema.insert("description".into(), documentation(attributes).into());
        }
        (name.strip_prefix("r#").unwrap_or(name).to_owned(), schema)
    });
    let fields: Map<String, Value> = fields.collect();
    json!({ "type": "object", "properties": fields, "additionalProperties": false })
}

/// The text of the doc comments among the tokens of attributes, in one line.
fn documentation(attributes: &[&str]) -> String {
    let lines = attributes.iter().filter_map(|attribute| {
        let literal = attribute.strip_prefix("doc")?.trim_start().strip_prefix('=')?.trim();
        let is_raw = literal.starts_with('r');
        let text = literal.trim_start_matches(['r', '#']).trim_end_matches('#');
        let text = text.strip_prefix('"')?.strip_suffix('"')?.trim();
        Some(if is_raw { text.to_owned() } else { text.replace("\\\"", "\"") })
    });
    lines.collect::<Vec<_>>().join(" ")
}

macro_rules! describe {
    ($($schema:tt: $($kind:ty),*;)*) => {
        $($(impl Describe for $kind {
            fn schema() -> Value {
                json!($schema)
            }
        })*)*
    };
}

describe! {
    { "type": "boolean" }: bool;
    { "type": "number" }: f64;
    { "type": "integer", "minimum": 0 }: u8, u32, u64, usize;
    { "type": "integer" }: i32;
    { "type": "string" }: String, std::path::PathBuf;
}

/// A value, or the word for none.
impl<T: Describe> Describe for Option<T> {
    fn schema() -> Value {
        json!({ "anyOf": [T::schema(), { "const": "none" }] })
    }
}

impl<T: Describe> Describe for Vec<T> {
    fn schema() -> Value {
        json!({ "type": "array", "items": T::schema() })
    }
}

impl<T: Describe, const N: usize> Describe for [T; N] {
    fn schema() -> Value {
        tuple(T::schema(), N)
    }
}

/// Writes `defaults`, the serialized default values, into a schema. A word that stands for no value is
/// that of the default.
pub fn with_defaults(schema: &mut Value, defaults: &Value) {
    if let (Some(Value::Object(fields)), Value::Object(defaults)) =
        (schema.get_mut("properties"), defaults)
    {
        for (name, field) in fields {
            if let Some(default) = defaults.get(name) {
                with_defaults(field, default);
            }
        }
        return;
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf")
        && let (Some(last), true) = (choices.last_mut(), defaults.is_string())
        && last.get("const").is_some()
    {
        *last = json!({ "const": defaults });
    }
    schema["default"] = defaults.clone();
}

#[cfg(test)]
#[allow(unreachable_pub, reason = "the macro declares what is public")]
mod tests {
    use super::*;

    crate::settings! {
        /// A table.
        pub struct Log {
            /// Steps between lines,
            /// "as in the log".
            pub every: u32 = 10,
            /// Limits.
            pub limits: [f64; 2] = [0.5, 1.0],
        }
    }

    #[test]
    fn fields_have_their_comments_kinds_and_defaults() {
        let mut schema = Log::schema();
        with_defaults(&mut schema, &serde_json::to_value(Log::default()).unwrap());
        let expected = json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "every": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "Steps between lines, \"as in the log\".",
                    "default": 10,
                },
                "limits": {
                    "type": "array",
                    "items": { "type": "number" },
                    "minItems": 2,
                    "maxItems": 2,
                    "description": "Limits.",
                    "default": [0.5, 1.0],
                },
            },
        });
        assert_eq!(schema, expected);
    }

    crate::settings! {
        /// A table with a name that is a keyword.
        pub struct Pairs {
            /// How.
            pub r#match: f64 = 0.5,
        }
    }

    #[test]
    fn a_keyword_has_one_name_everywhere() {
        let schema = Pairs::schema();
        assert_eq!(schema["properties"]["match"]["description"], "How.");
        let pairs: Pairs = serde_json::from_str(r#"{ "match": 2.0 }"#).unwrap();
        assert_eq!(serde_json::to_value(&pairs).unwrap(), json!({ "match": 2.0 }));
    }

    #[test]
    fn the_word_for_none_is_that_of_the_default() {
        let mut schema = Option::<u32>::schema();
        with_defaults(&mut schema, &json!("auto"));
        assert_eq!(schema["anyOf"][1], json!({ "const": "auto" }));
        with_defaults(&mut schema, &json!(3));
        assert_eq!((&schema["anyOf"][1]["const"], &schema["default"]), (&json!("auto"), &json!(3)));
    }
}
