//! What both forms of attention share: heads, and the biases of global tokens.

use super::full::FullAttention;
use super::sparse::SparseAttention;
use crate::backbone::{AttentionMap, TokenMaps, multi_stage};
use crate::forward_ctx::ForwardCtx;
use crate::layers::WEIGHT_STD;
use crate::params::{Init, ParamId, Params, Scope};
use crate::tensor::Tensor;

/// Attention of a block.
#[derive(Debug)]
pub enum Attention {
    /// Over windows and global tokens.
    Sparse(SparseAttention),
    /// Over whole images.
    Full(FullAttention),
}

impl multi_stage::Attention for Attention {
    fn forward(&self, params: &Params, normed: TokenMaps, ctx: &ForwardCtx) -> Tensor {
        match self {
            Self::Sparse(attention) => attention.forward(params, normed, ctx),
            Self::Full(attention) => attention.forward(params, normed, ctx),
        }
    }

    fn weights(&self, params: &Params, normed: TokenMaps) -> AttentionMap {
        match self {
            Self::Sparse(attention) => attention.weights(params, normed),
            Self::Full(attention) => attention.weights(params, normed),
        }
    }
}

/// Relative position biases of a block.
#[derive(Debug)]
pub(super) struct RelativeBias {
    /// `[positions, heads]`, of tokens of a map to each other.
    pub(super) table: ParamId,
    globals: Option<GlobalBias>,
}

/// Biases where global tokens are queries or keys.
#[derive(Debug)]
struct GlobalBias {
    /// `[2, heads, globals]`: of global queries to tokens of the map, and the other way around.
    between: ParamId,
    /// `[heads, globals, globals]`.
    among: ParamId,
}

impl RelativeBias {
    /// Registers a table of `rows` positions.
    pub(super) fn new(scope: &mut Scope<'_>, rows: usize, [heads, globals]: [usize; 2]) -> Self {
        let init = Init::TruncatedNormal(WEIGHT_STD);
        let table = scope.param("local_relative_position_bias_table", &[rows, heads], init);
        let globals = (globals > 0).then(|| GlobalBias {
            between: scope.param("g2l_relative_position_bias", &[2, heads, globals], init),
            among: scope.param("g2g_relative_position_bias", &[heads, globals, globals], init),
        });
        Self { table, globals }
    }

    /// Biases of tokens of the map to global tokens, then as in `local [1, heads, queries, keys]`:
    /// `[1, heads, queries, globals + keys]`.
    pub(super) fn of_locals(&self, params: &Params, local: Tensor) -> Tensor {
        let Some(GlobalBias { between, .. }) = &self.globals else { return local };
        let [_, heads, queries, _] = local.dims();
        let to_globals = params.tensor(*between).narrow(0, 1, 1);
        let globals = to_globals.shape()[2];
        let to_globals = to_globals.reshape([1, heads, 1, globals]);
        Tensor::cat(vec![to_globals.expand([1, heads, queries, globals]), local], 3)
    }

    /// Biases of global tokens to each other and to the `tokens` of a map, `[1, heads, globals,
    /// globals + tokens]`; None without global tokens.
    pub(super) fn of_globals(&self, params: &Params, tokens: usize) -> Option<Tensor> {
        let GlobalBias { between, among } = self.globals.as_ref()?;
        let among = params.tensor(*among);
        let [heads, globals, _] = among.dims();
        let to_map = params.tensor(*between).narrow(0, 0, 1).reshape([1, heads, globals, 1]);
        let to_map = to_map.expand([1, heads, globals, tokens]);
        Some(Tensor::cat(vec![among.reshape([1, heads, globals, globals]), to_map], 3))
    }
}

/// A bias `[1, heads, queries, keys]` without its first axis.
pub(super) fn matrices(bias: Tensor) -> Tensor {
    let [_, heads, queries, keys] = bias.dims();
    bias.reshape([heads, queries, keys])
}
