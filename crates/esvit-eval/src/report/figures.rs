//! Drawings of the report, with captions.

use std::error::Error;

use super::run::Run;
use super::{crops, learned};
use esvit_draw::Drawing;
use esvit_draw::html::message_html;

/// Caption and drawing, or why there is none; text with backticks.
pub(super) type Figure = Result<(String, Drawing), Box<dyn Error>>;

/// A section of the page.
pub(super) struct Section {
    /// HTML id.
    pub(super) anchor: &'static str,
    /// Its heading.
    pub(super) title: &'static str,
    /// Makes caption and drawing.
    make: fn(&Run) -> Figure,
}

/// All sections with drawings, in order.
pub(super) const SECTIONS: [Section; 5] = [
    Section { anchor: "crops", title: "Crops", make: crops::figure },
    Section { anchor: "neighbors", title: "Nearest neighbors", make: learned::neighbors },
    Section { anchor: "matches", title: "Matching regions", make: learned::matches },
    Section { anchor: "attention", title: "Attention", make: learned::attention },
    Section { anchor: "regions", title: "Region features", make: learned::regions },
];

/// The sections as HTML; one that fails gives the reason.
pub(super) fn sections(run: &Run) -> String {
    let html = |Section { anchor, title, make }: &Section| {
        let body = match make(run) {
            Ok((text, drawing)) => format!(
                "<p>{}</p>\n<div class=\"drawing\">\n{}</div>\n",
                message_html(&text),
                drawing.svg()
            ),
            Err(reason) => {
                format!(
                    "<p class=\"missing\">Not shown: {}</p>\n",
                    message_html(&reason.to_string())
                )
            }
        };
        super::section(anchor, title, &body)
    };
    SECTIONS.iter().map(html).collect()
}
