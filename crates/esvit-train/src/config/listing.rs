//! All settings with what they are: for editors, pages and listings.

use std::collections::BTreeMap;
use std::fmt::Write;

use esvit_settings::describe::{Describe, Value, json, with_defaults};

use super::{Config, ModelConfig};
use crate::config_text::{Layer, Origin, value_of};
use crate::objective::ObjectiveConfig;

/// A setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Dotted key, such as `train.batch_size`.
    pub key: String,
    /// What it is, in a sentence or two.
    pub about: String,
    /// What it may be, such as `number` or `"adamw"`, `"sgd"`.
    pub values: String,
    /// Its default as TOML.
    pub default: String,
}

/// The JSON schema of a file of settings, in which all of them may be left out.
pub fn schema() -> Value {
    let mut schema = Config::schema();
    let defaults = serde_json::to_value(Config::default()).expect("plain values");
    with_defaults(&mut schema, &defaults);
    let families = &mut schema["properties"]["model"]["anyOf"];
    defaults_of_choices(families, |choice| {
        let family = choice["properties"]["family"]["const"].as_str();
        Some(json!(ModelConfig::of_family(family)))
    });
    let objectives = &mut schema["properties"]["objective"]["anyOf"];
    defaults_of_choices(objectives, |choice| {
        let name = choice["properties"]["name"]["const"].as_str()?;
        Some(json!(ObjectiveConfig::named(name)?))
    });
    // Their defaults are those of each choice.
    for table in ["model", "objective"] {
        if let Value::Object(table) = &mut schema["properties"][table] {
            table.remove("default");
        }
    }
    allow_switches(&mut schema);
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "Settings of `esvit pretrain`".into();
    schema
}

fn defaults_of_choices(choices: &mut Value, defaults: impl Fn(&Value) -> Option<Value>) {
    for choice in choices.as_array_mut().into_iter().flatten() {
        if let Some(defaults) = defaults(choice) {
            with_defaults(choice, &defaults);
        }
    }
}

/// Where a table has the key `enabled`, `true` and `false` stand for it.
fn allow_switches(schema: &mut Value) {
    if schema.pointer("/properties/enabled").is_some() {
        schema["type"] = json!(["object", "boolean"]);
    }
    let Value::Object(fields) = schema else { return };
    if let Some(Value::Object(inner)) = fields.get_mut("properties") {
        inner.values_mut().for_each(allow_switches);
    }
    if let Some(Value::Array(choices)) = fields.get_mut("anyOf") {
        choices.iter_mut().for_each(allow_switches);
    }
}

/// All settings of a table of the schema; of an objective or family, if there are several.
fn settings(schema: &Value, prefix: &str, found: &mut Vec<Setting>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if field["properties"].is_object() {
            settings(field, &key, found);
            continue;
        }
        // A table that depends on a choice.
        if field["anyOf"][0]["properties"].is_object() {
            continue;
        }
        let default = field.get("default").or_else(|| field.get("const")).map(written);
        found.push(Setting {
            key,
            about: field["description"].as_str().unwrap_or_default().into(),
            values: values(field),
            default: default.unwrap_or_default(),
        });
    }
}

/// A value as TOML.
pub(super) fn written(value: &Value) -> String {
    toml::Value::try_from(value).map_or_else(|_| value.to_string(), |value| value.to_string())
}

/// What a schema allows, in words.
fn values(schema: &Value) -> String {
    let list = |values: &[Value], each: fn(&Value) -> String| {
        values.iter().map(each).collect::<Vec<_>>().join(", ")
    };
    if let Some(words) = schema["enum"].as_array() {
        return list(words, written);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        return list(choices, values);
    }
    if let Some(word) = schema.get("const") {
        return written(word);
    }
    match &schema["type"] {
        Value::String(kind) if kind == "array" => {
            let of = values(&schema["items"]);
            match schema["minItems"].as_u64() {
                Some(count) => format!("list of {count} ({of})"),
                None => format!("list ({of})"),
            }
        }
        Value::String(kind) if kind == "object" => {
            let names = schema["properties"].as_object().into_iter().flatten();
            let names: Vec<&str> = names.map(|(name, _)| name.as_str()).collect();
            format!("table of {}", names.join(", "))
        }
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => {
            kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
        }
        _ => String::new(),
    }
}

