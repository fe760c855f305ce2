//! Convolutional vision transformers in files.

use esvit_nn::backbone::cvt::CvtConfig;
use esvit_nn::zoo;
use esvit_testing::tiny_cvt;

use super::*;

/// Running statistics are read like parameters; the number of batches that they are of is left out,
/// as are heads. Networks of the official code have a prefix.
#[test]
fn running_statistics_are_read_back() {
    for res_stem in [false, true] {
        let config = BackboneConfig::Cvt(CvtConfig { res_stem, ..tiny_cvt() });
        let (_, specs) = config.build(0.0);
        let values = params(&specs);
        let mut entries = exported(&values, Family::Cvt, Naming::Esvit, Float::F32);
        entries.push(floats("head.mlp.0.weight", &[2, 12], vec![0.0; 24]));
        let file = opened(&prefixed("module.", entries));
        let stored = StoredNetwork::find(&file, None).unwrap();
        assert_eq!((stored.location().family, networks(&file).len()), (Family::Cvt, 1));
        let (found, report) = stored.load(&specs, &Device::Cpu, |_| None).unwrap();
        assert!(same_bits(&found, &values));
        let norms = specs.iter().filter(|spec| spec.name.ends_with("running_var")).count();
        assert_eq!(report.left_out[reason::DERIVED].len(), norms);
        assert_eq!(report.left_out[reason::PROJECTION], ["module.head.mlp.0.weight"]);
        // Without one of them it is another network.
        let names = values.iter().map(|(spec, _)| spec.name.clone());
        let statistic = names.filter(|name| name.ends_with("running_var")).last().unwrap();
        let mut entries = exported(&values, Family::Cvt, Naming::Esvit, Float::F32);
        entries.retain(|(name, _)| *name != statistic);
        let file = opened(&entries);
        let stored = StoredNetwork::find(&file, None).unwrap();
        let error = stored.load(&specs, &Device::Cpu, |_| None).unwrap_err().to_string();
        assert!(error.contains(&format!("`{statistic}` [12] is missing")), "{error}");
    }
}

/// Tensors tell widths, depths and filters; the rest is that of the published network.
#[test]
fn shapes_of_convolutional_transformers_are_those_of_published_ones() {
    let needed = ["0.norm.weight", "fn.net.0.bias", "0.proj.weight", "stem.0.weight", "dw.weight"];
    for name in ["cvt_s3", "cvt_s3_stem_w14"] {
        let expected = zoo::find(name).unwrap().config();
        let (_, specs) = expected.build(0.0);
        let specs = specs.iter().filter(|spec| needed.iter().any(|end| spec.name.ends_with(end)));
        let zeros = |spec: &ParamSpec| floats(&spec.name, &spec.shape, vec![0.0; spec.len()]);
        let mut entries: Vec<Entry> = specs.map(zeros).collect();
        let shape = |entries: &[Entry]| {
            let file = opened(entries);
            StoredNetwork::find(&file, None).unwrap().shape().map_err(|error| error.to_string())
        };
        assert_eq!(shape(&entries).unwrap(), expected);
        let at = |name: &str| entries.iter().position(|(other, _)| other == name).unwrap();
        let filters = at("stage3.0.proj.weight");
        let whole = std::mem::replace(
            &mut entries[filters],
            floats("stage3.0.proj.weight", &[4, 2, 3], vec![0.0; 24]),
        );
        let error = shape(&entries).unwrap_err();
        assert!(error.contains("is [4, 2, 3], not [width, inputs, side, side]"), "{error}");
        entries[filters] = whole;
        entries.retain(|(name, _)| !name.starts_with("stage3"));
        let error = shape(&entries).unwrap_err();
        assert!(error.contains("no published network has [2, 2, 10] blocks of widths"), "{error}");
    }
}
