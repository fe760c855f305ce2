//! Results of each evaluation as a table with the numbers that its command prints, and the settings
//! that tell two evaluations apart.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::probe::Metric;
use crate::record::EvalRecord;
use esvit_draw::escape;
use esvit_draw::html::{message_html, table};
use esvit_draw::number::grouped;

/// Settings of an evaluation: results of one task and checkpoint that differ in them are shown side
/// by side.
pub(super) fn settings(record: &EvalRecord) -> Value {
    let results = &record.results;
    let of = |keys: &[&str]| -> Map<String, Value> {
        let some = keys.iter().filter_map(|&key| Some((key.to_owned(), results.get(key)?.clone())));
        some.filter(|(_, value)| !value.is_null()).collect()
    };
    let mut settings = match &record.evaluation[..] {
        "knn" => of(&["temperature"]),
        "linear" => of(&["solver", "standardize", "augment", "refit", "seed", "shots", "probe"]),
        "finetune" => of(&["settings"]),
        "transfer" => of(&["solver", "probe"]),
        "attention" | "retrieval" => of(&["images"]),
        "correspondence" => of(&["geometry", "scale", "pairs", "size", "stage", "seed"]),
        _ => Map::new(),
    };
    let mut add = |key: &str, value: Value| drop(settings.insert(key.into(), value));
    match &record.evaluation[..] {
        "knn" => {
            let first = &results["results"][0]["accuracies"];
            add("k", first.as_array().into_iter().flatten().map(|of| of["k"].clone()).collect());
        }
        "linear" => add("draws", json!(results["draws"].as_array().map(Vec::len))),
        "transfer" => {
            let set = |set: &Value| json!([set["set"], set["metric"]]);
            add("sets", list(results, "sets").map(set).collect());
        }
        "attention" => add("against", results["against"]["checkpoint"].clone()),
        _ => {}
    }
    Value::Object(settings)
}

/// The settings in words; what the table shows anyway is left out.
pub(super) fn settings_in_words(record: &EvalRecord) -> Vec<String> {
    let mut words = Vec::new();
    if let Value::Object(all) = settings(record) {
        for (key, value) in &all {
            match value {
                Value::Object(inner) => inner.iter().for_each(|(key, value)| {
                    // `refit` and `no_refit` say the same.
                    if !all.contains_key(key) && key != "no_refit" {
                        words.extend(word(key, value));
                    }
                }),
                _ if ["k", "sets", "against"].contains(&&key[..]) => {}
                // The note has them.
                _ if key == "images" && record.evaluation == "retrieval" => {}
                value => words.extend(word(key, value)),
            }
        }
    }
    words
}

/// A setting and its value; `None` if it is not given, or off.
fn word(key: &str, value: &Value) -> Option<String> {
    let name = escape(&key.replace('_', " "));
    Some(match value {
        Value::Null | Value::Bool(false) => return None,
        Value::Bool(true) => name,
        Value::String(text) => format!("{name} {}", escape(text)),
        Value::Array(list) if list.is_empty() => return None,
        Value::Array(list) => {
            let values: Vec<String> = list.iter().map(plain).collect();
            format!("{name} {}", values.join(" "))
        }
        other => format!("{name} {}", plain(other)),
    })
}

/// A value as its command prints it.
fn plain(value: &Value) -> String {
    escape(value.as_str().map_or_else(|| value.to_string(), str::to_owned).as_str())
}

/// The results of an evaluation; `None` if they have another form.
pub(super) fn results(record: &EvalRecord) -> Option<String> {
    let results = &record.results;
    match &record.evaluation[..] {
        "knn" => knn(results),
        "linear" => linear(results),
        "finetune" => finetune(results),
        "transfer" => transfer(results),
        "attention" => attention(results),
        "correspondence" => correspondence(results),
        "retrieval" => retrieval(results),
        _ => None,
    }
}

fn note(text: &str) -> String {
    format!("<p class=\"note\">{text}</p>\n")
}

fn head<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(String::from).to_vec()
}

/// The entries of a list; none if there is no such list.
fn list<'a>(results: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    results.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn digits(value: &Value, digits: usize) -> Option<String> {
    Some(format!("{:.digits$}", value.as_f64()?))
}

fn count(results: &Value, key: &str) -> Option<String> {
    results.get(key).and_then(Value::as_i64).map(grouped)
}

