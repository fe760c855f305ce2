//! Checkpoints as the official programs of self-supervised methods write them.

use esvit_nn::backbone::vit::VitConfig;
use esvit_nn::params::Init;
use esvit_nn::weights::Method;
use esvit_testing::{tiny_resnet, tiny_vit};

use super::*;

/// A program's layout: dictionary, networks, and heads.
struct Layout {
    method: Method,
    family: Family,
    naming: Naming,
    group: &'static str,
    online: &'static str,
    momentum: Option<&'static str>,
    /// Parameters of heads here, and where the file has them for both networks.
    heads: &'static [(&'static str, &'static str, Option<&'static str>)],
    /// Tensors of the state of training.
    state: &'static [&'static str],
}

const MOCO_V2: Layout = Layout {
    method: Method::MocoV2,
    family: Family::ResNet,
    naming: Naming::Torchvision,
    group: "state_dict",
    online: "module.encoder_q.",
    momentum: Some("module.encoder_k."),
    heads: &[
        ("fc.0.weight", "module.encoder_q.fc.0.weight", Some("module.encoder_k.fc.0.weight")),
        ("fc.2.weight", "module.encoder_q.fc.2.weight", Some("module.encoder_k.fc.2.weight")),
        ("fc.2.bias", "module.encoder_q.fc.2.bias", Some("module.encoder_k.fc.2.bias")),
    ],
    state: &["module.queue", "module.queue_ptr"],
};

const MOCO_V3: Layout = Layout {
    method: Method::MocoV3,
    family: Family::Vit,
    naming: Naming::Timm,
    group: "state_dict",
    online: "module.base_encoder.",
    momentum: Some("module.momentum_encoder."),
    heads: &[
        (
            "head.0.weight",
            "module.base_encoder.head.0.weight",
            Some("module.momentum_encoder.head.0.weight"),
        ),
        (
            "head.4.bias",
            "module.base_encoder.head.4.bias",
            Some("module.momentum_encoder.head.4.bias"),
        ),
        ("predictor.3.weight", "module.predictor.3.weight", None),
    ],
    state: &[],
};

const MOCO_V3_RESNET: Layout = Layout {
    family: Family::ResNet,
    naming: Naming::Torchvision,
    heads: &[
        (
            "head.0.weight",
            "module.base_encoder.fc.0.weight",
            Some("module.momentum_encoder.fc.0.weight"),
        ),
        ("predictor.3.weight", "module.predictor.3.weight", None),
    ],
    ..MOCO_V3
};

const MOBY: Layout = Layout {
    method: Method::Moby,
    family: Family::Swin,
    naming: Naming::Microsoft,
    group: "model",
    online: "encoder.",
    momentum: Some("encoder_k."),
    heads: &[
        (
            "projector.linear_hidden.1.weight",
            "projector.linear_hidden.1.weight",
            Some("projector_k.linear_hidden.1.weight"),
        ),
        (
            "projector.linear_out.weight",
            "projector.linear_out.weight",
            Some("projector_k.linear_out.weight"),
        ),
        ("predictor.linear_out.bias", "predictor.linear_out.bias", None),
    ],
    state: &["queue1", "queue2", "queue_ptr"],
};

const SWAV: Layout = Layout {
    method: Method::Swav,
    family: Family::ResNet,
    naming: Naming::Torchvision,
    group: "",
    online: "module.",
    momentum: None,
    heads: &[
        ("projection_head.0.weight", "module.projection_head.0.weight", None),
        ("projection_head.3.bias", "module.projection_head.3.bias", None),
        ("prototypes.weight", "module.prototypes.weight", None),
    ],
    state: &[],
};

const DENSECL: Layout = Layout {
    method: Method::DenseCl,
    family: Family::ResNet,
    naming: Naming::Torchvision,
    group: "state_dict",
    online: "encoder_q.0.",
    momentum: Some("encoder_k.0."),
    heads: &[
        ("mlp.2.weight", "encoder_q.1.mlp.2.weight", Some("encoder_k.1.mlp.2.weight")),
        ("mlp2.0.weight", "encoder_q.1.mlp2.0.weight", Some("encoder_k.1.mlp2.0.weight")),
    ],
    state: &["queue", "queue_ptr", "queue2", "queue2_ptr"],
};

const LAYOUTS: [Layout; 9] = [
    MOCO_V2,
    MOCO_V3,
    MOCO_V3_RESNET,
    MOBY,
    Layout { family: Family::Vit, naming: Naming::Timm, ..MOBY },
    SWAV,
    DENSECL,
    // In MMSelfSup.
    Layout {
        online: "backbone.",
        heads: &[
            ("mlp.2.weight", "neck.mlp.2.weight", Some("encoder_k.1.mlp.2.weight")),
            ("mlp2.0.weight", "neck.mlp2.0.weight", Some("encoder_k.1.mlp2.0.weight")),
        ],
        ..DENSECL
    },
    // In OpenSelfSup.
    Layout {
        method: Method::Byol,
        online: "online_net.0.",
        momentum: Some("target_net.0."),
        heads: &[],
        state: &["online_net.1.mlp.0.weight", "head.predictor.mlp.0.weight"],
        ..DENSECL
    },
];

