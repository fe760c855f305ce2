//! The attention figure: the picture with the query, and for every head a map of its weights and
//! the part of the picture that holds most of them.

mod legend;

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use esvit_data::Picture;

use super::ramp::blue;
use super::{Attended, QueryAttention, Shown};
use crate::draw::{Anchor, DrawError, Drawing, color};

/// Heads in a row.
const PER_ROW: usize = 4;
/// A panel has the area of a square of this side.
const PANEL: f64 = 128.0;
/// No side of a panel is longer.
const LONGEST: f64 = 2.0 * PANEL;
/// How much larger the picture with the query is.
const ENLARGED: f64 = 1.5;
const MARGIN: f64 = 16.0;
/// Between the two panels of a head, and between heads.
const GAPS: [f64; 2] = [3.0, 20.0];
/// Height of a head's words.
const WORDS: f64 = 20.0;

/// The figure of what a query attends to, heads in the order they have. Weights are shown from 0 to
/// the largest of each head; what the query cannot see is hatched in maps and dark in pictures.
///
/// # Errors
/// When the picture cannot be stored in the drawing.
pub fn picture(shown: &Shown, attention: &QueryAttention) -> Result<Drawing, DrawError> {
    let figure = Figure::new(shown, attention);
    let columns = attention.attended.len().min(PER_ROW) as f64;
    let rows = attention.attended.len().div_ceil(PER_ROW) as f64;
    let [width, height] = figure.panel;
    let tile = [2.0 * width + GAPS[0], height + WORDS];
    let heads = columns * tile[0] + (columns - 1.0) * GAPS[1];
    let top = [ENLARGED * width, (ENLARGED * height).max(legend::HEIGHT)];
    let mut drawing = Drawing::new(
        2.0 * MARGIN + heads.max(top[0] + GAPS[1] + legend::WIDTH),
        2.0 * MARGIN + top[1] + rows * (tile[1] + 0.7 * GAPS[1]),
    );
    figure.define(&mut drawing)?;
    figure.original(&mut drawing);
    legend::draw(&figure, &mut drawing, [MARGIN + top[0] + GAPS[1], MARGIN]);
    for (index, attended) in attention.attended.iter().enumerate() {
        let [row, column] = [index / PER_ROW, index % PER_ROW].map(|i| i as f64);
        let left = MARGIN + column * (tile[0] + GAPS[1]);
        let top = MARGIN + top[1] + 0.7 * GAPS[1] + row * (tile[1] + 0.7 * GAPS[1]);
        figure.head(&mut drawing, [left, top], attended)?;
    }
    Ok(drawing)
}

/// What is drawn, and how large.
struct Figure<'a> {
    shown: &'a Shown,
    attention: &'a QueryAttention,
    /// Width and height of a panel.
    panel: [f64; 2],
    /// Length of a shown pixel in a panel.
    scale: f64,
    /// Ends the names of what is drawn several times: figures may stand on one page.
    suffix: String,
}

impl<'a> Figure<'a> {
    fn new(shown: &'a Shown, attention: &'a QueryAttention) -> Self {
        let [height, width] = shown.size().map(|side| side as f64);
        let scale = (PANEL / (width * height).sqrt()).min(LONGEST / width.max(height));
        let mut hasher = DefaultHasher::new();
        (shown.picture.pixels(), shown.size(), &attention.visible).hash(&mut hasher);
        let suffix = format!("{:016x}", hasher.finish());
        Self { shown, attention, panel: [width * scale, height * scale], scale, suffix }
    }

    /// Defines the picture and what the query cannot see, to be drawn in every panel.
    fn define(&self, drawing: &mut Drawing) -> Result<(), DrawError> {
        let Self { suffix, scale, .. } = self;
        let [height, width] = self.shown.size().map(|side| side as f64);
        drawing.element(format_args!("<defs><g id=\"picture-{suffix}\">"));
        drawing.picture(&self.shown.picture, [0.0, 0.0, width, height], false)?;
        // Lines over the corners close the pattern where it is repeated.
        let side = 5.0 / scale;
        drawing.element(format_args!(
            "</g><pattern id=\"hatch-{suffix}\" width=\"{side:.3}\" height=\"{side:.3}\" \
             patternUnits=\"userSpaceOnUse\"><rect width=\"{side:.3}\" height=\"{side:.3}\" \
             fill=\"#eef0f2\"/><path d=\"M0 {side:.3}L{side:.3} 0M-1 1L1 -1M{0:.3} {1:.3}L{1:.3} \
             {0:.3}\" stroke=\"#b9bfc6\" stroke-width=\"{2:.3}\"/></pattern>\
             <path id=\"unseen-{suffix}\" d=\"{3}\"/></defs>",
            side - 1.0,
            side + 1.0,
            0.8 / scale,
            self.boxes(|cell| !self.attention.visible[cell]),
        ));
        Ok(())
    }

    /// The picture with the query and the border of what it sees.
    fn original(&self, drawing: &mut Drawing) {
        self.panel(drawing, [MARGIN, MARGIN], ENLARGED, |drawing| {
            self.used(drawing, "picture", "");
            self.border(drawing, ENLARGED);
        });
        drawing.dot(self.query([MARGIN, MARGIN], ENLARGED), 5.0, color::QUERY);
    }

