//! Plots as drawings of their own: lines with their spread, marks with error bars, and levels to compare
//! with, between two axes and below a legend.

mod apart;
mod style;

use crate::axis::{Axis, Scale};
use crate::{Anchor, Drawing, color, ellipsize, text_width};

use self::apart::apart;
use self::style::Style;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 24.0;
const HEIGHT: f64 = 340.0;
/// Room above the legend and the plot, and below the plot for ticks and title.
const MARGIN: f64 = 16.0;
const BOTTOM: f64 = 56.0;
/// Height of a line of the legend, and the width of a key before its name.
const LINE: f64 = 22.0;
const KEY: f64 = 30.0;
const TEXT: f64 = 12.0;
const GRID: &str = "#eceef1";
/// Number of ticks of an axis.
const TICKS: usize = 6;

/// A value of y with its spread, at a place on x.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Place on x.
    pub x: f64,
    /// Value.
    pub y: f64,
    /// Standard deviation of the value; 0 where it is not known.
    pub spread: f64,
}

/// What is plotted of one thing.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// A line through points, in a band of their spread. One of a single point is a mark.
    Line(Vec<Point>),
    /// A mark with the spread of its value. Where another one is already, it stands beside it.
    Mark(Point),
    /// A dashed line across the plot: a value to compare with.
    Level(f64),
}

/// A plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// Title of the x axis.
    pub x: String,
    /// Title of the y axis.
    pub y: String,
    /// Scale of the x axis.
    pub scale: Scale,
    /// What is plotted, with its name in the legend. Lines and marks have a color each, or where there are many a
    /// form and dashes beside it; levels are gray, each with dashes of its own.
    pub shapes: Vec<(String, Shape)>,
}

impl Shape {
    /// All places `[x, y]` that it covers; a level has no x.
    fn extent(&self) -> Vec<[Option<f64>; 2]> {
        let ends = |point: &Point| {
            [-1.0, 1.0].map(|side| [Some(point.x), Some(point.y + side * point.spread)])
        };
        match self {
            Self::Line(points) => points.iter().flat_map(ends).collect(),
            Self::Mark(point) => ends(point).into(),
            Self::Level(value) => vec![[None, Some(*value)]],
        }
    }

    /// Its only point, if it has one: a line needs two.
    fn mark(&self) -> Option<&Point> {
        match self {
            Self::Mark(point) => Some(point),
            Self::Line(points) if points.len() == 1 => points.first(),
            _ => None,
        }
    }
}

/// The rectangle that values are drawn in.
struct Frame {
    top: f64,
    x: Axis,
    y: Axis,
}

impl Frame {
    fn at(&self, x: f64, y: f64) -> [f64; 2] {
        [self.left(x), self.top + HEIGHT * (1.0 - self.y.position(y))]
    }

    fn left(&self, x: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * self.x.position(x)
    }
}

impl Plot {
    /// The plot as a drawing; `None` if it has neither lines nor marks.
    pub fn draw(&self) -> Option<Drawing> {
        let places: Vec<_> = self.shapes.iter().flat_map(|(_, shape)| shape.extent()).collect();
        let range = |axis: usize| {
            let values = places.iter().filter_map(|place| place[axis]);
            let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
            let low = values.iter().copied().reduce(f64::min)?;
            Some((low, values.into_iter().fold(low, f64::max)))
        };
        let ((x_low, x_high), (y_low, y_high)) = (range(0)?, range(1)?);
        let entries = self.legend();
        let lines = entries.last().map_or(0.0, |entry| entry.line + 1.0);
        let frame = Frame {
            top: MARGIN + LINE * lines,
            x: Axis::new(x_low, x_high, self.scale, TICKS),
            y: Axis::new(y_low, y_high, Scale::Linear, TICKS),
        };
        let mut drawing = Drawing::new(WIDTH, frame.top + HEIGHT + BOTTOM);
        self.axes(&mut drawing, &frame);
        let styles = self.styles();
        let shapes = || self.shapes.iter().map(|(_, shape)| shape).zip(&styles);
        for (shape, style) in shapes() {
            band(&mut drawing, &frame, shape, style.color);
        }
        for (shape, style) in shapes() {
            line(&mut drawing, &frame, shape, style);
        }
        let marks: Vec<(&Point, &Style)> =
            shapes().filter_map(|(shape, style)| Some((shape.mark()?, style))).collect();
        let own: Vec<[f64; 2]> = marks.iter().map(|(mark, _)| frame.at(mark.x, mark.y)).collect();
        let places = apart(&own, [LEFT, WIDTH - RIGHT]);
        // Thin lines to their places from marks that stand beside them, below all marks.
        for ((own, place), (_, style)) in own.iter().zip(&places).zip(&marks) {
            if own != place {
                drawing.line(*own, *place, style.color, 0.75);
            }
        }
        for ((point, style), place) in marks.into_iter().zip(places) {
            mark(&mut drawing, &frame, (point, place), style);
        }
        for ((shape, style), entry) in shapes().zip(&entries) {
            entry.draw(&mut drawing, shape, style);
        }
        Some(drawing)
    }

