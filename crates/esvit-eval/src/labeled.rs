//! Classification tasks: labeled training (gallery) images and labeled query images.

mod of_run;
pub(crate) mod remarks;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use esvit_data::{
    Conversion, DecodeLimits, Folder, FolderError, Image, ImageError, MaterialsTask, Preprocess,
    Source, SourceError,
};
use esvit_files::read_hint;
use esvit_kernels::rng::Rng;
use esvit_model::PretrainedBackbone;
use esvit_model::features::{self, Features, NotFinite, SkippedImage, view_forward};
use rayon::prelude::*;

pub use of_run::{judging_images, same_files};
pub use remarks::Remarks;

/// RNG purpose of the choice of images.
const CHOICE_PURPOSE: u64 = 0xC401CE;
/// Fraction (1 / 5) of images held out as queries if a dataset has no split of its own.
pub(crate) const HELD_OUT: usize = 5;

/// A subset of a source, with its classes.
#[derive(Clone)]
pub struct LabeledSet {
    /// The source.
    pub source: Arc<dyn Source>,
    /// Indices into the source.
    pub images: Vec<usize>,
    /// Maps the source's class indices to the task's, if they differ.
    classes: Option<Arc<[u32]>>,
}

/// Training and query images with common classes.
#[derive(Clone)]
pub struct LabeledTask {
    /// Training images: the gallery of k-NN, the training set of classifiers.
    pub train: LabeledSet,
    /// Query images.
    pub queries: LabeledSet,
    /// Class names by index. Query images of other classes have indices beyond the end.
    pub classes: Vec<String>,
    /// Description for output.
    pub description: String,
    /// What should be said of it.
    pub remarks: Remarks,
}

/// A task cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A folder cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A file or folder cannot be read.
    #[error("cannot read `{path}`: {source}\nhint: {hint}", path = path.display(), hint = read_hint(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file of labels does not list images with their labels, or none of the folder's: says what
    /// is wrong and where.
    #[error("{0}")]
    Table(String),
    /// The built-in images cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The folder is not organized in one subfolder per class.
    #[error(
        "`{0}` has no labels: its images are not in one folder per class\n\
         hint: labels are read from `FOLDER/<class>/<image>`"
    )]
    NoLabels(String),
    /// There are too few images to hold any out.
    #[error(
        "`{0}` holds one image only, and some must be held out as queries\n\
         hint: name a folder of query images with `--val`"
    )]
    OneImage(String),
    /// The images of a run are in several folders, none of which is named as the gallery.
    #[error(
        "`knn.val` has no folder of labeled images to go with: the images are in several\n\
         hint: name it with `knn.train`"
    )]
    NoGallery,
    /// The two folders share no class.
    #[error("`{train}` and `{queries}` have no class in common")]
    Classes {
        /// Folder of training images.
        train: String,
        /// Folder of query images.
        queries: String,
    },
}

impl LabeledTask {
    /// The built-in task: training crops come from one part of each built-in image, query crops
    /// with other colors from another.
    ///
    /// # Errors
    /// [`TaskError::Source`] if the built-in images cannot be decoded.
    pub fn materials() -> Result<Self, TaskError> {
        let MaterialsTask { gallery: train, queries } = MaterialsTask::new()?;
        Ok(Self {
            classes: train.classes().to_vec(),
            train: LabeledSet::all(Arc::new(train)),
            queries: LabeledSet::all(Arc::new(queries)),
            description: "built-in materials".into(),
            remarks: Remarks::default(),
        })
    }

    /// The labeled images of a source, every fifth of them held out as query; at most `max_images` of
    /// each, chosen at random.
    pub fn held_out(source: Arc<dyn Source>, name: &str, max_images: usize) -> Self {
        let classes = source.classes().to_vec();
        let (mut train, mut queries) = LabeledSet::all(source).split(HELD_OUT);
        train.limit(max_images);
        queries.limit(max_images);
        let description = format!("{name}, every fifth image set aside");
        Self { train, queries, classes, description, remarks: Remarks::default() }
    }

