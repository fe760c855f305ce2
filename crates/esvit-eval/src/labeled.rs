//! Labeled tasks: images whose classes are known, and images that are classified.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use esvit_data::{DecodeLimits, Folder, FolderError, MaterialsTask, Source, SourceError};
use esvit_kernels::rng::Rng;

use esvit_data::Preprocess;
use esvit_model::features::{self, Features};

/// Purpose word of the numbers that choose images.
const CHOICE_PURPOSE: u64 = 0xC401CE;
/// One image in so many is classified where a set has no images set aside for that.
pub(crate) const HELD_OUT: usize = 5;

/// Some images of a source with their classes.
#[derive(Clone)]
pub struct LabeledSet {
    /// Where the images come from.
    pub source: Arc<dyn Source>,
    /// Indices into the source.
    pub images: Vec<usize>,
    /// For every class of the source its number in the task, where the two count differently.
    classes: Option<Arc<[u32]>>,
}

/// Images to learn from and images that are classified.
#[derive(Clone)]
pub struct LabeledTask {
    /// The images that vote, or that a classifier is fitted to.
    pub train: LabeledSet,
    /// The images that are classified.
    pub queries: LabeledSet,
    /// Names of the classes, in the order of their numbers. Query images of a class that is not
    /// among them have higher numbers.
    pub classes: Vec<String>,
    /// What the task is, for people.
    pub description: String,
}

/// Why there is no task.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A folder cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The built-in images cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A folder has no labels.
    #[error(
        "`{folder}` has no labels: its images do not lie in one folder a class\n\
         hint: labels are read from `FOLDER/<class>/<image>`"
    )]
    NoLabels {
        /// The folder.
        folder: String,
    },
    /// There is nothing that could be set aside.
    #[error(
        "`{folder}` holds one image only, and some must be set aside to be classified\n\
         hint: name the folder of those with `--val`"
    )]
    OneImage {
        /// The folder.
        folder: String,
    },
    /// The two folders have no class in common.
    #[error("`{train}` and `{queries}` have no class in common")]
    Classes {
        /// The folder whose images are learned from.
        train: String,
        /// The folder whose images are classified.
        queries: String,
    },
}

impl LabeledTask {
    /// The built-in task: crops from one part of each built-in image are learned from, crops from
    /// another part, with other colors, are classified.
    ///
    /// # Errors
    /// When the built-in images cannot be decoded.
    pub fn materials() -> Result<Self, TaskError> {
        let (train, queries) = MaterialsTask::new()?.into_sources();
        Ok(Self {
            classes: train.classes().to_vec(),
            train: LabeledSet::all(Arc::new(train)),
            queries: LabeledSet::all(Arc::new(queries)),
            description: "built-in materials".into(),
        })
    }

    /// A labeled folder whose images are learned from and, if there is one, a second whose
    /// images are classified; else every fifth image of the first is set aside for that. At
    /// most `max_images` of each are used, chosen at random.
    ///
    /// # Errors
    /// When a folder cannot be read or has no labels, or the two share no class.
    pub fn folders(
        train: &Path,
        queries: Option<&Path>,
        limits: &DecodeLimits,
        max_images: usize,
    ) -> Result<Self, TaskError> {
        let folder = open(train, limits)?;
        let classes = folder.classes().to_vec();
        let mut description = format!("`{}`", train.display());
        let (mut train, mut queries) = match queries {
            Some(path) => {
                description.push_str(&format!(" and `{}`", path.display()));
                let other = open(path, limits)?;
                let numbers =
                    same_classes(&classes, other.classes()).ok_or_else(|| TaskError::Classes {
                        train: train.display().to_string(),
                        queries: path.display().to_string(),
                    })?;
                let numbers = Some(numbers.into());
                (LabeledSet::all(folder), LabeledSet { classes: numbers, ..LabeledSet::all(other) })
            }
            None if folder.len() < 2 => {
                return Err(TaskError::OneImage { folder: train.display().to_string() });
            }
            None => {
                description.push_str(", every fifth image set aside");
                LabeledSet::all(folder).split(HELD_OUT)
            }
        };
        train.limit(max_images);
        queries.limit(max_images);
        Ok(Self { train, queries, classes, description })
    }

