//! Draws a map.

use esvit_data::{Conversion, Image, PngError, Source, encode_png};
use rayon::prelude::*;

use super::colors::{ClassColors, PALETTE};
use super::placement::select_non_overlapping;
use super::{EmbeddingMap, Method, Point};
use crate::thumbnail::load_thumbnail;
use esvit_draw::{Anchor, Drawing, color, ellipsize, escape, text_width};

const MARGIN: f64 = 24.0;
/// Width of the plot area, and bounds of its height as multiples of the width.
const WIDTH: f64 = 1040.0;
const HEIGHTS: [f64; 2] = [0.45, 1.1];
/// Bounds of the thumbnail size; it is larger if there are few images.
const SIDES: [f64; 2] = [36.0, 96.0];
/// Resolution of thumbnails in pixels per unit of the drawing.
const THUMBNAIL_SCALE: f64 = 2.0;
const FRAME: f64 = 2.0;
/// Minimum gap between thumbnails.
const GAP: f64 = 3.0;
const DOT: f64 = 3.2;
/// Legend: maximum width of a class name, of the dot before it, and of the count after it.
const CLASS: f64 = 130.0;
const LEGEND_DOT: f64 = 35.0;
const LEGEND_COUNT: f64 = 48.0;

/// Draws images at their coordinates as thumbnails if there is room, else as dots. Classes are
/// colored, with a legend for up to twelve of them. There are no axes: coordinates have no meaning
/// of their own. Thumbnails come from `source`, loaded as `conversion` says; `about` is a subtitle.
///
/// # Errors
/// [`PngError`] if a thumbnail cannot be encoded.
pub fn draw(
    map: &EmbeddingMap,
    source: &dyn Source,
    conversion: &Conversion,
    about: &str,
) -> Result<Drawing, PngError> {
    let has_legend = (1..=PALETTE.len()).contains(&map.classes.len());
    let title = format!("{} map of view features", map.layout.method.name());
    let names = map.classes.iter().map(|class| text_width(class, 12.0));
    let name = names.fold(0.0, f64::max).min(CLASS);
    let legend = if has_legend { LEGEND_DOT + name + LEGEND_COUNT } else { 0.0 };
    let heading = text_width(about, 12.0).max(text_width(&title, 18.0));
    let width = (WIDTH + legend).max(heading) + 2.0 * MARGIN;
    let top = MARGIN + 78.0;
    let side = (WIDTH / (2.4 * (map.points.len() as f64).sqrt())).clamp(SIDES[0], SIDES[1]);
    let (mut coords, height) = fit_to_plot(&map.points, side / 2.0 + FRAME);
    coords.iter_mut().for_each(|[x, y]| (*x, *y) = (*x + MARGIN, *y + top));
    let mut drawing = Drawing::new(width.ceil(), (top + height + MARGIN).ceil());

    let colors = ClassColors::of(map);
    let shown = select_non_overlapping(&coords, side + 2.0 * FRAME + GAP);
    let load = |&index: &usize| {
        let pixels = (THUMBNAIL_SCALE * side).round() as u32;
        let thumbnail = load_thumbnail(source, map.points[index].image, conversion, pixels);
        thumbnail.map(|thumbnail| (index, thumbnail))
    };
    let thumbnails: Vec<(usize, Image)> = shown.par_iter().filter_map(load).collect();

    drawing.text([MARGIN, MARGIN + 16.0], &title, 18.0, color::INK, Anchor::Start);
    drawing.text([MARGIN, MARGIN + 38.0], about, 12.0, color::FAINT, Anchor::Start);
    let caption = caption(map, thumbnails.len());
    drawing.text([MARGIN, MARGIN + 56.0], &caption, 12.0, color::FAINT, Anchor::Start);
    let draw_dots = |drawing: &mut Drawing| {
        for (index, (point, &place)) in map.points.iter().zip(&coords).enumerate() {
            // Images with a thumbnail need no dot.
            if thumbnails.binary_search_by_key(&index, |(index, _)| *index).is_err() {
                dot(drawing, place, &colors.of_point(point), &point.name);
            }
        }
    };
    // Dots are drawn above thumbnails only if their color adds information, the class.
    if !has_legend {
        draw_dots(&mut drawing);
    }
    for (index, thumbnail) in &thumbnails {
        let [x, y] = coords[*index].map(|center| center - side / 2.0);
        let outer = side + 2.0 * FRAME;
        let frame = colors.of_point(&map.points[*index]);
        drawing.rect([x - FRAME, y - FRAME, outer, outer], &frame, 1.0);
        drawing.image(&encode_png(thumbnail)?, [x, y, side, side], false);
    }
    if has_legend {
        draw_dots(&mut drawing);
        draw_legend(&mut drawing, map, &colors, [MARGIN + WIDTH + 22.0, top + 14.0], name);
    }
    Ok(drawing)
}

