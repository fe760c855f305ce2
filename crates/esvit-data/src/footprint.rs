//! The memory that the images of a set take once they are decoded.

use esvit_kernels::pool;

use crate::pixels::CHANNELS;
use crate::{Source, evenly_spaced};

/// Most images that are looked at.
const IMAGES: usize = 16;

/// How much more all may take than a sample of them says.
const SLACK: f64 = 1.25;

/// Bytes of all images of a source, each shrunk to a shorter side of `max_side` pixels (0 for none): what a
/// cache takes that holds them all. It is estimated from 16 of them, and a quarter more than these say where there
/// are others; `None` if none of them can be read.
pub fn decoded_bytes(source: &dyn Source, max_side: u32) -> Option<f64> {
    let places: Vec<usize> = evenly_spaced(source.len(), IMAGES).collect();
    let of_image = &|&index: &usize| -> Option<f64> {
        let image = source.load(index).ok()?;
        let shorter = image.width().min(image.height());
        let scale = match max_side {
            0 => 1.0,
            side => (f64::from(side) / f64::from(shorter)).min(1.0),
        };
        let pixels = f64::from(image.width()) * f64::from(image.height());
        Some(CHANNELS as f64 * pixels * scale.powi(2))
    };
    let found: Vec<f64> = std::thread::scope(|scope| {
        let parts = places.chunks(places.len().div_ceil(pool::threads()).max(1));
        let all = |part: &[usize]| part.iter().filter_map(of_image).collect::<Vec<f64>>();
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || all(part))).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
    });
    let mean = found.iter().sum::<f64>() / found.len() as f64;
    let slack = if source.len() > IMAGES { SLACK } else { 1.0 };
    (!found.is_empty()).then(|| slack * mean * source.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Image, InMemory};

    fn set(sides: &[[u32; 2]]) -> InMemory {
        let mut source = InMemory::new(Vec::new());
        for (index, &[width, height]) in sides.iter().enumerate() {
            source.push(index.to_string(), None, Image::filled(width, height, [1; 3]));
        }
        source
    }

    #[test]
    fn images_count_with_the_size_that_they_have_in_the_cache() {
        let source = set(&[[40, 30], [10, 20]]);
        assert_eq!(decoded_bytes(&source, 0), Some(3.0 * (1200.0 + 200.0)));
        assert_eq!(decoded_bytes(&source, 15), Some(3.0 * (300.0 + 200.0)));
        assert_eq!(decoded_bytes(&source, 40), decoded_bytes(&source, 0));
        assert_eq!(decoded_bytes(&set(&[]), 0), None);
        // Of 32 every other one is looked at.
        let mut sides = vec![[10, 10]; 32];
        sides[1] = [1000, 1000];
        assert_eq!(decoded_bytes(&set(&sides), 0), Some(1.25 * 32.0 * 300.0));
    }
}
