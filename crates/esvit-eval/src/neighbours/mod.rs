//! Nearest neighbours: which pictures of a set a network finds most like a picture.

mod sheet;

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use esvit_data::{Picture, Source};
use esvit_kernels::rng::Rng;
use serde::Serialize;

use crate::knn::nearest;
use crate::labelled::LabelledSet;
use crate::thumbnail::{class_name, of_source};
use esvit_model::PretrainedBackbone;
use esvit_model::features::LabelledFeatures;
use esvit_model::features::{Features, LeftOut, view_forward};

pub use sheet::sheet;

/// Side of thumbnails, in pixels.
const THUMBNAIL: u32 = 192;
/// Purpose word of the numbers that choose queries.
const QUERY_PURPOSE: u64 = 0x0E19_4B05;

/// Which queries, and how many neighbours of each.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Number of queries.
    pub rows: usize,
    /// Number of neighbours of a query.
    pub k: usize,
    /// Chooses the queries at random; without it they are spread evenly over the set.
    pub seed: Option<u64>,
}

/// Queries with their neighbours.
#[derive(Debug)]
pub struct Neighbours {
    /// One a query.
    pub rows: Vec<Row>,
    /// Number of pictures that neighbours were looked for among.
    pub pictures: usize,
    /// Pictures that could not be read.
    pub left_out: Vec<LeftOut>,
}

/// A query and the pictures nearest to it.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The picture that neighbours were looked for.
    pub query: Entry,
    /// Most similar first.
    pub neighbours: Vec<Found>,
}

/// A neighbour.
#[derive(Debug, Serialize)]
pub struct Found {
    /// The picture.
    #[serde(flatten)]
    pub entry: Entry,
    /// Cosine similarity of its view feature to the query's.
    pub similarity: f32,
}

/// A picture of a sheet.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Name of its class, if it is labelled.
    pub class: Option<String>,
    /// What is drawn of it; none if it can no longer be read.
    #[serde(skip)]
    pub thumbnail: Option<Picture>,
}

/// Why there are no neighbours.
#[derive(Debug, thiserror::Error)]
pub enum NeighboursError {
    /// No query can be read.
    #[error("none of the {tried} query pictures can be read")]
    NoQueries {
        /// Number of pictures that were tried.
        tried: usize,
    },
    /// There is nothing to look among.
    #[error(
        "there are too few pictures to look for neighbours among ({pictures}): a picture is not its \
         own neighbour\n\
         hint: give a folder of at least two pictures that can be read"
    )]
    TooFew {
        /// Number of pictures that could be read.
        pictures: usize,
    },
    /// The network gives no numbers.
    #[error("the features hold values that are not finite, so the network is broken")]
    NotFinite,
}

/// Neighbours among the pictures of `gallery` for queries out of `queries`, or out of the gallery
/// itself. A picture is never its own neighbour, also where the two sets hold the same file.
/// `done` is told how many pictures were worked on.
///
/// # Errors
/// When no query can be read or there is no other picture.
pub fn find(
    backbone: &PretrainedBackbone,
    gallery: &LabelledSet,
    queries: Option<&LabelledSet>,
    wanted: Wanted,
    mut done: impl FnMut(usize),
) -> Result<Neighbours, NeighboursError> {
    let mut unit_features = |set: &LabelledSet| {
        let forward = view_forward(&backbone.swin, &backbone.params, &backbone.preprocess);
        let mut features = set.features(&backbone.preprocess, forward, &mut done);
        features.rows.normalize();
        features
    };
    let mut known = unit_features(gallery);
    let (source, mut asked) = match queries {
        Some(queries) => {
            let mut some = queries.clone();
            some.pictures = chosen(&queries.pictures, wanted);
            (&queries.source, unit_features(&some))
        }
        None => (&gallery.source, some_of(&known, wanted)),
    };
    let tried = asked.pictures.len() + asked.left_out.len();
    if asked.pictures.is_empty() && !known.pictures.is_empty() {
        return Err(NeighboursError::NoQueries { tried });
    }
    if known.pictures.len() < if queries.is_some() { 1 } else { 2 } {
        return Err(NeighboursError::TooFew { pictures: known.pictures.len() });
    }
    if known.rows.values.iter().chain(&asked.rows.values).any(|value| !value.is_finite()) {
        return Err(NeighboursError::NotFinite);
    }

    // Where every picture is its own class, as in a set of names, none can agree.
    let classes: HashSet<u32> = known.rows.labels.iter().copied().collect();
    let telling = queries.is_some() || classes.len() < known.rows.labels.len();
    // One more, as a picture finds itself first.
    let found = nearest(&known.rows, &asked.rows, wanted.k + 1);
    let rows = found.iter().zip(&asked.pictures).map(|(found, &query)| {
        let query_picture = SourcePicture { source, index: query };
        let others = found.iter().map(|near| (known.pictures[near.row], near.similarity)).filter(
            |&(index, _)| !query_picture.is(&SourcePicture { source: &gallery.source, index }),
        );
        let neighbours = others.take(wanted.k).map(|(index, similarity)| Found {
            entry: SourcePicture { source: &gallery.source, index }.entry(telling),
            similarity,
        });
        Row { query: query_picture.entry(telling), neighbours: neighbours.collect() }
    });
    let rows: Vec<Row> = rows.collect();
    if rows.iter().all(|row| row.neighbours.is_empty()) {
        return Err(NeighboursError::TooFew { pictures: known.pictures.len() });
    }
    known.left_out.append(&mut asked.left_out);
    Ok(Neighbours { rows, pictures: known.pictures.len(), left_out: known.left_out })
}

