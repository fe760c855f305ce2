//! What the log of a run says.

use std::path::Path;

use super::Check;
use crate::report::metrics::Metrics;

/// Time, memory and checks of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunLog {
    /// Time of its own steps.
    pub training_seconds: f64,
    /// Largest resident memory, in MiB, if the system tells.
    pub peak_memory_mb: Option<f64>,
    /// Its checks, in order.
    pub checks: Vec<Check>,
}

/// Reads the log of the run in a folder, as far as it is of steps after the first and up to the last of
/// `within`. `images_seen` says how many images were seen after a step.
///
/// # Errors
/// Those of reading the file.
pub fn read_log(
    run: &Path,
    within: [u64; 2],
    images_seen: impl Fn(u64) -> u64,
) -> std::io::Result<RunLog> {
    let metrics = Metrics::parse(&esvit_files::read_text(&run.join("metrics.jsonl"))?);
    let mut checks: Vec<(u64, Check)> = Vec::new();
    let mut note = |step: u64, knn: Option<f64>, retrieval: Option<f64>| {
        let place = checks.iter().position(|(at, _)| *at == step).unwrap_or_else(|| {
            let check = Check { images_seen: images_seen(step), knn: None, retrieval: None };
            checks.push((step, check));
            checks.len() - 1
        });
        let check = &mut checks[place].1;
        (check.knn, check.retrieval) = (knn.or(check.knn), retrieval.or(check.retrieval));
    };
    metrics.knn.iter().for_each(|line| note(line.step, Some(line.knn_top1), None));
    metrics.retrieval.iter().for_each(|line| note(line.step, None, Some(line.retrieval_top1)));
    checks.sort_by_key(|(step, _)| *step);
    let peak = metrics.steps.iter().map(|line| line.max_mem).fold(0.0, f64::max);
    Ok(RunLog {
        training_seconds: metrics.training_seconds_within(within),
        peak_memory_mb: (peak > 0.0).then_some(peak),
        checks: checks.into_iter().map(|(_, check)| check).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::metrics::tests::step_line;

    #[test]
    fn checks_of_a_step_are_one() {
        let place = tempfile::tempdir().unwrap();
        let retrieval = |step: u64, top1: f64| {
            format!(
                "{{\"step\":{step},\"epoch\":0,\"retrieval_images\":9,\"retrieval_top1\":{top1}}}\n"
            )
        };
        let knn = "{\"step\":30,\"epoch\":0,\"knn_k\":10,\"knn_top1\":20.5,\"knn_top5\":41.0}\n";
        let text = [
            retrieval(0, 2.5),
            step_line(10, 6.5).replace("200.0", "300.5"),
            step_line(30, 6.0),
            retrieval(30, 7.5),
            knn.into(),
        ];
        std::fs::write(place.path().join("metrics.jsonl"), text.concat()).unwrap();
        let log = read_log(place.path(), [0, u64::MAX], |step| 4 * step).unwrap();
        let check = |images_seen, knn, top1| Check { images_seen, knn, retrieval: Some(top1) };
        assert_eq!(log.checks, [check(0, None, 2.5), check(120, Some(20.5), 7.5)]);
        // 30 steps of a quarter second.
        assert_eq!((log.training_seconds, log.peak_memory_mb), (7.5, Some(300.5)));
        for (within, seconds) in
            [([8, u64::MAX], 5.5), ([0, 8], 2.0), ([0, 12], 3.0), ([12, 20], 2.0)]
        {
            let log = read_log(place.path(), within, |step| step).unwrap();
            assert_eq!(log.training_seconds, seconds, "{within:?}");
        }
        assert!(read_log(&place.path().join("none"), [0, 1], |step| step).is_err());
    }
}
