//! Limits on the content of files, which often come from strangers: every length in a file is
//! compared with one of these, or with the length of the file, before memory is allocated.

/// Bytes of a safetensors header; the limit of the format's own library.
pub const MAX_HEADER: u64 = 100_000_000;

/// Bytes of pickle in a PyTorch file; tensors are stored beside it.
pub const MAX_PICKLE: u64 = 256 << 20;

/// Bytes of a zip archive's central directory.
pub const MAX_DIRECTORY: u64 = 256 << 20;

/// Number of tensors in a file.
pub const MAX_TENSORS: usize = 1 << 20;

/// Files that hold one network together.
pub const MAX_PARTS: usize = 10_000;

/// Bytes of metadata beside a PyTorch state dictionary.
pub const MAX_EXTRA: u64 = 16 << 20;

/// Bytes of a tensor's name, its group included.
pub const MAX_NAME: usize = 4096;

/// Number of dimensions of a tensor.
pub const MAX_RANK: usize = 64;

/// Nesting depth of dictionaries, lists and objects.
pub const MAX_NESTING: usize = 64;

/// Elements of a tensor that has more elements than its storage (strides of 0).
pub const MAX_EXPANDED: u64 = 1 << 26;

/// Instructions of a pickle.
pub(crate) const MAX_INSTRUCTIONS: u64 = 20_000_000;

/// Objects that a pickle may create.
pub(crate) const MAX_OBJECTS: usize = 8_000_000;

/// Nodes of [`Value`](crate::Value): lists that contain one list many times, many levels deep,
/// would expand exponentially.
pub(crate) const MAX_NODES: usize = 1 << 21;

/// Bytes of text and names in the tree, for the same reason.
pub(crate) const MAX_TEXT: usize = 256 << 20;
