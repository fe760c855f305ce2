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

/// What is said of a step whose images go through a network with batch normalization in several
/// micro-batches, each with statistics of its own (those of `world` processes have the same), or of one image.
pub fn split_statistics(config: &Config, world: usize) -> Option<String> {
    let (batch, together) = (config.train.batch_size, config.train.micro_batch() * world);
    match together {
        _ if !config.sees_all_at_once() => None,
        1 if batch == 1 => Some(
            "batch normalization has the statistics of a single image, in which it can all but vanish\n\
             hint: raise `train.batch_size`"
                .into(),
        ),
        _ if together >= batch => None,
        _ => Some(format!(
            "batch normalization has the statistics of {} at a time, of the {batch} of a step \
             (`train.micro_batch`): the network learns otherwise than with those of all, and worse the \
             fewer they are\n\
             hint: raise `train.micro_batch`, or `--memory` if it was chosen by that, or lower \
             `train.batch_size`",
            counted(together, "image")
        )),
    }
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
    fn fewer_images_are_counted() {
        let of = |batch_size| {
            let mut config = Config::default();
            config.train.batch_size = batch_size;
            config
        };
        let said = |batch| batch_in_words(&of(8), &of(batch)).unwrap_or_default();
        let of_setting = "instead of 8 (`train.batch_size`): there are no more";
        assert_eq!(said(1), format!("a step has 1 image {of_setting}"));
        assert_eq!(said(3), format!("a step has 3 images {of_setting}"));
        assert_eq!(said(8), "");
    }

    /// Those of all processes are shared.
    #[test]
    fn statistics_of_a_part_of_a_step() {
        let config = |arch: &str| {
            let arch = format!("model.arch={arch}");
            let texts = [
                "objective.name=mocov2",
                "views.global_size=32",
                "views.local_counts=[0]",
                "train.batch_size=8",
                "train.micro_batch=2",
                &arch,
            ];
            let layers = texts.map(|text| crate::config_text::parse_override(text).unwrap());
            Config::resolve(layers.into()).unwrap()
        };
        let said = |arch: &str, world: usize| split_statistics(&config(arch), world);
        for arch in ["resnet_micro", "cvt_micro"] {
            for (world, images) in [(1, 2), (2, 4)] {
                let text = said(arch, world).unwrap();
                let part = format!("of {images} images at a time, of the 8 of a step");
                assert!(text.contains(&part), "{text}");
            }
            assert_eq!(said(arch, 4), None);
        }
        for arch in ["swin_micro", "vit_micro", "pvt_micro", "vil_micro"] {
            assert_eq!(said(arch, 1), None, "{arch}");
        }
        let mut one = config("resnet_micro");
        (one.train.batch_size, one.train.micro_batch) = (1, None);
        assert!(split_statistics(&one, 1).unwrap().contains("of a single image"));
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
