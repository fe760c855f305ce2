//! What there is to see: drawings with a few words to each.

use super::run::Run;
use super::{crops, learned};
use esvit_draw::Drawing;
use esvit_draw::html::code_in;

/// Something to see, or why it cannot be shown; literals stand in backticks.
pub(super) type Shown = Result<(String, Drawing), String>;

/// A section of the page.
pub(super) struct Section {
    /// Its name in links.
    pub(super) anchor: &'static str,
    /// Its heading.
    pub(super) title: &'static str,
    /// Makes the words on how to read the drawing, and the drawing.
    make: fn(&Run) -> Shown,
}

/// All that there is to see, in the order of the page.
pub(super) const SECTIONS: [Section; 5] = [
    Section { anchor: "crops", title: "Crops", make: crops::shown },
    Section { anchor: "neighbors", title: "Nearest neighbors", make: learned::neighbors },
    Section { anchor: "matches", title: "Matching regions", make: learned::matches },
    Section { anchor: "attention", title: "Attention", make: learned::attention },
    Section { anchor: "regions", title: "Region features", make: learned::regions },
];

/// The sections as HTML; one that cannot be made says why.
pub(super) fn sections(run: &Run) -> String {
    let html = |Section { anchor, title, make }: &Section| {
        let body = match make(run) {
            Ok((text, drawing)) => format!(
                "<p>{}</p>\n<div class=\"drawing\">\n{}</div>\n",
                code_in(&text),
                drawing.svg()
            ),
            Err(reason) => format!("<p class=\"missing\">Not shown: {}</p>\n", code_in(&reason)),
        };
        format!("<section id=\"{anchor}\">\n<h2>{title}</h2>\n{body}</section>\n")
    };
    SECTIONS.iter().map(html).collect()
}
