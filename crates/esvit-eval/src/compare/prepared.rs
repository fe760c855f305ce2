//! How images are prepared for the networks of a comparison, where that differs.

use serde_json::{Map, Value};

use super::RunResult;
use super::rows::{groups, variants_of};

/// What differs in how images are prepared for the variants, in words; `None` if nothing does.
pub fn preparation(results: &[RunResult]) -> Option<String> {
    let groups = groups(results, |result| &result.preprocess);
    if groups.len() < 2 {
        return None;
    }
    let settings: Vec<Map<String, Value>> =
        groups.iter().map(|group| settings(&group[0].preprocess)).collect();
    let differs = |key: &&String| settings.iter().any(|of| of.get(*key) != settings[0].get(*key));
    let mut keys: Vec<&String> = settings.iter().flat_map(Map::keys).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.retain(differs);
    let line = |(group, settings): (&Vec<&RunResult>, &Map<String, Value>)| {
        let of = |key: &&String| match settings.get(*key) {
            Some(value) => format!("{key} {value}"),
            None => format!("the usual {key}"),
        };
        let names = variants_of(group).join("`, `");
        format!("`{names}` with {}", keys.iter().map(of).collect::<Vec<_>>().join(", "))
    };
    let lines: Vec<String> = groups.iter().zip(&settings).map(line).collect();
    Some(format!("images are not prepared alike: {}", lines.join("; ")))
}

/// The fields of a stored preprocessing.
fn settings(preprocess: &str) -> Map<String, Value> {
    match serde_json::from_str(preprocess) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::from_iter([("preprocessing".to_owned(), preprocess.into())]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::result::example;
    use esvit_data::Preprocess;

    fn prepared(variant: &str, preprocess: &Preprocess) -> RunResult {
        let preprocess = serde_json::to_string(preprocess).unwrap();
        RunResult { preprocess, ..example(variant, 0, 10.0) }
    }

    #[test]
    fn what_differs_is_said() {
        let usual = Preprocess::published(32);
        let mut other = usual.clone();
        other.transform.resize = 32;
        let alike = [prepared("a", &usual), prepared("b", &usual)];
        assert_eq!((preparation(&alike), preparation(&[])), (None, None));
        let [a, b] = alike;
        let results = [a, prepared("c", &other), b];
        assert_eq!(
            preparation(&results).unwrap(),
            "images are not prepared alike: `a`, `b` with resize 37; `c` with resize 32"
        );
        other = usual.clone();
        other.background = esvit_data::Background::Color([1, 2, 3]);
        other.std = [1.0; 3];
        let words = preparation(&[prepared("a", &usual), prepared("b", &other)]).unwrap();
        for part in ["`a` with the usual background, std [0.2", "`b` with background ", "std [1.0,"]
        {
            assert!(words.contains(part), "{part}: {words}");
        }
    }
}
