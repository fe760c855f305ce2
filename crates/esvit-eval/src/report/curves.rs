//! Training curves.

use esvit_train::health::Health;
use esvit_train::run::StepMetrics;

use super::run::Run;
use esvit_draw::axis::Scale;
use esvit_draw::chart::{Chart, Series};

/// Charts of a run as HTML, large ones first; empty if there are no metrics.
pub(super) fn charts(run: &Run) -> String {
    let group = |class: &str, charts: &[Chart]| {
        let charts: String = charts.iter().map(Chart::html).collect();
        if charts.is_empty() {
            charts
        } else {
            format!("<div class=\"{class}\">\n{charts}</div>\n")
        }
    };
    let large = [loss(run), knn(run), entropy(run), feature_std(run), grad_norm(run), speed(run)];
    group("charts", &large) + &group("charts small", &schedules(run))
}

fn chart(title: &'static str, unit: &'static str, scale: Scale, series: Vec<Series>) -> Chart {
    Chart { title, unit, x_name: "step", small: false, scale, series }
}

/// A line of one metric, where it is logged.
fn line(run: &Run, name: &str, metric: impl Fn(&StepMetrics) -> Option<f64>) -> Series {
    let lines = run.metrics.steps.iter();
    Series::new(name, lines.filter_map(|line| Some([line.step as f64, metric(line)?])))
}

/// A line of one metric of the teacher's health.
fn health(run: &Run, name: &str, metric: impl Fn(&Health) -> f64) -> Series {
    line(run, name, |line| line.health.as_ref().map(&metric))
}

fn loss(run: &Run) -> Chart {
    let region = line(run, "region L_R", |line| line.region_loss);
    let mut series = vec![line(run, "total", |line| Some(line.train_loss))];
    // Without the region loss, the view loss is the total.
    if !region.points.is_empty() {
        series.extend([line(run, "view L_V", |line| Some(line.view_loss)), region]);
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

fn entropy(run: &Run) -> Chart {
    let series = vec![
        health(run, "per image", |health| health.teacher_entropy),
        health(run, "of the mean", |health| health.marginal_entropy),
        Series { reference: true, ..health(run, "ln K", |health| health.max_entropy) },
    ];
    chart("Teacher entropy", "nats", Scale::FromZero, series)
}

fn feature_std(run: &Run) -> Chart {
    let one = health(run, "all directions", |_| 1.0);
    let series = vec![
        health(run, "teacher", |health| health.feature_std),
        Series { reference: true, ..one },
    ];
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

fn schedules(run: &Run) -> [Chart; 4] {
    let of = |title, metric: fn(&StepMetrics) -> f64| {
        let series = vec![line(run, "now", |line| Some(metric(line)))];
        Chart { small: true, ..chart(title, "", Scale::Linear, series) }
    };
    [
        of("Learning rate", |line| line.lr),
        of("Weight decay", |line| line.wd),
        of("Teacher momentum", |line| line.momentum),
        of("Teacher temperature", |line| line.teacher_temp),
    ]
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
        run.metrics.steps.iter_mut().for_each(|line| line.region_loss = None);
        assert_eq!(metric(&charts(&run), "Loss").1, [("total", "5")]);
        run.metrics = Default::default();
        assert_eq!(charts(&run), "");
    }
}
