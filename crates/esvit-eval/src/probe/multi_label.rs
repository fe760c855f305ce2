//! Multi-label annotations in a file.
//!
//! The file has the header `image,labels`; each line has an image path relative to the file's
//! folder and its labels, separated by `;`. An image with nothing after the comma has none of the
//! labels.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use esvit_data::{DecodeLimits, Folder};

use super::ProbeTask;
use super::features::ImageLabels;
use crate::labeled::{HELD_OUT, LabeledSet, LabeledTask, TaskError};

const HEADER: &str = "image,labels";

/// The parsed file.
#[derive(Debug, PartialEq)]
struct Table {
    /// Label names by index.
    names: Vec<String>,
    /// Labels of each image, by path relative to the file's folder.
    images: HashMap<String, Vec<u32>>,
}

impl Table {
    fn parse(text: &str, path: &Path) -> Result<Self, TaskError> {
        let mut lines = text.trim_start_matches('\u{feff}').lines();
        let path = path.display();
        if lines.next().map(str::trim) != Some(HEADER) {
            return Err(TaskError::Table(format!(
                "the first line of `{path}` is not `{HEADER}`\n\
                 hint: every further line is an image's path from the folder of the file, a comma \
                 and the image's labels with `;` between them"
            )));
        }
        let mut rows: HashMap<String, Vec<&str>> = HashMap::new();
        for (line, number) in lines.zip(2..).filter(|(line, _)| !line.trim().is_empty()) {
            let wrong =
                |problem: &str| TaskError::Table(format!("line {number} of `{path}` {problem}"));
            let (image, labels) = line.rsplit_once(',').ok_or_else(|| wrong("has no comma"))?;
            let labels = labels.split(';').map(str::trim).filter(|label| !label.is_empty());
            let image = image.trim().replace('\\', "/");
            if rows.insert(image.clone(), labels.collect()).is_some() {
                return Err(wrong(&format!("lists `{image}` again")));
            }
        }
        let names: BTreeSet<&str> = rows.values().flatten().copied().collect();
        if names.is_empty() {
            return Err(TaskError::Table(format!("`{path}` names no label")));
        }
        let numbers: HashMap<&str, u32> = names.iter().copied().zip(0..).collect();
        let numbered = |labels: Vec<&str>| {
            let labels: BTreeSet<u32> = labels.iter().map(|label| numbers[label]).collect();
            labels.into_iter().collect()
        };
        Ok(Self {
            names: names.iter().map(|name| name.to_string()).collect(),
            images: rows.into_iter().map(|(name, labels)| (name, numbered(labels))).collect(),
        })
    }
}

/// A task of one or two folders with the labels listed in `file`; images that are not listed are
/// not used. Without `queries`, every fifth image is held out as query.
///
/// # Errors
/// [`TaskError`] if the file or a folder cannot be read, or they do not fit together.
pub fn multi_label_task(
    file: &Path,
    train: &Path,
    queries: Option<&Path>,
    limits: &DecodeLimits,
) -> Result<ProbeTask, TaskError> {
    let text = std::fs::read_to_string(file)
        .map_err(|source| TaskError::Io { path: file.into(), source })?;
    let table = Table::parse(&text, file)?;
    let mut description = format!("`{}`", train.display());
    let (mut train, train_labels) = labeled(file, &table, train, limits)?;
    let (queries, query_labels) = match queries {
        Some(path) => {
            description.push_str(&format!(" and `{}`", path.display()));
            labeled(file, &table, path, limits)?
        }
        None => {
            description.push_str(", every fifth image set aside");
            let (rest, queries) = train.split(HELD_OUT);
            train = rest;
            (queries, train_labels.clone())
        }
    };
    description.push_str(&format!(", labels of `{}`", file.display()));
    let task = LabeledTask { train, queries, classes: table.names, description };
    Ok(ProbeTask { task, labels: Some([train_labels, query_labels]) })
}

/// The listed images of a folder, and the labels of all its images.
fn labeled(
    file: &Path,
    table: &Table,
    folder: &Path,
    limits: &DecodeLimits,
) -> Result<(LabeledSet, ImageLabels), TaskError> {
    let images = Folder::open(folder, limits)?;
    let real = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        path.canonicalize().map_err(|source| TaskError::Io { path: path.into(), source })
    };
    let (base, root) = (real(file.parent().unwrap_or(Path::new(".")))?, real(folder)?);
    let labels_of = |index: usize| {
        let path = images.path(index)?;
        let path = root.join(path.strip_prefix(folder).ok()?);
        let name = path.strip_prefix(&base).ok()?.to_string_lossy().replace('\\', "/");
        table.images.get(&name).cloned()
    };
    let count = esvit_data::Source::len(&images);
    let labels: Vec<Option<Vec<u32>>> = (0..count).map(labels_of).collect();
    let named: Vec<usize> = (0..count).filter(|&index| labels[index].is_some()).collect();
    if named.is_empty() {
        return Err(TaskError::Table(format!(
            "`{}` names no image in `{}`\n\
             hint: images are named by their path from the folder that the file lies in",
            file.display(),
            folder.display()
        )));
    }
    let mut set = LabeledSet::all(Arc::new(images));
    set.images = named;
    Ok((set, labels.into_iter().map(Option::unwrap_or_default).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Table, String> {
        Table::parse(text, Path::new("l.csv")).map_err(|error| error.to_string())
    }

    #[test]
    fn labels_are_numbered_by_name() {
        let table =
            parse("image,labels\r\na/1.png,dog; cat;dog\nb, c.png,\n\n2.png,cat\n").unwrap();
        assert_eq!(table.names, ["cat", "dog"]);
        assert_eq!(table.images["a/1.png"], [0, 1]);
        assert_eq!(table.images["b, c.png"], Vec::<u32>::new());
        assert_eq!(table.images["2.png"], [0]);
    }

    #[test]
    fn files_that_make_no_sense() {
        for (text, message) in [
            ("1.png,cat\n", "the first line of `l.csv` is not `image,labels`"),
            ("", "the first line"),
            ("image,labels\n1.png\n", "line 2 of `l.csv` has no comma"),
            ("image,labels\n1.png,a\n1.png,b\n", "line 3 of `l.csv` lists `1.png` again"),
            ("image,labels\n1.png,\n", "`l.csv` names no label"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn paths_of_windows_are_read() {
        let table = parse("image,labels\na\\b\\1.png,dog\n").unwrap();
        assert_eq!(table.images["a/b/1.png"], [0]);
    }
}
