//! A step of several micro-batches whose images are compared with each other: contrastive losses, and
//! heads with batch normalization.
//!
//! The backbone sees a micro-batch at a time; targets, heads and loss see the view features of all of
//! them. Then every micro-batch goes through the backbone again, which is run backwards from the
//! gradients of its features. Loss, gradients and state are those of one pass over all images, but for
//! rounding and for batch normalization in the backbone; the cost is one more forward pass.
//!
//! Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (2021).

use std::ops::Range;

use esvit_nn::backbone::RowFeatures;
use esvit_nn::forward_ctx::{DropPathKey, StepPart};
use esvit_nn::{ForwardCtx, Tape, Tensor};

use crate::learner::{Gradients, Learner, features, seen_by_teacher, teacher_network};
use crate::objective::{MicroBatch, Pass, StepInfo, Views};

impl Learner {
    /// Holds a micro-batch until the last one of the step is there, and adds the losses and gradients
    /// of all then. Returns whether it was not stopped.
    pub(crate) fn add_compared(
        &mut self,
        sum: &mut Gradients,
        batch: &MicroBatch,
        at: &StepInfo,
        stop: &dyn Fn() -> bool,
    ) -> bool {
        sum.held.push(batch.clone());
        if sum.held.len() < sum.own {
            return true;
        }
        let held = std::mem::take(&mut sum.held);
        let is_added = self.compare(sum, &joined(&held), at, stop).is_some();
        self.objective.end_micro_batch();
        is_added
    }

    /// Adds the losses and gradients of `whole`, all images of this process; None if it was stopped.
    fn compare(
        &mut self,
        sum: &mut Gradients,
        whole: &MicroBatch,
        at: &StepInfo,
        stop: &dyn Fn() -> bool,
    ) -> Option<()> {
        let precision = self.settings.precision;
        let whose = self.objective.batch_statistics();
        let images = whole.images() / sum.own;
        let parts: Vec<Range<usize>> =
            (0..sum.own).map(|part| part * images..(part + 1) * images).collect();
        let [of_student, of_teacher] = std::mem::take(&mut sum.buffers);
        let teacher_ctx = ForwardCtx::teacher()
            .with_precision(precision)
            .with_collective(&self.collective)
            .after(of_teacher);
        let frozen_ctx = ForwardCtx::eval().with_precision(precision);
        let kind = self.objective.teacher(at);
        let networks = (&self.network, &self.student, self.teacher.as_ref());
        let teacher = teacher_network(&kind, networks, [&teacher_ctx, &frozen_ctx]);
        let at_hand = seen_by_teacher(&*self.objective, whole.views.len());
        let teacher = match teacher {
            None => None,
            Some((network, params, ctx)) => {
                let seen = self.objective.teacher_input(whole);
                let mut found = Vec::with_capacity(parts.len());
                for part in &parts {
                    if stop() {
                        return None;
                    }
                    let views = of_images(&seen, part);
                    let seen = (&views[..], None);
                    found.push(features(network, params, seen, ctx, whose).view);
                }
                let features = view_features(by_view(&found, images));
                let views = Views { total: at_hand.end, at_hand };
                Some(Pass { params, features, ctx, views, batch: whole.images() })
            }
        };
        self.objective.targets(whole, teacher, at, &*self.collective);

        let first = self.collective.rank() * sum.own;
        let views = self.objective.student_views(whole, [at.step, first as u64]);
        let key = DropPathKey { seed: self.settings.seed, step: at.step };
        let step_images = sum.micro_batches * images;
        // The context of a micro-batch, with the same dropped branches both times.
        let ctx_of = |part: &Range<usize>| {
            let place = first * images + part.start..first * images + part.end;
            let mut ctx = ForwardCtx::student(key)
                .with_precision(precision)
                .with_collective(&self.collective)
                .for_part(StepPart { first_view: 0, images: place, step_images });
            ctx.activation_checkpointing = self.settings.activation_checkpointing;
            ctx
        };
        let mut statistics = of_student;
        let mut found = Vec::with_capacity(parts.len());
        for part in &parts {
            if stop() {
                return None;
            }
            let ctx = ctx_of(part).after(statistics);
            let views = of_images(&views, part);
            let seen = (&views[..], None);
            found.push(features(&self.network, &self.student, seen, &ctx, whose).view);
            statistics = ctx.into_statistics();
        }

        let tape = Tape::new();
        let params = self.student.tracked(&tape);
        let of_all = tape.watch(by_view(&found, images));
        drop(found);
        let ctx = ForwardCtx::student(key)
            .with_precision(precision)
            .with_collective(&self.collective)
            .after(statistics);
        let pass = Pass {
            params: &params,
            features: view_features(of_all.clone()),
            ctx: &ctx,
            views: Views::all(views.len()),
            batch: whole.images(),
        };
        let loss = self.objective.loss(pass, at, &*self.collective);
        let total = sum.losses.add_all(loss);
        let (leaf, mut upstream) = (tape.number(&of_all), of_all.zeros_like());
        sum.values.add_backward_and(&tape, &params, &total, &mut |other, gradient| {
            if Some(other) == leaf {
                upstream = upstream.clone() + gradient.reshape(upstream.shape());
            }
        });
        let statistics = ctx.into_statistics();

        // Gradients of features go no further than to a backbone that does not learn.
        let is_frozen = at.is_within(self.settings.freeze_backbone);
        for part in parts.iter().filter(|_| !is_frozen) {
            if stop() {
                return None;
            }
            let tape = Tape::new();
            let params = self.student.tracked(&tape);
            let ctx = ctx_of(part);
            let seen = of_images(&views, part);
            let found = features(&self.network, &params, (&seen[..], None), &ctx, whose);
            let upstream = rows_of(&upstream, views.len(), whole.images(), part);
            // Its gradient is what comes from above.
            sum.values.add_backward(&tape, &params, &(found.view * upstream).sum());
        }
        sum.buffers = [statistics, teacher_ctx.into_statistics()];
        // They count as one micro-batch a process.
        sum.micro_batches = self.collective.world();
        Some(())
    }
}

