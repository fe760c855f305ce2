//! Header of the page: a summary sentence, key figures and warnings.

use std::path::PathBuf;

use esvit_nn::Device;
use esvit_nn::params::Role;
use esvit_train::Config;
use esvit_train::objective::ObjectiveConfig;
use esvit_train::objective::distill::{DistillConfig, DistillSettings};

use super::run::Run;
use esvit_draw::escape;
use esvit_draw::html::{Tile, message_html, tiles};
use esvit_draw::number::{duration, grouped, rounded};

/// One sentence: network, losses, images, epochs.
pub(super) fn summary(run: &Run) -> String {
    let Some(config) = &run.config else {
        return "A run whose settings cannot be read.".into();
    };
    let count = match &run.source {
        Ok(source) => grouped(source.len() as i64),
        Err(_) => "the".into(),
    };
    let images = match &config.data.path {
        Some(folders) => {
            let code =
                |path: &PathBuf| format!("<code>{}</code>", escape(&path.display().to_string()));
            let names: Vec<String> = folders.paths().iter().map(code).collect();
            format!("{count} images of {}", names.join(", "))
        }
        None => format!("{count} built-in images"),
    };
    let repeat = match config.data.repeat {
        1 => String::new(),
        repeat => format!(", each {repeat} times per epoch"),
    };
    let backbone = &config.model.backbone;
    format!(
        "{} <code>{}</code> ({}) trained with {} on {images}{repeat}: {}, {} per step.",
        backbone.family(),
        escape(&config.model.arch),
        backbone.describe(),
        objective(&config.objective),
        config.train.length(),
        match config.train.batch_size {
            1 => "1 image".to_owned(),
            batch => format!("{} images", grouped(batch as i64)),
        },
    )
}

fn objective(objective: &ObjectiveConfig) -> String {
    match objective {
        ObjectiveConfig::Esvit(esvit) if esvit.region.enabled => {
            "L<sub>V</sub> + L<sub>R</sub>".into()
        }
        ObjectiveConfig::Esvit(_) => "L<sub>V</sub>".into(),
        ObjectiveConfig::Distill(DistillConfig {
            settings: DistillSettings { teacher: Some(teacher), .. },
            ..
        }) => {
            format!("distillation from <code>{}</code>", escape(&teacher.display().to_string()))
        }
        other => format!("<code>{}</code>", other.name()),
    }
}

/// Key figures, where known.
pub(super) fn key_figures(run: &Run) -> String {
    let figures = [
        knn(run),
        loss(run),
        Some(steps(run)),
        training_time(run),
        speed(run),
        run.config.as_ref().map(|config| parameters(run, config)),
        memory(run),
    ];
    tiles(figures.into_iter().flatten())
}

fn knn(run: &Run) -> Option<Tile> {
    let best = run.metrics.best_knn()?;
    let when = match best.step {
        0 => "of the weights that it began with".into(),
        _ => format!("after epoch {}", best.epoch),
    };
    let mut note = format!("k = {}, {when}", best.knn_k);
    if let Some(untrained) = run.untrained_top1() {
        note.push_str(&format!("; untrained {untrained:.1} %"));
    }
    let value = format!("{:.1}", best.knn_top1);
    Some(Tile { name: "Best k-NN top-1", value, unit: "%", note })
}

fn loss(run: &Run) -> Option<Tile> {
    let last = run.metrics.steps.last()?;
    let first = run.metrics.steps.first()?;
    let note = format!("at step {}: {}", grouped(first.step as i64), rounded(first.train_loss));
    Some(Tile { name: "Last loss", value: rounded(last.train_loss), unit: "", note })
}

fn steps(run: &Run) -> Tile {
    let value = grouped(run.metrics.steps_done() as i64);
    Tile { name: "Steps", value, unit: "", note: run.progress() }
}

fn training_time(run: &Run) -> Option<Tile> {
    let last = run.metrics.steps.last()?;
    let seconds = run.metrics.training_seconds();
    let note = match seconds / last.step.max(1) as f64 {
        step if step < 1.0 => format!("{:.0} ms a step", 1e3 * step),
        step => format!("{step:.2} s a step"),
    };
    Some(Tile { name: "Training time", value: duration(seconds), unit: "", note })
}

