//! Checkpoints of self-supervised methods as their official programs write them: what tells the method,
//! which of its networks is evaluated, and where its heads are.

use esvit_weights::WeightsFile;

use super::location::Location;
use super::naming::Naming;

/// A self-supervised method whose checkpoints are known by the names of their tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// DINO.
    Dino,
    /// EsViT.
    Esvit,
    /// MoCo-v2.
    MocoV2,
    /// MoCo-v3.
    MocoV3,
    /// MoBY.
    Moby,
    /// SimCLR v2, converted from TensorFlow.
    SimClr,
    /// BYOL, in OpenSelfSup's form: DeepMind's checkpoints are no tensors of PyTorch.
    Byol,
    /// SwAV.
    Swav,
    /// DenseCL.
    DenseCl,
}

impl Method {
    /// Name in reports.
    pub fn label(self) -> &'static str {
        match self {
            Self::Dino => "DINO",
            Self::Esvit => "EsViT",
            Self::MocoV2 => "MoCo-v2",
            Self::MocoV3 => "MoCo-v3",
            Self::Moby => "MoBY",
            Self::SimClr => "SimCLR v2",
            Self::Byol => "BYOL",
            Self::Swav => "SwAV",
            Self::DenseCl => "DenseCL",
        }
    }
}

/// How a method's program names the networks that it trains. Names are counted from what stands before
/// those of both networks, such as `module.`.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    method: Method,
    /// The network that learns by gradients, which the method's evaluation takes.
    online: &'static str,
    /// The network that follows it.
    momentum: Option<&'static str>,
    /// Tensors that tell it from others with the same names of networks.
    marks: &'static [&'static str],
    /// Heads that are not called as here within their network.
    heads: &'static [Head],
    /// The backbone of the first network again.
    copy: Option<&'static str>,
}

/// The beginning of a head's names.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    /// The part here.
    part: &'static str,
    online: &'static str,
    momentum: Option<&'static str>,
}

const fn head(part: &'static str, online: &'static str, momentum: &'static str) -> Head {
    Head { part, online, momentum: Some(momentum) }
}

/// A head of the network that learns by gradients alone.
const fn student_head(part: &'static str, online: &'static str) -> Head {
    Head { part, online, momentum: None }
}

/// The layouts of programs that train two networks, or have heads beside the network.
static LAYOUTS: [Layout; 7] = [
    Layout {
        method: Method::MocoV2,
        online: "encoder_q.",
        momentum: Some("encoder_k."),
        marks: &["encoder_q.fc.2.weight"],
        heads: &[],
        copy: None,
    },
    Layout {
        method: Method::MocoV3,
        online: "base_encoder.",
        momentum: Some("momentum_encoder."),
        marks: &[],
        heads: &[
            // That of a ResNet; a ViT's is called `head`.
            head("head", "base_encoder.fc.", "momentum_encoder.fc."),
            student_head("predictor", "predictor."),
        ],
        copy: None,
    },
    Layout {
        method: Method::Moby,
        online: "encoder.",
        momentum: Some("encoder_k."),
        marks: &["projector.linear_out.weight"],
        heads: &[
            head("projector", "projector.", "projector_k."),
            student_head("predictor", "predictor."),
        ],
        copy: None,
    },
    Layout {
        method: Method::Swav,
        online: "",
        momentum: None,
        marks: &["projection_head.0.weight", "prototypes.weight"],
        heads: &[],
        copy: None,
    },
    Layout {
        method: Method::DenseCl,
        online: "encoder_q.0.",
        momentum: Some("encoder_k.0."),
        marks: &["encoder_q.1.mlp2.0.weight"],
        heads: &[
            head("mlp", "encoder_q.1.mlp.", "encoder_k.1.mlp."),
            head("mlp2", "encoder_q.1.mlp2.", "encoder_k.1.mlp2."),
        ],
        copy: Some("backbone."),
    },
    // In MMSelfSup.
    Layout {
        method: Method::DenseCl,
        online: "backbone.",
        momentum: Some("encoder_k.0."),
        marks: &["neck.mlp2.0.weight"],
        heads: &[
            head("mlp", "neck.mlp.", "encoder_k.1.mlp."),
            head("mlp2", "neck.mlp2.", "encoder_k.1.mlp2."),
        ],
        copy: None,
    },
    // Its heads have another form than DeepMind's.
    Layout {
        method: Method::Byol,
        online: "online_net.0.",
        momentum: Some("target_net.0."),
        marks: &[],
        heads: &[],
        copy: Some("backbone."),
    },
];

impl Layout {
    /// What stands before the names of both networks, given the prefix of one, and whether that is the
    /// network that follows the other.
    fn stem<'a>(&self, prefix: &'a str) -> Option<(&'a str, bool)> {
        let before = |network: &str| -> Option<&'a str> {
            let stem = prefix.strip_suffix(network)?;
            (stem.is_empty() || stem.ends_with('.')).then_some(stem)
        };
        match before(self.online) {
            Some(stem) => Some((stem, false)),
            None => Some((before(self.momentum?)?, true)),
        }
    }
}

/// A network's place among those that a method trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    layout: &'static Layout,
    /// Whether it follows the one that learns.
    pub(super) is_momentum: bool,
}

impl Member {
    /// Whether another network of the method follows it, or it follows another one.
    pub(super) fn is_one_of_two(&self) -> bool {
        self.layout.momentum.is_some()
    }
}

