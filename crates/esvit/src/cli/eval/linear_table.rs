//! Results of a linear probe as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::linear::LinearResult;
use esvit_eval::probe::{
    ClassAccuracy, ClassMetrics, FewShotResult, MeanStd, Metrics, ProbeResult, Setting, Trial,
};

/// The main table: one row per network.
pub(super) fn table(rows: &[(&str, &LinearResult)]) -> String {
    let Some((_, first)) = rows.first() else { return String::new() };
    let [value, second, setting] = match first {
        LinearResult::FewShot(_) => ["top-1 mean +- std", "top-5 mean +- std", ""],
        LinearResult::Whole(result) => match result.best.metrics {
            Metrics::Classes(_) => ["top-1 (95 % interval)", "top-5", "setting"],
            Metrics::Labels { .. } => ["mAP", "11-point mAP", "setting"],
        },
    };
    let line = |name: &str, value: &str, second: &str, setting: &str| {
        format!("{name:10}  {value:22}  {second:18}  {setting}").trim_end().to_string()
    };
    let row = |(name, row): &(&str, &LinearResult)| match row {
        LinearResult::Whole(ProbeResult { best, .. }) => {
            let [value, second] = format_metrics(&best.metrics);
            line(name, &value, &second, &format_setting(&best.setting))
        }
        LinearResult::FewShot(FewShotResult { top1, top5, .. }) => {
            line(name, &format_mean_std(top1), &format_mean_std(top5), "")
        }
    };
    let mut lines = vec![line("features", value, second, setting)];
    lines.extend(rows.iter().map(row));
    lines.join("\n")
}

/// The metrics in two columns.
fn format_metrics(metrics: &Metrics) -> [String; 2] {
    match metrics {
        Metrics::Classes(ClassMetrics { accuracy, .. }) => {
            let ClassAccuracy { top1, top5, interval: [low, high] } = accuracy;
            [format!("{top1:.1} ({low:.1} to {high:.1})"), format!("{top5:.1}")]
        }
        Metrics::Labels { map, map_11_point, .. } => {
            [format!("{map:.1}"), format!("{map_11_point:.1}")]
        }
    }
}

fn format_mean_std(MeanStd { mean, std }: &MeanStd) -> String {
    match std {
        Some(std) => format!("{mean:.1} +- {std:.1}"),
        None => format!("{mean:.1}"),
    }
}

/// A setting, such as `n=4 lr=0.1`.
fn format_setting(setting: &Setting) -> String {
    let mut text = format!("n={}", setting.blocks.n);
    for (name, value) in [("lr", setting.lr), ("l2", setting.l2)] {
        if let Some(value) = value {
            let _ = write!(text, " {name}={}", format_number(value));
        }
    }
    text
}

/// A number of a grid, with few digits.
fn format_number(value: f64) -> String {
    let text = format!("{value}");
    if text.len() <= 6 { text } else { format!("{value:.1e}") }
}

/// Validation results: one row per number of blocks, one column per learning rate (best over L2
/// penalties), or per L2 penalty if there are no learning rates.
pub(super) fn sweep_table(result: &ProbeResult, multi_label: bool) -> String {
    let column = |trial: &Trial| trial.setting.lr.or(trial.setting.l2).unwrap_or(0.0);
    let by_lr = result.sweep.iter().any(|trial| trial.setting.lr.is_some());
    let mut columns: Vec<f64> = result.sweep.iter().map(column).collect();
    columns.sort_by(f64::total_cmp);
    columns.dedup();
    let mut rows: BTreeMap<usize, Vec<Option<f64>>> = BTreeMap::new();
    for trial in &result.sweep {
        let cells = rows.entry(trial.setting.blocks.n).or_insert(vec![None; columns.len()]);
        if let Some(place) = columns.iter().position(|&value| value == column(trial)) {
            cells[place] = [cells[place], trial.validation].into_iter().flatten().reduce(f64::max);
        }
    }
    let mut text = format!(
        "\n\n{} on the held-out images, by n and {}\n{:10}",
        if multi_label { "mAP" } else { "top-1" },
        if by_lr { "learning rate" } else { "L2 penalty" },
        "n"
    );
    columns.iter().for_each(|&value| {
        let _ = write!(text, "{:>9}", format_number(value));
    });
    for (n, cells) in rows {
        let _ = write!(text, "\n{n:<10}");
        for cell in cells {
            let cell = cell.map_or("-".to_string(), |value| format!("{value:.1}"));
            let _ = write!(text, "{cell:>9}");
        }
    }
    text
}
