//! The most similar cells of two images, or of two views of one image, and drawings of them
//! (Figure 4 of the EsViT paper).

mod drawing;

use esvit_data::Image;
use esvit_data::augment::CropBox;
use esvit_kernels::best_match::best_matches;
use esvit_kernels::pool;
use esvit_kernels::rng::Rng;
use esvit_nn::{Device, ForwardCtx, Tensor};
use serde::Serialize;

use crate::correspondence::{CorrespondenceError, Grid, MEASURED_PAIRS, Scores, View, match_cells};
use esvit_model::PretrainedBackbone;
use esvit_model::features::{NotFinite, first_not_finite};

pub use drawing::{draw, draw_rows};

/// RNG purpose of the second view of an image.
const VIEWS: u64 = u64::from_be_bytes(*b"matching");
/// Range of the area of the second view, as shares of the image.
const SECOND_SCALE: [f64; 2] = [0.4, 0.6];
/// Probability that the second view is gray.
const SECOND_GRAYSCALE: f64 = 0.2;
/// Maximum aspect ratio; longer images are cropped to their middle.
const MAX_ASPECT: u32 = 3;

/// Settings of a matching.
#[derive(Debug, Clone, PartialEq)]
pub struct MatchSettings {
    /// Maximum number of pairs, most similar first.
    pub pairs: usize,
    /// Shorter side of the network's input in pixels, a multiple of the cell size.
    pub size: usize,
    /// Stage whose features are matched, from 0.
    pub stage: usize,
    /// Keep only mutual best matches.
    pub mutual: bool,
}

impl MatchSettings {
    /// The settings of the paper: features of the last stage at the size of evaluations.
    pub fn usual(backbone: &PretrainedBackbone) -> Self {
        let (size, stages) = (backbone.preprocess.size(), backbone.config.stages().len());
        Self { pairs: MEASURED_PAIRS, size, stage: stages - 1, mutual: false }
    }
}

/// The most similar cells of two views.
#[derive(Debug, Clone)]
pub struct Matching {
    /// The two views.
    pub views: [MatchedView; 2],
    /// Pairs of cells, most similar first.
    pub pairs: Vec<Pair>,
}

impl Matching {
    /// Share of the pairs whose second cell contains the true position of the first, of those where
    /// it is known; `None` if it is for none.
    pub fn accuracy(&self) -> Option<f64> {
        let pairs = self.pairs.iter();
        let known = pairs.filter_map(|pair| Some((pair.second.cell, pair.true_place?)));
        Some(Scores::new(known, &self.views[1].grid)?.accuracy)
    }
}

/// One of the two views.
#[derive(Debug, Clone)]
pub struct MatchedView {
    /// The view, at the resolution of the drawing.
    pub shown: Image,
    /// Its geometry.
    pub view: View,
    /// Its grid of cells.
    pub grid: Grid,
    /// The cell most similar to the view feature of this view.
    pub nearest_own: usize,
    /// The cell most similar to the view feature of the other view.
    pub nearest_other: usize,
}

/// A pair of cells, one of each view.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// Rank, 0 for the most similar pair.
    pub rank: usize,
    /// Cosine similarity of the two features.
    pub similarity: f32,
    /// The cell of the first view.
    pub first: CellPosition,
    /// The cell of the second view.
    pub second: CellPosition,
    /// True position of the first cell's center in the second view, in its pixels. Known for two
    /// views of one image, if it is visible.
    pub true_place: Option<[f64; 2]>,
    /// Distance from there to the center of the second cell, in pixels of the view.
    pub error: Option<f64>,
}

/// Position of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CellPosition {
    /// Index of the cell, row-major.
    pub cell: usize,
    /// Its center, `[x, y]` in pixels of the network's input.
    pub view: [f64; 2],
    /// Its center, `[x, y]` in pixels of the image.
    pub image: [f64; 2],
}

/// Matches two images. Aspect ratios are preserved up to whole cells; very long images are cropped
/// to their middle.
///
/// # Errors
/// [`CorrespondenceError`] if there is no such stage, views are not a whole number of its cells, or
/// an image cannot be resized.
pub fn two_images(
    backbone: &PretrainedBackbone,
    images: [&Image; 2],
    settings: &MatchSettings,
) -> Result<Matching, CorrespondenceError> {
    let [first, second] = images.map(whole);
    let views = [
        ViewFeatures::new(backbone, images[0], first, settings)?,
        ViewFeatures::new(backbone, images[1], second, settings)?,
    ];
    Ok(match_views(views, settings, false))
}

