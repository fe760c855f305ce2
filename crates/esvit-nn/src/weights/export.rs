//! A network's parameters under the names of another program.

use std::borrow::Cow;

use esvit_weights::{Dtype, Float, Values};

use super::naming::{Naming, second_name};
use super::save::Entry;
use crate::Params;
use crate::backbone::Family;
use crate::ops::{Border, NeighborMap, Neighbors, WindowMap};
use crate::params::ParamSpec;
use crate::tensor::Tensor;

/// All parameters of a family's network as `naming` names them, stored as `float`; heads have
/// official names in all of them. What the other program expects beside them is added: tables of
/// indices, numbers of batches, and tokens for masked patches.
pub fn exported(params: &Params, family: Family, naming: Naming, float: Float) -> Vec<Entry> {
    exported_with_mask_token(params, None, (family, naming), float)
}

/// The same with the token that stood in place of masked patches in training, where the other program
/// expects one.
pub fn exported_with_mask_token(
    params: &Params,
    token: Option<&[f32]>,
    (family, naming): (Family, Naming),
    float: Float,
) -> Vec<Entry> {
    let mut tensors = Vec::new();
    for (spec, value) in params.iter() {
        tensors.extend(parts(spec, &value, (family, naming), float));
        tensors.extend(mask_token(spec, token, naming, float));
        if family == Family::Vil && naming == Naming::Esvit {
            tensors.extend(beside_vil(params, spec, &value, float));
        }
        if let Some(block) = spec.name.strip_suffix(".relative_position_bias_table") {
            let window = spec.shape[0].isqrt().div_ceil(2);
            tensors.extend(positions(block, window, naming));
        }
        if let Some(norm) = spec.name.strip_suffix(".running_mean") {
            tensors.push(batches(norm, family, naming));
        }
    }
    tensors
}

/// What stands for masked patches in DINOv2 and DINOv3 of `transformers`, which expects it and does not
/// use it for whole images, beside the class token: zeros where no patches were masked.
fn mask_token(
    spec: &ParamSpec,
    token: Option<&[f32]>,
    naming: Naming,
    float: Float,
) -> Option<Entry> {
    let len = spec.len();
    let token = token.filter(|token| token.len() == len);
    let shape = match naming {
        Naming::TransformersDinov2 => vec![1, len],
        Naming::TransformersDinov3 => vec![1, 1, len],
        _ => return None,
    };
    let token = token.map_or_else(|| vec![0.0; len], <[f32]>::to_vec);
    let values = move || Ok(Values::F32(Cow::Owned(token.clone())));
    let tensor = esvit_weights::Tensor::new(&shape, float.dtype(), values);
    (spec.name == "cls_token").then(|| ("embeddings.mask_token".into(), tensor))
}

/// The number of batches that a norm has seen, which nothing depends on: PyTorch expects one.
fn batches(norm: &str, family: Family, naming: Naming) -> Entry {
    let name = naming.names(family, &format!("{norm}.num_batches_tracked")).swap_remove(0);
    let values = || Ok(Values::I64(Cow::Owned(vec![0])));
    (name, esvit_weights::Tensor::new(&[], Dtype::I64, values))
}

/// The tensors that hold a parameter: equal parts of its rows.
fn parts(
    spec: &ParamSpec,
    value: &Tensor,
    (family, naming): (Family, Naming),
    float: Float,
) -> Vec<Entry> {
    let names = naming.names(family, &spec.name);
    let mut shape = spec.shape.clone();
    shape[0] /= names.len();
    let len: usize = shape.iter().product();
    let row = shape.last().copied().unwrap_or(1);
    let part = |(index, name): (usize, String)| {
        let (value, official) = (value.clone().detach(), spec.name.clone());
        let values = move || {
            let mut values = value.to_vec::<f32>();
            values.drain(..index * len);
            values.truncate(len);
            let values = naming.order_in_file(family, &official, values, row);
            Ok(Values::F32(Cow::Owned(values)))
        };
        (name, esvit_weights::Tensor::new(&shape, float.dtype(), values))
    };
    names.into_iter().enumerate().map(part).collect()
}

/// What the official code stores beside a vision longformer's parameter: shared layers under a second
/// name, index tables, and the positions of global tokens where there are none.
fn beside_vil(params: &Params, spec: &ParamSpec, value: &Tensor, float: Float) -> Vec<Entry> {
    let has = |name: String| params.specs().iter().any(|other| other.name == name);
    let mut tensors = Vec::new();
    let (stage, _) = spec.name.split_once('.').unwrap_or_default();
    let has_globals = has(format!("{stage}.0.cls_token"));
    if let Some((block, table)) = spec.name.split_once(".attn.") {
        let is_sparse = has(format!("{block}.attn.query.weight"));
        if let Some(second) = second_name(&spec.name).filter(|_| is_sparse && has_globals) {
            let (value, shape) = (value.clone().detach(), spec.shape.clone());
            let values = move || Ok(Values::F32(Cow::Owned(value.to_vec())));
            tensors.push((second, esvit_weights::Tensor::new(&shape, float.dtype(), values)));
        }
        if table == "local_relative_position_bias_table" {
            let name = format!("{block}.attn.relative_position_index");
            tensors.push(vil_positions(name, spec.shape[0].isqrt(), is_sparse));
        }
    }
    if spec.name.ends_with(".x_pos_embed") && !has_globals {
        let shape = [1, 0, 2 * spec.shape[2]];
        let none = || Ok(Values::F32(Cow::Owned(Vec::new())));
        let name = format!("{stage}.0.cls_pos_embed");
        tensors.push((name, esvit_weights::Tensor::new(&shape, float.dtype(), none)));
    }
    tensors
}

/// The index of a table with `side` relative positions along an axis: for windows and those around
/// them, or for all pairs of tokens.
fn vil_positions(name: String, side: usize, is_sparse: bool) -> Entry {
    let (rows, queries) = if is_sparse {
        let window = side.div_ceil(4);
        let tables = NeighborMap::new([window; 2], window, Neighbors::All, Border::Closed);
        (tables.bias_row, window * window)
    } else {
        let side = side.div_ceil(2);
        (WindowMap::new([side; 2], side, 0).bias_row, side * side)
    };
    let shape = [queries, rows.len() / queries];
    let rows: Vec<i64> = rows.into_iter().map(i64::from).collect();
    let values = move || Ok(Values::I64(Cow::Owned(rows.clone())));
    (name, esvit_weights::Tensor::new(&shape, Dtype::I64, values))
}

/// A block's `relative_position_index`, if the naming stores one.
fn positions(block: &str, window: usize, naming: Naming) -> Option<Entry> {
    let tables = WindowMap::new([window; 2], window, 0);
    let tokens = tables.window_tokens();
    let shape = match naming {
        Naming::Esvit | Naming::Microsoft | Naming::OpenMmLab => vec![tokens, tokens],
        Naming::Torchvision => vec![tokens * tokens],
        _ => return None,
    };
    let rows: Vec<i64> = tables.bias_row.iter().map(|&row| i64::from(row)).collect();
    let name =
        naming.names(Family::Swin, &format!("{block}.relative_position_index")).swap_remove(0);
    let values = move || Ok(Values::I64(Cow::Owned(rows.clone())));
    Some((name, esvit_weights::Tensor::new(&shape, Dtype::I64, values)))
}
