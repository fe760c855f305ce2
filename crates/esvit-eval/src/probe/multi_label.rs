//! Multi-label annotations in a file.
//!
//! The file has the header `image,labels`; each line has an image path relative to the file's
//! folder and its labels, separated by `;`. An image with nothing after the comma has none of the
//! labels.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use esvit_data::{DecodeLimits, Folder};
use esvit_files::read_text;

use super::ProbeTask;
use super::features::ImageLabels;
use crate::labeled::remarks::{Remarks, shared_images, sides};
use crate::labeled::{HELD_OUT, LabeledSet, LabeledTask, TaskError, paths};
use esvit_model::embedding::{Record, records};

const HEADER: [&str; 2] = ["image", "labels"];
/// Most labels of a file: each has a classifier of its own for every setting that is tried.
const MAX_LABELS: usize = 25_000;

/// The parsed file.
#[derive(Debug, PartialEq)]
struct Table {
    /// Label names by index.
    names: Vec<String>,
    /// Labels of each image, by path relative to the file's folder.
    images: HashMap<String, Vec<u32>>,
}

impl Table {
    /// Fields may be quoted, and a first column without a name be the number or name of a row, as R
    /// and pandas write them.
    fn parse(text: &str, path: &Path) -> Result<Self, TaskError> {
        let path = path.display();
        let records = records(text).map_err(|line| {
            TaskError::Table(format!("a quote on line {line} of `{path}` is not closed"))
        })?;
        let mut records = records.into_iter();
        let head = records.next().map(|head| head.fields).unwrap_or_default();
        let head: Vec<&str> = head.iter().map(|field| field.trim()).collect();
        let unnamed = usize::from(head.first() == Some(&"") && head.len() > HEADER.len());
        if head[unnamed..] != HEADER {
            let header = HEADER.join(",");
            return Err(TaskError::Table(format!(
                "the first line of `{path}` is not `{header}`\n\
                 hint: every further line is an image's path from the folder of the file, a comma \
                 and the image's labels with `;` between them"
            )));
        }
        let mut rows: HashMap<String, BTreeSet<String>> = HashMap::new();
        for Record { line, fields } in records {
            if fields.iter().all(|field| field.trim().is_empty()) {
                continue;
            }
            let wrong =
                |problem: &str| TaskError::Table(format!("line {line} of `{path}` {problem}"));
            let fields = fields.get(unnamed..).unwrap_or_default();
            // A path may hold commas without quotes.
            let (labels, image) = match fields {
                [image @ .., labels] if !image.is_empty() => (labels, image.join(",")),
                _ => return Err(wrong("has no comma")),
            };
            let labels = labels.split(';').map(str::trim).filter(|label| !label.is_empty());
            let labels = labels.map(str::to_owned).collect();
            let image = image.trim().replace('\\', "/");
            if rows.contains_key(&image) {
                return Err(wrong(&format!("lists `{image}` again")));
            }
            rows.insert(image, labels);
        }
        let names: BTreeSet<&String> = rows.values().flatten().collect();
        if names.is_empty() {
            return Err(TaskError::Table(format!("`{path}` names no label")));
        }
        if names.len() > MAX_LABELS {
            let most = rows.iter().max_by_key(|(_, labels)| labels.len());
            let (image, most) = most.map(|(image, of)| (&image[..], of.len())).unwrap_or_default();
            return Err(TaskError::Table(format!(
                "`{path}` names {} labels, {most} of them for `{image}`: {MAX_LABELS} are the most \
                 that can be learned\n\
                 hint: leave out labels that only few images have",
                names.len()
            )));
        }
        let numbers: HashMap<&String, u32> = names.iter().copied().zip(0..).collect();
        let numbered =
            |labels: &BTreeSet<String>| labels.iter().map(|name| numbers[name]).collect();
        Ok(Self {
            names: names.iter().map(|name| name.to_string()).collect(),
            images: rows.iter().map(|(name, labels)| (name.clone(), numbered(labels))).collect(),
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
    let text = read_text(file).map_err(|source| TaskError::Io { path: file.into(), source })?;
    let table = Table::parse(&text, file)?;
    let mut remarks = Remarks::default();
    let (train_path, query_path) = sides(train, queries, &mut remarks);
    let mut description = format!("`{}`", train_path.display());
    let train = labeled(file, &table, &train_path, limits)?;
    let mut listed: HashSet<&String> = train.listed.iter().copied().collect();
    let mut unlisted = train.unlisted();
    let (train_set, query_set, query_side) = match &query_path {
        Some(path) => {
            description.push_str(&format!(" and `{}`", path.display()));
            let queries = labeled(file, &table, path, limits)?;
            listed.extend(&queries.listed);
            unlisted += queries.unlisted();
            (train.set(), queries.set(), Some(queries))
        }
        None => {
            description.push_str(", every fifth image set aside");
            let (rest, queries) = train.set().split(HELD_OUT);
            (rest, queries, None)
        }
    };
    description.push_str(&format!(", labels of `{}`", file.display()));
    let queries = query_side.as_ref().unwrap_or(&train);
    let file = file.display();
    if unlisted > 0 {
        remarks.warnings.push(format!("{unlisted} images have no line in `{file}`: left out"));
    }
    let missing = table.images.keys().filter(|name| !listed.contains(name)).min();
    if let Some(name) = missing {
        let count = table.images.len() - listed.len();
        let of = "name no image of the folders";
        remarks.warnings.push(format!("{count} lines of `{file}` {of}, such as `{name}`"));
    }
    remarks.warnings.extend(shared_images(
        (&train_path, &paths(&train.folder, &train_set.images)),
        (query_path.as_ref().unwrap_or(&train_path), &paths(&queries.folder, &query_set.images)),
        query_path.is_none(),
    ));
    let labels = [train.labels.clone(), queries.labels.clone()];
    let (train, queries, classes) = (train_set, query_set, table.names.clone());
    let task = LabeledTask { train, queries, classes, description, remarks };
    Ok(ProbeTask { task, labels: Some(labels) })
}

/// The images of a folder with what is listed of them.
struct Listed<'a> {
    folder: Arc<Folder>,
    /// Indices of the listed images, and their names in the table.
    images: Vec<usize>,
    listed: Vec<&'a String>,
    /// Labels of all images.
    labels: ImageLabels,
}

impl Listed<'_> {
    /// The listed images.
    fn set(&self) -> LabeledSet {
        let mut set = LabeledSet::all(self.folder.clone());
        set.images.clone_from(&self.images);
        set
    }

    /// Number of images that are not listed.
    fn unlisted(&self) -> usize {
        self.labels.len() - self.images.len()
    }
}

/// Looks a folder's images up in the table.
fn labeled<'a>(
    file: &Path,
    table: &'a Table,
    folder: &Path,
    limits: &DecodeLimits,
) -> Result<Listed<'a>, TaskError> {
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
        table.images.get_key_value(&name)
    };
    let count = esvit_data::Source::len(&images);
    let found: Vec<Option<(&String, &Vec<u32>)>> = (0..count).map(labels_of).collect();
    let named: Vec<usize> = (0..count).filter(|&index| found[index].is_some()).collect();
    if named.is_empty() {
        return Err(TaskError::Table(format!(
            "`{}` names no image in `{}`\n\
             hint: images are named by their path from the folder that the file lies in",
            file.display(),
            folder.display()
        )));
    }
    let labels = found.iter().map(|of| of.map(|(_, labels)| labels.clone()).unwrap_or_default());
    Ok(Listed {
        labels: labels.collect(),
        listed: found.iter().flatten().map(|(name, _)| *name).collect(),
        folder: Arc::new(images),
        images: named,
    })
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

    /// `write.csv` of R with and without row names, `to_csv` of pandas likewise, and a file from
    /// Windows.
    #[test]
    fn tables_are_read_as_other_programs_write_them() {
        let expected = parse("image,labels\na/1.png,cat;dog\n\"b, \"\"c\"\".png\",\n").unwrap();
        assert_eq!(expected.images["b, \"c\".png"], Vec::<u32>::new());
        for text in [
            "\"image\",\"labels\"\n\"a/1.png\",\"cat;dog\"\n\"b, \"\"c\"\".png\",\"\"\n",
            "\"\",\"image\",\"labels\"\n\"1\",\"a/1.png\",\"cat;dog\"\n\
             \"2\",\"b, \"\"c\"\".png\",\"\"\n",
            ",image,labels\n0,a/1.png,cat;dog\n1,\"b, \"\"c\"\".png\",\n",
            "\u{feff}image,labels\r\na/1.png,\"cat;dog\"\r\n\"b, \"\"c\"\".png\",\r\n",
            " image , labels \na/1.png, cat ; dog \n\n\"b, \"\"c\"\".png\",",
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        let error = parse("image,labels\n\"1.png,cat\n2.png,dog\n").unwrap_err();
        assert!(error.contains("a quote on line 2"), "{error}");
    }

    #[test]
    fn more_labels_than_can_be_learned_are_refused() {
        let labels: Vec<String> = (0..100_000).map(|label| format!("l{label}")).collect();
        let text = format!("image,labels\n1.png,a\n2.png,{}\n", labels.join(";"));
        let error = parse(&text).unwrap_err();
        assert!(error.contains("names 100001 labels, 100000 of them for `2.png`"), "{error}");
        assert!(error.contains("hint:"), "{error}");
        let text = format!("image,labels\n2.png,{}\n", labels[..MAX_LABELS].join(";"));
        assert_eq!(parse(&text).unwrap().images["2.png"].len(), MAX_LABELS);
    }

    #[test]
    fn images_and_lines_that_do_not_meet_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for image in 0..6 {
            write(&format!("train/{image}.png"), &format!("t{image}"));
            write(&format!("val/{image}.png"), &format!("v{image}"));
        }
        write("l.csv", "image,labels\ntrain/0.png,a\ntrain/1.png,b\nval/0.png,a\nval/7.png,a\n");
        let [file, train, val] = ["l.csv", "train", "val"].map(|name| folder.path().join(name));
        let task = |train: &Path, val: Option<&Path>| {
            multi_label_task(&file, train, val, &DecodeLimits::default()).unwrap().task
        };
        let two = task(&train, Some(&val));
        assert_eq!((two.images(), two.remarks.notes.len()), ((2, 1), 0));
        let warnings = &two.remarks.warnings;
        assert!(warnings[0].starts_with("9 images have no line in"), "{warnings:?}");
        assert!(warnings[1].starts_with("1 lines of") && warnings[1].contains("`val/7.png`"));
        // The folder that holds both.
        let root = task(folder.path(), None);
        assert_eq!((root.images(), &root.remarks.warnings), ((2, 1), warnings));
        assert_eq!(root.remarks.notes.len(), 2);
        let same = task(&train, Some(&train)).remarks.warnings;
        assert!(same.iter().any(|text| text.contains("the same folder")), "{same:?}");
    }

    #[test]
    fn paths_of_windows_are_read() {
        let table = parse("image,labels\na\\b\\1.png,dog\n").unwrap();
        assert_eq!(table.images["a/b/1.png"], [0]);
    }
}
