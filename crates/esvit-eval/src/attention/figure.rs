//! Attention figure of one query: the image, and for each head a heat map of its weights and a mask
//! over the image.

mod cells;
mod frame;
mod legend;

use std::hash::{DefaultHasher, Hash, Hasher};

use esvit_data::{Image, PngError, encode_png};

use self::frame::{Frame, fit};
use super::{HeadAttention, InputImage, QueryAttention};
use esvit_draw::{Anchor, Drawing, color};

/// Heads per row.
const HEADS_PER_ROW: usize = 4;
/// Panels have the area of a square of this side.
const PANEL: f64 = 128.0;
/// Scale of the overview relative to a panel.
const OVERVIEW_SCALE: f64 = 1.5;
const MARGIN: f64 = 16.0;
/// Gap between the two panels of a head, and between heads.
const GAPS: [f64; 2] = [3.0, 20.0];
/// Height of a head's caption.
const CAPTION: f64 = 20.0;

/// Draws the attention of a query, heads in the order given. Heat maps range from 0 to the largest
/// weight of each head; cells that the query cannot attend to are hatched in heat maps and dark in
/// images.
///
/// # Errors
/// [`PngError`] if the image cannot be encoded.
pub fn draw(input: &InputImage, attention: &QueryAttention) -> Result<Drawing, PngError> {
    let figure = Figure::new(input, attention);
    let columns = attention.heads.len().min(HEADS_PER_ROW) as f64;
    let rows = attention.heads.len().div_ceil(HEADS_PER_ROW) as f64;
    let [width, height] = figure.panel();
    let tile = [2.0 * width + GAPS[0], height + CAPTION];
    let heads = columns * tile[0] + (columns - 1.0) * GAPS[1];
    let overview_frame = figure.overview_frame();
    let [wide, high] = overview_frame.size();
    let top = [wide, high.max(legend::HEIGHT)];
    let mut drawing = Drawing::new(
        2.0 * MARGIN + heads.max(top[0] + GAPS[1] + legend::WIDTH),
        2.0 * MARGIN + top[1] + rows * (tile[1] + 0.7 * GAPS[1]),
    );
    figure.define(&mut drawing)?;
    figure.overview(&mut drawing, &overview_frame);
    legend::draw(&figure, &mut drawing, [MARGIN + top[0] + GAPS[1], MARGIN]);
    for (index, head_attention) in attention.heads.iter().enumerate() {
        let [row, column] = [index / HEADS_PER_ROW, index % HEADS_PER_ROW].map(|i| i as f64);
        let left = MARGIN + column * (tile[0] + GAPS[1]);
        let top = MARGIN + top[1] + 0.7 * GAPS[1] + row * (tile[1] + 0.7 * GAPS[1]);
        figure.head(&mut drawing, [left, top], head_attention)?;
    }
    Ok(drawing)
}

/// Data and geometry of the figure.
struct Figure<'a> {
    input: &'a InputImage,
    attention: &'a QueryAttention,
    /// The input, `[0, 0, width, height]` in its pixels.
    whole: [f64; 4],
    /// Part of the input that the panels show, `[left, top, width, height]` in input pixels.
    part: [f64; 4],
    /// Size of an input pixel in a panel.
    scale: f64,
    /// Suffix of SVG ids: several figures may share one page.
    suffix: String,
}

impl<'a> Figure<'a> {
    fn new(input: &'a InputImage, attention: &'a QueryAttention) -> Self {
        let mut hasher = DefaultHasher::new();
        let QueryAttention { map, cell, visible, .. } = attention;
        (input.image.pixels(), input.size(), map, cell, visible).hash(&mut hasher);
        let suffix = format!("{:016x}", hasher.finish());
        let [height, width] = input.size().map(|side| side as f64);
        let whole = [0.0, 0.0, width, height];
        let mut figure = Self { input, attention, whole, part: whole, scale: 1.0, suffix };
        let part @ [_, _, width, height] = figure.visible_bounds();
        (figure.part, figure.scale) = (part, fit([width, height], PANEL));
        figure
    }

    /// The bounding box of the visible cells, extended by half its size on each side, if that is
    /// less than a quarter of the image; else the whole image.
    fn visible_bounds(&self) -> [f64; 4] {
        let [_, _, width, height] = self.whole;
        let [mut left, mut top, mut right, mut bottom] = [width, height, 0.0, 0.0];
        for cell in (0..self.attention.visible.len()).filter(|&c| self.attention.visible[c]) {
            let columns = self.attention.map[1];
            let [x, y, wide, high] = self.cell(cell / columns, cell % columns);
            (left, top) = (x.min(left), y.min(top));
            (right, bottom) = ((x + wide).max(right), (y + high).max(bottom));
        }
        let [aside, above] = [(right - left) / 2.0, (bottom - top) / 2.0];
        (left, top) = ((left - aside).max(0.0), (top - above).max(0.0));
        (right, bottom) = ((right + aside).min(width), (bottom + above).min(height));
        let part = [left, top, right - left, bottom - top];
        if 4.0 * part[2] * part[3] < width * height { part } else { self.whole }
    }

