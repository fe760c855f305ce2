//! Residual networks in a file of weights.

use esvit_weights::WeightsFile;

use super::{Known, MAX_STAGES, find, marked, sizes};
use crate::backbone::Family;
use crate::backbone::resnet::{BlockKind, ResNetConfig};
use crate::weights::location::Location;
use crate::weights::naming::{ESVIT_WRAPPER, Naming};

/// A parameter that every ResNet has.
const MARK: &str = "layer1.0.conv1.weight";
/// A parameter without which it is another network.
const NEEDED: &str = "bn1.running_mean";

/// The second convolution of a stem with selective kernels, where a plain one has pooling.
const SIMCLR_STEM: &str = "net.0.2.weight";

/// Side of the images of published networks.
const SIDE: usize = 224;

/// All ResNets in a file.
pub(super) fn networks(file: &WeightsFile) -> Vec<Location> {
    let mut found = marked(file, Family::ResNet, Naming::Transformers, MARK);
    found.extend(marked(file, Family::ResNet, Naming::Torchvision, MARK).into_iter().map(
        |location| match location.prefix.strip_suffix(ESVIT_WRAPPER) {
            Some(prefix) => Location::new(Family::ResNet, Naming::Esvit, &location.group, prefix),
            None => location,
        },
    ));
    let simclr = marked(file, Family::ResNet, Naming::SimClr { selective: false }, MARK);
    found.extend(simclr.into_iter().map(|location| {
        let selective = location.find(file, SIMCLR_STEM).is_some();
        location.with_naming(Naming::SimClr { selective })
    }));
    found.retain(|location| find(file, location, NEEDED).is_some());
    found
}

/// Infers a network's shape from its tensors; with a line for everything that was assumed, since
/// nothing says it.
///
/// # Errors
/// Names the tensor that is missing or has another shape.
pub(super) fn shape(
    file: &WeightsFile,
    location: &Location,
    known: &Known,
) -> Result<(ResNetConfig, Vec<String>), String> {
    let exists = |official: &str| find(file, location, official).is_some();
    let filters = |official: &str| -> Result<[usize; 4], String> {
        sizes(file, location, official, "[width, inputs, side, side]")
    };
    let selective_kernels = exists("layer1.0.conv2.attn.fc_reduce.weight");
    let stem = if selective_kernels { "conv1.6.weight" } else { "conv1.weight" };
    let [stem_width, inputs, side, _] = filters(stem)?;
    if !selective_kernels && [inputs, side] != [3, 7] {
        return Err(format!(
            "its first convolution is of {inputs} channels and {side} pixels, not of 3 and 7"
        ));
    }
    let block = match exists("layer1.0.conv3.weight") {
        true => BlockKind::Bottleneck,
        false => BlockKind::Basic,
    };
    let (mut widths, mut layers) = (Vec::new(), Vec::new());
    while exists(&format!("layer{}.0.conv1.weight", layers.len() + 1)) {
        let stage = layers.len() + 1;
        if stage > MAX_STAGES {
            return Err(format!("it has more than {MAX_STAGES} stages"));
        }
        let name = |block: usize, conv: &str| format!("layer{stage}.{block}.{conv}.weight");
        let [width, ..] = filters(&name(0, "conv1"))?;
        if !selective_kernels {
            let [_, inputs, ..] = filters(&name(0, "conv2"))?;
            if inputs != width {
                return Err(format!(
                    "`{}` has filters of {inputs} of {width} channels: that is a ResNeXt",
                    name(0, "conv2")
                ));
            }
        }
        if block == BlockKind::Bottleneck {
            let [outputs, ..] = filters(&name(0, "conv3"))?;
            if outputs != width * block.expansion() {
                return Err(format!(
                    "`{}` makes {outputs} of {width} channels, not four times as many",
                    name(0, "conv3")
                ));
            }
        }
        layers.push((0..).take_while(|&at| exists(&name(at, "conv1"))).count());
        widths.push(width);
    }
    let mut assumed = Vec::new();
    let img_size = known.asked_size.or(known.stated_size).unwrap_or_else(|| {
        assumed.push(format!("the image size is {SIDE} pixels, the usual one"));
        SIDE
    });
    let norm_eps = known.norm_eps(location, ["BatchNorm", "torchvision"], &mut assumed);
    let config =
        ResNetConfig { img_size, block, stem_width, widths, layers, selective_kernels, norm_eps };
    config.validate().map_err(|error| error.to_string())?;
    Ok((config, assumed))
}
