//! A typed configuration from layers of TOML: built-in defaults, a recipe, a file, the command
//! line.
//!
//! Tables are merged key by key, and later layers win; other values, arrays included, are replaced
//! whole. `true` and `false` for a table that has the key `enabled` are that key's value. A key that the defaults do not have is an error with a suggestion. [`none_word`] is for
//! fields of type `Option`, since TOML has no null.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use esvit_files::read_hint;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use toml::{Table, Value};

/// Bytes of the largest file of settings that is read.
const LARGEST: u64 = 16 << 20;
const NONE: &str = "none";
/// The key of a table that `true` and `false` in its place stand for.
const ENABLED: &str = "enabled";
const MAX_SUGGESTIONS: usize = 3;

/// Where a layer of the configuration comes from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in defaults.
    Defaults,
    /// A recipe that ships inside the program.
    Recipe(String),
    /// A TOML file.
    File(PathBuf),
    /// An `a.b=c` override.
    CommandLine,
    /// What a variant changes, in a comparison of several.
    Variant(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Defaults => write!(formatter, "in the defaults"),
            Self::Recipe(name) => write!(formatter, "in recipe `{name}`"),
            Self::File(path) => write!(formatter, "in `{}`", path.display()),
            Self::CommandLine => write!(formatter, "on the command line"),
            Self::Variant(name) => write!(formatter, "in variant `{name}`"),
        }
    }
}

/// Why a configuration could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read config `{path}`: {source}\nhint: {}", read_hint(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The text of a layer is not TOML.
    #[error("invalid TOML {origin}")]
    Syntax {
        /// Where the text is from.
        origin: Origin,
        /// The parser's message, with line and column.
        source: toml::de::Error,
    },
    /// An override is not of the form `a.b=c`.
    #[error("cannot use override `{text}`: {reason}")]
    Override {
        /// The override as given.
        text: String,
        /// What is wrong with it, and the right form.
        reason: &'static str,
    },
    /// A key that the configuration does not have.
    #[error("unknown key `{key}` {origin}{}", did_you_mean(.suggestions))]
    UnknownKey {
        /// The full dotted path of the key.
        key: String,
        /// The layer that has it.
        origin: Origin,
        /// Full dotted paths that may have been meant, most likely first.
        suggestions: Vec<String>,
    },
    /// A value of the wrong type, or outside what its type accepts.
    #[error("bad value for `{key}` {origin}: {message}")]
    Value {
        /// The full dotted path of the key.
        key: String,
        /// The last layer that sets it.
        origin: Origin,
        /// What was expected and what was found.
        message: String,
    },
    /// The defaults, which define the keys, cannot be written as TOML.
    #[error("cannot write the default configuration as TOML")]
    Defaults(#[source] toml::ser::Error),
}

fn did_you_mean(suggestions: &[String]) -> String {
    if suggestions.is_empty() {
        return String::new();
    }
    let quoted: Vec<String> = suggestions.iter().map(|path| format!("`{path}`")).collect();
    format!(", did you mean {}?", quoted.join(" or "))
}

/// The keys of a configuration and their defaults.
#[derive(Debug, Clone)]
pub struct Schema {
    known: Table,
}

impl Schema {
    /// The keys of `defaults`, which must name every key.
    pub fn new(defaults: Table) -> Self {
        Self { known: defaults }
    }

    /// The keys of the serialized `defaults`.
    ///
    /// # Errors
    /// [`ConfigError::Defaults`] if a value has no form in TOML.
    pub fn of<T: Serialize>(defaults: &T) -> Result<Self, ConfigError> {
        Table::try_from(defaults).map(Self::new).map_err(ConfigError::Defaults)
    }

    fn check(&self, layer: &Layer) -> Result<(), ConfigError> {
        self.check_table(&self.known, layer, &layer.table, "")
    }

