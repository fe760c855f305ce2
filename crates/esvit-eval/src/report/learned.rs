//! What the run's best backbone makes of some of the images that it was trained on.

use esvit_data::{Image, Source};

use super::figures::Shown;
use super::run::Run;
use crate::attention::{self, Framing};
use crate::labeled::LabeledSet;
use crate::matching::{self, MatchSettings};
use crate::neighbors::{self, Wanted};
use crate::pca::{self, ColorMap, Enlarged, RegionImage};
use esvit_model::PretrainedBackbone;

/// Images among which neighbors are looked for: a report must not take as long as the run.
const GALLERY: usize = 1000;
/// Queries with their neighbors.
const NEIGHBORS: Wanted = Wanted { rows: 5, k: 6, seed: None };
/// Images whose regions are colored.
const REGION_IMAGES: usize = 6;
/// Pairs that are drawn between two views.
const PAIRS: usize = 10;
/// The share of the attention that is marked, as in the paper.
const MASS: f64 = 0.6;

/// Images with those most like them.
pub(super) fn neighbors(run: &Run) -> Shown {
    let (backbone, source) = open(run)?;
    let mut gallery = LabeledSet::all(source);
    let all = gallery.images.len();
    gallery.limit(GALLERY);
    gallery.images.sort_unstable();
    let found = neighbors::find(&backbone, &gallery, None, NEIGHBORS, |_| ()).map_err(message)?;
    let about = format!("cosine similarity of view features, among {} images", found.images);
    let drawing = neighbors::sheet(&found, &about).map_err(message)?;
    let mut text = String::from(
        "Images of the training set, and those of it that the teacher finds most like them.",
    );
    if all > GALLERY {
        text.push_str(&format!(" {GALLERY} of the {all} images were searched."));
    }
    Ok((text, drawing))
}

/// Pairs of matching regions between two views of an image.
pub(super) fn matches(run: &Run) -> Shown {
    let (backbone, source) = open(run)?;
    let (_, image) = some(&*source, 1).swap_remove(0)?;
    let settings = MatchSettings {
        pairs: PAIRS,
        size: backbone.preprocess.size(),
        stage: backbone.swin.config().stages() - 1,
        mutual: false,
    };
    let found = matching::two_views(&backbone, &image, 0, &settings).map_err(message)?;
    let text = "The most similar pairs of regions of two views of an image: the task that L_R \
                trains. A ring marks the region nearest to its own view as a whole, a triangle \
                the one nearest to the other view.";
    Ok((text.into(), matching::draw(&found).map_err(message)?))
}

/// The attention of every head of the last block, for the center of an image.
pub(super) fn attention(run: &Run) -> Shown {
    let (backbone, source) = open(run)?;
    let (_, image) = some(&*source, 1).swap_remove(0)?;
    let PretrainedBackbone { swin, params, preprocess, .. } = &backbone;
    let patch = swin.config().patch_size;
    let shown =
        attention::Shown::new(&image, preprocess, Framing::Center, preprocess.size(), patch)
            .map_err(message)?;
    let block = swin.blocks() - 1;
    let found =
        attention::of_query(swin, params, &shown, shown.center(), block, MASS).map_err(message)?;
    let text = "Where the center of an image looks in the last block, head by head, those that \
                look most widely first.";
    Ok((text.into(), attention::draw(&shown, &found).map_err(message)?))
}

/// Regions colored by their principal components.
pub(super) fn regions(run: &Run) -> Shown {
    let (backbone, source) = open(run)?;
    let stage = backbone.swin.config().stages();
    let size = pca::Framing::usual_size(&backbone, stage);
    let framing = pca::Framing { size, whole: false };
    let mut images = Vec::new();
    for image in some(&*source, REGION_IMAGES) {
        let (name, image) = image?;
        let regions = pca::region_map(&backbone, &image, framing, stage).map_err(message)?;
        images.push(RegionImage { name, regions });
    }
    let colors = ColorMap::fit(&images).map_err(message)?;
    let about = format!("{} regions, {size} pixels a side", colors.regions());
    let drawing = pca::draw(&images, &colors, Enlarged::Sharp, &about).map_err(message)?;
    let text = "The first three principal components of the region features of these images \
                as red, green and blue: regions of one color are alike to the network.";
    Ok((text.into(), drawing))
}

/// The backbone to look at and the images of the run.
fn open(run: &Run) -> Result<(PretrainedBackbone, std::sync::Arc<dyn Source>), String> {
    let source = run.source.as_ref().map_err(String::clone)?;
    let path = run.checkpoint().ok_or("there is no checkpoint that can be read")?;
    let backbone = PretrainedBackbone::open(&path).map_err(message)?;
    Ok((backbone, source.clone()))
}

/// `count` images with their names, spread over the set; at least one.
fn some(source: &dyn Source, count: usize) -> Vec<Result<(String, Image), String>> {
    let count = count.clamp(1, source.len().max(1));
    // From the middle of each part: the first image of a set is often no ordinary one.
    let places = (0..count).map(|part| (2 * part + 1) * source.len() / (2 * count));
    let load = |index| Ok((source.name(index), source.load(index).map_err(message)?));
    places.map(load).collect()
}

fn message(error: impl std::fmt::Display) -> String {
    error.to_string()
}
