//! Two-dimensional maps of features, by t-SNE or PCA.

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

/// Projection to two dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// t-SNE: preserves neighborhoods; distances between clusters, and cluster sizes, mean nothing.
    Tsne,
    /// The first two principal components: a linear projection.
    Pca,
}

impl Method {
    /// Display name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tsne => "t-SNE",
            Self::Pca => "PCA",
        }
    }
}

/// A map of images.
#[derive(Debug, Serialize)]
pub struct EmbeddingMap {
    /// How the coordinates were computed.
    #[serde(flatten)]
    pub layout: Layout,
    /// One point per image.
    pub points: Vec<Point>,
    /// Class names; empty if the images have no labels.
    #[serde(skip)]
    pub classes: Vec<String>,
}

/// An image of a map.
#[derive(Debug, Serialize)]
pub struct Point {
    /// Index of the image in its source.
    #[serde(skip)]
    pub image: usize,
    /// Name of the image.
    pub name: String,
    /// Class name, if labeled.
    pub class: Option<String>,
    /// Horizontal coordinate.
    pub x: f64,
    /// Vertical coordinate, upwards.
    pub y: f64,
}

impl EmbeddingMap {
    /// Computes the map of `features` of images of `source`. Features are L2-normalized, so that
    /// distances follow cosine similarity. `done` is called after each step of t-SNE.
    ///
    /// # Errors
    /// [`MapError`] if the method cannot be applied to these features.
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
