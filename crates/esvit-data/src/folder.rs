//! A folder of image files.

mod listing;
mod walk;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

pub use self::listing::{Listing, Split, Unlisted};
use self::walk::Walk;
use crate::{
    Conversion, DecodeLimits, FileStamp, Image, Levels, SampleType, Source, SourceError,
    VisibleColors, decode, names, printable, read,
};

/// Extensions of files to list, in lower case. Formats are recognized by content.
const EXTENSIONS: [&str; 12] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "tif", "tiff", "bmp", "dib", "gif"];

/// Folders of these names beside each other are the parts of a set, not classes.
const SPLITS: [&str; 5] = ["train", "val", "valid", "validation", "test"];

/// All images below a folder, at any depth.
///
/// Images are ordered by path, compared component by component and byte by byte, so that the order
/// is the same on every machine. Hidden files and folders are skipped. Symbolic links are followed,
/// except to a folder that contains the root; what is reached twice is listed once. Folders that
/// cannot be listed are left out. [`listing`](Self::listing) says what was.
///
/// If all images are in subfolders, the first folder of an image's path is its class
/// (`root/<class>/...`). With images directly in the root there are no labels. If these folders are
/// called `train`, `val` (`valid`, `validation`) and `test`, they are splits, and classes are the
/// folders in them.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    limits: DecodeLimits,
    /// Folders relative to the root, stored once instead of with each of a million files.
    folders: Vec<PathBuf>,
    files: Vec<File>,
    classes: Vec<String>,
    listing: Listing,
}

#[derive(Debug)]
struct File {
    folder: u32,
    label: u32,
    name: Box<OsStr>,
}

/// Why a folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is nothing at the path.
    #[error(
        "there is no folder `{}`\nhint: check the path, or name another folder",
        printable(path)
    )]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// There is something else at the path.
    #[error("`{}` is a file\nhint: give the folder that holds the images", printable(path))]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A folder could not be listed.
    #[error("cannot list `{}`: {source}\nhint: check its permissions", printable(path))]
    Read {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No file with a known extension.
    #[error(
        "no images in `{}` or below{}\nhint: files named {} are looked for",
        printable(path),
        listing::in_a_sentence(left_out),
        EXTENSIONS.map(|extension| format!("`.{extension}`")).join(" ")
    )]
    NoImages {
        /// The folder.
        path: PathBuf,
        /// What was found instead, a line each.
        left_out: Vec<String>,
    },
    /// A folder lies in another one that is given, too.
    #[error(
        "`{}` lies in `{}` or is the same folder: its images would count twice\n\
         hint: give one of them",
        printable(inner),
        printable(outer)
    )]
    Nested {
        /// The folder.
        inner: PathBuf,
        /// The folder around it.
        outer: PathBuf,
    },
    /// A list of folders is empty.
    #[error("a list of no folders\nhint: name at least one")]
    NoFolders,
    /// The folder has no such split.
    #[error("`{}` has no folder `{name}`", printable(path))]
    NoSplit {
        /// The folder.
        path: PathBuf,
        /// The split.
        name: String,
    },
}