impl Layout {
    fn backbone(&self) -> BackboneConfig {
        match self.family {
            Family::Swin => BackboneConfig::Swin(config()),
            Family::Vit => BackboneConfig::Vit(VitConfig {
                embed_dim: 64,
                num_heads: 1,
                depth: 1,
                ..tiny_vit()
            }),
            _ => BackboneConfig::ResNet(tiny_resnet()),
        }
    }

    /// The backbone with the heads; those that one network alone has are heads of the student.
    fn network(&self) -> Network {
        let (network, ()) = Network::new(&self.backbone(), 0.0, |scope, _| {
            for (name, _, momentum) in self.heads {
                let (part, rest) = name.split_once('.').unwrap();
                let mut head = match momentum.is_some() || self.momentum.is_none() {
                    true => scope.head(part),
                    false => scope.student_head(part),
                };
                head.param(rest, &[2, 3], Init::Zeros);
            }
        });
        network
    }

    /// The tensors of a network in the file.
    fn entries(&self, params: &Params, is_momentum: bool) -> Vec<Entry> {
        let prefix = if is_momentum { self.momentum.unwrap_or_default() } else { self.online };
        let place = |(name, tensor): Entry| -> Option<Entry> {
            let head = self.heads.iter().find(|(official, ..)| *official == name);
            let name = match head {
                Some((_, _, momentum)) if is_momentum => (*momentum)?.to_owned(),
                Some((_, online, _)) => (*online).to_owned(),
                None => format!("{prefix}{name}"),
            };
            Some((name, tensor))
        };
        let all = exported(params, self.family, self.naming, Float::F32).into_iter();
        all.filter_map(place).collect()
    }

    /// All tensors of a checkpoint.
    fn checkpoint(&self, online: &Params, momentum: &Params) -> Vec<Entry> {
        let mut entries = self.entries(online, false);
        if self.momentum.is_some() {
            entries.extend(self.entries(momentum, true));
        }
        entries.extend(self.state.iter().map(|name| floats(name, &[2], vec![0.5; 2])));
        entries
    }

    fn opened(&self, entries: Vec<Entry>) -> WeightsFile {
        match self.group {
            "" => opened(&entries),
            group => opened_torch(vec![(group, entries)]),
        }
    }

    /// What the file calls a parameter of the backbone.
    fn name(&self, official: &str) -> String {
        format!("{}{}", self.online, self.naming.names(self.family, official)[0])
    }
}

/// Backbones and heads of both networks come back to the bit, and without a key the network is that
/// which the method's own evaluation takes.
#[test]
fn both_networks_are_read_with_their_heads() {
    for layout in LAYOUTS {
        let what = format!("{:?}, {:?}, {}", layout.method, layout.family, layout.online);
        let network = layout.network();
        let specs = network.specs();
        let (online, momentum) = (params(specs), Params::init(specs, 7, &Device::Cpu));
        let file = layout.opened(layout.checkpoint(&online, &momentum));
        let count = 1 + usize::from(layout.momentum.is_some());
        assert_eq!(networks(&file).len(), count, "{what}");

        let stored = StoredNetwork::find(&file, None).unwrap();
        let location = stored.location();
        assert_eq!(location.method, Some(layout.method), "{what}");
        assert_eq!(
            (&location.prefix[..], location.naming),
            (layout.online, layout.naming),
            "{what}"
        );
        let shape = stored.shape().unwrap();
        assert_eq!(shape.stages().len(), layout.backbone().stages().len(), "{what}");
        for (name, ..) in layout.heads {
            assert!(stored.has_part(name.split('.').next().unwrap()), "{what}: {name}");
        }
        assert!(specs.iter().all(|spec| stored.has_shape(spec)), "{what}");
        let (found, report) = stored.load(specs, &Device::Cpu, |_| None).unwrap();
        assert!(same_bits(&found, &online), "{what}");
        assert_eq!(report.matched, specs.len(), "{what}");

        // The backbone alone, as it is evaluated.
        let (_, alone) = layout.backbone().build(0.0);
        let (_, report) = stored.load(&alone, &Device::Cpu, |_| None).unwrap();
        assert_eq!(report.matched, alone.len(), "{what}");
        assert!(!report.left_out.contains_key(reason::CLASSES), "{what}");

        let Some(prefix) = layout.momentum else { continue };
        let stored = StoredNetwork::find(&file, Some(prefix)).unwrap();
        assert_eq!(stored.location().method, Some(layout.method), "{what}");
        let lacks = |spec: &ParamSpec| spec.part.is_student_only();
        for part in specs.iter().filter(|spec| lacks(spec)).filter_map(|spec| spec.part.head()) {
            assert!(!stored.has_part(part), "{what}: {part}");
        }
        let zeros = |spec: &ParamSpec| lacks(spec).then(|| vec![0.0; spec.len()]);
        let (found, _) = stored.load(specs, &Device::Cpu, zeros).unwrap();
        assert!(same_bits(&found, &momentum), "{what}");
    }
}