    /// Weights and mask of a head below its words.
    fn head(
        &self,
        drawing: &mut Drawing,
        [left, top]: [f64; 2],
        attended: &Attended,
    ) -> Result<(), DrawError> {
        let name = attended.head.map_or("rollout".into(), |head| format!("head {head}"));
        let entropy = format!("{name} · {:.2} bits", attended.entropy);
        let baseline = top + 13.0;
        drawing.text([left, baseline], &entropy, 12.0, color::INK, Anchor::Start);
        let mut facts = format!("max {:.2}", attended.largest());
        if attended.padding_mass >= 0.005 {
            facts = format!("padding {:.0} % · {facts}", 100.0 * attended.padding_mass);
        }
        let right = left + 2.0 * self.panel[0] + GAPS[0];
        drawing.text([right, baseline], &facts, 10.0, color::FAINT, Anchor::End);

        let corner = [left, top + WORDS];
        let map = self.map(attended);
        let [height, width] = self.shown.size().map(|side| side as f64);
        drawing.picture(&map, [corner[0], corner[1], self.panel[0], self.panel[1]], true)?;
        self.panel(drawing, corner, 1.0, |drawing| {
            self.used(drawing, "unseen", &format!("fill=\"url(#hatch-{})\"", self.suffix));
            drawing.element(format_args!(
                "<rect width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#c9ced4\" \
                 stroke-width=\"{:.3}\"/>",
                0.75 / self.scale
            ));
        });
        drawing.dot(self.query(corner, 1.0), 3.0, color::QUERY);

        let corner = [corner[0] + self.panel[0] + GAPS[0], corner[1]];
        self.panel(drawing, corner, 1.0, |drawing| {
            self.used(drawing, "picture", "");
            self.used(drawing, "unseen", "fill=\"#000000\" fill-opacity=\"0.55\"");
            self.border(drawing, 1.0);
            self.mask(drawing, attended);
        });
        drawing.dot(self.query(corner, 1.0), 3.0, color::QUERY);
        Ok(())
    }

    /// The mask in red, with an outline.
    fn mask(&self, drawing: &mut Drawing, attended: &Attended) {
        let mut inside = vec![false; attended.weights.len()];
        attended.mask.iter().for_each(|&cell| inside[cell] = true);
        drawing.element(format_args!(
            "<path d=\"{}\" fill=\"#ff0000\" fill-opacity=\"0.5\"/>\
             <path d=\"{}\" fill=\"none\" stroke=\"#ff0000\" stroke-width=\"{:.3}\" \
             stroke-linecap=\"square\"/>",
            self.boxes(|cell| inside[cell]),
            self.outline(|cell| inside[cell]),
            1.25 / self.scale
        ));
    }

    /// The border of what the query sees, if it does not see everything.
    fn border(&self, drawing: &mut Drawing, enlarged: f64) {
        if self.attention.visible_cells() < self.attention.visible.len() {
            drawing.element(format_args!(
                "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{:.3}\" \
                 stroke-linecap=\"square\"/>",
                self.outline(|cell| self.attention.visible[cell]),
                color::QUERY,
                1.25 / self.scale / enlarged
            ));
        }
    }

    /// The map of weights, a pixel to a pixel that divides the cells of every stage: a shown pixel
    /// of the last rows and columns may belong to a cell that sticks out.
    fn map(&self, attended: &Attended) -> Picture {
        let QueryAttention { cell, map, place, .. } = self.attention;
        let patch = cell >> place.stage;
        let [height, width] = self.shown.size().map(|side| side / patch);
        let largest = f64::from(attended.largest()).max(f64::MIN_POSITIVE);
        let per_cell = 1 << place.stage;
        let pixels = (0..height * width).flat_map(|pixel| {
            let [row, column] = [pixel / width, pixel % width].map(|place| place / per_cell);
            blue(f64::from(attended.weights[row * map[1] + column]) / largest)
        });
        Picture::new(width as u32, height as u32, pixels.collect()).expect("a pixel a patch")
    }

    /// Draws in pixels of the shown picture, from `corner` on.
    fn panel(
        &self,
        drawing: &mut Drawing,
        [left, top]: [f64; 2],
        enlarged: f64,
        draw: impl FnOnce(&mut Drawing),
    ) {
        drawing.element(format_args!(
            "<g transform=\"translate({left:.2} {top:.2}) scale({:.6})\">",
            self.scale * enlarged
        ));
        draw(drawing);
        drawing.element("</g>");
    }

    fn used(&self, drawing: &mut Drawing, name: &str, style: &str) {
        drawing.element(format_args!("<use href=\"#{name}-{}\" {style}/>", self.suffix));
    }

    /// The centre of the query's cell, or of what is shown of it, in a panel at `corner`.
    fn query(&self, corner: [f64; 2], enlarged: f64) -> [f64; 2] {
        let [row, column] = self.attention.query;
        let [x, y, width, height] = self.cell(row, column);
        let scale = self.scale * enlarged;
        [corner[0] + scale * (x + width / 2.0), corner[1] + scale * (y + height / 2.0)]
    }

    /// What is shown of a cell, `[left, top, width, height]`.
    fn cell(&self, row: usize, column: usize) -> [f64; 4] {
        let [height, width] = self.shown.size();
        let span = |index: usize, side: usize| {
            let start = (index * self.attention.cell).min(side);
            [start as f64, (start + self.attention.cell).min(side) as f64 - start as f64]
        };
        let ([x, w], [y, h]) = (span(column, width), span(row, height));
        [x, y, w, h]
    }

    /// Boxes over runs of chosen cells, as SVG writes a path.
    fn boxes(&self, chosen: impl Fn(usize) -> bool) -> String {
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

    /// The edges between chosen cells and others, as SVG writes a path.
    fn outline(&self, chosen: impl Fn(usize) -> bool) -> String {
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
