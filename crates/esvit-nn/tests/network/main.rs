//! Networks and operations against the same written out, and what a pass leaves behind.

#![allow(clippy::unwrap_used)]

mod cvt;
mod heads;
mod igpt;
mod masking;
mod operations;
mod prefix;
mod pvt;
mod resnet;
mod stored;
mod swin;
mod vil;
mod vit;

use std::sync::Arc;

use esvit_nn::backbone::AttentionMap;
use esvit_nn::backbone::swin::SwinConfig;
use esvit_nn::esvit_heads::{EsvitHeads, Predictions};
use esvit_nn::forward_ctx::{DropPathKey, StepPart};
use esvit_nn::head::{Head, HeadConfig};
use esvit_nn::ops::{
    self, Activation, AttentionValues, Compute, LinearValues, NormValues, Pairs, Precision,
    PrototypeLogits, Segment, TeacherRows, WindowMap,
};
use esvit_nn::params::{Init, Registry, Role, Scope};
use esvit_nn::{Backbone, BackboneConfig, Device, ForwardCtx, Network, Params, Tape, Tensor};
use esvit_testing::{
    assert_alike, assert_close, composed, fill, hashed, hashed_tensor, hashed_times, tiny_pvt,
    tiny_resnet, tiny_swin,
};

const KEY: DropPathKey = DropPathKey { seed: 3, step: 5 };

fn config() -> BackboneConfig {
    let depths = vec![2, 1];
    let (img_size, patch_size, norm_eps) = (16, 2, 1e-2);
    BackboneConfig::Swin(SwinConfig { img_size, patch_size, depths, norm_eps, ..tiny_swin() })
}

const DROP_PATH: f64 = 0.6;

fn swin() -> (Arc<dyn Backbone>, Params) {
    let (swin, list) = config().build(DROP_PATH);
    (swin, fill(&list, 0))
}

fn images(stream: u32, shape: [usize; 4]) -> Tensor {
    let len = shape.iter().product();
    Tensor::new(hashed_times(stream, len, 3f64.sqrt()), shape, &Device::Cpu)
}

/// One parameter by its name.
struct Named<'a>(&'a Params);

impl Named<'_> {
    fn vector(&self, name: &str) -> Tensor {
        let found = self.0.iter().find(|(spec, _)| spec.name == name);
        found.unwrap_or_else(|| panic!("{name}")).1.clone()
    }

    fn matrix(&self, name: &str, columns: usize) -> Tensor {
        let values = self.vector(name);
        let rows = values.shape()[0] / columns;
        values.reshape([rows, columns])
    }

    fn norm(&self, name: &str) -> NormValues {
        let [gamma, beta] = ["weight", "bias"].map(|part| self.vector(&format!("{name}.{part}")));
        NormValues { gamma, beta, eps: 1e-2 }
    }

    fn linear(&self, name: &str, inputs: usize) -> LinearValues {
        let weight = self.matrix(&format!("{name}.weight"), inputs);
        LinearValues { weight, bias: self.vector(&format!("{name}.bias")) }
    }
}
