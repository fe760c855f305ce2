//! What is said of a labeled task before it is measured.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use esvit_data::counted;
use rayon::prelude::*;

use super::LabeledSet;

/// Bytes at the end of a file that are compared before all of it is.
const TAIL: u64 = 4096;
/// Bytes read at a time.
const CHUNK: usize = 1 << 16;
/// Names of the folder of query images beside one called `train`, in order of preference.
const QUERY_FOLDERS: [&str; 4] = ["val", "validation", "valid", "test"];

/// Remarks on a task, in sentences with backticks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remarks {
    /// What was chosen.
    pub notes: Vec<String>,
    /// Why accuracies may mean less than they seem to.
    pub warnings: Vec<String>,
}

/// The two folders that are meant by a folder that holds `train` and `val` (or `test`) and no
/// others; hidden ones do not count.
pub(crate) fn split_folders(root: &Path) -> Option<[PathBuf; 2]> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root).ok()?.flatten() {
        let name = entry.file_name();
        if entry.path().is_dir() && !name.as_encoded_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    let is_known = |name: &str| name == "train" || QUERY_FOLDERS.contains(&name);
    let all_known = names.iter().all(|name| name.to_str().is_some_and(is_known));
    let has = |name: &&&str| names.iter().any(|other| other == **name);
    let queries = QUERY_FOLDERS.iter().find(has)?;
    (all_known && has(&&"train")).then(|| [root.join("train"), root.join(queries)])
}

/// The folders of training and of query images: a folder that holds both stands for its part.
pub(crate) fn sides(
    train: &Path,
    queries: Option<&Path>,
    remarks: &mut Remarks,
) -> (PathBuf, Option<PathBuf>) {
    let mut part = |root: &Path, side: usize, of: &str| {
        let split = split_folders(root)?;
        let part = split[side].file_name().unwrap_or_default().to_string_lossy();
        remarks
            .notes
            .push(format!("the {of} images of `{}` are those in `{part}`", root.display()));
        Some(split)
    };
    match (part(train, 0, "training"), queries) {
        (Some([train, own]), None) => {
            part(own.parent().unwrap_or(&own), 1, "query");
            (train, Some(own))
        }
        (split, queries) => {
            let train = split.map_or_else(|| train.into(), |[train, _]| train);
            let queries = queries.map(|path| {
                part(path, 1, "query").map_or_else(|| path.into(), |[_, queries]| queries)
            });
            (train, queries)
        }
    }
}

/// What a gallery of one class means.
pub(crate) fn one_class(train: &LabeledSet, classes: &[String]) -> Option<String> {
    let mut labels = train.images.iter().map(|&index| train.label(index));
    let first = labels.next()?;
    labels.all(|label| label == first).then(|| {
        format!(
            "all {} training images are of one class, `{}`\n\
             hint: classes are the subfolders of `--train`",
            train.images.len(),
            classes.get(first as usize).map(String::as_str).unwrap_or_default()
        )
    })
}

/// How many query images are of classes that no training image has.
pub(crate) fn unknown_classes(
    train: &LabeledSet,
    queries: &LabeledSet,
    classes: &[String],
) -> Option<String> {
    let known: HashSet<u32> = train.images.iter().map(|&index| train.label(index)).collect();
    let is_unknown = |&&index: &&usize| !known.contains(&queries.label(index));
    let unknown: Vec<usize> = queries.images.iter().filter(is_unknown).copied().collect();
    let &first = unknown.first()?;
    let name = classes.get(queries.label(first) as usize).cloned();
    let own = || queries.source.classes().get(queries.source.label(first)? as usize).cloned();
    Some(format!(
        "{} of classes without training images, such as `{}`, count as wrong",
        counted(unknown.len(), "query image"),
        name.or_else(own).unwrap_or_default()
    ))
}

/// That query images are training images too: one folder, or files with the same bytes.
pub(crate) fn shared_images(
    train: (&Path, &[PathBuf]),
    queries: (&Path, &[PathBuf]),
    same_is_split: bool,
) -> Option<String> {
    let real = |path: &Path| path.canonicalize().ok();
    if !same_is_split && real(train.0).is_some() && real(train.0) == real(queries.0) {
        return Some(format!(
            "training and query images are the same folder, `{}`: every image finds itself, so \
             accuracy says nothing of other images\n\
             hint: leave out `--val` to set aside every fifth image",
            queries.0.display()
        ));
    }
    let pairs = equal_files(train.1, queries.1);
    let &(query, other) = pairs.first()?;
    Some(format!(
        "{} of {} query images are training images too, byte for byte, such as `{}` and `{}`: they \
         find themselves, so accuracy is too high",
        pairs.len(),
        queries.1.len(),
        queries.1[query].display(),
        train.1[other].display()
    ))
}

/// A file of one side, and the hash of what is known of it.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    is_query: bool,
    index: usize,
    path: &'a Path,
    hash: u64,
}

/// Queries that have a training file of the same bytes: indices of both. Only files of a size that
/// occurs on both sides are opened, and of these only those with the same end read.
fn equal_files(train: &[PathBuf], queries: &[PathBuf]) -> Vec<(usize, usize)> {
    let candidates = on_both_sides([sized(train, false), sized(queries, true)].concat());
    let candidates = on_both_sides(rehashed(&candidates, tail));
    let candidates = on_both_sides(rehashed(&candidates, whole));
    let (queries, train): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|file| file.is_query);
    // The first of equal training files.
    let first: HashMap<u64, usize> =
        train.iter().rev().map(|file| (file.hash, file.index)).collect();
    queries.iter().filter_map(|file| Some((file.index, *first.get(&file.hash)?))).collect()
}

