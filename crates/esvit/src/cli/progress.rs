//! Progress bar and log lines of a run.

use std::time::Duration;

use esvit_train::run::{Event, KnnMetrics, Observer, StepMetrics};
use indicatif::ProgressBar;

use super::Output;

/// Progress bar and log lines of a run.
pub(super) struct Progress<'a> {
    output: &'a Output,
    bar: ProgressBar,
    total: u64,
}

impl<'a> Progress<'a> {
    pub(super) fn new(output: &'a Output) -> Self {
        Self { output, bar: ProgressBar::hidden(), total: 0 }
    }
}

/// A line about the last steps of a run of `total` steps.
fn line(metrics: &StepMetrics, total: u64) -> String {
    let parts: Vec<String> =
        metrics.loss_parts().map(|(name, loss)| format!("{name} {loss:.3}")).collect();
    // A single part is the whole loss.
    let parts = if parts.len() > 1 { format!(" ({})", parts.join(", ")) } else { String::new() };
    let left =
        Duration::from_secs_f64(metrics.batch_time * (total - metrics.step.min(total)) as f64);
    let health = metrics.summary.as_ref().map(|summary| format!("  {summary}"));
    let StepMetrics { step, epoch, train_loss, lr, img_per_s, .. } = metrics;
    format!(
        "step {step}/{total} epoch {epoch}  loss {train_loss:.4}{parts}  lr {lr:.2e}  \
         {img_per_s:.0} img/s  data wait {:.0} %  left {}{}",
        100.0 * metrics.data_wait,
        clock(left),
        health.unwrap_or_default(),
    )
}

/// `M:SS`, or `H:MM:SS` from one hour on.
pub(super) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

impl Observer for Progress<'_> {
    fn notice(&mut self, event: &Event<'_>) {
        match event {
            Event::Begin(plan) => {
                self.output.note(plan);
                self.total = plan.total_steps;
                self.bar = self.output.steps_bar(plan.total_steps);
                self.bar.set_position(plan.first_step);
                self.bar.reset_eta();
            }
            Event::Step { step, loss } => {
                self.bar.set_position(*step);
                self.bar.set_message(format!("loss {loss:.3}"));
            }
            Event::Figures(metrics) => self.output.note(line(metrics, self.total)),
            Event::Knn(KnnMetrics { epoch, knn_top1, knn_top5, knn_k, .. }) => {
                self.output.note(format!(
                    "epoch {epoch}  k-NN top-1 {knn_top1:.1} %, top-5 {knn_top5:.1} % (k = {knn_k})"
                ));
            }
            Event::Broken(broken) => {
                self.output.warning(format!("left out `{}`: {}", broken.name, broken.reason));
            }
            Event::Note(note) => self.output.note(note),
            Event::Warning(warning) => self.output.warning(warning),
            _ => {}
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_have_hours_where_there_are_any() {
        let shown = [0, 59, 61, 3599, 3600, 7325].map(|s| clock(Duration::from_secs(s)));
        assert_eq!(shown, ["0:00", "0:59", "1:01", "59:59", "1:00:00", "2:02:05"]);
    }

    #[test]
    fn a_line_says_what_is_left_and_what_was_waited_for() {
        let metrics = StepMetrics {
            step: 40,
            epoch: 3,
            train_loss: 5.5,
            lr: 1e-3,
            wd: 0.04,
            grad_norm: 1.0,
            batch_time: 2.0,
            data_wait: 0.25,
            img_per_s: 8.0,
            max_mem: 100.0,
            objective: [("view_loss", 4.25), ("region_loss", 6.75)].into_iter().collect(),
            summary: Some("teacher entropy 1.00".into()),
        };
        assert_eq!(
            line(&metrics, 100),
            "step 40/100 epoch 3  loss 5.5000 (view 4.250, region 6.750)  lr 1.00e-3  8 img/s  data \
             wait 25 %  left 2:00  teacher entropy 1.00"
        );
        let objective = [("view_loss", 4.25)].into_iter().collect();
        let alone = StepMetrics { objective, summary: None, step: 100, ..metrics };
        assert!(line(&alone, 100).starts_with("step 100/100 epoch 3  loss 5.5000  lr"));
        assert!(line(&alone, 100).ends_with("left 0:00"));
    }
}