/// A value and its 95 % confidence interval.
fn with_interval(value: &Value, interval: &Value) -> Option<String> {
    Some(match [&interval[0], &interval[1]].map(|end| digits(end, 1)) {
        [Some(low), Some(high)] => format!("{} ({low} to {high})", digits(value, 1)?),
        _ => digits(value, 1)?,
    })
}

/// One row per kind of features, two columns per k.
fn knn(results: &Value) -> Option<String> {
    let rows = results.get("results")?.as_array()?;
    let accuracies = |row: &Value| row.get("accuracies")?.as_array().cloned();
    let mut head = head(["Features"]);
    for entry in accuracies(rows.first()?)? {
        let k = entry.get("k")?.as_u64()?;
        let used = entry.get("neighbors").and_then(Value::as_u64).filter(|&used| used < k);
        let k = used.map_or(format!("k={k}"), |used| format!("k={k} of {used}"));
        head.extend(["top-1", "top-5"].map(|metric| format!("{k}<br>{metric}")));
    }
    let row = |row: &Value| -> Option<Vec<String>> {
        let mut cells = vec![escape(row.get("features")?.as_str()?)];
        for entry in accuracies(row)? {
            for key in ["top1", "top5"] {
                cells.push(digits(entry.get(key)?, 1)?);
            }
        }
        (cells.len() == head.len()).then_some(cells)
    };
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect::<Option<_>>()?;
    let mut html = table(&head, &rows, 1);
    if let (Some(queries), Some(train)) =
        (count(results, "query_images"), count(results, "train_images"))
    {
        html += &note(&format!("Percent of {queries} images, classified by {train} others."));
    }
    Some(html)
}

/// The chosen setting of a probe.
fn chosen(best: &Value) -> String {
    let given = |name: &str| best.get(name).filter(|value| !value.is_null());
    let of = |name: &&str| Some(format!("{name}={}", plain(given(name)?)));
    ["n", "lr", "l2"].iter().filter_map(of).collect::<Vec<_>>().join(" ")
}

/// The probe of the network and of the same one untrained.
fn linear(results: &Value) -> Option<String> {
    let few = results.get("shots").is_some();
    let trained = if few { results } else { results.get("best")? };
    let names = match (few, trained.get("map").is_some()) {
        (true, _) => ["top-1, mean ± std", "top-5, mean ± std", ""],
        (_, true) => ["mAP", "11-point mAP", "Setting"],
        _ => ["top-1 (95 % interval)", "top-5", "Setting"],
    };
    let mean_std = |value: &Value| -> Option<String> {
        let std = digits(&value["std"], 1).map(|std| format!(" ± {std}"));
        Some(digits(&value["mean"], 1)? + &std.unwrap_or_default())
    };
    let row = |name: &str, best: &Value| -> Option<Vec<String>> {
        let [first, second] = match (few, best.get("map")) {
            (true, _) => [mean_std(best.get("top1")?)?, mean_std(best.get("top5")?)?],
            (_, Some(map)) => [digits(map, 1)?, digits(best.get("map_11_point")?, 1)?],
            _ => {
                let top1 = with_interval(best.get("top1")?, &best["interval"])?;
                [top1, digits(best.get("top5")?, 1)?]
            }
        };
        Some(vec![name.into(), first, second, if few { String::new() } else { chosen(best) }])
    };
    let untrained = results.get("untrained").filter(|best| !best.is_null());
    let rows = untrained.map(|best| ("untrained", best)).into_iter().chain([("trained", trained)]);
    let mut rows: Vec<Vec<String>> =
        rows.map(|(name, best)| row(name, best)).collect::<Option<_>>()?;
    let mut names = [&["Features"], &names[..]].concat();
    if few {
        names.pop();
        rows.iter_mut().for_each(|row| drop(row.pop()));
    }
    let names: Vec<String> = names.into_iter().map(String::from).collect();
    let mut html = table(&names, &rows, 1);
    let (train, queries) = (count(results, "train_images")?, count(results, "query_images")?);
    let mut text = format!("Percent of {queries} images; {train} training images.");
    if few {
        let draws = list(results, "draws").count();
        text += &format!(" {} images per class, {draws} draws.", plain(results.get("shots")?));
    } else if let (Some(fitted), Some(on)) =
        (count(results, "fitted_to"), count(results, "chosen_on"))
    {
        text += &format!(" Fitted to {fitted}");
        if on != "0" {
            text += &format!(", the setting chosen on {on} held-out ones");
        }
        text.push('.');
    }
    html += &note(&text);
    if list(results, "sweep").count() > 1 {
        let of = if trained.get("map").is_some() { "mAP" } else { "top-1" };
        html += &sweep(results, of);
    }
    Some(html)
}

