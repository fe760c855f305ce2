//! The built-in cases of backbones beside Swin, of objectives beside EsViT's and of their heads: everything that
//! must come out is compared, in each of them.

use esvit_nn::backbone::Family;
use esvit_train::objective::ObjectiveConfig;

use super::*;

/// All built-in cases, by name.
fn built_in() -> Vec<(String, Case)> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens");
    let folders = std::fs::read_dir(goldens).unwrap().map(|entry| entry.unwrap().path());
    let cases = folders.filter(|path| path.is_dir()).map(|path| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let case = Case::open(&name);
        (name, case)
    });
    cases.collect()
}

fn kind(case: &Case) -> &str {
    case.settings["kind"].as_str().unwrap()
}

/// Those of the kinds that this is about.
fn cases() -> Vec<(String, Case)> {
    let mut cases = built_in();
    cases.retain(|(_, case)| match kind(case) {
        "backbone" => case.settings["family"] != "swin",
        "quantize-igpt" => true,
        kind => kind.starts_with("objective-") || kind.starts_with("head-"),
    });
    cases
}

/// How far off a tensor may be, if it must come out.
fn tolerance(kind: &str, name: &str, values: &[f32]) -> Option<Tolerance> {
    if name.contains("grad_out.") {
        return None;
    }
    if name.contains("grad") {
        // In exact arithmetic there is none.
        let is_vanishing = values.iter().all(|value| value.abs() < 1e-4);
        return Some(if is_vanishing { Tolerance::Absolute(1e-5) } else { GRADIENT });
    }
    let begins = |starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
    if kind == "backbone" {
        let is_feature = begins(&["cls.", "region.", "last_", "registers."]);
        let is_of_training = begins(&["train.cls", "train.region", "train.after."]);
        return (is_feature || is_of_training).then_some(OUTPUT);
    }
    let is_value = match (kind, name) {
        ("objective-supervised", "mixed" | "target") => true,
        ("objective-simclr", "logits_ab") => true,
        ("objective-masked-patch", "hidden") => true,
        ("quantize-igpt", "scaled") => true,
        _ => {
            let ends = name.ends_with("_after") || name.ends_with(".logits");
            ends || begins(&["out.", "buffer_after."]) || name.contains(".assignment.")
        }
    };
    is_value.then_some(Tolerance::Largest(1e-5))
}

/// Places of losses in settings, below `at`.
fn losses(settings: &Value, at: &str) -> Vec<String> {
    let inner = |(key, value): (String, &Value)| {
        let place = format!("{at}/{key}");
        let is_loss = value.is_f64() && place.contains("/loss") && key != "loss_lambda";
        if is_loss { vec![place] } else { losses(value, &place) }
    };
    match settings {
        Value::Object(table) => {
            table.iter().map(|(key, value)| (key.clone(), value)).flat_map(inner).collect()
        }
        Value::Array(list) => {
            let numbered = list.iter().enumerate();
            numbered.map(|(number, value)| (number.to_string(), value)).flat_map(inner).collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn every_result_is_compared() {
    for (name, case) in cases() {
        let kind = kind(&case);
        let results = case.tensors.iter().filter_map(|(tensor, (_, values))| {
            let Values::F32(values) = values else { return None };
            Some((tensor.as_str(), tolerance(kind, tensor, values)?))
        });
        let results: Vec<(&str, Tolerance)> = results.collect();
        assert!(!results.is_empty(), "{name}");
        values_are_compared(&name, &results);
    }
}

#[test]
fn every_loss_is_compared() {
    let mut count = 0;
    for (name, case) in cases() {
        for place in losses(&case.settings, "") {
            for (factor, expected) in [(0.5, 0), (2.0, 1), (-2.0, 1)] {
                let mut off = Case::open(&name);
                let value = off.settings.pointer_mut(&place).unwrap();
                *value = json!(value.as_f64().unwrap() * (1.0 + factor * 1e-5));
                assert_eq!(off.failing().len(), expected, "{name} {place} {factor}");
            }
            count += 1;
        }
    }
    assert!(count >= ObjectiveConfig::NAMES.len(), "{count}");
}

#[test]
fn every_family_and_objective_has_a_case() {
    let cases = built_in();
    for family in Family::ALL {
        let has_gradients = |case: &Case| {
            let mut names = case.tensors.keys();
            names.any(|name| name.starts_with("grad.") || name.starts_with("train.grad."))
        };
        let is_own = |case: &Case| case.settings["family"] == family.name();
        let found = cases.iter().any(|(_, case)| is_own(case) && has_gradients(case));
        assert!(found, "{}", family.name());
    }
    for name in ObjectiveConfig::NAMES {
        let expected = match *name {
            "esvit" => "objective".to_owned(),
            "mocov2" => "objective-moco2".to_owned(),
            other => format!("objective-{}", other.replace('_', "-")),
        };
        assert!(cases.iter().any(|(_, case)| kind(case) == expected), "{expected}");
    }
}

#[test]
fn a_gradient_that_is_missing_fails() {
    let mut missing = Case::open("backbone-vit");
    missing.tensors.remove("train.grad.blocks.1.mlp.fc2.bias").unwrap();
    let Outcome::Failed(error) = missing.report().outcome else { panic!("it is not compared") };
    assert_eq!(error.to_string(), "tensor `train.grad.blocks.1.mlp.fc2.bias` is missing");
    // Cases without weights of the features have none.
    let mut without = Case::open("backbone-vit");
    without.tensors.retain(|name, _| !name.starts_with("train.grad"));
    assert_eq!(without.failing(), [""; 0]);
}

#[test]
fn colors_of_patches_are_compared() {
    let mut off = Case::open("objective-masked-patch");
    let Values::I64(colors) = &mut off.tensors.get_mut("colors").unwrap().1 else { panic!() };
    colors.to_mut()[2] += 1;
    assert_eq!(off.failing(), ["colors"]);
    let mut short = Case::open("objective-masked-patch");
    let (shape, Values::I64(colors)) = short.tensors.get_mut("colors").unwrap() else { panic!() };
    colors.to_mut().pop();
    *shape = vec![colors.len()];
    assert_eq!(short.failing(), ["colors"]);
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let huge = json!(10_u64.pow(18));
    for (name, key, value, expected) in [
        ("distill", "dim", json!(0), "4 rows of 0 values"),
        ("distill", "prototypes", json!(8), "tensor `anchors` is [7, 5], not [8, 5]"),
        ("dinov2-softmax", "views", json!(1), "there are 1 views of 3 images"),
        ("dinov2-softmax", "views", huge, "tensor `student_view` is [12, 6]"),
        ("dinov2-softmax", "masked", json!(5), "tensor `student_patch` is [4, 6], not [5, 6]"),
        ("masked-patch", "patch", json!(0), "no patch of 0 pixels"),
        ("masked-patch", "patch", json!(5), "no patch of 5 pixels"),
        ("masked-patch", "patch", json!(1), "tensor `tokens` is [8, 1], not [40, 1]"),
    ] {
        let mut case = Case::open(&format!("objective-{name}"));
        case.settings[key] = value;
        let Outcome::Failed(error) = case.report().outcome else { panic!("{name} {key}") };
        assert!(error.to_string().contains(expected), "{name} {key}: {error}");
    }
}
