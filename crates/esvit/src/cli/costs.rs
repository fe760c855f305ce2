//! How long a step of a run takes, and its checks: measured on some of its images.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use esvit_data::Source;
use esvit_eval::knn;
use esvit_eval::labeled::LabeledTask;
use esvit_eval::retrieval::{IMAGES, RetrievalTask};
use esvit_nn::{Backbone, Collective, Network, Params, Solo};
use esvit_train::Config;
use esvit_train::run::{self, CheckTime, CheckTimer, Costs, run_length, worth_timing};

/// Networks whose k-NN accuracy is measured after a run: raw pixels, the untrained and the trained one.
const COMPARED: u32 = 3;

/// How long the parts of a run take. `from_weights` says that what it begins with is measured like later
/// states.
pub(super) fn measure(
    config: &Config,
    source: &Arc<dyn Source>,
    task: Option<&LabeledTask>,
    from_weights: bool,
) -> Result<Costs> {
    let alone: Arc<dyn Collective> = Solo::shared();
    let length = run_length(config, source, &alone)?;
    let timed = worth_timing(config, length.total_steps);
    let mut checks = |network: &Network, params: &Params| {
        let network = (network.backbone(), params);
        let [crops, labels] = check_time(config, source, task, network, timed);
        let each = crops + labels;
        let first = if from_weights { each } else { crops };
        CheckTime { first, each, end: COMPARED * labels }
    };
    let checks: Option<&mut CheckTimer<'_>> =
        if config.knn.every.is_none() { None } else { Some(&mut checks) };
    Ok(run::costs(config, source, &alone, &Arc::default(), timed, checks)?)
}

/// The time of the check without labels, and of the one with labels.
fn check_time(
    config: &Config,
    source: &Arc<dyn Source>,
    task: Option<&LabeledTask>,
    network: (&dyn Backbone, &Params),
    timed: Duration,
) -> [Duration; 2] {
    let preprocess = config.preprocess();
    // What cannot be measured is said by the check itself.
    let crops = scaled(source.len().min(IMAGES), timed, |count| {
        let _ = RetrievalTask::new(source.clone(), count).measure(network, &preprocess);
    });
    let labels = task.map_or(Duration::ZERO, |task| {
        let (train, queries) = task.images();
        let all = train + queries;
        scaled(all, timed, |count| {
            let mut some = task.clone();
            some.train.limit((count * train / all).max(1));
            some.queries.limit((count * queries / all).max(1));
            let (ks, temperature) = ([config.knn.k], config.knn.temperature);
            let _ = knn::accuracy(&some, network, &preprocess, &ks, temperature, |_| ());
        })
    });
    [crops, labels]
}

/// The time of a measurement of `all` images, from one of few: of as many as take the time `timed`.
fn scaled(all: usize, timed: Duration, mut measure: impl FnMut(usize)) -> Duration {
    let mut count = all.min(2);
    loop {
        let began = Instant::now();
        measure(count);
        let spent = began.elapsed();
        if count >= all || spent >= timed {
            return spent.mul_f64(all as f64 / count.max(1) as f64);
        }
        count = all.min(4 * count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each image takes ten milliseconds.
    #[test]
    fn few_images_stand_for_all() {
        for (all, timed, expected) in
            [(64, 15, vec![2]), (12, 5000, vec![2, 8, 12]), (1, 5000, vec![1]), (0, 5000, vec![0])]
        {
            let mut counts = Vec::new();
            let time = scaled(all, Duration::from_millis(timed), |count| {
                counts.push(count);
                std::thread::sleep(Duration::from_millis(10 * count as u64));
            });
            assert_eq!(counts, expected, "{all}");
            let least = Duration::from_millis(10 * all as u64);
            assert!(time >= least, "{all}: {time:?}");
        }
    }
}
