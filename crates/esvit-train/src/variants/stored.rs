//! A comparison in its folder: what was asked for, and the settings that came of it.

use std::io::Write;
use std::path::Path;

use esvit_files::{FileError, write_atomically};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{Continues, Weights};
use crate::Config;
use crate::config::{ConfigError, TextError, differences};
use crate::config_text::{self, Layer, Origin};

/// What is asked for of a variant, with what all variants have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Its name.
    pub name: String,
    /// Its recipe, or that of the variant that it goes on from.
    pub recipe: String,
    /// The weights that it begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// What it goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<Continues>,
    /// The settings that are given.
    pub given: Table,
}

/// A variant whose settings are decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// What was asked for.
    pub asked: Asked,
    /// The step of the other variant's run from which it goes on.
    pub start: Option<u64>,
    /// All settings, but for the seed.
    pub config: Config,
}

/// Several variants, each with several seeds.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The seeds.
    pub seeds: Vec<u64>,
    /// The variants, each after the one that it goes on from.
    pub variants: Vec<Planned>,
}

/// A run of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Its variant.
    pub variant: &'a Planned,
    /// Its seed.
    pub seed: u64,
}

impl Run<'_> {
    /// The name of its folder.
    pub fn name(&self) -> String {
        run_name(&self.variant.asked.name, self.seed)
    }

    /// The name of the run that it goes on from, if it does.
    pub fn base(&self) -> Option<String> {
        let continues = self.variant.asked.continues.as_ref()?;
        Some(run_name(&continues.from, self.seed))
    }

    /// Its settings.
    pub fn config(&self) -> Config {
        Config { seed: self.seed, ..self.variant.config.clone() }
    }
}

/// The name of the folder of a variant's run.
pub fn run_name(variant: &str, seed: u64) -> String {
    format!("{variant}-{seed}")
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    seeds: Vec<u64>,
    variant: Vec<StoredVariant>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredVariant {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start: Option<u64>,
    asked: Asked,
    settings: Table,
}

impl Comparison {
    /// Reads the file of a comparison.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let Layer { origin, table } = config_text::parse_file(path)?;
        let Stored { seeds, variant } = Stored::deserialize(Value::Table(table))
            .map_err(|source| TextError::Syntax { origin: origin.clone(), source })?;
        let variants = variant.into_iter().map(|StoredVariant { start, asked, settings }| {
            let layer = Layer { origin: Origin::File(path.into()), table: settings };
            Ok(Planned { asked, start, config: Config::resolve(vec![layer])? })
        });
        Ok(Self { seeds, variants: variants.collect::<Result<_, ConfigError>>()? })
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// [`FileError`] with the path.
    ///
    /// # Panics
    /// If a number is too large for TOML, which the settings it was made of cannot hold.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        let variant = self.variants.iter().map(|Planned { asked, start, config }| StoredVariant {
            start: *start,
            asked: asked.clone(),
            settings: Table::try_from(config).expect("settings are a table of plain values"),
        });
        let stored = Stored { seeds: self.seeds.clone(), variant: variant.collect() };
        let text = toml::to_string(&stored).expect("settings are tables of plain values");
        write_atomically(path, |file| file.write_all(text.as_bytes()))
    }

    /// Its runs: all variants with the first seed, then with the second, and so on.
    pub fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        let of_seed =
            move |&seed: &u64| self.variants.iter().map(move |variant| Run { variant, seed });
        self.seeds.iter().flat_map(of_seed)
    }

    /// The steps of a variant's runs from which runs of others go on, ascending.
    pub fn starts_from(&self, variant: &str) -> Vec<u64> {
        let goes_on = |other: &&Planned| {
            other.asked.continues.as_ref().is_some_and(|continues| continues.from == variant)
        };
        let mut steps: Vec<u64> =
            self.variants.iter().filter(goes_on).filter_map(|other| other.start).collect();
        steps.sort_unstable();
        steps.dedup();
        steps
    }

    /// What is asked for now and was not then. Seeds may be added.
    pub fn changes(&self, seeds: &[u64], asked: &[Asked]) -> Vec<String> {
        let mut found = Vec::new();
        if !seeds.starts_with(&self.seeds) {
            found.push(format!("seeds = {seeds:?} (it was {:?})", self.seeds));
        }
        let before: Vec<&Asked> = self.variants.iter().map(|variant| &variant.asked).collect();
        let names = |asked: &[&Asked]| asked.iter().map(|a| a.name.clone()).collect::<Vec<_>>();
        let now: Vec<&Asked> = asked.iter().collect();
        if names(&now) != names(&before) {
            let (now, before) = (names(&now).join(", "), names(&before).join(", "));
            found.push(format!("variants = {now} (it was {before})"));
            return found;
        }
        for (now, before) in now.into_iter().zip(before) {
            found.extend(
                now.changes(before).into_iter().map(|change| format!("`{}`: {change}", now.name)),
            );
        }
        found
    }
}

