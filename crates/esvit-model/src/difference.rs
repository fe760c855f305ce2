//! Two files of weights side by side.

use std::collections::BTreeMap;

use esvit_nn::params::ParamSpec;
use esvit_nn::weights::{StoredNetwork, WeightsError, WeightsFile};
use serde::Serialize;

use crate::build;

/// The floating-point tensors of a file under the names by which they are compared.
#[derive(Debug)]
pub struct Tensors<'a> {
    file: &'a WeightsFile,
    /// The network, where the file holds one of ours, and its parameters.
    network: Option<(StoredNetwork<'a>, Vec<ParamSpec>)>,
    /// Tensors that belong to no network, by name.
    plain: BTreeMap<String, &'a esvit_weights::TensorInfo>,
}

/// How two files compare.
#[derive(Debug, Default, Serialize)]
pub struct Comparison {
    /// Tensors that are equal to the bit.
    pub equal: usize,
    /// Tensors that differ, largest difference first.
    pub different: Vec<Difference>,
    /// Tensors of another shape: name and both shapes.
    pub reshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Names that only the first file has.
    pub only_a: Vec<String>,
    /// Names that only the second file has.
    pub only_b: Vec<String>,
}

/// A tensor whose values differ.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// The largest difference of two values; not a number if one of them is none.
    pub largest: f32,
    /// The largest value of the first file's tensor.
    pub scale: f32,
}

impl Comparison {
    /// Whether both files hold the same.
    pub fn is_equal(&self) -> bool {
        self.different.is_empty()
            && self.reshaped.is_empty()
            && self.only_a.is_empty()
            && self.only_b.is_empty()
    }
}

impl<'a> Tensors<'a> {
    /// The network called `key`, if the file holds such a one, or else all tensors by their names.
    pub fn of(file: &'a WeightsFile, key: Option<&str>) -> Self {
        let stored = StoredNetwork::find(file, key).ok();
        let found = stored.and_then(|stored| {
            let shape = stored.shape().ok()?;
            let (_, specs) = build(&shape);
            Some((stored, specs.to_vec()))
        });
        let mut plain = BTreeMap::new();
        if found.is_none() {
            let floats = file.tensors().iter().filter(|tensor| tensor.dtype.is_float());
            plain.extend(floats.map(|tensor| (tensor.path(), tensor)));
        }
        Self { file, network: found, plain }
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        match &self.network {
            Some((_, specs)) => {
                specs.iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect()
            }
            None => self.plain.iter().map(|(name, t)| (name.clone(), t.shape.clone())).collect(),
        }
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        match &self.network {
            Some((stored, specs)) => {
                let spec = specs.iter().find(|spec| spec.name == name);
                stored.parameter(spec.expect("a name of `shapes`"))
            }
            None => Ok(self.file.read_f32(self.plain[name])?),
        }
    }
}

/// Compares two files, one tensor in memory at a time. Names of a file whose network is not
/// recognized are compared as they are.
///
/// # Errors
/// When a tensor cannot be read.
pub fn compare(a: &Tensors<'_>, b: &Tensors<'_>) -> Result<Comparison, WeightsError> {
    let [shapes_a, shapes_b] = [a.shapes(), b.shapes()];
    let mut comparison = Comparison::default();
    for (name, shape) in &shapes_a {
        match shapes_b.get(name) {
            None => comparison.only_a.push(name.clone()),
            Some(other) if other != shape => {
                comparison.reshaped.push((name.clone(), shape.clone(), other.clone()));
            }
            Some(_) => {
                let (left, right) = (a.values(name)?, b.values(name)?);
                let same = left.iter().zip(&right).all(|(l, r)| l.to_bits() == r.to_bits());
                if same {
                    comparison.equal += 1;
                    continue;
                }
                let largest = left.iter().zip(&right).fold(0.0, |largest: f32, (l, r)| {
                    let difference = (l - r).abs();
                    // Not a number must not be lost.
                    if difference > largest || difference.is_nan() { difference } else { largest }
                });
                let scale = left.iter().fold(0.0, |scale: f32, value| scale.max(value.abs()));
                comparison.different.push(Difference { name: name.clone(), largest, scale });
            }
        }
    }
    let is_new = |name: &&String| !shapes_a.contains_key(*name);
    comparison.only_b.extend(shapes_b.keys().filter(is_new).cloned());
    comparison.different.sort_by(|a, b| b.largest.total_cmp(&a.largest));
    Ok(comparison)
}