/// Validation results: one row per number of blocks, one column per learning rate (best over L2
/// penalties), or per L2 penalty if there are no learning rates.
fn sweep(results: &Value, metric: &str) -> String {
    let by_lr = list(results, "sweep").any(|trial| trial["lr"].is_number());
    let column = |trial: &Value| trial[if by_lr { "lr" } else { "l2" }].as_f64().unwrap_or(0.0);
    let mut columns: Vec<f64> = list(results, "sweep").map(column).collect();
    columns.sort_by(f64::total_cmp);
    columns.dedup();
    let mut rows: BTreeMap<u64, Vec<Option<f64>>> = BTreeMap::new();
    for trial in list(results, "sweep") {
        let cells = rows.entry(trial["n"].as_u64().unwrap_or(0)).or_default();
        cells.resize(columns.len(), None);
        if let Some(place) = columns.iter().position(|&value| value == column(trial)) {
            cells[place] =
                [cells[place], trial["validation"].as_f64()].into_iter().flatten().reduce(f64::max);
        }
    }
    let number = |value: &f64| {
        let text = format!("{value}");
        if text.len() <= 6 { text } else { format!("{value:.1e}") }
    };
    let head: Vec<String> =
        ["n".to_owned()].into_iter().chain(columns.iter().map(number)).collect();
    let cell = |value: &Option<f64>| value.map_or("–".into(), |value| format!("{value:.1}"));
    let row = |(n, cells): (&u64, &Vec<Option<f64>>)| {
        [n.to_string()].into_iter().chain(cells.iter().map(cell)).collect()
    };
    let of = if by_lr { "learning rate" } else { "L2 penalty" };
    format!("<h4>{metric} on the held-out images, by n and {of}</h4>\n")
        + &table(&head, &rows.iter().map(row).collect::<Vec<_>>(), 1)
}

/// The best epoch and the last.
fn finetune(results: &Value) -> Option<String> {
    let row = |name: &str| -> Option<Vec<String>> {
        let of = results.get(name)?;
        let top1 = with_interval(of.get("top1")?, &of["interval"])?;
        Some(vec![name.into(), plain(of.get("epoch")?), top1, digits(of.get("top5")?, 1)?])
    };
    let rows = [row("best")?, row("last")?];
    let [train, queries, classes] =
        ["train_images", "query_images", "classes"].map(|key| count(results, key));
    let text = format!(
        "Percent of {} images; {} training images of {} classes.",
        queries?, train?, classes?
    );
    let head = head(["", "Epoch", "top-1 (95 % interval)", "top-5"]);
    Some(table(&head, &rows, 1) + &note(&text))
}

/// Name of a metric in words.
fn metric(name: &Value) -> String {
    let known = name.as_str().and_then(Metric::of_name);
    known.map_or_else(|| plain(name), |metric| metric.to_string())
}

/// One row per set, their mean, and wins against the second network.
fn transfer(results: &Value) -> Option<String> {
    let sets = results.get("sets")?.as_array()?;
    let against = sets.iter().any(|set| !set["against"].is_null());
    let mut names = head(["Set", "Metric", "Percent (95 % interval)"]);
    names.extend(against.then(|| "Against".to_owned()));
    names.push("Setting".into());
    let row = |set: &Value| -> Option<Vec<String>> {
        let mut cells = vec![
            format!("<code>{}</code>", plain(set.get("set")?)),
            metric(set.get("metric")?),
            with_interval(set.get("value")?, &set["interval"])?,
        ];
        if against {
            let other = &set["against"];
            cells.push(with_interval(&other["value"], &other["interval"]).unwrap_or("–".into()));
        }
        cells.push(chosen(set.get("best")?));
        Some(cells)
    };
    let mut rows: Vec<Vec<String>> = sets.iter().map(row).collect::<Option<_>>()?;
    let summary = &results["summary"];
    let mean = |key: &str| digits(&summary[key], 1).unwrap_or("–".into());
    let mut last = vec!["mean".into(), String::new(), mean("mean")];
    last.extend(against.then(|| mean("against_mean")));
    last.push(String::new());
    rows.push(last);
    let mut html = table(&names, &rows, 2);
    if against {
        let [wins, ties, losses] =
            ["wins", "ties", "losses"].map(|key| summary[key].as_i64().unwrap_or(0));
        html += &note(&format!("Wins on {wins}, ties on {ties}, loses on {losses} sets."));
    }
    for failed in list(results, "failed") {
        let reason = failed["reason"].as_str().and_then(|text| text.lines().next());
        let set = failed["set"].as_str().unwrap_or_default();
        html += &note(&message_html(&format!("`{set}` left out: {}", reason.unwrap_or_default())));
    }
    Some(html)
}

