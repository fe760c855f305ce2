//! What the settings of a run leave to the machine: how a step is cut, and the precision.

use esvit_data::{Source, counted};
use esvit_nn::ops::Precision;
use esvit_nn::{Collective, Device, Tensor};

use crate::config::Config;
use crate::memory;

/// The settings with a batch that the images fill, a size of micro-batches and a precision. Fewer images
/// than a batch make a smaller one.
pub fn settled(config: &Config, source: &dyn Source, world: usize) -> Config {
    let mut config = config.clone();
    let images = source.len().saturating_mul(config.data.repeat as usize) / world * world;
    if (1..config.train.batch_size).contains(&images) {
        (config.train.batch_size, config.train.micro_batch) = (images, None);
    }
    if config.train.micro_batch.is_none() {
        config.train.micro_batch = Some(memory::micro_batch(&config, world, memory::available()));
    }
    config.train.precision = config.train.precision().into();
    config
}

/// Says that a step has fewer images than it was given, where there are no more.
pub fn batch_in_words(given: &Config, settled: &Config) -> Option<String> {
    let [given, batch] = [given, settled].map(|config| config.train.batch_size);
    (batch < given).then(|| {
        format!(
            "a step has {} instead of {given} (`train.batch_size`): there are no more",
            counted(batch, "image")
        )
    })
}

/// The precision of the first process, which all take: on another machine `auto` may mean another one.
pub(super) fn precision_of_first(own: Precision, collective: &dyn Collective) -> Precision {
    let number = |precision: Precision| f32::from(precision as u8);
    let first = collective.broadcast(Tensor::full(number(own), [1], &Device::Cpu), 0).item();
    Precision::ALL.into_iter().find(|&precision| number(precision) == first).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PrecisionChoice;
    use esvit_data::{Image, InMemory};
    use esvit_testing::Pair;

    #[test]
    fn the_precision_is_decided() {
        let mut source = InMemory::new(Vec::new());
        for index in 0..4 {
            source.push(index.to_string(), None, Image::new(8, 8, vec![0; 192]).unwrap());
        }
        let mut config = Config::default();
        (config.train.batch_size, config.train.micro_batch) = (2, Some(2));
        for (given, expected) in [
            (PrecisionChoice::Auto, Precision::auto()),
            (PrecisionChoice::F32, Precision::F32),
            (PrecisionChoice::Bf16, Precision::Bf16),
            (PrecisionChoice::Bf16x3, Precision::Bf16x3),
        ] {
            config.train.precision = given;
            assert_eq!(settled(&config, &source, 1).train.precision, expected.into());
        }
    }

    #[test]
    fn processes_take_the_precision_of_the_first() {
        for [first, second] in
            [[Precision::Bf16, Precision::F32], [Precision::F32, Precision::Bf16]]
        {
            let found = Pair::run(|pair| precision_of_first([first, second][pair.rank()], &*pair));
            assert_eq!(found, [first; 2]);
        }
    }
}