impl Folder {
    /// Lists the images below `path`, an error if there are none. No file is opened.
    pub fn open(path: impl AsRef<Path>, limits: &DecodeLimits) -> Result<Self, FolderError> {
        let root = path.as_ref().to_path_buf();
        match fs::metadata(&root) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(FolderError::NotAFolder { path: root }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(FolderError::Missing { path: root });
            }
            Err(source) => return Err(FolderError::Read { path: root, source }),
        }
        let Walk { folders, files, listing, .. } =
            Walk::of(&root).map_err(|source| FolderError::Read { path: root.clone(), source })?;
        if files.is_empty() {
            return Err(FolderError::NoImages { path: root, left_out: listing.notes() });
        }
        let mut folder =
            Self { root, limits: *limits, folders, files, classes: Vec::new(), listing };
        folder.find_splits();
        folder.assign_labels();
        Ok(folder)
    }

    /// The images to train with: those of the split `train` if there is one, else all.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_for_training(
        path: impl AsRef<Path>,
        limits: &DecodeLimits,
    ) -> Result<Self, FolderError> {
        let mut folder = Self::open(path, limits)?;
        let is_train = |split: &&Split| split.name.eq_ignore_ascii_case("train");
        if let Some(train) = folder.listing.splits.iter().find(is_train) {
            let name = train.name.clone();
            folder.keep_split(&name)?;
        }
        Ok(folder)
    }

    /// Leaves only the images of a split.
    ///
    /// # Errors
    /// [`FolderError::NoSplit`] if there is none of that name.
    pub fn keep_split(&mut self, name: &str) -> Result<(), FolderError> {
        if !self.listing.splits.iter().any(|split| split.name == name) {
            return Err(FolderError::NoSplit { path: self.root.clone(), name: name.into() });
        }
        let folders = &self.folders;
        self.files
            .retain(|file| folders[file.folder as usize].iter().next() == Some(OsStr::new(name)));
        self.listing.used_split = Some(name.into());
        self.assign_labels();
        Ok(())
    }

    /// What the listing left out and how it understood the folders.
    pub fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Finds out whether the folders of the root that have images are splits.
    fn find_splits(&mut self) {
        let mut counts: BTreeMap<&OsStr, usize> = BTreeMap::new();
        for file in &self.files {
            // A file in the root itself is in no split.
            let Some(top) = self.folders[file.folder as usize].iter().next() else { return };
            *counts.entry(top).or_default() += 1;
        }
        let name = |top: &OsStr| {
            let name = top.to_str()?;
            SPLITS.iter().any(|split| split.eq_ignore_ascii_case(name)).then(|| name.to_owned())
        };
        let splits =
            counts.into_iter().map(|(top, images)| Some(Split { name: name(top)?, images }));
        self.listing.splits = splits.collect::<Option<_>>().unwrap_or_default();
    }

    /// Sets classes and labels if all images are in subfolders, of the root or of its splits.
    /// Classes are told apart by their whole names, also where these are no text.
    fn assign_labels(&mut self) {
        let level = usize::from(!self.listing.splits.is_empty());
        let class_of = |folder: &PathBuf| folder.iter().nth(level).map(OsStr::to_owned);
        let classes: Vec<Option<OsString>> = self.folders.iter().map(class_of).collect();
        let mut labels: BTreeMap<&[u8], (u32, &OsStr)> = BTreeMap::new();
        self.classes.clear();
        for file in &self.files {
            let Some(class) = &classes[file.folder as usize] else { return };
            labels.insert(class.as_encoded_bytes(), (0, class));
        }
        for ((label, class), number) in labels.values_mut().zip(0..) {
            *label = number;
            self.classes.push(printable(class));
        }
        for file in &mut self.files {
            if let Some(class) = &classes[file.folder as usize] {
                file.label = labels[class.as_encoded_bytes()].0;
            }
        }
    }

    /// The path that was opened.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Path of image `index`, starting with the path that was opened.
    pub fn path(&self, index: usize) -> Option<PathBuf> {
        let file = self.files.get(index)?;
        Some(self.root.join(&self.folders[file.folder as usize]).join(&*file.name))
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let path =
            self.path(index).ok_or(SourceError::NoSuchImage { index, len: self.files.len() })?;
        read::read_file(&path, &self.limits)
    }
}

/// The extension in lower case, as text.
fn extension(name: &OsStr) -> Option<String> {
    Some(printable(Path::new(name).extension()?).to_lowercase())
}