/// The regular files of a side by their size. A file without bytes is no image.
fn sized(files: &[PathBuf], is_query: bool) -> Vec<Candidate<'_>> {
    let sized = |(index, path): (usize, &'_ PathBuf)| {
        let size = fs::metadata(path).ok().filter(fs::Metadata::is_file)?.len();
        Some((index, size)).filter(|_| size > 0)
    };
    let sized: Vec<(usize, u64)> = files.par_iter().enumerate().filter_map(sized).collect();
    let file = |(index, hash)| Candidate { is_query, index, path: files[index].as_path(), hash };
    sized.into_iter().map(file).collect()
}

/// Files whose hash occurs on both sides.
fn on_both_sides(mut files: Vec<Candidate<'_>>) -> Vec<Candidate<'_>> {
    let side = |is_query| -> HashSet<u64> {
        files.iter().filter(|file| file.is_query == is_query).map(|file| file.hash).collect()
    };
    let both: HashSet<u64> = side(false).intersection(&side(true)).copied().collect();
    files.retain(|file| both.contains(&file.hash));
    files
}

/// The files with more in their hash; those that cannot be read are left out.
fn rehashed<'a>(
    files: &[Candidate<'a>],
    add: fn(&mut File, &mut DefaultHasher) -> io::Result<()>,
) -> Vec<Candidate<'a>> {
    let rehashed = |file: &Candidate<'a>| {
        let mut hasher = DefaultHasher::new();
        file.hash.hash(&mut hasher);
        add(&mut File::open(file.path).ok()?, &mut hasher).ok()?;
        Some(Candidate { hash: hasher.finish(), ..*file })
    };
    files.par_iter().filter_map(rehashed).collect()
}

fn tail(file: &mut File, hasher: &mut DefaultHasher) -> io::Result<()> {
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
    whole(file, hasher)
}

fn whole(file: &mut File, hasher: &mut DefaultHasher) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(()),
            read => hasher.write(&bytes[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, files: &[(&str, &[u8])]) -> Vec<PathBuf> {
        let write = |(name, bytes): &(&str, &[u8])| {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            path
        };
        files.iter().map(write).collect()
    }

    /// Of one size alone, of one end alone, and of the same bytes under another name; beyond the
    /// end that is compared first.
    #[test]
    fn files_are_equal_by_all_of_their_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let long = vec![7u8; 3 * TAIL as usize + 5];
        let mut other_start = long.clone();
        other_start[0] = 8;
        let train = write(folder.path(), &[("a", b"abc"), ("b", &long), ("c", b"xyz"), ("d", b"")]);
        let queries = write(
            folder.path(),
            &[("q", b"abd"), ("r", &other_start), ("s", b"xyz"), ("t", &long), ("u", b"")],
        );
        assert_eq!(equal_files(&train, &queries), [(2, 2), (3, 1)]);
        let found = shared_images((Path::new("t"), &train), (Path::new("q"), &queries), false);
        assert!(found.unwrap().starts_with("2 of 5 query images are training images too"));
        assert_eq!(equal_files(&train, &queries[..2]), []);
        assert_eq!(equal_files(&train, &[folder.path().join("missing")]), []);
    }

    #[cfg(unix)]
    #[test]
    fn the_same_folder_by_another_name_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let files = write(folder.path(), &[("set/a/1.png", b"1"), ("set/a/2.png", b"2")]);
        let (set, link) = (folder.path().join("set"), folder.path().join("link"));
        std::os::unix::fs::symlink(&set, &link).unwrap();
        let found = |split| shared_images((&set, &files), (&link, &files), split);
        assert!(found(false).unwrap().contains("are the same folder"));
        // Parts of one folder are compared file by file.
        assert!(found(true).unwrap().starts_with("2 of 2 query images"));
        assert_eq!(shared_images((&set, &files[..1]), (&set, &files[1..]), true), None);
    }

    #[test]
    fn a_folder_with_train_and_val_means_those_two() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let names = || {
            let of = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            split_folders(root).map(|split| split.map(of))
        };
        let make = |name: &str| fs::create_dir(root.join(name)).unwrap();
        make("train");
        assert_eq!(names(), None);
        make("test");
        assert_eq!(names(), Some(["train".into(), "test".into()]));
        make("val");
        make(".cache");
        fs::write(root.join("labels.csv"), "").unwrap();
        assert_eq!(names(), Some(["train".into(), "val".into()]));
        let mut remarks = Remarks::default();
        let found = sides(root, None, &mut remarks);
        assert_eq!(found, (root.join("train"), Some(root.join("val"))));
        assert_eq!(remarks.notes.len(), 2, "{remarks:?}");
        let found = sides(root, Some(Path::new("else")), &mut remarks);
        assert_eq!(found, (root.join("train"), Some("else".into())));
        let found = sides(Path::new("else"), Some(root), &mut remarks);
        assert_eq!(found, ("else".into(), Some(root.join("val"))));
        make("cats");
        assert_eq!(names(), None);
        fs::remove_dir(root.join("cats")).unwrap();
        fs::remove_dir(root.join("train")).unwrap();
        assert_eq!(names(), None);
    }
}
