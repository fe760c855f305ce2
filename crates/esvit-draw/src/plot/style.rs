//! How the shapes of a plot are told apart: by color, by the form of their points and by dashes.

use crate::{Drawing, color};

/// Colors of lines and marks, in order; told apart in gray too as far as eight can be.
const COLORS: [&str; 8] =
    ["#1f6fb4", "#e0691a", "#2b8a4b", "#8e44ad", "#c0392b", "#0e8f9c", "#8a6d1b", "#57606a"];

/// Form and dashes of each round through the colors, no dashes in the first.
const ROUNDS: [(Form, &str); 5] = [
    (Form::Disc, ""),
    (Form::Square, "9 4"),
    (Form::Triangle, "2 3"),
    (Form::Diamond, "9 3 2 3"),
    (Form::Wedge, "16 4"),
];

/// Colors and dashes of levels, which are never drawn through.
const GRAYS: [&str; 2] = [color::FAINT, color::INK];
const LEVELS: [&str; 6] = ["5 4", "1.5 3.5", "12 4", "12 4 2 4", "5 8", "12 4 2 4 2 4"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Disc,
    Square,
    Triangle,
    Diamond,
    /// A triangle that stands on its tip.
    Wedge,
}

/// How a shape is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) color: &'static str,
    form: Form,
    /// Lengths of dashes and gaps, in pixels; empty for none.
    dashes: &'static str,
}

impl Style {
    /// That of a line or mark, by its number among these. Forty are different.
    pub(super) fn of_shape(number: usize) -> Self {
        let (form, dashes) = ROUNDS[number / COLORS.len() % ROUNDS.len()];
        Self { color: COLORS[number % COLORS.len()], form, dashes }
    }

    /// That of a level, by its number among these. Twelve are different.
    pub(super) fn of_level(number: usize) -> Self {
        let color = GRAYS[number / LEVELS.len() % GRAYS.len()];
        Self { color, form: Form::Disc, dashes: LEVELS[number % LEVELS.len()] }
    }

    /// Line segments through `points`.
    pub(super) fn line(&self, drawing: &mut Drawing, points: &[[f64; 2]], width: f64) {
        let Self { color, dashes, .. } = self;
        let points: Vec<String> = points.iter().map(|[x, y]| format!("{x:.2},{y:.2}")).collect();
        let dashes = match dashes.is_empty() {
            true => String::new(),
            false => format!(" stroke-dasharray=\"{dashes}\""),
        };
        drawing.element(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" \
             stroke-linejoin=\"round\"{dashes}/>",
            points.join(" ")
        ));
    }

    /// A point of its form.
    pub(super) fn point(&self, drawing: &mut Drawing, at: [f64; 2], radius: f64) {
        let [x, y] = at;
        match self.form {
            Form::Disc => drawing.dot(at, radius, self.color),
            Form::Triangle => drawing.triangle(at, 1.25 * radius, self.color),
            Form::Square => {
                let half = 0.9 * radius;
                let corner = |a: f64, b: f64| [x + a * half, y + b * half];
                let corners =
                    [corner(-1.0, -1.0), corner(1.0, -1.0), corner(1.0, 1.0), corner(-1.0, 1.0)];
                drawing.polygon(&corners, self.color);
            }
            Form::Diamond => {
                let half = 1.25 * radius;
                let corners = [[x, y - half], [x + half, y], [x, y + half], [x - half, y]];
                drawing.polygon(&corners, self.color);
            }
            Form::Wedge => {
                let (half, low) = (1.08 * radius, 0.625 * radius);
                let corners = [[x - half, y - low], [x + half, y - low], [x, y + 2.0 * low]];
                drawing.polygon(&corners, self.color);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is drawn of a style: a line and a point.
    fn drawn(style: Style) -> String {
        let mut drawing = Drawing::new(20.0, 20.0);
        style.line(&mut drawing, &[[0.0, 5.0], [20.0, 5.0]], 2.0);
        style.point(&mut drawing, [10.0, 10.0], 4.0);
        drawing.svg()
    }

    fn are_different(all: &[Style]) -> bool {
        let drawn: Vec<String> = all.iter().map(|&style| drawn(style)).collect();
        (0..drawn.len()).all(|index| !drawn[..index].contains(&drawn[index]))
    }

    #[test]
    fn colors_that_come_again_have_other_forms_and_dashes() {
        let all: Vec<Style> = (0..40).map(Style::of_shape).collect();
        assert!(are_different(&all));
        let [first, ninth] = [all[0], all[8]];
        assert_eq!(first.color, ninth.color);
        assert!(first.form != ninth.form && first.dashes != ninth.dashes);
        assert!(all[..8].iter().all(|style| style.dashes.is_empty()));
        assert_eq!(Style::of_shape(40), first);
    }

    #[test]
    fn levels_are_dashed_each_in_its_own_way() {
        let all: Vec<Style> = (0..12).map(Style::of_level).collect();
        assert!(are_different(&all));
        assert!(all.iter().all(|style| drawn(*style).contains("stroke-dasharray")));
    }

    #[test]
    fn points_are_around_their_place() {
        for number in [0, 8, 16, 24, 32] {
            let mut drawing = Drawing::new(40.0, 40.0);
            Style::of_shape(number).point(&mut drawing, [20.0, 20.0], 8.0);
            let png = drawing.png(1.0).unwrap();
            let shown = esvit_data::decode(&png, &Default::default()).unwrap();
            let is_blue = |x, y| shown.pixel(x, y).is_some_and(|[r, _, b]| b > 120 && r < 90);
            assert!(is_blue(20, 20), "{number}");
            assert!(!is_blue(20, 33) && !is_blue(7, 20) && !is_blue(33, 20), "{number}");
        }
    }
}