/// As for every other layout, by the names that the file has.
#[test]
fn what_does_not_fit_is_named_as_the_file_names_it() {
    for layout in LAYOUTS {
        let network = layout.network();
        let specs = network.specs();
        let spec = |ends: [&str; 2]| -> &ParamSpec {
            specs.iter().find(|spec| ends.iter().any(|end| spec.name.ends_with(end))).unwrap()
        };
        let [lacking, other] = [["mlp.fc2.bias", "bn2.bias"], ["norm2.bias", "bn3.bias"]].map(spec);
        let [missing, misshapen] = [lacking, other].map(|spec| layout.name(&spec.name));
        let unknown = format!("{}something.weight", layout.online);
        let values = params(specs);
        let mut entries = layout.checkpoint(&values, &values);
        entries.retain(|(name, _)| *name != missing);
        let at = entries.iter().position(|(name, _)| *name == misshapen).unwrap();
        entries[at] = floats(&misshapen, &[1, 1, 1, 1, 1], vec![0.0]);
        entries.push(floats(&unknown, &[1], vec![0.0]));
        let file = layout.opened(entries);
        let stored = StoredNetwork::find(&file, None).unwrap();
        let error = stored.load(specs, &Device::Cpu, |_| None).unwrap_err().to_string();
        for line in [
            "3 tensors differ".to_owned(),
            format!("`{missing}` {:?} is missing", lacking.shape),
            format!("`{misshapen}` is [1, 1, 1, 1, 1], the network has"),
            format!("`{unknown}` has no place in the network"),
        ] {
            assert!(error.contains(&line), "{line}\n{error}");
        }
    }
}

/// A head of which only a part is there.
#[test]
fn missing_parameters_of_heads_are_named_where_they_should_be() {
    let (network, gone) = (MOBY.network(), "projector.linear_hidden.1.weight");
    let values = params(network.specs());
    let mut entries = MOBY.checkpoint(&values, &values);
    entries.retain(|(name, _)| name != gone);
    let file = MOBY.opened(entries);
    let stored = StoredNetwork::find(&file, None).unwrap();
    let error = stored.load(network.specs(), &Device::Cpu, |_| None).unwrap_err().to_string();
    assert!(error.contains(&format!("1 tensors differ:\n  `{gone}` [2, 3] is missing")), "{error}");
}

/// DenseCL's code stores the backbone twice: it is one, or an error.
#[test]
fn a_backbone_that_is_stored_twice_is_compared() {
    let network = DENSECL.network();
    let values = params(network.specs());
    let (_, alone) = DENSECL.backbone().build(0.0);
    let again = |(name, tensor): Entry| -> Option<Entry> {
        Some((format!("backbone.{}", name.strip_prefix(DENSECL.online)?), tensor))
    };
    let copy = || -> Vec<Entry> {
        DENSECL.entries(&values, false).into_iter().filter_map(again).collect()
    };
    let names = |file: &WeightsFile| -> Vec<String> {
        networks(file).iter().map(|at| at.network().to_owned()).collect()
    };
    let file = DENSECL.opened(joined([DENSECL.checkpoint(&values, &values), copy()]));
    assert_eq!(names(&file), ["encoder_q", "encoder_k"]);
    let stored = StoredNetwork::find(&file, None).unwrap();
    let (found, report) = stored.load(network.specs(), &Device::Cpu, |_| None).unwrap();
    assert!(same_bits(&found, &values));
    assert_eq!(report.left_out[reason::SECOND_NAME].len(), alone.len());

    let mut other = copy();
    let name = "backbone.layer2.1.bn3.bias";
    let at = other.iter().position(|(found, _)| found == name).unwrap();
    other[at] = floats(name, &[16], vec![0.25; 16]);
    let file = DENSECL.opened(joined([DENSECL.checkpoint(&values, &values), other]));
    let stored = StoredNetwork::find(&file, None).unwrap();
    let error = stored.load(network.specs(), &Device::Cpu, |_| None).unwrap_err().to_string();
    let line =
        format!("1 tensors differ:\n  `{name}` differs from `encoder_q.0.layer2.1.bn3.bias`");
    assert!(error.contains(&line), "{error}");
    // The network that follows has no copy.
    let stored = StoredNetwork::find(&file, Some("encoder_k")).unwrap();
    assert!(stored.load(network.specs(), &Device::Cpu, |_| None).is_ok());
}

