//! Variants of a run, which a comparison trains side by side.

mod budget;
mod judged;
mod stored;

use std::path::{Path, PathBuf};

use esvit_settings::SettingError;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use budget::{BudgetError, share_budget};
pub use judged::share_checks;
pub use stored::{Asked, Comparison, Planned, Run, run_name};

use crate::config::{ConfigError, TextError};
use crate::config_text::{self, Layer, Origin, merge, value_of};
use crate::span::Span;

/// One of the runs that are compared: what it changes of the settings that all have in common.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Its name, with which the folders of its runs begin.
    pub name: String,
    /// The recipe that it names.
    pub recipe: Option<String>,
    /// The weights that it begins with.
    pub weights: Option<Weights>,
    /// The variant that it goes on from.
    pub continues: Option<Continues>,
    /// The settings that it changes.
    pub layer: Layer,
}

/// The place in another variant's run from which one goes on, with its whole state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Continues {
    /// The other variant.
    pub from: String,
    /// The length of its run up to there.
    pub at: Span,
}

/// The weights of a file, from which runs begin with all else afresh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// The file.
    pub path: PathBuf,
    /// The network in it, if one is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// What a variant's runs begin with, as it is given.
#[derive(Debug, Clone, Default)]
pub struct Beginning {
    /// File of weights.
    pub init_from: Option<PathBuf>,
    /// Network in it.
    pub key: Option<String>,
    /// Another variant.
    pub continue_from: Option<String>,
    /// The length of that one's run up to there.
    pub continue_at: Option<Span>,
}

/// The settings that all variants have in common, with what gives them.
const SHARED: [(&str, &str, &str); 4] = [
    ("seed", "all variants have the same seeds", "`--seeds`"),
    ("train.epochs", SAME_LENGTH, GIVE_LENGTH),
    ("train.steps", SAME_LENGTH, GIVE_LENGTH),
    ("train.time", SAME_LENGTH, GIVE_LENGTH),
];
const SAME_LENGTH: &str = "all variants have the same length";
const GIVE_LENGTH: &str = "`--epochs`, `--steps` or `--time`";

impl Variant {
    /// A variant with the settings of `layers`, later ones over earlier ones.
    ///
    /// # Errors
    /// When the name is no part of a file's name, a setting is one that all variants share, or of what it begins
    /// with a part is missing or too much.
    pub fn new(
        name: &str,
        recipe: Option<String>,
        beginning: Beginning,
        layers: Vec<Layer>,
    ) -> Result<Self, ConfigError> {
        check_name(name)?;
        let mut table = Table::new();
        layers.iter().for_each(|layer| merge(&mut table, &layer.table));
        for (key, why, option) in SHARED {
            if let Some(value) = value_of(&table, key) {
                let need = format!("{why}\nhint: give it for all of them, with {option}");
                let key = format!("{key}` of variant `{name}");
                return Err(SettingError::new(key, value, need).into());
            }
        }
        let fail = |message: String| Err(ConfigError::Conflict(message));
        let Beginning { init_from, key, continue_from, continue_at } = beginning;
        let weights = match (init_from, key) {
            (Some(path), key) => Some(Weights { path, key }),
            (None, None) => None,
            (None, Some(key)) => {
                return fail(format!(
                    "variant `{name}` names the network `{key}` and no file of it\n\
                     hint: add `init_from = \"PATH\"` (on the command line `--init-from PATH`)"
                ));
            }
        };
        if let (Some(weights), Some(from)) = (&weights, &continue_from) {
            return fail(format!(
                "variant `{name}` begins with the weights of `{}` and continues from `{from}`\n\
                 hint: keep one of the two",
                weights.path.display()
            ));
        }
        let continues = match (continue_from, continue_at) {
            (Some(from), Some(at)) => Some(Continues { from, at }),
            (None, None) => None,
            (Some(from), None) => {
                return fail(format!(
                    "variant `{name}` continues from `{from}` and does not say after how much of its \
                     run\nhint: add `continue_at = \"50%\"` (on the command line `--continue-at 50%`)"
                ));
            }
            (None, Some(at)) => {
                return fail(format!(
                    "variant `{name}` continues at {at} and does not say from which one\n\
                     hint: add `continue_from = \"NAME\"` (on the command line `--continue-from NAME`)"
                ));
            }
        };
        let layer = Layer { origin: Origin::Variant(name.into()), table };
        Ok(Self { name: name.into(), recipe, weights, continues, layer })
    }