    /// Number of images to learn from and of images that are classified.
    pub fn images(&self) -> (usize, usize) {
        (self.train.images.len(), self.queries.images.len())
    }
}

fn open(path: &Path, limits: &DecodeLimits) -> Result<Arc<Folder>, TaskError> {
    let folder = Folder::open(path, limits)?;
    if folder.classes().is_empty() {
        return Err(TaskError::NoLabels { folder: path.display().to_string() });
    }
    Ok(Arc::new(folder))
}

impl LabeledSet {
    /// All images of a source.
    pub fn all(source: Arc<dyn Source>) -> Self {
        Self { images: (0..source.len()).collect(), source, classes: None }
    }

    /// The task's number of the class of image `index` of the source.
    pub fn label(&self, index: usize) -> u32 {
        let own = self.source.label(index).unwrap_or(0);
        self.classes.as_ref().map_or(own, |classes| classes[own as usize])
    }

    /// The set without every `one_in`th of its images, in an order that looks random and is
    /// always the same, and those images.
    #[must_use]
    pub fn split(&self, one_in: usize) -> (Self, Self) {
        let (rest, aside) = held_out(self.images.len(), one_in);
        let side = |places: Vec<usize>| Self {
            images: places.into_iter().map(|place| self.images[place]).collect(),
            ..self.clone()
        };
        (side(rest), side(aside))
    }

    /// Keeps at most `count` images, chosen at random.
    pub fn limit(&mut self, count: usize) {
        if self.images.len() > count {
            let order = shuffled(self.images.len());
            self.images = order[..count].iter().map(|&place| self.images[place]).collect();
        }
    }

    /// Features of all images with the task's labels; see [`features::extract`].
    pub fn features(
        &self,
        preprocess: &Preprocess,
        forward: impl FnMut(Vec<f32>, usize) -> Vec<f32>,
        done: impl FnMut(usize),
    ) -> Features {
        let mut features =
            features::extract(&*self.source, &self.images, preprocess, forward, done);
        features.rows.labels = features.images.iter().map(|&index| self.label(index)).collect();
        features
    }
}

/// The numbers up to `len` without every `one_in`th of them, in an order that looks random and is
/// always the same, and those numbers.
pub(crate) fn held_out(len: usize, one_in: usize) -> (Vec<usize>, Vec<usize>) {
    let (mut rest, mut aside) = (Vec::new(), Vec::new());
    for (place, chosen) in shuffled(len).into_iter().enumerate() {
        let side = if place % one_in == 0 { &mut aside } else { &mut rest };
        side.push(chosen);
    }
    (rest, aside)
}

/// The numbers up to `len` in an order that is the same every time.
fn shuffled(len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    Rng::for_purpose(0, CHOICE_PURPOSE, [0; 3]).shuffle(&mut order);
    order
}

/// For every class of `other` its number in `known`; classes that are not known get numbers that
/// no known class has. None when no class is known.
fn same_classes(known: &[String], other: &[String]) -> Option<Vec<u32>> {
    let numbers: HashMap<&str, u32> =
        known.iter().zip(0..).map(|(name, number)| (name.as_str(), number)).collect();
    if !other.iter().any(|name| numbers.contains_key(name.as_str())) {
        return None;
    }
    let unknown = known.len() as u32..;
    Some(
        other
            .iter()
            .zip(unknown)
            .map(|(name, unknown)| numbers.get(name.as_str()).copied().unwrap_or(unknown))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_matched_by_name() {
        let names = |names: &[&str]| names.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let known = names(&["ape", "bee", "cat"]);
        let numbers = same_classes(&known, &names(&["bee", "cat", "dog"])).unwrap();
        assert_eq!(numbers, [1, 2, 5]);
        assert_eq!(same_classes(&known, &names(&["dog"])), None);
    }
}
