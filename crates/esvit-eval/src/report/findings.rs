//! Problems of a run that put its metrics in doubt.

use esvit_train::objective::{Collapse, CollapseDetector, collapse as collapse_of};

use super::run::Run;

/// Number of last health checks that must agree for a run to count as collapsed.
const MIN_CHECKS: usize = 5;

/// Problems of a run, as text with backticks; a next step follows `hint:`.
pub(super) fn findings(run: &Run) -> Vec<String> {
    // Of weights to begin with that stayed the best, the network untrained is no measure.
    let learned = kept_beginning(run).or_else(|| no_better(run));
    let found = [failed(run), not_finite(run), collapse(run), learned, unfinished(run)];
    found.into_iter().flatten().collect()
}

/// The error that the run ended with, which has a hint of its own.
fn failed(run: &Run) -> Option<String> {
    let error = run.error.as_ref()?;
    Some(format!("the run ended with an error, after {}: {error}", run.progress()))
}

/// Steps whose loss was not finite, counted as the run counts them.
fn failed_steps(run: &Run) -> Vec<u64> {
    let step = |name: &String| {
        let step = name.strip_suffix("-state.safetensors")?.strip_prefix("step=")?;
        step.parse::<u64>().ok()
    };
    run.failures.iter().filter_map(step).collect()
}

/// Whether the run has ended in a step whose loss was not finite: none after it is logged.
fn is_at_failure(run: &Run) -> bool {
    failed_steps(run).last().is_some_and(|&step| step >= run.metrics.steps_done())
}

fn not_finite(run: &Run) -> Option<String> {
    // The error says it, if it is the last.
    if run.failures.is_empty() || run.error.is_some() {
        return None;
    }
    let steps: Vec<String> = failed_steps(run).iter().map(u64::to_string).collect();
    let when = match steps.as_slice() {
        [] => "of a step".into(),
        steps => format!("of step {}", steps.join(", ")),
    };
    let hint = "\nhint: lower `optim.lr`, or lengthen `optim.warmup`, and start again with \
                `--init-from` the last good checkpoint";
    let has_gone_on = !steps.is_empty() && !is_at_failure(run);
    let then = if has_gone_on { "; the run has gone on since" } else { hint };
    Some(format!(
        "the loss {when} was not finite: its inputs and the state before it are in `failures/`{then}"
    ))
}

fn collapse(run: &Run) -> Option<String> {
    let settings = run.config.as_ref()?.objective.settings();
    let looks = run.metrics.steps.iter().map(|line| collapse_of(settings, &|name| line.get(name)));
    let looks: Vec<Option<Collapse>> = looks.collect();
    // What the run itself has warned of last.
    let mut watch = CollapseDetector::default();
    let told = looks.iter().fold(None, |told, look| watch.look(*look).or(told))?;
    let last = &looks[looks.len().saturating_sub(MIN_CHECKS)..];
    if last.len() == MIN_CHECKS && last.iter().all(Option::is_some) {
        return Some(told.advice_for(&run.path));
    }
    let whose = if run.evaluates_teacher() { "the teacher's" } else { "the network's" };
    Some(format!("{whose} outputs were collapsed for some time; it has recovered since"))
}

fn kept_beginning(run: &Run) -> Option<String> {
    run.best()?.of_beginning()
}

fn no_better(run: &Run) -> Option<String> {
    let (best, untrained) = (run.metrics.best_knn()?.knn_top1, run.untrained_top1()?);
    let labels = run.config.as_ref().is_some_and(|c| c.objective.settings().needs_labels());
    (best <= untrained).then(|| {
        // What is learned from: labels, or what the crops of an image have in common.
        let check =
            if labels { "still show what their labels say" } else { "of one image overlap" };
        format!(
            "k-NN top-1 is {best:.1} %, no better than the {untrained:.1} % of the same network \
             untrained\n\
             hint: train for longer, and check with `esvit data preview --config {}` that crops \
             {check}",
            run.path.join("config.toml").display()
        )
    })
}

