//! Arithmetic with broadcasting, and functions of single values.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
use std::ops::{Add, Div, Mul, Neg, Sub};

use super::{Real, map, with_real, zip};
use crate::ops::prelude::*;
use crate::tensor::MAX_RANK;

/// What stands at the right of `+ - * /`: a tensor, or a number, which is rounded to the type of
/// the tensor at the left.
pub trait Operand {
    /// The tensor, and whether it is a number's.
    #[doc(hidden)]
    fn operand(self, left: &Tensor) -> (Tensor, bool);
}

impl Operand for Tensor {
    fn operand(self, _: &Tensor) -> (Tensor, bool) {
        (self, false)
    }
}

impl Operand for &Tensor {
    fn operand(self, _: &Tensor) -> (Tensor, bool) {
        (self.clone(), false)
    }
}

impl Operand for f64 {
    fn operand(self, left: &Tensor) -> (Tensor, bool) {
        (left.full_like([1], self), true)
    }
}

macro_rules! operators {
    ($($operator:ident $method:ident),*) => {$(
        /// By NumPy's rules of broadcasting.
        ///
        /// # Panics
        /// When the shapes do not go together.
        impl<R: Operand> $operator<R> for Tensor {
            type Output = Tensor;

            fn $method(self, right: R) -> Tensor {
                let (right, is_number) = right.operand(&self);
                apply(Binary { arithmetic: Arithmetic::$operator, is_number }, [self, right])
            }
        }

        impl<R: Operand> $operator<R> for &Tensor {
            type Output = Tensor;

            fn $method(self, right: R) -> Tensor {
                self.clone().$method(right)
            }
        }

        impl $operator<Tensor> for f64 {
            type Output = Tensor;

            fn $method(self, right: Tensor) -> Tensor {
                right.full_like([1], self).$method(right)
            }
        }

        impl $operator<&Tensor> for f64 {
            type Output = Tensor;

            fn $method(self, right: &Tensor) -> Tensor {
                self.$method(right.clone())
            }
        }
    )*};
}

operators!(Add add, Sub sub, Mul mul, Div div);

impl Neg for Tensor {
    type Output = Self;

    fn neg(self) -> Self {
        self * -1.0
    }
}

impl Neg for &Tensor {
    type Output = Tensor;

    fn neg(self) -> Tensor {
        self * -1.0
    }
}

/// Named as in ONNX.
#[derive(Debug, Clone, Copy)]
enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
}

#[derive(Debug)]
struct Binary {
    arithmetic: Arithmetic,
    /// Whether the right operand is a number, which gets no gradient.
    is_number: bool,
}

impl Binary {
    /// Whether the backward pass needs the left operand.
    fn needs_left(&self) -> bool {
        matches!(self.arithmetic, Arithmetic::Mul | Arithmetic::Div) && !self.is_number
    }
}

/// The shape of `x op y`.
fn broadcast(x: &Shape, y: &Shape) -> Shape {
    let rank = x.len().max(y.len());
    let mut sizes = [1; MAX_RANK];
    for (back, size) in sizes[..rank].iter_mut().rev().enumerate() {
        let of = |shape: &Shape| shape.iter().rev().nth(back).copied().unwrap_or(1);
        *size = match (of(x), of(y)) {
            (1, size) | (size, 1) => size,
            (a, b) if a == b => a,
            _ => panic!("shapes {x:?} and {y:?} cannot be broadcast together"),
        };
    }
    Shape::new(&sizes[..rank])
}

/// `x = f(x, y)`, with `y` broadcast.
fn combine<T: Real>(x: &mut Tensor, y: &Tensor, f: impl Fn(T, T) -> T + Sync) {
    if let &[y] = y.values() {
        map(x.values_mut(), |x| f(x, y));
    } else {
        let y = y.clone().expand(x.shape());
        zip(x.values_mut(), y.values(), f);
    }
}

impl Operation for Binary {
    fn output(&self, inputs: &[Shape]) -> Shape {
        broadcast(&inputs[0], &inputs[1])
    }

