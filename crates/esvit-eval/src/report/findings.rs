//! Problems of a run that put its metrics in doubt.

use esvit_train::health::CollapseDetector;

use super::run::Run;

/// Number of last health checks that must agree for a run to count as collapsed.
const LAST_LOOKS: usize = 5;

/// Problems of a run, as text with backticks; a next step follows `hint:`.
pub(super) fn findings(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(not_finite(run));
    found.extend(collapse(run));
    found.extend(no_better(run));
    found.extend(unfinished(run));
    found
}

fn not_finite(run: &Run) -> Option<String> {
    let step = |name: &String| -> Option<u64> {
        name.strip_suffix("-state.safetensors")?.strip_prefix("step=")?.parse().ok()
    };
    let steps: Vec<String> =
        run.failures.iter().filter_map(step).map(|step| (step + 1).to_string()).collect();
    if run.failures.is_empty() {
        return None;
    }
    let when = match steps.as_slice() {
        [] => "of a step".into(),
        steps => format!("of step {}", steps.join(", ")),
    };
    Some(format!(
        "the loss {when} was not finite: its inputs and the state before it are in `failures/`\n\
         hint: lower `optim.lr`, or lengthen `optim.warmup_epochs`, and start again with \
         `--init-from` the last good checkpoint"
    ))
}

fn collapse(run: &Run) -> Option<String> {
    let looks: Vec<_> = run.metrics.steps.iter().filter_map(|figures| figures.health).collect();
    let last = &looks[looks.len().saturating_sub(LAST_LOOKS)..];
    let now = last.iter().map(|health| health.collapse()).reduce(|a, b| a.and(b)).flatten();
    if let Some(collapse) = now.filter(|_| last.len() == LAST_LOOKS) {
        return Some(collapse.advice().into());
    }
    let mut watch = CollapseDetector::default();
    let warned = looks.iter().any(|health| watch.look(health).is_some());
    warned.then(|| {
        "the teacher's outputs were collapsed for some time; it has recovered since".into()
    })
}

fn no_better(run: &Run) -> Option<String> {
    let (best, untrained) = (run.metrics.best_knn()?.knn_top1, run.untrained_top1()?);
    (best <= untrained).then(|| {
        format!(
            "k-NN top-1 is {best:.1} %, no better than the {untrained:.1} % of the same network \
             untrained\n\
             hint: train for longer, and check with `esvit data preview` that crops of one image \
             overlap"
        )
    })
}

fn unfinished(run: &Run) -> Option<String> {
    let planned = run.config.as_ref()?.train.epochs;
    (run.is_finished() == Some(false)).then(|| {
        format!(
            "{} of {planned} epochs are done: the run is still going, or it was stopped\n\
             hint: `esvit resume {}` continues a stopped one",
            run.epochs,
            run.path.display()
        )
    })
}
