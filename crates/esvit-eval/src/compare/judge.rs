//! What all networks of a comparison are measured on, and how.

use std::sync::Arc;

use esvit_data::{Preprocess, Source};
use esvit_model::PretrainedBackbone;
use esvit_model::features::SkippedImage;

use super::Scores;
use crate::correspondence::{
    CorrespondenceError, Geometry, MEASURED_PAIRS, Protocol, measure as correspondence,
};
use crate::knn::{self, Accuracy, KnnError};
use crate::labeled::{LabeledSet, LabeledTask};
use crate::probe::{Probe, ProbeError, ProbeTask};
use crate::retrieval::{IMAGES, RetrievalError, RetrievalTask};

/// A network cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// k-NN accuracy.
    #[error(transparent)]
    Knn(#[from] KnnError),
    /// The linear probe.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Correspondence.
    #[error(transparent)]
    Correspondence(#[from] CorrespondenceError),
    /// Retrieval.
    #[error(transparent)]
    Retrieval(#[from] RetrievalError),
}

/// What all networks are measured on: labeled images, if there are any, and images without a need for
/// labels.
pub struct Judge {
    task: Option<LabeledTask>,
    matched: LabeledSet,
    crops: RetrievalTask,
    k: usize,
    temperature: f64,
    description: String,
}

/// What was measured of a network.
#[derive(Debug, Default)]
pub struct Judged {
    /// The figures.
    pub scores: Scores,
    /// Images that could not be read.
    pub left_out: Vec<SkippedImage>,
    /// A line about each figure that this network cannot have.
    pub notes: Vec<String>,
}

impl Judge {
    /// Measures on the query images of `task`, by `k` neighbors that vote at this temperature, or without
    /// labels on the images of `source`, which are called `name`.
    pub fn new(
        task: Option<LabeledTask>,
        (source, name): (Arc<dyn Source>, &str),
        (k, temperature): (usize, f64),
    ) -> Self {
        let description = task.as_ref().map_or(name, |task| &task.description).to_owned();
        let mut matched = match &task {
            Some(task) => task.queries.clone(),
            None => LabeledSet::all(source),
        };
        let crops = RetrievalTask::new(matched.source.clone(), IMAGES);
        matched.limit(IMAGES);
        Self { task, matched, crops, k, temperature, description }
    }

    /// The images in words.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// How often [`measure`](Self::measure) reports an image as done.
    pub fn len(&self) -> usize {
        let (train, queries) = self.task.as_ref().map_or((0, 0), LabeledTask::images);
        2 * (train + queries) + self.matched.images.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Measures a network. `done` is called with the number of images processed in each batch.
    ///
    /// # Errors
    /// [`CompareError`] if no image can be read, or features are not finite.
    pub fn measure(
        &self,
        backbone: &PretrainedBackbone,
        mut done: impl FnMut(usize),
    ) -> Result<Judged, CompareError> {
        let mut judged = Judged::default();
        if let Some(task) = &self.task {
            let (network, preprocess) =
                ((&*backbone.network, &backbone.params), &backbone.preprocess);
            let (k, temperature) = (self.k, self.temperature);
            let measured = knn::accuracy(task, network, preprocess, &[k], temperature, &mut done)?;
            judged.scores.knn = top1(&measured.accuracies);
            judged.left_out = measured.left_out;
            judged.linear(probed(task, backbone, &mut done))?;
        }
        judged.correspondence(self.matches(backbone, &mut done))?;
        if self.crops.len() > 1 {
            let network = (&*backbone.network, &backbone.params);
            let (found, _) = self.crops.measure(network, &backbone.preprocess)?;
            judged.scores.retrieval = Some(found.top1);
        }
        Ok(judged)
    }

    /// Measures raw pixels, as far as that can be done.
    ///
    /// # Errors
    /// [`CompareError`] if no image can be read.
    pub fn measure_pixels(&self, preprocess: &Preprocess) -> Result<Scores, CompareError> {
        let mut scores = Scores::default();
        if let Some(task) = &self.task {
            let (k, temperature) = (self.k, self.temperature);
            let measured = knn::pixel_accuracy(task, preprocess, &[k], temperature)?;
            scores.knn = top1(&measured.accuracies);
        }
        if self.crops.len() > 1 {
            scores.retrieval = Some(self.crops.measure_pixels(preprocess)?.0.top1);
        }
        Ok(scores)
    }

    /// The share of right matches of the last stage, in percent.
    fn matches(
        &self,
        backbone: &PretrainedBackbone,
        done: impl FnMut(usize),
    ) -> Result<f64, CorrespondenceError> {
        let stage = backbone.config.stages().len() - 1;
        let protocol =
            Protocol { geometry: Geometry::Mirror, pairs: MEASURED_PAIRS, stage, seed: 0 };
        let preprocess = &backbone.preprocess;
        let measured = correspondence(&self.matched, preprocess, &protocol, &[backbone], done)?;
        Ok(100.0 * measured.networks[0].accuracy.mean)
    }
}

/// Top-1 of a linear probe with all settings at their defaults, in percent.
fn probed(
    task: &LabeledTask,
    backbone: &PretrainedBackbone,
    done: impl FnMut(usize),
) -> Result<f64, ProbeError> {
    let probe = Probe::standard(&backbone.config)?;
    let splits = ProbeTask::from(task.clone()).splits(backbone, probe.last_blocks(), done)?;
    Ok(probe.run(&splits.train, &splits.queries, None)?.best.metrics.value())
}

fn top1(accuracies: &[Accuracy]) -> Option<f64> {
    accuracies.first().map(|accuracy| accuracy.top1)
}

impl Judged {
    /// Too few images for a probe are none of the network's business.
    fn linear(&mut self, measured: Result<f64, ProbeError>) -> Result<(), ProbeError> {
        match measured {
            Ok(top1) => self.scores.linear = Some(top1),
            Err(
                error @ (ProbeError::OneClass | ProbeError::NoValidation | ProbeError::Diverged),
            ) => {
                self.note_missing("linear probe", &error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Views need not be a whole number of a network's cells.
    fn correspondence(
        &mut self,
        measured: Result<f64, CorrespondenceError>,
    ) -> Result<(), CorrespondenceError> {
        use CorrespondenceError::{Map, Size, View};
        match measured {
            Ok(share) => self.scores.correspondence = Some(share),
            Err(error @ (Size { .. } | Map { .. } | View(_))) => {
                self.note_missing("correspondence", &error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn note_missing(&mut self, what: &str, error: &dyn std::error::Error) {
        let error = error.to_string();
        let reason = error.lines().next().unwrap_or_default();
        self.notes.push(format!("the {what} is left out: {reason}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Images, backbone, noise};

    fn images(classes: u32) -> Images {
        Images::labeled((0..20).map(|i| (i % classes, noise(24, 24, i.into()))).collect())
    }

    fn labeled(classes: u32) -> LabeledTask {
        LabeledTask::held_out(Arc::new(images(classes)), "noise", usize::MAX)
    }

    fn judge(task: Option<LabeledTask>) -> Judge {
        Judge::new(task, (Arc::new(images(1)), "some images"), (3, 0.1))
    }

    /// Each figure is that of the evaluation of its name.
    #[test]
    fn figures_are_those_of_the_evaluations() {
        let (task, backbone) = (labeled(2), backbone(1));
        let judge = judge(Some(task.clone()));
        let mut seen = 0;
        let Judged { scores, left_out, notes } =
            judge.measure(&backbone, |images| seen += images).unwrap();
        assert_eq!((seen, left_out.len(), notes.len()), (judge.len(), 0, 0));
        assert_eq!(judge.description(), "noise, every fifth image set aside");

        let network = (&*backbone.network, &backbone.params);
        let preprocess = &backbone.preprocess;
        let expected = knn::accuracy(&task, network, preprocess, &[3], 0.1, |_| ()).unwrap();
        assert_eq!(scores.knn, Some(expected.accuracies[0].top1));
        assert_eq!(scores.linear, Some(probed(&task, &backbone, |_| ()).unwrap()));
        let crops = RetrievalTask::new(task.queries.source.clone(), IMAGES);
        let expected = crops.measure(network, preprocess).unwrap().0.top1;
        assert_eq!(scores.retrieval, Some(expected));
        let protocol =
            Protocol { geometry: Geometry::Mirror, pairs: MEASURED_PAIRS, stage: 1, seed: 0 };
        let found = correspondence(&task.queries, preprocess, &protocol, &[&backbone], |_| ());
        let expected = 100.0 * found.unwrap().networks[0].accuracy.mean;
        assert!(expected > 0.0 && scores.correspondence == Some(expected), "{scores:?}");

        let pixels = judge.measure_pixels(preprocess).unwrap();
        let expected = knn::pixel_accuracy(&task, preprocess, &[3], 0.1).unwrap();
        assert_eq!(pixels.knn, Some(expected.accuracies[0].top1));
        assert_eq!((pixels.linear, pixels.correspondence), (None, None));
    }

    #[test]
    fn without_labels_there_are_two_figures() {
        let judge = judge(None);
        let scores = judge.measure(&backbone(1), |_| ()).unwrap().scores;
        assert_eq!((judge.description(), scores.knn, scores.linear), ("some images", None, None));
        assert!(scores.correspondence.is_some() && scores.retrieval.is_some(), "{scores:?}");
    }

    #[test]
    fn what_a_network_cannot_have_is_said() {
        let one_class = judge(Some(labeled(1))).measure(&backbone(1), |_| ()).unwrap();
        assert_eq!(one_class.scores.linear, None);
        assert!(one_class.notes[0].starts_with("the linear probe is left out: all training"));
        let mut odd = backbone(1);
        odd.preprocess.transform = esvit_data::EvalTransform::new(20);
        let judged = judge(None).measure(&odd, |_| ()).unwrap();
        assert_eq!(judged.scores.correspondence, None);
        assert!(judged.notes[0].starts_with("the correspondence is left out: "), "{judged:?}");
    }
}