    /// A variant of a file: its name, recipe and start, and beside them the settings that it changes.
    fn of_table(mut table: Table, file: &Path) -> Result<Self, ConfigError> {
        let fail = |message: String| {
            let message = format!("a `[[variant]]` in `{}` {message}", file.display());
            Err(ConfigError::Conflict(message))
        };
        let mut word = |key: &str| match table.remove(key) {
            None => Ok(None),
            Some(Value::String(word)) => Ok(Some(word)),
            Some(other) => Err((key.to_owned(), other)),
        };
        let words = ["name", "recipe", "init_from", "key", "continue_from", "continue_at"];
        let words = words.map(&mut word);
        if let Some(Err((key, value))) = words.iter().find(|word| word.is_err()) {
            return fail(format!(
                "has `{key} = {value}`\nhint: write a text, such as `{key} = \"...\"`"
            ));
        }
        let [name, recipe, init_from, key, continue_from, at] =
            words.map(|word| word.unwrap_or_default());
        let Some(name) = name else {
            return fail("has no name\nhint: add `name = \"...\"`".into());
        };
        let at = at.map(|at| at.parse::<Span>()).transpose();
        let at = at.map_err(|error| {
            ConfigError::Conflict(format!("`continue_at` of variant `{name}`: {error}"))
        })?;
        let origin = Origin::File(file.into());
        let init_from = init_from.map(PathBuf::from);
        let beginning = Beginning { init_from, key, continue_from, continue_at: at };
        Self::new(&name, recipe, beginning, vec![Layer { origin, table }])
    }
}

/// The variants in a file of `[[variant]]` tables.
///
/// # Errors
/// When the file cannot be read, or a table is no variant.
pub fn read(file: &Path) -> Result<Vec<Variant>, ConfigError> {
    let Layer { origin, mut table } = config_text::parse_file(file)?;
    let variants = table.remove("variant");
    if let Some(key) = table.keys().next() {
        let suggestions = vec!["variant".to_owned()];
        return Err(TextError::UnknownKey { key: key.clone(), origin, suggestions }.into());
    }
    let mut found = Vec::new();
    for variant in variants.as_ref().and_then(Value::as_array).into_iter().flatten() {
        match variant {
            Value::Table(table) => found.push(Variant::of_table(table.clone(), file)?),
            other => {
                return Err(ConfigError::Conflict(format!(
                    "`{}` has the variant `{other}`\nhint: write a table, `[[variant]]`",
                    file.display()
                )));
            }
        }
    }
    if found.is_empty() {
        return Err(ConfigError::Conflict(format!(
            "`{}` has no variants\nhint: each is a table, `[[variant]]`, with its `name`",
            file.display()
        )));
    }
    Ok(found)
}

/// Checks that names are different, and that variants go on from earlier ones.
///
/// # Errors
/// Names the first variant that does not.
pub fn check(variants: &[Variant]) -> Result<(), ConfigError> {
    for (index, variant) in variants.iter().enumerate() {
        let (earlier, name) = (&variants[..index], &variant.name);
        let is_there = |name: &str| earlier.iter().any(|other| other.name == name);
        if is_there(name) {
            return Err(ConfigError::Conflict(format!(
                "two variants are called `{name}`\nhint: give one another name"
            )));
        }
        if let Some(Continues { from, .. }) = &variant.continues
            && !is_there(from)
        {
            let known: Vec<String> =
                earlier.iter().map(|other| format!("`{}`", other.name)).collect();
            let hint = match known.is_empty() {
                true => "put the variant that it continues from before it".to_owned(),
                false => format!("before it there are {}", known.join(", ")),
            };
            return Err(ConfigError::Conflict(format!(
                "variant `{name}` continues from `{from}`, and no variant before it is called that\n\
                 hint: {hint}"
            )));
        }
    }
    Ok(())
}

