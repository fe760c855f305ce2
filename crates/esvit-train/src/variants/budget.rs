//! The same length for runs of several variants.

use std::sync::Arc;

use esvit_data::Source;
use esvit_nn::{Collective, Solo};

use crate::Config;
use crate::run::{RunError, run_length, settled};

/// Variants cannot be given the same length.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// A time does not show as many images of one set as of another.
    #[error(
        "`train.time` is {time}, and the variants have different images, of which all runs are to see \
         the same number\n\
         hint: give the length with `--steps` or `--epochs`"
    )]
    Time {
        /// The time.
        time: String,
    },
    /// The images cannot be loaded in batches.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Gives `other` the length of `first`. On the same images that is the same length. Where the images, or
/// how often an epoch shows each, differ, it is as many steps as see the same number of images. Of one
/// folder there may be fewer, where labels are learned.
///
/// # Errors
/// When the images differ and the length is a time.
pub fn share_budget(
    (first, source): (&Config, &Arc<dyn Source>),
    (other, other_source): (&mut Config, &Arc<dyn Source>),
) -> Result<(), BudgetError> {
    let is_same_set = first.data.path == other.data.path;
    let is_same_epoch =
        is_same_set && source.len() == other_source.len() && first.data.repeat == other.data.repeat;
    (other.train.epochs, other.train.steps, other.train.time) =
        (first.train.epochs, first.train.steps, first.train.time);
    if is_same_epoch || (is_same_set && first.train.epochs.is_none()) {
        return Ok(());
    }
    if let Some(time) = first.train.time {
        return Err(BudgetError::Time { time: time.to_string() });
    }
    let images = run_length(first, source, &solo())?.total_steps * batch(first, source);
    let batch = batch(other, other_source);
    (other.train.epochs, other.train.steps) = (None, Some(((images + batch / 2) / batch).max(1)));
    Ok(())
}

fn solo() -> Arc<dyn Collective> {
    Solo::shared()
}

/// Images of a step.
fn batch(config: &Config, source: &Arc<dyn Source>) -> u64 {
    settled(config, &**source, 1).train.batch_size as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::Time;
    use esvit_data::{Folders, Image, InMemory};

    fn images(count: usize) -> Arc<dyn Source> {
        let mut source = InMemory::new(Vec::new());
        for index in 0..count {
            source.push(index.to_string(), None, Image::new(1, 1, vec![0; 3]).unwrap());
        }
        Arc::new(source)
    }

    fn config(path: Option<&str>, batch: usize, repeat: u32) -> Config {
        let mut config = Config::default();
        config.data.path = path.and_then(|path| Folders::of(&[path.into()]));
        (config.data.repeat, config.train.batch_size) = (repeat, batch);
        (config.train.epochs, config.train.micro_batch) = (Some(3), Some(1));
        config
    }

    /// The length that `other` gets, as epochs and steps.
    fn shared(first: &Config, other: &Config, count: usize) -> (Option<u64>, Option<u64>) {
        let mut other = other.clone();
        share_budget((first, &images(20)), (&mut other, &images(count))).unwrap();
        (other.train.epochs, other.train.steps)
    }

    /// Three epochs of 20 images in steps of 4 are 60 images.
    #[test]
    fn every_run_sees_the_same_number_of_images() {
        let first = config(None, 4, 1);
        assert_eq!(shared(&first, &config(None, 8, 1), 20), (Some(3), None));
        assert_eq!(shared(&first, &config(None, 4, 5), 20), (None, Some(15)));
        assert_eq!(shared(&first, &config(Some("b"), 4, 1), 50), (None, Some(15)));
        assert_eq!(shared(&first, &config(Some("b"), 8, 1), 50), (None, Some(8)));
        // Of the same folder, without the images of others.
        assert_eq!(shared(&first, &config(None, 4, 1), 10), (None, Some(15)));
        // Fewer images than a step has make a smaller one.
        assert_eq!(shared(&first, &config(Some("b"), 8, 1), 3), (None, Some(20)));
    }

    #[test]
    fn steps_are_steps_on_the_same_images_and_times_are_times() {
        let mut first = config(None, 4, 1);
        (first.train.epochs, first.train.steps) = (None, Some(10));
        assert_eq!(shared(&first, &config(None, 8, 5), 20), (None, Some(10)));
        assert_eq!(shared(&first, &config(Some("b"), 8, 1), 50), (None, Some(5)));
        let time: Time = "2m".parse().unwrap();
        (first.train.steps, first.train.time) = (None, Some(time));
        let mut other = config(None, 4, 5);
        share_budget((&first, &images(20)), (&mut other, &images(20))).unwrap();
        assert_eq!((other.train.epochs, other.train.time), (None, Some(time)));
        let mut other = config(Some("b"), 4, 1);
        let error = share_budget((&first, &images(20)), (&mut other, &images(20))).unwrap_err();
        assert!(error.to_string().starts_with("`train.time` is 2m, and"), "{error}");
    }
}