/// Mean speed and data wait over the whole run.
fn speed(run: &Run) -> Option<Tile> {
    let seconds = run.metrics.training_seconds();
    let steps = run.metrics.steps.last()?.step as f64;
    let batch = run.config.as_ref()?.train.batch_size as f64;
    let waits = run.metrics.steps.iter().map(|figures| figures.data_wait);
    let wait = 100.0 * waits.sum::<f64>() / run.metrics.steps.len() as f64;
    let value = rounded((batch * steps / seconds.max(1e-9)).round());
    let note = format!("{wait:.1} % waiting for images");
    Some(Tile { name: "Speed", value, unit: "img/s", note })
}

fn parameters(run: &Run, config: &Config) -> Tile {
    let (network, _) = config.network(&Device::Cpu, 0);
    let count = |of_backbone: bool| -> usize {
        let specs = network.specs().iter();
        let specs = specs.filter(|spec| spec.role != Role::Buffer);
        let specs = specs.filter(|spec| spec.part.is_backbone() == of_backbone);
        specs.map(|spec| spec.len()).sum()
    };
    let millions = |count: usize| format!("{:.2}", count as f64 / 1e6);
    // Without a checkpoint, heads that depend on more than the settings are not known.
    let depends = run.distills() || config.objective.settings().needs_labels();
    let heads = run.head_parameters().or_else(|| (!depends).then(|| count(false)));
    let note = match heads {
        Some(heads) => format!("heads {} M, not counted", millions(heads)),
        None => "heads not counted".into(),
    };
    Tile { name: "Parameters", value: millions(count(true)), unit: "M", note }
}

fn memory(run: &Run) -> Option<Tile> {
    let most = run.metrics.steps.iter().map(|figures| figures.max_mem).fold(0.0, f64::max);
    let (value, unit) = match most {
        _ if most <= 0.0 => return None,
        _ if most >= 1024.0 => (format!("{:.2}", most / 1024.0), "GiB"),
        _ => (format!("{most:.0}"), "MiB"),
    };
    Some(Tile { name: "Peak memory", value, unit, note: "resident, whole process".into() })
}

