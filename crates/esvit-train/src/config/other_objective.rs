//! Settings of another objective than the one that is chosen, which say so.

use std::fmt;

use toml::{Table, Value};

use super::{ConfigError, TextError};
use crate::config_text::{Layer, Origin, value_of};
use crate::objective::ObjectiveConfig;

/// A setting that the chosen objective does not have, and others have.
#[derive(Debug)]
pub struct OtherObjective {
    /// The full dotted path of the setting.
    pub key: String,
    /// The option that stands for it, if a program has one.
    pub option: Option<&'static str>,
    origin: Origin,
    /// The objective that is chosen.
    chosen: &'static str,
    /// Those that have the setting.
    owners: Vec<&'static str>,
    /// A setting of the same name that the chosen one has.
    instead: Option<String>,
}

impl fmt::Display for OtherObjective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, option, origin, chosen, owners, instead } = self;
        write!(f, "`{key}`")?;
        if let Some(option) = option {
            write!(f, " (`--{option}`)")?;
        }
        let (noun, choose) = match &owners[..] {
            [owner] => ("objective", format!("choose that with `objective.name={owner}`")),
            _ => ("objectives", "choose one of them with `objective.name`".into()),
        };
        let otherwise = match instead {
            Some(instead) => format!("give `{instead}`, which `{chosen}` has"),
            None => "leave it out".into(),
        };
        let owners = owners.join("`, `");
        write!(
            f,
            " {origin} is a setting of the {noun} `{owners}`, and not of `{chosen}`\n\
             hint: {choose}, or {otherwise}"
        )
    }
}

/// The settings of an objective, with their defaults.
fn settings_of(name: &str) -> Table {
    let objective = ObjectiveConfig::named(name);
    let table = objective.and_then(|objective| Table::try_from(objective).ok());
    table.unwrap_or_default()
}

/// The path of a setting of this name, wherever it is in a table.
fn path_to(table: &Table, name: &str) -> Option<String> {
    if table.contains_key(name) {
        return Some(name.to_owned());
    }
    let below = |(key, value): (&String, &Value)| {
        Some(format!("{key}.{}", path_to(value.as_table()?, name)?))
    };
    table.iter().find_map(below)
}

/// The first setting of a layer at a key, or in the table that is there: its full path.
fn first_setting(layer: &Layer, key: &str) -> Option<String> {
    let mut path = key.to_owned();
    let mut value = value_of(&layer.table, key)?;
    while let Value::Table(table) = value {
        let (name, inner) = table.iter().next()?;
        path = format!("{path}.{name}");
        value = inner;
    }
    Some(path)
}

/// An error of reading `layers` for the objective `chosen`: of a key that other objectives have, it is told.
pub(super) fn explained(error: TextError, chosen: &'static str, layers: &[Layer]) -> ConfigError {
    let TextError::UnknownKey { key: unknown, origin, .. } = &error else { return error.into() };
    let mut of_origin = layers.iter().filter(|layer| layer.origin == *origin);
    let given = of_origin.find_map(|layer| first_setting(layer, unknown));
    for key in given.iter().chain([unknown]) {
        let Some(within) = key.strip_prefix("objective.") else { continue };
        let has = |name: &&str| value_of(&settings_of(name), within).is_some();
        let owners: Vec<&'static str> =
            ObjectiveConfig::NAMES.iter().copied().filter(has).collect();
        if owners.is_empty() {
            continue;
        }
        let last = within.rsplit('.').next().unwrap_or(within);
        let instead = path_to(&settings_of(chosen), last);
        return ConfigError::OtherObjective(Box::new(OtherObjective {
            key: key.clone(),
            option: None,
            origin: origin.clone(),
            chosen,
            owners,
            instead: instead.map(|path| format!("objective.{path}")),
        }));
    }
    error.into()
}
