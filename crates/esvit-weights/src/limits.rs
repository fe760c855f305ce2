//! What a file may ask for. A file of weights is often fetched from a stranger, so every length in
//! it is compared with one of these, or with the length of the file, before memory is taken.

/// Bytes of a safetensors header; the limit of the format's own library.
pub const MAX_HEADER: u64 = 100_000_000;

/// Bytes of pickle in a PyTorch file. The tensors are beside it, not in it.
pub const MAX_PICKLE: u64 = 256 << 20;

/// Bytes of the list of entries of a zip archive.
pub const MAX_DIRECTORY: u64 = 256 << 20;

/// Tensors of a file.
pub const MAX_TENSORS: usize = 1 << 20;

/// Bytes of the name of a tensor, its group included.
pub const MAX_NAME: usize = 4096;

/// Dimensions of a tensor.
pub const MAX_RANK: usize = 64;

/// How deep dictionaries, lists and objects of a file are nested.
pub const MAX_NESTING: usize = 64;

/// Elements of a tensor that has more of them than its storage, by repeating some.
pub const MAX_EXPANDED: u64 = 1 << 26;

/// Instructions that a pickle is followed for.
pub(crate) const MAX_STEPS: u64 = 20_000_000;

/// Objects that a pickle may build.
pub(crate) const MAX_OBJECTS: usize = 8_000_000;

/// Nodes of [`Value`](crate::Value). A pickle can name one list many times, in lists that it names
/// many times, so that a short one stands for a tree without end.
pub(crate) const MAX_NODES: usize = 1 << 21;

/// Bytes of text and names in the tree, for the same reason.
pub(crate) const MAX_TEXT: usize = 256 << 20;
