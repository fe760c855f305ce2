//! Results of evaluations as HTML tables.

use serde_json::{Map, Value};

use super::tables;
use crate::record::EvalRecord;
use esvit_draw::escape;
use esvit_draw::html::table;
use esvit_draw::number::{grouped, rounded};

/// Maximum number of rows and list entries shown.
const MAX_ROWS: usize = 100;

/// The results, grouped by evaluation and task.
pub(super) fn sections(records: &[EvalRecord]) -> String {
    let mut order: Vec<[&str; 2]> = Vec::new();
    for record in records {
        let key = [record.evaluation.as_str(), record.task.as_str()];
        if !order.contains(&key) {
            order.push(key);
        }
    }
    let of = |[evaluation, task]: &[&str; 2]| {
        let same = records.iter().filter(|r| r.evaluation == *evaluation && r.task == *task);
        let results: String = same.map(result).collect();
        format!(
            "<article>\n<h3>{} <span>{}</span></h3>\n{results}</article>\n",
            escape(&title(evaluation)),
            esvit_draw::html::message_html(task)
        )
    };
    order.iter().map(of).collect()
}

/// Display name of an evaluation.
fn title(evaluation: &str) -> String {
    match evaluation {
        "knn" => "k-NN".into(),
        "linear" => "Linear probe".into(),
        "finetune" => "Fine-tuning".into(),
        other => humanize(other),
    }
}

/// A JSON key as capitalized words.
fn humanize(key: &str) -> String {
    let words = key.replace('_', " ");
    let mut letters = words.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn result(record: &EvalRecord) -> String {
    let mut about =
        vec![format!("<code>{}</code>", escape(&record.checkpoint)), escape(&record.network)];
    about.extend(record.epochs.map(|epochs| format!("epoch {}", grouped(epochs as i64))));
    about.extend(record.steps.map(|steps| format!("step {}", grouped(steps as i64))));
    about.extend(tables::settings_in_words(record));
    let results = tables::results(record).unwrap_or_else(|| generic(&record.results));
    format!("<p class=\"about\">{}</p>\n{results}", about.join(", "))
}

/// Any JSON: scalars of an object as a two-column table, lists of objects as tables.
fn generic(value: &Value) -> String {
    let Value::Object(object) = value else { return block(value) };
    let is_plain = |value: &Value| match value {
        Value::Object(_) => false,
        Value::Array(list) => !list.iter().any(|entry| entry.is_object() || entry.is_array()),
        _ => true,
    };
    // The task is in the heading.
    let entries = object.iter().filter(|(key, _)| *key != "task");
    let (plain, nested): (Vec<_>, Vec<_>) = entries.partition(|(_, value)| is_plain(value));
    let mut html = String::new();
    if !plain.is_empty() {
        let rows: Vec<Vec<String>> =
            plain.iter().map(|(key, value)| vec![escape(&humanize(key)), cell(value)]).collect();
        html.push_str(&table(&[], &rows, 1));
    }
    for (key, value) in nested {
        html.push_str(&format!("<h4>{}</h4>\n{}", escape(&humanize(key)), block(value)));
    }
    html
}

/// A nested value.
fn block(value: &Value) -> String {
    match value {
        Value::Object(_) => generic(value),
        Value::Array(list) if list.iter().any(Value::is_object) => objects(list),
        Value::Array(list) if list.iter().any(Value::is_array) => {
            let row = |entry: &Value| match entry {
                Value::Array(cells) => cells.iter().take(MAX_ROWS).map(cell).collect(),
                other => vec![cell(other)],
            };
            let rows: Vec<Vec<String>> = list.iter().take(MAX_ROWS).map(row).collect();
            table(&[], &rows, 0) + &left_out(list.len())
        }
        plain => format!("<p>{}</p>\n", cell(plain)),
    }
}

/// A list of objects: one row each, keys as columns.
fn objects(list: &[Value]) -> String {
    let mut keys: Vec<&String> = Vec::new();
    for key in list.iter().take(MAX_ROWS).filter_map(Value::as_object).flat_map(Map::keys) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let is_text = |key: &String| list.iter().take(MAX_ROWS).all(|entry| !entry[key].is_number());
    // Text columns first, then numbers.
    keys.sort_by_key(|key| !is_text(key));
    let first_number = keys.iter().take_while(|key| is_text(key)).count();
    let head: Vec<String> = keys.iter().map(|key| escape(&humanize(key))).collect();
    let row = |entry: &Value| match entry {
        Value::Object(_) => keys.iter().map(|key| cell(&entry[key.as_str()])).collect(),
        other => vec![cell(other)],
    };
    let rows: Vec<Vec<String>> = list.iter().take(MAX_ROWS).map(row).collect();
    table(&head, &rows, first_number) + &left_out(list.len())
}

fn left_out(entries: usize) -> String {
    match entries.saturating_sub(MAX_ROWS) {
        0 => String::new(),
        more => format!(
            "<p class=\"note\">{} more are in <code>eval/results.jsonl</code>.</p>\n",
            grouped(more as i64)
        ),
    }
}

/// A value in one table cell.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "–".into(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.into(),
        Value::String(text) => esvit_draw::html::message_html(text),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => grouped(whole),
            (None, Some(value)) => rounded(value),
            (None, None) => escape(&number.to_string()),
        },
        Value::Array(list) => {
            let mut cells: Vec<String> = list.iter().take(MAX_ROWS).map(cell).collect();
            if list.len() > MAX_ROWS {
                cells.push(format!("… ({} in all)", grouped(list.len() as i64)));
            }
            cells.join(", ")
        }
        Value::Object(object) => {
            let pairs = object.iter().take(MAX_ROWS);
            let pair = |(key, value): (&String, &Value)| {
                format!("{} {}", escape(&key.replace('_', " ")), cell(value))
            };
            pairs.map(pair).collect::<Vec<_>>().join(", ")
        }
    }
}

