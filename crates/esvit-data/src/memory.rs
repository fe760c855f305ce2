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
