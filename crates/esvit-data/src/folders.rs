//! Several folders of images as one source.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use esvit_settings::describe::{Describe, Value, json};
use serde::{Deserialize, Serialize};

use crate::{
    Conversion, DecodeLimits, FileStamp, Folder, FolderError, Image, Levels, SampleType, Source,
    SourceError, VisibleColors, printable,
};

/// One or more folders of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a folder or a list of folders")]
pub enum Folders {
    /// One.
    One(PathBuf),
    /// Several, in this order.
    Several(Vec<PathBuf>),
}

impl Describe for Folders {
    fn schema() -> Value {
        json!({ "anyOf": [PathBuf::schema(), Vec::<PathBuf>::schema()] })
    }
}

impl Folders {
    /// Those that are named, if there are any.
    pub fn of(paths: &[PathBuf]) -> Option<Self> {
        match paths {
            [] => None,
            [path] => Some(Self::One(path.clone())),
            paths => Some(Self::Several(paths.to_vec())),
        }
    }

    /// Their paths.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Several(paths) => paths,
        }
    }

    /// The path, if it is one.
    pub fn one(&self) -> Option<&Path> {
        match self.paths() {
            [path] => Some(path),
            _ => None,
        }
    }

    /// All images below, as [`Folder::open`] lists them, one folder after the other.
    ///
    /// # Errors
    /// [`FolderError`] if a folder cannot be read, has no images or lies in another one.
    pub fn open(&self, limits: &DecodeLimits) -> Result<Arc<dyn Source>, FolderError> {
        self.join(|path| Folder::open(path, limits))
    }

    /// The images to train with, as [`Folder::open_for_training`] lists them.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_for_training(&self, limits: &DecodeLimits) -> Result<Arc<dyn Source>, FolderError> {
        self.join(|path| Folder::open_for_training(path, limits))
    }

    fn join(
        &self,
        open: impl Fn(&Path) -> Result<Folder, FolderError>,
    ) -> Result<Arc<dyn Source>, FolderError> {
        if let Some(path) = self.one() {
            return Ok(Arc::new(open(path)?));
        }
        let folders = self.paths().iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
        let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        let real: Vec<PathBuf> = self.paths().iter().map(real).collect();
        for (i, inner) in real.iter().enumerate() {
            let outer = (0..real.len()).find(|&j| i != j && inner.starts_with(&real[j]));
            if let Some(outer) = outer {
                let [inner, outer] = [i, outer].map(|i| self.paths()[i].clone());
                return Err(FolderError::Nested { inner, outer });
            }
        }
        Ok(Arc::new(Joined::new(folders)?))
    }
}

impl fmt::Display for Folders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> =
            self.paths().iter().map(|path| format!("`{}`", printable(path))).collect();
        f.write_str(&names.join(", "))
    }
}

/// The images of several folders. Classes are told apart by name over all folders; if one of them
/// has none, there are no labels.
#[derive(Debug)]
struct Joined {
    folders: Vec<Folder>,
    /// Number of images before each folder.
    starts: Vec<usize>,
    classes: Vec<String>,
    /// The label of each class of each folder.
    labels: Vec<Vec<u32>>,
}

impl Joined {
    fn new(folders: Vec<Folder>) -> Result<Self, FolderError> {
        if folders.is_empty() {
            return Err(FolderError::NoFolders);
        }
        let starts = folders.iter().scan(0, |next, folder| {
            let start = *next;
            *next += folder.len();
            Some(start)
        });
        let starts = starts.collect();
        let has_labels = folders.iter().all(|folder| !folder.classes().is_empty());
        let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
        for class in folders.iter().filter(|_| has_labels).flat_map(|folder| folder.classes()) {
            numbers.insert(class, 0);
        }
        for (number, next) in numbers.values_mut().zip(0..) {
            *number = next;
        }
        let classes = numbers.keys().map(|&class| class.to_owned()).collect();
        let of_folder = |folder: &Folder| {
            let labels = folder.classes().iter().filter(|_| has_labels);
            labels.map(|class| numbers[class.as_str()]).collect()
        };
        let labels = folders.iter().map(of_folder).collect();
        Ok(Self { folders, starts, classes, labels })
    }

    /// The folder of an image, and the image's place in it.
    fn place(&self, index: usize) -> (usize, usize) {
        let folder = self.starts.partition_point(|&start| start <= index).saturating_sub(1);
        (folder, index - self.starts[folder])
    }

    fn at(&self, index: usize) -> (&Folder, usize) {
        let (folder, index) = self.place(index);
        (&self.folders[folder], index)
    }
}

impl Source for Joined {
    fn len(&self) -> usize {
        self.folders.iter().map(Folder::len).sum()
    }

    fn name(&self, index: usize) -> String {
        let (folder, index) = self.at(index);
        folder.name(index)
    }

