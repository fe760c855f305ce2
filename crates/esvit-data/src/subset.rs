//! Some of the images of a source.

use std::sync::Arc;

use crate::{Conversion, FileStamp, Image, Levels, SampleType, Source, SourceError, VisibleColors};

/// Images of a source in an order of one's own, with all of its classes (PyTorch's `Subset`).
#[derive(Clone)]
pub struct Subset {
    source: Arc<dyn Source>,
    images: Vec<usize>,
}

impl Subset {
    /// The images with these indices.
    pub fn new(source: Arc<dyn Source>, images: Vec<usize>) -> Self {
        Self { source, images }
    }

    /// Where an image is in the source: outside of it, if there is none.
    fn place(&self, index: usize) -> usize {
        self.images.get(index).copied().unwrap_or(usize::MAX)
    }

    /// The same for an image that is to be read.
    fn found(&self, index: usize) -> Result<usize, SourceError> {
        let len = self.images.len();
        self.images.get(index).copied().ok_or(SourceError::NoSuchImage { index, len })
    }
}

impl Source for Subset {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn name(&self, index: usize) -> String {
        self.source.name(self.place(index))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.source.label(self.place(index))
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }

    fn stamp(&self, index: usize) -> Option<FileStamp> {
        self.source.stamp(self.place(index))
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        self.source.load(self.found(index)?)
    }

    fn load_as(&self, index: usize, conversion: &Conversion) -> Result<Image, SourceError> {
        self.source.load_as(self.found(index)?, conversion)
    }

    fn deep_values(
        &self,
        index: usize,
        most: usize,
    ) -> Result<Option<(SampleType, Vec<f64>)>, SourceError> {
        self.source.deep_values(self.found(index)?, most)
    }

    fn visible_colors(
        &self,
        index: usize,
        levels: &Levels,
    ) -> Result<Option<VisibleColors>, SourceError> {
        self.source.visible_colors(self.found(index)?, levels)
    }

    fn notes(&self) -> Vec<String> {
        self.source.notes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeLimits, Folder, encode_png};

    #[test]
    fn some_images_are_those_of_the_source() {
        let place = tempfile::tempdir().unwrap();
        for (value, name) in [(1u8, "a/1.png"), (2, "a/2.png"), (3, "b/3.png"), (4, "c/4.png")] {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let image = Image::filled(u32::from(value), 2, [value; 3]);
            std::fs::write(path, encode_png(&image).unwrap()).unwrap();
        }
        let all = Arc::new(Folder::open(place.path(), &DecodeLimits::default()).unwrap());
        let some = Subset::new(all.clone(), vec![3, 1]);
        assert_eq!((some.len(), some.classes(), some.notes()), (2, all.classes(), all.notes()));
        for (index, place) in [(0, 3), (1, 1)] {
            assert_eq!(some.name(index), all.name(place));
            assert_eq!(some.label(index), all.label(place));
            assert_eq!(some.stamp(index), all.stamp(place));
            assert_eq!(some.load(index).unwrap(), all.load(place).unwrap());
            let usual = Conversion::default();
            let loaded = some.load_as(index, &usual).unwrap();
            assert_eq!(loaded, all.load_as(place, &usual).unwrap());
            assert!(some.deep_values(index, 9).unwrap().is_none());
        }
        // An image beyond its own is not one of the source's.
        assert_eq!((some.name(2), some.label(2), some.stamp(2)), (String::new(), None, None));
        let error = some.load(2).unwrap_err();
        assert_eq!(error.to_string(), "there is no image 2: the source has 2");
    }
}
