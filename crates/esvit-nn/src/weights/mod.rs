//! Weights in files: finding the networks of a file in any program's naming, loading and saving.
//!
//! Loading is strict. Every tensor of a network is matched, ignored for a stated reason, or an
//! error; no parameter stays randomly initialized unless the caller says so.

mod export;
mod load;
mod naming;
mod recognize;
mod resize;
mod save;

use std::path::PathBuf;

pub use esvit_weights::WeightsFile;

pub use export::exported;
pub use load::{Report, StoredNetwork, reason};
pub use naming::Naming;
pub use recognize::{Location, networks};
pub use save::{Entry, METADATA_KEY, entries, entry, save, write_error};

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
        "`{path}` does not fit this network, {count} tensors differ:\n{list}\n\
         hint: use the model settings that the file was made with",
        path = path.display(),
        count = differences.len(),
        list = listed(differences)
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// One line for every tensor that does not fit.
        differences: Vec<String>,
    },
    /// The file holds no supported backbone.
    #[error("`{path}` holds {what}", path = path.display(), what = other(*found, *tensors))]
    NoBackbone {
        /// The file.
        path: PathBuf,
        /// The unsupported backbone that it seems to hold.
        found: Option<&'static str>,
        /// Number of its tensors.
        tensors: usize,
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
    /// The tensors' shapes are not those of a Swin transformer.
    #[error(
        "`{path}` names its tensors as a Swin transformer does, but {reason}",
        path = path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

fn listed(differences: &[String]) -> String {
    let shown = differences.iter().take(LISTED_DIFFERENCES).cloned();
    let hidden = differences.len().saturating_sub(LISTED_DIFFERENCES);
    let rest = (hidden > 0).then(|| format!("... and {hidden} more"));
    shown.chain(rest).map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn other(found: Option<&'static str>, tensors: usize) -> String {
    match found {
        Some(backbone) => {
            format!(
                "{backbone}, a backbone that this program does not have\n\
                 hint: `esvit info` lists the backbones that it has"
            )
        }
        None => format!(
            "no backbone: none of its {tensors} tensors is named like one of a Swin transformer\n\
             hint: `esvit info` lists the backbones that this program has"
        ),
    }
}

fn choice(key: Option<&str>, networks: &[String]) -> String {
    let names = networks.iter().map(|name| match name.as_str() {
        "" => "(without a name)".to_owned(),
        name => format!("`{name}`"),
    });
    let names = names.collect::<Vec<_>>().join(", ");
    match key {
        Some(key) => format!("has no network `{key}`, only {names}\nhint: choose with `--key`"),
        None => format!("holds several networks: {names}\nhint: choose with `--key`"),
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
