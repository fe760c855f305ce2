//! The lowest floor of `esvit`: code that works on slices and numbers and knows
//! neither pictures nor tensors.

pub mod rng;
