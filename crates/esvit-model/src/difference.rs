//! Compares two weights files tensor by tensor.

use std::collections::BTreeMap;

use esvit_nn::params::ParamSpec;
use esvit_nn::weights::{StoredNetwork, WeightsError, WeightsFile, networks};
use serde::Serialize;

/// The floating-point tensors of a file, under the names by which they are compared.
#[derive(Debug)]
pub struct Tensors<'a> {
    file: &'a WeightsFile,
    /// The network and its parameters, if the file holds one that is supported.
    network: Option<(StoredNetwork<'a>, Vec<ParamSpec>)>,
    /// All float tensors by name, if it does not.
    plain: BTreeMap<String, &'a esvit_weights::TensorInfo>,
}

/// Result of a comparison.
#[derive(Debug, Default, Serialize)]
pub struct Comparison {
    /// Number of bitwise equal tensors.
    pub equal: usize,
    /// Tensors that differ, largest difference first.
    pub different: Vec<Difference>,
    /// Tensors whose shapes differ: name, shape in the first file, shape in the second.
    pub reshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Names found only in the first file.
    pub only_a: Vec<String>,
    /// Names found only in the second file.
    pub only_b: Vec<String>,
}

/// A tensor whose values differ.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// Largest absolute difference; NaN if any difference is NaN.
    pub largest: f32,
    /// Largest absolute value of the first file's tensor.
    pub scale: f32,
}

impl Comparison {
    /// Whether there is no difference.
    pub fn is_equal(&self) -> bool {
        self.different.is_empty()
            && self.reshaped.is_empty()
            && self.only_a.is_empty()
            && self.only_b.is_empty()
    }
}

impl<'a> Tensors<'a> {
    /// The network called `key`; for `None` the default one, or all tensors by their own names if
    /// there is none.
    ///
    /// # Errors
    /// [`WeightsError`] if the file has no network of that name.
    pub fn of(file: &'a WeightsFile, key: Option<&str>) -> Result<Self, WeightsError> {
        let stored = match StoredNetwork::find(file, key) {
            Err(error) if key.is_some() => return Err(error),
            found => found.ok(),
        };
        let found = stored.and_then(|stored| {
            let shape = stored.shape().ok()?;
            let (_, specs) = shape.build(0.0);
            Some((stored, specs.to_vec()))
        });
        let mut plain = BTreeMap::new();
        if found.is_none() {
            let floats = file.tensors().iter().filter(|tensor| tensor.dtype.is_float());
            plain.extend(floats.map(|tensor| (tensor.path(), tensor)));
        }
        Ok(Self { file, network: found, plain })
    }

    /// Name of the network, unless all tensors of the file are meant.
    pub fn network(&self) -> Option<&str> {
        self.network.as_ref().map(|(stored, _)| stored.location().network())
    }

    /// Number of networks in the file.
    pub fn networks(&self) -> usize {
        networks(self.file).len()
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

/// Compares two files, with one pair of tensors in memory at a time. Parameters of a supported
/// network are compared under their official names, everything else under the names in the file.
///
/// # Errors
/// [`WeightsError`] if a tensor cannot be read.
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
                    // `f32::max` would drop NaN.
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