impl Neighbours {
    /// Share of the neighbours with their query's class, 0 to 1, among those where both classes are
    /// known; none where there are no such.
    pub fn same_class(&self) -> Option<f64> {
        let verdicts: Vec<bool> = self
            .rows
            .iter()
            .flat_map(|row| row.neighbours.iter().filter_map(|found| found.agrees(&row.query)))
            .collect();
        let agreeing = verdicts.iter().filter(|&&agrees| agrees).count();
        (!verdicts.is_empty()).then(|| agreeing as f64 / verdicts.len() as f64)
    }
}

impl Found {
    /// Whether it has the class of the query, where both are known.
    pub fn agrees(&self, query: &Entry) -> Option<bool> {
        Some(self.entry.class.as_ref()? == query.class.as_ref()?)
    }
}

/// A picture of a source.
struct SourcePicture<'a> {
    source: &'a Arc<dyn Source>,
    index: usize,
}

impl SourcePicture<'_> {
    fn entry(&self, with_class: bool) -> Entry {
        let class = class_name(&**self.source, self.index).filter(|_| with_class);
        Entry {
            name: self.source.name(self.index),
            class: class.map(str::to_owned),
            thumbnail: of_source(&**self.source, self.index, THUMBNAIL),
        }
    }

    /// Whether both are one picture: the same of one source, or the same file.
    fn is(&self, other: &Self) -> bool {
        if Arc::ptr_eq(self.source, other.source) {
            return self.index == other.index;
        }
        self.file().is_some_and(|file| other.file() == Some(file))
    }

    fn file(&self) -> Option<PathBuf> {
        fs::canonicalize(self.source.name(self.index)).ok()
    }
}

/// As many of `items` as queries are wanted, in their order.
fn chosen<T: Copy>(items: &[T], wanted: Wanted) -> Vec<T> {
    let rows = wanted.rows.min(items.len());
    let mut places: Vec<usize> = (0..items.len()).collect();
    match wanted.seed {
        Some(seed) => {
            Rng::for_purpose(seed, QUERY_PURPOSE, [0; 3]).shuffle(&mut places);
            places.truncate(rows);
            places.sort_unstable();
        }
        None => places = (0..rows).map(|row| row * items.len() / rows).collect(),
    }
    places.into_iter().map(|place| items[place]).collect()
}

/// As many rows of `features` as queries are wanted.
fn some_of(features: &Features, wanted: Wanted) -> Features {
    let places: Vec<usize> = (0..features.pictures.len()).collect();
    let places = chosen(&places, wanted);
    let width = features.rows.width;
    let row = |&place: &usize| &features.rows.values[place * width..][..width];
    Features {
        rows: LabelledFeatures {
            values: places.iter().flat_map(row).copied().collect(),
            width,
            labels: places.iter().map(|&place| features.rows.labels[place]).collect(),
        },
        pictures: places.iter().map(|&place| features.pictures[place]).collect(),
        left_out: Vec::new(),
    }
}