/// A name becomes a part of the name of a folder.
fn check_name(name: &str) -> Result<(), ConfigError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.+".contains(c);
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_plain) {
        return Ok(());
    }
    Err(ConfigError::Conflict(format!(
        "`{name}` is no name of a variant: letters, digits and `-`, `_`, `.`, `+` are\n\
         hint: on the command line, write `--run \"NAME: OPTIONS\"`"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_text::parse_override;

    fn variant(name: &str, settings: &[&str]) -> Result<Variant, ConfigError> {
        let layers = settings.iter().map(|text| parse_override(text).unwrap()).collect();
        Variant::new(name, None, Beginning::default(), layers)
    }

    fn from_text(text: &str) -> Result<Vec<Variant>, ConfigError> {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("variants.toml");
        std::fs::write(&file, text).unwrap();
        read(&file)
    }

    #[test]
    fn a_file_lists_variants_in_their_order() {
        let variants = from_text(
            "[[variant]]\nname = \"view\"\nobjective.region = false\n\
             [[variant]]\nname = \"both\"\nrecipe = \"materials\"\ninit_from = \"w\"\nkey = \"student\"\n\
             [[variant]]\nname = \"added\"\ncontinue_from = \"view\"\ncontinue_at = \"50%\"\n\
             [variant.objective]\nregion = true\n",
        )
        .unwrap();
        check(&variants).unwrap();
        let names: Vec<&str> = variants.iter().map(|variant| variant.name.as_str()).collect();
        assert_eq!(names, ["view", "both", "added"]);
        assert_eq!(variants[1].recipe.as_deref(), Some("materials"));
        assert!(variants[1].layer.table.is_empty() && variants[0].weights.is_none());
        let weights = Weights { path: "w".into(), key: Some("student".into()) };
        assert_eq!(variants[1].weights, Some(weights));
        let continues = Continues { from: "view".into(), at: Span::Percent(50.0) };
        assert_eq!(variants[2].continues, Some(continues));
        for (variant, region) in [(0, false), (2, true)] {
            let Variant { layer, .. } = &variants[variant];
            assert_eq!(value_of(&layer.table, "objective.region"), Some(&region.into()));
        }
        assert_eq!(variants[0].layer.origin.to_string(), "in variant `view`");
    }

    #[test]
    fn what_is_no_list_of_variants_is_told() {
        for (text, part) in [
            ("", "has no variants\nhint: "),
            ("variant = [1]", "has the variant `1`\nhint: "),
            ("[[variants]]\nname = \"a\"", "unknown key `variants` in `"),
            ("[[variant]]\nseed = 1", "has no name\nhint: "),
            ("[[variant]]\nname = 3", "has `name = 3`\nhint: "),
            ("[[variant]]\nname = \"a b\"", "`a b` is no name of a variant"),
            (
                "[[variant]]\nname = \"a\"\ncontinue_at = \"half\"",
                "`continue_at` of variant `a`: `half`",
            ),
            (
                "[[variant]]\nname = \"a\"\ncontinue_at = \"5%\"",
                "does not say from which one\nhint: ",
            ),
            ("[[variant]]\nname = \"a\"\ncontinue_from = \"b\"", "does not say after how much"),
            (
                "[[variant]]\nname = \"a\"\nkey = \"student\"",
                "variant `a` names the network `student` and no file of it\nhint: add `init_from",
            ),
            (
                "[[variant]]\nname = \"a\"\ninit_from = \"w\"\ncontinue_from = \"b\"",
                "variant `a` begins with the weights of `w` and continues from `b`\nhint: ",
            ),
            ("[[variant]]\nname = \"a\"\nseed = 1", "`seed` of variant `a` is 1: "),
            (
                "[[variant]]\nname = \"a\"\n[variant.train]\nsteps = 7",
                "`train.steps` of variant `a` is 7",
            ),
        ] {
            let error = from_text(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn later_settings_win() {
        let variant = variant("a", &["optim.lr=1", "optim.name=sgd", "optim.lr=2"]).unwrap();
        assert_eq!(value_of(&variant.layer.table, "optim.lr"), Some(&2.into()));
        assert_eq!(value_of(&variant.layer.table, "optim.name"), Some(&"sgd".into()));
    }

    #[test]
    fn names_are_different_and_starts_come_first() {
        let [a, b] = ["a", "b"].map(|name| variant(name, &[]).unwrap());
        let after = |from: &str| {
            let beginning = Beginning {
                continue_from: Some(from.to_owned()),
                continue_at: Some(Span::Steps(3)),
                ..Beginning::default()
            };
            Variant::new("c", None, beginning, Vec::new()).unwrap()
        };
        check(&[a.clone(), b.clone(), after("b")]).unwrap();
        let error = |variants: &[Variant]| check(variants).unwrap_err().to_string();
        assert!(error(&[a.clone(), a.clone()]).starts_with("two variants are called `a`"));
        let later = error(&[a, after("b"), b]);
        assert!(
            later.contains("continues from `b`") && later.ends_with("there are `a`"),
            "{later}"
        );
        assert!(error(&[after("c")]).contains("no variant before it is called that"));
        for name in ["", "-a", "a/b", "..", "a b", "ä"] {
            assert!(variant(name, &[]).is_err(), "{name}");
        }
    }
}
