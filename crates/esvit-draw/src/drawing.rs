//! Vector drawings of images, marks and text, as SVG and PNG.
//!
//! A [`Drawing`] is a list of SVG elements. The SVG file is self-contained; the PNG is rendered
//! from it with the built-in font.

use std::fmt::{Display, Write};
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{self, fontdb};

use crate::{color, escape};

/// Used for PNG; SVG files only name the family.
const FONT: &[u8] = include_bytes!("../font/DejaVuSans-subset.ttf");
const FAMILY: &str = "DejaVu Sans";

/// A drawing on white; coordinates are pixels from the top left.
#[derive(Debug, Clone)]
pub struct Drawing {
    width: f64,
    height: f64,
    body: String,
}

/// A drawing cannot be rendered as PNG.
#[derive(Debug, thiserror::Error)]
#[error("a drawing of {width} x {height} pixels cannot be rendered: {reason}")]
pub struct DrawError {
    /// Width in pixels.
    pub width: f64,
    /// Height in pixels.
    pub height: f64,
    /// Why.
    pub reason: String,
}

/// Horizontal alignment of text at its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The text starts at the point.
    Start,
    /// The text is centered on the point.
    Middle,
    /// The text ends at the point.
    End,
}

impl Drawing {
    /// An empty drawing.
    pub fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    /// Width and height in pixels.
    pub fn size(&self) -> [f64; 2] {
        [self.width, self.height]
    }

    /// Draws another drawing with its top left corner at a point.
    pub fn place(&mut self, other: &Self, [left, top]: [f64; 2]) {
        let body = &other.body;
        self.element(format_args!("<g transform=\"translate({left} {top})\">\n{body}</g>"));
    }

    /// Appends a raw SVG element.
    pub fn element(&mut self, element: impl Display) {
        let _ = writeln!(self.body, "{element}");
    }

    /// Draws a PNG file in the box `[left, top, width, height]`; `sharp` enlarges without
    /// smoothing.
    pub fn image(&mut self, png: &[u8], [left, top, width, height]: [f64; 4], sharp: bool) {
        let data = STANDARD.encode(png);
        let rendering = if sharp { "pixelated" } else { "auto" };
        self.element(format_args!(
            "<image x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" \
             preserveAspectRatio=\"none\" style=\"image-rendering:{rendering}\" \
             href=\"data:image/png;base64,{data}\"/>"
        ));
    }

