//! Progress of a run: a live line on a terminal, else a line now and then.

use std::time::{Duration, Instant};

use esvit_train::run::{Event, KnnMetrics, Observer, RetrievalMetrics, StepMetrics};
use indicatif::ProgressBar;

use super::Output;

/// Time after which the first line is due, and the time between lines.
const FIRST: Duration = Duration::from_secs(10);
const BETWEEN: Duration = Duration::from_secs(60);

/// A check that takes as long is announced.
pub(super) const LONG_CHECK: Duration = Duration::from_secs(10);

/// Shows the progress of a run. On a terminal one line is kept up to date; elsewhere, or when asked
/// for details, lines are added.
pub(super) struct Progress<'a> {
    output: &'a Output,
    bar: ProgressBar,
    pace: Pace,
    /// When the last line was written, and how many there are.
    lines: (Instant, usize),
    loss: Option<f32>,
    /// What the live line says of the last figures.
    figures: Vec<String>,
}

/// How fast a run goes.
#[derive(Debug, Clone, Copy)]
struct Pace {
    began: Instant,
    first: u64,
    total: u64,
    /// Steps done; of the next one, the share of its micro-batches.
    done: f64,
    /// How long all was expected to take.
    expected: Option<Duration>,
}

impl Pace {
    /// Time for the rest at the pace so far, checks and checkpoints included; before there is one, what is
    /// left of the time that was expected.
    fn left(&self, now: Instant) -> Option<Duration> {
        let done = self.done - self.first as f64;
        let spent = now.saturating_duration_since(self.began);
        match done > 0.0 {
            true => Some(spent.mul_f64((self.total as f64 - self.done).max(0.0) / done)),
            false => self.expected.map(|time| time.saturating_sub(spent)),
        }
    }

    fn left_in_words(&self) -> String {
        self.left(Instant::now()).map_or_else(|| "?".into(), clock)
    }
}

impl<'a> Progress<'a> {
    pub(super) fn new(output: &'a Output) -> Self {
        let now = Instant::now();
        Self {
            output,
            bar: ProgressBar::hidden(),
            pace: Pace { began: now, first: 0, total: 0, done: 0.0, expected: None },
            lines: (now, 0),
            loss: None,
            figures: Vec::new(),
        }
    }

    /// Whether a line is due.
    fn is_due(&self) -> bool {
        let (last, count) = self.lines;
        !self.output.shows_progress() && last.elapsed() >= if count == 0 { FIRST } else { BETWEEN }
    }

    fn line(&mut self, text: &str) {
        self.output.note(text);
        self.lines = (Instant::now(), self.lines.1 + 1);
    }

    /// Updates the live line.
    fn show(&self, parts: Option<(usize, usize)>) {
        let parts = parts.filter(|(_, of)| *of > 1);
        let parts = parts.map(|(done, of)| format!("part {done}/{of}"));
        let left = format!("left {}", self.pace.left_in_words());
        let loss = self.loss.map(|loss| format!("loss {loss:.3}"));
        let figures = self.figures.iter().cloned();
        let message: Vec<String> =
            parts.into_iter().chain([left]).chain(loss).chain(figures).collect();
        self.bar.set_position(self.pace.done as u64);
        self.output.set_parts(&self.bar, &message);
    }
}

/// What a line says of the last steps.
fn details(metrics: &StepMetrics) -> String {
    let parts: Vec<String> =
        metrics.loss_parts().map(|(name, loss)| format!("{name} {loss:.3}")).collect();
    // A single part is the whole loss.
    let parts = if parts.len() > 1 { format!(" ({})", parts.join(", ")) } else { String::new() };
    let health = metrics.summary.as_ref().map(|summary| format!("  {summary}"));
    let StepMetrics { epoch, train_loss, lr, img_per_s, .. } = metrics;
    format!(
        "epoch {epoch}  loss {train_loss:.4}{parts}  lr {lr:.2e}  {} img/s  data wait {:.0} %{}",
        speed(*img_per_s),
        100.0 * metrics.data_wait,
        health.unwrap_or_default(),
    )
}

/// What the live line says besides the loss: how fast it is, and the teacher's health.
fn live(metrics: &StepMetrics) -> Vec<String> {
    let speed = format!("{} img/s", speed(metrics.img_per_s));
    [speed].into_iter().chain(metrics.summary.clone()).collect()
}

/// A speed with two digits at least.
pub(super) fn speed(per_second: f64) -> String {
    match per_second {
        slow if slow < 1.0 => format!("{slow:.2}"),
        slow if slow < 10.0 => format!("{slow:.1}"),
        fast => format!("{fast:.0}"),
    }
}

/// What is said of a check that begins, and whether it will take long, for all that is known.
fn announced(step: u64, time: Option<Duration>) -> (String, bool) {
    let place = match step {
        0 => "before the first step".to_owned(),
        step => format!("after step {step}"),
    };
    let about = time.map_or_else(String::new, |time| format!(", about {}", clock(time)));
    let is_long = time.is_none_or(|time| time >= LONG_CHECK);
    (format!("checking the network {place}{about}"), is_long)
}

/// `M:SS`, `H:MM:SS` from one hour on, days and hours from four days on.
pub(super) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        1..96 => format!("{hours}:{minutes:02}:{seconds:02}"),
        hours => format!("{} days {} h", hours / 24, hours % 24),
    }
}

