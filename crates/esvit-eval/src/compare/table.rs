//! A comparison as a table.

use esvit_draw::number::{duration, grouped};

use super::Row;
use crate::probe::MeanStd;

/// A column: its title, and the cell of a row.
type Column = (&'static str, fn(&Row) -> Option<String>);

const COLUMNS: [Column; 10] = [
    ("data", |row| row.data.clone()),
    ("images seen", |row| Some(grouped(row.images_seen?.mean.round() as i64))),
    ("k-NN %", |row| percent(row.knn)),
    ("linear %", |row| percent(row.linear)),
    ("correspondence %", |row| percent(row.correspondence)),
    ("retrieval %", |row| percent(row.retrieval)),
    ("time", |row| row.training_seconds.map(time)),
    ("memory MiB", |row| row.peak_memory_mb.map(|memory| spread(memory, 0))),
    ("parameters", |row| Some(format!("{:.2} M", row.parameters? as f64 / 1e6))),
    ("images/s", |row| Some(grouped(row.forward_images_per_s?.round() as i64))),
];

/// What stands where there is no figure.
const NONE: &str = "-";

/// The rows as a table for a terminal.
pub fn text(rows: &[Row]) -> String {
    let lines = cells(rows);
    let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max();
    let widths: Vec<usize> = (0..lines[0].len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |cells: &Vec<String>| {
        let padded = cells.iter().zip(&widths).enumerate();
        let padded = padded.map(|(column, (cell, &width))| match column {
            0 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The rows as a table in Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let lines = cells(rows);
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule: Vec<String> = (0..lines[0].len())
        .map(|column| if column == 0 { "---" } else { "---:" }.to_owned())
        .collect();
    let escaped = |cells: &Vec<String>| -> Vec<String> {
        cells.iter().map(|cell| cell.replace('|', "\\|")).collect()
    };
    let body = lines[1..].iter().map(|cells| line(&escaped(cells)));
    line(&lines[0]) + &line(&rule) + &body.collect::<String>()
}

/// Titles and cells. A column without figures is left out, and that of the images where all have the
/// same.
fn cells(rows: &[Row]) -> Vec<Vec<String>> {
    let mut lines = vec![vec![String::new()]];
    lines.extend(rows.iter().map(|row| vec![row.label()]));
    for (title, cell) in COLUMNS {
        let found: Vec<Option<String>> = rows.iter().map(cell).collect();
        let mut values = found.iter().flatten();
        let Some(first) = values.next() else { continue };
        if title == "data" && values.all(|value| value == first) {
            continue;
        }
        lines[0].push(title.into());
        for (line, cell) in lines[1..].iter_mut().zip(found) {
            line.push(cell.unwrap_or_else(|| NONE.into()));
        }
    }
    lines
}

fn percent(share: Option<MeanStd>) -> Option<String> {
    share.map(|share| spread(share, 1))
}

/// A mean and its standard deviation.
fn spread(MeanStd { mean, std }: MeanStd, digits: usize) -> String {
    match std {
        Some(std) => format!("{mean:.digits$} ± {std:.digits$}"),
        None => format!("{mean:.digits$}"),
    }
}

fn time(MeanStd { mean, std }: MeanStd) -> String {
    match std {
        Some(std) => format!("{} ± {}", duration(mean), duration(std)),
        None => duration(mean),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Speeds;
    use crate::compare::result::{example, failed};
    use crate::compare::rows;

    #[test]
    fn every_figure_has_its_column() {
        let results = [example("view", 0, 30.0), example("view", 1, 34.0)];
        let table = text(&rows(&["view"], &results, &[], &Speeds::alike(&results, 50.0)));
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[0].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>(),
            [
                "images seen",
                "k-NN %",
                "retrieval %",
                "time",
                "memory MiB",
                "parameters",
                "images/s"
            ]
        );
        let cells: Vec<&str> =
            lines[3].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(
            cells,
            ["view", "80", "32.0 ± 2.8", "7.0 ± 0.0", "11 s ± 1 s", "100 ± 0", "0.25 M", "50"]
        );
        assert!(lines[1].starts_with("raw pixels") && lines[1].contains(" 3.0  "), "{table}");
        let wide: Vec<usize> = lines[1..].iter().map(|line| line.chars().count()).collect();
        assert!(wide.iter().all(|&width| width == lines[0].chars().count()), "{table}");
    }

    #[test]
    fn images_are_named_where_they_differ() {
        let mut results = [example("a", 0, 30.0), example("b", 0, 30.0)];
        assert!(
            !markdown(&rows(&["a", "b"], &results, &[], &Speeds::default())).contains("photos")
        );
        results[1].data = "`other|s` (9 images)".into();
        let table = markdown(&rows(&["a", "b"], &results, &[], &Speeds::default()));
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("|  | data | images seen | k-NN % |"), "{table}");
        assert!(lines[1].starts_with("| --- | ---: | ---: |"), "{table}");
        assert!(lines[4].starts_with("| a | `photos` (40 images) | 80 | 30.0 |"), "{table}");
        assert!(lines[5].starts_with("| b | `other\\|s` (9 images) | 80 |"), "{table}");
    }

    #[test]
    fn a_row_says_what_it_lacks() {
        let results = [example("b", 0, 30.0)];
        let failed = [failed("a", 0), failed("a", 1), failed("b", 1)];
        let table = markdown(&rows(&["a", "b"], &results, &failed, &Speeds::default()));
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[4].starts_with("| a (failed) | - | - | - |"), "{table}");
        assert!(lines[5].starts_with("| b (1 of 2 seeds) | 80 | 30.0 |"), "{table}");
        assert_eq!(text(&rows(&["a"], &[], &failed, &Speeds::default())), "\na (failed)");
    }
}
