//! Drawings below each other.

use crate::{Anchor, Drawing, color, text_width};

/// Font size of a label, and the height of its line.
const LETTERS: f64 = 15.0;
const LINE: f64 = 30.0;
const MARGIN: f64 = 10.0;

/// Drawings below each other, each under its label, which is never truncated.
pub fn labeled_rows(rows: &[(String, Drawing)]) -> Drawing {
    let needed = |(label, row): &(String, Drawing)| {
        row.size()[0].max(2.0 * MARGIN + text_width(label, LETTERS))
    };
    let width = rows.iter().map(needed).fold(0.0, f64::max);
    let height: f64 = rows.iter().map(|(_, row)| LINE + row.size()[1]).sum();
    let mut drawing = Drawing::new(width, height);
    let mut top = 0.0;
    for (label, row) in rows {
        let baseline = [MARGIN, top + LINE - 8.0];
        drawing.text(baseline, label, LETTERS, color::INK, Anchor::Start);
        drawing.place(row, [0.0, top + LINE]);
        top += LINE + row.size()[1];
    }
    drawing
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_data::{DecodeLimits, decode};

    fn filled([width, height]: [f64; 2], color: &str) -> Drawing {
        let mut drawing = Drawing::new(width, height);
        drawing.rect([0.0, 0.0, width, height], color, 1.0);
        drawing
    }

    #[test]
    fn rows_are_below_each_other_under_their_labels() {
        let rows = [
            ("A".to_owned(), filled([40.0, 20.0], "#ff0000")),
            ("B".to_owned(), filled([60.0, 10.0], "#0000ff")),
        ];
        let drawing = labeled_rows(&rows);
        assert_eq!(drawing.size(), [60.0, 90.0]);
        let shown = decode(&drawing.png(1.0).unwrap(), &DecodeLimits::default()).unwrap();
        let (red, blue) = (Some([255, 0, 0]), Some([0, 0, 255]));
        assert_eq!((shown.pixel(5, 31), shown.pixel(39, 49)), (red, red));
        assert_eq!((shown.pixel(5, 81), shown.pixel(59, 89)), (blue, blue));
        assert_eq!(shown.pixel(45, 40), Some([255; 3]));
        // A letter in the line above each.
        for top in [0, 50] {
            let dark = |y: u32| (0..40).any(|x| shown.pixel(x, y).unwrap()[0] < 100);
            assert!((top..top + 30).any(dark), "{top}");
        }
    }

    #[test]
    fn long_labels_make_the_drawing_wider() {
        let label = "runs/".repeat(40);
        let [width, _] = labeled_rows(&[(label.clone(), filled([40.0, 20.0], "#ff0000"))]).size();
        assert_eq!(width, 20.0 + text_width(&label, 15.0));
    }
}
