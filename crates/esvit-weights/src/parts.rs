//! Weights that are stored as several files: `model-00001-of-00003.safetensors` and so on, with an
//! index `model.safetensors.index.json` that names the file of every tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{ErrorKind, ensure};
use crate::limits::{MAX_HEADER, MAX_PARTS};
use crate::source::Source;

const INDEX: &str = ".index.json";

/// The files that hold the weights named by `path`: all parts of a set for its index or one of the
/// parts, else the file itself.
pub(crate) fn of(path: &Path) -> Result<Vec<PathBuf>, ErrorKind> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Ok(vec![path.into()]);
    };
    let names = match Numbered::of(name) {
        _ if name.ends_with(INDEX) => indexed(path)?,
        Some(part) if part.count > 1 => part.all()?,
        _ => return Ok(vec![path.into()]),
    };
    let parts: Vec<PathBuf> = names.into_iter().map(|name| path.with_file_name(name)).collect();
    let missing = parts.iter().find(|part| !part.exists());
    match missing.and_then(|part| part.file_name()) {
        None => Ok(parts),
        Some(missing) => Err(ErrorKind::Unsupported {
            found: format!(
                "it belongs to a set of {} files, of which `{}` is missing",
                parts.len(),
                missing.to_string_lossy()
            ),
            hint: "put all parts of the set into one folder, and name any of them",
        }),
    }
}

/// The name of a part: `STEM-00001-of-00003.ENDING`.
struct Numbered<'a> {
    stem: &'a str,
    count: usize,
    /// Number of digits.
    digits: usize,
    ending: &'a str,
}

impl<'a> Numbered<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let (name, ending) = name.rsplit_once('.')?;
        let (name, count) = name.rsplit_once("-of-")?;
        let (stem, number) = name.rsplit_once('-')?;
        let is_number =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let fits = is_number(number) && is_number(count) && number.len() == count.len();
        let (number, digits): (usize, _) = (number.parse().ok().filter(|_| fits)?, count.len());
        let count = count.parse().ok().filter(|count| (1..=*count).contains(&number))?;
        Some(Self { stem, count, digits, ending })
    }

    /// Names of all parts of its set.
    fn all(&self) -> Result<Vec<String>, ErrorKind> {
        let Self { stem, count, ending, .. } = self;
        let digits = self.digits;
        ErrorKind::check_limit("parts", *count, MAX_PARTS)?;
        let name = |number| format!("{stem}-{number:0digits$}-of-{count:0digits$}.{ending}");
        Ok((1..=*count).map(name).collect())
    }
}

/// The names of files in an index.
fn indexed(path: &Path) -> Result<Vec<String>, ErrorKind> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let source = Source::open(path)?;
    ErrorKind::check_limit("bytes of index", source.length(), MAX_HEADER)?;
    let text = source.read(0, source.length())?;
    let bad = |reason: String| ErrorKind::Unsupported {
        found: format!("it is no index of weights: {reason}"),
        hint: "name the file of weights itself",
    };
    let index: Index = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    ErrorKind::check_limit("parts", names.len(), MAX_PARTS)?;
    ensure!(!names.is_empty(), bad("it names no file".into()));
    for name in &names {
        // Only files beside the index: it may come from a stranger.
        let is_plain = Path::new(name).file_name().is_some_and(|plain| plain == name.as_str());
        ensure!(is_plain, bad(format!("`{name}` is no name of a file beside it")));
    }
    Ok(names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parts: Result<Vec<PathBuf>, ErrorKind>) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        parts.unwrap().iter().map(name).collect()
    }

    #[test]
    fn a_part_stands_for_its_set() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let set = ["m-00001-of-00003.safetensors", "m-00002-of-00003.safetensors"];
        set.iter().for_each(|name| std::fs::write(path(name), "").unwrap());
        let error = of(&path(set[1])).unwrap_err().to_string();
        assert!(error.contains("a set of 3 files, of which `m-00003-of-00003"), "{error}");
        std::fs::write(path("m-00003-of-00003.safetensors"), "").unwrap();
        for name in set {
            let found = names(of(&path(name)));
            assert_eq!(found[..2], set);
            assert_eq!(found[2..], ["m-00003-of-00003.safetensors"]);
        }
    }

    #[test]
    fn other_names_stand_for_themselves() {
        for name in [
            "model.safetensors",
            "m-00001-of-00001.safetensors",
            "m-1-of-003.bin",
            "m-4-of-3.bin",
            "m-0-of-3.bin",
            "m-x-of-y.bin",
            "1-of-2.bin",
            "epoch=0001-step=00000018.safetensors",
        ] {
            assert_eq!(names(of(Path::new(name))), [name]);
        }
        assert!(of(Path::new("m-0000001-of-9999999.bin")).is_err());
    }

    #[test]
    fn an_index_names_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors.index.json");
        for name in ["b", "a"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write(r#"{"metadata": {}, "weight_map": {"x": "b", "y": "a", "z": "b"}}"#);
        assert_eq!(names(of(&path)), ["a", "b"]);
        for (text, part) in [
            (r#"{"weight_map": {"x": "../a"}}"#, "`../a` is no name"),
            (r#"{"weight_map": {"x": "/etc/passwd"}}"#, "`/etc/passwd` is no name"),
            (r#"{"weight_map": {}}"#, "names no file"),
            (r#"{"weights": {}}"#, "missing field"),
            (r#"{"weight_map": {"x": "c"}}"#, "`c` is missing"),
        ] {
            write(text);
            let error = of(&path).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("hint: "), "{error}");
        }
    }
}