impl Asked {
    fn changes(&self, before: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.recipe != before.recipe {
            found.push(format!("recipe = {} (it was {})", self.recipe, before.recipe));
        }
        if self.weights != before.weights {
            let words = |weights: &Option<Weights>| match weights {
                Some(Weights { path, key: None }) => path.display().to_string(),
                Some(Weights { path, key: Some(key) }) => format!("{key} of {}", path.display()),
                None => "none".into(),
            };
            let [now, before] = [&self.weights, &before.weights].map(words);
            found.push(format!("init_from = {now} (it was {before})"));
        }
        if self.continues != before.continues {
            let words = |continues: &Option<Continues>| match continues {
                Some(Continues { from, at }) => format!("{from} at {at}"),
                None => "none".into(),
            };
            let [now, before] = [&self.continues, &before.continues].map(words);
            found.push(format!("continue_from = {now} (it was {before})"));
        }
        found.extend(differences(&self.given, &before.given));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_text::parse_override;
    use crate::span::Span;

    fn asked(name: &str, setting: &str) -> Asked {
        let given = parse_override(setting).unwrap().table;
        let (name, recipe) = (name.into(), "materials".into());
        Asked { name, recipe, weights: None, continues: None, given }
    }

    fn comparison() -> Comparison {
        let mut added = asked("added", "optim.lr=0.5");
        added.continues = Some(Continues { from: "view".into(), at: Span::Percent(50.0) });
        let mut view = asked("view", "optim.lr=0.25");
        view.weights = Some(Weights { path: "runs/a".into(), key: Some("student".into()) });
        let planned = |asked, start| Planned { asked, start, config: Config::default() };
        let variants = vec![planned(view, None), planned(added, Some(7))];
        Comparison { seeds: vec![0, 3], variants }
    }

    #[test]
    fn a_comparison_is_read_as_it_was_written() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("compare.toml");
        comparison().write(&path).unwrap();
        assert_eq!(Comparison::read(&path).unwrap(), comparison());
        std::fs::write(&path, "seeds = [0]\n").unwrap();
        let error = Comparison::read(&path).unwrap_err().to_string();
        assert!(
            error.starts_with("invalid TOML in `") && error.ends_with("compare.toml`"),
            "{error}"
        );
    }

    #[test]
    fn runs_come_seed_by_seed() {
        let comparison = comparison();
        let names: Vec<String> = comparison.runs().map(|run| run.name()).collect();
        assert_eq!(names, ["view-0", "added-0", "view-3", "added-3"]);
        let bases: Vec<Option<String>> = comparison.runs().map(|run| run.base()).collect();
        let [first, second] = ["view-0", "view-3"].map(|name| Some(name.to_owned()));
        assert_eq!(bases, [None, first, None, second]);
        assert!(comparison.runs().all(|run| run.config().seed == run.seed));
        assert_eq!(comparison.starts_from("view"), [7]);
        assert_eq!(comparison.starts_from("added"), [0; 0]);
    }

    #[test]
    fn changes_are_named() {
        let before = comparison();
        let same: Vec<Asked> = before.variants.iter().map(|v| v.asked.clone()).collect();
        assert_eq!(before.changes(&[0, 3], &same), [""; 0]);
        assert_eq!(before.changes(&[0, 3, 4], &same), [""; 0]);
        assert_eq!(before.changes(&[0], &same), ["seeds = [0] (it was [0, 3])"]);
        let one = before.changes(&[0, 3], &same[..1]);
        assert_eq!(one, ["variants = view (it was view, added)"]);
        let mut other = same.clone();
        (other[0].given, other[1].recipe) = (asked("", "optim.lr=0.5").given, "esvit".into());
        other[1].continues = None;
        other[0].weights = Some(Weights { path: "b".into(), key: None });
        assert_eq!(
            before.changes(&[0, 3], &other),
            [
                "`view`: init_from = b (it was student of runs/a)",
                "`view`: optim.lr = 0.5 (it was 0.25)",
                "`added`: recipe = esvit (it was materials)",
                "`added`: continue_from = none (it was view at 50%)",
            ]
        );
    }
}
