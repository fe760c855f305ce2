//! A source of images in memory.

use crate::{Image, Source, SourceError};

/// Decoded images in memory.
#[derive(Debug, Clone, Default)]
pub struct InMemory {
    samples: Vec<Sample>,
    classes: Vec<String>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    label: Option<u32>,
    image: Image,
}

impl InMemory {
    /// An empty source whose labels are indices into `classes` (empty: unlabeled).
    pub fn new(classes: Vec<String>) -> Self {
        Self { samples: Vec::new(), classes }
    }

    /// Adds an image. A label outside the classes is dropped.
    pub fn push(&mut self, name: impl Into<String>, label: Option<u32>, image: Image) {
        let label = label.filter(|&label| (label as usize) < self.classes.len());
        self.samples.push(Sample { name: name.into(), label, image });
    }

    /// Image `index`, borrowed.
    pub fn image(&self, index: usize) -> Option<&Image> {
        self.samples.get(index).map(|sample| &sample.image)
    }
}

impl Source for InMemory {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn name(&self, index: usize) -> String {
        self.samples.get(index).map(|sample| sample.name.clone()).unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.samples.get(index)?.label
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        self.image(index)
            .cloned()
            .ok_or(SourceError::NoSuchImage { index, len: self.samples.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_come_back_with_names_and_labels_of_known_classes() {
        let mut source = InMemory::new(vec!["cat".into(), "dog".into()]);
        for (value, label) in [(1, Some(1)), (2, Some(2)), (3, None)] {
            source.push(format!("p{value}"), label, Image::filled(1, 1, [value; 3]));
        }
        assert_eq!((source.len(), source.is_empty()), (3, false));
        assert_eq!([0, 1, 2, 3].map(|i| source.label(i)), [Some(1), None, None, None]);
        assert_eq!([2, 3].map(|i| source.name(i)), ["p3", ""]);
        assert_eq!(source.load(1).unwrap().pixel(0, 0), Some([2; 3]));
        let error = source.load(3).unwrap_err();
        assert_eq!(error.to_string(), "there is no image 3: the source has 3");
        assert!(InMemory::default().is_empty());
    }
}
