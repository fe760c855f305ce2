//! Crops of a batch as 8-bit pixels, which the device of the network normalizes.

use std::ops::Range;

use crate::View;
use crate::augment::ErasedRect;
use crate::pixels::CHANNELS;

/// Crops of several images, all of one size, before normalization.
#[derive(Debug, Clone, PartialEq)]
pub struct Crops {
    /// Side in pixels.
    pub side: usize,
    /// `[crops, side, side, 3]`.
    pub pixels: Vec<u8>,
    /// Noise that replaces normalized values, by crop.
    erased: Vec<Option<ErasedRect>>,
}

impl Crops {
    /// Black crops.
    pub fn new(count: usize, side: usize) -> Self {
        Self { side, pixels: vec![0; count * side * side * CHANNELS], erased: vec![None; count] }
    }

    /// Number of values of a crop.
    fn len_of_crop(&self) -> usize {
        self.side * self.side * CHANNELS
    }

    /// Sets a crop.
    ///
    /// # Panics
    /// When there is no such crop, or the view has another size.
    pub fn set(&mut self, crop: usize, view: &View) {
        let len = self.len_of_crop();
        self.pixels[crop * len..(crop + 1) * len].copy_from_slice(view.image.pixels());
        self.erased[crop] = view.erased.clone();
    }

    /// The pixels of some crops.
    pub fn pixels_of(&self, crops: Range<usize>) -> &[u8] {
        let len = self.len_of_crop();
        &self.pixels[crops.start * len..crops.end * len]
    }

    /// Calls `write(start, values)` for all rows of noise in some crops: they replace the values from
    /// `start` on of the normalized `[crops.len(), 3, side, side]`.
    pub fn for_each_erased(&self, crops: Range<usize>, mut write: impl FnMut(usize, &[f32])) {
        for (crop, erased) in self.erased[crops].iter().enumerate() {
            let Some(erased) = erased else { continue };
            erased.for_each_row(|x, y, channel, values| {
                write(((crop * CHANNELS + channel) * self.side + y) * self.side + x, values);
            });
        }
    }
}
