//! HTML report of a run.
//!
//! The page is a single self-contained file without scripts.

mod crops;
mod curves;
mod evaluations;
mod figures;
mod findings;
mod learned;
pub(crate) mod metrics;
mod overview;
mod run;
mod tables;

use std::io::Write;
use std::path::{Path, PathBuf};

use esvit_files::{FileError, read_regular, write_atomically};
use esvit_nn::Device;

use esvit_draw::{escape, html, number};
use run::Run;

/// Default file name in the run folder.
const FILE: &str = "report.html";

/// A report cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The folder is not a run folder.
    #[error(
        "there is no run in `{}`: it has neither `config.toml` nor `metrics.jsonl`\n\
         hint: give the folder that `esvit pretrain --out FOLDER` has written",
        .0.display()
    )]
    NotARun(PathBuf),
    /// There is another file in the page's place.
    #[error(
        "`{}` is no report of a run, so it is not replaced\nhint: choose another name with `--out`",
        .0.display()
    )]
    Foreign(PathBuf),
    /// The page cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A written report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenReport {
    /// Path of the page.
    pub path: PathBuf,
    /// Problems of the run.
    pub findings: Vec<String>,
    /// Files that could not be read, and why.
    pub problems: Vec<String>,
}

/// Writes a report of the run in `folder` to `out`, by default `report.html` in the folder. The
/// network runs on `device`. Files that cannot be read are listed in the page. An earlier report is
/// replaced, another file is not.
///
/// # Errors
/// [`ReportError`] if there is no run, or the page cannot be written.
pub fn write(
    folder: &Path,
    out: Option<&Path>,
    device: Device,
) -> Result<WrittenReport, ReportError> {
    let path = out.map_or_else(|| folder.join(FILE), Path::to_path_buf);
    if path.exists() && !esvit_files::is_device(&path) && !is_report(&path) {
        return Err(ReportError::Foreign(path));
    }
    let run = Run::read(folder, device)?;
    let findings = findings::findings(&run);
    let page = page(&run, &findings);
    write_atomically(&path, |file| file.write_all(page.as_bytes()))?;
    Ok(WrittenReport { path, findings, problems: run.problems })
}

/// What a page says of itself.
const KIND: &str = "<p class=\"kind\">EsViT run</p>";

/// Whether a file is a page that was written here.
fn is_report(path: &Path) -> bool {
    read_regular(path).is_ok_and(|text| String::from_utf8_lossy(&text).contains(KIND))
}

/// A section of the page: its HTML id, its heading and its body.
type Section = (&'static str, &'static str, String);

/// The HTML of the page.
fn page(run: &Run, findings: &[String]) -> String {
    let mut sections = vec![("curves", "Curves", curves(run))];
    sections.extend(figures::sections(run));
    sections.extend([
        ("evaluations", "Evaluations", evaluations(run)),
        ("checkpoints", "Checkpoints", checkpoints(run)),
        ("settings", "Settings", settings(run)),
        ("environment", "Environment", environment(run)),
    ]);
    let link = |(anchor, title, _): &Section| format!("<a href=\"#{anchor}\">{title}</a>\n");
    let links: String = sections.iter().map(link).collect();
    let name = escape(&run.name);
    let header = format!(
        "<header>\n{KIND}\n<h1>{name}</h1>\n<p class=\"sentence\">{}</p>\n{}{}\
         <nav>\n{links}</nav>\n</header>\n",
        overview::summary(run),
        overview::key_figures(run),
        overview::warnings(findings, &run.problems),
    );
    let section = |(anchor, title, body): &Section| {
        format!("<section id=\"{anchor}\">\n<h2>{title}</h2>\n{body}</section>\n")
    };
    let body: String = sections.iter().map(section).collect();
    html::page(&format!("{name} – EsViT run"), &(header + &body))
}

/// What a section says instead of a body.
fn missing(what: &str) -> String {
    format!("<p class=\"missing\">{what}</p>\n")
}

fn curves(run: &Run) -> String {
    let charts = curves::charts(run);
    if charts.is_empty() { missing("No metrics are logged yet.") } else { charts }
}

fn evaluations(run: &Run) -> String {
    if !run.evaluations.is_empty() {
        return evaluations::sections(&run.evaluations);
    }
    let next = run.checkpoint().map(|path| {
        let path = escape(&path.display().to_string());
        format!(", for instance with <code>esvit eval knn --checkpoint {path}</code>")
    });
    missing(&format!("Nothing has been evaluated yet{}.", next.unwrap_or_default()))
}

