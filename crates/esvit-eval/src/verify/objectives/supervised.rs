//! Supervised training: label smoothing, mixup and CutMix, and the cross-entropy to mixed labels.

use std::ops::Range;

use esvit_nn::{Tape, Tensor};
use esvit_train::mixup;
use esvit_train::objective::supervised::{cross_entropy, one_hot};
use serde::Deserialize;

use super::super::checks::{Checks, LOSS};
use super::super::{Case, CaseError, Result};

/// Of the share of a mixed image, relative.
const SHARE: f64 = 1e-6;

#[derive(Deserialize)]
struct Settings {
    mode: Mode,
    batch: usize,
    classes: usize,
    smoothing: f64,
    loss: f64,
    drawn_lambda: Option<f64>,
    lambda: Option<f64>,
    /// Of CutMix.
    #[serde(rename = "box_y0_y1_x0_x1")]
    pasted: Option<[usize; 4]>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    LabelSmoothing,
    Mixup,
    Cutmix,
}

impl Settings {
    /// The rows and columns of CutMix's box.
    fn pasted(&self, [height, width]: [usize; 2]) -> Result<[Range<usize>; 2]> {
        let inside = |[top, bottom, left, right]: &[usize; 4]| {
            top <= bottom && *bottom <= height && left <= right && *right <= width
        };
        let missing = || CaseError::Settings("`box_y0_y1_x0_x1` is no box of the images".into());
        let [top, bottom, left, right] = self.pasted.filter(inside).ok_or_else(missing)?;
        Ok([top..bottom, left..right])
    }

    /// Mixed images, and the share that each has of itself.
    fn mixed(&self, images: &Tensor) -> Result<(Tensor, f64)> {
        let [_, _, height, width] = images.dims();
        if self.mode == Mode::Cutmix {
            return Ok(mixup::pasted(images, self.pasted([height, width])?));
        }
        let missing = || CaseError::Settings("`drawn_lambda` is missing".into());
        let share = self.drawn_lambda.ok_or_else(missing)?;
        Ok((mixup::blended(images, share), share))
    }
}

pub(super) fn run(case: &Case) -> Result<Checks<'_>> {
    let settings: Settings = case.settings()?;
    let Settings { mode, batch, classes, smoothing, .. } = settings;
    let tape = Tape::new();
    let logits = tape.watch(case.shaped("logits", [batch, classes])?);
    let label = |label: i64| u32::try_from(label).ok().filter(|&label| (label as usize) < classes);
    let labels: Option<Vec<u32>> = case.integers("labels")?.into_iter().map(label).collect();
    let labels = labels.filter(|labels| labels.len() == batch);
    let wrong = || CaseError::Settings(format!("`labels` are no {batch} classes of {classes}"));
    let mut targets = one_hot(&labels.ok_or_else(wrong)?, classes, smoothing, &case.device);
    let mut checks = Checks::of(case);
    if mode != Mode::LabelSmoothing {
        let images = case.load::<4>("images")?;
        let (mixed, share) = settings.mixed(&images)?;
        checks.value("mixed", &mixed)?;
        let lambda = settings.lambda.unwrap_or(f64::NAN);
        checks.number("lambda", share, lambda, SHARE);
        let shares = mixup::matrix(batch, share);
        targets = Tensor::new(shares, [batch, batch], &case.device).matmul(targets);
        checks.value("target", &targets)?;
    }
    let loss = cross_entropy(logits.clone(), targets);
    checks.number("loss", f64::from(loss.item()), settings.loss, LOSS);
    checks.gradient("grad_logits", tape.backward(&loss).of(&logits))?;
    Ok(checks)
}