/// Scales coordinates to the plot area without distortion, `border` away from its edges; also
/// returns its height.
fn fit_to_plot(points: &[Point], border: f64) -> (Vec<[f64; 2]>, f64) {
    let range = |of: fn(&Point) -> f64| {
        let values = || points.iter().map(of);
        [values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max)]
    };
    let [x, y] = [range(|point| point.x), range(|point| point.y)];
    let [wide, high] = [x, y].map(|[low, high]| high - low);
    let center = |[low, high]: [f64; 2]| (low + high) / 2.0;
    let room = WIDTH - 2.0 * border;
    let most = HEIGHTS[1] * WIDTH - 2.0 * border;
    // Points that are all on a vertical line, or all equal, are not spread horizontally.
    let scale = (room / wide).min(most / high);
    let scale = if scale.is_finite() { scale } else { 0.0 };
    let height = (high * scale + 2.0 * border).max(HEIGHTS[0] * WIDTH);
    let place = |point: &Point| {
        [WIDTH / 2.0 + (point.x - center(x)) * scale, height / 2.0 - (point.y - center(y)) * scale]
    };
    (points.iter().map(place).collect(), height)
}

/// How to read the map.
fn caption(map: &EmbeddingMap, thumbnails: usize) -> String {
    let layout = &map.layout;
    let how = match (layout.method, layout.explained_variance, layout.perplexity) {
        (Method::Pca, Some([across, up]), _) => {
            format!("{:.1} % of the variance across, {:.1} % upwards", 100.0 * across, 100.0 * up)
        }
        (_, _, Some(perplexity)) => {
            format!("perplexity {perplexity:.0}; distances between groups mean nothing")
        }
        _ => String::new(),
    };
    if thumbnails == map.points.len() {
        return how;
    }
    format!("{how}; {thumbnails} thumbnails where there is room, dots elsewhere")
}

/// A dot with a light outline and the image name as tooltip.
fn dot(drawing: &mut Drawing, [x, y]: [f64; 2], shade: &str, name: &str) {
    drawing.element(format_args!(
        "<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"{DOT}\" fill=\"{shade}\" stroke=\"#ffffff\" \
         stroke-width=\"0.9\"><title>{}</title></circle>",
        escape(name)
    ));
}

