//! Cases of kind `backbone`: features and attention of a network, and its gradients.

use std::ops::ControlFlow;

use esvit_nn::backbone::vil::VilConfig;
use esvit_nn::backbone::{BlockOutput, Features};
use esvit_nn::params::Role;
use esvit_nn::{Backbone, BackboneConfig, ForwardCtx, Params, Tape, Tensor};
use serde::Deserialize;

use super::checks::Checks;
use super::{Case, CaseError, Check, Outcome, Result};

const TOLERANCE: f64 = 2e-4;

#[derive(Deserialize)]
struct Settings {
    config: BackboneConfig,
    n_last_blocks: usize,
    inputs: usize,
    /// Further numbers of last blocks.
    #[serde(default)]
    other_n_last_blocks: Vec<usize>,
    /// Modes of the windows of a vision longformer, each in every pass. Then these are all.
    #[serde(default)]
    modes: Vec<i32>,
    /// Whether there are features with the mean of the last block's patches appended, too.
    #[serde(default)]
    patch_average: bool,
    /// Whether there is a pass in training mode, after which running statistics are compared.
    #[serde(default)]
    train: bool,
}

pub(super) fn run(case: &Case) -> Result<Outcome> {
    let settings: Settings = case.settings()?;
    if !settings.modes.is_empty() {
        return modes(case, &settings);
    }
    let blocks = settings.config.blocks();
    let numbers = [&[settings.n_last_blocks], &settings.other_n_last_blocks[..]].concat();
    if let Some(n) = numbers.iter().find(|n| !(1..=blocks).contains(*n)) {
        let message = format!("`n_last_blocks` is {n}, of {blocks} blocks");
        return Err(CaseError::Settings(message));
    }
    let (network, specs) = settings.config.build(0.0);
    let params = case.params("param.", &specs)?;
    let ctx = case.eval();
    let mut checks = Vec::new();
    for input in 0..settings.inputs {
        let images = case.load::<4>(&format!("input.{input}"))?;
        let features = network.forward(&params, images.clone(), &ctx);
        let last_blocks = |n| network.last_blocks(&params, images.clone(), n, &ctx);
        let mut compare = |name: &str, found: &Tensor| -> Result<()> {
            let name = format!("{name}.{input}");
            checks.push(case.absolute_error(&name, found, TOLERANCE)?);
            Ok(())
        };
        compare("cls", &features.view)?;
        compare("region", &features.region)?;
        compare("last_blocks", &last_blocks(settings.n_last_blocks))?;
        for &n in &settings.other_n_last_blocks {
            compare(&format!("last_blocks_n{n}"), &last_blocks(n))?;
        }
        for &n in numbers.iter().filter(|_| settings.patch_average) {
            let average = features.region.clone().mean_dim(1);
            let [batch, width] = features.view.dims();
            let average = average.reshape([batch, width]);
            let found = Tensor::cat(vec![last_blocks(n), average], 1);
            compare(&format!("last_blocks_n{n}_avg"), &found)?;
        }
        if case.tensors.find("", &format!("registers.{input}")).is_some()
            && let Some(found) = registers(&*network, &params, &images, &settings.config, &ctx)
        {
            compare("registers", &found)?;
        }
        if case.tensors.find("", &format!("last_attention.{input}")).is_some() {
            let found = network
                .block_attention(&params, images.clone(), blocks - 1)
                .map_err(|e| CaseError::Computation(e.to_string()))?;
            if let Some(attention) = found {
                compare("last_attention", &attention.weights())?;
            }
        }
    }
    if settings.train {
        checks.extend(training(case, &*network, params)?);
    }
    Ok(Outcome::Compared(checks))
}

/// A pass in training mode: features by the statistics of its images, the running statistics
/// after it and, if the case has some, gradients.
fn training(case: &Case, network: &dyn Backbone, mut params: Params) -> Result<Vec<Check>> {
    let tape = Tape::new();
    let tracked = params.tracked(&tape);
    let ctx = case.training();
    let features = network.forward(&tracked, case.load::<4>("train.input")?, &ctx);
    params.set_buffers(ctx.into_statistics());
    let [view, region] = [&features.view, &features.region].map(|part| part.clone().detach());
    let mut checks = vec![
        case.absolute_error("train.cls", &view, TOLERANCE)?,
        case.absolute_error("train.region", &region, TOLERANCE)?,
    ];
    if case.find("train.grad_out.cls").is_ok() {
        checks.extend(gradients(case, &tape, &tracked, features)?);
    }
    for (spec, value) in params.iter().filter(|(spec, _)| spec.role == Role::Buffer) {
        let name = format!("train.after.{}", spec.name);
        checks.push(case.absolute_error(&name, &value, TOLERANCE)?);
    }
    Ok(checks)
}

/// Compares the gradients of the sum of view and region features, each by the weight that the case gives it.
fn gradients(case: &Case, tape: &Tape, params: &Params, features: Features) -> Result<Vec<Check>> {
    let Features { view, region, .. } = features;
    let of_view = case.shaped("train.grad_out.cls", view.dims::<2>())?;
    let of_region = case.shaped("train.grad_out.region", region.dims::<3>())?;
    let loss = (view * of_view).sum() + (region * of_region).sum();
    let gradients = tape.backward(&loss);
    let mut checks = Checks::of(case);
    let specs = params.specs().iter().enumerate();
    for (index, spec) in specs.filter(|(_, spec)| spec.role == Role::Trained) {
        let name = format!("train.grad.{}", spec.name);
        checks.gradient(&name, gradients.of(&params.value(index)))?;
    }
    Ok(checks.done())
}

/// Compares the features of the same parameters and images in several modes.
fn modes(case: &Case, settings: &Settings) -> Result<Outcome> {
    let BackboneConfig::Vil(shape) = &settings.config else {
        let message = format!("`modes` are for `vil`, not for {}", settings.config.family());
        return Err(CaseError::Settings(message));
    };
    let mut checks = Vec::new();
    for &mode in &settings.modes {
        let config = VilConfig { mode, fixed_neighbor: true, ..shape.clone() };
        config.validate().map_err(|error| CaseError::Settings(error.to_string()))?;
        let (network, specs) = BackboneConfig::Vil(config).build(0.0);
        let params = case.params("param.", &specs)?;
        let images = case.load::<4>("input.0")?;
        let features = network.forward(&params, images, &case.eval());
        for (part, found) in [("cls", &features.view), ("region", &features.region)] {
            checks.push(case.absolute_error(&format!("{part}.mode.{mode}"), found, TOLERANCE)?);
        }
    }
    Ok(Outcome::Compared(checks))
}

/// The normalized register tokens `[B, registers, C]`, if the network has some.
fn registers(
    network: &dyn Backbone,
    params: &Params,
    images: &Tensor,
    config: &BackboneConfig,
    ctx: &ForwardCtx,
) -> Option<Tensor> {
    let BackboneConfig::Vit(vit) = config else { return None };
    let count = vit.register_tokens;
    let go_on = &mut |_: BlockOutput<'_>| ControlFlow::Continue(());
    let maps = network.run(params, vec![images.clone()].into(), ctx, go_on)?;
    let maps = network.normalize(params, maps, ctx);
    let [rows, width] = maps.rows.dims();
    let tokens = maps.segments[0].tokens();
    let tokens = maps.rows.reshape([rows / tokens, tokens, width]);
    // They follow class and distillation token.
    (count > 0).then(|| tokens.narrow(1, vit.prefix() - count, count))
}
