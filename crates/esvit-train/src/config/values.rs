//! Values that a setting cannot take, in the words of the setting and not in those of the reader of a file.

use esvit_settings::describe::Value;
use toml::Table;

use super::listing::{schema, written};
use super::{Config, TextError};
use crate::config_text::{Layer, Origin, spelling_distance, value_of};

/// How the reader's messages begin; others are in words already.
const READER: [&str; 6] = [
    "invalid type: ",
    "invalid value: ",
    "invalid length ",
    "unknown variant ",
    "data did not ",
    "wanted exactly ",
];

/// An error of reading `layers`: a value of the wrong type is told with what the setting takes. `names` are
/// those of the objective and of the family that are chosen.
pub(super) fn explained(error: TextError, layers: &[Layer], names: [&str; 2]) -> TextError {
    let TextError::Value { key, origin, message } = error else { return error };
    let is_of_reader = READER.iter().any(|begin| message.starts_with(begin));
    let in_words = is_of_reader.then(|| in_words(&key, &origin, &message, layers, names)).flatten();
    let (key, message) = in_words.unwrap_or((key, message));
    TextError::Value { key, origin, message }
}

/// The key and the message.
fn in_words(
    key: &str,
    origin: &Origin,
    message: &str,
    layers: &[Layer],
    names: [&str; 2],
) -> Option<(String, String)> {
    let key = key.trim_end_matches(".?");
    let (table, places) = key.split_once('[').unwrap_or((key, ""));
    let mut of_origin = layers.iter().rev().filter(|layer| layer.origin == *origin);
    let mut value = of_origin.find_map(|layer| value_of(&layer.table, table))?;
    let schema = schema();
    let mut field = find(&schema, &table.split('.').collect::<Vec<_>>(), names)?;
    for place in places.split(['[', ']']).filter_map(|place| place.parse::<usize>().ok()) {
        value = value.as_array()?.get(place)?;
        field = field.get("items")?;
    }
    let key = key.to_owned();
    let shown = shown(value);
    if let Some(most) = largest(message).filter(|&most| number(value).is_some_and(|n| n > most)) {
        return Some((key, format!("{shown} is too large, the most is {most}")));
    }
    let message = format!("{shown} is not {}{}", takes(field)?, meant(field, value));
    Some((key, message))
}

fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => format!("`{text}`"),
        toml::Value::Table(_) => "a table".into(),
        value => format!("`{value}`"),
    }
}

/// The whole number that a value stands for; one that is too large for TOML is a text.
fn number(value: &toml::Value) -> Option<u128> {
    match value {
        toml::Value::Integer(number) => u128::try_from(*number).ok(),
        toml::Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// The largest value of the type that the reader names.
fn largest(message: &str) -> Option<u128> {
    match message.rsplit(' ').next()? {
        "u8" => Some(u8::MAX.into()),
        "u32" => Some(u32::MAX.into()),
        "u64" | "usize" => Some(i64::MAX as u128),
        _ => None,
    }
}

/// The setting at some keys of a schema, of the objective and the family of these names.
fn find<'a>(schema: &'a Value, keys: &[&str], names: [&str; 2]) -> Option<&'a Value> {
    let Some((first, rest)) = keys.split_first() else { return Some(schema) };
    if let Some(field) = schema.get("properties").and_then(|fields| fields.get(*first)) {
        return find(field, rest, names);
    }
    let is_open = |choice: &&Value| {
        let tags = ["family", "name"].iter();
        let mut tags = tags.filter_map(|tag| choice["properties"][tag]["const"].as_str());
        tags.all(|tag| names.contains(&tag))
    };
    let mut choices = schema.get("anyOf")?.as_array()?.iter().filter(is_open);
    choices.find_map(|choice| find(choice, keys, names))
}

/// What a schema takes, after "is not".
fn takes(schema: &Value) -> Option<String> {
    if let Some(words) = schema["enum"].as_array() {
        let quoted: Vec<String> = words.iter().filter_map(quoted).collect();
        let one_of = if quoted.len() > 1 { "one of " } else { "" };
        return Some(format!("{one_of}{}", quoted.join(", ")));
    }
    if let Some(word) = schema.get("const") {
        return quoted(word);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        return Some(choices.iter().map(takes).collect::<Option<Vec<_>>>()?.join(" or "));
    }
    let least = schema["minimum"].as_i64();
    Some(match kind(schema)? {
        "boolean" => "`true` or `false`".into(),
        "integer" => match least {
            Some(least) => format!("a whole number of at least {least}"),
            None => "a whole number".into(),
        },
        "number" => "a number".into(),
        "string" => "a text".into(),
        "array" => {
            let count = schema["minItems"].as_u64();
            let count = count.map_or_else(String::new, |count| format!("{count} "));
            let of = match kind(&schema["items"])? {
                "integer" => "whole numbers",
                "number" => "numbers",
                "string" => "texts",
                _ => "lengths",
            };
            let default = schema.get("default").filter(|value| **value != Value::Array(Vec::new()));
            let example = default.map(|value| format!(", such as `{}`", written(value)));
            format!("a list of {count}{of}{}", example.unwrap_or_default())
        }
        "object" => "a table".into(),
        _ => "a length such as `10 epochs`, `500 steps` or `10%`".into(),
    })
}

