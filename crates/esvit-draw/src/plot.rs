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
        let places: Vec<[f64; 2]> =
            marks.iter().map(|(mark, _)| frame.at(mark.x, mark.y)).collect();
        for (&(point, style), place) in marks.iter().zip(apart(&places, [LEFT, WIDTH - RIGHT])) {
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

/// A mark with its spread at a place that is free, and a thin line to its own if that is another one.
fn mark(drawing: &mut Drawing, frame: &Frame, (point, place): (&Point, [f64; 2]), style: &Style) {
    let [left, own] = [place[0], frame.left(point.x)];
    if left != own {
        drawing.line([own, place[1]], place, style.color, 0.75);
    }
    if point.spread > 0.0 {
        let ends = [-1.0, 1.0].map(|side| frame.at(point.x, point.y + side * point.spread)[1]);
        drawing.line([left, ends[0]], [left, ends[1]], style.color, 1.5);
    }
    style.point(drawing, place, 5.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(shapes: Vec<(&str, Shape)>) -> Plot {
        let shapes = shapes.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect();
        Plot { x: "epoch".into(), y: "k-NN top-1 (%)".into(), scale: Scale::FromZero, shapes }
    }

    fn point(x: f64, y: f64, spread: f64) -> Point {
        Point { x, y, spread }
    }

    /// All values of an attribute.
    fn numbers(svg: &str, element: &str, attribute: &str) -> Vec<f64> {
        let elements = svg.lines().filter(|line| line.starts_with(&format!("<{element} ")));
        let value = |line: &str| {
            let (_, rest) = line.split_once(&format!(" {attribute}=\"")).unwrap();
            rest.split('"').next().unwrap().parse().unwrap()
        };
        elements.map(value).collect()
    }

    #[test]
    fn larger_values_stand_higher_and_later_ones_to_the_right() {
        let line = Shape::Line(vec![point(1.0, 10.0, 0.0), point(2.0, 30.0, 0.0)]);
        let svg = plot(vec![("both", line)]).draw().unwrap().svg();
        let (x, y) = (numbers(&svg, "circle", "cx"), numbers(&svg, "circle", "cy"));
        assert!(x.len() == 2 && x[0] < x[1] && y[0] > y[1], "{x:?} {y:?}");
        assert!(
            svg.contains(">both<") && svg.contains(">epoch<") && svg.contains(">k-NN top-1 (%)<")
        );
        assert!(!svg.contains("<polygon") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn the_spread_is_a_band_around_a_line_and_a_bar_at_a_mark() {
        let line = Shape::Line(vec![point(0.0, 10.0, 2.0), point(1.0, 20.0, 2.0)]);
        let svg = plot(vec![("a", line)]).draw().unwrap().svg();
        let (_, corners) = svg.split_once("<polygon points=\"").unwrap();
        let corners: Vec<Vec<f64>> = corners
            .split('"')
            .next()
            .unwrap()
            .split(' ')
            .map(|corner| corner.split(',').map(|number| number.parse().unwrap()).collect())
            .collect();
        // Above the line from left to right, and below it back.
        assert_eq!(corners.len(), 4);
        assert!(corners[0][0] < corners[1][0] && corners[1][0] == corners[2][0], "{corners:?}");
        assert!(corners[0][1] < corners[3][1] && corners[1][1] < corners[2][1], "{corners:?}");
        let middle = (corners[0][1] + corners[3][1]) / 2.0;
        assert!((middle - numbers(&svg, "circle", "cy")[0]).abs() < 0.02, "{corners:?}");
        let of_mark = |spread| {
            let shapes = vec![
                ("a", Shape::Mark(point(1.0, 10.0, spread))),
                ("b", Shape::Mark(point(2.0, 20.0, 0.0))),
            ];
            let svg = plot(shapes).draw().unwrap().svg();
            svg.matches("stroke-width=\"1.5\"").count()
        };
        assert_eq!([of_mark(0.0), of_mark(3.0)], [0, 1]);
    }

    #[test]
    fn everything_is_in_the_legend_and_has_its_color() {
        let names = ["one", "two", "three"].map(|name| format!("{name} {}", "x".repeat(40)));
        let shapes = vec![
            (&*names[0], Shape::Mark(point(1.0, 1.0, 0.0))),
            ("raw pixels", Shape::Level(0.5)),
            (&*names[1], Shape::Mark(point(2.0, 2.0, 0.0))),
            (&*names[2], Shape::Mark(point(3.0, 3.0, 0.0))),
        ];
        let plot = plot(shapes);
        let expected =
            [Style::of_shape(0), Style::of_level(0), Style::of_shape(1), Style::of_shape(2)];
        assert_eq!(plot.styles(), expected);
        let lines: Vec<f64> = plot.legend().iter().map(|entry| entry.line).collect();
        assert!(lines.is_sorted() && lines[3] > 0.0, "{lines:?}");
        let svg = plot.draw().unwrap().svg();
        assert!(names.iter().all(|name| svg.contains(&format!(">{name}<"))), "{svg}");
        // One across the plot and one in the legend.
        assert_eq!(svg.matches("stroke-dasharray").count(), 2);
    }

    /// With one check there is no band, and with two seeds there is a spread.
    #[test]
    fn a_line_of_one_point_is_a_mark_with_a_bar() {
        let line = |y, spread| Shape::Line(vec![point(1.0, y, spread)]);
        let svg = plot(vec![("a", line(10.0, 2.0)), ("b", line(20.0, 0.0))]).draw().unwrap().svg();
        assert_eq!(svg.matches("stroke-width=\"1.5\"").count(), 1, "{svg}");
        assert!(!svg.contains("<polygon") && !svg.contains("<polyline"), "{svg}");
        // Each in the plot and in the legend, equally large.
        assert_eq!(numbers(&svg, "circle", "r"), [5.0; 4]);
    }

    #[test]
    fn equal_marks_are_all_seen() {
        let marks = ["a", "b", "c"].map(|name| (name, Shape::Mark(point(7.0, 3.0, 1.0))));
        let svg = plot(marks.into()).draw().unwrap().svg();
        let mut left = numbers(&svg, "circle", "cx")[..3].to_vec();
        left.sort_by(f64::total_cmp);
        assert!(left.windows(2).all(|pair| pair[1] - pair[0] > 10.0), "{left:?}");
        // Bars go with their marks, and thin lines lead to the place of two of them.
        let bars = svg.lines().filter(|line| line.contains("stroke-width=\"1.5\""));
        let bars: Vec<String> = bars.map(str::to_owned).collect();
        assert!(
            left.iter().all(|x| bars.iter().any(|bar| bar.contains(&format!("x1=\"{x:.2}\""))))
        );
        assert_eq!(svg.matches("stroke-width=\"0.75\" stroke-linecap").count(), 2, "{svg}");
    }

    /// Nine lines, two of the same color, and two levels of a gray.
    #[test]
    fn everything_looks_different() {
        let names: Vec<String> = (0..9).map(|number| format!("line {number}")).collect();
        let line = |number: usize| {
            let y = number as f64;
            Shape::Line(vec![point(0.0, y, 0.0), point(1.0, y, 0.0)])
        };
        let mut shapes: Vec<(&str, Shape)> =
            names.iter().enumerate().map(|(number, name)| (&**name, line(number))).collect();
        shapes.push(("raw pixels", Shape::Level(10.0)));
        shapes.push(("untrained", Shape::Level(11.0)));
        let svg = plot(shapes).draw().unwrap().svg();
        let strokes = svg.lines().filter_map(|line| line.strip_prefix("<polyline points="));
        let look = |line: &str| line.split_once(" fill").unwrap().1.to_owned();
        let mut looks: Vec<String> = strokes.map(look).collect();
        assert_eq!(looks.len(), 2 * (9 + 2), "{svg}");
        looks.sort_unstable();
        looks.dedup();
        assert_eq!(looks.len(), 9 + 2, "{looks:?}");
        // The ninth has squares, in place of discs.
        assert_eq!(svg.matches("<polygon").count(), 2, "{svg}");
    }

    #[test]
    fn nothing_is_no_plot() {
        assert_eq!(plot(vec![]).draw().map(|drawing| drawing.svg()), None);
        assert!(plot(vec![("level", Shape::Level(1.0))]).draw().is_none());
        assert!(plot(vec![("line", Shape::Line(vec![]))]).draw().is_none());
        let one = plot(vec![("a < b", Shape::Mark(point(5.0, 5.0, 0.0)))]).draw().unwrap().svg();
        assert!(one.contains("a &lt; b") && !one.contains("NaN"), "{one}");
    }
}
