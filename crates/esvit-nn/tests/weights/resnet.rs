//! Residual networks in files.

use esvit_nn::backbone::resnet::{BlockKind, ResNetConfig};
use esvit_nn::weights::Known;
use esvit_testing::tiny_resnet;

use super::*;

/// Residual networks of all kinds under the names of every program, and where these put them.
#[test]
fn residual_networks_are_recognized() {
    let selective = ResNetConfig { selective_kernels: true, ..tiny_resnet() };
    let basic = ResNetConfig { block: BlockKind::Basic, ..tiny_resnet() };
    for (config, naming, prefix) in [
        (tiny_resnet(), Naming::Torchvision, ""),
        (tiny_resnet(), Naming::Transformers, "resnet."),
        (tiny_resnet(), Naming::Esvit, ""),
        (tiny_resnet(), Naming::Esvit, "module."),
        (tiny_resnet(), Naming::Torchvision, "module.backbone."),
        (basic, Naming::Torchvision, "module.encoder_q."),
        (selective.clone(), Naming::Torchvision, ""),
        (tiny_resnet(), Naming::SimClr { selective: false }, ""),
        (selective, Naming::SimClr { selective: true }, "resnet."),
    ] {
        let config = BackboneConfig::ResNet(ResNetConfig { img_size: 224, ..config });
        let (_, list) = config.build(0.0);
        let written = params(&list);
        let entries = exported(&written, Family::ResNet, naming, Float::F32);
        let mut entries = prefixed(prefix, entries);
        // A classifier, which is left out.
        let classes = if naming == Naming::Esvit { "head.weight" } else { "fc.weight" };
        entries.push(floats(&format!("{prefix}{classes}"), &[2, 3], vec![0.0; 6]));
        let file = opened(&entries);
        let stored = StoredNetwork::find(&file, None).unwrap();
        let what = format!("{naming:?}, {prefix}");
        assert_eq!(stored.location().family, Family::ResNet, "{what}");
        assert_eq!(stored.location().naming, naming, "{what}");
        let (shape, assumed) = stored.shape_given(&Known::default()).unwrap();
        assert_eq!((shape, assumed.len()), (config, 2), "{what}");
        let (found, report) = stored.load(&list, &Device::Cpu, |_| None).unwrap();
        assert!(same_bits(&found, &written), "{what}");
        assert_eq!(report.left_out[reason::CLASSES].len(), 1, "{what}");
        let norms = list.iter().filter(|spec| spec.name.ends_with("running_var")).count();
        assert_eq!(report.left_out[reason::DERIVED].len(), norms, "{what}");
    }
    let asked = Known { asked_size: Some(96), stated_eps: Some(1e-3), ..Known::default() };
    let (_, list) = BackboneConfig::ResNet(tiny_resnet()).build(0.0);
    let entries = || exported(&params(&list), Family::ResNet, Naming::Timm, Float::F32);
    let file = opened(&entries());
    let stored = StoredNetwork::find(&file, None).unwrap();
    let (shape, assumed) = stored.shape_given(&asked).unwrap();
    assert_eq!((shape.img_size(), shape.norm_eps(), assumed.len()), (96, 1e-3, 0));
    for (name, shape, expected) in [
        ("conv1.weight", vec![6, 3, 3, 3], "of 3 channels and 3 pixels, not of 3 and 7"),
        ("conv1.weight", vec![6], "`conv1.weight` is [6], not [width, inputs, side, side]"),
        ("layer2.0.conv2.weight", vec![4, 2, 3, 3], "that is a ResNeXt"),
        ("layer1.0.conv3.weight", vec![6, 3, 1, 1], "makes 6 of 3 channels, not four times"),
    ] {
        let mut entries = entries();
        let at = entries.iter().position(|(other, _)| other == name).unwrap();
        entries[at] = floats(name, &shape, vec![0.0; shape.iter().product()]);
        let error =
            StoredNetwork::find(&opened(&entries), None).unwrap().shape().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