/// The name of a schema's type; that of a length, which is a text or a number, is none of the others.
fn kind(schema: &Value) -> Option<&str> {
    match &schema["type"] {
        Value::String(kind) => Some(kind.as_str()),
        Value::Array(kinds) if kinds.contains(&"object".into()) => Some("object"),
        Value::Array(_) => Some("length"),
        _ => None,
    }
}

fn quoted(word: &Value) -> Option<String> {
    Some(format!("`{}`", word.as_str()?))
}

/// The word that may have been meant.
fn meant(schema: &Value, value: &toml::Value) -> String {
    let words = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let given = value.as_str().unwrap_or_default();
    let near = words.filter_map(|word| Some((spelling_distance(given, word)?, word))).min();
    near.map_or_else(String::new, |(_, word)| format!(", did you mean `{word}`?"))
}

/// Checks that all numbers are finite: which of them would be bounds, nothing says.
///
/// # Errors
/// Names the first that is not, and the layer that has it.
pub(super) fn check_finite(config: &Config, layers: &[Layer]) -> Result<(), TextError> {
    let table = Table::try_from(config).map_err(TextError::Defaults)?;
    let Some((key, value)) = not_finite("", &table.into()) else { return Ok(()) };
    let last = layers.iter().rev().find(|layer| value_of(&layer.table, &key).is_some());
    let origin = last.map_or(Origin::Defaults, |layer| layer.origin.clone());
    Err(TextError::Value { key, origin, message: format!("`{value}` is not a finite number") })
}