    /// A task of labeled folders. A folder that holds `train` and `val` stands for these. Without
    /// `queries`, every fifth image of `train` is held out as query. At most `max_images` of each
    /// set are used, chosen at random.
    ///
    /// # Errors
    /// [`TaskError`] if a folder cannot be read or has no labels, or the two share no class.
    pub fn folders(
        train: &Path,
        queries: Option<&Path>,
        limits: &DecodeLimits,
        max_images: usize,
    ) -> Result<Self, TaskError> {
        let mut remarks = Remarks::default();
        let (train_path, query_path) = remarks::sides(train, queries, &mut remarks);
        let folder = open(&train_path, limits)?;
        let classes = folder.classes().to_vec();
        let mut description = format!("`{}`", train_path.display());
        let (mut train, mut queries, query_folder) = match &query_path {
            Some(path) => {
                description.push_str(&format!(" and `{}`", path.display()));
                let other = open(path, limits)?;
                let numbers =
                    map_classes(&classes, other.classes()).ok_or_else(|| TaskError::Classes {
                        train: train_path.display().to_string(),
                        queries: path.display().to_string(),
                    })?;
                let numbers = Some(numbers.into());
                let queries = LabeledSet { classes: numbers, ..LabeledSet::all(other.clone()) };
                (LabeledSet::all(folder.clone()), queries, other)
            }
            None if folder.len() < 2 => {
                return Err(TaskError::OneImage(train_path.display().to_string()));
            }
            None => {
                description.push_str(", every fifth image set aside");
                let (rest, queries) = LabeledSet::all(folder.clone()).split(HELD_OUT);
                (rest, queries, folder.clone())
            }
        };
        train.limit(max_images);
        queries.limit(max_images);
        let files = [(&folder, &train), (&query_folder, &queries)]
            .map(|(folder, set)| paths(folder, &set.images));
        let shared = remarks::shared_images(
            (&train_path, &files[0]),
            (query_path.as_ref().unwrap_or(&train_path), &files[1]),
            query_path.is_none(),
        );
        let one_class = remarks::one_class(&train, &classes);
        let unknown = remarks::unknown_classes(&train, &queries, &classes);
        remarks.warnings.extend([one_class, unknown, shared].into_iter().flatten());
        Ok(Self { train, queries, classes, description, remarks })
    }

    /// Number of training and of query images.
    pub fn images(&self) -> (usize, usize) {
        (self.train.images.len(), self.queries.images.len())
    }
}

fn open(path: &Path, limits: &DecodeLimits) -> Result<Arc<Folder>, TaskError> {
    let folder = Folder::open(path, limits)?;
    if folder.classes().is_empty() {
        return Err(TaskError::NoLabels(path.display().to_string()));
    }
    Ok(Arc::new(folder))
}

/// Paths of some images of a folder.
pub(crate) fn paths(folder: &Folder, images: &[usize]) -> Vec<PathBuf> {
    images.iter().filter_map(|&index| folder.path(index)).collect()
}

impl LabeledSet {
    /// All images of a source.
    pub fn all(source: Arc<dyn Source>) -> Self {
        Self { images: (0..source.len()).collect(), source, classes: None }
    }

    /// Class index, in the task, of image `index` of the source.
    pub fn label(&self, index: usize) -> u32 {
        let own = self.source.label(index).unwrap_or(0);
        self.classes.as_ref().map_or(own, |classes| classes[own as usize])
    }

    /// Splits off one in `one_in` images, in a fixed pseudo-random order: (rest, held out).
    #[must_use]
    pub fn split(&self, one_in: usize) -> (Self, Self) {
        let (rest, held_out_set) = held_out(self.images.len(), one_in);
        let side = |places: Vec<usize>| Self {
            images: places.into_iter().map(|place| self.images[place]).collect(),
            ..self.clone()
        };
        (side(rest), side(held_out_set))
    }