    /// A line between two points.
    pub fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], color: &str, width: f64) {
        self.element(format_args!(
            "<line x1=\"{x1:.2}\" y1=\"{y1:.2}\" x2=\"{x2:.2}\" y2=\"{y2:.2}\" stroke=\"{color}\" \
             stroke-width=\"{width}\" stroke-linecap=\"round\"/>"
        ));
    }

    /// Line segments through `points`.
    pub fn polyline(&mut self, points: &[[f64; 2]], color: &str, width: f64) {
        let points: Vec<String> = points.iter().map(|[x, y]| format!("{x:.2},{y:.2}")).collect();
        self.element(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" \
             stroke-linejoin=\"round\"/>",
            points.join(" ")
        ));
    }

    /// A filled box `[left, top, width, height]` of some opacity (0 to 1).
    pub fn rect(&mut self, [x, y, width, height]: [f64; 4], color: &str, opacity: f64) {
        self.element(format_args!(
            "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" \
             fill=\"{color}\" fill-opacity=\"{opacity:.3}\"/>"
        ));
    }

    /// A ring.
    pub fn ring(&mut self, [x, y]: [f64; 2], radius: f64, color: &str, width: f64) {
        self.element(format_args!(
            "<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"{radius}\" fill=\"none\" stroke=\"{color}\" \
             stroke-width=\"{width}\"/>"
        ));
    }

    /// A disc with a thin dark outline, visible on any background.
    pub fn dot(&mut self, [x, y]: [f64; 2], radius: f64, color: &str) {
        self.element(format_args!(
            "<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"{radius}\" fill=\"{color}\" \
             stroke=\"{}\" stroke-width=\"0.75\"/>",
            color::INK
        ));
    }

    /// An upright triangle centered on a point.
    pub fn triangle(&mut self, [x, y]: [f64; 2], radius: f64, color: &str) {
        let (half, low) = (radius * 0.866, radius * 0.5);
        self.polygon(&[[x, y - radius], [x + half, y + low], [x - half, y + low]], color);
    }

    /// A filled polygon with a thin dark outline.
    pub fn polygon(&mut self, corners: &[[f64; 2]], color: &str) {
        let corners: Vec<String> = corners.iter().map(|[x, y]| format!("{x:.2},{y:.2}")).collect();
        self.element(format_args!(
            "<polygon points=\"{}\" fill=\"{color}\" stroke=\"{}\" stroke-width=\"0.75\"/>",
            corners.join(" "),
            color::INK
        ));
    }

    /// A line of text with its baseline at the point.
    pub fn text(&mut self, [x, y]: [f64; 2], text: &str, size: f64, color: &str, anchor: Anchor) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.element(format_args!(
            "<text x=\"{x:.2}\" y=\"{y:.2}\" font-size=\"{size}\" fill=\"{color}\" \
             text-anchor=\"{anchor}\">{}</text>",
            escape(text)
        ));
    }

    /// Centered text on a translucent background, for use over images.
    pub fn label(&mut self, [x, y]: [f64; 2], text: &str, size: f64, color: &str) {
        let width = 0.68 * size * text.chars().count() as f64 + 0.4 * size;
        self.rect([x - width / 2.0, y - 0.6 * size, width, 1.2 * size], "#000000", 0.6);
        self.text([x, y + 0.36 * size], text, size, color, Anchor::Middle);
    }

    /// The drawing as an SVG document.
    pub fn svg(&self) -> String {
        let Self { width, height, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"{FAMILY}, Verdana, sans-serif\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n{body}</svg>\n"
        )
    }

    /// Renders the drawing as a PNG file, at `scale` times its size.
    ///
    /// # Errors
    /// [`DrawError`] if the drawing is empty or too large to be rendered.
    pub fn png(&self, scale: f64) -> Result<Vec<u8>, DrawError> {
        let [width, height] = [self.width, self.height].map(|side| side * scale);
        let fail = |reason: String| DrawError { width, height, reason };
        let options = usvg::Options {
            fontdb: FONTS.clone(),
            font_family: FAMILY.into(),
            ..usvg::Options::default()
        };
        let tree =
            usvg::Tree::from_str(&self.svg(), &options).map_err(|error| fail(error.to_string()))?;
        let mut pixels = Pixmap::new(width.ceil() as u32, height.ceil() as u32)
            .ok_or_else(|| fail("it has no pixels, or too many".into()))?;
        let scale = Transform::from_scale(scale as f32, scale as f32);
        resvg::render(&tree, scale, &mut pixels.as_mut());
        pixels.encode_png().map_err(|error| fail(error.to_string()))
    }
}

