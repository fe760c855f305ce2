//! Stored samples and their way to 8-bit RGB.

use super::DecodeError;
use crate::conversion::{Conversion, SampleType};
use crate::{Background, Levels, VisibleColors};

/// Floating-point images without levels may leave 0..=1 by as much as filters overshoot.
const FLOAT_TOLERATED: [f64; 2] = [-1.0, 2.0];

/// Samples of an image as its file stores them, pixel by pixel.
#[derive(Debug)]
pub(super) enum Samples {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    F64(Vec<f64>),
}

/// Whether and how the last channel is alpha.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alpha {
    None,
    /// Colors are those of the opaque pixel.
    Straight,
    /// Colors are multiplied by alpha (TIFF's associated alpha).
    Associated,
}

/// A decoded image before its conversion.
#[derive(Debug)]
pub(super) struct Raster {
    pub(super) width: u32,
    pub(super) height: u32,
    /// Gray or RGB, and then alpha.
    pub(super) channels: usize,
    pub(super) alpha: Alpha,
    /// Whether the smallest value is white.
    pub(super) inverted: bool,
    pub(super) samples: Samples,
}

impl Samples {
    /// The type, if it has more than 8 bits.
    pub(super) fn kind(&self) -> Option<SampleType> {
        match self {
            Self::U8(_) | Self::I8(_) => None,
            Self::U16(_) => Some(SampleType::Uint16),
            Self::I16(_) => Some(SampleType::Int16),
            Self::U32(_) => Some(SampleType::Uint32),
            Self::I32(_) => Some(SampleType::Int32),
            Self::F32(_) | Self::F64(_) => Some(SampleType::Float),
        }
    }
}

/// Calls a function that is generic over the type of the samples.
macro_rules! with_samples {
    ($samples:expr, $values:ident => $call:expr) => {
        match $samples {
            Samples::U8($values) => $call,
            Samples::I8($values) => $call,
            Samples::U16($values) => $call,
            Samples::I16($values) => $call,
            Samples::U32($values) => $call,
            Samples::I32($values) => $call,
            Samples::F32($values) => $call,
            Samples::F64($values) => $call,
        }
    };
}

impl Raster {
    /// `[height, width, 3]` in 8 bits. Transparent pixels show the background.
    pub(super) fn into_rgb8(self, conversion: &Conversion) -> Result<Vec<u8>, DecodeError> {
        match self.samples {
            Samples::U8(values) if self.channels == 3 && !self.inverted => Ok(values),
            Samples::U8(values) if self.channels == 1 && !self.inverted => {
                Ok(values.into_iter().flat_map(|gray| [gray; 3]).collect())
            }
            _ => {
                let ramp = self.ramp(conversion)?;
                with_samples!(&self.samples, values => self.convert(values, &ramp, conversion))
            }
        }
    }

    /// Up to about `most` color values of pixels that are not transparent, evenly spaced, with
    /// their type; `None` for 8 bits.
    pub(super) fn deep_values(&self, most: usize) -> Option<(SampleType, Vec<f64>)> {
        let kind = self.samples.kind()?;
        let values = with_samples!(&self.samples, values => self.some(values, most));
        Some((kind, values))
    }

    /// The visible colors, if there is alpha and not all is invisible.
    pub(super) fn visible_colors(
        &self,
        levels: &Levels,
    ) -> Result<Option<VisibleColors>, DecodeError> {
        if self.alpha == Alpha::None {
            return Ok(None);
        }
        let conversion = Conversion { levels: *levels, ..Conversion::default() };
        let ramp = self.ramp(&conversion)?;
        Ok(with_samples!(&self.samples, values => self.visible(values, &ramp)))
    }

    /// Drops alpha of 8 bits if it is zero everywhere: many programs leave the fourth byte of a
    /// BMP file unused.
    pub(super) fn drop_empty_alpha(&mut self) {
        let Samples::U8(values) = &mut self.samples else { return };
        let has_alpha = self.alpha != Alpha::None;
        if has_alpha && values.chunks_exact(self.channels).all(|pixel| pixel.ends_with(&[0])) {
            let mut at = 0..;
            values.retain(|_| {
                at.next().is_some_and(|at: usize| !(at + 1).is_multiple_of(self.channels))
            });
            (self.alpha, self.channels) = (Alpha::None, self.channels - 1);
        }
    }

    fn some<T: Copy + Into<f64>>(&self, values: &[T], most: usize) -> Vec<f64> {
        let colors = self.colors();
        let pixels = values.chunks_exact(self.channels);
        let every = (pixels.len() * colors).div_ceil(most.max(1)).max(1);
        pixels
            .step_by(every)
            .flat_map(|pixel| {
                let alpha = (self.alpha != Alpha::None).then(|| self.opacity(pixel[colors]));
                let unmultiply = if self.alpha == Alpha::Associated { alpha } else { None };
                let visible = alpha.is_none_or(|alpha| alpha > 0.0);
                let shown = if visible { &pixel[..colors] } else { &[] };
                shown.iter().map(move |&value| value.into() / unmultiply.unwrap_or(1.0))
            })
            .collect()
    }

