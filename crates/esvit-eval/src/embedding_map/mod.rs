//! Two-dimensional maps of features: images that a network finds alike lie close together.

mod colors;
mod drawing;
mod layout;
mod placement;
mod table;
mod tsne;

use esvit_data::Source;
use serde::{Deserialize, Serialize};

use crate::thumbnail::class_name;
use esvit_model::features::Features;

pub use drawing::draw;
pub use layout::{Layout, MIN_TSNE, MapError, layout};
pub use table::write_csv;
pub use tsne::STEPS;

/// How features are laid out in two dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// t-distributed stochastic neighbor embedding: neighbors stay neighbors; distances between
    /// groups, and sizes of groups, mean nothing.
    Tsne,
    /// The first two principal components: a projection, in which distances can only shrink.
    Pca,
}

impl Method {
    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tsne => "t-SNE",
            Self::Pca => "PCA",
        }
    }
}

/// A map: where every image lies.
#[derive(Debug, Serialize)]
pub struct EmbeddingMap {
    /// How the places came about.
    #[serde(flatten)]
    pub layout: Layout,
    /// One an image.
    pub points: Vec<Point>,
    /// Names of the classes; none where the images have no labels.
    #[serde(skip)]
    pub classes: Vec<String>,
}

/// An image of a map.
#[derive(Debug, Serialize)]
pub struct Point {
    /// Index of the image in its source.
    #[serde(skip)]
    pub image: usize,
    /// Its name.
    pub name: String,
    /// Name of its class, if it is labeled.
    pub class: Option<String>,
    /// Across.
    pub x: f64,
    /// Upwards.
    pub y: f64,
}

impl EmbeddingMap {
    /// Lays out `features` of images of `source`. They are scaled to unit length, so that
    /// distances follow cosine similarities. `done` is called after every step of the method's
    /// search.
    ///
    /// # Errors
    /// When the method cannot lay out these features.
    pub fn new(
        mut features: Features,
        source: &dyn Source,
        method: Method,
        done: impl FnMut() + Send,
    ) -> Result<Self, MapError> {
        features.rows.normalize();
        let (layout, places) = layout(&features.rows.values, features.rows.width, method, done)?;
        let point = |(&image, &[x, y]): (&usize, &[f64; 2])| Point {
            image,
            name: source.name(image),
            class: class_name(source, image).map(str::to_owned),
            x,
            y,
        };
        let points = features.images.iter().zip(&places).map(point).collect();
        Ok(Self { layout, points, classes: source.classes().to_vec() })
    }
}
