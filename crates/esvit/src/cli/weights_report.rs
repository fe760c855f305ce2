//! What became of a file's tensors, for people.

use std::path::Path;

use esvit_model::{PretrainedBackbone, SourceFile};
use esvit_nn::weights::reason;
use serde_json::Value;

use super::output::Output;

/// Names that are shown of tensors that were left out.
const SHOWN: usize = 3;

/// Says on which terms a backbone was taken out of a file, where that is worth a line.
pub(super) fn tell(path: &Path, backbone: &PretrainedBackbone, output: &Output) {
    let SourceFile { report, config, .. } = &backbone.source;
    if config.is_none() {
        output.note(format!("`{}`: {}", path.display(), summary(backbone)));
    }
    for line in &report.resized {
        output.note(format!("resized {line}"));
    }
    if let Some(names) = report.left_out.get(reason::CLASSES) {
        output.warning(format!(
            "`{}` has a class head ({}), which is left out: features are those before it",
            path.display(),
            names.join(", ")
        ));
    }
}

/// One line: naming, architecture, tensors.
pub(super) fn summary(backbone: &PretrainedBackbone) -> String {
    let SourceFile { location, report, .. } = &backbone.source;
    let naming = location.as_ref().map_or("new", |location| location.naming.label());
    let left_out: usize = report.left_out.values().map(Vec::len).sum();
    format!(
        "{} in the naming of {naming}, all {} tensors of the backbone matched, \
         {left_out} others left out",
        backbone.architecture(),
        report.matched
    )
}

/// A line for tensors that were left out for one reason.
pub(super) fn left_out(reason: &str, names: &Value) -> String {
    let names: Vec<&str> =
        names.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    format!("{} ({reason}): {shown}{more}", names.len())
}