impl Config {
    /// What each setting of this configuration is, by its dotted key.
    pub fn described(&self) -> BTreeMap<String, String> {
        let mut found = Vec::new();
        let schema = schema();
        settings(&schema, "", &mut found);
        let tables = &schema["properties"];
        let own = json!(self);
        for (table, tag) in [("model", "family"), ("objective", "name")] {
            let name = &own[table][tag];
            let choices = tables[table]["anyOf"].as_array().into_iter().flatten();
            choices
                .filter(|choice| choice["properties"][tag]["const"] == *name)
                .for_each(|choice| settings(choice, table, &mut found));
        }
        found.into_iter().map(|setting| (setting.key, setting.about)).collect()
    }

    /// The settings as TOML, each with what it is and which of `layers`, lowest first, it comes from.
    pub fn annotated(&self, layers: &[Layer]) -> String {
        let described = self.described();
        let mut text = String::new();
        let mut table = String::new();
        for line in self.to_toml().lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                table = format!("{name}.");
                _ = writeln!(text, "{line}");
                continue;
            }
            let Some((key, value)) = line.split_once(" = ") else {
                _ = writeln!(text, "{line}");
                continue;
            };
            let key = format!("{table}{key}");
            if let Some(about) = described.get(&key) {
                wrap(about, &mut text);
            }
            let origin = origin(&key, value, layers).map_or("default".into(), Origin::to_string);
            _ = writeln!(text, "{line}  # {origin}");
        }
        text
    }
}

/// The last layer that gives a setting the value that it has.
fn origin<'a>(key: &str, value: &str, layers: &'a [Layer]) -> Option<&'a Origin> {
    let gives = |layer: &&Layer| {
        let found = value_of(&layer.table, key);
        // `3` for a number is `3.0` among the settings.
        let same = |found: &toml::Value| match (found, value.parse::<f64>()) {
            (toml::Value::Integer(found), Ok(value)) => *found as f64 == value,
            _ => found.to_string() == value,
        };
        found.is_some_and(same)
    };
    layers.iter().rev().find(gives).map(|layer| &layer.origin)
}

/// A comment in lines of at most 100 characters.
fn wrap(about: &str, text: &mut String) {
    let mut width = 0;
    for word in about.split(' ') {
        if width == 0 || width + 1 + word.chars().count() > 100 {
            text.push_str(if width == 0 { "# " } else { "\n# " });
            width = 2;
        } else {
            text.push(' ');
            width += 1;
        }
        text.push_str(word);
        width += word.chars().count();
    }
    text.push('\n');
}

/// The page docs/settings.md.
pub fn page() -> String {
    let schema = schema();
    let mut text = String::from(
        "# Settings\n\n\
         What `esvit pretrain` and `esvit resume` take as `key=value`, or a file with `--config`. `esvit config` prints them as a command \
         resolves them, each with where it comes from; `esvit config --schema` prints a JSON Schema for editors. Lengths are \
         `500 steps`, `10 epochs` or `10%` of the run. The defaults hold where the recipe and the architecture say nothing else.\n",
    );
    let mut top = Vec::new();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let about = field["description"].as_str().unwrap_or_default();
        if let Some(choices) = field["anyOf"].as_array() {
            let tag = if name == "model" { "family" } else { "name" };
            for choice in choices {
                let title = choice["properties"][tag]["const"].as_str().unwrap_or_default();
                section(&format!("{name}: {title}"), about, choice, name, &mut text);
            }
        } else if field["properties"].is_object() {
            section(name, about, field, name, &mut text);
        } else {
            top.push((name.clone(), field.clone()));
        }
    }
    let top: serde_json::Map<String, Value> = top.into_iter().collect();
    section("Outside of tables", "", &json!({ "properties": top }), "", &mut text);
    text
}

