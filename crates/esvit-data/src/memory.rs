//! Pictures that are already decoded.

use crate::{Picture, Source, SourceError};

/// A source of decoded pictures in memory.
#[derive(Debug, Clone, Default)]
pub struct InMemory {
    samples: Vec<Sample>,
    classes: Vec<String>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    label: Option<u32>,
    picture: Picture,
}

impl InMemory {
    /// An empty source whose labels will index `classes` (empty: unlabelled).
    pub fn new(classes: Vec<String>) -> Self {
        Self { samples: Vec::new(), classes }
    }

    /// Adds a picture. A label outside the classes is dropped.
    pub fn push(&mut self, name: impl Into<String>, label: Option<u32>, picture: Picture) {
        let label = label.filter(|&label| (label as usize) < self.classes.len());
        self.samples.push(Sample { name: name.into(), label, picture });
    }

    /// Picture `index` without a copy.
    pub fn picture(&self, index: usize) -> Option<&Picture> {
        self.samples.get(index).map(|sample| &sample.picture)
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

    fn load(&self, index: usize) -> Result<Picture, SourceError> {
        self.picture(index)
            .cloned()
            .ok_or(SourceError::NoSuchPicture { index, len: self.samples.len() })
    }
}
