//! Centering: running means of the teacher's logits, subtracted so that no prototype dominates.

use esvit_nn::esvit_heads::Predictions;
use esvit_nn::{Collective, Device, Tensor};

/// The centers of both tasks, each `[K]`, and the means observed since the last update.
#[derive(Debug, Clone)]
pub struct Centers {
    /// Center of the view logits.
    pub view: Tensor,
    /// Center of the region logits, if the region task is trained.
    pub region: Option<Tensor>,
    seen: Vec<(Tensor, Option<Tensor>)>,
}

impl Centers {
    /// Zero centers.
    pub fn zeros(prototypes: usize, region: bool, device: &Device) -> Self {
        let zeros = || Tensor::zeros([prototypes], device);
        Self::new(zeros(), region.then(zeros))
    }

    /// Centers with these values.
    pub fn new(view: Tensor, region: Option<Tensor>) -> Self {
        Self { view, region, seen: Vec::new() }
    }

    /// Adds the mean of a micro-batch's raw teacher logits.
    pub fn observe(&mut self, teacher: &Predictions) {
        let region = teacher.region.as_ref().map(|region| region.logits.mean());
        self.seen.push((teacher.view_logits.mean(), region));
    }

    /// Drops what was observed since the last update.
    pub fn forget(&mut self) {
        self.seen.clear();
    }

    /// EMA with the mean of all processes' observations since the last update, once per optimizer
    /// step.
    pub fn update(&mut self, momentum: f64, collective: &dyn Collective) {
        let (view, region): (Vec<Tensor>, Vec<Option<Tensor>>) = self.seen.drain(..).unzip();
        self.view = follow_means(self.view.clone(), view, momentum, collective);
        let region = region.into_iter().flatten().collect();
        self.region =
            self.region.take().map(|center| follow_means(center, region, momentum, collective));
    }
}

/// A center after a step in which all processes have seen as many means each: `c = momentum * c +
/// (1 - momentum) * mean`, or as it was if they have seen none.
pub(crate) fn follow_means(
    center: Tensor,
    means: Vec<Tensor>,
    momentum: f64,
    collective: &dyn Collective,
) -> Tensor {
    if means.is_empty() {
        return center;
    }
    let count = (means.len() * collective.world()) as f64;
    let share = (1.0 - momentum) / count;
    let decayed = center * momentum;
    means.into_iter().fold(decayed, |sum, mean| sum + collective.all_reduce(mean) * share)
}