fn section(title: &str, about: &str, schema: &Value, prefix: &str, text: &mut String) {
    let mut found = Vec::new();
    settings(schema, prefix, &mut found);
    _ = writeln!(text, "\n## {title}\n");
    if !about.is_empty() {
        _ = writeln!(text, "{about}\n");
    }
    text.push_str("| Setting | Default | Values | |\n|---|---|---|---|\n");
    for Setting { key, about, values, default } in found {
        _ = writeln!(text, "| `{key}` | `{default}` | {} | {about} |", values.replace('|', "\\|"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_text::parse_override;
    use esvit_nn::backbone::Family;

    /// Every key of every objective and family has a description, and there is no description of
    /// another key.
    #[test]
    fn every_setting_is_described() {
        let objectives = ObjectiveConfig::NAMES.iter().map(|name| format!("objective.name={name}"));
        let families = Family::ALL.iter().map(|family| format!("model.family={}", family.name()));
        for chosen in objectives.chain(families) {
            let layer = parse_override(&chosen).unwrap();
            let config = Config::resolve(vec![layer]).unwrap();
            let mut keys = Vec::new();
            leaves("", &toml::Value::try_from(&config).unwrap(), &mut keys);
            let described = config.described();
            for key in &keys {
                let about = described.get(key).unwrap_or_else(|| panic!("{key}"));
                assert!(about.ends_with('.') && about.len() > 5, "{key}: {about}");
            }
            let unknown: Vec<_> = described.keys().filter(|key| !keys.contains(key)).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    }

    fn leaves(prefix: &str, value: &toml::Value, found: &mut Vec<String>) {
        match value {
            toml::Value::Table(table) => table.iter().for_each(|(name, value)| {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                leaves(&key, value, found);
            }),
            _ => found.push(prefix.into()),
        }
    }

    /// What the schema lists as words is accepted.
    #[test]
    fn words_of_the_schema_are_accepted() {
        /// `given` chooses the family or the objective whose setting it is.
        fn words(key: &str, schema: &Value, given: Option<&str>) {
            for word in schema["enum"].as_array().into_iter().flatten().chain(schema.get("const")) {
                let own = format!("{key}={}", word.as_str().unwrap());
                let layers = given.into_iter().chain([&*own]);
                let layers = layers.map(|text| parse_override(text).unwrap()).collect();
                // `train.epochs=none` leaves a run without a length, which is another matter.
                if let Err(error) = Config::resolve(layers) {
                    assert!(error.to_string().contains("no length"), "{key} = {word}: {error}");
                }
            }
            for choice in schema["anyOf"].as_array().into_iter().flatten() {
                let tag = ["family", "name"].into_iter().find_map(|tag| {
                    let word = choice["properties"][tag]["const"].as_str()?;
                    Some(format!("{key}.{tag}={word}"))
                });
                words(key, choice, tag.as_deref().or(given));
            }
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                words(&inner, field, given);
            }
        }
        words("", &schema(), None);
    }

    #[test]
    fn settings_say_where_they_come_from() {
        let layers = vec![
            Layer {
                origin: Origin::Recipe("low".into()),
                ..parse_override("train.batch_size=16").unwrap()
            },
            Layer {
                origin: Origin::Recipe("same".into()),
                ..parse_override("train.batch_size=32").unwrap()
            },
            parse_override("train.batch_size=32").unwrap(),
            Layer { origin: Origin::Recipe("own".into()), ..parse_override("optim.lr=1").unwrap() },
            // Steps take the place of epochs.
            Layer {
                origin: Origin::Recipe("own".into()),
                ..parse_override("train.epochs=7").unwrap()
            },
            parse_override("train.steps=9").unwrap(),
        ];
        let text = Config::resolve(layers.clone()).unwrap().annotated(&layers);
        for line in [
            "batch_size = 32  # on the command line",
            "lr = 1.0  # in recipe `own`",
            "epochs = \"none\"  # default",
            "steps = 9  # on the command line",
            "# Seed of all random numbers: runs with equal seeds are equal.\nseed = 0  # default",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        // It is a file of settings.
        let again = Config::parse(&text, Origin::CommandLine).unwrap();
        assert_eq!(again, Config::resolve(layers).unwrap());
    }

    #[test]
    fn the_page_is_that_of_the_settings() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/settings.md");
        if std::env::var_os("ESVIT_WRITE_DOCS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let hint = "write it anew: ESVIT_WRITE_DOCS=1 cargo test --release --workspace page";
        assert!(std::fs::read_to_string(path).unwrap_or_default() == page(), "{hint}");
    }
}
