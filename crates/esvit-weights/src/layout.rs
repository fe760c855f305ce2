//! Where the elements of a tensor are in a file.

use crate::dtype::Dtype;
use crate::error::ensure;
use crate::limits::{MAX_EXPANDED, MAX_RANK};

/// A tensor's storage in the file, and its strides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// First byte of the storage.
    pub(crate) start: u64,
    /// Bytes of the storage.
    pub(crate) length: u64,
    /// Index of the tensor's first element in the storage.
    pub(crate) offset: u64,
    /// Strides in elements.
    pub(crate) strides: Vec<u64>,
}

/// The part of a storage that a tensor covers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Number of elements of the tensor.
    pub(crate) count: u64,
    /// Number of storage elements from its first to its last, both included.
    pub(crate) span: u64,
    /// Whether the span is the tensor in row-major order.
    pub(crate) contiguous: bool,
}

impl Layout {
    /// A row-major tensor that fills its storage.
    pub(crate) fn contiguous(start: u64, length: u64, shape: &[usize]) -> Self {
        Self { start, length, offset: 0, strides: contiguous_strides(shape) }
    }

    /// Checks that all elements are within the storage; the error is the reason.
    pub(crate) fn extent(&self, dtype: Dtype, shape: &[usize]) -> Result<Extent, String> {
        let [rank, strides] = [shape.len(), self.strides.len()];
        ensure!(rank <= MAX_RANK, format!("has {rank} dimensions, more than {MAX_RANK}"));
        ensure!(rank == strides, format!("has {rank} dimensions and {strides} strides"));
        // Dimensions of size 0 are ignored, so that no product of the others overflows.
        let full = shape.iter().filter(|&&size| size > 0);
        let product = full.copied().try_fold(1usize, usize::checked_mul);
        let Some(product) = product.filter(|&count| count <= isize::MAX as usize) else {
            return Err(format!("has a shape beyond all memory, {shape:?}"));
        };
        if shape.contains(&0) {
            return Ok(Extent { count: 0, span: 0, contiguous: true });
        }
        let count = product as u64;
        let available = self.length / dtype.size() as u64;
        let steps =
            shape.iter().zip(&self.strides).map(|(&size, &stride)| (size as u64 - 1, stride));
        let last = steps
            .clone()
            .try_fold(0u64, |sum, (steps, stride)| sum.checked_add(steps.checked_mul(stride)?));
        let end = last.and_then(|last| last.checked_add(self.offset)?.checked_add(1));
        let (Some(last), Some(_)) = (last, end.filter(|&end| end <= available)) else {
            return Err(format!(
                "of shape {shape:?} with strides {:?} from element {} on does not fit its storage \
                 of {available} elements",
                self.strides, self.offset
            ));
        };
        ensure!(
            count <= available || count <= MAX_EXPANDED,
            format!(
                "repeats the {available} elements of its storage to {count}, more than {MAX_EXPANDED}"
            )
        );
        let expected = contiguous_strides(shape);
        let contiguous = (0..shape.len()).all(|i| shape[i] == 1 || self.strides[i] == expected[i]);
        Ok(Extent { count, span: last + 1, contiguous })
    }

    /// Position of the tensor's first byte in the file.
    pub(crate) fn first_byte(&self, dtype: Dtype) -> u64 {
        self.start + self.offset * dtype.size() as u64
    }
}

fn contiguous_strides(shape: &[usize]) -> Vec<u64> {
    let mut strides = vec![1u64; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i] as u64);
    }
    strides
}

/// Copies the elements of a checked tensor in row-major order from the span of its storage.
pub(crate) fn gather_strided<T: Copy>(
    span: &[T],
    shape: &[usize],
    strides: &[u64],
    out: &mut Vec<T>,
) {
    // Without dimensions of size 1 the work is at most twice the elements, whatever the rank.
    let axes: Vec<(usize, usize)> = shape
        .iter()
        .zip(strides)
        .filter(|&(&size, _)| size != 1)
        .map(|(&size, &stride)| (size, stride as usize))
        .collect();
    gather_axes(span, &axes, out);
}

fn gather_axes<T: Copy>(span: &[T], axes: &[(usize, usize)], out: &mut Vec<T>) {
    match *axes {
        [] => out.push(span[0]),
        [(size, 1)] => out.extend_from_slice(&span[..size]),
        [(size, stride), ref rest @ ..] => {
            (0..size).for_each(|i| gather_axes(&span[i * stride..], rest, out));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(length: u64, offset: u64, strides: &[u64]) -> Layout {
        Layout { start: 0, length, offset, strides: strides.to_vec() }
    }

    #[test]
    fn transposed_narrowed_and_expanded_tensors_are_gathered() {
        let storage = [0, 1, 2, 3, 4, 5];
        let check = |shape: &[usize], strides: &[u64], offset: usize, expected: &[i32]| {
            let place = place(6, offset as u64, strides);
            let extent = place.extent(Dtype::U8, shape).unwrap();
            assert_eq!(extent.count as usize, expected.len());
            let mut out = Vec::new();
            gather_strided(&storage[offset..][..extent.span as usize], shape, strides, &mut out);
            assert_eq!(out, expected, "{shape:?} {strides:?}");
        };
        check(&[2, 3], &[3, 1], 0, &[0, 1, 2, 3, 4, 5]);
        check(&[3, 2], &[1, 3], 0, &[0, 3, 1, 4, 2, 5]);
        check(&[2, 2], &[3, 1], 1, &[1, 2, 4, 5]);
        check(&[2, 3], &[0, 1], 3, &[3, 4, 5, 3, 4, 5]);
        check(&[1, 3, 1], &[77, 2, 5], 0, &[0, 2, 4]);
        check(&[], &[], 5, &[5]);
    }

    #[test]
    fn tensors_beyond_their_storage_are_refused() {
        for (shape, strides, offset, part) in [
            (&[2, 3][..], &[3, 1][..], 1, "does not fit"),
            (&[7], &[1], 0, "does not fit"),
            (&[2], &[u64::MAX], 0, "does not fit"),
            (&[3], &[u64::MAX], 0, "does not fit"),
            (&[1], &[1], u64::MAX, "does not fit"),
            (&[2], &[1, 1], 0, "2 strides"),
            (&[usize::MAX, 2], &[0, 0], 0, "beyond all memory"),
            (&[0, usize::MAX, 2], &[0, 0, 0], 0, "beyond all memory"),
            (&[1 << 40], &[0], 0, "repeats"),
            (&[1; 65], &[1; 65], 0, "dimensions"),
        ] {
            let reason = place(6, offset, strides).extent(Dtype::U8, shape).unwrap_err();
            assert!(reason.contains(part), "{reason}");
        }
        assert!(place(6, 5, &[1; 64]).extent(Dtype::U8, &[1; 64]).is_ok());
    }

    #[test]
    fn an_empty_tensor_needs_no_storage() {
        let extent = place(0, 9, &[1, 1]).extent(Dtype::F32, &[0, 5]).unwrap();
        assert_eq!((extent.count, extent.span), (0, 0));
    }

    /// Only elements that stand in the storage once and are shown many times are limited.
    #[test]
    fn a_large_storage_holds_a_large_tensor() {
        let count = MAX_EXPANDED as usize + 1;
        let extent = place(count as u64, 0, &[1]).extent(Dtype::U8, &[count]).unwrap();
        assert_eq!((extent.count, extent.contiguous), (count as u64, true));
        assert!(place(1, 0, &[0]).extent(Dtype::U8, &[count - 1]).is_ok());
        assert!(place(1, 0, &[0]).extent(Dtype::U8, &[count]).is_err());
    }
}