fn is_image(name: &OsStr) -> bool {
    extension(name).is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

impl Source for Folder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn name(&self, index: usize) -> String {
        self.path(index).map(names::text_of).unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<u32> {
        if self.classes.is_empty() { None } else { Some(self.files.get(index)?.label) }
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn stamp(&self, index: usize) -> Option<FileStamp> {
        let metadata = fs::metadata(self.path(index)?).ok()?;
        Some(FileStamp { len: metadata.len(), modified: metadata.modified().ok()? })
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        self.load_as(index, &Conversion::default())
    }

    fn load_as(&self, index: usize, conversion: &Conversion) -> Result<Image, SourceError> {
        decode::decode_as(&self.bytes(index)?, &self.limits, conversion)
            .map_err(|source| SourceError::Decode { name: self.name(index), source })
    }

    fn deep_values(
        &self,
        index: usize,
        most: usize,
    ) -> Result<Option<(SampleType, Vec<f64>)>, SourceError> {
        decode::deep_values(&self.bytes(index)?, &self.limits, most)
            .map_err(|source| SourceError::Decode { name: self.name(index), source })
    }

    fn visible_colors(
        &self,
        index: usize,
        levels: &Levels,
    ) -> Result<Option<VisibleColors>, SourceError> {
        decode::visible_colors(&self.bytes(index)?, &self.limits, levels)
            .map_err(|source| SourceError::Decode { name: self.name(index), source })
    }

    fn notes(&self) -> Vec<String> {
        self.listing.notes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
    }

    fn names(folder: &Folder) -> Vec<String> {
        (0..folder.len())
            .map(|i| {
                let path = folder.path(i).unwrap();
                path.strip_prefix(&folder.root).unwrap().display().to_string().replace('\\', "/")
            })
            .collect()
    }

    fn open(root: &Path) -> Folder {
        Folder::open(root, &DecodeLimits::default()).unwrap()
    }

    #[test]
    fn lists_in_path_order_and_skips_what_is_hidden_or_no_image() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["b.JPG", "a.png", "Z.webp", "a/c/d.Tiff", "a-b/x.gif", "notes.txt"]);
        touch(dir.path(), &[".hidden/a.png", ".b.png", "jpg", "x.jpg.part"]);
        let folder = open(dir.path());
        assert_eq!(names(&folder), ["Z.webp", "a/c/d.Tiff", "a-b/x.gif", "a.png", "b.JPG"]);
    }

    #[test]
    fn all_formats_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let all = [
            "a.JFIF", "a.apng", "a.bmp", "a.dib", "a.gif", "a.jfif", "a.jpe", "a.jpeg", "a.jpg",
            "a.png", "a.tif", "a.tiff", "a.webp",
        ];
        touch(dir.path(), &all);
        assert_eq!(names(&open(dir.path())), all);
    }

    #[test]
    fn images_are_decoded_within_the_limits() {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::filled(10, 10, [1, 2, 3]);
        let path = dir.path().join("a.png");
        fs::write(&path, crate::encode_png(&image).unwrap()).unwrap();
        let folder = open(dir.path());
        assert_eq!(folder.load(0).unwrap(), image);
        assert_eq!(folder.name(0), path.display().to_string());
        assert_eq!((folder.name(1), folder.path(1)), (String::new(), None));
        let limits = DecodeLimits { max_pixels: 99, ..DecodeLimits::default() };
        let error = Folder::open(dir.path(), &limits).unwrap().load(0).unwrap_err();
        assert!(error.to_string().starts_with(&format!("`{}`: 10x10", path.display())), "{error}");
    }

    #[test]
    fn subfolders_are_classes() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["dog/1.png", "cat/deep/er/2.png", "cat/1.png", "empty/readme.md"]);
        let folder = open(dir.path());
        assert_eq!(folder.classes(), ["cat", "dog"]);
        assert_eq!(names(&folder), ["cat/1.png", "cat/deep/er/2.png", "dog/1.png"]);
        assert_eq!(
            (0..3).map(|i| folder.label(i)).collect::<Vec<_>>(),
            [Some(0), Some(0), Some(1)]
        );
        assert_eq!(folder.label(3), None);
    }

    #[test]
    fn images_in_the_root_mean_no_labels() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["1.png", "cat/1.png"]);
        let folder = open(dir.path());
        assert!(folder.classes().is_empty());
        assert!((0..2).all(|i| folder.label(i).is_none()));
    }

    #[test]
    fn wrong_paths_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["a.txt"]);
        let limits = DecodeLimits::default();
        let error = Folder::open(dir.path(), &limits).unwrap_err();
        assert!(matches!(error, FolderError::NoImages { .. }), "{error}");
        assert!(error.to_string().contains("`.jpeg`"), "{error}");
        let error = Folder::open(dir.path().join("no"), &limits).unwrap_err();
        assert!(matches!(error, FolderError::Missing { .. }), "{error}");
        let error = Folder::open(dir.path().join("a.txt"), &limits).unwrap_err();
        assert!(matches!(error, FolderError::NotAFolder { .. }), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["a.png", "b.png"]);
        let folder = open(dir.path());
        fs::remove_file(dir.path().join("b.png")).unwrap();
        assert!(matches!(folder.load(0), Err(SourceError::Decode { .. })));
        let error = folder.load(1).unwrap_err();
        assert!(matches!(error, SourceError::Read { .. }));
        assert!(error.to_string().contains("b.png"), "{error}");
        assert!(matches!(folder.load(2), Err(SourceError::NoSuchImage { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_what_is_reached_twice_counts_once() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (root, other) = (dir.path().join("root"), tempfile::tempdir().unwrap());
        touch(other.path(), &["o.png", "p.png"]);
        touch(&root, &["a/1.png", "b/2.png"]);
        symlink(root.join("b"), root.join("a/x")).unwrap();
        symlink(root.join("a"), root.join("b/y")).unwrap();
        symlink(&root, root.join("a/up")).unwrap();
        symlink(dir.path(), root.join("a/out")).unwrap();
        symlink("/proc", root.join("a/proc")).unwrap();
        symlink("/", root.join("a/all")).unwrap();
        symlink(other.path(), root.join("c")).unwrap();
        symlink(other.path(), root.join("d")).unwrap();
        symlink(other.path().join("o.png"), root.join("a/l.png")).unwrap();
        symlink(other.path().join("o.png"), root.join("b/l.png")).unwrap();
        symlink("1.png", root.join("a/0.png")).unwrap();
        // A hard link is a file of its own.
        fs::hard_link(root.join("a/1.png"), root.join("a/h.png")).unwrap();
        let folder = open(&root);
        assert_eq!(names(&folder), ["a/1.png", "a/h.png", "a/l.png", "b/2.png", "c/p.png"]);
        assert_eq!(folder.classes(), ["a", "b", "c"]);
        let relative = |paths: &[PathBuf]| -> Vec<String> {
            let relative = |path: &PathBuf| path.strip_prefix(&root).unwrap().display().to_string();
            let mut all: Vec<_> = paths.iter().map(relative).collect();
            all.sort();
            all
        };
        let twice = ["a/0.png", "a/up", "a/x", "b/l.png", "b/y", "c/o.png", "d"];
        assert_eq!(relative(&folder.listing().twice), twice);
        assert_eq!(relative(&folder.listing().not_followed), ["a/all", "a/out", "a/proc"]);
        let notes = folder.notes();
        assert!(notes[0].starts_with("7 links lead to what is listed already"), "{notes:?}");
        assert!(notes[1].starts_with("links not followed, to a folder around"), "{notes:?}");
        assert_eq!(names(&open(&root)), names(&folder));
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_no_text_stay_apart() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        for class in [b"p\xe9che".as_slice(), b"p\xe8che", b"z", b"a\x1b[2J"] {
            let class = dir.path().join(OsStr::from_bytes(class));
            fs::create_dir(&class).unwrap();
            fs::write(class.join(OsStr::from_bytes(b"\xff.png")), b"").unwrap();
            fs::write(class.join(OsStr::from_bytes(b"\xfe.png")), b"").unwrap();
        }
        let folder = open(dir.path());
        assert_eq!(folder.classes(), ["a\\x1b[2J", "p\\xe8che", "p\\xe9che", "z"]);
        let labels: Vec<_> = (0..8).map(|i| folder.label(i).unwrap()).collect();
        assert_eq!(labels, [0, 0, 1, 1, 2, 2, 3, 3]);
        assert!(folder.name(2).ends_with("p\\xe8che/\\xfe.png"), "{}", folder.name(2));
        // Names are exact but for such bytes; messages show control characters.
        assert!(folder.name(0).ends_with("a\x1b[2J/\\xfe.png"));
        let error = folder.load(0).unwrap_err().to_string();
        assert!(error.contains("a\\x1b[2J") && !error.contains('\x1b'), "{error}");
    }

    #[test]
    fn splits_are_no_classes() {
        let dir = tempfile::tempdir().unwrap();
        let images = ["train/dog/1.png", "train/cat/2.png", "Val/dog/3.png", "Val/cat/4.png"];
        touch(dir.path(), &images);
        touch(dir.path(), &["labels.csv", "annotations/a.json"]);
        let folder = open(dir.path());
        let labels = |folder: &Folder| -> Vec<u32> {
            (0..folder.len()).map(|i| folder.label(i).unwrap()).collect()
        };
        assert_eq!(folder.classes(), ["cat", "dog"]);
        assert_eq!(labels(&folder), [0, 1, 0, 1]);
        let split = |name: &str| Split { name: name.into(), images: 2 };
        assert_eq!(folder.listing().splits, [split("Val"), split("train")]);
        assert_eq!(
            folder.notes()[0],
            "`Val` (2), `train` (2) are splits, not classes: all are used"
        );

        let limits = DecodeLimits::default();
        let train = Folder::open_for_training(dir.path(), &limits).unwrap();
        assert_eq!(names(&train), ["train/cat/2.png", "train/dog/1.png"]);
        assert_eq!((labels(&train), train.classes().len()), (vec![0, 1], 2));
        assert!(train.notes()[0].ends_with("are splits, not classes: only `train` is used"));
        let mut val = open(dir.path());
        val.keep_split("Val").unwrap();
        assert_eq!(names(&val), ["Val/cat/4.png", "Val/dog/3.png"]);
        assert!(matches!(val.keep_split("test"), Err(FolderError::NoSplit { .. })));

        // A split alone; without folders in it there are no labels.
        let alone = tempfile::tempdir().unwrap();
        touch(alone.path(), &["train/1.png", "train/a/2.png"]);
        let folder = open(alone.path());
        assert_eq!((folder.listing().splits.len(), folder.classes().len()), (1, 0));
        // Other classes beside, or images in the root.
        for other in ["cat/1.png", "1.png"] {
            let dir = tempfile::tempdir().unwrap();
            touch(dir.path(), &["train/a/1.png", "val/a/1.png", other]);
            let folder = Folder::open_for_training(dir.path(), &limits).unwrap();
            assert!(folder.listing().splits.is_empty() && folder.len() == 3, "{other}");
        }
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["a.jpg", "b.HEIC", "x/c.heic", "d.avif", "README", ".hidden", "e.mov"]);
        let notes = open(dir.path()).notes();
        let line = "4 files with other extensions left out: 2 .heic, 1 .avif, 1 .mov";
        assert_eq!(notes, [format!("{line}; 1 without extension")]);
        fs::remove_file(dir.path().join("a.jpg")).unwrap();
        let error = Folder::open(dir.path(), &DecodeLimits::default()).unwrap_err().to_string();
        assert!(error.contains(&format!("or below; {line}; 1 without")), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_cannot_be_listed_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["a/1.png", "b/2.png"]);
        // A link to itself cannot be followed, whoever asks.
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        let closed = |mode| {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(dir.path().join("b"), fs::Permissions::from_mode(mode)).unwrap();
        };
        closed(0);
        let folder = open(dir.path());
        // The administrator may list everything.
        if fs::read_dir(dir.path().join("b")).is_err() {
            assert_eq!(names(&folder), ["a/1.png"]);
            let note = format!("left out the folder `{}/b`: ", dir.path().display());
            assert!(folder.notes().iter().any(|line| line.starts_with(&note)));
            closed(0o755);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_nothing_fails_when_it_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere.png", dir.path().join("a.png")).unwrap();
        let folder = open(dir.path());
        let error = folder.load(0).unwrap_err();
        assert!(matches!(error, SourceError::Read { .. }), "{error}");
        assert!(error.to_string().ends_with("\nhint: check the path"), "{error}");
    }
}
