//! A decoded image: 8-bit RGB, rows from top to bottom, pixels interleaved.

/// Bytes per pixel: red, green, blue.
pub(crate) const CHANNELS: usize = 3;

/// An 8-bit RGB image, `[height, width, 3]`, with at least one pixel.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

/// Invalid sizes of an image or crop.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageError {
    /// Width or height is zero.
    #[error(
        "an image of {width}x{height} has no pixels\nhint: give a width and a height of at least 1"
    )]
    Empty {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The buffer does not hold `width * height * 3` bytes.
    #[error("{width}x{height} RGB needs {need} bytes, but the buffer holds {got}")]
    Length {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes needed.
        need: u64,
        /// Bytes given.
        got: u64,
    },
    /// A crop reaches outside the image.
    #[error(
        "a crop of {crop_width}x{crop_height} at ({left}, {top}) reaches outside the image of {width}x{height}"
    )]
    Outside {
        /// Left edge of the crop.
        left: u32,
        /// Top edge of the crop.
        top: u32,
        /// Width of the crop.
        crop_width: u32,
        /// Height of the crop.
        crop_height: u32,
        /// Width of the image.
        width: u32,
        /// Height of the image.
        height: u32,
    },
}

impl Image {
    /// An image from its bytes, `[height, width, 3]` row-major; an error for another length.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::Empty { width, height });
        }
        // At most 3 * 2^64, hence 128 bits.
        let need = u128::from(width) * u128::from(height) * CHANNELS as u128;
        if need != pixels.len() as u128 {
            let need = u64::try_from(need).unwrap_or(u64::MAX);
            return Err(ImageError::Length { width, height, need, got: pixels.len() as u64 });
        }
        Ok(Self { width, height, pixels })
    }

    /// An image of one color; width and height must be at least 1.
    pub(crate) fn filled(width: u32, height: u32, color: [u8; 3]) -> Self {
        let count = width as usize * height as usize;
        let pixels = match color {
            [r, g, b] if r == g && g == b => vec![r; count * CHANNELS],
            _ => color.repeat(count),
        };
        Self { width, height, pixels }
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// All bytes, `[height, width, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// All bytes, mutable.
    pub fn pixels_mut(&mut self) -> &mut [u8] {
        &mut self.pixels
    }

    /// The color at column `x` of row `y`, or `None` outside the image.
    pub fn pixel(&self, x: u32, y: u32) -> Option<[u8; 3]> {
        if x >= self.width || y >= self.height {
            return None;
        }
        let at = (y as usize * self.width as usize + x as usize) * CHANNELS;
        Some([self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]])
    }

    /// The part of `width` x `height` pixels whose top left corner is (`left`, `top`).
    pub fn crop(&self, left: u32, top: u32, width: u32, height: u32) -> Result<Self, ImageError> {
        self.check_part(left, top, width, height)?;
        let (first, length) = (left as usize * CHANNELS, width as usize * CHANNELS);
        let pixels = self
            .rows()
            .skip(top as usize)
            .take(height as usize)
            .flat_map(|row| &row[first..first + length])
            .copied()
            .collect();
        Ok(Self { width, height, pixels })
    }

    /// Tells whether a part has pixels and lies inside.
    pub(crate) fn check_part(
        &self,
        left: u32,
        top: u32,
        width: u32,
        height: u32,
    ) -> Result<(), ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::Empty { width, height });
        }
        let fits = |start: u32, length: u32, limit: u32| {
            start.checked_add(length).is_some_and(|end| end <= limit)
        };
        if !fits(left, width, self.width) || !fits(top, height, self.height) {
            return Err(ImageError::Outside {
                left,
                top,
                crop_width: width,
                crop_height: height,
                width: self.width,
                height: self.height,
            });
        }
        Ok(())
    }

    /// Bytes of one row.
    pub(crate) fn stride(&self) -> usize {
        self.width as usize * CHANNELS
    }

    /// The rows from top to bottom.
    pub(crate) fn rows(&self) -> std::slice::ChunksExact<'_, u8> {
        self.pixels.chunks_exact(self.stride())
    }

    /// The rows from top to bottom, mutable.
    pub(crate) fn rows_mut(&mut self) -> std::slice::ChunksExactMut<'_, u8> {
        let stride = self.stride();
        self.pixels.chunks_exact_mut(stride)
    }
}

/// Prints the size only.
impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({}x{})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_checked() {
        assert!(Image::new(2, 1, vec![0; 6]).is_ok());
        assert!(matches!(
            Image::new(2, 1, vec![0; 5]),
            Err(ImageError::Length { need: 6, got: 5, .. })
        ));
        assert!(matches!(Image::new(0, 1, vec![]), Err(ImageError::Empty { .. })));
        assert!(matches!(Image::new(1, 0, vec![]), Err(ImageError::Empty { .. })));
        assert!(Image::new(u32::MAX, u32::MAX, vec![]).is_err());
        assert_eq!(format!("{:?}", Image::filled(3, 2, [0; 3])), "Image(3x2)");
    }

    #[test]
    fn crop_takes_the_named_pixels() {
        let image = Image::new(3, 2, (0..18).collect()).unwrap();
        let crop = image.crop(1, 1, 2, 1).unwrap();
        assert_eq!(crop.pixels(), &[12, 13, 14, 15, 16, 17]);
        assert_eq!(image.pixel(2, 1), Some([15, 16, 17]));
        assert_eq!(image.pixel(3, 1), None);
    }

    #[test]
    fn crop_outside_is_an_error() {
        let image = Image::filled(3, 2, [1, 2, 3]);
        assert!(matches!(image.crop(2, 0, 2, 1), Err(ImageError::Outside { .. })));
        assert!(matches!(image.crop(u32::MAX, 0, 2, 1), Err(ImageError::Outside { .. })));
        assert!(matches!(image.crop(0, 0, 0, 1), Err(ImageError::Empty { .. })));
        assert!(image.crop(2, 1, 1, 1).is_ok());
        for (left, top, width, height) in
            [(3, 0, 1, 1), (0, 2, 1, 1), (0, 1, 1, 2), (1, 0, u32::MAX, 1)]
        {
            let error = image.crop(left, top, width, height).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "a crop of {width}x{height} at ({left}, {top}) reaches outside the image of 3x2"
                )
            );
        }
    }
}
