//! The projection head of both tasks: an MLP, an L2-normalized bottleneck, and prototypes, a
//! linear layer with weight normalization (Section 3.1 of the DINO paper).

use crate::tensor::Tensor;
use esvit_settings::{SettingError, settings};

use crate::forward_ctx::ForwardCtx;
use crate::layers::{BATCH_NORM_EPS, BatchNorm, Linear};
use crate::limits::{self, check_count};
use crate::ops::{self, Activation, PrototypeLogits};
use crate::params::{Init, ParamId, Params, Role, Scope};

settings! {
    /// The shape of a projection head.
    pub struct HeadConfig {
        /// Number of prototypes, K.
        pub out_dim: usize = 65_536,
        /// Width of the hidden layers.
        pub hidden_dim: usize = 2048,
        /// Width of the L2-normalized bottleneck before the prototypes.
        pub bottleneck_dim: usize = 256,
        /// Number of linear layers before the prototypes.
        pub layers: usize = 3,
        /// Batch normalization after each hidden linear layer.
        pub use_bn_in_head: bool = false,
        /// Fixes `weight_g` of the prototypes at 1, which stabilizes training, above all of large
        /// models.
        pub norm_last_layer: bool = true,
    }
}

impl HeadConfig {
    /// Checks that every size is at least 1 and none is absurd.
    ///
    /// # Errors
    /// Names the first invalid one.
    pub fn validate(&self) -> Result<(), SettingError> {
        let Self { out_dim, hidden_dim, bottleneck_dim, layers, .. } = *self;
        for (key, value, most) in [
            ("out_dim", out_dim, limits::PROTOTYPES),
            ("hidden_dim", hidden_dim, limits::WIDTH),
            ("bottleneck_dim", bottleneck_dim, limits::WIDTH),
            ("layers", layers, limits::BLOCKS),
        ] {
            check_count(key, value, most)?;
        }
        let [prototypes, hidden, bottleneck, layers] =
            [out_dim, hidden_dim, bottleneck_dim, layers].map(|size| size as f64);
        limits::check_parameters("layers", layers, layers * hidden * hidden)?;
        limits::check_parameters("out_dim", out_dim, prototypes * bottleneck)
    }
}

/// A projection head over [`Params`].
#[derive(Debug, Clone)]
pub struct Head {
    hidden: Vec<(Linear, Option<BatchNorm>)>,
    bottleneck: Linear,
    weight_g: ParamId,
    weight_v: ParamId,
    prototypes: usize,
}

impl Head {
    /// Number of prototypes, K.
    pub fn prototype_count(&self) -> usize {
        self.prototypes
    }

    /// The parameters of the prototypes, `weight_g` and `weight_v`.
    pub fn last_layer(&self) -> [ParamId; 2] {
        [self.weight_g, self.weight_v]
    }

    /// Registers a head on features `[rows, inputs]`.
    pub fn new(scope: &mut Scope<'_>, inputs: usize, config: &HeadConfig) -> Self {
        let HeadConfig { out_dim, hidden_dim, bottleneck_dim, layers, .. } = *config;
        let mut hidden = Vec::new();
        let mut width = inputs;
        // Indices in PyTorch's `nn.Sequential`: linear layer, normalization if there is one, GELU.
        // A single layer is no sequence.
        let stride = if config.use_bn_in_head { 3 } else { 2 };
        let name = |index| if layers > 1 { format!("mlp.{index}") } else { "mlp".into() };
        for index in (0..layers.saturating_sub(1)).map(|layer| stride * layer) {
            let linear = Linear::new(&mut scope.at(name(index)), width, hidden_dim);
            let norm =
                || BatchNorm::new(&mut scope.at(name(index + 1)), hidden_dim, BATCH_NORM_EPS);
            hidden.push((linear, config.use_bn_in_head.then(norm)));
            width = hidden_dim;
        }
        let last = name(stride * hidden.len());
        let bottleneck = Linear::new(&mut scope.at(last), width, bottleneck_dim);
        let role = if config.norm_last_layer { Role::Frozen } else { Role::Trained };
        let mut last = scope.at("last_layer");
        let weight_g = last.register("weight_g", &[out_dim, 1], Init::Ones, role);
        // PyTorch's default for linear layers, which the official code does not change.
        let uniform = Init::Uniform((bottleneck_dim as f64).powf(-0.5));
        let weight_v = last.param("weight_v", &[out_dim, bottleneck_dim], uniform);
        Self { hidden, bottleneck, weight_g, weight_v, prototypes: out_dim }
    }

    /// Logits `[rows, K]` of features `[rows, C]`, in factored form.
    pub fn forward(&self, params: &Params, x: Tensor, ctx: &ForwardCtx) -> PrototypeLogits {
        let z = self.embed(params, x, ctx);
        PrototypeLogits { z, v: params.tensor(self.weight_v), g: params.vector(self.weight_g) }
    }

    /// The L2-normalized bottleneck, `[rows, bottleneck_dim]`, of features `[rows, C]`.
    pub fn embed(&self, params: &Params, mut x: Tensor, ctx: &ForwardCtx) -> Tensor {
        let mut activation = Activation::None;
        for (linear, norm) in &self.hidden {
            x = linear.forward(params, x, activation, ctx);
            if let Some(norm) = norm {
                x = norm.forward(params, x, ctx);
            }
            activation = Activation::Gelu;
        }
        ops::l2_normalize(self.bottleneck.forward(params, x, activation, ctx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::params::Registry;

    #[test]
    fn evaluation_divides_by_no_zero_and_g_is_frozen_unless_asked_for() {
        for norm_last_layer in [true, false] {
            let config = HeadConfig {
                out_dim: 5,
                hidden_dim: 4,
                bottleneck_dim: 3,
                use_bn_in_head: true,
                norm_last_layer,
                ..HeadConfig::default()
            };
            let mut registry = Registry::default();
            let head = Head::new(&mut registry.root(), 2, &config);
            let list = registry.finish();
            let of_g = list.iter().find(|spec| spec.name == "last_layer.weight_g");
            let expected = if norm_last_layer { Role::Frozen } else { Role::Trained };
            assert_eq!(of_g.map(|spec| spec.role), Some(expected));
            let params = Params::from_fn(&list, &Device::Cpu, |spec| {
                let is_variance = spec.name.ends_with("running_var");
                if is_variance { vec![0.0; spec.len()] } else { spec.initial_values(1) }
            });
            let x = Tensor::ones([2, 2], &Device::Cpu);
            let z = head.embed(&params, x, &ForwardCtx::eval()).to_vec::<f32>();
            assert!(z.iter().all(|value| value.is_finite()), "{z:?}");
        }
    }
}
