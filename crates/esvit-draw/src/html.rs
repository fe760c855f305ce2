//! HTML building blocks.

use std::fmt::Write;

/// Style sheet for light and dark mode.
const STYLE: &str = include_str!("style.css");

/// A complete page; `body` is HTML. Its content security policy forbids scripts and external
/// resources.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; img-src data:\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\
         </main>\n</body>\n</html>\n"
    )
}

/// A tile with one number.
pub struct Tile {
    /// What is measured.
    pub name: &'static str,
    /// The figure.
    pub value: String,
    /// Its unit; empty for a plain number.
    pub unit: &'static str,
    /// A line below it.
    pub note: String,
}

/// A row of tiles; values and notes are escaped.
pub fn tiles(tiles: impl Iterator<Item = Tile>) -> String {
    let mut html = String::from("<dl class=\"tiles\">\n");
    for Tile { name, value, unit, note } in tiles {
        let _ = writeln!(
            html,
            "<div><dt>{name}</dt><dd><b>{}</b> {unit}<small>{}</small></dd></div>",
            escape(&value),
            escape(&note)
        );
    }
    html + "</dl>\n"
}

/// A table that scrolls sideways on narrow pages. Cells are HTML; columns from `first_number` on
/// are numeric.
pub fn table(head: &[String], rows: &[Vec<String>], first_number: usize) -> String {
    let row = |cells: &[String], tag: &str| -> String {
        let cells = cells.iter().enumerate().map(|(column, cell)| {
            let class = if column >= first_number { " class=\"number\"" } else { "" };
            format!("<{tag}{class}>{cell}</{tag}>")
        });
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let body: String = rows.iter().map(|cells| row(cells, "td")).collect();
    let head = match head {
        [] => String::new(),
        head => format!("<thead>\n{}</thead>\n", row(head, "th")),
    };
    format!("<div class=\"scroll\"><table>\n{head}<tbody>\n{body}</tbody>\n</table></div>\n")
}

/// Escaped text that keeps its line breaks.
pub fn lines(text: &str) -> String {
    text.lines().map(escape).collect::<Vec<_>>().join("\n")
}

/// A message as HTML: text in backticks becomes `<code>`, and what follows `hint: ` is set apart.
pub fn message_html(text: &str) -> String {
    let mut html = String::new();
    for (place, line) in text.lines().enumerate() {
        let (line, tag) = match line.strip_prefix("hint: ") {
            Some(hint) => (hint, "<br><span class=\"hint\">"),
            None if place > 0 => (line, "<br><span>"),
            None => (line, "<span>"),
        };
        html.push_str(tag);
        let parts: Vec<&str> = line.split('`').collect();
        for (index, part) in parts.iter().enumerate() {
            // An unmatched backtick at the end opens nothing.
            let is_code = index % 2 == 1 && index + 1 < parts.len();
            let part = escape(part);
            html.push_str(&if is_code { format!("<code>{part}</code>") } else { part });
        }
        html.push_str("</span>");
    }
    html
}

/// Escapes text for XML and HTML.
pub fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // XML has no way to write other control characters.
    text.replace('"', "&quot;").replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_files_is_escaped() {
        assert_eq!(lines("<a>\nb & \"c\""), "&lt;a&gt;\nb &amp; &quot;c&quot;");
        assert_eq!(
            message_html("see `<x>` & go\nhint: `y`"),
            "<span>see <code>&lt;x&gt;</code> &amp; go</span><br><span class=\"hint\"><code>y</code></span>"
        );
        let tile = Tile { name: "Loss", value: "<1".into(), unit: "", note: "a&b".into() };
        assert!(tiles([tile].into_iter()).contains("<b>&lt;1</b> <small>a&amp;b</small>"));
    }

    /// Figures shrink with the page, and cells wrap before a table is wider than it.
    #[test]
    fn nothing_keeps_a_page_from_being_narrow() {
        for width in STYLE.split("min-width: ").skip(1) {
            let (width, _) = width.split_once(';').unwrap();
            assert!(width == "0" || width.starts_with("min(100%, "), "{width}");
        }
        let (wide, narrow) = STYLE.split_once("@media (max-width: 840px)").unwrap();
        for rule in wide.split('}').filter(|rule| rule.contains("white-space: nowrap")) {
            let (selectors, _) = rule.split_once('{').unwrap();
            for selector in selectors.split(',').map(str::trim) {
                // A figure's own numbers, which are short.
                let is_figure = [".tiles dd b", ".plot span"].contains(&selector);
                let mut undone = narrow.lines().filter(|line| line.contains("white-space: normal"));
                assert!(is_figure || undone.any(|line| line.contains(selector)), "{selector}");
            }
        }
    }

    #[test]
    fn numbers_are_aligned_as_such() {
        let html = table(&["a".into(), "b".into()], &[vec!["x".into(), "1".into()]], 1);
        assert!(html.contains("<tr><th>a</th><th class=\"number\">b</th></tr>"), "{html}");
        assert!(html.contains("<tr><td>x</td><td class=\"number\">1</td></tr>"), "{html}");
    }

    #[test]
    fn a_backtick_without_an_end_opens_nothing() {
        assert_eq!(message_html("a `b` c ` d"), "<span>a <code>b</code> c  d</span>");
        assert_eq!(message_html("one\ntwo"), "<span>one</span><br><span>two</span>");
    }
}