fn checkpoints(run: &Run) -> String {
    if run.checkpoints.is_empty() {
        return missing("There are no checkpoints yet.");
    }
    let row = |file: &run::CheckpointFile| {
        let (step, epoch) = match &file.state {
            Ok([step, epoch]) => (number::grouped(*step as i64), number::grouped(*epoch as i64)),
            Err(reason) => (html::message_html(reason), "–".into()),
        };
        let name = format!("<code>{}</code>", escape(&file.name));
        vec![name, epoch, step, number::bytes(file.bytes)]
    };
    let head = ["File", "Epochs", "Steps", "Size"].map(String::from);
    html::table(&head, &run.checkpoints.iter().map(row).collect::<Vec<_>>(), 1)
}

fn settings(run: &Run) -> String {
    match &run.settings {
        Some(text) => format!(
            "<details>\n<summary>Every setting, defaults included (<code>config.toml</code>)\
             </summary>\n<pre>{}</pre>\n</details>\n",
            html::lines(text)
        ),
        None => missing("<code>config.toml</code> cannot be read."),
    }
}

fn environment(run: &Run) -> String {
    match &run.environment {
        Some(values) => evaluations::object_table(values),
        None => missing("<code>env.json</code> cannot be read."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_train::Config;
    use metrics::tests::step_line;

    /// Names and texts that would be markup, if they were not escaped.
    #[test]
    fn nothing_from_the_folder_is_markup() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("<script>alert(1)<script>&amp;");
        std::fs::create_dir_all(folder.join("eval")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        let mut config = Config::default();
        config.data.path = esvit_data::Folders::of(&["/nowhere/<script>".into()]);
        write("config.toml", &config.to_toml());
        write("env.json", r#"{"<script>": "<script>", "command": ["<script>", "a"]}"#);
        write("metrics.jsonl", &step_line(10, 6.5));
        write(
            "eval/results.jsonl",
            "{\"evaluation\":\"<script>\",\"task\":\"<script>\",\"checkpoint\":\"<script>\",\
             \"network\":\"<script>\",\"epochs\":null,\"steps\":null,\
             \"results\":{\"<script>\":[{\"<script>\":\"<script>\"},\"<script>\"]}}\n",
        );
        let written = super::write(&folder, None, Device::Cpu).unwrap();
        let page = std::fs::read_to_string(written.path).unwrap();
        assert!(page.matches("&lt;script&gt;").count() > 10 && !page.contains("<script"), "{page}");
        assert!(page.contains("Not shown: ") && page.contains("there is no folder"), "{page}");
        assert_eq!(written.problems[0], "`log.txt` is missing");
        assert!(written.problems[1].starts_with("the training images: there is no folder"));
    }

    #[test]
    fn equal_folders_make_equal_pages() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("config.toml"), Config::default().to_toml()).unwrap();
        std::fs::write(place.path().join("metrics.jsonl"), step_line(10, 6.5)).unwrap();
        let page = |name: &str| {
            let written =
                super::write(place.path(), Some(&place.path().join(name)), Device::Cpu).unwrap();
            std::fs::read(written.path).unwrap()
        };
        assert_eq!(page("a.html"), page("b.html"));
        // Written again over itself, and not over anything else.
        assert_eq!(page("a.html"), page("b.html"));
        for name in ["config.toml", "other.html"] {
            std::fs::write(place.path().join("other.html"), "<html><p>mine</p></html>").unwrap();
            let path = place.path().join(name);
            let before = std::fs::read(&path).unwrap();
            let error = super::write(place.path(), Some(&path), Device::Cpu).unwrap_err();
            assert!(matches!(error, ReportError::Foreign(_)), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), before);
        }
    }

    /// A run of 100,000 lines makes a page that still opens on a phone.
    #[test]
    fn a_long_run_makes_a_small_page() {
        let place = tempfile::tempdir().unwrap();
        let lines: String =
            (1..=100_000).map(|line| step_line(line * 10, 6.5 + (line as f64).sin())).collect();
        std::fs::write(place.path().join("metrics.jsonl"), lines).unwrap();
        let written = super::write(place.path(), None, Device::Cpu).unwrap();
        let page = std::fs::read_to_string(written.path).unwrap();
        assert!(page.len() < 300_000, "{} bytes", page.len());
        assert!(page.contains("<b>1,000,000</b>"));
    }
}