/// Matches an image with a random view of it: 40 to 60 % of its area, made square, mirrored with
/// probability 0.5, color-jittered with probability 0.8, gray with probability 0.2. The view is a
/// function of `seed`.
///
/// # Errors
/// As [`two_images`].
pub fn two_views(
    backbone: &PretrainedBackbone,
    image: &Image,
    seed: u64,
    settings: &MatchSettings,
) -> Result<Matching, CorrespondenceError> {
    let mut rng = Rng::for_purpose(seed, VIEWS, [0; 3]);
    let second = View::random([image.width(), image.height()], SECOND_SCALE, &mut rng)
        .with_color_jitter(SECOND_GRAYSCALE, rng);
    let side = settings.size as u32;
    let views = [
        ViewFeatures::new(backbone, image, whole(image), settings)?,
        ViewFeatures::sized(backbone, image, second, [side; 2], settings.stage)?,
    ];
    Ok(match_views(views, settings, true))
}

/// Matches an image with its mirror image: the true position of `x` is the width less `x`.
///
/// # Errors
/// As [`two_images`].
pub fn mirror_image(
    backbone: &PretrainedBackbone,
    image: &Image,
    settings: &MatchSettings,
) -> Result<Matching, CorrespondenceError> {
    let views = [
        ViewFeatures::new(backbone, image, whole(image), settings)?,
        ViewFeatures::new(backbone, image, whole(image).mirrored(), settings)?,
    ];
    Ok(match_views(views, settings, true))
}

/// The whole image, or the middle of a very long one.
fn whole(image: &Image) -> View {
    let [full_width, full_height] = [image.width(), image.height()];
    let longest = MAX_ASPECT.saturating_mul(full_width.min(full_height));
    let (width, height) = (full_width.min(longest), full_height.min(longest));
    let (left, top) = ((full_width - width) / 2, (full_height - height) / 2);
    View::whole([full_width, full_height]).with_crop(CropBox { left, top, width, height })
}

/// A view with its features.
struct ViewFeatures {
    view: View,
    shown: Image,
    grid: Grid,
    /// `[cells, C]`.
    cells: Vec<f32>,
    /// `[C]`.
    global: Vec<f32>,
}

impl ViewFeatures {
    /// Features of a view with its aspect ratio preserved.
    fn new(
        backbone: &PretrainedBackbone,
        image: &Image,
        view: View,
        settings: &MatchSettings,
    ) -> Result<Self, CorrespondenceError> {
        let cell = Grid::new(&backbone.config, settings.stage, [settings.size; 2])?.cell;
        let CropBox { width, height, .. } = view.crop;
        let along = |side: u32, other: u32| {
            let ratio = f64::from(side.max(other)) / f64::from(other);
            (settings.size as f64 * ratio / cell as f64).round() as u32 * cell as u32
        };
        let size = [along(width, height), along(height, width)];
        Self::sized(backbone, image, view, size, settings.stage)
    }

    /// Features of a view of `[width, height]` pixels.
    fn sized(
        backbone: &PretrainedBackbone,
        image: &Image,
        view: View,
        [width, height]: [u32; 2],
        stage: usize,
    ) -> Result<Self, CorrespondenceError> {
        let [columns, rows] = [width, height].map(|side| side as usize);
        let grid = Grid::new(&backbone.config, stage, [columns, rows])?;
        let pixels = backbone.preprocess.normalize(&view.render(image, [width, height])?);
        let images = Tensor::new(pixels, [1, 3, rows, columns], &Device::Cpu);
        let PretrainedBackbone { network, params, .. } = backbone;
        let (cells, global) = pool::run(|| {
            let features = network.stage_features(params, images, stage, &ForwardCtx::eval());
            let features = features.expect("the stage was checked");
            (features.region.to_vec::<f32>(), features.view.to_vec::<f32>())
        });
        if let Some((_, value)) = first_not_finite(&cells, global.len()) {
            let (image, value) = ("the image".into(), value.to_string());
            return Err(NotFinite { image, value }.into());
        }
        let shown = view.render(image, drawing::resolution(&view, [width, height]))?;
        Ok(Self { view, shown, grid, cells, global })
    }