    /// Grid, ticks and titles.
    fn axes(&self, drawing: &mut Drawing, frame: &Frame) {
        let bottom = frame.top + HEIGHT;
        for (value, words) in &frame.y.ticks {
            let [_, y] = frame.at(frame.x.low, *value);
            drawing.line([LEFT, y], [WIDTH - RIGHT, y], GRID, 1.0);
            drawing.text([LEFT - 8.0, y + 4.0], words, 11.0, color::FAINT, Anchor::End);
        }
        for (value, words) in &frame.x.ticks {
            let x = frame.left(*value);
            drawing.line([x, bottom], [x, bottom + 5.0], color::FAINT, 1.0);
            drawing.text([x, bottom + 19.0], words, 11.0, color::FAINT, Anchor::Middle);
        }
        drawing.line([LEFT, bottom], [WIDTH - RIGHT, bottom], color::FAINT, 1.0);
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        drawing.text([middle, bottom + 42.0], &self.x, TEXT, color::INK, Anchor::Middle);
        let (x, y) = (16.0, frame.top + HEIGHT / 2.0);
        drawing.element(format_args!(
            "<text x=\"{x}\" y=\"{y:.2}\" font-size=\"{TEXT}\" fill=\"{}\" text-anchor=\"middle\" \
             transform=\"rotate(-90 {x} {y:.2})\">{}</text>",
            color::INK,
            crate::escape(&self.y)
        ));
    }

    /// How each shape is drawn.
    fn styles(&self) -> Vec<Style> {
        let (mut shapes, mut levels) = (0.., 0..);
        let style = |(_, shape): &(String, Shape)| match shape {
            Shape::Level(_) => Style::of_level(levels.next().unwrap_or(0)),
            _ => Style::of_shape(shapes.next().unwrap_or(0)),
        };
        self.shapes.iter().map(style).collect()
    }

    /// Places of the names: side by side, in as many lines as they need.
    fn legend(&self) -> Vec<Entry> {
        let room = WIDTH - LEFT - RIGHT;
        let (mut line, mut left) = (0.0, 0.0);
        let place = |(name, _): &(String, Shape)| {
            let name = ellipsize(name, TEXT, room - KEY);
            let width = KEY + text_width(&name, TEXT) + 12.0;
            if left > 0.0 && left + width > room {
                (line, left) = (line + 1.0, 0.0);
            }
            let entry = Entry { name, line, left: LEFT + left };
            left += width;
            entry
        };
        self.shapes.iter().map(place).collect()
    }
}

/// A name of the legend.
struct Entry {
    name: String,
    /// Its line, from 0.
    line: f64,
    left: f64,
}

impl Entry {
    fn draw(&self, drawing: &mut Drawing, shape: &Shape, style: &Style) {
        let y = MARGIN + LINE * self.line;
        let [left, right] = [self.left, self.left + KEY - 8.0];
        match shape.mark() {
            Some(_) => style.point(drawing, [(left + right) / 2.0, y], 5.0),
            None => style.line(drawing, &[[left, y], [right, y]], width(shape)),
        }
        let baseline = [self.left + KEY, y + 4.0];
        drawing.text(baseline, &self.name, TEXT, color::INK, Anchor::Start);
    }
}

/// How thick a line or level is.
fn width(shape: &Shape) -> f64 {
    if let Shape::Level(_) = shape { 1.5 } else { 2.0 }
}

/// The spread of a line, below all lines.
fn band(drawing: &mut Drawing, frame: &Frame, shape: &Shape, color: &str) {
    let Shape::Line(points) = shape else { return };
    // A single point has a bar.
    if points.len() < 2 || points.iter().all(|point| point.spread == 0.0) {
        return;
    }
    let side = |side: f64| points.iter().map(move |p| frame.at(p.x, p.y + side * p.spread));
    let around: Vec<[f64; 2]> = side(1.0).chain(side(-1.0).rev()).collect();
    let around: Vec<String> = around.iter().map(|[x, y]| format!("{x:.2},{y:.2}")).collect();
    drawing.element(format_args!(
        "<polygon points=\"{}\" fill=\"{color}\" fill-opacity=\"0.15\"/>",
        around.join(" ")
    ));
}

/// A line with its points, or a level.
fn line(drawing: &mut Drawing, frame: &Frame, shape: &Shape, style: &Style) {
    match shape {
        Shape::Line(points) if points.len() > 1 => {
            let points: Vec<[f64; 2]> = points.iter().map(|p| frame.at(p.x, p.y)).collect();
            style.line(drawing, &points, width(shape));
            points.iter().for_each(|&point| style.point(drawing, point, 2.5));
        }
        Shape::Level(value) => {
            let [_, y] = frame.at(frame.x.low, *value);
            style.line(drawing, &[[LEFT, y], [WIDTH - RIGHT, y]], width(shape));
        }
        _ => {}
    }
}

/// A mark with its spread, at a place.
fn mark(drawing: &mut Drawing, frame: &Frame, (point, place): (&Point, [f64; 2]), style: &Style) {
    let [left, _] = place;
    if point.spread > 0.0 {
        let ends = [-1.0, 1.0].map(|side| frame.at(point.x, point.y + side * point.spread)[1]);
        drawing.line([left, ends[0]], [left, ends[1]], style.color, 1.5);
    }
    style.point(drawing, place, 5.0);
}

#[cfg(test)]
mod tests;
