//! Reading what `torch.save` writes.

pub(crate) mod archive;
pub(crate) mod legacy;
pub(crate) mod zip;