/// Findings, and files that could not be read.
pub(super) fn warnings(findings: &[String], problems: &[String]) -> String {
    let list = |class: &str, title: &str, lines: &[String]| {
        if lines.is_empty() {
            return String::new();
        }
        let items: String =
            lines.iter().map(|line| format!("<li>{}</li>\n", message_html(line))).collect();
        format!("<aside class=\"{class}\">\n<h2>{title}</h2>\n<ul>\n{items}</ul>\n</aside>\n")
    };
    list("warning", "Look at this first", findings)
        + &list("notice", "What could not be read", problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::run::{evaluated, example};
    use esvit_train::objective::esvit::EsvitConfig;
    use esvit_train::run::KnnMetrics;

    /// Name, value, unit and note of every tile.
    fn tiles_of(html: &str) -> Vec<[String; 4]> {
        let tile = |part: &str| {
            let (name, rest) = part.split_once("</dt><dd><b>").unwrap();
            let (value, rest) = rest.split_once("</b> ").unwrap();
            let (unit, rest) = rest.split_once("<small>").unwrap();
            [name, value, unit, rest.split_once("</small>").unwrap().0].map(str::to_owned)
        };
        html.split("<dt>").skip(1).map(tile).collect()
    }

    #[test]
    fn key_figures_are_those_of_the_run() {
        let mut run = example();
        run.evaluations = vec![evaluated(2, 14.5, 30.0)];
        let shape = run.config.as_ref().map(|config| config.model.backbone.clone()).unwrap();
        let millions = format!("{:.2}", crate::efficiency::parameters(&shape) as f64 / 1e6);
        let tiles = tiles_of(&key_figures(&run));
        for (tile, expected) in tiles.iter().zip([
            ["Best k-NN top-1", "30.0", "%", "k = 10, after epoch 2; untrained 14.5 %"],
            ["Last loss", "5", "", "at step 10: 6"],
            ["Steps", "40", "", "2 of 4 epochs"],
            ["Training time", "10 s", "", "250 ms a step"],
            ["Speed", "64", "img/s", "12.5 % waiting for images"],
            ["Parameters", &millions, "M", ""],
            ["Peak memory", "1.50", "GiB", "resident, whole process"],
        ]) {
            let same = tile[..3].iter().zip(expected).all(|(found, expected)| found == expected);
            assert!(
                same && (expected[0] == "Parameters" || tile[3] == expected[3]),
                "{tile:?} {expected:?}"
            );
        }
        assert_eq!(tiles.len(), 7);
        let start = KnnMetrics { step: 0, epoch: 0, knn_top1: 40.0, ..run.metrics.knn[0] };
        run.metrics.knn.insert(0, start);
        let kept = "k = 10, of the weights that it began with; untrained 14.5 %";
        assert_eq!(tiles_of(&key_figures(&run))[0][1..], ["40.0", "%", kept]);
        run.metrics.steps.iter_mut().for_each(|line| line.max_mem = 700.4);
        assert_eq!(tiles_of(&key_figures(&run))[6][1..3], ["700", "MiB"]);
        // What is not known is left out.
        run.metrics = Default::default();
        let names: Vec<String> =
            tiles_of(&key_figures(&run)).into_iter().map(|[name, ..]| name).collect();
        assert_eq!(names, ["Steps", "Parameters"]);
    }

    #[test]
    fn the_sentence_says_what_was_trained_on_what() {
        let mut run = example();
        let config = run.config.as_mut().unwrap();
        (config.data.path, config.data.repeat) = (esvit_data::Folders::of(&["photos".into()]), 3);
        let text = summary(&run);
        for part in [
            "the images of <code>photos</code>, each 3 times per epoch",
            "4 epochs, 16 images per step",
            "L<sub>R</sub>",
        ] {
            assert!(text.contains(part), "{text}");
        }
        run.config.as_mut().unwrap().train.batch_size = 1;
        assert!(summary(&run).ends_with("4 epochs, 1 image per step."), "{}", summary(&run));
        let config = run.config.as_mut().unwrap();
        config.objective =
            ObjectiveConfig::Esvit(EsvitConfig { region: false.into(), ..EsvitConfig::default() });
        config.data.path = None;
        run.source = Ok(std::sync::Arc::new(crate::testing::Images::labeled(
            (0..1200).map(|_| (0, crate::testing::noise(2, 2, 1))).collect(),
        )));
        let text = summary(&run);
        assert!(
            text.contains("1,200 built-in images") && !text.contains("L<sub>R</sub>"),
            "{text}"
        );
        let teacher = Some("a & b.safetensors".into());
        let distill = DistillSettings { teacher, ..DistillSettings::default() };
        run.config.as_mut().unwrap().objective = ObjectiveConfig::Distill(distill.into());
        let text = summary(&run);
        let part = "trained with distillation from <code>a &amp; b.safetensors</code> on 1,200";
        assert!(text.contains(part), "{text}");
        run.config = None;
        assert!(summary(&run).contains("cannot be read"));
    }

    /// They follow from the classes or the teacher, and not from the settings alone.
    #[test]
    fn heads_that_are_not_known_are_not_told() {
        let mut run = example();
        for (name, is_known) in [("esvit", true), ("supervised", false), ("distill", false)] {
            let config = run.config.as_mut().unwrap();
            config.objective = ObjectiveConfig::named(name).unwrap();
            let note = parameters(&run, run.config.as_ref().unwrap()).note;
            assert_eq!(note != "heads not counted", is_known, "{name}: {note}");
        }
    }

    #[test]
    fn warnings_come_before_what_could_not_be_read() {
        let html = warnings(&["a `b`".into()], &["c".into()]);
        let (first, second) = html.split_once("</aside>").unwrap();
        assert!(first.contains("class=\"warning\"") && first.contains("<code>b</code>"), "{first}");
        assert!(second.contains("class=\"notice\"") && second.contains(">c<"), "{second}");
        assert_eq!(warnings(&[], &[]), "");
    }
}
