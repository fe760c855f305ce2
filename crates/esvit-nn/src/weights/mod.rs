//! Weights in files: finding the networks of a file in any program's naming, loading and saving.
//!
//! Loading is strict. Every tensor of a network is matched, ignored for a stated reason, or an
//! error; no parameter stays randomly initialized unless the caller says so.

mod export;
mod image_size;
mod load;
mod location;
mod method;
mod naming;
mod recognize;
mod resize;
mod save;

use std::collections::BTreeSet;
use std::path::PathBuf;

pub use esvit_weights::WeightsFile;

pub use export::{exported, exported_with_mask_token};
pub use load::{MASK_TOKEN, Report, StoredNetwork, reason};
pub use location::{Location, NetworkRole};
pub use method::Method;
pub use naming::{ESVIT_WRAPPER, Naming};
pub use recognize::{Known, networks};
pub use save::{CHECKPOINT_FORMAT, Entry, METADATA_KEY, entries, entry, save, write_error};

/// Number of differing tensors that an error lists.
const LISTED_DIFFERENCES: usize = 12;

/// Why weights cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be read or is not a file of weights.
    #[error(transparent)]
    File(#[from] esvit_weights::WeightsError),
    /// Names or shapes differ from those of the network.
    #[error(
        "`{path}` does not fit this network, {count} tensors differ:\n{list}\n{hint}",
        path = path.display(),
        count = differences.len(),
        list = listed(differences),
        hint = way_out(differences)
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// One line for every tensor that does not fit.
        differences: Vec<String>,
    },
    /// The file holds no supported backbone.
    #[error(
        "`{path}` holds {what}",
        path = path.display(),
        what = other(*found, *tensors, unreadable)
    )]
    NoBackbone {
        /// The file.
        path: PathBuf,
        /// The unsupported backbone that it seems to hold.
        found: Option<&'static str>,
        /// Number of its tensors that can be read.
        tensors: usize,
        /// Types of its tensors that cannot be read.
        unreadable: Vec<String>,
    },
    /// The file holds several networks, or not the requested one.
    #[error("`{path}` {what}", path = path.display(), what = choice(key.as_deref(), networks))]
    Which {
        /// The file.
        path: PathBuf,
        /// The requested network.
        key: Option<String>,
        /// The file's networks.
        networks: Vec<String>,
    },
    /// The tensors' shapes are not those of a network of the family.
    #[error("`{path}` names its tensors as a {family} does, but {reason}", path = path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The family.
        family: &'static str,
        /// What does not fit.
        reason: String,
    },
}

impl WeightsError {
    /// A line for every tensor that does not fit, if other settings of the network could make them fit; none where
    /// the file is at fault, which has values that are no numbers or cannot be read.
    pub fn misfits(&self) -> &[String] {
        let Self::Mismatch { differences, .. } = self else { return &[] };
        let is_fault = |line: &String| line.ends_with(NOT_FINITE) || line.ends_with(NOT_READ);
        if differences.iter().all(is_fault) { &[] } else { differences }
    }
}

fn listed(differences: &[String]) -> String {
    let shown = differences.iter().take(LISTED_DIFFERENCES).cloned();
    let hidden = differences.len().saturating_sub(LISTED_DIFFERENCES);
    let rest = (hidden > 0).then(|| format!("... and {hidden} more"));
    shown.chain(rest).map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// What ends the lines about values and types, which no settings change.
const NOT_FINITE: &str = "values that are not finite";
const NOT_READ: &str = "which this program does not read";

/// What to do about differences.
fn way_out(differences: &[String]) -> &'static str {
    let all = |end| differences.iter().all(|line: &String| line.ends_with(end));
    if all(NOT_FINITE) {
        "hint: the training diverged or the file is damaged; take an earlier file"
    } else if all(NOT_READ) {
        CONVERT
    } else {
        "hint: use the model settings that the file was made with"
    }
}

fn other(found: Option<&'static str>, tensors: usize, unreadable: &[String]) -> String {
    let count = unreadable.len();
    match found {
        _ if count > 0 => format!(
            "no backbone that can be read: {count} of its {} tensors are stored as {}\n{CONVERT}",
            count + tensors,
            types(unreadable)
        ),
        Some(backbone) => {
            format!(
                "{backbone}, a backbone that this program does not have\n\
                 hint: `esvit info` lists the backbones that it has"
            )
        }
        None => format!(
            "no backbone: none of its {tensors} tensors is named like one of a backbone\n\
             hint: `esvit info` lists the backbones that this program has"
        ),
    }
}

/// What to do with tensors of a type that cannot be read.
const CONVERT: &str =
    "hint: convert them in PyTorch, with `tensor.float()`, and save the file again";

/// The types of a list, each once.
fn types(all: &[String]) -> String {
    let all: BTreeSet<&String> = all.iter().collect();
    all.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn choice(key: Option<&str>, networks: &[String]) -> String {
    let names = networks.iter().map(|name| match name.as_str() {
        "" => "`` (without a name)".to_owned(),
        name => format!("`{name}`"),
    });
    let names = names.collect::<Vec<_>>().join(", ");
    // Later ones are means of the weights, as a rule.
    let one = networks.iter().rev().find(|name| !name.is_empty());
    let one = one.map(|name| format!(", for instance `--key {name}`")).unwrap_or_default();
    match key {
        Some(key) if networks.iter().any(|name| name == key) => {
            format!("has several networks `{key}`: {names}")
        }
        Some(key) => {
            format!("has no network `{key}`, only {names}\nhint: choose with `--key`{one}")
        }
        None => format!("holds several networks: {names}\nhint: choose with `--key`{one}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twelve_differences_are_listed() {
        let of = |count: usize| listed(&(0..count).map(|at| at.to_string()).collect::<Vec<_>>());
        assert_eq!(of(12).lines().count(), 12);
        assert!(of(15).ends_with("  11\n  ... and 3 more"), "{}", of(15));
    }
}
