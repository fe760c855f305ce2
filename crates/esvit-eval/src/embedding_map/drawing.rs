//! The drawing of a map.

use std::collections::HashMap;

use esvit_data::{Picture, Source};
use rayon::prelude::*;

use super::placement::with_room;
use super::{EmbeddingMap, Method, Point};
use crate::draw::{Anchor, DrawError, Drawing, color, escaped};
use crate::thumbnail::{of_source, shortened, words_width};

const MARGIN: f64 = 24.0;
/// Side of the field that the places are spread over.
const FIELD: f64 = 900.0;
/// Sides of thumbnails on the map, and of their pictures in pixels.
const SIDE: f64 = 38.0;
const THUMBNAIL: u32 = 76;
const FRAME: f64 = 2.0;
/// Between thumbnails.
const GAP: f64 = 3.0;
const DOT: f64 = 3.2;
const LEGEND: f64 = 170.0;

/// Colours that are told apart easily; as many classes have a legend.
const PALETTE: [&str; 12] = [
    "#3b73b9", "#f28e2b", "#3f9b45", "#d64550", "#8a5fbf", "#8c5a3c", "#e377c2", "#1fb4c8",
    "#b5a512", "#6b7280", "#1b2a6b", "#93cf5a",
];

/// The drawing: every picture a dot at its place, and thumbnails wherever there is room for one.
/// Classes are colours, with a legend for up to twelve. There are no axes, as they mean nothing.
/// Thumbnails come from `source`; `about` says of what the map is.
///
/// # Errors
/// When a thumbnail cannot be stored.
pub fn picture(map: &EmbeddingMap, source: &dyn Source, about: &str) -> Result<Drawing, DrawError> {
    let has_legend = (1..=PALETTE.len()).contains(&map.classes.len());
    let title = format!("{} map of view features", map.layout.method.name());
    let legend = if has_legend { LEGEND } else { 0.0 };
    let heading = words_width(about, 12.0).max(words_width(&title, 18.0));
    let width = (FIELD + legend).max(heading) + 2.0 * MARGIN;
    let top = MARGIN + 78.0;
    let mut drawing = Drawing::new(width.ceil(), (top + FIELD + MARGIN).ceil());

    let places = spread(&map.points, [MARGIN, top]);
    let colours = Colours::of(map);
    let pictured = with_room(&places, SIDE + 2.0 * FRAME + GAP);
    let load = |&index: &usize| {
        let thumbnail = of_source(source, map.points[index].picture, THUMBNAIL);
        thumbnail.map(|thumbnail| (index, thumbnail))
    };
    let thumbnails: Vec<(usize, Picture)> = pictured.par_iter().filter_map(load).collect();

    drawing.text([MARGIN, MARGIN + 16.0], &title, 18.0, color::INK, Anchor::Start);
    drawing.text([MARGIN, MARGIN + 38.0], about, 12.0, color::FAINT, Anchor::Start);
    let remark = remark(map, thumbnails.len());
    drawing.text([MARGIN, MARGIN + 56.0], &remark, 12.0, color::FAINT, Anchor::Start);
    for (index, thumbnail) in &thumbnails {
        let [x, y] = places[*index].map(|centre| centre - SIDE / 2.0);
        let outer = SIDE + 2.0 * FRAME;
        let frame = colours.of_point(&map.points[*index]);
        drawing.rect([x - FRAME, y - FRAME, outer, outer], &frame, 1.0);
        drawing.picture(thumbnail, [x, y, SIDE, SIDE], false)?;
    }
    // A picture that is seen needs no dot, and dots lie on top: nothing is hidden.
    for (index, (point, &place)) in map.points.iter().zip(&places).enumerate() {
        if thumbnails.binary_search_by_key(&index, |(index, _)| *index).is_err() {
            dot(&mut drawing, place, &colours.of_point(point), &point.name);
        }
    }
    if has_legend {
        draw_legend(&mut drawing, map, &colours, [MARGIN + FIELD + 22.0, top + 14.0]);
    }
    Ok(drawing)
}

