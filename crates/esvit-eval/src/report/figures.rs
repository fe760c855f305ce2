//! Drawings of the report, with captions.

use std::error::Error;

use super::run::Run;
use super::{Section, crops, learned, missing};
use esvit_data::printable;
use esvit_draw::Drawing;
use esvit_draw::html::message_html;
use esvit_model::features::SkippedImage;

/// Caption and drawing, or why there is none; text with backticks.
pub(super) type Figure = Result<(String, Drawing), Box<dyn Error>>;

/// All sections with drawings, in order; one that fails gives the reason.
pub(super) fn sections(run: &Run) -> [Section; 5] {
    [
        ("crops", "Crops", crops::figure(run)),
        ("neighbors", "Nearest neighbors", learned::neighbors(run)),
        ("matches", "Matching regions", learned::matches(run)),
        ("attention", "Attention", learned::attention(run)),
        ("regions", "Region features", learned::regions(run)),
    ]
    .map(|(anchor, title, figure)| (anchor, title, body(figure)))
}

/// What a caption says of images that could not be read, a line each.
pub(super) fn left_out(images: &[SkippedImage]) -> String {
    let line = |image: &SkippedImage| {
        format!("\nleft out: `{}`: {}", printable(&image.name), image.reason)
    };
    images.iter().map(line).collect()
}

fn body(figure: Figure) -> String {
    match figure {
        Ok((text, drawing)) => format!(
            "<p>{}</p>\n<div class=\"drawing\">\n{}</div>\n",
            message_html(&text),
            drawing.svg()
        ),
        Err(reason) => missing(&format!("Not shown: {}", message_html(&reason.to_string()))),
    }
}