/// Notes of a network by which method it was trained and as what, if names tell.
pub(super) fn note(file: &WeightsFile, location: &mut Location) {
    location.member = LAYOUTS.iter().find_map(|layout| {
        let (stem, is_momentum) = layout.stem(&location.prefix)?;
        let has = |mark: &&str| file.find(&location.group, &format!("{stem}{mark}")).is_some();
        layout.marks.iter().all(has).then_some(Member { layout, is_momentum })
    });
    location.method = match (location.member, location.naming) {
        (Some(member), _) => Some(member.layout.method),
        (None, Naming::SimClr { .. }) => Some(Method::SimClr),
        (None, _) => of_dino(file, location),
    };
}

/// DINO or EsViT, where a student or teacher has their heads; iBOT's has a token for masked patches, too.
fn of_dino(file: &WeightsFile, location: &Location) -> Option<Method> {
    location.role()?;
    let has = |head: &str| {
        let layers = ["weight_v", "parametrizations.weight.original1"];
        let names = location
            .head_prefixes()
            .into_iter()
            .flat_map(|prefix| layers.map(|layer| format!("{prefix}{head}.last_layer.{layer}")));
        names.into_iter().any(|name| file.find(&location.group, &name).is_some())
    };
    match (has("head"), has("head_dense")) {
        (_, true) => Some(Method::Esvit),
        (true, false) if location.naming == Naming::Esvit => Some(Method::Esvit),
        (true, false) if location.find(file, "masked_embed").is_none() => Some(Method::Dino),
        _ => None,
    }
}

/// The prefix under which the file has a network's backbone again.
pub(super) fn copy_prefix(location: &Location) -> Option<String> {
    let member = location.member.filter(|member| !member.is_momentum)?;
    let (stem, _) = member.layout.stem(&location.prefix)?;
    Some(format!("{stem}{}", member.layout.copy?))
}

/// The dictionary and the beginning of the names of the head that is called `part` here; none where it
/// is called so within its network.
pub(super) fn head_start(location: &Location, part: &str) -> Option<(String, String)> {
    if location.method == Some(Method::SimClr) {
        return simclr_head(location).filter(|_| part == "head_contrastive");
    }
    let Member { layout, is_momentum } = location.member?;
    let head = layout.heads.iter().find(|head| head.part == part)?;
    let (stem, _) = layout.stem(&location.prefix)?;
    let start = if is_momentum { head.momentum? } else { head.online };
    Some((location.group.clone(), format!("{stem}{start}")))
}

/// The dictionary and the name of the tensor that holds a head's parameter, where [`head_start`] has
/// the head.
pub(super) fn head_name(location: &Location, official: &str) -> Option<(String, String)> {
    let (part, rest) = official.split_once('.')?;
    let (group, start) = head_start(location, part)?;
    let rest = match location.method {
        Some(Method::SimClr) => simclr_layer(rest)?,
        _ => rest.into(),
    };
    Some((group, format!("{start}{rest}")))
}

/// The head lies beside the network `resnet`, in a dictionary or under a prefix of its own.
fn simclr_head(location: &Location) -> Option<(String, String)> {
    if let Some(above) = location.prefix.strip_suffix("resnet.") {
        return Some((location.group.clone(), format!("{above}head.layers.")));
    }
    let above = location.group.strip_suffix("resnet")?;
    Some((format!("{above}head"), "layers.".into()))
}

/// Linear layers, norms and ReLUs are one list there.
fn simclr_layer(official: &str) -> Option<String> {
    let (index, rest) = official.strip_prefix("nl_")?.split_once('.')?;
    let first = index.parse::<usize>().ok()?.checked_mul(3)?;
    match rest.strip_prefix("dense.") {
        Some(rest) => Some(format!("{first}.{rest}")),
        None => Some(format!("{}.{}", first + 1, rest.strip_prefix("batch_normalization.")?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::Family;

    #[test]
    fn networks_end_whole_parts_of_a_prefix() {
        let [moco, moby] = [Method::MocoV3, Method::Moby]
            .map(|method| LAYOUTS.iter().find(|layout| layout.method == method).unwrap());
        assert_eq!(moco.stem("module.base_encoder."), Some(("module.", false)));
        assert_eq!(moco.stem("momentum_encoder."), Some(("", true)));
        assert_eq!(moby.stem("encoder."), Some(("", false)));
        assert_eq!(moby.stem("a.encoder_k."), Some(("a.", true)));
        assert_eq!(moby.stem("module.base_encoder."), None);
        assert_eq!(moby.stem("encoder.0."), None);
    }

    #[test]
    fn layers_of_simclr_are_counted_with_norms_and_relus() {
        for (group, prefix, start) in [
            ("resnet", "", ("head", "layers.")),
            ("model/resnet", "", ("model/head", "layers.")),
            ("", "module.resnet.", ("", "module.head.layers.")),
        ] {
            let naming = Naming::SimClr { selective: false };
            let mut location = Location::new(Family::ResNet, naming, group, prefix);
            location.method = Some(Method::SimClr);
            for (official, layer) in [
                ("head_contrastive.nl_0.dense.weight", "0.weight"),
                ("head_contrastive.nl_1.batch_normalization.running_var", "4.running_var"),
                ("head_contrastive.nl_2.dense.weight", "6.weight"),
            ] {
                let expected = Some((start.0.to_owned(), format!("{}{layer}", start.1)));
                assert_eq!(head_name(&location, official), expected, "{group} {prefix}");
            }
            assert_eq!(head_name(&location, "projector.0.weight"), None);
        }
    }
}