    fn keeps(&self, _right: usize) -> bool {
        matches!(self.arithmetic, Arithmetic::Mul | Arithmetic::Div)
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let saved = if self.needs_left() { inputs[0].numel() } else { 0 };
        Cost::default().saving(saved, Precision::F32)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let (x, y) = (nodes.input(0), nodes.input(1));
        Some(nodes.node(&format!("{:?}", self.arithmetic), &[&x, &y], &[]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let (y, x) = (inputs.swap_remove(1), inputs.swap_remove(0));
        let (from, shape) = (x.shape(), broadcast(&x.shape(), &y.shape()));
        let saved = (save && self.needs_left()).then(|| x.clone());
        let mut z = x.expand(shape);
        with_real!(z, T => match self.arithmetic {
            Arithmetic::Add => combine::<T>(&mut z, &y, |x, y| x + y),
            Arithmetic::Sub => combine::<T>(&mut z, &y, |x, y| x - y),
            Arithmetic::Mul => combine::<T>(&mut z, &y, |x, y| x * y),
            Arithmetic::Div => combine::<T>(&mut z, &y, |x, y| x / y),
        });
        (z, save.then(|| Saved::new((saved, from))))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let Backward { saved, parameters, gradient, wanted, .. } = pass;
        let (x, from): (Option<Tensor>, Shape) = saved.take();
        let x = || x.as_ref().expect("saved, as the right operand is no number");
        let y = &parameters[0];
        let dy = wanted[1].then(|| {
            let dz = gradient.clone();
            let dy = match self.arithmetic {
                Arithmetic::Add => dz,
                Arithmetic::Sub => -dz,
                Arithmetic::Mul => dz * x(),
                Arithmetic::Div => -dz * x() / y / y,
            };
            dy.sum_to(y.shape())
        });
        let dx = wanted[0].then(|| {
            let dx = match self.arithmetic {
                Arithmetic::Add | Arithmetic::Sub => gradient,
                Arithmetic::Mul => gradient * y,
                Arithmetic::Div => gradient / y,
            };
            dx.sum_to(from)
        });
        vec![dx, dy]
    }
}

macro_rules! functions {
    ($($(#[$doc:meta])* $method:ident $function:ident $(($argument:ident: $number:ty))?;)*) => {
        /// Named as in ONNX, where it has the function.
        #[derive(Debug, Clone, Copy)]
        enum Unary {
            $($function $(($number))?),*
        }

        impl Tensor {$(
            $(#[$doc])*
            #[must_use]
            pub fn $method(self $(, $argument: $number)?) -> Self {
                apply(Unary::$function $(($argument))?, [self])
            }
        )*}
    };
}

functions! {
    /// `e^x`.
    exp Exp;
    /// The natural logarithm.
    log Log;
    /// The square root.
    sqrt Sqrt;
    /// `x^2`.
    square Square;
    /// `|x|`; its derivative at 0 is 0.
    abs Abs;
    /// `1 / (1 + e^-x)`.
    sigmoid Sigmoid;
    /// The hyperbolic tangent.
    tanh Tanh;
    /// `max(x, 0)`; its derivative at 0 is 0.
    relu Relu;
    /// Exact GELU, `x * (1 + erf(x / sqrt 2)) / 2`.
    gelu Gelu;
    /// The error function.
    erf Erf;
    /// `max(x, low)`; its derivative at `low` is 1.
    clamp_min ClampMin(low: f64);
    /// `x^exponent`.
    powf Powf(exponent: f64);
}

impl Unary {
    /// Whether the derivative is computed from the result, and not from the argument.
    fn saves_result(self) -> bool {
        matches!(self, Self::Exp | Self::Sqrt | Self::Sigmoid | Self::Tanh | Self::Relu)
    }

    /// The values; NaN stays NaN.
    fn apply<T: Real>(self, x: &mut [T]) {
        let [zero, half, one, root] = [0.0, 0.5, 1.0, FRAC_1_SQRT_2].map(T::from_f64);
        match self {
            Self::Exp => map(x, T::exp),
            Self::Log => map(x, T::ln),
            Self::Sqrt => map(x, T::sqrt),
            Self::Square => map(x, |x| x * x),
            Self::Abs => map(x, T::abs),
            Self::Sigmoid => map(x, |x| one / (one + (-x).exp())),
            Self::Tanh => map(x, T::tanh),
            Self::Relu => map(x, |x| if x < zero { zero } else { x }),
            Self::Gelu => map(x, |x| x * half * ((x * root).erf() + one)),
            Self::Erf => map(x, T::erf),
            Self::ClampMin(low) => {
                let low = T::from_f64(low);
                map(x, |x| if x < low { low } else { x });
            }
            Self::Powf(exponent) => {
                let exponent = T::from_f64(exponent);
                map(x, |x| x.powf(exponent));
            }
        }
    }

    /// Multiplies gradients by the derivative; `s` is what was saved.
    fn differentiate<T: Real>(self, gradient: &mut [T], s: &[T]) {
        let [zero, half, one, two] = [0.0, 0.5, 1.0, 2.0].map(T::from_f64);
        let [root, slope] = [FRAC_1_SQRT_2, FRAC_2_SQRT_PI].map(T::from_f64);
        match self {
            Self::Exp => zip(gradient, s, |g, y| g * y),
            Self::Log => zip(gradient, s, |g, x| g / x),
            Self::Sqrt => zip(gradient, s, |g, y| g / (two * y)),
            Self::Square => zip(gradient, s, |g, x| g * two * x),
            Self::Abs => zip(gradient, s, |g, x| if x == zero { zero } else { g * x.signum() }),
            Self::Sigmoid => zip(gradient, s, |g, y| g * y * (one - y)),
            Self::Tanh => zip(gradient, s, |g, y| g * (one - y * y)),
            Self::Relu => zip(gradient, s, |g, y| if y > zero { g } else { zero }),
            // Phi(x) + x phi(x), with phi(x) = e^(-x^2 / 2) / sqrt(2 pi).
            Self::Gelu => zip(gradient, s, |g, x| {
                let density = half * root * slope * (-half * x * x).exp();
                g * (half * ((x * root).erf() + one) + x * density)
            }),
            Self::Erf => zip(gradient, s, |g, x| g * slope * (-x * x).exp()),
            Self::ClampMin(low) => {
                let low = T::from_f64(low);
                zip(gradient, s, |g, x| if x < low { zero } else { g });
            }
            Self::Powf(0.0) => gradient.fill(zero),
            Self::Powf(exponent) => {
                let [exponent, less] = [exponent, exponent - 1.0].map(T::from_f64);
                zip(gradient, s, |g, x| g * exponent * x.powf(less));
            }
        }
    }
}

impl Operation for Unary {
    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::default().saving(inputs[0].numel(), Precision::F32)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let x = nodes.input(0);
        Some(match *self {
            Self::Square => nodes.node("Mul", &[&x, &x], &[]),
            Self::Gelu => nodes.gelu(&x),
            Self::ClampMin(low) => {
                let low = nodes.number(low);
                nodes.node("Max", &[&x, &low], &[])
            }
            Self::Powf(exponent) => {
                let exponent = nodes.number(exponent);
                nodes.node("Pow", &[&x, &exponent], &[])
            }
            function => nodes.node(&format!("{function:?}"), &[&x], &[]),
        })
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let mut x = inputs.swap_remove(0);
        let argument = (save && !self.saves_result()).then(|| x.clone());
        with_real!(x, T => self.apply::<T>(x.values_mut()));
        let saved = save.then(|| Saved::new(argument.unwrap_or_else(|| x.clone())));
        (x, saved)
    }

    fn backward(&self, mut pass: Backward<'_>) -> InputGradients {
        let saved: Tensor = pass.saved.take();
        with_real!(saved, T => self.differentiate::<T>(pass.gradient.values_mut(), saved.values()));
        vec![Some(pass.gradient)]
    }
}