/// A flat JSON object, such as `env.json`, as a table of two columns.
pub(super) fn object_table(value: &Value) -> String {
    let Value::Object(object) = value else { return block(value) };
    let row = |(key, value): (&String, &Value)| {
        let value = match value {
            // A command line.
            Value::Array(list) if list.iter().all(Value::is_string) => {
                let parts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
                format!("<code>{}</code>", escape(&parts.join(" ")))
            }
            value => cell(value),
        };
        vec![escape(&humanize(key)), value]
    };
    table(&[], &object.iter().map(row).collect::<Vec<_>>(), 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(evaluation: &str, results: Value) -> EvalRecord {
        EvalRecord {
            evaluation: evaluation.into(),
            task: "<set>".into(),
            checkpoint: "best.safetensors".into(),
            network: "teacher".into(),
            epochs: Some(3),
            steps: Some(606),
            results,
        }
    }

    #[test]
    fn accuracies_stand_in_one_table() {
        let row = |features: &str, top1: f64| json!({"features": features, "accuracies": [{"k": 10, "top1": top1, "top5": 50.0}]});
        let html = sections(&[record(
            "knn",
            json!({"query_images": 404, "train_images": 808,
                   "results": [row("untrained", 14.604), row("trained", 37.129)]}),
        )]);
        assert!(html.contains("<td>trained</td><td class=\"number\">37.1</td>"), "{html}");
        assert!(html.contains("404 images, classified by 808 others"), "{html}");
        assert!(html.contains("<h3>k-NN <span><span>&lt;set&gt;</span></span></h3>"), "{html}");
    }

    /// Results of a form that is not known, or no longer the known one, are shown as they are.
    #[test]
    fn any_results_can_be_shown() {
        let html = sections(&[record(
            "linear",
            json!({"task": "x", "top1": 71.234_567, "seed": 12345, "best": null, "lists": [[1, 2], [3]],
                   "rows": [{"lr": 0.001, "name": "<a>", "scores": [1.5, 2.25]}, {"top5": 3}],
                   "nested": {"deep": {"er": true}}}),
        )]);
        for part in [
            "<td>Top1</td><td class=\"number\">71.23</td>",
            "<td>Seed</td><td class=\"number\">12,345</td>",
            "<td>Best</td><td class=\"number\">–</td>",
            "<th>Name</th>",
            "<td><span>&lt;a&gt;</span></td>",
            "1.5, 2.25",
            "<h4>Deep</h4>",
            "yes",
        ] {
            assert!(html.contains(part), "`{part}` is not in {html}");
        }
        for odd in [json!(null), json!(3), json!([]), json!([1, {"a": 2}]), json!({}), json!("x")] {
            sections(&[record("knn", odd)]);
        }
        assert!(!sections(&[record("knn", json!({"results": [{"accuracies": 3}]}))]).is_empty());
    }

    #[test]
    fn long_lists_are_cut() {
        let list: Vec<Value> = (0..250).map(|i| json!({ "i": i })).collect();
        let html = sections(&[record("linear", json!({ "rows": list }))]);
        assert!(html.contains("150 more are in") && !html.contains(">200<"), "{html}");
    }
}
