//! Between f32 and f64, and between f32 and bf16.

use esvit_kernels::element::{Bf16, rounded, widened};

use super::{Real, made, with_real};
use crate::ops::prelude::*;
use crate::tensor::Dtype;

impl Tensor {
    /// The values as another type: f32 or f64, or of f32 bf16.
    #[must_use]
    pub fn to_dtype(self, dtype: Dtype) -> Self {
        if self.dtype() == dtype { self } else { apply(Cast(dtype), [self]) }
    }
}

#[derive(Debug)]
struct Cast(Dtype);

fn cast(x: &Tensor, dtype: Dtype) -> Tensor {
    fn round<T: Real>(values: &[impl Real], like: &Tensor) -> Tensor {
        let values = values.iter().map(|value| T::from_f64(value.into_f64())).collect();
        made::<T>(values, like.shape(), like)
    }
    match (x.dtype(), dtype) {
        (Dtype::F32, Dtype::Bf16) => {
            return Tensor::of_memory::<Bf16>(rounded(x.values()), x.shape());
        }
        (Dtype::Bf16, Dtype::F32) => {
            return Tensor::new(widened(x.values()), x.shape(), &x.device());
        }
        _ => {}
    }
    with_real!(x, T => match dtype {
        Dtype::F32 => round::<f32>(x.values::<T>(), x),
        Dtype::F64 => round::<f64>(x.values::<T>(), x),
        other => panic!("to {other:?}: plain operations take F32 and F64"),
    })
}

impl Operation for Cast {
    fn dtype(&self, _: Dtype) -> Dtype {
        self.0
    }

    /// Graphs are f32 throughout.
    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        Some(nodes.input(0))
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let x = &inputs[0];
        (cast(x, self.0), save.then(|| Saved::new(x.dtype())))
    }

    /// The gradients of what is in bf16 are in f32.
    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let gradient = match pass.saved.take() {
            Dtype::Bf16 => pass.gradient,
            dtype => cast(&pass.gradient, dtype),
        };
        vec![Some(gradient)]
    }
}
