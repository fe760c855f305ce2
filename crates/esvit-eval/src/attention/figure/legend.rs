//! Title and legend beside the image.

use super::super::{HeadAttention, QueryAttention};
use super::Figure;
use esvit_draw::{Anchor, Drawing, color};

/// Height of a line.
const LINE: f64 = 21.0;
/// Width of the legend.
pub(super) const WIDTH: f64 = 470.0;
/// Height of all lines.
pub(super) const HEIGHT: f64 = 6.0 * LINE;

/// What so many tokens before those of the map are called.
pub(super) fn prefix(count: usize) -> &'static str {
    if count == 1 { "class token" } else { "tokens before the map" }
}

/// Draws title, facts and legend.
pub(super) fn draw(figure: &Figure<'_>, drawing: &mut Drawing, [left, top]: [f64; 2]) {
    let QueryAttention { position, map, cell, query, window, .. } = figure.attention;
    let title = match figure.attention.heads.first() {
        Some(HeadAttention { head: None, .. }) => {
            format!("Attention rollout over blocks 0 to {}", position.block)
        }
        _ => format!(
            "Attention of block {} (stage {}, block {} of it)",
            position.block, position.stage, position.block_in_stage
        ),
    };
    drawing.text([left, top + 15.0], &title, 16.0, color::INK, Anchor::Start);
    let windows = window.map_or_else(String::new, |[window, shift]| {
        let shifted = if shift > 0 { format!(", shifted by {shift}") } else { String::new() };
        format!(" in windows of {window} × {window}{shifted}")
    });
    let close = if figure.is_zoomed() { "; the part in white is shown below" } else { "" };
    let [rows, columns] = map;
    let details = format!("{rows} × {columns} cells of {cell} × {cell} pixels{windows}{close}");
    drawing.text([left, top + 15.0 + LINE], &details, 11.0, color::FAINT, Anchor::Start);

    let entry = |line: usize| top + 17.0 + LINE * line as f64;
    let words = |drawing: &mut Drawing, line: usize, text: &str| {
        drawing.text([left + 26.0, entry(line) + 4.0], text, 11.0, color::INK, Anchor::Start);
    };
    let swatch = |line: usize| [left, entry(line) - 6.0, 18.0, 12.0];

    let QueryAttention { padding_keys, prefix_keys, .. } = *figure.attention;
    let (padding, on_image) = match (padding_keys, prefix_keys) {
        (0, 0) => (String::new(), ""),
        (0, keys) => (format!(" and the {}", prefix(keys)), " on the image"),
        (keys, _) => (format!(" and {keys} padding tokens"), " on the image"),
    };
    let [row, column] = query;
    let (visible, keys) = (figure.attention.visible_cells(), figure.attention.map_keys);
    let squares = if keys < visible { format!(" in {keys} squares") } else { String::new() };
    let sees = format!(
        "query at row {row}, column {column}; sees {visible} of {} cells{squares}{padding}",
        rows * columns
    );
    drawing.dot([left + 9.0, entry(2)], 5.0, color::QUERY);
    words(drawing, 2, &sees);

    let [x, y, width, height] = swatch(3);
    for step in 0..18 {
        let value = (f64::from(step) + 0.5) / 18.0;
        let part = [x + f64::from(step) * width / 18.0, y, width / 18.0 + 0.2, height];
        drawing.rect(part, &color::hex(color::blue(value)), 1.0);
    }
    words(drawing, 3, "weight, from 0 to the largest of each map");

    drawing.rect(swatch(4), "#ff0000", 0.5);
    let share = format!("{:.4}", 100.0 * figure.attention.mass);
    let share = share.trim_end_matches('0').trim_end_matches('.');
    let mask = format!("smallest set of cells with {share} % of the attention{on_image}");
    words(drawing, 4, &mask);

    if figure.attention.visible_cells() < figure.attention.visible.len() {
        let [x, y, width, height] = swatch(5);
        // Scaled so that the hatch looks as in a panel.
        drawing.element(format_args!(
            "<g transform=\"translate({x:.2} {y:.2}) scale({0:.6})\"><rect width=\"{1:.3}\" \
             height=\"{2:.3}\" fill=\"url(#hatch-{3})\"/></g>",
            figure.scale,
            width / figure.scale,
            height / figure.scale,
            figure.suffix
        ));
        words(drawing, 5, "not visible to the query (dark in images)");
    }
}
