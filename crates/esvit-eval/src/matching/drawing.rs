//! Draws matched cells.

use std::collections::BTreeMap;

use super::{MatchedView, Matching};
use crate::correspondence::View;
use esvit_data::{PngError, encode_png};
use esvit_draw::{Anchor, Drawing, color, labeled_rows};

/// Shorter side of a view in the drawing.
const SHORTER: f64 = 448.0;
/// White space around and between the views.
const MARGIN: f64 = 10.0;
const GAP: f64 = 12.0;
/// Height of the legend.
const LEGEND: f64 = 34.0;
const LETTERS: f64 = 13.0;
/// Font size of the ranks at the ends of lines, and half the height of their badges.
const RANK: f64 = 11.0;
const BADGE: f64 = 8.0;
/// Outline of lines and marks, for contrast on any background.
const EDGE: &str = "#000000";
const RING: f64 = 13.0;
const TRIANGLE: f64 = 10.0;

/// Resolution at which a view of `[width, height]` pixels is drawn: up to twice that of the
/// drawing, if the image has it.
pub(super) fn resolution(view: &View, [width, height]: [u32; 2]) -> [u32; 2] {
    let shorter = f64::from(view.crop.width.min(view.crop.height));
    let side = shorter.clamp(SHORTER, 2.0 * SHORTER);
    let scale = side / f64::from(width.min(height));
    [width, height].map(|side| (f64::from(side) * scale).round() as u32)
}

/// A view in the drawing.
struct Panel<'a> {
    side: &'a MatchedView,
    /// Left, top, width, height.
    place: [f64; 4],
}

impl Panel<'_> {
    fn center(&self, cell: usize) -> [f64; 2] {
        let ([x, y], [width, height]) = (self.side.grid.center(cell), self.side.grid.size());
        let [left, top, wide, high] = self.place;
        [left + x / width * wide, top + y / height * high]
    }
}

/// Draws the two views side by side. Yellow lines join the pairs, with ranks at both ends; a
/// sky-blue ring marks the cell most similar to its own view feature, a red triangle the cell most
/// similar to the other view's.
///
/// # Errors
/// [`PngError`] if a view cannot be encoded.
pub fn draw(matching: &Matching) -> Result<Drawing, PngError> {
    Ok(with_legend(&side_by_side(matching)?, &[matching.pairs.len()]))
}

/// Draws matchings below each other, each under its label, with one legend.
///
/// # Errors
/// [`PngError`] if a view cannot be encoded.
pub fn draw_rows(rows: &[(String, Matching)]) -> Result<Drawing, PngError> {
    let row = |(label, matching): &(String, Matching)| Ok((label.clone(), side_by_side(matching)?));
    let drawn = rows.iter().map(row).collect::<Result<Vec<_>, PngError>>()?;
    let pairs: Vec<usize> = rows.iter().map(|(_, matching)| matching.pairs.len()).collect();
    Ok(with_legend(&labeled_rows(&drawn), &pairs))
}

/// Views, with the legend below them. `pairs` are the numbers of pairs in each row.
fn with_legend(views: &Drawing, pairs: &[usize]) -> Drawing {
    let [width, height] = views.size();
    let mut drawing = Drawing::new(width, height + LEGEND);
    drawing.place(views, [0.0; 2]);
    legend(&mut drawing, pairs, height + LEGEND - MARGIN - 7.0);
    drawing
}

/// The two views with all marks.
fn side_by_side(matching: &Matching) -> Result<Drawing, PngError> {
    let sizes = matching.views.each_ref().map(|side| {
        let [width, height] = side.grid.size();
        [width, height].map(|length| SHORTER * length / width.min(height))
    });
    let high = sizes[0][1].max(sizes[1][1]);
    let width = 2.0 * MARGIN + sizes[0][0] + GAP + sizes[1][0];
    let mut drawing = Drawing::new(width, 2.0 * MARGIN + high);
    let panel = |at: usize, left: f64| {
        let [wide, tall] = sizes[at];
        let top = MARGIN + (high - tall) / 2.0;
        Panel { side: &matching.views[at], place: [left, top, wide, tall] }
    };
    let panels = [panel(0, MARGIN), panel(1, MARGIN + sizes[0][0] + GAP)];
    for Panel { side, place } in &panels {
        drawing.image(&encode_png(&side.shown)?, *place, false);
    }
    // The best pair is drawn last.
    for pair in matching.pairs.iter().rev() {
        let ends = [panels[0].center(pair.first.cell), panels[1].center(pair.second.cell)];
        line(&mut drawing, ends);
    }
    for (at, panel) in panels.iter().enumerate() {
        let ends = ends(matching, at);
        ring(&mut drawing, panel.center(panel.side.nearest_own));
        ranks(&mut drawing, &ends, panel);
        // A triangle is placed above a badge, if there is one.
        let nearest = panel.side.nearest_other;
        let [x, y] = panel.center(nearest);
        let lift = if ends.contains_key(&nearest) { BADGE + 0.5 * TRIANGLE } else { 0.0 };
        drawing.triangle([x, y - lift], TRIANGLE, color::FOUND);
    }
    Ok(drawing)
}

