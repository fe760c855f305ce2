//! `esvit config`.

use crate::images::good;
use crate::place::Place;

#[test]
fn settings_with_what_they_are_and_where_from() {
    let place = Place::new();
    place.write("own.toml", "[optim]\nlr = 0.002\n");
    let line = "config --recipe esvit --config own.toml --epochs 7 knn.k=5";
    let text = place.well(line).stdout;
    for part in [
        "lr = 0.002  # in `own.toml`",
        "epochs = 7  # on the command line",
        "k = 5  # on the command line",
        "# Images of an optimizer step, over all processes.\nbatch_size = ",
        "# Shorter side before that crop, in pixels; 0 for 256/224 of it.\nresize = 0  # ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // What is printed is a file of settings, and says the same.
    place.write("all.toml", &text);
    let again = place.well("config --config all.toml --json").json();
    assert_eq!(again, place.well(&format!("{line} --json")).json());
    let annotated = place.well("config --config all.toml").stdout;
    assert!(annotated.contains("lr = 0.002  # in `all.toml`"), "{annotated}");
}

#[test]
fn what_auto_chooses_is_said_to_be_chosen() {
    let place = Place::new();
    good(&place, "photos", 40);
    let text = place.well("config --data photos --steps 20").stdout;
    for part in [
        "path = \"photos\"  # on the command line",
        "batch_size = 5  # in recipe `auto`",
        "steps = 20  # on the command line",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn the_schema_is_one_and_knows_the_settings() {
    let place = Place::new();
    let schema = place.well("config --schema").json();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let batch = &schema["properties"]["train"]["properties"]["batch_size"];
    assert_eq!((&batch["type"], &batch["default"]), (&"integer".into(), &64.into()));
    let micro = &schema["properties"]["train"]["properties"]["micro_batch"];
    assert_eq!(micro["anyOf"][1]["const"], "auto");
    place.run("config --schema --json").expect(2).says(&["cannot be used with"]);
    place.run("config train.batch=3").expect(2).says(&["train.batch_size"]);
}