/// One row per kind of features.
fn retrieval(results: &Value) -> Option<String> {
    let row = |row: &Value| -> Option<Vec<String>> {
        Some(vec![plain(row.get("features")?), format!("{} %", digits(row.get("top1")?, 1)?)])
    };
    let rows = results.get("results")?.as_array()?;
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect::<Option<_>>()?;
    let images = count(results, "images")?;
    let text =
        format!("How often the other crop of an image is found among those of {images} images.");
    Some(table(&head(["Features", "Found"]), &rows, 1) + &note(&text))
}

/// One row per block, for each network.
fn attention(results: &Value) -> Option<String> {
    let mut html = block_table(results.get("blocks")?)?;
    if let Some(other) = results.get("against").filter(|other| !other.is_null()) {
        let name = message_html(&format!("Against `{}`", other.get("checkpoint")?.as_str()?));
        html += &format!("<h4>{name}</h4>\n{}", block_table(other.get("blocks")?)?);
    }
    let images = count(results, "images")?;
    Some(html + &note(&format!("Entropy in bits, mean over the queries of {images} images.")))
}

fn block_table(blocks: &Value) -> Option<String> {
    let row = |block: &Value| -> Option<Vec<String>> {
        let entropies: Vec<f64> =
            list(block, "heads").filter_map(|head| head["entropy"].as_f64()).collect();
        let lowest = entropies.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = entropies.iter().copied().fold(0.0, f64::max);
        let percent = |value: &Value| Some(format!("{:.1} %", 100.0 * value.as_f64()?.max(0.0)));
        let or_none = |value: Option<String>| value.unwrap_or("–".into());
        Some(vec![
            plain(block.get("block")?),
            plain(block.get("stage")?),
            format!("{}x{}", block["map"][0], block["map"][1]),
            or_none(block["window"].as_u64().map(|window| window.to_string())),
            entropies.len().to_string(),
            digits(block.get("entropy")?, 3)?,
            or_none(percent(&block["share"])),
            format!("{lowest:.2}–{highest:.2}"),
            or_none(digits(&block["diversity"], 4)),
            percent(block.get("padding_mass")?)?,
        ])
    };
    let rows: Vec<Vec<String>> = blocks.as_array()?.iter().map(row).collect::<Option<_>>()?;
    let head = head([
        "Block",
        "Stage",
        "Map",
        "Window",
        "Heads",
        "Entropy",
        "Of largest",
        "Lowest–highest",
        "Diversity",
        "Padding",
    ]);
    Some(table(&head, &rows, 0))
}