    /// Whether panels show only a part of the image.
    fn is_zoomed(&self) -> bool {
        self.part != self.whole
    }

    /// Width and height of a panel.
    fn panel(&self) -> [f64; 2] {
        self.frame([0.0; 2]).size()
    }

    /// A panel at a corner.
    fn frame(&self, corner: [f64; 2]) -> Frame {
        Frame { corner, part: self.part, scale: self.scale }
    }

    /// The frame of the overview.
    fn overview_frame(&self) -> Frame {
        let [_, _, width, height] = self.whole;
        let scale = fit([width, height], OVERVIEW_SCALE * PANEL);
        Frame { corner: [MARGIN; 2], part: self.whole, scale }
    }

    /// Defines the image and the mask of invisible cells once, for use in all panels.
    fn define(&self, drawing: &mut Drawing) -> Result<(), PngError> {
        let Self { suffix, scale, .. } = self;
        drawing.element(format_args!("<defs><g id=\"image-{suffix}\">"));
        drawing.image(&encode_png(&self.input.image)?, self.whole, false);
        // Short lines in the corners make the hatch pattern tile seamlessly.
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
            self.filled_path(|cell| !self.attention.visible[cell]),
        ));
        Ok(())
    }

    /// The overview: the image with the query, the border of the visible cells, and the part shown
    /// in panels.
    fn overview(&self, drawing: &mut Drawing, frame: &Frame) {
        frame.draw(drawing, |drawing| {
            self.use_element(drawing, "image", "");
            if self.is_zoomed() {
                self.outline_part(drawing, "#ffffff", frame.scale);
            }
            self.draw_border(drawing, frame);
        });
        drawing.dot(frame.at(self.query()), if self.is_zoomed() { 2.5 } else { 5.0 }, color::QUERY);
    }

    /// Heat map and mask of a head, with a caption above.
    fn head(
        &self,
        drawing: &mut Drawing,
        [left, top]: [f64; 2],
        head_attention: &HeadAttention,
    ) -> Result<(), PngError> {
        let name = head_attention.head.map_or("rollout".into(), |head| format!("head {head}"));
        let entropy = format!("{name} · {:.2} bits", head_attention.entropy);
        let baseline = top + 13.0;
        drawing.text([left, baseline], &entropy, 12.0, color::INK, Anchor::Start);
        let mut details = format!("max {:.2}", head_attention.largest());
        for (mass, name) in [
            (head_attention.padding_mass, "padding"),
            (head_attention.prefix_mass, legend::prefix(self.attention.prefix_keys)),
        ] {
            if mass >= 0.005 {
                details = format!("{name} {:.0} % · {details}", 100.0 * mass);
            }
        }
        let right = left + 2.0 * self.panel()[0] + GAPS[0];
        drawing.text([right, baseline], &details, 10.0, color::FAINT, Anchor::End);

        let frame = self.frame([left, top + CAPTION]);
        let map = encode_png(&self.map(head_attention))?;
        frame.draw(drawing, |drawing| {
            drawing.image(&map, self.whole, true);
            self.use_element(drawing, "unseen", &format!("fill=\"url(#hatch-{})\"", self.suffix));
            self.outline_part(drawing, "#c9ced4", self.scale);
        });
        drawing.dot(frame.at(self.query()), 3.0, color::QUERY);

        let frame = self.frame([left + self.panel()[0] + GAPS[0], top + CAPTION]);
        frame.draw(drawing, |drawing| {
            self.use_element(drawing, "image", "");
            self.use_element(drawing, "unseen", "fill=\"#000000\" fill-opacity=\"0.55\"");
            self.draw_border(drawing, &frame);
            self.mask(drawing, head_attention);
        });
        drawing.dot(frame.at(self.query()), 3.0, color::QUERY);
        Ok(())
    }

    /// Draws the border of the part that panels show.
    fn outline_part(&self, drawing: &mut Drawing, color: &str, scale: f64) {
        let [x, y, width, height] = self.part;
        drawing.element(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"none\" \
             stroke=\"{color}\" stroke-width=\"{:.3}\"/>",
            1.5 / scale
        ));
    }

    /// Draws the mask in red, with an outline.
    fn mask(&self, drawing: &mut Drawing, head_attention: &HeadAttention) {
        let mut inside = vec![false; head_attention.weights.len()];
        head_attention.mask.iter().for_each(|&cell| inside[cell] = true);
        drawing.element(format_args!(
            "<path d=\"{}\" fill=\"#ff0000\" fill-opacity=\"0.5\"/>\
             <path d=\"{}\" fill=\"none\" stroke=\"#ff0000\" stroke-width=\"{:.3}\" \
             stroke-linecap=\"square\"/>",
            self.filled_path(|cell| inside[cell]),
            self.outline_path(|cell| inside[cell]),
            1.25 / self.scale
        ));
    }

    /// Draws the border of the visible cells, unless all are visible.
    fn draw_border(&self, drawing: &mut Drawing, frame: &Frame) {
        if self.attention.visible_cells() < self.attention.visible.len() {
            drawing.element(format_args!(
                "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{:.3}\" \
                 stroke-linecap=\"square\"/>",
                self.outline_path(|cell| self.attention.visible[cell]),
                color::QUERY,
                1.25 / frame.scale
            ));
        }
    }

    /// The heat map, at the resolution of the first stage's patches: cells of the last row and
    /// column may extend beyond the image, or leave a margin that no cell has.
    fn map(&self, head_attention: &HeadAttention) -> Image {
        let QueryAttention { cell, patch, map, .. } = self.attention;
        let [height, width] = self.input.size().map(|side| side / patch);
        let largest = f64::from(head_attention.largest()).max(f64::MIN_POSITIVE);
        let per_cell = cell / patch;
        let pixels = (0..height * width).flat_map(|pixel| {
            let [row, column] = [pixel / width, pixel % width].map(|place| place / per_cell);
            let is_cell = row < map[0] && column < map[1];
            let weight = if is_cell { head_attention.weights[row * map[1] + column] } else { 0.0 };
            color::blue(f64::from(weight) / largest)
        });
        Image::new(width as u32, height as u32, pixels.collect()).expect("a pixel a patch")
    }

    fn use_element(&self, drawing: &mut Drawing, name: &str, style: &str) {
        drawing.element(format_args!("<use href=\"#{name}-{}\" {style}/>", self.suffix));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{BlockPosition, Framing};
    use crate::testing::noise;
    use esvit_data::Preprocess;
    use esvit_data::ViewsConfig;
    use esvit_nn::backbone::{AttentionLayout, Key};

    /// An image of `width` x `height` pixels in cells of 4, of which a query sees some.
    fn input(width: u32, height: u32) -> InputImage {
        let image = noise(width, height, 1);
        let preprocess = Preprocess::new(16, 0, &ViewsConfig::default());
        let size = width.min(height) as usize;
        InputImage::new(&image, &preprocess, Framing::Whole, size, 4).unwrap()
    }

    /// A head with these weights of cells, and of padding.
    fn head(head: usize, weights: &[f32], padding: &[f32]) -> HeadAttention {
        let layout = AttentionLayout::Whole { map: [1, weights.len()], prefix: 0 };
        let keys = [layout.group_keys(0), vec![Key::Padding; padding.len()]].concat();
        HeadAttention::new(Some(head), &keys, &[weights, padding].concat(), &layout, 0.6)
    }

    fn attention(map: [usize; 2], visible: &[usize], weights: Vec<f32>) -> QueryAttention {
        let map_keys = visible.len();
        let visible = (0..map[0] * map[1]).map(|cell| visible.contains(&cell)).collect();
        QueryAttention {
            position: BlockPosition { block: 0, stage: 1, block_in_stage: 0 },
            map,
            cell: 4,
            patch: 4,
            query: [0, 1],
            window: Some([2, 0]),
            visible,
            map_keys,
            padding_keys: 0,
            prefix_keys: 0,
            mass: 0.6,
            heads: vec![head(0, &weights, &[])],
        }
    }

    #[test]
    fn cells_are_drawn_where_they_are() {
        let input = input(16, 8);
        let attention = attention([2, 4], &[0, 1, 2, 3, 4, 5, 6, 7], vec![0.125; 8]);
        let figure = Figure::new(&input, &attention);
        let chosen = |cells: &'static [usize]| move |cell: usize| cells.contains(&cell);
        assert_eq!(
            figure.filled_path(chosen(&[0, 1, 3, 6])),
            "M0 0h8v4h-8zM12 0h4v4h-4zM8 4h4v4h-4z"
        );
        assert_eq!(figure.outline_path(chosen(&[1])), "M4 0H8M4 4H8M4 0V4M8 0V4");
        // Between neighbors there is no edge.
        assert_eq!(figure.outline_path(chosen(&[1, 2])), "M4 0H8M4 4H8M4 0V4M8 0H12M8 4H12M12 0V4");
        assert_eq!(figure.outline_path(chosen(&[1, 5])), "M4 0H8M4 0V4M8 0V4M4 8H8M4 4V8M8 4V8");
        assert_eq!(figure.query(), [6.0, 2.0]);
    }

    #[test]
    fn maps_have_the_color_of_each_cell() {
        let input = input(16, 8);
        let weights: Vec<f32> = (1..=8).map(|weight| weight as f32 / 36.0).collect();
        let attention = attention([2, 4], &[0, 1, 2, 3, 4, 5, 6, 7], weights);
        let figure = Figure::new(&input, &attention);
        let map = figure.map(&attention.heads[0]);
        assert_eq!((map.width(), map.height()), (4, 2));
        for cell in 0..8 {
            let expected = color::blue(f64::from(cell + 1) / 8.0);
            let found = map.pixel(cell % 4, cell / 4).unwrap();
            assert!(found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 1), "{cell}");
        }
    }

    /// Of 3 x 5 patches, a map of 1 x 2 cells of the second stage has the first 2 x 4.
    #[test]
    fn a_margin_without_cells_has_no_weight() {
        let input = input(20, 12);
        let mut attention = attention([1, 2], &[0, 1], vec![0.5, 0.5]);
        (attention.cell, attention.position.stage) = (8, 2);
        let figure = Figure::new(&input, &attention);
        let map = figure.map(&attention.heads[0]);
        assert_eq!((map.width(), map.height()), (5, 3));
        assert_eq!(map.pixel(3, 1), map.pixel(0, 0));
        let nothing = map.pixel(4, 0).unwrap();
        assert_ne!(map.pixel(3, 1).unwrap(), nothing);
        assert_eq!(map.pixel(0, 2).unwrap(), nothing);
        // Beside the first of two lines of cells there is none of the second.
        let mut attention = self::attention([2, 2], &[0, 1, 2, 3], vec![0.25; 4]);
        (attention.cell, attention.position.stage) = (8, 2);
        let map = Figure::new(&self::input(20, 20), &attention).map(&attention.heads[0]);
        assert_eq!((map.width(), map.height()), (5, 5));
        assert_eq!(map.pixel(4, 0).unwrap(), nothing);
    }

    /// Two networks that one page shows may have maps of as many cells.
    #[test]
    fn ids_tell_maps_apart() {
        let input = input(16, 8);
        let suffix = |map| Figure::new(&input, &attention(map, &[0, 1], vec![0.5; 8])).suffix;
        assert_ne!(suffix([2, 4]), suffix([1, 8]));
        assert_eq!(suffix([2, 4]), suffix([2, 4]));
    }

    #[test]
    fn small_surroundings_are_shown_closely() {
        let input = input(64, 32);
        let part = |visible: &[usize]| {
            let attention = attention([8, 16], visible, vec![0.0; 128]);
            let figure = Figure::new(&input, &attention);
            (figure.part, figure.is_zoomed())
        };
        // One cell with half as much around it.
        assert_eq!(part(&[17]), ([2.0, 2.0, 8.0, 8.0], true));
        assert_eq!(part(&[0]), ([0.0, 0.0, 6.0, 6.0], true));
        // Four rows of eight cells, which with their surroundings are no small part.
        let many: Vec<usize> = (0..32).map(|i| 16 * (i / 8) + i % 8).collect();
        assert_eq!(part(&many), ([0.0, 0.0, 64.0, 32.0], false));
    }

    #[test]
    fn parts_have_equal_areas_and_are_not_too_long() {
        assert_eq!((fit([4.0, 4.0], 128.0), fit([64.0, 16.0], 128.0)), (32.0, 4.0));
        assert_eq!((fit([100.0, 1.0], 128.0), fit([1.0, 100.0], 128.0)), (2.56, 2.56));
    }

    #[test]
    fn every_head_has_two_panels() {
        let input = input(16, 8);
        let mut attention = attention([2, 4], &[0, 1, 4, 5], vec![0.125; 8]);
        attention.heads.extend((1..6).map(|number| head(number, &[0.25; 8], &[0.5])));
        let drawing = draw(&input, &attention).unwrap();
        let svg = drawing.svg();
        let count = |part: &str| svg.matches(part).count();
        // The image is stored once; a map for every head.
        assert_eq!((count("<image"), count("href=\"#image-"), count("bits</text>")), (7, 7, 6));
        assert_eq!((count("padding 50 %"), count("head 5 ")), (5, 1));
        assert!(svg.contains("sees 4 of 8 cells"), "{svg}");
    }
}
