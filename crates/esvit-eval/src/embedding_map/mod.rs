//! Two-dimensional maps of features, by t-SNE or PCA.

mod colors;
mod drawing;
mod layout;
mod placement;
mod tsne;

use std::io::Write;
use std::path::Path;

use esvit_data::Source;
use esvit_files::{FileError, write_atomically};
use serde::{Deserialize, Serialize};

use crate::thumbnail::class_name;
use esvit_model::embedding::quote;
use esvit_model::features::Features;

pub use drawing::draw;
pub use layout::{Layout, MIN_TSNE, MapError, layout};
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
        let (layout, coords) = layout(&features.rows.values, features.rows.width, method, done)?;
        let point = |(&image, &[x, y]): (&usize, &[f64; 2])| Point {
            image,
            name: source.name(image),
            class: class_name(source, image).map(str::to_owned),
            x,
            y,
        };
        let points = features.images.iter().zip(&coords).map(point).collect();
        Ok(Self { layout, points, classes: source.classes().to_vec() })
    }

    /// Writes a CSV file with the columns name, label, x, y; the label is empty if there is none.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be written; an existing file is then unchanged.
    pub fn write_csv(&self, path: &Path) -> Result<(), FileError> {
        write_atomically(path, |file| {
            writeln!(file, "name,label,x,y")?;
            self.points.iter().try_for_each(|Point { name, class, x, y, .. }| {
                let class = class.as_deref().unwrap_or_default();
                writeln!(file, "{},{},{x},{y}", quote(name), quote(class))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Images, noise};

    fn map(rows: &[[f32; 2]], classes: &[Option<u32>]) -> EmbeddingMap {
        let source = Images {
            classes: vec!["cat".into(), "dog, small".into()],
            list: (classes.iter().enumerate())
                .map(|(i, class)| (format!("{i}.png"), *class, Some(noise(20, 20, 1))))
                .collect(),
        };
        let features = Features {
            rows: esvit_model::features::LabeledFeatures {
                values: rows.concat(),
                width: 2,
                labels: vec![0; rows.len()],
            },
            images: (0..rows.len()).collect(),
            left_out: Vec::new(),
        };
        EmbeddingMap::new(features, &source, Method::Pca, || ()).unwrap()
    }

    #[test]
    fn lengths_of_features_do_not_matter() {
        let map = map(&[[1.0, 0.0], [50.0, 0.0], [0.0, 2.0]], &[Some(0), None, Some(1)]);
        let place = |index: usize| [map.points[index].x, map.points[index].y];
        assert!(
            (place(0)[0] - place(1)[0]).abs() < 1e-6 && (place(0)[0] - place(2)[0]).abs() > 1.0
        );
        let classes: Vec<Option<&str>> = map.points.iter().map(|p| p.class.as_deref()).collect();
        assert_eq!(classes, [Some("cat"), None, Some("dog, small")]);
    }

    #[test]
    fn tables_quote_what_would_end_a_field() {
        let mut map = map(&[[1.0, 0.0], [0.0, 1.0]], &[Some(1), None]);
        map.points[1].name = "a\"b,c".into();
        (map.points[0].x, map.points[0].y) = (0.5, -1.25);
        (map.points[1].x, map.points[1].y) = (2.0, 3.0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.csv");
        map.write_csv(&path).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let expected = "name,label,x,y\n0.png,\"dog, small\",0.5,-1.25\n\"a\"\"b,c\",,2,3\n";
        assert_eq!(text, expected);
    }
}
