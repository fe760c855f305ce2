//! A step of several micro-batches whose images are compared with each other: contrastive losses, and
//! heads with batch normalization.
//!
//! The backbone sees a micro-batch at a time; targets, heads and loss see the view features of all of
//! them, and those of regions where the objective asks for them. Then every micro-batch goes through the
//! backbone again, which is run backwards from the gradients of its features. Loss, gradients and state are
//! those of one pass over all images, but for rounding and for batch normalization in the backbone; the cost
//! is one more forward pass.
//!
//! Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (2021).

use std::ops::Range;

use esvit_nn::backbone::RowFeatures;
use esvit_nn::forward_ctx::{DropPathKey, StepPart};
use esvit_nn::ops::Segment;
use esvit_nn::{ForwardCtx, Tape, Tensor};

use crate::learner::{Gradients, Learner, features, seen_by_teacher, teacher_network};
use crate::objective::{BatchStatistics, MicroBatch, Pass, StepInfo, Views};

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
        let regions = self.objective.compares_regions();
        let images = whole.images() / sum.own;
        let parts: Vec<Range<usize>> =
            (0..sum.own).map(|part| part * images..(part + 1) * images).collect();
        let first = self.collective.rank() * sum.own;
        let step_images = sum.micro_batches * images;
        let all = first * images..(first + sum.own) * images;
        let part = StepPart { first_view: 0, images: all, step_images };
        self.objective.begin_micro_batch(whole, at, &part);
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
                let by_crop = whose == BatchStatistics::PerView;
                for part in &parts {
                    let views = of_images(&seen, part);
                    let of_part = network.features_unless(params, &views, by_crop, ctx, stop)?;
                    found.push(kept(of_part, regions));
                }
                let features = of_all_images(found, images);
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
            found.push(kept(of_part, regions));
            statistics = ctx.into_statistics();
        }

        let tape = Tape::new();
        let params = self.student.tracked(&tape);
        let of_all = of_all_images(found, images);
        let tokens = of_all.tokens_per_view(whole.images());
        let of_all = RowFeatures {
            view: tape.watch(of_all.view),
            region: tape.watch(of_all.region),
            segments: of_all.segments,
        };
        let leaves = [&of_all.view, &of_all.region].map(|leaf| tape.number(leaf));
        let mut upstream = [&of_all.view, &of_all.region].map(Tensor::zeros_like);
        let ctx = ForwardCtx::student(key)
            .with_precision(precision)
            .with_collective(&self.collective)
            .after(statistics);
        let pass = Pass {
            params: &params,
            features: of_all,
            ctx: &ctx,
            views: Views::all(views.len()),
            batch: whole.images(),
        };
        let loss = self.objective.loss(pass, at, &*self.collective);
        let total = sum.losses.add_all(loss);
        sum.values.add_backward_and(&tape, &params, &total, &mut |other, gradient| {
            for (leaf, upstream) in leaves.iter().zip(&mut upstream) {
                if *leaf == Some(other) {
                    *upstream = upstream.clone() + gradient.clone().reshape(upstream.shape());
                }
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
            let mask = self.objective.token_mask(&params, 0..views.len(), part.clone());
            let seen = of_images(&views, part);
            let found = features(&self.network, &params, (&seen[..], mask.as_ref()), &ctx, whose);
            let [of_view, of_region] = &upstream;
            let rows =
                |of: &Tensor, per_view: &[usize]| rows_of(of, per_view, whole.images(), part);
            // Its gradient is what comes from above.
            let mut root = (found.view * rows(of_view, &vec![1; views.len()])).sum();
            if regions {
                root = root + (found.region * rows(of_region, &tokens)).sum();
            }
            sum.values.add_backward(&tape, &params, &root);
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

/// The features that wait for the others: those of regions with `regions` alone.
fn kept(features: RowFeatures, regions: bool) -> RowFeatures {
    if regions {
        return features;
    }
    let region = Tensor::zeros([0, features.view.shape()[1]], &features.view.device());
    RowFeatures { view: features.view, region, segments: Vec::new() }
}

/// Features of micro-batches of `images` each as those of all images, view-major again.
fn of_all_images(parts: Vec<RowFeatures>, images: usize) -> RowFeatures {
    let all = images * parts.len();
    let (mut views, mut tokens, mut segments) = (0, Vec::new(), Vec::new());
    if let Some(part) = parts.first() {
        (views, tokens) = (part.view.shape()[0] / images, part.tokens_per_view(images));
        segments.extend(part.maps_per_view(images).into_iter().map(|map| Segment::new(all, map)));
    }
    let (of_views, of_regions): (Vec<_>, Vec<_>) =
        parts.into_iter().map(|part| (part.view, part.region)).unzip();
    RowFeatures {
        view: by_view(&of_views, &vec![1; views], images),
        region: by_view(&of_regions, &tokens, images),
        segments,
    }
}

/// Rows of micro-batches of `images` each, view-major with `per_view` rows of an image in each view, as
/// those of all images, view-major again. Without views there is nothing to sort.
fn by_view(parts: &[Tensor], per_view: &[usize], images: usize) -> Tensor {
    let mut sorted = Vec::with_capacity(per_view.len() * parts.len());
    let mut start = 0;
    for rows in per_view.iter().map(|rows| images * rows) {
        sorted.extend(parts.iter().map(|part| part.clone().narrow(0, start, rows)));
        start += rows;
    }
    match (sorted.is_empty(), parts) {
        (true, [first, ..]) => first.clone(),
        _ => Tensor::cat(sorted, 0),
    }
}

/// The rows of a micro-batch among those of `images`, view-major with `per_view` rows of an image in each
/// view.
fn rows_of(all: &Tensor, per_view: &[usize], images: usize, part: &Range<usize>) -> Tensor {
    let mut start = 0;
    let rows = per_view.iter().map(|rows| {
        let first = start + part.start * rows;
        start += images * rows;
        all.clone().narrow(0, first, part.len() * rows)
    });
    Tensor::cat(rows.collect(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Device;

    fn column(values: &[f32]) -> Tensor {
        Tensor::new(values.to_vec(), [values.len(), 1], &Device::Cpu)
    }

    /// Two views of two micro-batches of two images.
    #[test]
    fn rows_of_micro_batches_are_sorted_by_view() {
        let parts = [[0.0, 1.0, 10.0, 11.0], [2.0, 3.0, 12.0, 13.0]].map(|part| column(&part));
        let all = by_view(&parts, &[1, 1], 2);
        assert_eq!(all.to_vec::<f32>(), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
        let rows = |part| rows_of(&all, &[1, 1], 4, &part).to_vec::<f32>();
        assert_eq!(rows(0..2), [0.0, 1.0, 10.0, 11.0]);
        assert_eq!(rows(2..4), [2.0, 3.0, 12.0, 13.0]);
    }

    /// A view of two tokens and one of a single one, of two micro-batches of two images: tens are images.
    #[test]
    fn regions_of_micro_batches_are_sorted_by_view() {
        let part = |first: f32| {
            let [a, b] = [first, first + 10.0];
            RowFeatures {
                view: column(&[a, b, a + 100.0, b + 100.0]),
                region: column(&[a, a + 1.0, b, b + 1.0, a + 100.0, b + 100.0]),
                segments: vec![Segment::new(2, [1, 2]), Segment::new(2, [1, 1])],
            }
        };
        let all = of_all_images(vec![part(0.0), part(20.0)], 2);
        let views = [0.0, 10.0, 20.0, 30.0, 100.0, 110.0, 120.0, 130.0];
        assert_eq!(all.view.to_vec::<f32>(), views);
        let regions = [0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0, 100.0, 110.0, 120.0, 130.0];
        assert_eq!(all.region.to_vec::<f32>(), regions);
        assert_eq!(all.segments, [Segment::new(4, [1, 2]), Segment::new(4, [1, 1])]);
        let second = rows_of(&all.region, &all.tokens_per_view(4), 4, &(2..4)).to_vec::<f32>();
        assert_eq!(second, part(20.0).region.to_vec::<f32>());
        // Without them there are none.
        let none = of_all_images(vec![kept(part(0.0), false), kept(part(20.0), false)], 2);
        assert_eq!((none.view.to_vec::<f32>(), none.region.numel()), (views.to_vec(), 0));
        assert!(none.segments.is_empty());
    }
}
