//! Line charts as HTML: the plot is an SVG that stretches with the page, the labels are HTML text
//! that does not.

use std::fmt::Write;

use crate::axis::{Axis, Scale};
use crate::html::escape;
use crate::number::rounded;
use crate::thin::downsample;

/// Side of the plot's square view box, which is stretched to the size of the page.
const SIDE: f64 = 1000.0;
/// Number of ticks `[x, y]` that fit on a phone, and in a small chart.
const TICKS: [usize; 2] = [4, 4];
const TICKS_SMALL: [usize; 2] = [2, 3];
/// Series of at most this many points get a dot at each point.
const MAX_MARKED: usize = 40;

/// A line of a chart.
#[derive(Debug, Clone)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points `[x, y]`, ascending in x.
    pub points: Vec<[f64; 2]>,
    /// Whether it is a baseline, drawn dashed and in a neutral color.
    pub reference: bool,
}

/// A line chart.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Title.
    pub title: String,
    /// Unit of y; empty for a plain number.
    pub unit: &'static str,
    /// Name of the x axis: `step` or `epoch`.
    pub x_name: &'static str,
    /// Half-size chart, with fewer ticks.
    pub small: bool,
    /// Scale of the y axis.
    pub scale: Scale,
    /// The lines.
    pub series: Vec<Series>,
}

impl Series {
    /// A line through `points`, thinned if there are many.
    pub fn new(name: &str, points: impl IntoIterator<Item = [f64; 2]>) -> Self {
        Self { name: name.into(), points: downsample(points), reference: false }
    }

    /// The same as a baseline.
    pub fn reference(name: &str, points: impl IntoIterator<Item = [f64; 2]>) -> Self {
        Self { reference: true, ..Self::new(name, points) }
    }
}

impl Chart {
    /// The chart as an HTML `<figure>`; empty if no series has points.
    pub fn html(&self) -> String {
        let shown: Vec<&Series> =
            self.series.iter().filter(|series| !series.points.is_empty()).collect();
        let points = || shown.iter().flat_map(|series| &series.points);
        if points().next().is_none() {
            return String::new();
        }
        let last = points().map(|point| point[0]).fold(0.0, f64::max);
        let low = points().map(|point| point[1]).fold(f64::INFINITY, f64::min);
        let high = points().map(|point| point[1]).fold(f64::NEG_INFINITY, f64::max);
        let [ticks_across, ticks_up] = if self.small { TICKS_SMALL } else { TICKS };
        let x_axis = Axis::counted(last, ticks_across);
        let y_axis = Axis::new(low, high, self.scale, ticks_up);
        let unit = if self.unit.is_empty() { String::new() } else { format!("{}, ", self.unit) };
        format!(
            "<figure class=\"chart\">\n<figcaption><b>{}</b> <span>{}</span></figcaption>\n{}\
             <div class=\"plot\">\n{}{}</div>\n</figure>\n",
            escape(&self.title),
            escape(&format!("{unit}by {}", self.x_name)),
            legend(&shown),
            self.lines(&shown, &x_axis, &y_axis),
            labels(&x_axis, &y_axis),
        )
    }

    fn lines(&self, shown: &[&Series], x_axis: &Axis, y_axis: &Axis) -> String {
        let names: Vec<&str> = shown.iter().map(|series| series.name.as_str()).collect();
        let mut svg = format!(
            "<svg viewBox=\"0 0 {SIDE} {SIDE}\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"{} by {}: {}\">\n",
            escape(&self.title),
            self.x_name,
            escape(&names.join(", "))
        );
        for (value, _) in &y_axis.ticks {
            let y = SIDE * (1.0 - y_axis.position(*value));
            let _ = writeln!(svg, "<path class=\"grid\" d=\"M0 {y:.1}H{SIDE}\"/>");
        }
        for (series, class) in shown.iter().zip(classes(shown)) {
            let at = |[x, y]: &[f64; 2]| {
                format!(
                    "{:.1} {:.1}",
                    SIDE * x_axis.position(*x),
                    SIDE * (1.0 - y_axis.position(*y))
                )
            };
            let path: Vec<String> = series.points.iter().map(at).collect();
            let _ = writeln!(svg, "<path class=\"{class}\" d=\"M{}\"/>", path.join("L"));
            if series.points.len() <= MAX_MARKED && !series.reference {
                // A zero-length line with round caps is a dot that stays round when the SVG is
                // stretched.
                for (point, place) in series.points.iter().zip(&path) {
                    let [x, y] = point.map(rounded);
                    let _ = writeln!(
                        svg,
                        "<path class=\"{class} dot\" d=\"M{place}h.01\"><title>{} {x}: \
                         {y}</title></path>",
                        self.x_name,
                    );
                }
            }
        }
        svg + "</svg>\n"
    }
}