fn unfinished(run: &Run) -> Option<String> {
    // Resumed as it is, a run that failed would fail again.
    let has_failed = run.error.is_some() || is_at_failure(run);
    (run.is_finished() == Some(false) && !has_failed).then(|| {
        format!(
            "{} are done: the run is still going, or it was stopped\n\
             hint: `esvit resume {}` continues a stopped one",
            run.progress(),
            run.path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::run::{BEST, CheckpointFile, evaluated, example};
    use esvit_train::checkpoint::{Best, Measure};
    use esvit_train::run::StepMetrics;

    fn first_finding(run: &Run) -> String {
        findings(run).join("\n\n")
    }

    #[test]
    fn a_finished_run_that_has_learnt_has_no_findings() {
        let mut run = example();
        run.epochs = 4;
        run.evaluations = vec![evaluated(2, 29.9, 30.0)];
        assert_eq!(findings(&run), [""; 0]);
        run.epochs = 3;
        assert!(
            first_finding(&run).starts_with("3 of 4 epochs are done"),
            "{}",
            first_finding(&run)
        );
        assert!(first_finding(&run).contains("`esvit resume runs/x`"));
    }

    #[test]
    fn what_is_no_better_than_untrained_is_reported() {
        let mut run = example();
        run.epochs = 4;
        for (untrained, trained) in [(30.0, true), (31.25, true), (29.9, false)] {
            run.evaluations = vec![evaluated(2, untrained, 30.0)];
            let expected = format!("k-NN top-1 is 30.0 %, no better than the {untrained:.1} %");
            assert_eq!(
                first_finding(&run).starts_with(&expected),
                trained,
                "{}",
                first_finding(&run)
            );
        }
    }

    /// Weights to begin with that stayed the best are told to be kept, and nothing of crops.
    #[test]
    fn what_a_run_began_with_may_be_kept() {
        let mut run = example();
        run.epochs = 4;
        run.evaluations = vec![evaluated(2, 31.0, 30.0)];
        for (step, kept) in [(0, true), (40, false)] {
            let best = Some(Best { by: Measure::Knn, top1: 30.0, epoch: 0, step: Some(step) });
            let (name, state) = (BEST.to_owned(), Ok([step, 0]));
            run.checkpoints = vec![CheckpointFile { name, bytes: 2, state, best }];
            let text = first_finding(&run);
            let said = "no network of this run was better on these images than the one that it began \
                        with (k-NN accuracy: 30.0 %)";
            assert_eq!((text.starts_with(said), !text.contains("crops")), (kept, kept), "{text}");
        }
    }

    #[test]
    fn the_next_step_is_that_of_the_objective() {
        let mut run = example();
        run.epochs = 4;
        run.evaluations = vec![evaluated(2, 31.0, 30.0)];
        let hint =
            "with `esvit data preview --config runs/x/config.toml` that crops of one image overlap";
        assert!(first_finding(&run).contains(hint), "{}", first_finding(&run));
        run.config.as_mut().unwrap().objective =
            esvit_train::objective::ObjectiveConfig::named("supervised").unwrap();
        assert!(first_finding(&run).contains("still show what their labels say"));
    }

    #[test]
    fn failed_steps_are_counted_as_the_run_counts_them() {
        let mut run = example();
        // The log goes to step 40.
        run.failures =
            vec!["step=43-inputs.safetensors".into(), "step=43-state.safetensors".into()];
        let finding = first_finding(&run);
        assert!(finding.starts_with("the loss of step 43 was not finite"), "{finding}");
        assert!(finding.contains("hint: lower `optim.lr`"), "{finding}");
        // To go on as it is would fail again.
        assert!(!finding.contains("esvit resume"), "{finding}");
        run.failures = vec!["step=4-state.safetensors".into()];
        let finding = first_finding(&run);
        assert!(finding.starts_with("the loss of step 4 was not finite"), "{finding}");
        assert!(finding.contains("; the run has gone on since\n\n2 of 4 epochs"), "{finding}");
        run.failures = vec!["else".into()];
        let finding = first_finding(&run);
        assert!(finding.starts_with("the loss of a step was not finite"), "{finding}");
    }

    #[test]
    fn what_a_run_ended_with_is_said_once() {
        let mut run = example();
        run.failures = vec!["step=43-state.safetensors".into()];
        run.error = Some("step 43: the loss is NaN\nhint: lower it".into());
        let expected = "the run ended with an error, after 2 of 4 epochs: step 43: the loss is NaN\n\
                        hint: lower it";
        assert_eq!(first_finding(&run), expected);
    }

    /// The last five records must agree; a collapse that has passed is reported as passed.
    #[test]
    fn a_collapse_is_reported_while_it_lasts() {
        let healthy = example().metrics.steps.swap_remove(0);
        let of_entropy = |both: f64| {
            let figures = healthy.objective.iter().map(|(name, value)| {
                let entropy = ["teacher_entropy", "marginal_entropy"].contains(&name);
                (name.to_owned(), if entropy { both } else { value })
            });
            StepMetrics { objective: figures.collect(), ..healthy.clone() }
        };
        let collapsed = of_entropy(0.1);
        let finding = |checks: &[(bool, usize)]| {
            let mut run = example();
            run.epochs = 4;
            run.metrics.steps = (checks.iter())
                .flat_map(|&(bad, count)| {
                    vec![if bad { collapsed.clone() } else { healthy.clone() }; count]
                })
                .collect();
            first_finding(&run)
        };
        let advice = esvit_train::objective::esvit::CONSTANT.advice_for("runs/x".as_ref());
        assert_eq!(finding(&[(false, 3), (true, 5)]), advice);
        assert_eq!(finding(&[(false, 3), (true, 4)]), "");
        assert_eq!(finding(&[(true, 4), (false, 1), (true, 4)]), "");
        assert!(finding(&[(true, 6), (false, 1)]).ends_with("it has recovered since"));
        assert!(finding(&[(true, 6), (false, 1), (true, 4)]).ends_with("it has recovered since"));
        // The largest entropy is 3.25: uniform now, which the run did not warn of again.
        let mut run = example();
        run.epochs = 4;
        run.metrics.steps = [vec![collapsed.clone(); 6], vec![of_entropy(3.24); 3]].concat();
        assert_eq!(first_finding(&run), advice);
    }
}