/// One row per kind of matches.
fn correspondence(results: &Value) -> Option<String> {
    let rows = results.get("results")?.as_array()?;
    let estimate = |value: &Value, digits: usize| -> Option<String> {
        let mean = value.get("mean")?.as_f64()?;
        let ends = [&value["interval"][0], &value["interval"][1]].map(Value::as_f64);
        Some(match ends {
            [Some(low), Some(high)] if low < high => {
                format!("{mean:.digits$} [{low:.digits$}, {high:.digits$}]")
            }
            _ => format!("{mean:.digits$}"),
        })
    };
    let next = rows.iter().any(|row| row["next_similarity"].is_object());
    let mut names = head(["Matches", "Accuracy", "Distance in pixels"]);
    names.extend(list(rows.first()?, "pck").map(|pck| format!("PCK@{}", plain(&pck["alpha"]))));
    names.extend(next.then(|| "Next similarity".to_owned()));
    let row = |row: &Value| -> Option<Vec<String>> {
        let mut cells = vec![
            plain(row.get("features")?),
            estimate(row.get("accuracy")?, 3)?,
            estimate(row.get("distance")?, 1)?,
        ];
        for pck in list(row, "pck") {
            cells.push(estimate(pck, 3)?);
        }
        if next {
            cells.push(estimate(&row["next_similarity"], 3).unwrap_or("–".into()));
        }
        Some(cells)
    };
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect::<Option<_>>()?;
    let (images, map) = (count(results, "images")?, &results["map"]);
    let text = format!("{images} images, matched on a map of {} x {} cells.", map[0], map[1]);
    Some(table(&names, &rows, 1) + &note(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(evaluation: &str, results: Value) -> EvalRecord {
        EvalRecord {
            evaluation: evaluation.into(),
            task: "set".into(),
            checkpoint: "best.safetensors".into(),
            network: "teacher".into(),
            epochs: None,
            steps: None,
            results,
        }
    }

    /// The cells of a page's rows, without markup.
    fn rows(html: &str) -> Vec<Vec<String>> {
        let text =
            |cell: &str| cell.split_once('>').unwrap().1.split('<').next().unwrap().to_owned();
        let is_cell = |part: &&str| ["d>", "d ", "h>", "h "].contains(&&part[..2]);
        let row = |row: &str| row.split("<t").skip(1).filter(is_cell).map(text).collect();
        html.split("<tr>").skip(1).map(row).collect()
    }

    #[test]
    fn probes_show_what_their_command_prints() {
        let best = |top1: f64| {
            json!({"n": 4, "lr": 0.1, "l2": null, "top1": top1, "top5": 91.26,
                   "interval": [40.04, 60.06]})
        };
        let trial = |n: usize, lr: f64, validation: f64| json!({"n": n, "lr": lr, "validation": validation});
        let results = json!({
            "train_images": 1000, "query_images": 50, "solver": "sgd", "standardize": true,
            "augment": false, "refit": true, "seed": 3, "best": best(50.04),
            "untrained": best(12.34), "fitted_to": 1000, "chosen_on": 200,
            "sweep": [trial(1, 0.1, 30.0), trial(1, 1.0, 31.25), trial(4, 0.1, 42.0)],
            "probe": {"solver": "sgd", "n": [1, 4], "lr": [], "epochs": null, "seed": 3},
        });
        let shown = record("linear", results);
        let html = super::results(&shown).unwrap();
        let rows = rows(&html);
        assert_eq!(rows[1], ["untrained", "12.3 (40.0 to 60.1)", "91.3", "n=4 lr=0.1"]);
        assert_eq!(rows[2][..2], ["trained", "50.0 (40.0 to 60.1)"]);
        assert_eq!(
            rows[3..],
            [vec!["n", "0.1", "1"], vec!["1", "30.0", "31.2"], vec!["4", "42.0", "–"]]
        );
        assert!(html.contains("Fitted to 1,000, the setting chosen on 200"), "{html}");
        let words = settings_in_words(&shown).join(", ");
        assert_eq!(words, "n 1 4, refit, seed 3, solver sgd, standardize");
        let spread = json!({"mean": 40.04, "std": 2.04});
        let few = json!({"train_images": 10, "query_images": 5, "shots": 2, "draws": [1, 2, 3],
                         "top1": spread, "top5": {"mean": 80.0, "std": null}, "untrained": null});
        let html = super::results(&record("linear", few)).unwrap();
        assert!(html.contains("40.0 ± 2.0") && html.contains("2 images per class, 3 draws"));
        let labels = json!({"train_images": 10, "query_images": 5, "fitted_to": 10, "chosen_on": 0,
                            "best": {"n": 1, "map": 33.33, "map_11_point": 35.0}});
        let html = super::results(&record("linear", labels)).unwrap();
        assert!(html.contains("11-point mAP") && html.contains(">33.3<"), "{html}");
    }

    #[test]
    fn the_best_and_the_last_epoch_of_fine_tuning() {
        let epoch = |epoch: u64| json!({"epoch": epoch, "top1": 50.0, "top5": 90.0, "interval": [40.0, 60.0]});
        let shown = record(
            "finetune",
            json!({"train_images": 30, "query_images": 9, "classes": 3, "best": epoch(2),
                   "last": epoch(5), "epochs": [], "settings": {"lr": 0.001, "epochs": 5}}),
        );
        let rows = rows(&super::results(&shown).unwrap());
        assert_eq!(rows[1], ["best", "2", "50.0 (40.0 to 60.0)", "90.0"]);
        assert_eq!(rows[2][..2], ["last", "5"]);
        assert_eq!(settings_in_words(&shown), ["epochs 5", "lr 0.001"]);
    }

    #[test]
    fn sets_of_a_transfer_with_their_mean() {
        let set = |name: &str, value: f64, against: Value| {
            json!({"set": name, "metric": "map_11_point", "value": value, "interval": null,
                   "best": {"n": 1}, "against": against})
        };
        let shown = record(
            "transfer",
            json!({"solver": "sgd", "sets": [
                       set("a", 10.04, json!({"value": 9.0, "interval": [8.0, 10.0]})),
                       set("b", 20.0, Value::Null)],
                   "failed": [{"set": "c", "reason": "no <images>\nhint: x"}],
                   "summary": {"mean": 15.02, "against_mean": 9.0, "wins": 1, "ties": 0,
                               "losses": 0}}),
        );
        let html = super::results(&shown).unwrap();
        assert!(html.contains("<td class=\"number\">9.0 (8.0 to 10.0)</td>"), "{html}");
        assert_eq!(rows(&html)[1], ["", "11-point mAP", "10.0", "9.0 (8.0 to 10.0)", "n=1"]);
        assert_eq!(rows(&html)[3], ["mean", "", "15.0", "9.0", ""]);
        assert!(html.contains("Wins on 1, ties on 0") && html.contains("no &lt;images&gt;"));
    }

    #[test]
    fn blocks_and_matches() {
        let block = json!({"block": 3, "stage": 2, "map": [4, 6], "window": 2, "entropy": 1.23456,
            "share": 0.5004, "diversity": null, "padding_mass": 0.01,
            "heads": [{"entropy": 1.0}, {"entropy": 1.5}]});
        let blocks = json!([block]);
        let shown = record(
            "attention",
            json!({"images": 7, "blocks": blocks,
                   "against": {"checkpoint": "b.pth", "blocks": blocks}}),
        );
        let html = super::results(&shown).unwrap();
        let expected = ["3", "2", "4x6", "2", "2", "1.235", "50.0 %", "1.00–1.50", "–", "1.0 %"];
        assert_eq!(rows(&html)[1], expected);
        assert!(html.contains("<code>b.pth</code>"), "{html}");

        let estimate = |mean: f64| json!({"mean": mean, "interval": [mean - 0.1, mean + 0.1]});
        let row = json!({"features": "trained", "accuracy": estimate(0.5), "distance": estimate(9.0),
            "pck": [{"alpha": 0.05, "mean": 0.25, "interval": null}], "next_similarity": null});
        let shown = record(
            "correspondence",
            json!({"images": 12, "map": [7, 8], "geometry": "crops", "seed": 0, "scale": [0.4, 1.0],
                   "results": [row]}),
        );
        let html = super::results(&shown).unwrap();
        assert_eq!(rows(&html)[1], ["trained", "0.500 [0.400, 0.600]", "9.0 [8.9, 9.1]", "0.250"]);
        assert!(html.contains("PCK@0.05") && html.contains("7 x 8 cells"), "{html}");
        assert!(settings_in_words(&shown).contains(&"scale 0.4 1.0".to_owned()));
    }

    #[test]
    fn other_crops_that_are_found() {
        let row = |features: &str, top1: f64| json!({"features": features, "top1": top1});
        let found = |images: u64| {
            record(
                "retrieval",
                json!({"data": "`photos`", "images": images, "results": [
                    row("raw pixels", 1.5), row("untrained", 2.34375), row("trained", 97.0)]}),
            )
        };
        let html = super::results(&found(1280)).unwrap();
        assert_eq!(rows(&html)[0], ["Features", "Found"]);
        assert_eq!(rows(&html)[2..], [vec!["untrained", "2.3 %"], vec!["trained", "97.0 %"]]);
        assert!(html.contains("among those of 1,280 images"), "{html}");
        assert_eq!(settings_in_words(&found(1280)), [""; 0]);
        // Among fewer images more are found by chance.
        assert_ne!(settings(&found(1280)), settings(&found(128)));
    }

    #[test]
    fn what_differs_in_a_setting_is_another_evaluation() {
        let knn = |temperature: f64, ks: &[u64], top1: f64| {
            let of: Vec<Value> = ks.iter().map(|k| json!({"k": k, "top1": top1})).collect();
            settings(&record(
                "knn",
                json!({"temperature": temperature, "results": [{"accuracies": of}]}),
            ))
        };
        assert_eq!(knn(0.07, &[10], 1.0), knn(0.07, &[10], 2.0));
        assert_ne!(knn(0.07, &[10], 1.0), knn(0.5, &[10], 1.0));
        assert_ne!(knn(0.07, &[10], 1.0), knn(0.07, &[10, 20], 1.0));
        let odd = record("knn", Value::Null);
        assert_eq!((results(&odd), settings(&odd)), (None, json!({ "k": [] })));
    }
}