/// CSS class of each line: `line c1`, `line c2`, ... and `line reference`.
fn classes(shown: &[&Series]) -> Vec<String> {
    let mut color = 0;
    let class = |series: &&Series| {
        if series.reference {
            return "line reference".into();
        }
        color += 1;
        format!("line c{color}")
    };
    shown.iter().map(class).collect()
}

/// Names of the lines and their last values.
fn legend(shown: &[&Series]) -> String {
    let mut list = String::from("<ul class=\"legend\">");
    for (series, class) in shown.iter().zip(classes(shown)) {
        let last = series.points.last().map_or(f64::NAN, |point| point[1]);
        let _ = write!(
            list,
            "<li class=\"{}\"><i></i>{} <b>{}</b></li>",
            class.trim_start_matches("line "),
            escape(&series.name),
            rounded(last)
        );
    }
    list + "</ul>\n"
}

fn labels(x_axis: &Axis, y_axis: &Axis) -> String {
    let mut spans = String::new();
    for (value, words) in &y_axis.ticks {
        let top = 100.0 * (1.0 - y_axis.position(*value));
        let _ = writeln!(spans, "<span class=\"up\" style=\"top:{top:.2}%\">{words}</span>");
    }
    for (value, words) in &x_axis.ticks {
        let left = 100.0 * x_axis.position(*value);
        let _ = writeln!(spans, "<span class=\"across\" style=\"left:{left:.2}%\">{words}</span>");
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(series: Vec<Series>) -> String {
        Chart {
            title: "Loss".into(),
            unit: "nats",
            x_name: "step",
            small: false,
            scale: Scale::Linear,
            series,
        }
        .html()
    }

    #[test]
    fn lines_lie_between_the_ends_of_the_axes() {
        let html = chart(vec![
            Series::new("a < b", [[0.0, 1.0], [5.0, 3.0], [10.0, 2.0]]),
            Series::reference("level", [[0.0, 2.0], [10.0, 2.0]]),
        ]);
        assert!(
            html.contains("class=\"line c1\" d=\"M0.0 1000.0L500.0 0.0L1000.0 500.0\""),
            "{html}"
        );
        assert!(html.contains("class=\"line reference\" d=\"M0.0 500.0L1000.0 500.0\""), "{html}");
        assert!(html.contains("a &lt; b <b>2</b>") && html.contains("nats, by step"), "{html}");
        assert_eq!(html.matches("<title>").count(), 3);
    }

    #[test]
    fn ticks_are_labeled_where_they_are() {
        let series = vec![Series::new("a", [[0.0, 0.0], [8.0, 4.0]])];
        let html = chart(series.clone());
        for label in [
            "<span class=\"up\" style=\"top:100.00%\">0</span>",
            "<span class=\"up\" style=\"top:0.00%\">4</span>",
            "<span class=\"across\" style=\"left:25.00%\">2</span>",
        ] {
            assert!(html.contains(label), "{label} {html}");
        }
        let small = Chart {
            title: "Loss".into(),
            unit: "",
            x_name: "step",
            small: true,
            scale: Scale::Linear,
            series,
        };
        let across = |html: &str| html.matches("class=\"across\"").count();
        assert_eq!((across(&html), across(&small.html())), (5, 2));
    }

    #[test]
    fn nothing_to_show_is_no_chart_and_one_point_is_one() {
        assert_eq!(chart(vec![Series::new("loss", [])]), "");
        assert_eq!(chart(vec![Series::new("loss", [[1.0, f64::NAN]])]), "");
        let html = chart(vec![Series::new("loss", [[10.0, 5.0]])]);
        assert!(html.contains("dot") && !html.contains("NaN") && !html.contains("inf"), "{html}");
        assert!(!chart(vec![Series::new("loss", [[0.0, 0.0]])]).contains("NaN"));
    }

    #[test]
    fn references_are_dashed_and_long_lines_have_no_dots() {
        let points = |count: u32| (0..count).map(|x| [f64::from(x), f64::from(x % 7)]);
        let html = chart(vec![Series::reference("level", points(3)), Series::new("a", points(40))]);
        assert!(html.contains("<li class=\"reference\"><i></i>level <b>2</b>"), "{html}");
        assert!(html.contains("<li class=\"c1\"><i></i>a <b>4</b>"), "{html}");
        assert_eq!(
            (html.matches(" dot\"").count(), html.matches("line reference").count()),
            (40, 1)
        );
        let html = chart(vec![Series::new("a", points(41))]);
        assert_eq!(html.matches(" dot\"").count(), 0);
    }
}
