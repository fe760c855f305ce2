//! What a run writes down: figures, logs, settings, the official form.

use super::*;

/// Lines after four steps and after the last: each the mean of its own steps, with the scheduled
/// values of its last one. An epoch's line is the mean of its three steps.
#[test]
fn figures_are_means_of_their_own_steps() {
    let single = Bench::new(&["train.log_every=1"]);
    let (_, reported) = single.well("run");
    let by_step = reported.figures;
    assert_eq!(by_step.len(), 6);
    let bench = Bench::new(&["train.log_every=4"]);
    let (_, reported) = bench.well("run");
    assert_eq!(reported.losses.len(), 6);
    assert_eq!(reported.figures.len(), 2);
    for (found, steps) in reported.figures.iter().zip([0..4, 4..6]) {
        let singles = &by_step[steps.clone()];
        let mean = |value: &dyn Fn(&StepMetrics) -> f64| {
            singles.iter().map(value).sum::<f64>() / singles.len() as f64
        };
        let last = &singles[singles.len() - 1];
        let losses = &reported.losses[steps];
        let loss = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64;
        // All of the figures; one that is added must be compared here too.
        let StepMetrics {
            step,
            epoch,
            train_loss,
            lr,
            wd,
            grad_norm,
            batch_time,
            data_wait,
            img_per_s,
            max_mem,
            objective,
            summary,
        } = found;
        close("loss of the steps", *train_loss, loss);
        close("loss", *train_loss, mean(&|figures| figures.train_loss));
        let of = |name: &str| found.get(name).unwrap();
        for part in ["view_loss", "region_loss"] {
            close(part, of(part), mean(&|figures| figures.get(part).unwrap()));
        }
        let parts: Vec<(&str, f64)> = found.loss_parts().collect();
        assert_eq!(parts, [("view", of("view_loss")), ("region", of("region_loss"))]);
        close("half of both", 2.0 * train_loss, of("view_loss") + of("region_loss"));
        close("norm", *grad_norm, mean(&|figures| figures.grad_norm));
        assert_eq!((step, epoch), (&last.step, &last.epoch));
        assert_eq!([lr, wd].map(|value| value.to_bits()), [last.lr, last.wd].map(f64::to_bits));
        // Schedules and health are those of the last step.
        let names = [
            "center_norm",
            "feature_std",
            "marginal_entropy",
            "max_entropy",
            "momentum",
            "region_loss",
            "rows",
            "teacher_entropy",
            "teacher_temp",
            "view_loss",
        ];
        let mut found: Vec<&str> = objective.iter().map(|(name, _)| name).collect();
        found.sort_unstable();
        assert_eq!(found, names);
        for name in names.into_iter().filter(|name| !name.ends_with("_loss")) {
            assert_eq!(of(name).to_bits(), last.get(name).unwrap().to_bits(), "{name}");
        }
        assert_eq!(summary, &last.summary);
        assert!(summary.as_ref().unwrap().starts_with("teacher entropy "), "{summary:?}");
        assert!(*batch_time > 0.0 && (0.0..=1.0).contains(data_wait));
        close("images", img_per_s * batch_time, 2.0);
        assert!(
            cfg!(not(target_os = "linux")) || (1.0..20_000.0).contains(max_mem),
            "{max_mem} MiB"
        );
    }
    let steps_and_epochs = by_step.iter().map(|figures| (figures.step, figures.epoch));
    let expected = [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)];
    assert_eq!(steps_and_epochs.collect::<Vec<_>>(), expected);

    let lines = bench.read("run/metrics.jsonl");
    let expected = reported.figures.iter().map(|figures| serde_json::to_string(figures).unwrap());
    assert_eq!(lines.lines().collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let epochs = bench.read("run/log.txt");
    let epochs: Vec<serde_json::Value> =
        epochs.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(epochs.len(), 2);
    for (epoch, line) in epochs.iter().enumerate() {
        let losses = &reported.losses[3 * epoch..][..3];
        let loss = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / 3.0;
        close("loss of an epoch", line["train_loss"].as_f64().unwrap(), loss);
        let last = &by_step[3 * epoch + 2];
        assert_eq!(line["train_lr"].as_f64(), Some(last.lr));
        assert_eq!(line["train_wd"].as_f64(), Some(last.wd));
        assert_eq!(line["epoch"].as_u64(), Some(epoch as u64));
    }
}

