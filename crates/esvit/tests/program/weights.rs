//! Weights that leave the program, come back, or come from elsewhere.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;

use esvit_weights::{Dtype, Tensor, Tree, Values, WeightsFile, write_safetensors, write_torch};

use crate::place::{Place, TINY};

const CHECKPOINT: &str = "run/checkpoints/epoch=0001-step=00000025.safetensors";

/// Every target with the name of its file or folder, and the file of weights in it.
const EXPORTS: [(&str, &str, &str); 7] = [
    ("timm", "timm", "timm/model.safetensors"),
    ("timm", "timm.safetensors", "timm.safetensors"),
    ("timm", "timm.pth", "timm.pth"),
    ("torchvision", "torchvision.pth", "torchvision.pth"),
    ("transformers", "transformers", "transformers/model.safetensors"),
    ("esvit", "esvit.pth", "esvit.pth"),
    ("esvit", "esvit.safetensors", "esvit.safetensors"),
];

#[test]
fn what_is_exported_comes_back_to_the_bit() {
    let place = Place::with_a_run();
    place.well(&format!("embed --checkpoint {CHECKPOINT} --out run.npy"));
    let expected = std::fs::read(place.path("run.npy")).unwrap();
    for (format, out, weights) in EXPORTS {
        let line = format!("export --checkpoint {CHECKPOINT} --format {format} --out {out}");
        place.well(&line).says(&["to load it:"]);
        place.run(&line).expect(1).says(&["already exists", "--overwrite"]);
        place.well(&format!("diff {CHECKPOINT} {weights}"));
        let facts = place.well(&format!("info {weights} --json")).json();
        assert_eq!(facts["shape"]["embed_dim"], 16, "{facts}");
        assert_eq!(facts["image_size"], 32, "{facts}");
        assert_eq!(facts["assumed"], serde_json::json!([]), "{facts}");
        place.well(&format!("embed --checkpoint {weights} --out again.npy --overwrite"));
        assert!(std::fs::read(place.path("again.npy")).unwrap() == expected, "{weights}");
    }
    // What is there is replaced when that is asked for, here by half as much.
    let line = format!("export --checkpoint {CHECKPOINT} --format timm --out timm.safetensors");
    let size = || place.path("timm.safetensors").metadata().unwrap().len();
    let full = size();
    place.well(&format!("{line} --overwrite --precision f16"));
    assert!(size() < full * 3 / 5, "{} of {full} bytes", size());
    place.run(&format!("{line} --overwrite --size 64")).expect(1).says(&["`--size` is for"]);
    let note = place.well("embed --checkpoint timm.safetensors --out half.npy");
    note.says(&["`timm.safetensors`: ", "named as in timm"]);
    let other = format!("export --checkpoint {CHECKPOINT} --key student --format timm --out s.pth");
    place.well(&other);
    place.run(&format!("diff {CHECKPOINT} s.pth")).expect(1);
    place.well(&other.replace("timm", "esvit").replace("s.pth", "e.pth"));
    let facts = place.well("info e.pth --json").json();
    assert_eq!(facts["networks"], serde_json::json!(["student"]), "{facts}");
    place.well(&format!("diff {CHECKPOINT} e.pth --key student"));
}

#[test]
fn a_graph_is_written_for_the_images_that_are_asked_for() {
    let place = Place::with_a_run();
    let line = format!("export --checkpoint {CHECKPOINT} --format onnx --out");
    place.well(&format!("{line} small.onnx"));
    place.well(&format!("{line} wide.onnx --size 48x64 --precision f16"));
    // Height and width, one after the other among the dimensions of the input.
    let graph = std::fs::read(place.path("wide.onnx")).unwrap();
    assert!(graph.windows(8).any(|bytes| bytes == [10, 2, 8, 48, 10, 2, 8, 64]));
    place.run(&format!("{line} b.onnx --precision bf16")).expect(1).says(&["--precision f16"]);
    assert!(place.path("small.onnx").metadata().unwrap().len() > 10_000);
    place
        .run(&format!("{line} tiny.onnx --size 2"))
        .expect(1)
        .says(&["smaller than what the network needs, 4"]);
    place.run(&format!("{line} graph.pth")).expect(1).says(&["onnx is no `pth` file"]);
    let folder = format!("export --checkpoint {CHECKPOINT} --format torchvision --out tv");
    place.run(&folder).expect(1).says(&["torchvision is one file", "`.safetensors` or `.pth`"]);
}

#[test]
fn both_networks_of_a_run_leave_with_their_heads() {
    let place = Place::with_a_run();
    let line = format!("export --checkpoint {CHECKPOINT} --format esvit --full --out full.pth");
    place.well(&line).says(&["to load it:", "import torch", "checkpoint['teacher']"]);
    let facts = place.well("info full.pth --json").json();
    assert_eq!(facts["networks"], serde_json::json!(["student", "teacher"]), "{facts}");
    assert_eq!(facts["epochs"], 1, "{facts}");
    for key in ["student", "teacher"] {
        place.well(&format!("diff {CHECKPOINT} full.pth --key {key}"));
    }
    // Heads and all begin a new run.
    place
        .well(&format!("pretrain --out next {TINY} train.epochs=1 --init-from full.pth"))
        .says(&["weights of `backbone`, `head`, `head_dense` from"]);
    place
        .run("export --checkpoint full.pth --format esvit --full --out again.pth")
        .expect(1)
        .says(&["not the state of a run"]);
}

