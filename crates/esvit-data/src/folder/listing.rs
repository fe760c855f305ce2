//! What a folder's listing left out, and how it was understood.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use crate::printable;

/// Most extensions and folders that a note names.
const MOST_NAMED: usize = 10;

/// What a folder's listing left out, and how it was understood.
#[derive(Debug, Default)]
pub struct Listing {
    /// Number of files left out by extension, in lower case.
    pub left_out: BTreeMap<String, usize>,
    /// Number of files left out since they have no extension.
    pub without_extension: usize,
    /// Folders left out since they cannot be listed.
    pub unlisted: Vec<Unlisted>,
    /// Links to what is listed already.
    pub twice: Vec<PathBuf>,
    /// Links to folders that are not searched: one that contains the root, or the system's.
    pub not_followed: Vec<PathBuf>,
    /// The folders of the root, if they are splits.
    pub splits: Vec<Split>,
    /// The split that alone is used, if one is.
    pub used_split: Option<String>,
}

/// A part of a set, such as `train`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Name of its folder.
    pub name: String,
    /// Number of images.
    pub images: usize,
}

/// A folder that cannot be listed.
#[derive(Debug)]
pub struct Unlisted {
    /// The folder.
    pub path: PathBuf,
    /// What the system said.
    pub reason: io::Error,
}

impl Listing {
    /// A line for everything worth knowing.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        notes.extend(self.splits_note());
        notes.extend(self.left_out_note());
        let paths = |paths: &[PathBuf]| first(paths.iter().map(|p| format!("`{}`", printable(p))));
        match self.twice.len() {
            0 => {}
            1 => notes.push(format!(
                "1 link leads to what is listed already, which counts once: {}",
                paths(&self.twice)
            )),
            count => notes.push(format!(
                "{count} links lead to what is listed already, which counts once: {}",
                paths(&self.twice)
            )),
        }
        if !self.not_followed.is_empty() {
            notes.push(format!(
                "links not followed, to a folder around this one or to the system's: {}",
                paths(&self.not_followed)
            ));
        }
        let all = self.unlisted.len();
        notes.extend(self.unlisted.iter().take(MOST_NAMED).map(|Unlisted { path, reason }| {
            format!("left out the folder `{}`: {reason}", printable(path))
        }));
        if all > MOST_NAMED {
            notes.push(format!("left out {} more folders", all - MOST_NAMED));
        }
        notes
    }

    fn splits_note(&self) -> Option<String> {
        if self.splits.is_empty() {
            return None;
        }
        let splits: Vec<String> = self
            .splits
            .iter()
            .map(|Split { name, images }| format!("`{name}` ({images})"))
            .collect();
        let used = match &self.used_split {
            Some(name) => format!("only `{name}` is used"),
            None => "all are used".into(),
        };
        Some(format!("{} are splits, not classes: {used}", splits.join(", ")))
    }

    fn left_out_note(&self) -> Option<String> {
        let with: usize = self.left_out.values().sum();
        let mut kinds: Vec<(&String, &usize)> = self.left_out.iter().collect();
        // The most frequent first, and of equal ones in the order of their names.
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let kinds = first(kinds.iter().map(|(kind, count)| format!("{count} .{kind}")));
        let files = |count| if count == 1 { "file" } else { "files" };
        let without = self.without_extension;
        Some(match (with, without) {
            (0, 0) => return None,
            (0, _) => format!("{without} {} without extension left out", files(without)),
            (_, 0) => format!("{with} {} with other extensions left out: {kinds}", files(with)),
            _ => format!(
                "{with} {} with other extensions left out: {kinds}; {without} without extension",
                files(with)
            ),
        })
    }
}

/// The first of some texts, and how many follow.
fn first(texts: impl ExactSizeIterator<Item = String>) -> String {
    let more = texts.len().saturating_sub(MOST_NAMED);
    let mut texts: Vec<String> = texts.take(MOST_NAMED).collect();
    if more > 0 {
        texts.push(format!("{more} more"));
    }
    texts.join(", ")
}

/// Notes behind a sentence.
pub(super) fn in_a_sentence(notes: &[String]) -> String {
    notes.iter().map(|note| format!("; {note}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted_in_one_line() {
        let mut listing = Listing::default();
        assert!(listing.notes().is_empty());
        listing.without_extension = 1;
        assert_eq!(listing.notes(), ["1 file without extension left out"]);
        listing.left_out =
            [("avif", 2), ("heic", 5), ("mov", 1)].map(|(k, n)| (k.to_string(), n)).into();
        let line = "8 files with other extensions left out: 5 .heic, 2 .avif, 1 .mov";
        assert_eq!(listing.notes(), [format!("{line}; 1 without extension")]);
        listing.without_extension = 0;
        assert_eq!(listing.notes(), [line]);
        listing.left_out = (10..25).map(|i| (format!("x{i}"), 1)).collect();
        let note = listing.notes().remove(0);
        assert!(note.starts_with("15 files") && note.ends_with("1 .x19, 5 more"), "{note}");
    }

    #[test]
    fn folders_are_named_up_to_ten() {
        let unlisted = |i| Unlisted {
            path: format!("a\x1b{i}").into(),
            reason: io::ErrorKind::PermissionDenied.into(),
        };
        let listing = Listing { unlisted: (0..12).map(unlisted).collect(), ..Listing::default() };
        let notes = listing.notes();
        assert_eq!(notes.len(), 11);
        assert_eq!(notes[0], "left out the folder `a\\x1b0`: permission denied");
        assert_eq!(notes[10], "left out 2 more folders");
    }
}