/// The first number that is not finite: its key and its value.
fn not_finite(key: &str, value: &toml::Value) -> Option<(String, f64)> {
    match value {
        toml::Value::Float(number) if !number.is_finite() => Some((key.to_owned(), *number)),
        toml::Value::Array(values) => values.iter().find_map(|value| not_finite(key, value)),
        toml::Value::Table(table) => table.iter().find_map(|(name, value)| {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            not_finite(&key, value)
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::Config;
    use crate::config_text::{Origin, parse_override, parse_text};

    fn refused(texts: &[&str]) -> String {
        let layers = texts.iter().map(|text| parse_override(text).unwrap()).collect();
        Config::resolve(layers).unwrap_err().to_string()
    }

    /// What was given, and what is to be given.
    #[test]
    fn values_of_another_type() {
        let whole = "a whole number of at least 0";
        for (text, expected) in [
            ("seed=x", format!("`x` is not {whole}")),
            ("seed=-1", format!("`-1` is not {whole}")),
            ("seed=1.5", format!("`1.5` is not {whole}")),
            ("seed.x=1", format!("a table is not {whole}")),
            ("seed=[1]", format!("`[1]` is not {whole}")),
            ("train.epochs=three", format!("`three` is not {whole} or `none`")),
            ("train.micro_batch=auot", format!("`auot` is not {whole} or `auto`")),
            ("data.repeat=5000000000", "`5000000000` is too large, the most is 4294967295".into()),
            (
                "train.steps=18446744073709551615",
                "`18446744073709551615` is too large, the most is 9223372036854775807".into(),
            ),
            ("optim.lr=fast", "`fast` is not a number".into()),
            ("optim.clip_grad=[]", "`[]` is not a number or `none`".into()),
            ("optim.lr_in_momentum=yes", "`yes` is not `true` or `false`".into()),
            ("train.device=3", "`3` is not a text".into()),
            (
                "optim.name=adam",
                "`adam` is not one of `adamw`, `sgd`, `lars`, `larc`, did you mean `adamw`?".into(),
            ),
            ("optim.name=3", "`3` is not one of `adamw`, `sgd`, `lars`, `larc`".into()),
            ("views.policy=dinoo", "did you mean `dino`?".into()),
            ("views.local_sizes=95", "`95` is not a list of whole numbers, such as `[96]`".into()),
            ("views.global_scale=0.5", "`0.5` is not a list of 2 numbers, such as `[".into()),
            ("views.global_scale=[0.5]", "`[0.5]` is not a list of 2 numbers, such as `[".into()),
            ("optim.milestones=5", "`5` is not a list of lengths, such as `[".into()),
            ("model.depths=2", "`2` is not a list of whole numbers, such as `[".into()),
            ("objective.region.match=nearest", "`nearest` is not one of `".into()),
            ("objective.region.tokens=-1", format!("`-1` is not {whole}")),
            ("train.time=5", "`5` is no time: write `45m`, `2h` or `1h 30m`".into()),
        ] {
            let key = text.split('=').next().unwrap().replace(".x", "");
            let error = refused(&[text]);
            let begin = format!("bad value for `{key}` on the command line: ");
            assert!(error.starts_with(&begin) && error.contains(&expected), "{text}: {error}");
        }
        let error = refused(&["views.local_sizes=[96, -1]"]);
        assert!(
            error.contains("`views.local_sizes[1]` on the command line: `-1` is not"),
            "{error}"
        );
        // Of a table in place of which there may be a word.
        let error = refused(&["objective.mixup={enabled=true, mixup_alpha=\"x\"}"]);
        assert!(
            error.ends_with(
                "`objective.mixup.mixup_alpha` on the command line: `x` is not a number"
            ),
            "{error}"
        );
        // Of the objective and the family that are chosen.
        let error = refused(&["objective.name=byol", "objective.region.loss=l1"]);
        assert!(error.ends_with("`l1` is not one of `none`, `mse`, `softmax`"), "{error}");
        // Of a table that may be left out.
        let byol = ["objective.name=byol", "objective.region.loss=softmax"];
        let of_byol = |text| refused(&[byol[0], byol[1], text]);
        let error = of_byol("objective.region.head.layers=many");
        let expected =
            format!("`objective.region.head.layers` on the command line: `many` is not {whole}");
        assert!(error.contains(&expected), "{error}");
        let error = of_byol("objective.region.head={out_dim=64, layers=\"many\", hidden_dim=8}");
        assert!(error.contains(&expected), "{error}");
        let error = of_byol("objective.region.head=5");
        assert!(error.contains("`5` is not a table: give its settings, such as `"), "{error}");
        let error = refused(&["model.arch=vit_micro", "model.mlp=swiglue"]);
        assert!(error.ends_with("did you mean `swiglu`?"), "{error}");
    }

    /// No word of a type of the language, whatever is wrong.
    #[test]
    fn no_setting_answers_with_the_reader() {
        use crate::config::listing::page;
        use crate::objective::ObjectiveConfig;
        use esvit_nn::backbone::Family;
        let page = page();
        let mut section = String::new();
        let mut refusals = 0;
        for line in page.lines() {
            if let Some(title) = line.strip_prefix("## ") {
                section = title.to_owned();
            }
            let Some(key) = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()) else {
                continue;
            };
            let chosen = match section.split_once(": ") {
                Some(("model", family)) => {
                    assert!(Family::ALL.iter().any(|known| known.name() == family), "{family}");
                    format!("model.family={family}")
                }
                Some((_, name)) => {
                    assert!(ObjectiveConfig::NAMES.contains(&name), "{name}");
                    format!("objective.name={name}")
                }
                None => "seed=0".into(),
            };
            for value in ["-1", "0.5", "word", "[[1]]", "5000000000"] {
                let given = [&*chosen, &*format!("{key}={value}")]
                    .map(|text| parse_override(text).unwrap());
                let Err(error) = Config::resolve(given.into()) else { continue };
                let error = error.to_string();
                refusals += 1;
                for word in ["invalid ", "expected a s", "u64", "u32", "usize", "f64", "unknown v"]
                {
                    assert!(!error.contains(word), "{key}={value}: {error}");
                }
            }
        }
        assert!(refusals > 300, "{refusals}");
    }

    #[test]
    fn numbers_are_finite() {
        for (text, key) in [
            ("optim.lr=nan", "optim.lr"),
            ("optim.weight_decay=-inf", "optim.weight_decay"),
            ("views.global_scale=[0.5, inf]", "views.global_scale"),
            ("objective.weights={view=nan, region=1.0}", "objective.weights.view"),
        ] {
            let error = refused(&[text]);
            assert!(error.starts_with(&format!("bad value for `{key}` on the command line: `")));
            assert!(error.ends_with("` is not a finite number"), "{error}");
        }
        // A later layer has the last word.
        let file = parse_text("[optim]\nlr = nan", Origin::File("run.toml".into())).unwrap();
        let error = Config::resolve(vec![file.clone()]).unwrap_err().to_string();
        assert!(error.contains("`optim.lr` in `run.toml`: `NaN` is not"), "{error}");
        Config::resolve(vec![file, parse_override("optim.lr=0.1").unwrap()]).unwrap();
    }
}
