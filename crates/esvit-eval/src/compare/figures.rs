//! Figures of a comparison: a metric over the course of the runs, against the size of the network and
//! against its speed.

use esvit_draw::Drawing;
use esvit_draw::axis::Scale;
use esvit_draw::plot::{Plot, Point, Shape};

use super::{Check, Row, RunResult};
use crate::probe::MeanStd;

/// What is plotted, by checks and by rows.
struct Metric {
    title: &'static str,
    of_check: fn(&Check) -> Option<f64>,
    of_row: fn(&Row) -> Option<MeanStd>,
}

const KNN: Metric =
    Metric { title: "k-NN top-1 (%)", of_check: |check| check.knn, of_row: |row| row.knn };
const RETRIEVAL: Metric = Metric {
    title: "other crop found (%)",
    of_check: |check| check.retrieval,
    of_row: |row| row.retrieval,
};

/// The checks of all runs, as a line for each variant: the mean over its seeds in a band of the standard
/// deviation. k-NN accuracy is drawn, or else how often the other crop of an image is found; `None` if not
/// all runs were checked on the same images. A run that went on from another one's begins there.
pub fn curves(results: &[RunResult]) -> Option<Drawing> {
    let first = results.first()?;
    let is_same_data = results.iter().all(|result| result.data == first.data);
    let is_same_task = results.iter().all(|result| result.checked_on == first.checked_on);
    let has = |metric: &Metric| {
        let is_checked = |result: &RunResult| {
            result.checks.iter().any(|check| (metric.of_check)(check).is_some())
        };
        results.iter().all(is_checked)
    };
    let metric = if is_same_task && has(&KNN) {
        KNN
    } else if is_same_data && has(&RETRIEVAL) {
        RETRIEVAL
    } else {
        return None;
    };
    let epoch = first.images_per_epoch.max(1);
    let is_same_epoch = results.iter().all(|result| result.images_per_epoch == epoch);
    let (x, unit) = match is_same_data && is_same_epoch {
        true => ("epoch", epoch as f64),
        false => ("images seen", 1.0),
    };
    let mut shapes: Vec<(String, Shape)> = Vec::new();
    for RunResult { variant, .. } in results {
        if shapes.iter().all(|(name, _)| name != variant) {
            let runs = results.iter().filter(|result| result.variant == *variant);
            let lines: Vec<Vec<[f64; 2]>> =
                runs.map(|run| line(run, results, metric.of_check)).collect();
            shapes.push((variant.clone(), Shape::Line(mean_line(&lines, unit))));
        }
    }
    Plot { x: x.into(), y: metric.title.into(), scale: Scale::FromZero, shapes }.draw()
}

/// Images seen and metric of a run's checks. Before them comes the last one of the run that it went on
/// from.
fn line(
    run: &RunResult,
    results: &[RunResult],
    metric: fn(&Check) -> Option<f64>,
) -> Vec<[f64; 2]> {
    let points = |run: &RunResult| -> Vec<[f64; 2]> {
        let point = |check: &Check| Some([check.images_seen as f64, metric(check)?]);
        run.checks.iter().filter_map(point).collect()
    };
    let before = run.start.as_ref().and_then(|start| {
        let is_it = |other: &&RunResult| other.variant == start.variant && other.seed == run.seed;
        let points = points(results.iter().find(is_it)?);
        points.into_iter().rfind(|point| point[0] <= start.images_seen as f64)
    });
    before.into_iter().chain(points(run)).collect()
}

/// The means of the first points of all lines, of their second ones, and so on, in a `unit` of x.
fn mean_line(lines: &[Vec<[f64; 2]>], unit: f64) -> Vec<Point> {
    let count = lines.iter().map(Vec::len).min().unwrap_or(0);
    let point = |index: usize| {
        let [x, y] = [0, 1].map(|axis| {
            MeanStd::of(&lines.iter().map(|line| line[index][axis]).collect::<Vec<f64>>())
        });
        Point { x: x.mean / unit, y: y.mean, spread: y.std.unwrap_or(0.0) }
    };
    (0..count).map(point).collect()
}

