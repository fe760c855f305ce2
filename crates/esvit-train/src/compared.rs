//! A step of several micro-batches whose images are compared with each other: contrastive losses, and
//! heads with batch normalization.
//!
//! The backbone sees a micro-batch at a time; targets, heads and loss see the view features of all of
//! them, and those of regions if they need these. Then every micro-batch goes through the backbone again, which is run backwards from the
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
use crate::region_rows::{RegionRows, without_regions};

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
        let first = self.collective.rank() * sum.own;
        let step_images = sum.micro_batches * images;
        let all = first * images..(first + sum.own) * images;
        let part = StepPart { first_view: 0, images: all, step_images };
        self.objective.begin_micro_batch(whole, at, &part);
        let with_regions = self.objective.compares_regions();
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
                    let of_part = features(network, params, (&views[..], None), ctx, whose);
                    found.push(kept(of_part, with_regions));
                }
                let features = joined_features(&found, images, with_regions);
                let views = Views { total: at_hand.end, at_hand };
                Some(Pass { params, features, ctx, views, batch: whole.images() })
            }
        };
        self.objective.targets(whole, teacher, at, &*self.collective);

        let views = self.objective.student_views(whole, [at.step, first as u64]);
        let key = DropPathKey { seed: self.settings.seed, step: at.step };
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
            let mask = self.objective.token_mask(&self.student, 0..views.len(), part.clone());
            let views = of_images(&views, part);
            let seen = (&views[..], mask.as_ref());
            let of_part = features(&self.network, &self.student, seen, &ctx, whose);
            found.push(kept(of_part, with_regions));
            statistics = ctx.into_statistics();
        }

        let tape = Tape::new();
        let params = self.student.tracked(&tape);
        let RowFeatures { view, region, segments } = joined_features(&found, images, with_regions);
        let [of_all, of_regions] = [view, region].map(|rows| tape.watch(rows));
        let places = with_regions.then(|| RegionRows::new(&found[0], images, found.len()));
        drop(found);
        let ctx = ForwardCtx::student(key)
            .with_precision(precision)
            .with_collective(&self.collective)
            .after(statistics);
        let pass = Pass {
            params: &params,
            features: RowFeatures { view: of_all.clone(), region: of_regions.clone(), segments },
            ctx: &ctx,
            views: Views::all(views.len()),
            batch: whole.images(),
        };
        let loss = self.objective.loss(pass, at, &*self.collective);
        let total = sum.losses.add_all(loss);
        let leaves = [&of_all, &of_regions].map(|leaf| tape.number(leaf));
        let mut upstream = [&of_all, &of_regions].map(Tensor::zeros_like);
        sum.values.add_backward_and(&tape, &params, &total, &mut |other, gradient| {
            for (leaf, upstream) in leaves.iter().zip(&mut upstream) {
                if *leaf == Some(other) {
                    *upstream = upstream.clone() + gradient.clone().reshape(upstream.shape());
                }
            }
        });
        let [upstream, of_regions] = upstream;
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
            let mask = self.objective.token_mask(&params, 0..views.len(), part.clone());
            let seen = of_images(&views, part);
            let found = features(&self.network, &params, (&seen[..], mask.as_ref()), &ctx, whose);
            let upstream = rows_of(&upstream, views.len(), whole.images(), part);
            // Its gradient is what comes from above.
            let mut total = (found.view * upstream).sum();
            if let Some(places) = &places {
                let upstream = places.of_part(&of_regions, part.start / images);
                total = total + (found.region * upstream).sum();
            }
            sum.values.add_backward(&tape, &params, &total);
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

/// Of a micro-batch the features that are compared.
fn kept(features: RowFeatures, with_regions: bool) -> RowFeatures {
    if with_regions { features } else { without_regions(features.view) }
}

/// The features of micro-batches of `images` each as those of all images.
fn joined_features(parts: &[RowFeatures], images: usize, with_regions: bool) -> RowFeatures {
    let views: Vec<Tensor> = parts.iter().map(|part| part.view.clone()).collect();
    let view = by_view(&views, images);
    if !with_regions {
        return without_regions(view);
    }
    let places = RegionRows::new(&parts[0], images, parts.len());
    RowFeatures { view, region: places.joined(parts), segments: places.segments() }
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
