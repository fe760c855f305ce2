//! Cells of the map in input pixels, and as SVG paths.

use std::fmt::Write;

use super::Figure;

impl Figure<'_> {
    /// Center of the query's cell, clipped to the image.
    pub(super) fn query(&self) -> [f64; 2] {
        let [row, column] = self.attention.query;
        let [x, y, width, height] = self.cell(row, column);
        [x + width / 2.0, y + height / 2.0]
    }

    /// A cell clipped to the image, `[left, top, width, height]`.
    pub(super) fn cell(&self, row: usize, column: usize) -> [f64; 4] {
        let [height, width] = self.input.size();
        let span = |index: usize, side: usize| {
            let start = (index * self.attention.cell).min(side);
            [start as f64, (start + self.attention.cell).min(side) as f64 - start as f64]
        };
        let ([x, w], [y, h]) = (span(column, width), span(row, height));
        [x, y, w, h]
    }

    /// Filled area of the chosen cells as an SVG path, one box per horizontal run.
    pub(super) fn filled_path(&self, chosen: impl Fn(usize) -> bool) -> String {
        let [rows, columns] = self.attention.map;
        let mut path = String::new();
        for row in 0..rows {
            let mut column = 0;
            while column < columns {
                let run = (column..columns).take_while(|c| chosen(row * columns + c)).count();
                if run > 0 {
                    let [x, y, _, height] = self.cell(row, column);
                    let [last, _, width, _] = self.cell(row, column + run - 1);
                    let width = last + width - x;
                    let _ = write!(path, "M{x} {y}h{width}v{height}h-{width}z");
                }
                column += run.max(1);
            }
        }
        path
    }

    /// Outline of the chosen cells as an SVG path.
    pub(super) fn outline_path(&self, chosen: impl Fn(usize) -> bool) -> String {
        let [rows, columns] = self.attention.map.map(|side| side as isize);
        let is = |row: isize, column: isize| {
            let inside = (0..rows).contains(&row) && (0..columns).contains(&column);
            inside && chosen((row * columns + column) as usize)
        };
        let mut path = String::new();
        for row in 0..rows {
            for column in (0..columns).filter(|&column| is(row, column)) {
                let [x, y, width, height] = self.cell(row as usize, column as usize);
                let (right, bottom) = (x + width, y + height);
                let edges = [
                    ([row - 1, column], format!("M{x} {y}H{right}")),
                    ([row + 1, column], format!("M{x} {bottom}H{right}")),
                    ([row, column - 1], format!("M{x} {y}V{bottom}")),
                    ([row, column + 1], format!("M{right} {y}V{bottom}")),
                ];
                for ([row, column], edge) in edges {
                    if !is(row, column) {
                        path.push_str(&edge);
                    }
                }
            }
        }
        path
    }
}
