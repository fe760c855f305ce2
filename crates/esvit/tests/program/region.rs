//! The variants of the region task, of EsViT and of BYOL.

use std::path::Path;

use esvit_train::objective::ObjectiveConfig;
use esvit_train::objective::esvit::{RegionConfig, RegionLoss};
use esvit_train::objective::regions::Matching;

use crate::images::good;
use crate::place::{Place, TINY};

fn region(config: esvit_train::Config) -> RegionConfig {
    let ObjectiveConfig::Esvit(config) = config.objective else { panic!("EsViT") };
    config.region
}

#[test]
fn a_run_keeps_its_variant() {
    let place = Place::new();
    let variant =
        "objective.region.match=sinkhorn objective.region.loss=mse objective.region.tokens=3";
    place.well(&format!("pretrain --out run {TINY} train.epochs=1 {variant}"));
    let expected = RegionConfig {
        enabled: true,
        r#match: Matching::Sinkhorn,
        loss: RegionLoss::Mse,
        tokens: 3,
    };
    assert_eq!(region(place.settings("resume run")), expected);
    // The switch stands for the table, and leaves its other keys.
    let off = format!("pretrain {TINY} {variant} objective.region=false");
    assert_eq!(region(place.settings(&off)), RegionConfig { enabled: false, ..expected });
    let shown = place.well(&format!("config {TINY} objective.region=false")).stdout;
    assert!(shown.contains("enabled = false  # on the command line"), "{shown}");
    let schema = place.well("config --schema").json();
    let table = schema.pointer("/properties/objective/anyOf/0/properties/region").unwrap();
    assert_eq!(table["type"], serde_json::json!(["object", "boolean"]), "{table}");
    for (wrong, part) in [
        ("objective.region.matc=argmax", "did you mean `objective.region.match`"),
        ("objective.region.match=nearest", "bad value for `objective.region.match`"),
        ("objective.region.loss=l1", "bad value for `objective.region.loss`"),
        ("objective.region.tokens=-1", "bad value for `objective.region.tokens`"),
        ("objective.region=1", "bad value for `objective.region`"),
    ] {
        place.run(&format!("config {TINY} {wrong}")).expect(2).says(&[part]);
    }
}

#[test]
fn byol_with_a_region_term() {
    let place = Place::new();
    good(&place, "set", 4);
    let own = TINY.split_whitespace().filter(|word| !word.starts_with("objective."));
    let own: Vec<&str> = own.collect();
    let line = format!(
        "{} train.epochs=1 train.log_every=5 --objective byol objective.hidden_dim=16 \
         objective.out_dim=8",
        own.join(" ")
    );
    for (name, settings) in [
        ("mse", "objective.region.loss=mse"),
        (
            "softmax",
            "objective.region.loss=softmax objective.region.head.out_dim=32 \
             objective.region.head.hidden_dim=16 objective.region.head.bottleneck_dim=8",
        ),
    ] {
        place.well(&format!("pretrain --out {name} {line} {settings} train.micro_batch=2"));
        let metrics = place.folder(name).text("metrics.jsonl");
        assert!(metrics.contains("\"region_loss\":"), "{name}: {metrics}");
        // The heads are none of the backbone's.
        place.well(&format!("embed --checkpoint {name} --data set --out {name}.npy"));
    }
    let wrong = format!("config {line} objective.region.head.out_dim=1");
    place.run(&wrong).expect(2).says(&["`objective.region.head.out_dim` is 1: one prototype"]);
}

/// The paper's comparisons name variants that there are, each another one.
#[test]
fn the_papers_comparisons_can_be_made() {
    let plans = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compare");
    let place = Place::new();
    let line = "compare --out c --recipe materials --seeds 1 --dry-run --json --quiet --variants";
    for (plan, count) in
        [("ablations", 11), ("architectures", 12), ("objectives", 18), ("regions", 4)]
    {
        let plan = plans.join(plan).with_extension("toml");
        let would = place.run_with(line, &[plan.as_os_str()]).expect(0).json();
        let variants = would["variants"].as_array().unwrap();
        assert_eq!(variants.len(), count, "{would}");
        for (index, variant) in variants.iter().enumerate() {
            let differs = |other: &serde_json::Value| {
                ["settings", "continues"].iter().any(|&key| other[key] != variant[key])
            };
            assert!(variants[index + 1..].iter().all(differs), "{variant}");
        }
    }
}
