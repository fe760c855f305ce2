//! Cases of kinds `head-*`: results, gradients and running statistics of projectors and predictors.

use std::sync::Arc;

use esvit_nn::params::{ParamList, Registry, Role, Scope};
use esvit_nn::projection::Projection;
use esvit_nn::{ForwardCtx, Params, Tape, Tensor, ops};
use esvit_train::objective::byol::{Byol, ByolConfig};
use esvit_train::objective::densecl::Neck;
use esvit_train::objective::moby::{Moby, MobyConfig};
use esvit_train::objective::mocov3::{MocoV3, MocoV3Config};
use esvit_train::objective::swav::{self, SwavConfig};
use esvit_train::objective::{Setup, mocov2, simclr};
use serde::Deserialize;

use super::checks::Checks;
use super::{Case, CaseError, Outcome, Result};

#[derive(Deserialize)]
struct Settings {
    batch: usize,
    #[serde(rename = "in")]
    inputs: usize,
    #[serde(default)]
    hidden: usize,
    out: usize,
    /// Of MoCo-v3.
    #[serde(default)]
    variant: String,
    /// Of SimCLR.
    #[serde(default)]
    layers: usize,
    /// The layer of SimCLR's head whose result fine-tuning starts from; 0 for its input.
    #[serde(default)]
    ft_proj_selector: usize,
    /// Of SwAV.
    #[serde(default)]
    prototypes: usize,
    /// Height and width of DenseCL's maps.
    #[serde(default)]
    grid: [usize; 2],
}

