//! What is behind images that are cut out (icons, glyphs, silhouettes), chosen from a sample of them.
//!
//! The mean color of the visible pixels is a good background of a photograph, and hides what has one
//! color alone.

use std::fmt;

use crate::{Background, Levels, Source, evenly_spaced};

/// Most images that are looked at.
const IMAGES: usize = 64;
/// Images of less mean transparency are not cut out.
const CUT_OUT: f64 = 0.05;
/// Colors that are nearer than this, as red, green and blue from 0 to 255, look the same.
const NEAR: f64 = 24.0;
/// Fewer than one in so many images that cannot be seen are left as they are.
const ONE_IN: usize = 10;
/// Backgrounds to choose from; of those that are equally far, the last.
const BACKGROUNDS: [[u8; 3]; 3] = [[128; 3], [0; 3], [255; 3]];

/// The visible colors of an image with transparent pixels, red, green and blue from 0 to 255.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VisibleColors {
    /// Their mean, weighted by opacity.
    pub mean: [f64; 3],
    /// Root mean square of their distance from it.
    pub spread: f64,
    /// Mean transparency of the image, from 0 to 1.
    pub transparency: f64,
}

impl VisibleColors {
    /// Whether next to nothing is seen of the image before this background: it has one color, which is
    /// that of the background.
    pub fn are_hidden_by(&self, background: Background) -> bool {
        let behind = match background {
            Background::Mean => self.mean,
            Background::Color(color) => color.map(f64::from),
        };
        self.spread < NEAR && distance(self.mean, behind) < NEAR
    }
}

fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    (0..3).map(|channel| (a[channel] - b[channel]).powi(2)).sum::<f64>().sqrt()
}

/// The images of a sample of a set that are cut out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cutouts(Vec<VisibleColors>);

impl Cutouts {
    /// Looks at up to 64 images, evenly spaced over the set. Those that cannot be read and those
    /// without transparency do not count.
    pub fn of(source: &dyn Source, levels: &Levels) -> Self {
        let colors = |index| source.visible_colors(index, levels).ok().flatten();
        let found = evenly_spaced(source.len(), IMAGES).filter_map(colors);
        Self(found.filter(|colors| colors.transparency >= CUT_OUT).collect())
    }

    /// How many there are.
    pub fn images(&self) -> usize {
        self.0.len()
    }

    /// How many of them a background hides; 0 if they are fewer than a tenth.
    pub fn hidden_by(&self, background: Background) -> usize {
        let hidden = self.0.iter().filter(|colors| colors.are_hidden_by(background)).count();
        if hidden * ONE_IN < self.images() { 0 } else { hidden }
    }

    /// The background of all images: the mean color of each, or, where that hides some, what is
    /// farthest from the colors of these.
    pub fn background(&self) -> Background {
        let mean = Background::Mean;
        if self.hidden_by(mean) == 0 {
            return mean;
        }
        let hidden = || self.0.iter().filter(|colors| colors.are_hidden_by(mean));
        let nearest = |color: &[u8; 3]| {
            let distances = hidden().map(|colors| distance(colors.mean, color.map(f64::from)));
            distances.fold(f64::INFINITY, f64::min)
        };
        let farthest = BACKGROUNDS.into_iter().max_by(|a, b| nearest(a).total_cmp(&nearest(b)));
        farthest.map_or(mean, Background::Color)
    }
}

/// One line, empty if the background is the mean color of each image.
impl fmt::Display for Cutouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Background::Color(color) = self.background() else { return Ok(()) };
        let name = match color[0] {
            0 => "black",
            255 => "white",
            _ => "gray",
        };
        write!(
            f,
            "images with transparency: {name} is behind their visible pixels, since {} of the {} that were \
             looked at have nearly one color, which their mean color would hide (`data.background`)",
            self.hidden_by(Background::Mean),
            self.images()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Image, SourceError};

    /// Images with these colors; one without any cannot be read.
    struct Colors(Vec<Option<VisibleColors>>);

    impl Source for Colors {
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
        fn visible_colors(
            &self,
            index: usize,
            levels: &Levels,
        ) -> Result<Option<VisibleColors>, SourceError> {
            assert!(levels.is_full());
            Ok(self.0[index])
        }
    }

    fn plain(mean: [f64; 3]) -> Option<VisibleColors> {
        Some(VisibleColors { mean, spread: 3.0, transparency: 0.4 })
    }

    fn of(images: &[Option<VisibleColors>]) -> Cutouts {
        Cutouts::of(&Colors(images.to_vec()), &Levels::default())
    }

    #[test]
    fn what_has_one_color_is_put_on_another() {
        let [black, white] = [plain([10.0; 3]), plain([250.0, 255.0, 240.0])];
        let red = plain([255.0, 0.0, 0.0]);
        for (images, color) in [
            (&[black, black][..], [255; 3]),
            (&[white], [0; 3]),
            (&[black, white], [128; 3]),
            (&[red, black], [255; 3]),
            (&[red, white], [0; 3]),
        ] {
            assert_eq!(of(images).background(), Background::Color(color), "{images:?}");
        }
        let line = of(&[black, None, None]).to_string();
        assert!(line.contains(": white is behind") && line.contains("since 1 of the 1 that"));
    }

    #[test]
    fn photographs_and_what_is_hardly_cut_out_keep_their_mean() {
        let black = plain([0.0; 3]).unwrap();
        let photograph = Some(VisibleColors { spread: 60.0, ..black });
        let opaque = Some(VisibleColors { transparency: 0.01, ..black });
        for images in [&[photograph; 3][..], &[opaque], &[None], &[]] {
            assert_eq!(of(images).background(), Background::Mean, "{images:?}");
            assert_eq!(of(images).to_string(), "");
        }
        // One in ten counts, one in eleven does not.
        let mut images = vec![photograph; 9];
        images.push(Some(black));
        assert_eq!(of(&images).background(), Background::Color([255; 3]));
        images.push(photograph);
        assert_eq!((of(&images).background(), of(&images).images()), (Background::Mean, 11));
    }

    #[test]
    fn a_color_hides_what_is_like_it() {
        let images = of(&[plain([250.0; 3]), plain([9.0; 3])]);
        let hidden = |background| images.hidden_by(background);
        assert_eq!(hidden(Background::Mean), 2);
        assert_eq!(hidden(Background::Color([255; 3])), 1);
        assert_eq!(hidden(Background::Color([128; 3])), 0);
    }
}
