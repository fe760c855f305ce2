//! Nearest neighbors of images in feature space.

mod sheet;

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;

use esvit_data::{Conversion, Image, Source, evenly_spaced, list_reasons};
use esvit_kernels::rng::Rng;
use serde::Serialize;

use crate::knn::{Neighbor, nearest};
use crate::labeled::LabeledSet;
use crate::thumbnail::{class_name, load_thumbnail};
use esvit_model::PretrainedBackbone;
use esvit_model::features::{Features, LabeledFeatures, NotFinite, SkippedImage};

pub use sheet::sheet;

/// Side of thumbnails, in pixels.
const THUMBNAIL: u32 = 192;
/// RNG purpose of the choice of queries.
const QUERY_PURPOSE: u64 = 0x0E19_4B05;

/// Number and choice of queries, and number of neighbors.
#[derive(Debug, Clone, Copy)]
pub struct QueryOptions {
    /// Number of queries.
    pub rows: usize,
    /// Number of neighbors per query.
    pub k: usize,
    /// Seed to choose queries at random; without it they are evenly spaced.
    pub seed: Option<u64>,
}

/// Queries with their neighbors.
#[derive(Debug)]
pub struct Neighbors {
    /// One row per query.
    pub rows: Vec<Row>,
    /// Number of images in the gallery.
    pub images: usize,
    /// Images that could not be read.
    pub left_out: Vec<SkippedImage>,
}

/// A query with its neighbors.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The query image.
    pub query: ImageEntry,
    /// Its neighbors, most similar first.
    pub neighbors: Vec<NeighborImage>,
}

/// A neighbor.
#[derive(Debug, Serialize)]
pub struct NeighborImage {
    /// The image.
    #[serde(flatten)]
    pub entry: ImageEntry,
    /// Cosine similarity of view features.
    pub similarity: f32,
}

/// An image of the sheet.
#[derive(Debug, Serialize)]
pub struct ImageEntry {
    /// Name of the image.
    pub name: String,
    /// Class name, if labeled.
    pub class: Option<String>,
    /// Thumbnail; `None` if the image can no longer be read.
    #[serde(skip)]
    pub thumbnail: Option<Image>,
}

/// Neighbors cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum NeighborsError {
    /// No query can be read.
    #[error("none of the {0} query images can be read{1}")]
    NoQueries(usize, String),
    /// The gallery is too small.
    #[error(
        "there are too few images to find neighbors in ({images}): an image is not its \
         own neighbor{reasons}\n\
         hint: give a folder of at least two images that can be read"
    )]
    TooFew {
        /// Number of readable images.
        images: usize,
        /// Some of the others, with what is wrong with each.
        reasons: String,
    },
    /// Features are not finite.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
}

/// What is wrong with images that were left out.
fn reasons(features: &Features) -> String {
    let images = features.left_out.iter().map(|image| (&image.name, &image.reason));
    list_reasons(images, features.left_out.len())
}

/// Finds the neighbors in `gallery` of queries from `queries`, or from the gallery itself. An image
/// is never its own neighbor, even if both sets contain the same file. `done` is called with the
/// number of images processed in each batch.
///
/// # Errors
/// [`NeighborsError`] if no query can be read, the gallery has no other image, or features are not
/// finite.
pub fn find(
    backbone: &PretrainedBackbone,
    gallery: &LabeledSet,
    queries: Option<&LabeledSet>,
    options: QueryOptions,
    mut done: impl FnMut(usize),
) -> Result<Neighbors, NeighborsError> {
    let mut unit_features = |set: &LabeledSet| -> Result<Features, NotFinite> {
        let mut features = set.view_features(backbone, &mut done)?;
        features.rows.normalize();
        Ok(features)
    };
    let mut base = unit_features(gallery)?;
    let (source, mut query) = match queries {
        Some(queries) => {
            let mut some = queries.clone();
            let places = select(queries.images.len(), options);
            some.images = places.iter().map(|&place| queries.images[place]).collect();
            (&queries.source, unit_features(&some)?)
        }
        None => (&gallery.source, select_features(&base, options)),
    };
    if query.images.is_empty() && !base.images.is_empty() {
        return Err(NeighborsError::NoQueries(query.left_out.len(), reasons(&query)));
    }
    if base.images.len() < if queries.is_some() { 1 } else { 2 } {
        return Err(NeighborsError::TooFew { images: base.images.len(), reasons: reasons(&base) });
    }

    // If every image has its own class, as with unlabeled names, classes say nothing.
    let classes: HashSet<u32> = base.rows.labels.iter().copied().collect();
    let has_classes = queries.is_some() || classes.len() < base.rows.labels.len();
    // One more, since an image finds itself.
    let found = nearest(&base.rows, &query.rows, options.k + 1);
    // Images are drawn as the network was shown them.
    let shown = backbone.preprocess.conversion();
    let row = |(found, &index): (&Vec<Neighbor>, &usize)| {
        let query = SourceImage { source, index };
        let image = |row: usize| SourceImage { source: &gallery.source, index: base.images[row] };
        let others = found.iter().filter(|near| !query.is(&image(near.row))).take(options.k);
        let neighbors = others.map(|&Neighbor { row, similarity }| NeighborImage {
            entry: image(row).entry(has_classes, &shown),
            similarity,
        });
        Row { neighbors: neighbors.collect(), query: query.entry(has_classes, &shown) }
    };
    let rows: Vec<Row> = found.iter().zip(&query.images).map(row).collect();
    if rows.iter().all(|row| row.neighbors.is_empty()) {
        return Err(NeighborsError::TooFew { images: base.images.len(), reasons: reasons(&base) });
    }
    base.left_out.append(&mut query.left_out);
    Ok(Neighbors { rows, images: base.images.len(), left_out: base.left_out })
}