/// The legend: classes and their numbers of images, with names truncated to the width `name`.
fn draw_legend(
    drawing: &mut Drawing,
    map: &EmbeddingMap,
    colors: &ClassColors,
    [x, y]: [f64; 2],
    name: f64,
) {
    for (line, class) in (0..).zip(&map.classes) {
        let y = y + 22.0 * f64::from(line);
        let count = map.points.iter().filter(|point| point.class.as_ref() == Some(class)).count();
        drawing.dot([x, y - 4.0], 5.0, &colors.of_class(class));
        let words = ellipsize(class, 12.0, name);
        drawing.text([x + 13.0, y], &words, 12.0, color::INK, Anchor::Start);
        let end = x + 13.0 + name + LEGEND_COUNT;
        drawing.text([end, y], &count.to_string(), 12.0, color::FAINT, Anchor::End);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: f64, y: f64) -> Point {
        Point { image: 0, name: String::new(), class: None, x, y }
    }

    #[test]
    fn places_fill_the_field_without_being_stretched() {
        let (coords, height) = fit_to_plot(&[point(0.0, 0.0), point(4.0, 1.0)], 20.0);
        let [[x0, y0], [x1, y1]] = [coords[0], coords[1]];
        assert!((x0 - 20.0).abs() < 1e-9 && (x1 - WIDTH + 20.0).abs() < 1e-9);
        assert!(((y0 - y1) / (x1 - x0) - 0.25).abs() < 1e-9, "upwards is up");
        assert!((y0 + y1 - height).abs() < 1e-9 && height == HEIGHTS[0] * WIDTH);
        let (coords, height) = fit_to_plot(&[point(0.0, 0.0), point(0.0, 1.0)], 20.0);
        assert!(coords[1][1] > 19.9 && coords[0][1] < height - 19.9);
        assert_eq!(coords[0][0], WIDTH / 2.0);
        let (one, height) = fit_to_plot(&[point(2.0, 3.0)], 20.0);
        assert_eq!(one, [[WIDTH / 2.0, height / 2.0]]);
    }

    fn map(classes: &[&str], points: Vec<Point>) -> EmbeddingMap {
        let layout = super::super::Layout {
            method: Method::Pca,
            explained_variance: Some([0.7, 0.2]),
            perplexity: None,
        };
        let classes = classes.iter().map(|class| (*class).to_owned()).collect();
        EmbeddingMap { layout, points, classes }
    }

    #[test]
    fn the_legend_counts_the_images_of_every_class() {
        let of = |class: &str, x| Point { class: Some(class.into()), ..point(x, x) };
        let points = vec![of("cat", 0.0), of("cat", 1.0), of("cat", 2.0), of("dog", 3.0)];
        let source = crate::testing::Images::labeled(vec![(0, crate::testing::noise(9, 9, 1))]);
        let map = map(&["cat", "dog"], points);
        let usual = Conversion::default();
        let svg = draw(&map, &source, &usual, "about").unwrap().svg();
        for part in
            [">cat<", ">3<", ">dog<", ">1<", "70.0 % of the variance across, 20.0 % upwards"]
        {
            assert!(svg.contains(part), "{part}");
        }
        assert_eq!(svg.matches("<image").count(), 4);
        // Without classes there is no room for a legend.
        let plain = EmbeddingMap { classes: vec![], ..map };
        let [width, _] = draw(&plain, &source, &usual, "about").unwrap().size();
        assert_eq!(width, WIDTH + 2.0 * MARGIN);
    }

    #[test]
    fn images_are_drawn_as_the_network_was_shown_them() {
        use crate::testing::{Images, Scans, plain};
        use esvit_data::{Levels, SampleType};

        let map = map(&[], vec![point(0.0, 0.0)]);
        let levels = Levels::default().with(SampleType::Uint16, [0.0, 4095.0]);
        let shown = Conversion { levels, ..Conversion::default() };
        let white = Images::labeled(vec![(0, plain([255; 3]))]);
        let svg = |source: &dyn Source| draw(&map, source, &shown, "about").unwrap().svg();
        assert_eq!(svg(&Scans(1)), svg(&white));
    }

    #[test]
    fn remarks_say_how_a_map_came_about() {
        let mut map = map(&[], vec![point(0.0, 0.0), point(1.0, 1.0)]);
        assert_eq!(caption(&map, 2), "70.0 % of the variance across, 20.0 % upwards");
        assert!(caption(&map, 1).ends_with("; 1 thumbnails where there is room, dots elsewhere"));
        map.layout = super::super::Layout {
            method: Method::Tsne,
            explained_variance: None,
            perplexity: Some(29.6),
        };
        assert_eq!(caption(&map, 2), "perplexity 30; distances between groups mean nothing");
    }
}
