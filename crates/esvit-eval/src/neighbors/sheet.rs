//! Draws queries and their neighbors.

use super::{ImageEntry, Neighbors};
use crate::thumbnail::file_name;
use esvit_data::{PngError, encode_png};
use esvit_draw::{Anchor, Drawing, color, ellipsize, text_width};

/// Frame colors of neighbors with the query's class, and with another.
const SAME: &str = "#1a9641";
const OTHER: &str = "#d7301f";

const MARGIN: f64 = 24.0;
const SIDE: f64 = 96.0;
const FRAME: f64 = 3.0;
const GAP: f64 = 16.0;
/// Gap between the query and its neighbors.
const QUERY_GAP: f64 = 40.0;
const WORDS: f64 = 11.0;
/// Height of a row: the image, two lines of text and a gap.
const ROW: f64 = SIDE + 2.0 * FRAME + 2.0 * (WORDS + 4.0) + 16.0;

/// Draws one row per query: the query, then its neighbors, most similar first, with similarity and
/// class (or name) below. `about` is a subtitle.
///
/// # Errors
/// [`PngError`] if an image cannot be encoded.
pub fn sheet(neighbors: &Neighbors, about: &str) -> Result<Drawing, PngError> {
    let columns = neighbors.rows.iter().map(|row| row.neighbors.len()).max().unwrap_or(0);
    let images = SIDE + QUERY_GAP + columns as f64 * (SIDE + GAP) - GAP;
    let title = "Nearest neighbors";
    let mut lines = vec![about.to_owned()];
    // The colors of the frames.
    lines.extend(neighbors.same_class().map(|share| {
        format!(
            "{:.1} % of these neighbors have the query's class (green frame), the others another \
             (red)",
            100.0 * share
        )
    }));
    let heading = lines.iter().map(|line| text_width(line, 12.0)).fold(0.0, f64::max);
    let width = images.max(heading).max(text_width(title, 18.0)) + 2.0 * MARGIN;
    let top = MARGIN + 34.0 + 18.0 * lines.len() as f64 + 28.0;
    let height = top + ROW * neighbors.rows.len() as f64 - 16.0 + MARGIN - 8.0;
    let mut drawing = Drawing::new(width.ceil(), height.ceil());

    drawing.text([MARGIN, MARGIN + 16.0], title, 18.0, color::INK, Anchor::Start);
    for (line, y) in lines.iter().zip((0..).map(|line| MARGIN + 38.0 + 18.0 * f64::from(line))) {
        drawing.text([MARGIN, y], line, 12.0, color::FAINT, Anchor::Start);
    }
    let first = MARGIN + SIDE + QUERY_GAP;
    let middle = |x: f64| x + SIDE / 2.0;
    let heads = top - 12.0;
    drawing.text([middle(MARGIN), heads], "query", WORDS, color::FAINT, Anchor::Middle);
    for column in 0..columns {
        let x = first + column as f64 * (SIDE + GAP);
        let rank = (column + 1).to_string();
        drawing.text([middle(x), heads], &rank, WORDS, color::FAINT, Anchor::Middle);
    }
    let rule = first - QUERY_GAP / 2.0;
    drawing.line([rule, top - 20.0], [rule, height - MARGIN + 8.0], "#d7dbe0", 1.0);

    for (row, y) in neighbors.rows.iter().zip((0..).map(|row| top + ROW * f64::from(row))) {
        draw_thumbnail(&mut drawing, &row.query, [MARGIN, y], color::FAINT, 1.0)?;
        let baseline = y + SIDE + FRAME + WORDS + 4.0;
        let caption = |entry: &ImageEntry| ellipsize(caption_text(entry), WORDS, SIDE + GAP - 4.0);
        let name = caption(&row.query);
        drawing.text([middle(MARGIN), baseline], &name, WORDS, color::INK, Anchor::Middle);
        for (column, found) in row.neighbors.iter().enumerate() {
            let x = first + column as f64 * (SIDE + GAP);
            let (frame, thickness) = match found.agrees(&row.query) {
                Some(true) => (SAME, FRAME),
                Some(false) => (OTHER, FRAME),
                None => (color::FAINT, 1.0),
            };
            draw_thumbnail(&mut drawing, &found.entry, [x, y], frame, thickness)?;
            let similarity = format!("{:.3}", found.similarity);
            drawing.text([middle(x), baseline], &similarity, WORDS, color::INK, Anchor::Middle);
            let below = [middle(x), baseline + WORDS + 4.0];
            drawing.text(below, &caption(&found.entry), WORDS, color::FAINT, Anchor::Middle);
        }
    }
    Ok(drawing)
}

fn draw_thumbnail(
    drawing: &mut Drawing,
    entry: &ImageEntry,
    [x, y]: [f64; 2],
    frame: &str,
    thickness: f64,
) -> Result<(), PngError> {
    let outer = SIDE + 2.0 * thickness;
    drawing.rect([x - thickness, y - thickness, outer, outer], frame, 1.0);
    match &entry.thumbnail {
        Some(thumbnail) => drawing.image(&encode_png(thumbnail)?, [x, y, SIDE, SIDE], false),
        None => drawing.rect([x, y, SIDE, SIDE], "#ffffff", 1.0),
    }
    Ok(())
}

/// Caption of an image: its class, or its file name.
fn caption_text(entry: &ImageEntry) -> &str {
    entry.class.as_deref().unwrap_or_else(|| file_name(&entry.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbors::{NeighborImage, Row};

    #[test]
    fn frames_say_which_neighbors_have_the_class() {
        let entry = |name: &str, class: Option<&str>| ImageEntry {
            name: name.into(),
            class: class.map(str::to_owned),
            thumbnail: None,
        };
        let found =
            |name, class, similarity| NeighborImage { entry: entry(name, class), similarity };
        let row = Row {
            query: entry("q.png", Some("cat")),
            neighbors: vec![
                found("a.png", Some("cat"), 0.9876),
                found("b.png", Some("dog"), 0.5),
                found("c.png", Some("cat"), 0.25),
                found("folder/d.png", None, 0.125),
            ],
        };
        let neighbors = Neighbors { rows: vec![row], images: 5, left_out: vec![] };
        assert_eq!(neighbors.same_class(), Some(2.0 / 3.0));
        let svg = sheet(&neighbors, "about").unwrap().svg();
        let count = |part: &str| svg.matches(part).count();
        assert_eq!((count(SAME), count(OTHER)), (2, 1));
        for part in [">0.988<", ">0.500<", ">cat<", ">dog<", ">d.png<", ">66.7 % of these"] {
            assert!(svg.contains(part), "{part}");
        }
        assert_eq!((count(">cat<"), count(">4<"), count(">5<")), (3, 1, 0));
    }
}