impl Observer for Progress<'_> {
    fn notice(&mut self, event: &Event<'_>) {
        match event {
            Event::Folder(path) => self.output.note(format!("run folder `{}`", path.display())),
            Event::Begin(plan) => {
                self.output.note(plan);
                self.bar = self.output.steps_bar(plan.total_steps);
                let (first, total) = (plan.first_step, plan.total_steps);
                let began = Instant::now();
                self.pace = Pace { began, first, total, done: first as f64, expected: plan.time };
                self.lines.0 = began;
                self.show(None);
            }
            Event::MicroBatch { step, done, of } => {
                self.pace.done = *step as f64 + *done as f64 / *of as f64;
                self.show(Some((*done, *of)));
                if self.is_due() && done < of {
                    let left = self.pace.left_in_words();
                    self.line(&format!(
                        "step {step}/{}  part {done}/{of}  left {left}",
                        self.pace.total
                    ));
                }
            }
            Event::Step { step, loss } => {
                (self.pace.done, self.loss) = (*step as f64, Some(*loss));
                self.show(None);
                // The first line does not wait for figures, which come every few steps.
                if self.lines.1 == 0 && self.is_due() {
                    let left = self.pace.left_in_words();
                    self.line(&format!(
                        "step {step}/{}  loss {loss:.4}  left {left}",
                        self.pace.total
                    ));
                }
            }
            Event::Figures(metrics) => {
                self.figures = live(metrics);
                let is_last = metrics.step == self.pace.total;
                if self.output.is_verbose() || is_last || self.is_due() {
                    let left = self.pace.left_in_words();
                    let (step, total) = (metrics.step, self.pace.total);
                    self.line(&format!("step {step}/{total} {}  left {left}", details(metrics)));
                }
            }
            Event::Check { step, time } => {
                let (text, is_long) = announced(*step, *time);
                if is_long {
                    self.output.note(&text);
                }
                self.bar.set_message(text);
            }
            Event::Knn(KnnMetrics { step, epoch, knn_top1, knn_top5, knn_k, .. }) => {
                self.output.note(format!(
                    "step {step} epoch {epoch}  k-NN top-1 {knn_top1:.1} %, top-5 {knn_top5:.1} % \
                     (k = {knn_k})"
                ));
                self.show(None);
            }
            Event::Retrieval(RetrievalMetrics {
                step, retrieval_images, retrieval_top1, ..
            }) => {
                self.output.note(format!(
                    "step {step}  the other crop of an image is found in {retrieval_top1:.1} % of \
                     cases, among {retrieval_images} images"
                ));
                self.show(None);
            }
            Event::Broken(broken) => {
                self.output.warn_left_out(&broken.name, &broken.reason);
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
        let shown = [0, 59, 61, 3599, 3600, 7325, 345_599, 345_600, 777_600]
            .map(|s| clock(Duration::from_secs(s)));
        let expected = [
            "0:00",
            "0:59",
            "1:01",
            "59:59",
            "1:00:00",
            "2:02:05",
            "95:59:59",
            "4 days 0 h",
            "9 days 0 h",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn speeds_below_ten_have_decimals() {
        assert_eq!([0.123, 4.56, 9.96, 12.6].map(speed), ["0.12", "4.6", "10.0", "13"]);
    }

    #[test]
    fn what_is_left_follows_the_pace() {
        let began = Instant::now();
        let pace = Pace { began, first: 100, total: 300, done: 100.0, expected: None };
        let now = began + Duration::from_secs(30);
        assert_eq!(pace.left(now), None);
        let expected = Some(Duration::from_secs(100));
        assert_eq!(Pace { expected, ..pace }.left(now), Some(Duration::from_secs(70)));
        let half = Pace { done: 100.5, ..pace };
        assert_eq!(half.left(now), Some(Duration::from_secs(199 * 60 + 30)));
        let most = Pace { done: 250.0, ..pace };
        assert_eq!(most.left(now), Some(Duration::from_secs(10)));
        assert_eq!(Pace { done: 300.0, ..pace }.left(now), Some(Duration::ZERO));
    }

    #[test]
    fn checks_that_take_long_are_announced() {
        let of = |step, seconds: Option<u64>| announced(step, seconds.map(Duration::from_secs));
        let first = "checking the network before the first step";
        assert_eq!(of(0, Some(9)), (format!("{first}, about 0:09"), false));
        assert_eq!(of(0, Some(10)), (format!("{first}, about 0:10"), true));
        assert_eq!(of(0, None), (first.into(), true));
        assert_eq!(of(7, Some(83)).0, "checking the network after step 7, about 1:23");
    }

    #[test]
    fn a_line_says_what_was_measured() {
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
            details(&metrics),
            "epoch 3  loss 5.5000 (view 4.250, region 6.750)  lr 1.00e-3  8.0 img/s  data wait 25 %  \
             teacher entropy 1.00"
        );
        assert_eq!(live(&metrics), ["8.0 img/s", "teacher entropy 1.00"]);
        let objective = [("view_loss", 4.25)].into_iter().collect();
        let alone = StepMetrics { objective, summary: None, ..metrics };
        assert!(details(&alone).starts_with("epoch 3  loss 5.5000  lr"));
    }
}
