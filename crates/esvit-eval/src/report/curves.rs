//! Training curves.

use esvit_train::run::StepMetrics;

use super::run::Run;
use esvit_draw::axis::Scale;
use esvit_draw::chart::{Chart, Series};

/// Charts of a run as HTML, large ones first; empty if there are no metrics.
pub(super) fn charts(run: &Run) -> String {
    let group = |class: &str, charts: &[Chart]| {
        let charts: String = charts.iter().map(Chart::html).collect();
        let html = format!("<div class=\"{class}\">\n{charts}</div>\n");
        if charts.is_empty() { charts } else { html }
    };
    let large = [
        loss(run),
        knn(run),
        retrieval(run),
        entropy(run),
        feature_std(run),
        grad_norm(run),
        speed(run),
    ];
    group("charts", &large) + &group("charts small", &schedules(run))
}

fn chart(title: impl Into<String>, unit: &'static str, scale: Scale, series: Vec<Series>) -> Chart {
    Chart { title: title.into(), unit, x_name: "step", small: false, scale, series }
}

/// A line of one metric, where it is logged.
fn line(run: &Run, name: &str, metric: impl Fn(&StepMetrics) -> Option<f64>) -> Series {
    let lines = run.metrics.steps.iter();
    Series::new(name, lines.filter_map(|line| Some([line.step as f64, metric(line)?])))
}

/// A line of one metric of the objective's.
fn signal(run: &Run, name: &str, metric: &str) -> Series {
    line(run, name, |line| line.get(metric))
}

/// What a part of the loss is called.
fn part_name(part: &str) -> String {
    match part {
        "view" => "view L_V".into(),
        "region" => "region L_R".into(),
        other => other.replace('_', " "),
    }
}

fn loss(run: &Run) -> Chart {
    let mut series = vec![line(run, "total", |line| Some(line.train_loss))];
    let first = run.metrics.steps.first();
    let parts: Vec<&str> =
        first.into_iter().flat_map(|line| line.loss_parts().map(|(part, _)| part)).collect();
    // A single part is the total.
    if parts.len() > 1 {
        let parts = parts.into_iter();
        series.extend(parts.map(|part| signal(run, &part_name(part), &format!("{part}_loss"))));
    }
    chart("Loss", "nats", Scale::Linear, series)
}

fn knn(run: &Run) -> Chart {
    let checks = &run.metrics.knn;
    let epochs = |metric: fn(&esvit_train::run::KnnMetrics) -> f64| {
        checks.iter().map(move |check| [check.epoch as f64, metric(check)])
    };
    let mut series = vec![
        Series::new("top-1", epochs(|check| check.knn_top1)),
        Series::new("top-5", epochs(|check| check.knn_top5)),
    ];
    if let (Some(untrained), Some(last)) = (run.untrained_top1(), checks.last()) {
        let ends = [0.0, last.epoch as f64].map(|epoch| [epoch, untrained]);
        series.push(Series::reference("untrained top-1", ends));
    }
    Chart { x_name: "epoch", ..chart("k-NN accuracy", "%", Scale::FromZero, series) }
}

fn retrieval(run: &Run) -> Chart {
    let checks = run.metrics.retrieval.iter();
    let found = checks.map(|check| [check.step as f64, check.retrieval_top1]);
    let series = vec![Series::new("found", found)];
    chart("Other crop found", "%", Scale::FromZero, series)
}

fn entropy(run: &Run) -> Chart {
    let series = vec![
        signal(run, "per image", "teacher_entropy"),
        signal(run, "of the mean", "marginal_entropy"),
        Series { reference: true, ..signal(run, "ln K", "max_entropy") },
    ];
    chart("Teacher entropy", "nats", Scale::FromZero, series)
}

fn feature_std(run: &Run) -> Chart {
    let one = line(run, "all directions", |line| line.get("feature_std").map(|_| 1.0));
    let whose = if run.evaluates_teacher() { "teacher" } else { "network" };
    let series = vec![signal(run, whose, "feature_std"), Series { reference: true, ..one }];
    chart("Feature std", "0 if all are equal", Scale::FromZero, series)
}

