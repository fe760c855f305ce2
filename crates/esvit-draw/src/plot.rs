//! Plots as drawings of their own: lines with their spread, marks with error bars, and levels to compare
//! with, between two axes and below a legend.

use crate::axis::{Axis, Scale};
use crate::{Anchor, Drawing, color, ellipsize, text_width};

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

/// Colors of what is plotted, in order; told apart in gray too as far as eight can be.
const COLORS: [&str; 8] =
    ["#1f6fb4", "#e0691a", "#2b8a4b", "#8e44ad", "#c0392b", "#0e8f9c", "#8a6d1b", "#57606a"];

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
    /// A line through points, in a band of their spread.
    Line(Vec<Point>),
    /// A mark with the spread of its value.
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
    /// What is plotted, with its name in the legend. Lines and marks have a color each, levels are gray.
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
        let of_shapes = self.shapes.iter().zip(self.colors());
        for ((_, shape), color) in of_shapes.clone() {
            band(&mut drawing, &frame, shape, color);
        }
        for ((_, shape), color) in of_shapes.clone() {
            lines_and_marks(&mut drawing, &frame, shape, color);
        }
        for (((_, shape), color), entry) in of_shapes.zip(&entries) {
            entry.draw(&mut drawing, shape, color);
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

    /// The color of each shape.
    fn colors(&self) -> Vec<&'static str> {
        let mut colors = COLORS.into_iter().cycle();
        let color = |(_, shape): &(String, Shape)| match shape {
            Shape::Level(_) => color::FAINT,
            _ => colors.next().unwrap_or(color::INK),
        };
        self.shapes.iter().map(color).collect()
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
    fn draw(&self, drawing: &mut Drawing, shape: &Shape, color: &str) {
        let y = MARGIN + LINE * self.line;
        let ends = [[self.left, y], [self.left + KEY - 8.0, y]];
        match shape {
            Shape::Line(_) => drawing.polyline(&ends, color, 2.0),
            Shape::Mark(_) => drawing.dot([self.left + (KEY - 8.0) / 2.0, y], 5.0, color),
            Shape::Level(_) => dashed(drawing, ends),
        }
        let baseline = [self.left + KEY, y + 4.0];
        drawing.text(baseline, &self.name, TEXT, color::INK, Anchor::Start);
    }
}

/// The spread of a line, below all lines.
fn band(drawing: &mut Drawing, frame: &Frame, shape: &Shape, color: &str) {
    let Shape::Line(points) = shape else { return };
    if points.iter().all(|point| point.spread == 0.0) {
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

fn lines_and_marks(drawing: &mut Drawing, frame: &Frame, shape: &Shape, color: &str) {
    match shape {
        Shape::Line(points) => {
            let points: Vec<[f64; 2]> = points.iter().map(|p| frame.at(p.x, p.y)).collect();
            drawing.polyline(&points, color, 2.0);
            points.iter().for_each(|&point| drawing.dot(point, 2.5, color));
        }
        Shape::Mark(Point { x, y, spread }) => {
            if *spread > 0.0 {
                let ends = [-1.0, 1.0].map(|side| frame.at(*x, y + side * spread));
                drawing.line(ends[0], ends[1], color, 1.5);
            }
            drawing.dot(frame.at(*x, *y), 5.0, color);
        }
        Shape::Level(value) => {
            let [_, y] = frame.at(frame.x.low, *value);
            dashed(drawing, [[LEFT, y], [WIDTH - RIGHT, y]]);
        }
    }
}

fn dashed(drawing: &mut Drawing, [[x1, y1], [x2, y2]]: [[f64; 2]; 2]) {
    drawing.element(format_args!(
        "<line x1=\"{x1:.2}\" y1=\"{y1:.2}\" x2=\"{x2:.2}\" y2=\"{y2:.2}\" stroke=\"{}\" \
         stroke-width=\"1.5\" stroke-dasharray=\"5 4\"/>",
        color::FAINT
    ));
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
        assert_eq!(plot.colors(), [COLORS[0], color::FAINT, COLORS[1], COLORS[2]]);
        let lines: Vec<f64> = plot.legend().iter().map(|entry| entry.line).collect();
        assert!(lines.is_sorted() && lines[3] > 0.0, "{lines:?}");
        let svg = plot.draw().unwrap().svg();
        assert!(names.iter().all(|name| svg.contains(&format!(">{name}<"))), "{svg}");
        // One across the plot and one in the legend.
        assert_eq!(svg.matches("stroke-dasharray").count(), 2);
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
