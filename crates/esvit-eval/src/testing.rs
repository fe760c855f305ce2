//! What tests of several files need: a small network, images, and a source of them.

use std::sync::Arc;

use esvit_data::{Conversion, Image, SampleType, Source, SourceError};
use esvit_kernels::rng::Rng;
use esvit_nn::backbone::swin::SwinConfig;

use crate::labeled::LabeledSet;
use esvit_model::PretrainedBackbone;
use esvit_testing::{tiny_swin, untrained};

/// A network of two stages for images of 16 pixels, with random values of a seed.
pub(crate) fn backbone(seed: u64) -> PretrainedBackbone {
    untrained(&SwinConfig { img_size: 16, window_size: 2, ..tiny_swin() }, seed, 16)
}

/// 20 x 20 pixels of one color.
pub(crate) fn plain(color: [u8; 3]) -> Image {
    Image::new(20, 20, color.repeat(400)).unwrap()
}

/// Pixels of random colors.
pub(crate) fn noise(width: u32, height: u32, seed: u64) -> Image {
    let mut rng = Rng::new(seed, [0; 3]);
    let pixels = (0..3 * width * height).map(|_| rng.below(256) as u8);
    Image::new(width, height, pixels.collect()).unwrap()
}

/// Named images with their classes; one without pixels cannot be read.
#[derive(Default)]
pub(crate) struct Images {
    pub(crate) classes: Vec<String>,
    pub(crate) list: Vec<(String, Option<u32>, Option<Image>)>,
}

impl Images {
    /// Images called `0`, `1`, ... of classes called `class 0`, `class 1`, ...
    pub(crate) fn labeled(images: Vec<(u32, Image)>) -> Self {
        let classes = images.iter().map(|(class, _)| class + 1).max().unwrap_or(0);
        let list = images.into_iter().enumerate();
        Self {
            classes: (0..classes).map(|class| format!("class {class}")).collect(),
            list: list
                .map(|(i, (class, image))| (i.to_string(), Some(class), Some(image)))
                .collect(),
        }
    }

    pub(crate) fn set(self) -> LabeledSet {
        LabeledSet::all(Arc::new(self))
    }
}

impl Source for Images {
    fn len(&self) -> usize {
        self.list.len()
    }

    fn name(&self, index: usize) -> String {
        self.list.get(index).map(|image| image.0.clone()).unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.list.get(index)?.1
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        let missing = SourceError::NoSuchImage { index, len: self.list.len() };
        self.list.get(index).and_then(|image| image.2.clone()).ok_or(missing)
    }
}

/// As many scans of 12 bits in files of 16: black, unless they are loaded with a range of their own.
pub(crate) struct Scans(pub(crate) usize);

impl Source for Scans {
    fn len(&self) -> usize {
        self.0
    }

    fn name(&self, index: usize) -> String {
        index.to_string()
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        self.load_as(index, &Conversion::default())
    }

    fn load_as(&self, _: usize, conversion: &Conversion) -> Result<Image, SourceError> {
        let has_range = conversion.levels.chosen(SampleType::Uint16).is_some();
        Ok(plain(if has_range { [255; 3] } else { [0; 3] }))
    }
}
