//! Measures the network of a run while it trains.

use std::time::{Duration, Instant};

use super::Session;
use crate::Learner;
use crate::checkpoint::{Best, Measure};
use crate::run::{Check, Event, KnnAccuracy, KnnMetrics, Retrieval, RetrievalMetrics, RunError};

/// What a check gives.
enum Answer<T> {
    /// There is no such check.
    Nothing,
    /// It was asked to stop.
    Stopped,
    Measured(T),
}

fn ask<'a, T>(
    check: &mut Option<&'a mut Check<'a, T>>,
    learner: &Learner,
) -> Result<Answer<T>, RunError> {
    let Some(check) = check else { return Ok(Answer::Nothing) };
    let measured = check(&learner.network, learner.evaluated()).map_err(RunError::Check)?;
    Ok(measured.map_or(Answer::Stopped, Answer::Measured))
}

impl Session<'_> {
    /// Measures the network; returns whether it is the best so far. A check that is asked to stop measures
    /// nothing, and is made when the run goes on.
    pub(super) fn check(&mut self, done: u64) -> Result<bool, RunError> {
        let Some((by, top1)) = self.measure(done, true)? else { return Ok(false) };
        let improved = self.best.is_none_or(|best| top1 > best.top1);
        if improved {
            let epoch = self.plan.epochs_done(done);
            self.best = Some(Best { by, top1, epoch, step: Some(done) });
        }
        Ok(improved)
    }

    /// Makes the check with which the run was stopped after `done` steps.
    pub(super) fn make_up_for_check(&mut self, done: u64) -> Result<(), RunError> {
        let improved = self.check(done)?;
        if self.unchecked.is_none() {
            self.save(done)?;
        }
        if improved {
            self.folder.mark_best(&self.newest)?;
        }
        Ok(())
    }

    /// Measures how often the other crop of an image is found and, with `labels`, the k-NN accuracy. Returns
    /// the figure that chooses the best network, in percent; None if there is none, or it was asked to stop.
    pub(super) fn measure(
        &mut self,
        done: u64,
        labels: bool,
    ) -> Result<Option<(Measure, f64)>, RunError> {
        self.unchecked = None;
        let is_any = self.retrieval.is_some() || (labels && self.knn.is_some());
        if !self.is_first() || !is_any {
            return Ok(None);
        }
        let began = Instant::now();
        self.observer.notice(&Event::Check { step: done, time: self.expected(labels) });
        let found = ask(&mut self.retrieval, &self.learner)?;
        let accuracy = match &found {
            Answer::Stopped => Answer::Stopped,
            _ if labels => ask(&mut self.knn, &self.learner)?,
            _ => Answer::Nothing,
        };
        if let Answer::Stopped = accuracy {
            self.unchecked = Some(done);
            return Ok(None);
        }
        if labels {
            self.check_time.1 = Some(began.elapsed());
        }
        let mut figure = None;
        if let Answer::Measured(found) = found {
            figure = Some((Measure::Retrieval, found.top1));
            self.note_retrieval(done, found)?;
        }
        if let Answer::Measured(accuracy) = accuracy {
            figure = Some((Measure::Knn, accuracy.top1));
            self.note_knn(done, accuracy)?;
        }
        Ok(figure)
    }

    /// How long a check will take: as the last one of its kind, or as was measured before the run.
    fn expected(&self, labels: bool) -> Option<Duration> {
        let (measured, last) = self.check_time;
        let before = measured.map(|time| if labels { time.each } else { time.first });
        last.filter(|_| labels).or(before).filter(|time| !time.is_zero())
    }

    fn note_retrieval(&mut self, done: u64, found: Retrieval) -> Result<(), RunError> {
        let epoch = self.plan.epochs_done(done);
        let (retrieval_images, retrieval_top1) = (found.images, found.top1);
        let figures = RetrievalMetrics { step: done, epoch, retrieval_images, retrieval_top1 };
        self.log.retrieval(&figures)?;
        self.observer.notice(&Event::Retrieval(&figures));
        self.found[usize::from(done > 0)] = Some(figures);
        Ok(())
    }

    fn note_knn(&mut self, done: u64, accuracy: KnnAccuracy) -> Result<(), RunError> {
        let figures = KnnMetrics {
            step: done,
            epoch: self.plan.epochs_done(done),
            knn_k: self.config.knn.k,
            knn_top1: accuracy.top1,
            knn_top5: accuracy.top5,
        };
        self.log.knn(&figures)?;
        self.observer.notice(&Event::Knn(&figures));
        self.last_knn = Some(figures);
        if done == 0 {
            self.first_knn = Some(figures);
        }
        Ok(())
    }
}