    /// Number of channels that are colors.
    fn colors(&self) -> usize {
        self.channels - usize::from(self.alpha != Alpha::None)
    }

    /// Opacity that a value of alpha means.
    fn opacity(&self, value: impl Into<f64>) -> f64 {
        let [low, high] = match (&self.samples, self.samples.kind()) {
            (Samples::I8(_), _) => [-128.0, 127.0],
            (_, None) => [0.0, 255.0],
            (_, Some(kind)) => kind.full(),
        };
        ((value.into() - low) / (high - low)).clamp(0.0, 1.0)
    }

    /// How values become brightness. Values that have none are an error.
    fn ramp(&self, conversion: &Conversion) -> Result<Ramp, DecodeError> {
        let [low, high] = match (&self.samples, self.samples.kind()) {
            (Samples::I8(_), _) => [-128.0, 127.0],
            (_, None) => [0.0, 255.0],
            (_, Some(kind)) => conversion.levels.of(kind),
        };
        if self.samples.kind() == Some(SampleType::Float) {
            let (mut least, mut most, mut finite) = (f64::INFINITY, f64::NEG_INFINITY, true);
            let mut look = |value: f64| {
                finite &= value.is_finite();
                (least, most) = (least.min(value), most.max(value));
            };
            match &self.samples {
                Samples::F32(values) => values.iter().for_each(|&value| look(value.into())),
                Samples::F64(values) => values.iter().for_each(|&value| look(value)),
                _ => {}
            }
            if !finite {
                return Err(DecodeError::NotFinite);
            }
            let outside = least < FLOAT_TOLERATED[0] || most > FLOAT_TOLERATED[1];
            if outside && conversion.levels.chosen(SampleType::Float).is_none() {
                return Err(DecodeError::OutsideUnit { least, most });
            }
        }
        Ok(Ramp { low, scale: 255.0 / (high - low), inverted: self.inverted })
    }

    /// The color of the opaque pixel, and its opacity.
    fn straight<T: Copy + Into<f64>>(&self, pixel: &[T], ramp: &Ramp) -> ([f64; 3], f64) {
        let colors = self.colors();
        let alpha = self.opacity(pixel[colors]);
        let divisor = if self.alpha == Alpha::Associated && alpha > 0.0 { alpha } else { 1.0 };
        (rgb(&pixel[..colors], |value| ramp.at(value.into() / divisor)), alpha)
    }

    /// Mean and spread of the colors, weighted by opacity; `None` if nothing is visible.
    fn visible<T: Copy + Into<f64>>(&self, values: &[T], ramp: &Ramp) -> Option<VisibleColors> {
        let pixels = values.chunks_exact(self.channels);
        let count = pixels.len();
        let (mut sum, mut squares, mut weight) = ([0.0_f64; 3], 0.0_f64, 0.0_f64);
        for (color, alpha) in pixels.map(|pixel| self.straight(pixel, ramp)) {
            for (sum, value) in sum.iter_mut().zip(color) {
                *sum += value * alpha;
                squares += value * value * alpha;
            }
            weight += alpha;
        }
        (weight > 0.0).then(|| {
            let mean = sum.map(|sum| sum / weight);
            let variance = squares / weight - mean.iter().map(|mean| mean * mean).sum::<f64>();
            let spread = variance.max(0.0).sqrt();
            VisibleColors { mean, spread, transparency: 1.0 - weight / count as f64 }
        })
    }

    fn convert<T: Copy + Into<f64>>(
        &self,
        values: &[T],
        ramp: &Ramp,
        conversion: &Conversion,
    ) -> Result<Vec<u8>, DecodeError> {
        let pixels = values.chunks_exact(self.channels);
        if self.alpha == Alpha::None {
            let rgb = |pixel: &[T]| rgb(pixel, |value| ramp.at(value.into())).map(round);
            return Ok(pixels.flat_map(rgb).collect());
        }
        let background = match conversion.background {
            Background::Color(color) => color.map(f64::from),
            // Nothing is visible: middle gray.
            Background::Mean => self.visible(values, ramp).map_or([128.0; 3], |colors| colors.mean),
        };
        let shown = |pixel: &[T]| {
            let (color, alpha) = self.straight(pixel, ramp);
            let over = |c: usize| color[c] * alpha + background[c] * (1.0 - alpha);
            [over(0), over(1), over(2)].map(round)
        };
        Ok(pixels.flat_map(shown).collect())
    }
}

/// A linear map of values to brightness.
struct Ramp {
    low: f64,
    scale: f64,
    inverted: bool,
}

impl Ramp {
    /// Brightness, 0 to 255.
    fn at(&self, value: f64) -> f64 {
        let value = ((value - self.low) * self.scale).clamp(0.0, 255.0);
        if self.inverted { 255.0 - value } else { value }
    }
}

/// Gray becomes RGB.
fn rgb<T: Copy>(pixel: &[T], brightness: impl Fn(T) -> f64) -> [f64; 3] {
    match *pixel {
        [r, g, b] => [r, g, b].map(brightness),
        _ => [brightness(pixel[0]); 3],
    }
}

fn round(value: f64) -> u8 {
    value.round() as u8
}