    fn label(&self, index: usize) -> Option<u32> {
        let (folder, index) = self.place(index);
        let label = self.folders[folder].label(index)? as usize;
        self.labels[folder].get(label).copied()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn stamp(&self, index: usize) -> Option<FileStamp> {
        let (folder, index) = self.at(index);
        folder.stamp(index)
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        let (folder, index) = self.at(index);
        folder.load(index)
    }

    fn load_as(&self, index: usize, conversion: &Conversion) -> Result<Image, SourceError> {
        let (folder, index) = self.at(index);
        folder.load_as(index, conversion)
    }

    fn deep_values(
        &self,
        index: usize,
        most: usize,
    ) -> Result<Option<(SampleType, Vec<f64>)>, SourceError> {
        let (folder, index) = self.at(index);
        folder.deep_values(index, most)
    }

    fn visible_colors(
        &self,
        index: usize,
        levels: &Levels,
    ) -> Result<Option<VisibleColors>, SourceError> {
        let (folder, index) = self.at(index);
        folder.visible_colors(index, levels)
    }

    fn notes(&self) -> Vec<String> {
        let of_folder = |folder: &Folder| {
            let root = printable(folder.root());
            folder.notes().into_iter().map(move |note| format!("`{root}`: {note}"))
        };
        let mut notes: Vec<String> = self.folders.iter().flat_map(of_folder).collect();
        let some = self.folders.iter().any(|folder| !folder.classes().is_empty());
        if some && self.classes.is_empty() {
            notes
                .push("some of the folders have classes and others not: no labels are used".into());
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode_png;

    fn place(files: &[(&str, [u8; 3])]) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        for (name, color) in files {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, encode_png(&Image::filled(4, 4, *color)).unwrap()).unwrap();
        }
        place
    }

    fn open(place: &tempfile::TempDir, names: &[&str]) -> Result<Arc<dyn Source>, FolderError> {
        let paths: Vec<PathBuf> = names.iter().map(|name| place.path().join(name)).collect();
        Folders::of(&paths).unwrap().open(&DecodeLimits::default())
    }

    #[test]
    fn images_come_folder_by_folder() {
        let files = [("b/1.png", [1; 3]), ("b/2.png", [2; 3]), ("a/3.png", [3; 3])];
        let place = place(&files);
        let source = open(&place, &["b", "a"]).unwrap();
        assert_eq!((source.len(), source.classes().len(), source.label(0)), (3, 0, None));
        for (index, (name, color)) in files.iter().enumerate() {
            let name = place.path().join(name).display().to_string();
            assert_eq!(source.name(index), name);
            assert_eq!(source.load(index).unwrap().pixel(0, 0), Some(*color));
            assert_eq!(source.load_as(index, &Conversion::default()).unwrap().width(), 4);
            assert!(source.stamp(index).is_some());
            assert!(source.deep_values(index, 9).unwrap().is_none());
        }
        assert_eq!((source.name(3), source.stamp(3)), (String::new(), None));
        assert!(source.load(3).is_err());
    }

    #[test]
    fn classes_of_one_name_are_one_class() {
        let white = [255; 3];
        let place = place(&[
            ("x/cat/1.png", white),
            ("x/dog/1.png", white),
            ("y/ant/1.png", white),
            ("y/dog/1.png", white),
            ("z/1.png", white),
        ]);
        let source = open(&place, &["x", "y"]).unwrap();
        assert_eq!(source.classes(), ["ant", "cat", "dog"]);
        let labels: Vec<_> = (0..4).map(|index| source.label(index)).collect();
        assert_eq!(labels, [Some(1), Some(2), Some(0), Some(2)]);
        assert!(source.notes().is_empty(), "{:?}", source.notes());

        let source = open(&place, &["x", "z"]).unwrap();
        assert_eq!((source.classes().len(), source.label(0)), (0, None));
        assert!(source.notes().last().unwrap().contains("no labels"), "{:?}", source.notes());
    }

    #[test]
    fn no_image_counts_twice() {
        let place = place(&[("a/b/1.png", [0; 3]), ("a/2.png", [0; 3]), ("ab/3.png", [0; 3])]);
        for names in [["a", "a/b"], ["a/b", "a"], ["a", "a"], ["a", "ab/../a"]] {
            let error = open(&place, &names).err().unwrap();
            assert!(matches!(error, FolderError::Nested { .. }), "{names:?}: {error}");
        }
        // A name that begins alike is another folder.
        assert_eq!(open(&place, &["a", "ab"]).unwrap().len(), 3);
        let error = Folders::Several(vec![]).open(&DecodeLimits::default()).err().unwrap();
        assert!(matches!(error, FolderError::NoFolders), "{error}");
    }

    #[test]
    fn one_folder_is_itself() {
        let place =
            place(&[("train/a/1.png", [0; 3]), ("val/a/2.png", [0; 3]), ("more/3.png", [0; 3])]);
        let folders = Folders::of(&[place.path().to_path_buf()]).unwrap();
        assert_eq!(folders.one(), Some(place.path()));
        let limits = DecodeLimits::default();
        assert_eq!(folders.open(&limits).unwrap().len(), 3);
        let paths = ["train", "more"].map(|name| place.path().join(name));
        let folders = Folders::of(&paths).unwrap();
        assert_eq!((folders.one(), folders.open_for_training(&limits).unwrap().len()), (None, 2));
        assert_eq!(Folders::of(&[]), None);
    }
}
