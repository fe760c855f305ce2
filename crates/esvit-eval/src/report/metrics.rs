//! Metrics of a run, from `metrics.jsonl`.

use esvit_train::run::{KnnMetrics, RetrievalMetrics, StepMetrics};
use serde::Deserialize;

/// All lines that could be parsed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Metrics {
    /// Metrics of training steps, in file order.
    pub(crate) steps: Vec<StepMetrics>,
    /// k-NN checks, in file order.
    pub(crate) knn: Vec<KnnMetrics>,
    /// How often the other crop of an image was found, in file order.
    pub(crate) retrieval: Vec<RetrievalMetrics>,
    /// Number of other complete lines.
    pub(crate) unreadable: usize,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Step(StepMetrics),
    Knn(KnnMetrics),
    Retrieval(RetrievalMetrics),
}

impl Metrics {
    /// Parses the file. A last line without a line break is ignored: a live run is still writing
    /// it.
    pub(crate) fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines().filter(|line| !line.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(Line::Step(figures)) => metrics.steps.push(figures),
                Ok(Line::Knn(figures)) => metrics.knn.push(figures),
                Ok(Line::Retrieval(figures)) => metrics.retrieval.push(figures),
                Err(_) => metrics.unreadable += 1,
            }
        }
        metrics
    }

    /// The check with the highest top-1, the first of equals.
    pub(crate) fn best_knn(&self) -> Option<&KnnMetrics> {
        self.knn
            .iter()
            .reduce(|best, check| if check.knn_top1 > best.knn_top1 { check } else { best })
    }

    /// Total time of the logged steps in seconds.
    pub(crate) fn training_seconds(&self) -> f64 {
        self.training_seconds_within([0, u64::MAX])
    }

    /// The same of the steps after the first and up to the last of these.
    pub(crate) fn training_seconds_within(&self, [first, last]: [u64; 2]) -> f64 {
        let mut before = first;
        let seconds = self.steps.iter().map(|figures| {
            let end = figures.step.min(last);
            let steps = end.saturating_sub(before);
            before = before.max(end);
            figures.batch_time * steps as f64
        });
        seconds.sum()
    }

    /// Number of optimizer steps logged.
    pub(crate) fn steps_done(&self) -> u64 {
        let step = self.steps.last().map_or(0, |line| line.step);
        step.max(self.knn.last().map_or(0, |line| line.step))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A line of steps as a run writes it.
    pub(crate) fn step_line(step: u64, loss: f64) -> String {
        format!(
            "{{\"step\":{step},\"epoch\":0,\"train_loss\":{loss},\"view_loss\":{loss},\
             \"region_loss\":4.5,\"lr\":0.001,\"wd\":0.04,\"momentum\":0.98,\"teacher_temp\":0.04,\
             \"grad_norm\":1.5,\"batch_time\":0.25,\"data_wait\":0.01,\"img_per_s\":64.0,\
             \"max_mem\":200.0,\"teacher_entropy\":2.0,\"marginal_entropy\":3.0,\
             \"max_entropy\":3.4657,\"rows\":8,\"center_norm\":0.5,\"feature_std\":0.9}}\n"
        )
    }

    #[test]
    fn lines_of_both_kinds_are_told_apart() {
        let knn = "{\"step\":25,\"epoch\":1,\"knn_k\":10,\"knn_top1\":20.5,\"knn_top5\":41.0}\n";
        let metrics = Metrics::parse(&(step_line(10, 6.5) + &step_line(30, 6.0) + knn));
        assert_eq!((metrics.steps.len(), metrics.knn.len(), metrics.unreadable), (2, 1, 0));
        assert_eq!(metrics.steps[1].get("region_loss"), Some(4.5));
        let parts: Vec<_> = metrics.steps[1].loss_parts().collect();
        assert_eq!(parts, [("view", 6.0), ("region", 4.5)]);
        assert_eq!(metrics.steps[1].get("marginal_entropy"), Some(3.0));
        assert_eq!((metrics.steps_done(), metrics.training_seconds()), (30, 7.5));
        assert_eq!(metrics.best_knn().unwrap().knn_top1, 20.5);
    }

    #[test]
    fn broken_lines_are_counted_and_an_unfinished_one_is_not() {
        let text = step_line(10, 6.5) + "{\"step\":\n\nnothing\n{\"step\":3}\n";
        let metrics = Metrics::parse(&(text.clone() + "{\"step\":20,\"epo"));
        assert_eq!((metrics.steps.len(), metrics.unreadable), (1, 3));
        assert_eq!(metrics, Metrics::parse(&text));
        assert_eq!(Metrics::parse("{\"step\":20,\"epo"), Metrics::default());
    }

    /// A run without the region task and before the first look at the teacher.
    #[test]
    fn optional_figures_may_be_missing() {
        let line = step_line(10, 6.5).replace("\"region_loss\":4.5,", "");
        let (line, _) = line.split_once(",\"teacher_entropy\"").unwrap();
        let metrics = Metrics::parse(&format!("{line}}}\n"));
        let step = &metrics.steps[0];
        assert_eq!((step.get("region_loss"), step.get("teacher_entropy")), (None, None));
    }

    #[test]
    fn of_equal_checks_the_first_is_best_and_the_later_line_counts() {
        let check = |epoch: u64, top1: f64| {
            let step = 20 * epoch;
            format!(
                "{{\"step\":{step},\"epoch\":{epoch},\"knn_k\":10,\"knn_top1\":{top1},\"knn_top5\":50.0}}\n"
            )
        };
        let checks = [check(1, 20.0), check(2, 30.5), check(3, 30.5)].concat();
        let metrics = Metrics::parse(&(step_line(10, 6.5) + &checks));
        assert_eq!(metrics.best_knn().unwrap().epoch, 2);
        assert_eq!((metrics.steps_done(), metrics.training_seconds()), (60, 2.5));
        assert_eq!(Metrics::default().steps_done(), 0);
    }
}