#[test]
fn weights_of_another_program_begin_a_run() {
    let place = Place::with_a_run();
    place.well(&format!("export --checkpoint {CHECKPOINT} --format timm --out timm"));
    place
        .well(&format!(
            "pretrain --out next {TINY} train.epochs=1 --init-from timm/model.safetensors"
        ))
        .says(&["weights of `backbone` from", "`head`, `head_dense` start anew"]);
}

#[test]
fn a_class_head_is_left_out_with_a_warning() {
    let place = Place::with_a_run();
    place.well(&format!("export --checkpoint {CHECKPOINT} --format timm --out timm.safetensors"));
    let file = WeightsFile::open(&place.path("timm.safetensors")).unwrap();
    let mut tensors: Vec<(String, Tensor<'_>)> = file
        .tensors()
        .iter()
        .map(|info| {
            let values = || Ok(Values::F32(Cow::Owned(file.read_f32(info).unwrap())));
            (info.name.clone(), Tensor::new(&info.shape, Dtype::F32, values))
        })
        .collect();
    for (name, shape) in [("head.fc.weight", &[5, 32][..]), ("head.fc.bias", &[5])] {
        let values = move || Ok(Values::F32(Cow::Owned(vec![0.0; shape.iter().product()])));
        tensors.push((name.into(), Tensor::new(shape, Dtype::F32, values)));
    }
    let mut with_head = File::create(place.path("head.safetensors")).unwrap();
    write_safetensors(&mut with_head, &tensors, &BTreeMap::new()).unwrap();
    let warning = ["warning: `head.safetensors` has a classification head", "head.fc.weight"];
    place.well("embed --checkpoint head.safetensors --out features.npy").says(&warning);
    let own = place.well(&format!("embed --checkpoint {CHECKPOINT} --out own.npy"));
    assert!(!own.stderr.contains("warning") && !own.stderr.contains("layout"), "{own}");
}

#[test]
fn files_that_are_no_backbone_of_ours_are_explained() {
    let place = Place::new();
    let write = |name: &str, tensors: &[&str]| {
        let tensor = |name: &&str| {
            let values = || Ok(Values::F32(Cow::Borrowed(&[0.0; 4][..])));
            (name.to_string(), Tensor::new(&[2, 2], Dtype::F32, values))
        };
        let tensors: Vec<_> = tensors.iter().map(tensor).collect();
        let mut file = File::create(place.path(name)).unwrap();
        write_safetensors(&mut file, &tensors, &BTreeMap::new()).unwrap();
    };
    write("vit.safetensors", &["cls_token", "blocks.0.attn.qkv.weight"]);
    place.write("page.pth", "<!DOCTYPE html><html>404</html>");
    place.write("cut.pth", b"PK\x03\x04 cut off");
    let info = place.run("info vit.safetensors").expect(1);
    assert!(info.stdout.contains("does not load") && info.stdout.contains("ViT"), "{info}");
    for (file, words) in [
        (
            "vit.safetensors",
            "a vision transformer (ViT) of another form, a backbone that this program does not have",
        ),
        ("page.pth", "hint:"),
        ("cut.pth", "is damaged"),
        ("nothing.pth", "cannot be read"),
    ] {
        place.run(&format!("eval knn --checkpoint {file}")).expect(1).says(&[words, file]);
    }
}

/// The student and the teacher of the run as the dictionaries `names` of a PyTorch file.
fn in_one_file(place: &Place, names: [&str; 2], out: &str) {
    let mut networks = Vec::new();
    for (key, name) in ["student", "teacher"].into_iter().zip(names) {
        let part = format!("{key}.safetensors");
        place.well(&format!(
            "export --checkpoint {CHECKPOINT} --key {key} --format timm --out {part} --overwrite"
        ));
        let file = WeightsFile::open(&place.path(&part)).unwrap();
        let tensor = |info: &esvit_weights::TensorInfo| {
            let values = file.read_f32(info).unwrap();
            let values = move || Ok(Values::F32(Cow::Owned(values.clone())));
            let tensor = Tensor::new(&info.shape, Dtype::F32, values);
            (info.name.clone(), Tree::Tensor(tensor))
        };
        networks.push((name.to_owned(), Tree::Dict(file.tensors().iter().map(tensor).collect())));
    }
    let mut file = File::create(place.path(out)).unwrap();
    write_torch(&mut file, &Tree::Dict(networks)).unwrap();
}

/// The names of MoBY's program tell the method, and which of its networks is evaluated.
#[test]
fn the_method_of_a_checkpoint_is_said() {
    let place = Place::with_a_run();
    let mut tensors = Vec::new();
    for (key, prefix) in [("student", "encoder."), ("teacher", "encoder_k.")] {
        let line = format!("export --checkpoint {CHECKPOINT} --key {key} --format timm");
        place.well(&format!("{line} --out {key}.safetensors"));
        let file = WeightsFile::open(&place.path(&format!("{key}.safetensors"))).unwrap();
        for info in file.tensors() {
            let values = file.read_f32(info).unwrap();
            let values = move || Ok(Values::F32(Cow::Owned(values.clone())));
            let tensor = Tensor::new(&info.shape, Dtype::F32, values);
            tensors.push((format!("{prefix}{}", info.name), Tree::Tensor(tensor)));
        }
    }
    let zeros = || Ok(Values::F32(Cow::Borrowed(&[0.0; 4][..])));
    for name in ["projector.linear_out.weight", "projector_k.linear_out.weight"] {
        tensors.push((name.into(), Tree::Tensor(Tensor::new(&[2, 2], Dtype::F32, zeros))));
    }
    let mut file = File::create(place.path("moby.pth")).unwrap();
    write_torch(&mut file, &Tree::Dict(vec![("model".into(), Tree::Dict(tensors))])).unwrap();
    let facts = place.well("info moby.pth --json").json();
    assert_eq!((&facts["method"], &facts["network"]), (&"MoBY".into(), &"encoder".into()));
    let facts = place.well("info moby.pth --json --key encoder_k").json();
    assert_eq!((&facts["method"], &facts["network"]), (&"MoBY".into(), &"encoder_k".into()));
    let facts = place.well(&format!("info {CHECKPOINT} --json")).json();
    assert!(facts["method"].is_null(), "the settings of a run say more: {facts}");
    let said = ["of MoBY (`encoder`), named as in timm"];
    place.well("embed --checkpoint moby.pth --out features.npy").says(&said);
}

/// Every hint about a network that must be chosen can be followed where it is given.
#[test]
fn a_run_begins_from_the_network_that_is_named() {
    let place = Place::with_a_run();
    in_one_file(&place, ["state_dict", "state_dict_ema"], "ema.pth");
    let line = format!("pretrain {TINY} train.epochs=1 --init-from ema.pth");
    let several = "several networks: `state_dict`, `state_dict_ema`";
    place.run(&format!("{line} --out none")).expect(1).says(&[several, "--key state_dict_ema"]);
    place
        .well(&format!("{line} --out next --key state_dict_ema optim.lr=1e-30"))
        .says(&["weights of `state_dict_ema`"]);
    // At such a rate the weights are still those of the teacher.
    let newest = "next/checkpoints/epoch=0001-step=00000025.safetensors";
    place
        .run(&format!("diff {CHECKPOINT} {newest} --key foo"))
        .expect(1)
        .says(&["no network `foo`"]);
    let same = |key: &str| {
        let left = format!("{key}.safetensors");
        let found = place.run(&format!("diff {left} {newest} --json")).json();
        let largest = found["different"].as_array().unwrap().iter();
        largest.map(|one| one["largest"].as_f64().unwrap()).fold(0.0, f64::max)
    };
    assert!(same("teacher") < 1e-6 && same("student") > 1e-4);
    place.run("info --key student").expect(1).says(&["name the file"]);
    place.run(&format!("pretrain {TINY} --key student")).expect(2);
}

/// A table for people has neither empty rows nor JSON.
#[test]
fn facts_are_shown_in_words() {
    let place = Place::with_a_run();
    in_one_file(&place, ["student", "teacher"], "both.pth");
    for file in [CHECKPOINT, "both.pth", "student.safetensors"] {
        let text = place.well(&format!("info {file}")).stdout;
        for line in text.lines() {
            let value = line.get(20..).unwrap_or_default().trim();
            assert!(!value.is_empty() && !line.contains(['{', '"']), "`{line}` of {file}");
        }
    }
    let text = place.well("info both.pth").stdout;
    assert!(text.contains("networks             student\nnetworks             teacher"), "{text}");
    assert!(text.contains("assumed              the image size is 32 pixels"), "{text}");
    let well = place.well("embed --checkpoint both.pth --out f.npy --img-size 64");
    well.says(&["`eps` of LayerNorm is 1e-5, as in timm"]);
    let facts = place.well("info both.pth --img-size 64 --json").json();
    assert_eq!(facts["preprocess"]["crop"], 64, "{facts}");
}

/// The head of a run with labels is its own: no warning.
#[test]
fn a_run_with_labels_knows_its_head() {
    let place = Place::new();
    crate::images::labeled(&place, "set", 4);
    place.well(
        "pretrain --out run --data set --objective supervised model.arch=custom model.img_size=32 \
         views.global_size=32 model.embed_dim=16 model.depths=[1,1] model.num_heads=[1,2] \
         model.window_size=4 train.batch_size=4 train.epochs=1 optim.warmup=0 knn.every=0",
    );
    let embed = place.well("embed --checkpoint run --data set --out features.npy");
    assert!(!embed.stderr.contains("classification head"), "{embed}");
    let info = place.well("info run").stdout;
    assert!(info.contains("class head: features are those before it"), "{info}");
}