    /// Keeps at most `count` images, chosen at random (always the same).
    pub fn limit(&mut self, count: usize) {
        if self.images.len() > count {
            let order = shuffled(self.images.len());
            self.images = order[..count].iter().map(|&place| self.images[place]).collect();
        }
    }

    /// Features of all images with the task's class indices; see [`features::extract`].
    ///
    /// # Errors
    /// [`NotFinite`] if a value is not finite.
    pub fn features(
        &self,
        preprocess: &Preprocess,
        forward: impl FnMut(Vec<f32>, usize) -> Vec<f32>,
        done: impl FnMut(usize),
    ) -> Result<Features, NotFinite> {
        let mut features =
            features::extract(&*self.source, &self.images, preprocess, forward, done)?;
        features.rows.labels = features.images.iter().map(|&index| self.label(index)).collect();
        Ok(features)
    }

    /// Loads, as `conversion` says, and prepares some images; also returns those that could not be.
    pub(crate) fn prepare<T: Send>(
        &self,
        images: &[usize],
        conversion: &Conversion,
        prepare: impl Fn(usize, &Image) -> Result<T, ImageError> + Sync,
    ) -> (Vec<(usize, T)>, Vec<SkippedImage>) {
        let prepared = |&index: &usize| {
            let image = self.source.load_as(index, conversion).map_err(|error| error.reason())?;
            prepare(index, &image).map_err(|error| error.to_string())
        };
        let all: Vec<Result<T, String>> = images.par_iter().map(prepared).collect();
        let (mut whole, mut left_out) = (Vec::new(), Vec::new());
        for (&index, prepared) in images.iter().zip(all) {
            let name = || self.source.name(index);
            match prepared {
                Ok(prepared) => whole.push((index, prepared)),
                Err(reason) => left_out.push(SkippedImage { index, name: name(), reason }),
            }
        }
        (whole, left_out)
    }

    /// View features of all images.
    ///
    /// # Errors
    /// [`NotFinite`] if a value is not finite.
    pub fn view_features(
        &self,
        backbone: &PretrainedBackbone,
        done: impl FnMut(usize),
    ) -> Result<Features, NotFinite> {
        let PretrainedBackbone { network, params, preprocess, .. } = backbone;
        self.features(preprocess, view_forward(&**network, params, preprocess), done)
    }
}

/// Splits `0..len` in a fixed pseudo-random order: (rest, one in `one_in`).
pub(crate) fn held_out(len: usize, one_in: usize) -> (Vec<usize>, Vec<usize>) {
    let (mut rest, mut held_out_set) = (Vec::new(), Vec::new());
    for (place, chosen) in shuffled(len).into_iter().enumerate() {
        let side = if place % one_in == 0 { &mut held_out_set } else { &mut rest };
        side.push(chosen);
    }
    (rest, held_out_set)
}

/// A fixed pseudo-random permutation of `0..len`.
fn shuffled(len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    Rng::for_purpose(0, CHOICE_PURPOSE, [0; 3]).shuffle(&mut order);
    order
}