fn grad_norm(run: &Run) -> Chart {
    let series = vec![line(run, "before clipping", |line| Some(line.grad_norm))];
    chart("Gradient norm", "", Scale::Logarithmic, series)
}

fn speed(run: &Run) -> Chart {
    let series = vec![line(run, "training", |line| Some(line.img_per_s))];
    chart("Speed", "img/s", Scale::FromZero, series)
}

/// What other charts show.
const SHOWN: [&str; 6] =
    ["teacher_entropy", "marginal_entropy", "max_entropy", "rows", "center_norm", "feature_std"];

fn schedules(run: &Run) -> Vec<Chart> {
    let small = |title: String, series: Series| Chart {
        small: true,
        ..chart(title, "", Scale::Linear, vec![series])
    };
    let mut charts = vec![
        small("Learning rate".into(), line(run, "now", |line| Some(line.lr))),
        small("Weight decay".into(), line(run, "now", |line| Some(line.wd))),
    ];
    let first = run.metrics.steps.first();
    let others = first.into_iter().flat_map(|line| line.objective.iter().map(|(name, _)| name));
    let others = others.filter(|name| !name.ends_with("_loss") && !SHOWN.contains(name));
    charts.extend(others.map(|name| {
        let title = match name {
            "momentum" => "Teacher momentum".into(),
            "teacher_temp" => "Teacher temperature".into(),
            other => other.replace('_', " "),
        };
        small(title, signal(run, "now", name))
    }));
    charts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::run::{evaluated, example};

    /// The metric of a title: its unit, and every line with its last value.
    fn metric<'a>(html: &'a str, title: &str) -> (&'a str, Vec<(&'a str, &'a str)>) {
        let start = format!("<figcaption><b>{title}</b> <span>");
        let (_, rest) = html.split_once(&start).unwrap_or_else(|| panic!("{title}"));
        let (unit, rest) = rest.split_once("</span>").unwrap();
        let (legend, _) = rest.split_once("</ul>").unwrap();
        let line = |entry: &'a str| {
            let (name, value) = entry.split_once(" <b>").unwrap();
            (name, value.split_once("</b>").unwrap().0)
        };
        (unit, legend.split("<i></i>").skip(1).map(line).collect())
    }

    #[test]
    fn every_chart_shows_its_own_figures() {
        let mut run = example();
        run.evaluations = vec![evaluated(2, 14.5, 30.0)];
        let html = charts(&run);
        for (title, unit, lines) in [
            (
                "Loss",
                "nats, by step",
                &[("total", "5"), ("view L_V", "6"), ("region L_R", "7")][..],
            ),
            (
                "k-NN accuracy",
                "%, by epoch",
                &[("top-1", "30"), ("top-5", "50"), ("untrained top-1", "14.5")],
            ),
            ("Other crop found", "%, by step", &[("found", "12.5")]),
            (
                "Teacher entropy",
                "nats, by step",
                &[("per image", "1.25"), ("of the mean", "2.25"), ("ln K", "3.25")],
            ),
            (
                "Feature std",
                "0 if all are equal, by step",
                &[("teacher", "0.75"), ("all directions", "1")],
            ),
            ("Gradient norm", "by step", &[("before clipping", "5.5")]),
            ("Speed", "img/s, by step", &[("training", "77")]),
            ("Learning rate", "by step", &[("now", "0.011")]),
            ("Weight decay", "by step", &[("now", "0.022")]),
            ("Teacher momentum", "by step", &[("now", "0.933")]),
            ("Teacher temperature", "by step", &[("now", "0.044")]),
        ] {
            assert_eq!(metric(&html, title), (unit, lines.to_vec()), "{title}");
        }
    }

    #[test]
    fn without_a_region_task_the_loss_is_one_line() {
        let mut run = example();
        let without = |line: &mut StepMetrics| {
            let figures = line.objective.iter();
            let figures = figures.filter(|(name, _)| *name != "region_loss");
            line.objective = figures.map(|(name, value)| (name.to_owned(), value)).collect();
        };
        run.metrics.steps.iter_mut().for_each(without);
        assert_eq!(metric(&charts(&run), "Loss").1, [("total", "5")]);
        run.metrics = Default::default();
        assert_eq!(charts(&run), "");
    }
}