    /// The cell most similar to a feature `[C]`.
    fn nearest(&self, global: &[f32]) -> usize {
        let cells = self.grid.cells();
        best_matches(global, &self.cells, global.len(), &[(0..1, 0..cells)])[0] as usize
    }

    fn place(&self, cell: usize) -> CellPosition {
        let (view, [width, height]) = (self.grid.center(cell), self.grid.size());
        let image = self.view.to_image([view[0] / width, view[1] / height]);
        CellPosition { cell, view, image }
    }
}

/// Matches the cells of two views. With `same_image`, true positions are known.
fn match_views(views: [ViewFeatures; 2], settings: &MatchSettings, same_image: bool) -> Matching {
    let [first, second] = &views;
    let width = first.global.len();
    let found = match_cells(&first.cells, &second.cells, width);
    let reverse = || match_cells(&second.cells, &first.cells, width).best_match;
    let reverse = settings.mutual.then(reverse);
    let truth = same_image.then(|| first.view.truth(&first.grid, &second.view, &second.grid));
    let mutual = |cell: usize| {
        reverse.as_ref().is_none_or(|reverse| reverse[found.best_match[cell]] == cell)
    };
    let pair = |(rank, &cell): (usize, &usize)| {
        let place = second.place(found.best_match[cell]);
        let true_place = truth.as_ref().and_then(|truth| truth[cell]);
        let error = true_place.map(|[x, y]| (place.view[0] - x).hypot(place.view[1] - y));
        let similarity = found.similarity[cell];
        Pair { rank, similarity, first: first.place(cell), second: place, true_place, error }
    };
    let chosen = found.order.iter().filter(|&&cell| mutual(cell)).take(settings.pairs);
    let pairs = chosen.enumerate().map(pair).collect();
    let matched = |own: &ViewFeatures, other: &ViewFeatures| MatchedView {
        shown: own.shown.clone(),
        view: own.view.clone(),
        grid: own.grid,
        nearest_own: own.nearest(&own.global),
        nearest_other: own.nearest(&other.global),
    };
    Matching { views: [matched(first, second), matched(second, first)], pairs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_testing::{tiny_swin, untrained};

    fn backbone() -> PretrainedBackbone {
        untrained(&tiny_swin(), 3, 32)
    }

    fn noise(width: u32, height: u32, seed: u64) -> Image {
        let mut rng = Rng::new(seed, [0; 3]);
        // Patches of 8 x 8 pixels, so that something is left of it in few pixels.
        let patches: Vec<u8> = (0..3 * 64 * 64).map(|_| rng.below(256) as u8).collect();
        let pixel = |x: u32, y: u32| &patches[3 * ((y / 8) * 64 + x / 8) as usize..][..3];
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y)));
        Image::new(width, height, pixels.copied().collect()).unwrap()
    }

    const SETTINGS: MatchSettings = MatchSettings { pairs: 10, size: 32, stage: 0, mutual: false };

    /// All four marks against the definition.
    #[test]
    fn marks_are_nearest_to_the_own_and_to_the_other_view() {
        let backbone = backbone();
        let images = [noise(64, 64, 1), noise(96, 64, 2)];
        let found = two_images(&backbone, images.each_ref(), &SETTINGS).unwrap();
        let sizes = found.views.each_ref().map(|side| [side.grid.columns, side.grid.rows]);
        assert_eq!(sizes, [[8, 8], [12, 8]]);
        let seen: Vec<(Vec<f32>, Vec<f32>)> = (0..2)
            .map(|at| {
                let [width, height] = sizes[at].map(|cells| 4 * cells);
                let shown =
                    found.views[at].view.render(&images[at], [width, height].map(|s| s as u32));
                let pixels = backbone.preprocess.normalize(&shown.unwrap());
                let images = Tensor::new(pixels, [1, 3, height, width], &Device::Cpu);
                let of = backbone.network.stage_features(
                    &backbone.params,
                    images,
                    0,
                    &ForwardCtx::eval(),
                );
                let of = of.unwrap();
                (of.region.to_vec::<f32>(), of.view.to_vec::<f32>())
            })
            .collect();
        let nearest = |cells: &[f32], global: &[f32]| {
            let cosine = |cell: &[f32]| {
                let dot: f32 = cell.iter().zip(global).map(|(a, b)| a * b).sum();
                dot / cell.iter().map(|a| a * a).sum::<f32>().sqrt()
            };
            let cosines: Vec<f32> = cells.chunks(8).map(cosine).collect();
            (0..cosines.len()).max_by(|&a, &b| cosines[a].total_cmp(&cosines[b])).unwrap()
        };
        for (at, side) in found.views.iter().enumerate() {
            let cells = &seen[at].0;
            assert_eq!(side.nearest_own, nearest(cells, &seen[at].1));
            assert_eq!(side.nearest_other, nearest(cells, &seen[1 - at].1));
        }
        let marks = found.views.each_ref().map(|side| (side.nearest_own, side.nearest_other));
        assert!(marks.iter().any(|(own, other)| own != other), "{marks:?}");
    }

    #[test]
    fn mutual_pairs_share_no_cell() {
        let backbone = backbone();
        let images = [noise(64, 64, 1), noise(64, 64, 2)];
        let pairs = |mutual| {
            let settings = MatchSettings { pairs: usize::MAX, mutual, ..SETTINGS };
            two_images(&backbone, images.each_ref(), &settings).unwrap().pairs
        };
        let (all, mutual) = (pairs(false), pairs(true));
        assert_eq!(all.len(), 64);
        let mut ends: Vec<usize> = mutual.iter().map(|pair| pair.second.cell).collect();
        ends.sort_unstable();
        ends.dedup();
        assert!(!mutual.is_empty() && mutual.len() < 64 && ends.len() == mutual.len());
    }

    /// The error is the distance between the two places, in pixels of the second view.
    #[test]
    fn errors_agree_with_the_places_in_the_image() {
        let image = noise(80, 60, 4);
        let settings = MatchSettings { pairs: usize::MAX, ..SETTINGS };
        let found = two_views(&backbone(), &image, 7, &settings).unwrap();
        let crop = found.views[1].view.crop;
        let scale = [crop.width, crop.height].map(|side| 32.0 / f64::from(side));
        let mut seen = 0;
        for pair in &found.pairs {
            let [x, y] =
                [0, 1].map(|axis| (pair.first.image[axis] - pair.second.image[axis]) * scale[axis]);
            if let Some(error) = pair.error {
                seen += 1;
                assert!((error - x.hypot(y)).abs() < 1e-9, "{pair:?}");
            }
        }
        assert!(seen > 10 && seen < found.pairs.len(), "{seen}");
        let again = two_views(&backbone(), &image, 7, &settings).unwrap();
        assert_eq!((found.pairs, &found.views[1].shown), (again.pairs, &again.views[1].shown));
    }

    /// Of 60 x 40 pixels, on 12 x 8 cells of 4: columns are counted from the other side.
    #[test]
    fn cells_of_the_mirror_image_are_known() {
        let settings = MatchSettings { pairs: usize::MAX, ..SETTINGS };
        let mut found = mirror_image(&backbone(), &noise(60, 40, 4), &settings).unwrap();
        let mirrored = |cell: usize| cell / 12 * 12 + 11 - cell % 12;
        assert_eq!(found.pairs.len(), 96);
        for pair in &found.pairs {
            let [x, y] = pair.first.view;
            let [true_x, true_y] = pair.true_place.unwrap();
            assert!((true_x - 48.0 + x).abs() < 1e-9 && (true_y - y).abs() < 1e-9, "{pair:?}");
            let is_right = pair.second.cell == mirrored(pair.first.cell);
            assert_eq!(pair.error.unwrap() < 1e-9, is_right, "{pair:?}");
        }
        let [first, second] = found.views.each_ref().map(|side| &side.shown);
        let width = first.width();
        assert!((0..width).all(|x| first.pixel(x, 9) == second.pixel(width - 1 - x, 9)));
        // Three in four right.
        for (index, pair) in found.pairs.iter_mut().enumerate() {
            let right = mirrored(pair.first.cell);
            pair.second.cell = if index % 4 == 0 { (right + 1) % 96 } else { right };
        }
        assert_eq!(found.accuracy(), Some(0.75));
    }

    /// Nothing is known of two images, and of what the other view does not show.
    #[test]
    fn accuracy_is_that_of_known_positions() {
        let (backbone, image) = (backbone(), noise(80, 60, 4));
        let two = two_images(&backbone, [&image, &image], &SETTINGS).unwrap();
        assert_eq!(two.accuracy(), None);
        let settings = MatchSettings { pairs: usize::MAX, ..SETTINGS };
        let mut found = two_views(&backbone, &image, 7, &settings).unwrap();
        let grid = found.views[1].grid;
        for pair in &mut found.pairs {
            pair.second.cell = pair.true_place.map_or(0, |place| grid.cell_at(place).unwrap());
        }
        assert_eq!(found.accuracy(), Some(1.0));
        found.pairs.retain(|pair| pair.true_place.is_none());
        assert_eq!((found.pairs.is_empty(), found.accuracy()), (false, None));
    }

    #[test]
    fn rows_share_a_legend() {
        let found = |pairs| {
            let settings = MatchSettings { pairs, ..SETTINGS };
            mirror_image(&backbone(), &noise(64, 64, 5), &settings).unwrap()
        };
        let svg = draw_rows(&[("first".into(), found(3)), ("second".into(), found(5))]).unwrap();
        let svg = svg.svg();
        let count = |part: &str| svg.matches(part).count();
        assert_eq!((count("<image"), count(">first<"), count(">second<")), (4, 1, 1));
        assert_eq!(count("up to 5 most similar pairs, 0 first"), 1, "{svg}");
        assert_eq!(count("nearest to its own view"), 1);
        let alone = draw(&found(3)).unwrap().svg();
        assert!(alone.contains(">3 most similar pairs, 0 first"), "{alone}");
    }

    #[test]
    fn images_of_any_shape_are_matched_and_drawn() {
        for (width, height) in [(1, 1), (1, 400), (400, 2), (33, 70)] {
            let shape = noise(width, height, 5);
            let found = two_views(&backbone(), &shape, 1, &SETTINGS).unwrap();
            let [wide, high] = draw(&found).unwrap().size();
            assert!(wide >= 900.0 && high >= 448.0, "{wide} {high}");
        }
    }

    #[test]
    fn views_of_part_cells_are_refused() {
        let settings = MatchSettings { size: 30, ..SETTINGS };
        let error = two_views(&backbone(), &noise(40, 40, 1), 0, &settings).unwrap_err();
        assert!(error.to_string().contains("such as 32"), "{error}");
    }

    #[test]
    fn of_very_long_images_the_middle_is_taken() {
        let crop = |width, height| {
            let CropBox { left, top, width, height } = whole(&noise(width, height, 1)).crop;
            [left, top, width, height]
        };
        assert_eq!(crop(40, 30), [0, 0, 40, 30]);
        assert_eq!((crop(100, 20), crop(20, 100)), ([20, 0, 60, 20], [0, 20, 20, 60]));
    }

    #[test]
    fn views_are_drawn_with_as_many_pixels_as_their_image_has() {
        let resolution = |side: u32| drawing::resolution(&View::whole([side, 2 * side]), [32, 64]);
        assert_eq!(resolution(100), [448, 896]);
        assert_eq!((resolution(600), resolution(5000)), ([600, 1200], [896, 1792]));
    }

    /// A pair is mutual if the backward pass leads to where it began.
    #[test]
    fn mutual_pairs_are_each_other_s_best_match() {
        let backbone = backbone();
        let images = [noise(64, 64, 1), noise(64, 64, 2)];
        let pairs = |[first, second]: [&Image; 2], mutual| {
            let settings = MatchSettings { pairs: usize::MAX, mutual, ..SETTINGS };
            let pairs = two_images(&backbone, [first, second], &settings).unwrap().pairs;
            pairs.into_iter().map(|pair| (pair.first.cell, pair.second.cell)).collect::<Vec<_>>()
        };
        let [a, b] = images.each_ref();
        let reverse = pairs([b, a], false);
        for (first, second) in pairs([a, b], true) {
            assert!(reverse.contains(&(second, first)), "{first} {second}");
        }
    }
}
