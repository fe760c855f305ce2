//! The Python code that loads an export.

use std::path::Path;

use esvit_nn::BackboneConfig;
use esvit_nn::backbone::resnet::BlockKind;
use esvit_nn::weights::Naming;
use serde_json::Value;

use super::config_files::{REFUSED, timm_name};
use super::vit::transformers_naming;
use super::{Options, Target};
use crate::PretrainedBackbone;

/// Python code that loads the export, ready to be pasted; it imports what it needs and no more. Models
/// are ready for inference.
///
/// # Panics
/// When the target does not have the network, which [`super::write()`] refuses.
pub fn load_snippet(backbone: &PretrainedBackbone, out: &Path, options: &Options) -> String {
    let model = &backbone.config;
    let path = quoted(&out.display().to_string());
    let is_torch = out.extension().is_some_and(|ending| ending != "safetensors");
    let (load, library) = if is_torch {
        (format!("torch.load({path}, weights_only=True)"), "")
    } else {
        (format!("safetensors.torch.load_file({path})"), "safetensors.torch, ")
    };
    let layer = if model.has_batch_norm() { "BatchNorm2d" } else { "LayerNorm" };
    let norm = format!("functools.partial(torch.nn.{layer}, eps={:e})", model.norm_eps());
    let loaded = format!("model.load_state_dict({load})\nmodel.eval()");
    match options.target {
        Target::Timm if out.is_dir() => {
            let name = quoted(&format!("local-dir:{}", out.display()));
            format!(
                "import functools, timm, torch\n\
                 model = timm.create_model({name}, pretrained=True, norm_layer={norm})\n\
                 model.eval()"
            )
        }
        Target::Timm => {
            let (name, arguments) = timm_name(model);
            let python = |value: &Value| match value.as_bool() {
                Some(true) => "True".to_owned(),
                Some(false) => "False".to_owned(),
                None => value.to_string(),
            };
            let arguments: String = arguments
                .iter()
                .map(|(name, value)| format!(", {name}={}", python(value)))
                .collect();
            format!(
                "import functools, {library}timm, torch\n\
                 model = timm.create_model('{name}', num_classes=0, norm_layer={norm}{arguments})\n\
                 {loaded}"
            )
        }
        Target::Torchvision => format!(
            "import functools, {library}torch, torchvision\n\
             model = torchvision.models.{}, norm_layer={norm})\n\
             model.{} = torch.nn.Identity()\n\
             {loaded}",
            torchvision(model),
            match model {
                BackboneConfig::Vit(_) => "heads",
                BackboneConfig::ResNet(_) => "fc",
                BackboneConfig::Swin(_) => "head",
                BackboneConfig::Pvt(_)
                | BackboneConfig::Cvt(_)
                | BackboneConfig::Vil(_)
                | BackboneConfig::Igpt(_) => unreachable!("{REFUSED}"),
            }
        ),
        Target::Transformers => format!(
            "import transformers\n\
             model = transformers.AutoModel.from_pretrained({path}{}).eval()\n\
             processor = transformers.AutoImageProcessor.from_pretrained({path})",
            if has_pooling_layer(model) { ", add_pooling_layer=False" } else { "" }
        ),
        Target::Esvit if is_torch => {
            format!("import torch\nstate = {load}['{}']", backbone.network_name())
        }
        Target::Esvit => format!("import safetensors.torch\nstate = {load}"),
        Target::Onnx => {
            let [height, width] = options.size;
            format!(
                "import numpy, onnxruntime\n\
                 images = numpy.zeros([1, 3, {height}, {width}], numpy.float32)\n\
                 session = onnxruntime.InferenceSession({path})\n\
                 view, region = session.run(None, {{'images': images}})"
            )
        }
    }
}

/// Whether the class of `transformers` adds a layer after the class token, unless it is told not to.
fn has_pooling_layer(model: &BackboneConfig) -> bool {
    let BackboneConfig::Vit(model) = model else { return false };
    transformers_naming(model) == Naming::Transformers
}

/// The beginning of torchvision's constructor.
fn torchvision(model: &BackboneConfig) -> String {
    match model {
        BackboneConfig::Swin(model) => {
            let (p, w) = (model.patch_size, model.window_size);
            format!(
                "SwinTransformer(patch_size=[{p}, {p}], embed_dim={}, depths={:?}, num_heads={:?}, \
                 window_size=[{w}, {w}], mlp_ratio={:?}",
                model.embed_dim, model.depths, model.num_heads, model.mlp_ratio
            )
        }
        BackboneConfig::Vit(model) => format!(
            "VisionTransformer(image_size={}, patch_size={}, num_layers={}, num_heads={}, \
             hidden_dim={}, mlp_dim={}",
            model.img_size,
            model.patch_size,
            model.depth,
            model.num_heads,
            model.embed_dim,
            (model.embed_dim as f64 * model.mlp_ratio) as usize
        ),
        BackboneConfig::ResNet(model) => {
            let block = match model.block {
                BlockKind::Bottleneck => "Bottleneck",
                BlockKind::Basic => "BasicBlock",
            };
            format!("ResNet(torchvision.models.resnet.{block}, {:?}", model.layers)
        }
        BackboneConfig::Pvt(_)
        | BackboneConfig::Cvt(_)
        | BackboneConfig::Vil(_)
        | BackboneConfig::Igpt(_) => {
            unreachable!("{REFUSED}")
        }
    }
}

/// Python code that loads a checkpoint of the official code, with both networks.
pub fn full_snippet(out: &Path) -> String {
    let path = quoted(&out.display().to_string());
    format!(
        "import torch\n\
         checkpoint = torch.load({path}, weights_only=True)\n\
         student, teacher = checkpoint['student'], checkpoint['teacher']"
    )
}

/// A string of Python.
fn quoted(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '\'' | '\\' => out.extend(['\\', letter]),
            '\n' => out.push_str("\\n"),
            control if control.is_control() => {
                out.push_str(&format!("\\U{:08x}", u32::from(control)));
            }
            plain => out.push(plain),
        }
    }
    format!("'{out}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_strings_of_python() {
        for (path, expected) in [
            ("a b", "'a b'"),
            ("back'bone", r"'back\'bone'"),
            (r"C:\x", r"'C:\\x'"),
            ("say \"x\"", "'say \"x\"'"),
            ("a\nb\u{1b}c", r"'a\nb\U0000001bc'"),
            ("été", "'été'"),
        ] {
            assert_eq!(quoted(path), expected);
        }
    }
}