/// The metric of each variant against the number of its parameters.
pub fn against_parameters(rows: &[Row]) -> Option<Drawing> {
    marks(rows, "parameters", |row| row.parameters.map(|count| count as f64))
}

/// The metric of each variant against the measured throughput of its network.
pub fn against_throughput(rows: &[Row]) -> Option<Drawing> {
    marks(rows, "images per second, forward", |row| row.forward_images_per_s)
}

/// A mark for each variant, beside levels of raw pixels and untrained networks.
fn marks(rows: &[Row], title: &str, x: fn(&Row) -> Option<f64>) -> Option<Drawing> {
    // Of a variant whose runs all failed there is nothing.
    let has = |metric: &Metric| {
        let mut shown = rows.iter().filter(|row| row.is_variant && row.seeds > 0);
        shown.all(|row| (metric.of_row)(row).is_some())
    };
    let metric = [KNN, RETRIEVAL].into_iter().find(has)?;
    let shape = |row: &Row| {
        let MeanStd { mean, std } = (metric.of_row)(row)?;
        let shape = match row.is_variant {
            true => Shape::Mark(Point { x: x(row)?, y: mean, spread: std.unwrap_or(0.0) }),
            false => Shape::Level(mean),
        };
        Some((row.name.clone(), shape))
    };
    let mut shapes: Vec<(String, Shape)> = Vec::new();
    for (name, shape) in rows.iter().filter_map(shape) {
        let is_level = matches!(shape, Shape::Level(_));
        // Levels at the same height are one line.
        match shapes.iter_mut().find(|(_, other)| is_level && *other == shape) {
            Some((names, _)) => names.push_str(&format!(", {name}")),
            None => shapes.push((name, shape)),
        }
    }
    Plot { x: title.into(), y: metric.title.into(), scale: Scale::Logarithmic, shapes }.draw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Speeds;
    use crate::compare::result::{Start, example, failed};
    use crate::compare::rows;

    fn svg(drawing: Option<Drawing>) -> String {
        drawing.unwrap().svg()
    }

    #[test]
    fn lines_are_means_over_seeds() {
        let lines = [vec![[10.0, 1.0], [20.0, 2.0]], vec![[12.0, 3.0], [20.0, 2.0], [30.0, 9.0]]];
        let point = |x, y, spread| Point { x, y, spread };
        let expected = [point(5.5, 2.0, 2f64.sqrt()), point(10.0, 2.0, 0.0)];
        assert_eq!(mean_line(&lines, 2.0), expected);
        assert!(mean_line(&[], 1.0).is_empty());
    }

    /// Two seeds that were checked once.
    #[test]
    fn one_check_has_the_spread_of_its_seeds() {
        let mut results = [example("view", 0, 30.0), example("view", 1, 34.0)];
        results.iter_mut().for_each(|result| result.checks.retain(|c| c.images_seen == 80));
        let drawn = svg(curves(&results));
        assert_eq!(drawn.matches("stroke-width=\"1.5\"").count(), 1, "{drawn}");
    }

    #[test]
    fn checks_are_drawn_over_epochs() {
        let mut results = vec![example("view", 0, 30.0), example("both", 0, 20.0)];
        let drawn = svg(curves(&results));
        for part in [">view<", ">both<", ">epoch<", ">k-NN top-1 (%)<"] {
            assert!(drawn.contains(part), "{part}");
        }
        // Two checks with k-NN accuracy each; retrieval was measured before the first step, too.
        assert_eq!(drawn.matches("<circle").count(), 4);
        results[1].images_per_epoch = 20;
        assert!(svg(curves(&results)).contains(">images seen<"));
        results[1].checks.iter_mut().for_each(|check| check.knn = None);
        let drawn = svg(curves(&results));
        assert!(drawn.contains(">other crop found (%)<"), "{drawn}");
        assert_eq!(drawn.matches("<circle").count(), 6);
        results[1].data = "other images".into();
        assert!(curves(&results).is_none());
        assert!(curves(&[]).is_none());
    }

    /// Accuracies on other images are not compared.
    #[test]
    fn checks_on_other_images_are_not_drawn_beside_each_other() {
        let mut results = vec![example("a", 0, 30.0), example("b", 0, 20.0)];
        results[1].checked_on = Some("`others`".into());
        assert!(svg(curves(&results)).contains(">other crop found (%)<"));
        results[1].data = "`others` (9 images)".into();
        assert!(curves(&results).is_none());
        results[1].checked_on = results[0].checked_on.clone();
        let drawn = svg(curves(&results));
        assert!(drawn.contains(">images seen<") && drawn.contains(">k-NN top-1 (%)<"), "{drawn}");
    }

    #[test]
    fn a_run_that_goes_on_begins_at_the_other_one() {
        let base = example("view", 0, 40.0);
        let mut next = example("added", 0, 60.0);
        next.checks.retain(|check| check.images_seen > 40);
        let start = |images_seen| Start {
            variant: "view".into(),
            step: 0,
            images_seen,
            training_seconds: 1.0,
        };
        let results = |images_seen| {
            let next = RunResult { start: Some(start(images_seen)), ..next.clone() };
            [example("view", 1, 99.0), base.clone(), next]
        };
        let knn: fn(&Check) -> Option<f64> = |check| check.knn;
        let of = |results: &[RunResult]| line(&results[2], results, knn);
        // The check of the same seed at the place, or the last before it.
        assert_eq!(of(&results(40)), [[40.0, 20.0], [80.0, 60.0]]);
        assert_eq!(of(&results(79)), [[40.0, 20.0], [80.0, 60.0]]);
        assert_eq!(of(&results(39)), [[80.0, 60.0]]);
    }

    #[test]
    fn variants_are_marks_and_baselines_levels() {
        let results =
            [example("view", 0, 30.0), example("view", 1, 34.0), example("both", 0, 20.0)];
        let drawn =
            svg(against_parameters(&rows(&["view", "both"], &results, &[], &Speeds::default())));
        for part in [">parameters<", ">raw pixels<", ">untrained<", ">view<", ">both<"] {
            assert!(drawn.contains(part), "{part} {drawn}");
        }
        // A mark and its entry in the legend.
        assert_eq!(drawn.matches("<circle").count(), 4);
        let failed = [failed("bad", 0)];
        let drawn = svg(against_throughput(&rows(
            &["bad", "view", "both"],
            &results,
            &failed,
            &Speeds::alike(&results, 50.0),
        )));
        assert!(drawn.contains(">images per second, forward<"), "{drawn}");
        assert!(drawn.contains(">k-NN top-1 (%)<") && !drawn.contains(">bad"), "{drawn}");
        assert!(against_parameters(&[]).is_none());
        // Each level has a line of its own in the plot and in the legend, with other dashes.
        let dashes = |drawn: &str| -> Vec<String> {
            let parts = drawn.split("stroke-dasharray=\"").skip(1);
            parts.map(|part| part.split('"').next().unwrap().to_owned()).collect()
        };
        let found = dashes(&drawn);
        assert!(found.len() == 4 && found[0] == found[2] && found[1] == found[3], "{found:?}");
        assert_ne!(found[0], found[1]);
        let mut one = [example("view", 0, 30.0)];
        one[0].untrained.knn = one[0].raw_pixels.knn;
        let drawn = svg(against_parameters(&rows(&["view"], &one, &[], &Speeds::default())));
        assert!(drawn.contains(">raw pixels, untrained<"), "{drawn}");
        assert_eq!(dashes(&drawn).len(), 2, "{drawn}");
    }
}
