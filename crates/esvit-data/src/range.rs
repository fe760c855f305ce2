//! What becomes black and white in images of more than 8 bits, chosen from a sample of them.

use std::collections::BTreeMap;
use std::fmt;

use crate::{Levels, SampleType, Source, counted, evenly_spaced};

/// Most images that are looked at.
const IMAGES: usize = 64;

/// Most values of an image that are looked at.
const VALUES: usize = 1 << 14;

/// Shares of the values that are black and white. What is beyond is a speck of dust or a dead pixel.
const SHARES: [f64; 2] = [0.001, 0.999];

/// Images that use less than this share of their type's range are scaled.
const USED: f64 = 0.5;

/// How far floating-point values may leave 0..=1 and are not scaled.
const OVERSHOOT: f64 = 0.05;

/// What was chosen for a set of images.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChosenRange {
    /// The levels.
    pub levels: Levels,
    /// Number of images by which they were chosen, for every type that has some of its own.
    pub images: Vec<(SampleType, usize)>,
}

impl ChosenRange {
    /// Looks at up to 64 images, evenly spaced over the set. Where those of more than 8 bits use less
    /// than half of their type's range, or floating-point values leave 0..=1, the 0.1 and 99.9
    /// percentiles of their values become black and white. Images that cannot be read do not count.
    pub fn of(source: &dyn Source) -> Self {
        let mut found: BTreeMap<SampleType, (usize, Vec<f64>)> = BTreeMap::new();
        for index in evenly_spaced(source.len(), IMAGES) {
            if let Ok(Some((kind, values))) = source.deep_values(index, VALUES) {
                let (images, all) = found.entry(kind).or_default();
                *images += 1;
                all.extend(values.into_iter().filter(|value| value.is_finite()));
            }
        }
        let mut chosen = Self::default();
        for (kind, (images, mut values)) in found {
            if let Some(levels) = levels(kind, &mut values) {
                chosen.levels = chosen.levels.with(kind, levels);
                chosen.images.push((kind, images));
            }
        }
        chosen
    }
}

/// Black and white for some values of a type, unless these are its whole range.
fn levels(kind: SampleType, values: &mut [f64]) -> Option<[f64; 2]> {
    let last = values.len().checked_sub(1)?;
    values.sort_unstable_by(f64::total_cmp);
    let [low, high] = SHARES.map(|share| values[(share * last as f64).round() as usize]);
    let [least, most] = kind.full();
    let outside = kind == SampleType::Float && (low < -OVERSHOOT || high > 1.0 + OVERSHOOT);
    let scaled = outside || high - low < USED * (most - least);
    let [low, high] = match kind {
        // Numbers that people can read.
        SampleType::Float => {
            [low, high].map(|value| format!("{value:.5e}").parse().unwrap_or(value))
        }
        _ => [low, high],
    };
    (scaled && low < high).then_some([low, high])
}

/// One line, empty if nothing was chosen.
impl fmt::Display for ChosenRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (kind, images)) in self.images.iter().enumerate() {
            let [low, high] = self.levels.of(*kind);
            let comma = if place > 0 { "; " } else { "" };
            let name = kind.name();
            write!(
                f,
                "{comma}{name} images: {low} becomes black and {high} white, the 0.1 and 99.9 \
                 percentiles of {} (`data.range`)",
                counted(*images, "image")
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Image, SourceError};

    /// Images of values each.
    struct Deep(Vec<Option<(SampleType, Vec<f64>)>>);

    impl Source for Deep {
        fn len(&self) -> usize {
            self.0.len()
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
        fn load(&self, _: usize) -> Result<Image, SourceError> {
            Ok(Image::filled(1, 1, [0; 3]))
        }
        fn deep_values(
            &self,
            index: usize,
            most: usize,
        ) -> Result<Option<(SampleType, Vec<f64>)>, SourceError> {
            assert!(most > 1000);
            Ok(self.0[index].clone())
        }
    }

    fn ramp(low: i32, high: i32, scale: f64) -> Vec<f64> {
        (low..=high).map(|value| f64::from(value) * scale).collect()
    }

    fn chosen(kind: SampleType, values: Vec<f64>) -> Option<[f64; 2]> {
        ChosenRange::of(&Deep(vec![Some((kind, values))])).levels.chosen(kind)
    }

    #[test]
    fn sets_that_use_a_part_of_their_range_are_scaled() {
        use SampleType::{Float, Int16, Uint16};
        assert_eq!(chosen(Uint16, ramp(0, 4095, 1.0)), Some([4.0, 4091.0]));
        assert_eq!(chosen(Uint16, ramp(0, 1000, 32.0)), Some([32.0, 31968.0]));
        assert_eq!(chosen(Uint16, ramp(0, 1000, 65.0)), None);
        assert_eq!(chosen(Int16, ramp(-1000, 3000, 1.0)), Some([-996.0, 2996.0]));
        assert_eq!(chosen(Float, ramp(0, 1000, 0.255)), Some([0.255, 254.745]));
        assert_eq!(chosen(Float, ramp(0, 1000, 0.001)), None);
        assert_eq!(chosen(Float, ramp(-20, 1030, 0.001)), None);
        assert_eq!(chosen(Float, ramp(-1000, 1000, 0.001)), Some([-0.998, 0.998]));
        // Nothing to tell black from white by.
        assert_eq!(chosen(Uint16, vec![7.0; 9]), None);
        assert_eq!(chosen(Uint16, Vec::new()), None);
    }

    #[test]
    fn a_sample_of_the_set_is_looked_at_and_each_type_has_its_own() {
        let deep = |kind, value: f64| Some((kind, vec![0.0, value]));
        let mut images: Vec<_> = (0..1000).map(|_| deep(SampleType::Uint16, 100.0)).collect();
        // Place 7 of 64 is image 109.
        images[109] = deep(SampleType::Float, 20.0);
        images[110] = deep(SampleType::Int16, 20.0);
        images[125] = None;
        let chosen = ChosenRange::of(&Deep(images));
        assert_eq!(chosen.images, [(SampleType::Uint16, 62), (SampleType::Float, 1)]);
        assert_eq!(chosen.levels.to_string(), "uint16 0..100, float 0..20");
        let line = chosen.to_string();
        assert!(line.starts_with("uint16 images: 0 becomes black and 100 white"), "{line}");
        assert_eq!(ChosenRange::of(&Deep(vec![None])).to_string(), "");
        assert_eq!(ChosenRange::of(&Deep(Vec::new())), ChosenRange::default());
    }
}