fn line(drawing: &mut Drawing, [from @ [x1, y1], to @ [x2, y2]]: [[f64; 2]; 2]) {
    drawing.element(format_args!(
        "<line x1=\"{x1:.2}\" y1=\"{y1:.2}\" x2=\"{x2:.2}\" y2=\"{y2:.2}\" stroke=\"{EDGE}\" \
         stroke-opacity=\"0.45\" stroke-width=\"4\" stroke-linecap=\"round\"/>"
    ));
    drawing.line(from, to, color::PAIR, 2.0);
}

fn ring(drawing: &mut Drawing, at: [f64; 2]) {
    drawing.ring(at, RING, EDGE, 5.0);
    drawing.ring(at, RING, color::QUERY, 3.0);
}

/// Ranks of the pairs that end in each cell of one view.
fn ends(matching: &Matching, at: usize) -> BTreeMap<usize, Vec<String>> {
    let mut ends: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for pair in &matching.pairs {
        let place = if at == 0 { &pair.first } else { &pair.second };
        ends.entry(place.cell).or_default().push(pair.rank.to_string());
    }
    ends
}

/// Draws the ends of the pairs in one view as badges with their ranks. Pairs that end in the same
/// cell share a badge.
fn ranks(drawing: &mut Drawing, ends: &BTreeMap<usize, Vec<String>>, panel: &Panel<'_>) {
    for (&cell, ranks) in ends {
        let [x, y] = panel.center(cell);
        let text = ranks.join(" ");
        // Digits are twice as wide as spaces.
        let gaps = ranks.len() - 1;
        let letters = 0.64 * (text.len() - gaps) as f64 + 0.32 * gaps as f64;
        let half = BADGE.max(0.5 * RANK * letters + 4.0);
        let x = x.clamp(half, (drawing.size()[0] - half).max(half));
        let (left, top, width, height) = (x - half, y - BADGE, 2.0 * half, 2.0 * BADGE);
        drawing.element(format_args!(
            "<rect x=\"{left:.2}\" y=\"{top:.2}\" width=\"{width:.2}\" height=\"{height}\" \
             rx=\"{BADGE}\" fill=\"{}\" stroke=\"{EDGE}\" stroke-width=\"0.75\"/>",
            color::PAIR
        ));
        drawing.text([x, y + 0.36 * RANK], &text, RANK, color::INK, Anchor::Middle);
    }
}

fn legend(drawing: &mut Drawing, pairs: &[usize], y: f64) {
    let most = pairs.iter().copied().max().unwrap_or(0);
    let up_to = if pairs.iter().all(|&count| count == most) { "" } else { "up to " };
    let pairs = match most {
        1 => "the most similar pair".into(),
        count => format!("{up_to}{count} most similar pairs, 0 first"),
    };
    let middle = y - 0.35 * LETTERS;
    let mut x = MARGIN;
    let words = |drawing: &mut Drawing, x: f64, text: &str| {
        drawing.text([x, y], text, LETTERS, color::INK, Anchor::Start);
        x + 0.62 * LETTERS * text.chars().count() as f64 + 22.0
    };
    line(drawing, [[x + 2.0, middle], [x + 26.0, middle]]);
    x = words(drawing, x + 34.0, &pairs);
    drawing.ring([x + 7.0, middle], 6.0, color::QUERY, 3.0);
    x = words(drawing, x + 22.0, "nearest to its own view");
    drawing.triangle([x + 7.0, middle + 1.0], 7.0, color::FOUND);
    words(drawing, x + 22.0, "nearest to the other view");
}