/// What `extract_weights.py` leaves is a ResNet as of torchvision, of no method.
#[test]
fn an_extracted_backbone_tells_no_method() {
    let (_, list) = DENSECL.backbone().build(0.0);
    let entries = exported(&params(&list), Family::ResNet, Naming::Torchvision, Float::F32);
    let file = opened_torch(vec![("state_dict", entries)]);
    let stored = StoredNetwork::find(&file, None).unwrap();
    assert_eq!((stored.location().naming, stored.location().method), (Naming::Torchvision, None));
    assert!(stored.load(&list, &Device::Cpu, |_| None).is_ok());
    // Nor does MoBY's name of its network alone.
    let swin = exported(&params(&specs(&config())), Family::Swin, Naming::Esvit, Float::F32);
    let file = opened_torch(vec![("model", prefixed("encoder.", swin))]);
    assert_eq!(networks(&file)[0].method, None);
}

/// ResNets of SimCLR with both kinds of blocks, and the head in a dictionary of its own.
#[test]
fn networks_of_simclr_come_with_the_head_beside_them() {
    for selective in [false, true] {
        let resnet = esvit_nn::backbone::resnet::ResNetConfig {
            selective_kernels: selective,
            ..tiny_resnet()
        };
        let (network, _) = Network::new(&BackboneConfig::ResNet(resnet), 0.0, |scope, width| {
            let mut head = scope.head("head_contrastive");
            for (layer, shape) in [
                ("nl_0.dense.weight", vec![width, width]),
                ("nl_0.batch_normalization.weight", vec![width]),
                ("nl_1.dense.weight", vec![3, width]),
            ] {
                head.param(layer, &shape, Init::Zeros);
            }
        });
        let values = params(network.specs());
        let naming = Naming::SimClr { selective };
        let (mut resnet, mut head) = (Vec::new(), Vec::new());
        for (name, tensor) in exported(&values, Family::ResNet, naming, Float::F32) {
            match name.strip_prefix("head_contrastive.") {
                Some("nl_0.dense.weight") => head.push(("layers.0.weight".to_owned(), tensor)),
                Some("nl_0.batch_normalization.weight") => {
                    head.push(("layers.1.weight".to_owned(), tensor));
                }
                Some(_) => head.push(("layers.3.weight".to_owned(), tensor)),
                None => resnet.push((name, tensor)),
            }
        }
        resnet.push(floats("fc.weight", &[1, 2], vec![0.0; 2]));
        head.push(floats("layers.4.bias", &[3], vec![0.0; 3]));
        let file = opened_torch(vec![("resnet", resnet), ("head", head)]);
        let stored = StoredNetwork::find(&file, None).unwrap();
        let location = stored.location();
        assert_eq!((location.method, location.naming), (Some(Method::SimClr), naming));
        assert!(stored.has_part("head_contrastive") && !stored.has_part("head"));
        let (found, report) = stored.load(network.specs(), &Device::Cpu, |_| None).unwrap();
        assert!(same_bits(&found, &values));
        assert_eq!(report.left_out[reason::CLASSES], ["fc.weight"]);
    }
}

/// DINO's and EsViT's checkpoints are told apart by their heads.
#[test]
fn students_and_teachers_tell_their_method_by_their_heads() {
    let vit = MOCO_V3.backbone().build(0.0).1;
    let vit =
        || prefixed("backbone.", exported(&params(&vit), Family::Vit, Naming::Timm, Float::F32));
    let swin = || exported(&params(&specs(&config())), Family::Swin, Naming::Esvit, Float::F32);
    let head = |name: &str| floats(&format!("{name}.last_layer.weight_v"), &[2, 2], vec![0.0; 4]);
    let masked = || floats("backbone.masked_embed", &[1, 64], vec![0.0; 64]);
    for (group, entries, expected) in [
        ("teacher", joined([vit(), vec![head("head")]]), Some(Method::Dino)),
        ("student", joined([swin(), vec![head("head")]]), Some(Method::Esvit)),
        ("teacher", joined([vit(), vec![head("head"), head("head_dense")]]), Some(Method::Esvit)),
        ("teacher", joined([vit(), vec![head("head"), masked()]]), None),
        ("teacher", vit(), None),
        ("model", joined([vit(), vec![head("head")]]), None),
    ] {
        let file = opened_torch(vec![(group, entries)]);
        assert_eq!(networks(&file)[0].method, expected, "{group}");
    }
}
