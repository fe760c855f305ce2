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
    /// step: `c = momentum * c + (1 - momentum) * mean`.
    pub fn update(&mut self, momentum: f64, collective: &dyn Collective) {
        let count = (self.seen.len() * collective.world()) as f64;
        let share = (1.0 - momentum) / count.max(1.0);
        let decay = if self.seen.is_empty() { 1.0 } else { momentum };
        self.view = self.view.clone() * decay;
        self.region = self.region.take().map(|center| center * decay);
        for (view, region) in self.seen.drain(..) {
            self.view = self.view.clone() + collective.all_reduce(view) * share;
            if let (Some(center), Some(region)) = (self.region.take(), region) {
                self.region = Some(center + collective.all_reduce(region) * share);
            }
        }
    }
}
