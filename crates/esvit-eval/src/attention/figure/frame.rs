//! Maps a part of the input image to a place in the drawing.

use esvit_draw::Drawing;

/// A part of the input image, placed in the drawing.
pub(super) struct Frame {
    /// Left and top in the drawing.
    pub(super) corner: [f64; 2],
    /// `[left, top, width, height]` in input pixels.
    pub(super) part: [f64; 4],
    /// Size of an input pixel in the drawing.
    pub(super) scale: f64,
}

impl Frame {
    /// Width and height in the drawing.
    pub(super) fn size(&self) -> [f64; 2] {
        [self.part[2] * self.scale, self.part[3] * self.scale]
    }

    /// Draws in coordinates of input pixels, clipped to the part.
    pub(super) fn draw(&self, drawing: &mut Drawing, draw: impl FnOnce(&mut Drawing)) {
        let ([left, top], [x, y, width, height]) = (self.corner, self.part);
        let [wide, high] = self.size();
        drawing.element(format_args!(
            "<svg x=\"{left:.2}\" y=\"{top:.2}\" width=\"{wide:.2}\" height=\"{high:.2}\" \
             viewBox=\"{x} {y} {width} {height}\" preserveAspectRatio=\"none\">"
        ));
        draw(drawing);
        drawing.element("</svg>");
    }

    /// Position in the drawing of a point of the input.
    pub(super) fn at(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        let place = |axis: usize, at| self.corner[axis] + self.scale * (at - self.part[axis]);
        [place(0, x), place(1, y)]
    }
}

/// Scale by which a part gets the area of a square of side `side`, with no side longer than twice
/// that.
pub(super) fn fit([width, height]: [f64; 2], side: f64) -> f64 {
    (side / (width * height).sqrt()).min(2.0 * side / width.max(height))
}