    fn check_table(
        &self,
        known: &Table,
        layer: &Layer,
        given: &Table,
        prefix: &str,
    ) -> Result<(), ConfigError> {
        for (key, value) in given {
            let path = join(prefix, key);
            match (known.get(key), value) {
                (None, _) => {
                    return Err(ConfigError::UnknownKey {
                        suggestions: self.suggest(known, prefix, key),
                        key: path,
                        origin: layer.origin.clone(),
                    });
                }
                (Some(Value::Table(known)), Value::Table(given)) => {
                    self.check_table(known, layer, given, &path)?;
                }
                (Some(Value::Table(known)), Value::Boolean(_)) if known.contains_key(ENABLED) => {}
                (Some(Value::Table(inner)), other) if other.as_str() != Some(NONE) => {
                    let first = first_setting(&path, inner);
                    return Err(ConfigError::Value {
                        key: path,
                        origin: layer.origin.clone(),
                        message: format!(
                            "`{other}` is not a table: give its settings, such as `{first}`"
                        ),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The most similar key of the same table, then equal keys of other tables.
    fn suggest(&self, siblings: &Table, prefix: &str, key: &str) -> Vec<String> {
        let mut close: Vec<(usize, &String)> = siblings
            .keys()
            .filter_map(|sibling| spelling_distance(key, sibling).map(|far| (far, sibling)))
            .collect();
        close.sort();
        let mut suggestions: Vec<String> =
            close.first().map(|(_, sibling)| join(prefix, sibling)).into_iter().collect();
        collect_paths_to(&self.known, key, "", &mut suggestions);
        suggestions.truncate(MAX_SUGGESTIONS);
        suggestions
    }
}

/// The first setting of a table.
fn first_setting(path: &str, table: &Table) -> String {
    match table.iter().next() {
        Some((name, Value::Table(inner))) => first_setting(&join(path, name), inner),
        Some((name, _)) => join(path, name),
        None => path.to_owned(),
    }
}

/// Edit distance between two words, or None if one is hardly a misspelling of the other.
pub(crate) fn spelling_distance(given: &str, known: &str) -> Option<usize> {
    let given = given.to_lowercase().replace('-', "_");
    let distance = strsim::osa_distance(&given, known);
    let abbreviates = given.len() > 2 && known.starts_with(&given);
    let extends = known.len() > 2 && given.starts_with(known);
    let few_edits = distance <= (known.len() / 3).max(1);
    (few_edits || abbreviates || extends).then_some(distance)
}

fn collect_paths_to(table: &Table, key: &str, prefix: &str, paths: &mut Vec<String>) {
    for (name, value) in table {
        let path = join(prefix, name);
        if name == key && !paths.contains(&path) {
            paths.push(path.clone());
        }
        if let Value::Table(inner) = value {
            collect_paths_to(inner, key, &path, paths);
        }
    }
}

/// One source of settings; it may leave out any of them.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Where the settings are from.
    pub origin: Origin,
    /// The settings.
    pub table: Table,
}

/// Parses a layer from TOML `text`, for instance a recipe.
///
/// # Errors
/// [`ConfigError::Syntax`] with line and column.
pub fn parse_text(text: &str, origin: Origin) -> Result<Layer, ConfigError> {
    match text.parse() {
        Ok(table) => Ok(Layer { origin, table }),
        Err(source) => Err(ConfigError::Syntax { origin, source }),
    }
}

/// Reads a layer from a TOML file.
///
/// # Errors
/// [`ConfigError::Read`] and [`ConfigError::Syntax`], both with the path.
pub fn parse_file(path: &Path) -> Result<Layer, ConfigError> {
    let read = || {
        let mut text = String::new();
        let mut file = std::fs::File::open(path)?.take(LARGEST + 1);
        match file.read_to_string(&mut text)? as u64 > LARGEST {
            true => Err(io::Error::other("it is larger than any file of settings")),
            false => Ok(text),
        }
    };
    let text = read().map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse_text(&text, Origin::File(path.to_owned()))
}

/// Parses an `a.b=c` override. The value is TOML if it parses as such, else a string, so that
/// `model.name=swin_tiny` needs no quotes.
///
/// # Errors
/// [`ConfigError::Override`] if there is no `=`, no value or an empty key.
pub fn parse_override(text: &str) -> Result<Layer, ConfigError> {
    let refuse = |reason| ConfigError::Override { text: text.to_owned(), reason };
    let (path, value) =
        text.split_once('=').ok_or_else(|| refuse("there is no `=`, write `table.key=value`"))?;
    let keys: Vec<&str> = path.split('.').map(str::trim).collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(refuse("a part of the key is empty, write `table.key=value`"));
    }
    let value = value.trim();
    if value.is_empty() {
        return Err(refuse("there is no value, write `\"\"` for an empty text"));
    }
    Ok(Layer { origin: Origin::CommandLine, table: nested(keys, override_value(value)) })
}

fn override_value(text: &str) -> Value {
    let as_toml = format!("value = {text}").parse::<Table>().ok();
    // Text with a line break could set further keys; it is taken as a string.
    as_toml
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::from(text))
}

/// Merges `layers`, lowest first, over the defaults of `schema`, and deserializes the result.
///
/// # Errors
/// [`ConfigError::UnknownKey`] for a key that `schema` does not have, [`ConfigError::Value`] for
/// a value that its field cannot take. Both name the full key and the layer.
pub fn resolve<T: DeserializeOwned>(schema: &Schema, layers: &[Layer]) -> Result<T, ConfigError> {
    let mut merged = schema.known.clone();
    for layer in layers {
        schema.check(layer)?;
        merge(&mut merged, &layer.table);
    }
    serde_path_to_error::deserialize(Value::Table(merged)).map_err(|error| {
        let mut key = error.path().to_string();
        let names = |segment: &Segment| match segment {
            Segment::Map { key } => Some(key.clone()),
            _ => None,
        };
        let mut keys: Vec<String> = error.path().iter().map_while(names).collect();
        let mut message = error.inner().message();
        // Tables whose type depends on a word are read apart, and begin with the key within them.
        if let Some((inner, rest)) =
            message.strip_prefix('`').and_then(|message| message.split_once("`: "))
        {
            key = format!("{key}.{inner}");
            keys.extend(inner.split(['.', '[']).map(str::to_owned));
            message = rest;
        }
        ConfigError::Value { key, origin: last_origin(layers, &keys), message: message.to_owned() }
    })
}

/// The last layer that sets a key, or the table or list that it is in.
fn last_origin(layers: &[Layer], keys: &[String]) -> Origin {
    let sets_it = |layer: &Layer| {
        let (first, rest) = keys.split_first()?;
        let mut value = layer.table.get(first)?;
        for key in rest {
            match value {
                Value::Table(table) => value = table.get(key)?,
                _ => break,
            }
        }
        Some(())
    };
    let last = layers.iter().rev().find(|layer| sets_it(layer).is_some());
    last.map_or(Origin::Defaults, |layer| layer.origin.clone())
}

/// Merges `over` into `base`, key by key.
pub fn merge(base: &mut Table, over: &Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (Some(Value::Table(base)), switch @ Value::Boolean(_)) => {
                drop(base.insert(ENABLED.into(), switch.clone()));
            }
            (Some(switch @ Value::Boolean(_)), Value::Table(over)) => {
                let mut table = Table::from_iter([(ENABLED.to_owned(), switch.clone())]);
                merge(&mut table, over);
                *switch = table.into();
            }
            _ => drop(base.insert(key.clone(), value.clone())),
        }
    }
}

/// The value of a dotted key in a layer's table, if it sets it.
pub(crate) fn value_of<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(a, b)| (a, Some(b)));
    match (table.get(first)?, rest) {
        (value, None) => Some(value),
        (Value::Table(inner), Some(rest)) => value_of(inner, rest),
        (switch @ Value::Boolean(_), Some(ENABLED)) => Some(switch),
        _ => None,
    }
}

