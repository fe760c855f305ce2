//! A labelled task for k-NN: pictures that vote and pictures that are classified.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use esvit_data::{DecodeLimits, Folder, FolderError, MaterialsTask, Source, SourceError};
use esvit_kernels::rng::Rng;
use esvit_nn::{Params, Swin};

use crate::features::{self, Features, LeftOut, Preprocess};
use crate::knn::{Accuracy, KnnError, classify};

/// Purpose word of the numbers that choose pictures.
const CHOICE_PURPOSE: u64 = 0xC401CE;
/// One picture in so many is classified where a set has no pictures set aside for that.
const HELD_OUT: usize = 5;

/// Pictures that vote and pictures that are classified.
pub struct KnnTask {
    train: Side,
    queries: Side,
    /// What the task is, for people.
    pub description: String,
}

/// Some pictures of a source with their classes.
struct Side {
    source: Arc<dyn Source>,
    pictures: Vec<usize>,
    /// Class numbers of the other side, where the two count differently.
    classes: Option<Vec<u32>>,
}

/// Why there is no task or no accuracy.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A folder cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The built-in pictures cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A folder has no labels.
    #[error(
        "`{folder}` has no labels: its pictures do not lie in one folder a class\n\
         hint: k-NN needs `FOLDER/<class>/<picture>`"
    )]
    NoLabels {
        /// The folder.
        folder: String,
    },
    /// The two folders have no class in common.
    #[error("`{train}` and `{queries}` have no class in common")]
    Classes {
        /// The folder whose pictures vote.
        train: String,
        /// The folder whose pictures are classified.
        queries: String,
    },
    /// There is nothing to classify or to vote.
    #[error(transparent)]
    Knn(#[from] KnnError),
}

impl KnnTask {
    /// The built-in task: crops from one part of each built-in picture vote, crops from another
    /// part, with other colours, are classified.
    ///
    /// # Errors
    /// When the built-in pictures cannot be decoded.
    pub fn materials() -> Result<Self, TaskError> {
        let task = MaterialsTask::new()?;
        let description = "built-in materials".into();
        let (train, queries) = task.into_sources();
        Ok(Self {
            train: Side::all(Arc::new(train)),
            queries: Side::all(Arc::new(queries)),
            description,
        })
    }

    /// A labelled folder whose pictures vote and, if there is one, a second whose pictures are
    /// classified; else every fifth picture of the first is set aside for that. At most
    /// `max_pictures` of each are used, chosen at random.
    ///
    /// # Errors
    /// When a folder cannot be read or has no labels, or the two share no class.
    pub fn folders(
        train: &Path,
        queries: Option<&Path>,
        limits: &DecodeLimits,
        max_pictures: usize,
    ) -> Result<Self, TaskError> {
        let open = |path: &Path| -> Result<Arc<Folder>, TaskError> {
            let folder = Folder::open(path, limits)?;
            if folder.classes().is_empty() {
                return Err(TaskError::NoLabels { folder: path.display().to_string() });
            }
            Ok(Arc::new(folder))
        };
        let folder = open(train)?;
        let mut description = format!("`{}`", train.display());
        let (mut votes, mut queries) = match queries {
            Some(path) => {
                description.push_str(&format!(" and `{}`", path.display()));
                let other = open(path)?;
                let classes = same_classes(folder.classes(), other.classes()).ok_or_else(|| {
                    TaskError::Classes {
                        train: train.display().to_string(),
                        queries: path.display().to_string(),
                    }
                })?;
                let queries = Side { classes: Some(classes), ..Side::all(other) };
                (Side::all(folder), queries)
            }
            None => {
                description.push_str(", every fifth picture set aside");
                let order = shuffled(folder.len());
                let (queries, votes): (Vec<_>, Vec<_>) =
                    order.into_iter().enumerate().partition(|(place, _)| place % HELD_OUT == 0);
                let side = |pictures: Vec<(usize, usize)>| Side {
                    source: folder.clone(),
                    pictures: pictures.into_iter().map(|(_, picture)| picture).collect(),
                    classes: None,
                };
                (side(votes), side(queries))
            }
        };
        votes.limit(max_pictures);
        queries.limit(max_pictures);
        Ok(Self { train: votes, queries, description })
    }

    /// Number of pictures that vote and that are classified.
    pub fn pictures(&self) -> (usize, usize) {
        (self.train.pictures.len(), self.queries.pictures.len())
    }

    /// k-NN accuracy of a frozen backbone.
    ///
    /// # Errors
    /// When no picture of a side can be read.
    pub fn accuracy(
        &self,
        swin: &Swin,
        params: &Params,
        preprocess: &Preprocess,
        ks: &[usize],
        temperature: f64,
        mut done: impl FnMut(usize),
    ) -> Result<Measured, TaskError> {
        self.measure(ks, temperature, |source, pictures| {
            features::view_features(swin, params, source, pictures, preprocess, &mut done)
        })
    }

    /// k-NN accuracy of the pixels themselves.
    ///
    /// # Errors
    /// When no picture of a side can be read.
    pub fn pixel_accuracy(
        &self,
        preprocess: &Preprocess,
        ks: &[usize],
        temperature: f64,
    ) -> Result<Measured, TaskError> {
        self.measure(ks, temperature, |source, pictures| {
            features::pixel_features(source, pictures, preprocess)
        })
    }

    fn measure(
        &self,
        ks: &[usize],
        temperature: f64,
        mut extract: impl FnMut(&dyn Source, &[usize]) -> Features,
    ) -> Result<Measured, TaskError> {
        let mut sides = [&self.train, &self.queries].map(|side| {
            let mut features = extract(&*side.source, &side.pictures);
            if let Some(classes) = &side.classes {
                for label in &mut features.rows.labels {
                    *label = classes[*label as usize];
                }
            }
            features.rows.normalize();
            features
        });
        let accuracies = classify(&sides[0].rows, &sides[1].rows, ks, temperature)?;
        let left_out = sides.iter_mut().flat_map(|side| side.left_out.drain(..)).collect();
        Ok(Measured { accuracies, left_out })
    }
}

/// What was measured, and on what it could not be.
#[derive(Debug)]
pub struct Measured {
    /// One a number of neighbours.
    pub accuracies: Vec<Accuracy>,
    /// Pictures that could not be read.
    pub left_out: Vec<LeftOut>,
}

impl Side {
    fn all(source: Arc<dyn Source>) -> Self {
        Self { pictures: (0..source.len()).collect(), source, classes: None }
    }

    fn limit(&mut self, count: usize) {
        if self.pictures.len() > count {
            let order = shuffled(self.pictures.len());
            self.pictures = order[..count].iter().map(|&place| self.pictures[place]).collect();
        }
    }
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