impl Neighbors {
    /// Share of neighbors with the class of their query, 0 to 1, among pairs with known classes;
    /// `None` if there are none.
    pub fn same_class(&self) -> Option<f64> {
        let verdicts = self.rows.iter().flat_map(|Row { query, neighbors }| {
            neighbors.iter().filter_map(|found| found.agrees(query))
        });
        let verdicts: Vec<bool> = verdicts.collect();
        let agreeing = verdicts.iter().filter(|&&agrees| agrees).count();
        (!verdicts.is_empty()).then(|| agreeing as f64 / verdicts.len() as f64)
    }
}

impl NeighborImage {
    /// Whether it has the class of the query, if both are known.
    pub fn agrees(&self, query: &ImageEntry) -> Option<bool> {
        Some(self.entry.class.as_ref()? == query.class.as_ref()?)
    }
}

/// An image of a source.
struct SourceImage<'a> {
    source: &'a Arc<dyn Source>,
    index: usize,
}

impl SourceImage<'_> {
    fn entry(&self, with_class: bool, shown: &Conversion) -> ImageEntry {
        let class = class_name(&**self.source, self.index).filter(|_| with_class);
        ImageEntry {
            name: self.source.name(self.index),
            class: class.map(str::to_owned),
            thumbnail: load_thumbnail(&**self.source, self.index, shown, THUMBNAIL),
        }
    }

    /// Whether both are the same image: of one source, or the same file.
    fn is(&self, other: &Self) -> bool {
        if Arc::ptr_eq(self.source, other.source) {
            return self.index == other.index;
        }
        let [own, other] =
            [self, other].map(|image| fs::canonicalize(image.source.name(image.index)).ok());
        own.is_some() && own == other
    }
}

/// Chooses as many of `len` places as there are queries, ascending.
fn select(len: usize, options: QueryOptions) -> Vec<usize> {
    let rows = options.rows.min(len);
    let Some(seed) = options.seed else {
        return evenly_spaced(len, rows).collect();
    };
    let mut places: Vec<usize> = (0..len).collect();
    Rng::for_purpose(seed, QUERY_PURPOSE, [0; 3]).shuffle(&mut places);
    places.truncate(rows);
    places.sort_unstable();
    places
}

