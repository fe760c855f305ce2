//! Reading what `torch.save` writes.

mod archive;
pub(crate) mod legacy;
pub(crate) mod zip;