fn nested<'a>(
    keys: impl IntoIterator<Item = &'a str, IntoIter: DoubleEndedIterator>,
    value: Value,
) -> Table {
    let mut keys = keys.into_iter();
    let Some(first) = keys.next() else { return Table::new() };
    let inner =
        keys.rev().fold(value, |inner, key| Table::from_iter([(key.to_owned(), inner)]).into());
    Table::from_iter([(first.to_owned(), inner)])
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

/// A module that serializes `None` as a word, for `#[serde(with = "..")]` on an `Option` field.
///
/// The key is then part of the serialized defaults, can be cleared by that word, and a stored `None`
/// replaces a default that is `Some`.
macro_rules! word {
    ($module:ident, $word:expr) => {
        #[doc = concat!("`Option` fields whose `None` is written `", $word, "`.")]
        pub mod $module {
            use serde::de::Error;
            use serde::{Deserialize, Deserializer, Serialize, Serializer};

            /// The value, or the word.
            ///
            /// # Errors
            /// Those of the value and of the format.
            pub fn serialize<T: Serialize, S: Serializer>(
                value: &Option<T>,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                match value {
                    Some(value) => value.serialize(serializer),
                    None => serializer.serialize_str($word),
                }
            }

            /// `None` for the word, else the value.
            ///
            /// # Errors
            /// Those of the value and of the format.
            pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Option<T>, D::Error> {
                let value = toml::Value::deserialize(deserializer)?;
                if value.as_str() == Some($word) {
                    return Ok(None);
                }
                T::deserialize(value).map(Some).map_err(|error| D::Error::custom(error.message()))
            }
        }
    };
}

word!(none_word, "none");
word!(auto_word, "auto");

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Config {
        seed: u64,
        model: Model,
        views: Views,
        optim: Optim,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Model {
        name: String,
        #[serde(with = "none_word")]
        weights: Option<String>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Views {
        local_sizes: Vec<usize>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Optim {
        name: Optimizer,
        lr: f64,
        #[serde(with = "none_word")]
        clip: Option<f64>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Optimizer {
        AdamW,
        Lars,
    }

    fn defaults() -> Config {
        Config {
            seed: 0,
            model: Model { name: "swin_tiny".to_owned(), weights: None },
            views: Views { local_sizes: vec![96] },
            optim: Optim { name: Optimizer::AdamW, lr: 1e-3, clip: Some(3.0) },
        }
    }

    fn schema() -> Schema {
        Schema::of(&defaults()).expect("defaults are TOML")
    }

    fn resolve_overrides(overrides: &[&str]) -> Result<Config, ConfigError> {
        let layers: Result<Vec<Layer>, _> =
            overrides.iter().map(|text| parse_override(text)).collect();
        resolve(&schema(), &layers?)
    }

    #[test]
    fn later_layers_win_and_arrays_are_replaced() {
        let recipe = "seed = 1\n[views]\nlocal_sizes = [96, 80, 64]\n[optim]\nlr = 1";
        let recipe = parse_text(recipe, Origin::Recipe("swin".to_owned())).expect("TOML");
        let layers = [
            recipe,
            parse_override("views.local_sizes=[32]").expect("override"),
            parse_override("optim.clip=none").expect("override"),
            parse_override("model.weights = a=b.pth").expect("override"),
        ];
        let config: Config = resolve(&schema(), &layers).expect("valid");
        let mut expected = Config { seed: 1, ..defaults() };
        expected.views.local_sizes = vec![32];
        expected.optim = Optim { lr: 1.0, clip: None, ..expected.optim };
        expected.model.weights = Some("a=b.pth".to_owned());
        assert_eq!(config, expected);
    }

    #[test]
    fn no_layers_give_the_defaults_and_a_stored_config_reads_back() {
        assert_eq!(resolve_overrides(&[]).expect("defaults"), defaults());
        let cleared = resolve_overrides(&["optim.clip=none"]).expect("valid");
        let stored = toml::to_string(&cleared).expect("TOML");
        let layer = parse_text(&stored, Origin::File("config.toml".into())).expect("TOML");
        assert_eq!(resolve::<Config>(&schema(), &[layer]).expect("valid"), cleared);
    }

    #[test]
    fn none_clears_a_plain_option() {
        let overrides = ["model.weights=a.pth", "model.weights=none"];
        assert_eq!(resolve_overrides(&overrides).expect("valid").model.weights, None);
    }

    #[test]
    fn an_override_is_toml_or_plain_text() {
        let cases = [
            ("5e-4", Value::from(5e-4)),
            ("[96, 64]", Value::Array(vec![Value::from(96), Value::from(64)])),
            ("true", Value::from(true)),
            ("swin_tiny", Value::from("swin_tiny")),
            ("\"42\"", Value::from("42")),
            ("1\nseed = 2", Value::from("1\nseed = 2")),
            ("[96", Value::from("[96")),
        ];
        for (text, expected) in cases {
            assert_eq!(override_value(text), expected, "{text}");
        }
    }

    #[test]
    fn every_mistake_names_its_key_and_place() {
        let cases = [
            ("optim.rl=1", "unknown key `optim.rl`, did you mean `optim.lr`?"),
            ("lr=1", "unknown key `lr`, did you mean `optim.lr`?"),
            ("optimizer.lr=1", "unknown key `optimizer`, did you mean `optim`?"),
            (
                "views.Local-Size=3",
                "unknown key `views.Local-Size`, did you mean `views.local_sizes`?",
            ),
            (
                "views.name=3",
                "unknown key `views.name`, did you mean `model.name` or `optim.name`?",
            ),
            ("views.zzz=3", "unknown key `views.zzz`"),
            ("model.weight=x", "unknown key `model.weight`, did you mean `model.weights`?"),
            ("seed.x=1", "bad value for `seed`: invalid type: map, expected u64"),
            (
                "optim=3",
                "bad value for `optim`: `3` is not a table: give its settings, such as `optim.clip`",
            ),
            ("optim.lr=a", "bad value for `optim.lr`: invalid type: string \"a\", expected f64"),
            ("optim.clip=[]", "bad value for `optim.clip`: invalid type: sequence, expected f64"),
            (
                "optim.name=adam",
                "bad value for `optim.name`: unknown variant `adam`, expected `adamw` or `lars`",
            ),
            (
                "views.local_sizes=[96,-1]",
                "bad value for `views.local_sizes[1]`: invalid value: integer `-1`, expected usize",
            ),
            ("seed", "cannot use override `seed`: there is no `=`, write `table.key=value`"),
            (
                "a.=3",
                "cannot use override `a.=3`: a part of the key is empty, write `table.key=value`",
            ),
            (
                "seed=",
                "cannot use override `seed=`: there is no value, write `\"\"` for an empty text",
            ),
        ];
        for (text, expected) in cases {
            let error = resolve_overrides(&[text]).expect_err(text).to_string();
            assert_eq!(error.replace(" on the command line", ""), expected, "{text}");
        }
        let error = resolve_overrides(&["sed=1"]).expect_err("unknown").to_string();
        assert_eq!(error, "unknown key `sed` on the command line, did you mean `seed`?");
    }

    #[test]
    fn a_type_error_names_the_last_layer_that_set_the_key() {
        let layers = [
            parse_text("[optim]\nlr = \"slow\"", Origin::File("run.toml".into())).expect("TOML"),
            parse_override("seed=3").expect("override"),
        ];
        let error = resolve::<Config>(&schema(), &layers).expect_err("not a number");
        assert!(error.to_string().starts_with("bad value for `optim.lr` in `run.toml`"), "{error}");
    }

    #[test]
    fn file_errors_name_the_file() {
        let missing = parse_file(Path::new("/nonexistent/run.toml")).expect_err("missing");
        let missing = missing.to_string();
        assert!(missing.starts_with("cannot read config `/nonexistent/run.toml`: "), "{missing}");
        assert!(missing.ends_with("\nhint: check the path"), "{missing}");
        let syntax = parse_text("a = ", Origin::File("run.toml".into())).expect_err("cut off");
        assert_eq!(syntax.to_string(), "invalid TOML in `run.toml`");
    }

    #[test]
    fn of_two_layers_that_set_a_key_the_last_is_named() {
        let layers = [
            parse_text("[optim]\nlr = 1", Origin::Recipe("swin".into())).expect("TOML"),
            parse_text("[optim]\nlr = \"slow\"", Origin::File("run.toml".into())).expect("TOML"),
            parse_text("[optim]\nname = \"lars\"", Origin::File("other.toml".into()))
                .expect("TOML"),
        ];
        let error = resolve::<Config>(&schema(), &layers).expect_err("not a number").to_string();
        assert!(error.starts_with("bad value for `optim.lr` in `run.toml`"), "{error}");
        let wrong = [parse_text("[optim]\nrl = 1", Origin::Recipe("swin".into())).expect("TOML")];
        let error = resolve::<Config>(&schema(), &wrong).expect_err("unknown").to_string();
        assert!(error.starts_with("unknown key `optim.rl` in recipe `swin`, did"), "{error}");
    }

    /// `true` and `false` stand for a table that can be switched on and off, in any order with its keys.
    #[test]
    fn a_switch_stands_for_its_table() {
        let table = "[region]\nenabled = true\ntokens = 0\n[views]\ntokens = 0";
        let schema = Schema::new(table.parse().expect("TOML"));
        for (texts, enabled, tokens) in [
            (&["region=false"][..], false, 0),
            (&["region=false", "region.tokens=3"], false, 3),
            (&["region.tokens=3", "region=false"], false, 3),
            (&["region=false", "region.enabled=true"], true, 0),
            (&["region.enabled=false", "region=true", "region.tokens=3"], true, 3),
        ] {
            let layers: Vec<Layer> =
                texts.iter().map(|text| parse_override(text).expect("override")).collect();
            let mut joined = Table::new();
            layers.iter().for_each(|layer| merge(&mut joined, &layer.table));
            let joined = vec![Layer { origin: Origin::CommandLine, table: joined }];
            for layers in [layers, joined] {
                let found: Table = resolve(&schema, &layers).expect("valid");
                assert_eq!(value_of(&found, "region.enabled"), Some(&enabled.into()), "{texts:?}");
                assert_eq!(value_of(&found, "region.tokens"), Some(&tokens.into()), "{texts:?}");
            }
        }
        let layer = parse_override("region=false").expect("override");
        assert_eq!(value_of(&layer.table, "region.enabled"), Some(&false.into()));
        assert_eq!(value_of(&layer.table, "region.tokens"), None);
        for (text, found) in [("views=false", "`false` is"), ("region=1", "`1` is")] {
            let layer = parse_override(text).expect("override");
            let error = schema.check(&layer).expect_err(text).to_string();
            assert!(error.contains(&format!("{found} not a table: give")), "{error}");
        }
    }

    #[test]
    fn suggestions_are_few_and_near() {
        let table = "[a]\nlevel = 1\n[b]\nlevel = 1\n[c]\nlevel = 1\n[d]\nlevel = 1\n\
                     [e]\nbottleneck = 1\nlr = 1";
        let schema = Schema::new(table.parse().expect("TOML"));
        let message = |text: &str| {
            let layer = parse_override(text).expect("override");
            schema.check(&layer).expect_err(text).to_string()
        };
        for (text, expected) in [
            ("e.level=1", ", did you mean `a.level` or `b.level` or `c.level`?"),
            // Three of ten letters, and four.
            ("e.bottlexxxk=1", ", did you mean `e.bottleneck`?"),
            ("e.bottxxxxck=1", ""),
            // The beginning of a key, of three letters at least, and a longer word.
            ("e.bot=1", ", did you mean `e.bottleneck`?"),
            ("e.bo=1", ""),
            ("e.bottleneck_width_of_all=1", ", did you mean `e.bottleneck`?"),
            ("e.lrrrr=1", ""),
        ] {
            let expected = format!(
                "unknown key `{}` on the command line{expected}",
                text.trim_end_matches("=1")
            );
            assert_eq!(message(text), expected);
        }
    }
}