/// Chooses as many rows of `features` as there are queries.
fn select_features(features: &Features, options: QueryOptions) -> Features {
    let places = select(features.images.len(), options);
    let width = features.rows.width;
    let row = |&place: &usize| &features.rows.values[place * width..][..width];
    Features {
        rows: LabeledFeatures {
            values: places.iter().flat_map(row).copied().collect(),
            width,
            labels: places.iter().map(|&place| features.rows.labels[place]).collect(),
        },
        images: places.iter().map(|&place| features.images[place]).collect(),
        left_out: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Images, Scans, backbone, noise};
    use esvit_data::{Levels, SampleType};

    fn names(row: &Row) -> Vec<&str> {
        row.neighbors.iter().map(|found| found.entry.name.as_str()).collect()
    }

    /// Images 0 and 5 are equal, as are 1 and 6, and so on.
    fn pairs(classes: impl Fn(u32) -> u32) -> LabeledSet {
        let image = |i: u32| (classes(i), noise(20, 20, u64::from(i % 5)));
        Images::labeled((0..10).map(image).collect()).set()
    }

    #[test]
    fn every_image_finds_its_equal_and_not_itself() {
        let backbone = backbone(1);
        let options = QueryOptions { rows: 5, k: 3, seed: None };
        let mut seen = 0;
        let found = find(&backbone, &pairs(|i| i % 2), None, options, |n| seen += n).unwrap();
        assert_eq!((found.images, found.left_out.len(), seen), (10, 0, 10));
        let queries: Vec<&str> = found.rows.iter().map(|row| row.query.name.as_str()).collect();
        assert_eq!(queries, ["0", "2", "4", "6", "8"], "spread over the set");
        for row in &found.rows {
            let query: usize = row.query.name.parse().unwrap();
            assert_eq!(names(row)[0], ((query + 5) % 10).to_string());
            assert_eq!(row.neighbors.len(), 3);
            assert!(!names(row).contains(&row.query.name.as_str()));
            let similarities: Vec<f32> = row.neighbors.iter().map(|near| near.similarity).collect();
            assert!((similarities[0] - 1.0).abs() < 1e-5, "{similarities:?}");
            assert!(similarities.is_sorted_by(|a, b| a >= b), "{similarities:?}");
            assert_eq!(row.query.class.as_deref(), Some(["class 0", "class 1"][query % 2]));
        }
        // The equal image is of the other class.
        assert!(found.rows.iter().all(|row| row.neighbors[0].agrees(&row.query) == Some(false)));
        let chosen = |seed| {
            let options = QueryOptions { seed: Some(seed), ..options };
            let found = find(&backbone, &pairs(|i| i), None, options, |_| ()).unwrap();
            found.rows.iter().map(|row| row.query.name.clone()).collect::<Vec<String>>()
        };
        assert_eq!(chosen(1), chosen(1));
        assert!((2..8).any(|seed| chosen(seed) != chosen(1)));
        assert!(chosen(1).is_sorted());
    }

    #[test]
    fn classes_of_one_image_each_are_ignored_within_their_set() {
        let options = QueryOptions { rows: 2, k: 1, seed: None };
        let backbone = backbone(1);
        let alone = find(&backbone, &pairs(|i| i), None, options, |_| ()).unwrap();
        assert_eq!((alone.rows[0].query.class.as_deref(), alone.same_class()), (None, None));
        let set = pairs(|i| i);
        let query = find(&backbone, &set, Some(&pairs(|i| i % 5)), options, |_| ()).unwrap();
        assert_eq!(query.rows[0].query.class.as_deref(), Some("class 0"));
        assert_eq!(query.same_class(), Some(1.0));
    }

    #[test]
    fn too_few_or_broken_images_are_reported() {
        let backbone = backbone(1);
        let options = QueryOptions { rows: 3, k: 2, seed: None };
        let find = |set: Images| find(&backbone, &set.set(), None, options, |_| ());
        let error = find(Images::labeled(vec![(0, noise(20, 20, 1))])).unwrap_err();
        assert!(matches!(error, NeighborsError::TooFew { images: 1, .. }), "{error}");
        let mut set = Images::labeled((0..4).map(|i| (0, noise(20, 20, i))).collect());
        set.list[0].2 = None;
        let found = find(set).unwrap();
        assert_eq!((found.images, found.rows.len(), found.left_out.len()), (3, 3, 1));
    }

    #[test]
    fn images_are_drawn_as_the_network_was_shown_them() {
        let mut backbone = backbone(1);
        backbone.preprocess.range = Levels::default().with(SampleType::Uint16, [0.0, 4095.0]);
        let set = LabeledSet::all(Arc::new(Scans(3)));
        let options = QueryOptions { rows: 1, k: 2, seed: None };
        let found = find(&backbone, &set, None, options, |_| ()).unwrap();
        let Row { query, neighbors } = &found.rows[0];
        let entries = neighbors.iter().map(|near| &near.entry).chain([query]);
        let shown: Vec<_> = entries.map(|entry| entry.thumbnail.as_ref().unwrap()).collect();
        assert_eq!(shown.len(), 3);
        assert!(shown.iter().all(|image| image.pixel(9, 9) == Some([255; 3])));
    }

    /// Two lists of one folder are not the same list, but the same files.
    #[test]
    fn a_file_is_not_its_own_neighbor_in_another_list() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..3 {
            let png = esvit_data::encode_png(&noise(20, 20, i)).unwrap();
            std::fs::write(folder.path().join(format!("{i}.png")), png).unwrap();
        }
        let open = || {
            let limits = esvit_data::DecodeLimits::default();
            LabeledSet::all(Arc::new(esvit_data::Folder::open(folder.path(), &limits).unwrap()))
        };
        let options = QueryOptions { rows: 3, k: 3, seed: None };
        let found = find(&backbone(1), &open(), Some(&open()), options, |_| ()).unwrap();
        for row in &found.rows {
            assert_eq!(row.neighbors.len(), 2);
            assert!(!names(row).contains(&row.query.name.as_str()));
        }
    }
}
