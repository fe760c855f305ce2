//! Class colors of a map.

use std::collections::HashMap;

use super::{EmbeddingMap, Point};
use esvit_draw::color;

/// Categorical palette; maps with more classes have no legend.
pub(super) const PALETTE: [&str; 12] = [
    "#3b73b9", "#f28e2b", "#3f9b45", "#d64550", "#8a5fbf", "#8c5a3c", "#e377c2", "#1fb4c8",
    "#b5a512", "#6b7280", "#1b2a6b", "#93cf5a",
];

/// Colors by class name.
pub(super) struct ClassColors(HashMap<String, String>);

impl ClassColors {
    /// The palette if there are enough colors; else hues by the golden angle.
    pub(super) fn of(map: &EmbeddingMap) -> Self {
        let count = map.classes.len();
        let shade = |number: usize| match PALETTE.get(number) {
            Some(shade) if count <= PALETTE.len() => (*shade).to_owned(),
            _ => {
                let hue = (number as f64 * 137.508) % 360.0;
                let lightness = [46, 60, 36][number % 3];
                hsl(hue, 0.62, f64::from(lightness) / 100.0)
            }
        };
        Self(map.classes.iter().cloned().zip((0..count).map(shade)).collect())
    }

    pub(super) fn of_class(&self, class: &str) -> String {
        self.0.get(class).cloned().unwrap_or_else(|| color::FAINT.into())
    }

    pub(super) fn of_point(&self, point: &Point) -> String {
        point.class.as_deref().map_or_else(|| "#9aa3ad".into(), |class| self.of_class(class))
    }
}

/// A color from hue in degrees, saturation and lightness.
fn hsl(hue: f64, saturation: f64, lightness: f64) -> String {
    let reach = saturation * lightness.min(1.0 - lightness);
    color::hex([0.0, 8.0, 4.0].map(|offset| {
        let place = (offset + hue / 30.0) % 12.0;
        let value = lightness - reach * (place - 3.0).min(9.0 - place).clamp(-1.0, 1.0);
        (value * 255.0).round() as u8
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hues() {
        assert_eq!(hsl(0.0, 1.0, 0.5), "#ff0000");
        assert_eq!(hsl(120.0, 1.0, 0.25), "#008000");
        assert_eq!(hsl(240.0, 0.0, 1.0), "#ffffff");
    }

    #[test]
    fn many_classes_have_colors_of_their_own() {
        let map = |count: usize| EmbeddingMap {
            layout: super::super::Layout {
                method: super::super::Method::Pca,
                explained_variance: None,
                perplexity: None,
            },
            points: Vec::new(),
            classes: (0..count).map(|class| class.to_string()).collect(),
        };
        let colors = |count: usize| {
            let colors = ClassColors::of(&map(count));
            (0..count).map(|class| colors.of_class(&class.to_string())).collect::<Vec<_>>()
        };
        assert_eq!(colors(12), PALETTE);
        let mut many = colors(40);
        assert!(!PALETTE.contains(&many[0].as_str()));
        many.sort_unstable();
        many.dedup();
        assert_eq!(many.len(), 40);
        assert_eq!(ClassColors::of(&map(2)).of_class("none"), color::FAINT);
    }
}
