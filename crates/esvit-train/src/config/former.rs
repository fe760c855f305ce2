//! Settings of earlier versions, which files of runs and command lines still have.

use toml::{Table, Value};

use super::ConfigError;
use crate::config_text::Layer;

/// What becomes of a value that has moved.
#[derive(Clone, Copy)]
enum Change {
    Same,
    /// A number of epochs has become a length.
    Epochs,
}

use Change::{Epochs, Same};

/// Old and new place.
const MOVED: [(&str, &str, Change); 12] = [
    ("data.queue", "data.prefetch", Same),
    ("knn.max_pictures", "knn.max_images", Same),
    ("train.crops_per_pass", "train.crops_per_forward", Same),
    ("train.checkpoint_blocks", "train.activation_checkpointing", Same),
    ("optim.momentum_teacher", "objective.momentum_teacher", Same),
    ("optim.freeze_last_layer", "objective.freeze_last_layer", Same),
    ("objective.layer_decay", "optim.layer_decay", Same),
    ("head", "objective.head", Same),
    ("optim.warmup_epochs", "optim.warmup", Epochs),
    ("objective.warmup_teacher_temp_epochs", "objective.teacher_temp_warmup", Epochs),
    ("checkpoint.every_epochs", "checkpoint.every", Epochs),
    ("knn.every_epochs", "knn.every", Epochs),
];

/// Gives the settings of a layer their present names and meanings, and says so in a line.
///
/// # Errors
/// When an old and the new one are both given, or the present meaning cannot be told.
pub(super) fn convert(layer: &mut Layer) -> Result<Option<String>, ConfigError> {
    let mut notes = Vec::new();
    convert_batch(layer, &mut notes)?;
    convert_steps_between_checkpoints(layer, &mut notes);
    for (old, new, change) in MOVED {
        let Some(value) = take(&mut layer.table, old) else { continue };
        let value = match change {
            Same => value,
            Epochs => epochs(value),
        };
        if get(&layer.table, new).is_some() {
            return Err(ConfigError::Conflict(format!(
                "`{old}` is the former name of `{new}`, and both are given {}\n\
                 hint: keep `{new}`",
                layer.origin
            )));
        }
        notes.push(match &value {
            Value::Table(_) => format!("`{old}` is now `{new}`"),
            value => format!("`{old}` is now `{new} = {value}`"),
        });
        put(&mut layer.table, new, value);
    }
    if notes.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!("settings of an earlier version {}: {}", layer.origin, notes.join(", "))))
}

/// `train.batch_size` was the size of one of `train.accumulate` micro-batches.
fn convert_batch(layer: &mut Layer, notes: &mut Vec<String>) -> Result<(), ConfigError> {
    let Some(accumulate) = take(&mut layer.table, "train.accumulate") else { return Ok(()) };
    let micro_batch = get(&layer.table, "train.batch_size").and_then(Value::as_integer);
    let batch = micro_batch.zip(accumulate.as_integer()).and_then(|(a, b)| a.checked_mul(b));
    let (Some(micro_batch), Some(batch)) = (micro_batch, batch) else {
        return Err(ConfigError::Conflict(format!(
            "`train.accumulate` {} is a setting of an earlier version, in which \
             `train.batch_size` counted the images of a micro-batch\n\
             hint: give `train.batch_size`, the images of a step; `train.micro_batch` says how \
             many go through the network together",
            layer.origin
        )));
    };
    put(&mut layer.table, "train.batch_size", batch.into());
    put(&mut layer.table, "train.micro_batch", micro_batch.into());
    notes.push(format!(
        "`train.batch_size` {micro_batch} and `train.accumulate` {accumulate} are now \
         `train.batch_size = {batch}` and `train.micro_batch = {micro_batch}`"
    ));
    Ok(())
}

/// Checkpoints within an epoch had a setting of their own, 0 for none.
fn convert_steps_between_checkpoints(layer: &mut Layer, notes: &mut Vec<String>) {
    let steps = take(&mut layer.table, "checkpoint.every_steps").and_then(|v| v.as_integer());
    if let Some(steps) = steps.filter(|&steps| steps > 0) {
        let _ = take(&mut layer.table, "checkpoint.every_epochs");
        let every = format!("{steps} steps");
        notes.push(format!("`checkpoint.every_steps` is now `checkpoint.every = \"{every}\"`"));
        put(&mut layer.table, "checkpoint.every", every.into());
    }
}

/// A length of so many epochs.
fn epochs(value: Value) -> Value {
    match value {
        Value::Integer(count) => format!("{count} epochs").into(),
        Value::Float(count) => format!("{count} epochs").into(),
        other => other,
    }
}

fn get<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        None => table.get(path),
        Some((name, rest)) => get(table.get(name)?.as_table()?, rest),
    }
}

fn take(table: &mut Table, path: &str) -> Option<Value> {
    match path.split_once('.') {
        None => table.remove(path),
        Some((name, rest)) => take(table.get_mut(name)?.as_table_mut()?, rest),
    }
}

fn put(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(table.insert(path.to_owned(), value)),
        Some((name, rest)) => {
            let inner = table.entry(name).or_insert_with(|| Table::new().into());
            if let Some(inner) = inner.as_table_mut() {
                put(inner, rest, value);
            }
        }
    }
}