/// The built-in font, parsed once.
static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(FONT.to_vec());
    fonts.set_sans_serif_family(FAMILY);
    Arc::new(fonts)
});

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_data::{DecodeLimits, Image, decode, encode_png};

    fn rendered(drawing: &Drawing, scale: f64) -> Image {
        decode(&drawing.png(scale).unwrap(), &DecodeLimits::default()).unwrap()
    }

    #[test]
    fn images_and_marks_are_where_they_were_put() {
        let red = Image::new(1, 1, vec![255, 0, 0]).unwrap();
        let mut drawing = Drawing::new(40.0, 20.0);
        drawing.image(&encode_png(&red).unwrap(), [10.0, 0.0, 10.0, 20.0], true);
        drawing.dot([30.0, 10.0], 4.0, "#0000ff");
        let shown = rendered(&drawing, 2.0);
        assert_eq!((shown.width(), shown.height()), (80, 40));
        assert_eq!(shown.pixel(5, 20), Some([255, 255, 255]));
        assert_eq!(shown.pixel(30, 20), Some([255, 0, 0]));
        assert_eq!(shown.pixel(60, 20), Some([0, 0, 255]));
    }

    /// Without a font nothing would be drawn, silently.
    #[test]
    fn words_are_drawn_with_the_built_in_font() {
        let mut drawing = Drawing::new(60.0, 20.0);
        drawing.text([2.0, 16.0], "A&<0", 16.0, "#000000", Anchor::Start);
        let dark = rendered(&drawing, 1.0).pixels().iter().filter(|&&value| value < 64).count();
        assert!(dark > 100, "{dark} dark values");
        assert!(drawing.svg().contains("A&amp;&lt;0"));
    }

    #[test]
    fn no_size_is_an_error() {
        assert!(Drawing::new(0.0, 10.0).png(1.0).is_err());
    }

    #[test]
    fn triangles_stand_on_their_base() {
        let mut drawing = Drawing::new(40.0, 40.0);
        drawing.triangle([20.0, 20.0], 12.0, "#ff0000");
        let shown = rendered(&drawing, 1.0);
        let red = |x, y| shown.pixel(x, y).is_some_and(|[r, g, _]| r > 200 && g < 60);
        // Narrow at the top and wide below.
        assert!(red(20, 12) && red(13, 24) && red(27, 24) && !red(13, 12) && !red(20, 28));
    }

    #[test]
    fn sharp_images_keep_their_pixels() {
        let two = Image::new(2, 1, vec![255, 0, 0, 0, 0, 255]).unwrap();
        let shown = |sharp| {
            let mut drawing = Drawing::new(40.0, 10.0);
            drawing.image(&encode_png(&two).unwrap(), [0.0, 0.0, 40.0, 10.0], sharp);
            (drawing.svg().contains("pixelated"), rendered(&drawing, 1.0).pixel(18, 5).unwrap())
        };
        assert_eq!(shown(true), (true, [255, 0, 0]));
        let (sharp, [red, _, blue]) = shown(false);
        assert!(!sharp && red < 250 && blue > 5, "{red} {blue}");
    }

    #[test]
    fn words_stand_where_they_are_anchored() {
        let dark = |anchor| {
            let mut drawing = Drawing::new(90.0, 20.0);
            drawing.text([45.0, 16.0], "MMM", 14.0, "#000000", anchor);
            let shown = rendered(&drawing, 1.0);
            let column = |x: &u32| (0..20).any(|y| shown.pixel(*x, y).unwrap()[0] < 100);
            let dark: Vec<u32> = (0..90).filter(column).collect();
            (dark[0], dark[dark.len() - 1])
        };
        let [start, middle, end] = [Anchor::Start, Anchor::Middle, Anchor::End].map(dark);
        assert!(start.0 >= 44 && end.1 <= 46, "{start:?} {end:?}");
        assert!((middle.0 + middle.1).abs_diff(90) <= 4, "{middle:?}");
    }

    #[test]
    fn labels_are_centered_on_their_background() {
        let mut drawing = Drawing::new(100.0, 40.0);
        drawing.label([50.0, 20.0], "MMM", 14.0, "#ffffff");
        let shown = rendered(&drawing, 1.0);
        let is_dark = |x| shown.pixel(x, 13).unwrap()[0] < 150;
        let dark: Vec<u32> = (0..100).filter(|&x| is_dark(x)).collect();
        assert!((dark[0] + dark[dark.len() - 1]).abs_diff(99) <= 2, "{dark:?}");
    }

    #[test]
    fn letters_that_xml_does_not_have_are_blanks() {
        assert_eq!(escape("a\u{1}b\u{7f}c\t\"<>&'"), "a b c &quot;&lt;&gt;&amp;'");
    }
}