/// Places in the field, which they fill as far as they can without being stretched.
fn spread(points: &[Point], [left, top]: [f64; 2]) -> Vec<[f64; 2]> {
    let range = |values: &dyn Fn(&Point) -> f64| {
        let values = points.iter().map(values);
        values.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], value| {
            [low.min(value), high.max(value)]
        })
    };
    let [x, y] = [range(&|point| point.x), range(&|point| point.y)];
    let room = FIELD - SIDE - 2.0 * FRAME;
    let extent = (x[1] - x[0]).max(y[1] - y[0]);
    let scale = if extent > 0.0 { room / extent } else { 0.0 };
    let centre = |[low, high]: [f64; 2]| (low + high) / 2.0;
    let place = |point: &Point| {
        [
            left + FIELD / 2.0 + (point.x - centre(x)) * scale,
            top + FIELD / 2.0 - (point.y - centre(y)) * scale,
        ]
    };
    points.iter().map(place).collect()
}

/// How the map is to be read.
fn remark(map: &EmbeddingMap, thumbnails: usize) -> String {
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
    format!("{how}; {thumbnails} thumbnails where there is room, dots elsewhere")
}

/// A dot with a light edge, which tells its picture's name where it is pointed at.
fn dot(drawing: &mut Drawing, [x, y]: [f64; 2], shade: &str, name: &str) {
    drawing.element(format_args!(
        "<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"{DOT}\" fill=\"{shade}\" stroke=\"#ffffff\" \
         stroke-width=\"0.9\"><title>{}</title></circle>",
        escaped(name)
    ));
}

fn draw_legend(drawing: &mut Drawing, map: &EmbeddingMap, colours: &Colours, [x, y]: [f64; 2]) {
    for (line, class) in (0..).zip(&map.classes) {
        let y = y + 22.0 * f64::from(line);
        let count = map.points.iter().filter(|point| point.class.as_ref() == Some(class)).count();
        drawing.dot([x, y - 4.0], 5.0, &colours.of_class(class));
        let count = format!(" {count}");
        let room = LEGEND - 22.0 - 14.0 - words_width(&count, 12.0);
        let name = shortened(class, 12.0, room);
        drawing.text([x + 13.0, y], &name, 12.0, color::INK, Anchor::Start);
        let end = x - 22.0 + LEGEND;
        drawing.text([end, y], &count, 12.0, color::FAINT, Anchor::End);
    }
}

/// Colours of classes.
struct Colours(HashMap<String, String>);

impl Colours {
    /// The palette for as many classes as it has colours; for more, hues far from those before.
    fn of(map: &EmbeddingMap) -> Self {
        let count = map.classes.len();
        let shade = |number: usize| match PALETTE.get(number) {
            Some(shade) if count <= PALETTE.len() => (*shade).to_owned(),
            _ => {
                let hue = (number as f64 * 137.508) % 360.0;
                let lightness = [46, 60, 36][number % 3];
                hsl(hue, 0.62, f64::from(lightness) / 100.0)
            }
        };
        Self(map.classes.iter().cloned().zip((0..count).map(shade)).collect())
    }

    fn of_class(&self, class: &str) -> String {
        self.0.get(class).cloned().unwrap_or_else(|| color::FAINT.into())
    }

    fn of_point(&self, point: &Point) -> String {
        point.class.as_deref().map_or_else(|| "#9aa3ad".into(), |class| self.of_class(class))
    }
}

/// A colour by hue in degrees, saturation and lightness.
fn hsl(hue: f64, saturation: f64, lightness: f64) -> String {
    let reach = saturation * lightness.min(1.0 - lightness);
    let channel = |offset: f64| {
        let place = (offset + hue / 30.0) % 12.0;
        let value = lightness - reach * (place - 3.0).min(9.0 - place).clamp(-1.0, 1.0);
        (value * 255.0).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", channel(0.0), channel(8.0), channel(4.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: f64, y: f64) -> Point {
        Point { picture: 0, name: String::new(), class: None, x, y }
    }

    #[test]
    fn places_fill_the_field_without_being_stretched() {
        let places = spread(&[point(0.0, 0.0), point(4.0, 1.0)], [10.0, 20.0]);
        let [[x0, y0], [x1, y1]] = [places[0], places[1]];
        assert!((x1 - x0 - (FIELD - SIDE - 2.0 * FRAME)).abs() < 1e-9);
        assert!(((y0 - y1) / (x1 - x0) - 0.25).abs() < 1e-9, "upwards is up");
        assert_eq!(spread(&[point(2.0, 3.0)], [0.0, 0.0]), [[FIELD / 2.0; 2]]);
    }

    #[test]
    fn hues() {
        assert_eq!(hsl(0.0, 1.0, 0.5), "#ff0000");
        assert_eq!(hsl(120.0, 1.0, 0.25), "#008000");
        assert_eq!(hsl(240.0, 0.0, 1.0), "#ffffff");
    }
}
