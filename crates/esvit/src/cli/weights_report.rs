//! Messages about loading a weights file.

use std::path::Path;

use esvit_model::{PretrainedBackbone, SourceFile};
use esvit_nn::weights::reason;
use serde_json::Value;

use super::Output;

/// Maximum number of tensor names shown.
const MAX_SHOWN: usize = 3;

/// Reports how a backbone was loaded, if that is worth a line.
pub(super) fn print_load_report(path: &Path, backbone: &PretrainedBackbone, output: &Output) {
    let SourceFile { report, config, .. } = &backbone.source;
    if config.is_none() {
        output.note(format!("`{}`: {}", path.display(), summary(backbone)));
    }
    let assumed = &backbone.source.assumed;
    if !assumed.is_empty() {
        let has_size = assumed.iter().any(|line| line.contains("image size"));
        let other = if has_size { " (`--img-size` gives another size)" } else { "" };
        let (path, assumed) = (path.display(), assumed.join("; "));
        output.note(format!("assumed, as `{path}` does not say it: {assumed}{other}"));
    }
    for line in &report.resized {
        output.note(format!("resized {line}"));
    }
    // The head of a run is no surprise.
    let classes = report.left_out.get(reason::CLASSES).filter(|_| config.is_none());
    if let Some(names) = classes {
        output.warning(format!(
            "`{}` has a classification head ({}), which is ignored: features are taken before it",
            path.display(),
            names.join(", ")
        ));
    }
}

/// One line: architecture, method and network, naming, tensors.
pub(super) fn summary(backbone: &PretrainedBackbone) -> String {
    let SourceFile { location, report, .. } = &backbone.source;
    let naming = location.as_ref().map_or("new", |location| location.naming.label());
    let method = location.as_ref().and_then(|location| {
        Some(format!(" of {} (`{}`)", location.method?.label(), location.network()))
    });
    let left_out: usize = report.left_out.values().map(Vec::len).sum();
    format!(
        "{}{}, named as in {naming}, all {} tensors of the backbone matched, \
         {left_out} others left out",
        backbone.architecture(),
        method.unwrap_or_default(),
        report.matched
    )
}

/// Describes tensors that were left out for one reason.
pub(super) fn left_out(reason: &str, names: &Value) -> String {
    let names: Vec<&str> =
        names.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let shown = names.iter().take(MAX_SHOWN).copied().collect::<Vec<_>>().join(", ");
    let more = if names.len() > MAX_SHOWN { ", ..." } else { "" };
    format!("{} ({reason}): {shown}{more}", names.len())
}
