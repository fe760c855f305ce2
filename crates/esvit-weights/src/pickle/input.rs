//! Buffered bytes of a pickle: a legacy file does not say where its pickles end.

use crate::error::{ErrorKind, corrupt, ensure};
use crate::limits::MAX_PICKLE;
use crate::source::Source;

/// Bytes to read ahead.
const READ_AHEAD: u64 = 1 << 16;

/// Bytes of a line in the text protocols.
const MAX_LINE: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Input<'a> {
    source: &'a Source,
    buffer: Vec<u8>,
    /// Bytes of the buffer already consumed.
    used: usize,
    /// Position in the file where the buffer ends.
    next: u64,
    /// Position in the file before which the pickle must end.
    end: u64,
    /// Position in the file at which the pickle exceeds the limit.
    limit: u64,
}

impl<'a> Input<'a> {
    /// The bytes from `start` to `end`, which must be within the file.
    pub(crate) fn new(source: &'a Source, start: u64, end: u64) -> Self {
        let limit = start.saturating_add(MAX_PICKLE);
        Self { source, buffer: Vec::new(), used: 0, next: start, end, limit }
    }

    /// Position of the next byte in the file.
    pub(crate) fn position(&self) -> u64 {
        self.next - (self.buffer.len() - self.used) as u64
    }

    /// Makes at least `count` bytes available.
    fn fetch(&mut self, count: u64) -> Result<(), ErrorKind> {
        let available = (self.buffer.len() - self.used) as u64;
        if available >= count {
            return Ok(());
        }
        let needed = count - available;
        let position = self.position();
        ensure!(
            needed <= self.end.saturating_sub(self.next),
            corrupt!("its pickle is cut off: {count} bytes are missing at {position}")
        );
        ensure!(
            needed <= self.limit.saturating_sub(self.next),
            ErrorKind::Limit { what: "bytes of pickle", limit: MAX_PICKLE }
        );
        let more = needed.max(READ_AHEAD).min(self.end - self.next);
        self.buffer.drain(..self.used);
        self.used = 0;
        self.buffer.extend_from_slice(&self.source.read(self.next, more)?);
        self.next += more;
        Ok(())
    }

    pub(crate) fn take(&mut self, count: u64) -> Result<&[u8], ErrorKind> {
        self.fetch(count)?;
        let taken = &self.buffer[self.used..][..count as usize];
        self.used += count as usize;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ErrorKind> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, ErrorKind> {
        Ok(self.array::<1>()?[0])
    }

    /// An unsigned little-endian length of `N` bytes.
    pub(crate) fn uint<const N: usize>(&mut self) -> Result<u64, ErrorKind> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.array::<N>()?);
        Ok(u64::from_le_bytes(wide))
    }

    /// Bytes after their length, which has `N` bytes.
    pub(crate) fn prefixed<const N: usize>(&mut self) -> Result<&[u8], ErrorKind> {
        let count = self.uint::<N>()?;
        self.take(count)
    }

    /// Text up to the end of the line.
    pub(crate) fn line(&mut self) -> Result<Vec<u8>, ErrorKind> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                byte => line.push(byte),
            }
            ensure!(line.len() <= MAX_LINE, corrupt!("a line of its pickle does not end"));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_taken_in_order_across_blocks() {
        let bytes: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let source = Source::memory(bytes.clone());
        let mut input = Input::new(&source, 5, 199_999);
        assert_eq!(input.take(3).unwrap(), &bytes[5..8]);
        assert_eq!(input.take(150_000).unwrap(), &bytes[8..150_008]);
        assert_eq!(input.position(), 150_008);
        assert!(input.take(u64::MAX).is_err());
        assert!(input.take(50_000).is_err());
        assert_eq!(input.take(49_991).unwrap().len(), 49_991);
        assert!(input.byte().is_err());
    }

    /// The file is sparse: it has no more bytes on the disk than the test reads.
    #[test]
    fn no_more_is_read_than_a_pickle_may_have() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        let length = MAX_PICKLE + 10 * READ_AHEAD;
        std::fs::File::create(&path).unwrap().set_len(length).unwrap();
        let source = Source::open(&path).unwrap();
        let mut input = Input::new(&source, READ_AHEAD, length);
        input.take(READ_AHEAD).unwrap();
        assert!(matches!(input.take(MAX_PICKLE), Err(ErrorKind::Limit { .. })));
    }
}