/// Results of a head for its input, by their names in a case.
type Forward = Box<dyn Fn(&Params, Tensor, &ForwardCtx) -> Vec<(&'static str, Tensor)>>;

/// A case of kind `head-METHOD`.
pub(super) fn run(case: &Case, method: &str) -> Result<Outcome> {
    let settings: Settings = case.settings()?;
    let mut registry = Registry::default();
    let forward = head(&settings, method, &mut registry.root())
        .ok_or_else(|| CaseError::Kind(case.kind.clone()))?;
    let list = registry.finish();
    let mut params = parameters(case, &settings, &list)?;
    let tape = Tape::new();
    let input = match settings.grid {
        [0, _] | [_, 0] => case.shaped("input", [settings.batch, settings.inputs])?,
        [height, width] => {
            case.shaped("input", [settings.batch, settings.inputs, height, width])?
        }
    };
    let input = tape.watch(input);
    let tracked = params.tracked(&tape);
    let ctx = case.training();
    let outputs = forward(&tracked, input.clone(), &ctx);
    let mut checks = Checks::of(case);
    let mut sum: Option<Tensor> = None;
    for (name, output) in outputs {
        let found = output.clone().detach();
        checks.value(&format!("out.{name}"), &found)?;
        let (_, upstream) = match case.tensor(&format!("grad_out.{name}")) {
            Ok(upstream) => upstream,
            // No gradient comes from there.
            Err(CaseError::Tensor(_)) => continue,
            Err(error) => return Err(error),
        };
        if upstream.len() != output.numel() {
            let message = format!("`grad_out.{name}` has {} values", upstream.len());
            return Err(CaseError::Settings(message));
        }
        let upstream = Tensor::new(upstream, output.shape(), &case.device);
        let part = (output * upstream).sum();
        sum = Some(match sum {
            Some(sum) => sum + part,
            None => part,
        });
    }
    let missing = || CaseError::Settings("there is no `grad_out`".into());
    let gradients = tape.backward(&sum.ok_or_else(missing)?);
    checks.gradient("grad.input", gradients.of(&input))?;
    for (index, spec) in list.iter().enumerate().filter(|(_, spec)| spec.role == Role::Trained) {
        let name = format!("grad.param.{}", settings.official(&spec.name));
        checks.gradient(&name, gradients.of(&tracked.value(index)))?;
    }
    params.set_buffers(ctx.into_statistics());
    for (spec, value) in params.iter().filter(|(spec, _)| spec.role == Role::Buffer) {
        checks.value(&format!("buffer_after.{}", settings.official(&spec.name)), &value)?;
    }
    Ok(Outcome::Compared(checks.done()))
}

impl Settings {
    /// The name in the case of a parameter.
    fn official(&self, name: &str) -> String {
        match name.strip_prefix("head.") {
            Some(layer) if self.variant == "vit" => format!("base_encoder.head.{layer}"),
            Some(layer) => format!("base_encoder.fc.{layer}"),
            None => name.to_owned(),
        }
    }
}

/// The parameters and running statistics that a case gives.
fn parameters(case: &Case, settings: &Settings, list: &Arc<ParamList>) -> Result<Params> {
    let mut found = Vec::with_capacity(list.len());
    for spec in list.iter() {
        let kind = if spec.role == Role::Buffer { "buffer" } else { "param" };
        let name = format!("{kind}.{}", settings.official(&spec.name));
        let (shape, values) = case.tensor(&name)?;
        if shape != spec.shape {
            let message = format!("tensor `{name}` is {shape:?}, the head has {:?}", spec.shape);
            return Err(CaseError::Settings(message));
        }
        found.push(values);
    }
    let mut found = found.into_iter();
    Ok(Params::from_fn(list, &case.device, |_| found.next().unwrap_or_default()))
}

/// Registers the head of a method; None for other methods.
fn head(settings: &Settings, method: &str, scope: &mut Scope<'_>) -> Option<Forward> {
    let Settings { inputs, hidden, out, layers, prototypes, .. } = *settings;
    let setup = Setup { width: inputs, ..Setup::default() };
    let forward: Forward = match method {
        "moco2" => {
            let head = mocov2::head(scope, inputs, out);
            Box::new(move |params: &Params, input: Tensor, ctx: &ForwardCtx| {
                vec![("projection", pass(&head, params, input, ctx))]
            })
        }
        "mocov3" => {
            let is_vit = settings.variant == "vit";
            let config = MocoV3Config {
                projector_layers: if is_vit { 3 } else { 2 },
                predictor_norm: is_vit,
                hidden_dim: hidden,
                out_dim: out,
                ..MocoV3Config::default()
            };
            let MocoV3 { projector, predictor, .. } = MocoV3::new(&config, scope, &setup);
            both(projector, predictor)
        }
        "moby" => {
            let config = MobyConfig { hidden_dim: hidden, out_dim: out, ..MobyConfig::default() };
            let Moby { projector, predictor, .. } = Moby::new(&config, scope, &setup);
            both(projector, predictor)
        }
        "byol" => {
            let config = ByolConfig { hidden_dim: hidden, out_dim: out, ..ByolConfig::default() };
            let Byol { projector, predictor, .. } = Byol::new(&config, scope, &setup);
            both(projector, predictor)
        }
        "simclr" => {
            let head = simclr::Head::new(scope, inputs, layers, out);
            let selector = settings.ft_proj_selector;
            Box::new(move |params: &Params, input: Tensor, ctx: &ForwardCtx| {
                let mut results = vec![input.clone()];
                results.extend(head.forward(params, input, ctx));
                let chosen = results[selector.min(layers)].clone();
                let last = results.swap_remove(layers);
                vec![("projection", last), ("finetune_input", chosen)]
            })
        }
        "swav" => {
            let (hidden_dim, out_dim) = (hidden, out);
            let config = SwavConfig { prototypes, hidden_dim, out_dim, ..SwavConfig::default() };
            let head = swav::Head::new(scope, inputs, &config);
            Box::new(move |params: &Params, input: Tensor, ctx: &ForwardCtx| {
                let embedding = head.embed(params, input, ctx);
                let prototypes = head.prototypes(params).transpose();
                let scores = embedding.clone().matmul(prototypes);
                vec![("embedding", embedding), ("scores", scores)]
            })
        }
        "densecl" => {
            let neck = Neck::new(scope, inputs, [hidden, out]);
            Box::new(move |params: &Params, maps: Tensor, ctx: &ForwardCtx| {
                of_maps(&neck, params, maps, ctx)
            })
        }
        _ => return None,
    };
    Some(forward)
}

/// A projector, and a predictor of its result.
fn both(projector: Projection, predictor: Projection) -> Forward {
    Box::new(move |params: &Params, input: Tensor, ctx: &ForwardCtx| {
        let projection = pass(&projector, params, input, ctx);
        let prediction = pass(&predictor, params, projection.clone(), ctx);
        vec![("projection", projection), ("prediction", prediction)]
    })
}

fn pass(layers: &Projection, params: &Params, input: Tensor, ctx: &ForwardCtx) -> Tensor {
    let rows = [input.shape()[0]];
    layers.forward(params, input, &rows, ctx)
}

/// DenseCL's neck on maps `[B, C, H, W]`.
fn of_maps(
    neck: &Neck,
    params: &Params,
    maps: Tensor,
    ctx: &ForwardCtx,
) -> Vec<(&'static str, Tensor)> {
    let [batch, width, rows, columns] = maps.dims();
    let cells = rows * columns;
    let maps = maps.reshape([batch, width, cells]).swap_dims(1, 2).reshape([batch * cells, width]);
    let view = ops::global_average_pool(maps.clone(), &vec![cells; batch]);
    let embedded = neck.forward(params, view, maps, ctx);
    let outputs = embedded.grid.shape()[1];
    let grid = embedded.grid.reshape([batch, cells, outputs]).swap_dims(1, 2);
    vec![("global", embedded.global), ("grid", grid), ("dense_mean", embedded.dense_mean)]
}