/// Maps class indices of `other` to those of `known`; classes that are not in `known` get new
/// indices. `None` if they share no class.
fn map_classes(known: &[String], other: &[String]) -> Option<Vec<u32>> {
    let numbers: HashMap<&str, u32> =
        known.iter().zip(0..).map(|(name, number)| (name.as_str(), number)).collect();
    if !other.iter().any(|name| numbers.contains_key(name.as_str())) {
        return None;
    }
    let new = known.len() as u32..;
    let number = |(name, new): (&String, u32)| numbers.get(name.as_str()).copied().unwrap_or(new);
    Some(other.iter().zip(new).map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_matched_by_name() {
        let names = |names: &[&str]| names.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let known = names(&["ape", "bee", "cat"]);
        let numbers = map_classes(&known, &names(&["bee", "cat", "dog"])).unwrap();
        assert_eq!(numbers, [1, 2, 5]);
        assert_eq!(map_classes(&known, &names(&["dog"])), None);
    }

    /// Files are no images: only their bytes matter.
    #[test]
    fn what_a_task_is_worth_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        let task = |train: &str, queries: Option<&str>| {
            let queries = queries.map(|name| folder.path().join(name));
            let limits = DecodeLimits::default();
            let train = folder.path().join(train);
            LabeledTask::folders(&train, queries.as_deref(), &limits, usize::MAX).unwrap()
        };
        for (class, image) in [("a", 0), ("a", 1), ("a", 2), ("b", 3), ("b", 4), ("b", 5)] {
            write(&format!("train/{class}/{image}.png"), &format!("t{image}"));
        }
        write("val/a/1.png", "v1");
        write("val/b/2.png", "v2");
        assert_eq!(task("train", Some("val")).remarks, Remarks::default());
        assert_eq!(task("train", None).remarks, Remarks::default());

        let root = task("", None);
        assert_eq!(root.images(), (6, 2));
        assert_eq!((root.classes, root.remarks.warnings.len()), (vec!["a".into(), "b".into()], 0));
        assert!(root.remarks.notes[0].ends_with("are those in `train`"), "{:?}", root.remarks);

        write("val/c/1.png", "v3");
        write("val/a/2.png", "t4");
        let warnings = task("train", Some("val")).remarks.warnings;
        assert!(warnings[0].starts_with("1 query image of classes without"), "{warnings:?}");
        assert!(warnings[0].contains("such as `c`"), "{warnings:?}");
        assert!(warnings[1].starts_with("1 of 4 query images are training"), "{warnings:?}");
        let warnings = task("train", Some("train")).remarks.warnings;
        assert!(warnings[0].contains("are the same folder"), "{warnings:?}");

        write("one/a/1.png", "1");
        write("one/a/2.png", "2");
        let warnings = task("one", None).remarks.warnings;
        assert!(warnings[0].starts_with("all 1 training images are of one class, `a`"));
    }

    fn set(count: usize, classes: Option<Vec<u32>>) -> LabeledSet {
        let mut source = esvit_data::InMemory::new(vec!["a".into(), "b".into()]);
        for i in 0..count {
            let image = esvit_data::Image::new(1, 1, vec![0; 3]).unwrap();
            source.push(i.to_string(), Some(i as u32 % 2), image);
        }
        LabeledSet { classes: classes.map(Into::into), ..LabeledSet::all(Arc::new(source)) }
    }

    #[test]
    fn labels_count_as_the_task_does() {
        let own = set(2, None);
        let other = set(2, Some(vec![4, 1]));
        assert_eq!([0, 1].map(|index| own.label(index)), [0, 1]);
        assert_eq!([0, 1].map(|index| other.label(index)), [4, 1]);
    }

    #[test]
    fn every_fifth_image_of_a_random_order_is_set_aside() {
        let (rest, held_out_set) = set(23, None).split(5);
        assert_eq!((rest.images.len(), held_out_set.images.len()), (18, 5));
        let mut all = [&rest.images[..], &held_out_set.images].concat();
        assert_ne!(held_out_set.images, [0, 1, 2, 3, 4]);
        all.sort_unstable();
        assert_eq!(all, (0..23).collect::<Vec<_>>());
        // Every fifth of the order, not its beginning.
        let order = shuffled(23);
        assert_eq!(held_out_set.images, [order[0], order[5], order[10], order[15], order[20]]);
        assert_eq!(held_out(23, 5), held_out(23, 5));
    }

    #[test]
    fn at_most_so_many_images_of_the_list_are_kept() {
        let mut some = set(30, None);
        some.images = (10..20).collect();
        let mut few = some.clone();
        few.limit(4);
        assert!(few.images.len() == 4 && few.images.iter().all(|i| (10..20).contains(i)));
        assert_ne!(few.images, [10, 11, 12, 13]);
        some.limit(10);
        assert_eq!(some.images, (10..20).collect::<Vec<_>>());
    }
}