/// Micro-batches of equal size as one.
fn joined(parts: &[MicroBatch]) -> MicroBatch {
    let views = parts.first().map_or(0, |part| part.views.len());
    let view = |view: usize| Tensor::cat(parts.iter().map(|p| p.views[view].clone()).collect(), 0);
    MicroBatch {
        views: (0..views).map(view).collect(),
        labels: parts.iter().flat_map(|part| part.labels.iter().copied()).collect(),
        samples: parts.iter().flat_map(|part| part.samples.iter().copied()).collect(),
    }
}

/// Some images of every view.
fn of_images(views: &[Tensor], images: &Range<usize>) -> Vec<Tensor> {
    views.iter().map(|view| view.clone().narrow(0, images.start, images.len())).collect()
}

/// View features of micro-batches of `images` each, view-major `[views * images, C]`, as those of all
/// images, view-major again.
fn by_view(parts: &[Tensor], images: usize) -> Tensor {
    let views = parts.first().map_or(0, |part| part.shape()[0] / images);
    let rows = (0..views).flat_map(|view| {
        parts.iter().map(move |part| part.clone().narrow(0, view * images, images))
    });
    Tensor::cat(rows.collect(), 0)
}

/// The rows `[views * part, C]` of a micro-batch among those of `images`, `[views * images, C]`.
fn rows_of(all: &Tensor, views: usize, images: usize, part: &Range<usize>) -> Tensor {
    let rows = |view: usize| all.clone().narrow(0, view * images + part.start, part.len());
    Tensor::cat((0..views).map(rows).collect(), 0)
}

/// View features without those of regions.
fn view_features(view: Tensor) -> RowFeatures {
    let region = Tensor::zeros([0, view.shape()[1]], &view.device());
    RowFeatures { view, region, segments: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Device;

    /// Two views of two micro-batches of two images.
    #[test]
    fn rows_of_micro_batches_are_sorted_by_view() {
        let part = |values: [f32; 4]| Tensor::new(values.to_vec(), [4, 1], &Device::Cpu);
        let all = by_view(&[part([0.0, 1.0, 10.0, 11.0]), part([2.0, 3.0, 12.0, 13.0])], 2);
        assert_eq!(all.to_vec::<f32>(), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
        assert_eq!(rows_of(&all, 2, 4, &(0..2)).to_vec::<f32>(), [0.0, 1.0, 10.0, 11.0]);
        assert_eq!(rows_of(&all, 2, 4, &(2..4)).to_vec::<f32>(), [2.0, 3.0, 12.0, 13.0]);
    }
}