#[test]
fn what_a_run_writes_down() {
    let mut bench = Bench::new(&["train.log_every=2", "knn.every=2", "knn.k=7"]);
    bench.top1 = Some(vec![12.5]);
    let (outcome, reported) = bench.well("run");
    assert_eq!(bench.read("run/config.toml"), bench.settled().to_toml());
    assert_eq!(bench.read("run/env.json"), "{\n  \"machine\": \"a test\"\n}\n");
    let log = bench.read("run/train.log");
    let lines: Vec<&str> = log.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(lines, reported.plan.lines().collect::<Vec<_>>());
    let time = log.split(' ').next().unwrap();
    assert!(time.len() == 20 && time.starts_with("20") && time.ends_with('Z'), "{time}");
    let metrics = bench.read("run/metrics.jsonl");
    let check: serde_json::Value =
        serde_json::from_str(metrics.lines().find(|line| line.contains("knn_top1")).unwrap())
            .unwrap();
    let expected = serde_json::json!({
        "step": 6, "epoch": 2, "knn_k": 7, "knn_top1": 12.5, "knn_top5": 13.5
    });
    assert_eq!(check, expected);
    assert_eq!(metrics.lines().count(), 4);
    assert!(outcome.training.as_secs_f64() > 0.0);
    // The curves have every figure but the step, which is their place.
    let events = std::fs::read_dir(bench.path("run")).unwrap().map(|entry| entry.unwrap().path());
    let events: Vec<PathBuf> = events.filter(|path| name(path).starts_with("events.")).collect();
    assert_eq!(events.len(), 1);
    let events = bytes(&events[0]);
    let has = |tag: &str| {
        let field = [&[0x0a, tag.len() as u8], tag.as_bytes(), &[0x15]].concat();
        events.windows(field.len()).any(|window| window == field)
    };
    for tag in ["train_loss", "region_loss", "lr", "teacher_entropy", "knn_top1", "epoch"] {
        assert!(has(tag), "{tag}");
    }
    assert!(!has("step"));
    // A folder in use is refused.
    let error = bench.run("run").0.unwrap_err().to_string();
    assert!(error.contains("is not empty\nhint: add `--resume`"), "{error}");
}

/// Both networks under the names of the official code, the centers and the epoch.
#[test]
fn a_run_in_the_official_form() {
    let bench = Bench::new(&["train.epochs=1"]);
    let (outcome, _) = bench.well("run");
    let out = bench.path("official.pth");
    official::write(&outcome.checkpoint, &out, Float::F32).unwrap();
    let file = WeightsFile::open(&out).unwrap();
    let own = WeightsFile::open(&outcome.checkpoint).unwrap();
    let mut count = 0;
    for tensor in own.tensors() {
        let (group, name) = match tensor.name.split_once('.') {
            Some(("student", name)) => ("student", format!("module.{name}")),
            Some(("teacher", name)) => ("teacher", name.to_owned()),
            Some(_) => continue,
            None => ("dino_loss", tensor.name.clone()),
        };
        let found = file.find(group, &name).unwrap_or_else(|| panic!("{group}, {name}"));
        assert_eq!(found.shape, tensor.shape, "{name}");
        assert_eq!(file.read_f32(found).unwrap(), own.read_f32(tensor).unwrap(), "{name}");
        count += 1;
    }
    let positions = file.tensors().iter().filter(|t| t.name.ends_with("position_index")).count();
    assert_eq!((file.tensors().len(), positions), (count + 4, 4));
    assert_eq!(file.metadata().get("epoch").and_then(|epoch| epoch.as_i64()), Some(1));
    let about = file.metadata().get("esvit").and_then(|about| about.as_str()).unwrap();
    let about: serde_json::Value = serde_json::from_str(about).unwrap();
    let expected = serde_json::json!({
        "model": bench.config.model.backbone, "preprocess": bench.config.preprocess(), "steps": 3
    });
    assert_eq!(about, expected);
    official::write(&outcome.checkpoint, &bench.path("half.PT"), Float::F16).unwrap();
    let half = WeightsFile::open(&bench.path("half.PT")).unwrap();
    assert_eq!(half.find("teacher", "norm.weight").unwrap().dtype, Float::F16.dtype());
    assert_eq!(half.find("dino_loss", "center").unwrap().dtype, Float::F32.dtype());
    for name in ["official.safetensors", "official"] {
        let error = official::write(&outcome.checkpoint, &bench.path(name), Float::F32);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("is not the name of a PyTorch file\nhint: let it end in `.pth`"),
            "{error}"
        );
        assert!(!bench.path(name).exists());
    }
}
