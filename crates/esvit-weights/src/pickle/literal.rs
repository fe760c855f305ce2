//! Instructions that push a number, text or bytes.

use super::node::Node;
use super::unpickler::Unpickler;
use crate::error::ErrorKind;

/// Digits of an integer beyond 64 bits, at most.
const MAX_DIGITS: usize = 1024;

impl Unpickler<'_, '_> {
    pub(super) fn integer<const N: usize>(&mut self) -> Result<(), ErrorKind> {
        let number = self.input.uint::<N>()?;
        self.push(Node::Int(number as i64))
    }

    /// A decimal integer, with suffix `L` for a `long` of Python 2. `00` and `01` are booleans.
    pub(super) fn decimal_int(&mut self) -> Result<(), ErrorKind> {
        let line = self.input.line()?;
        let digits = line.strip_suffix(b"L").unwrap_or(&line);
        let node = match digits {
            b"00" => Node::Bool(false),
            b"01" => Node::Bool(true),
            _ => {
                let digits = utf8(digits)?.trim();
                let whole = |text: &str| {
                    !text.is_empty()
                        && text.len() <= MAX_DIGITS
                        && text.bytes().all(|byte| byte.is_ascii_digit())
                };
                match digits.parse() {
                    Ok(number) => Node::Int(number),
                    Err(_) if whole(digits.strip_prefix('-').unwrap_or(digits)) => {
                        Node::BigInt(digits.into())
                    }
                    Err(_) => return Err(ErrorKind::corrupt("a number has no digits")),
                }
            }
        };
        self.push(node)
    }

    /// A signed little-endian integer of `count` bytes, in two's complement.
    pub(super) fn long(&mut self, count: u64) -> Result<(), ErrorKind> {
        let bytes = self.input.take(count)?;
        let negative = bytes.last().is_some_and(|&last| last >= 0x80);
        let fill = if negative { 0xff } else { 0 };
        // It fits into 64 bits if the rest is sign extension.
        let fits = bytes.len() <= 8
            || bytes[8..].iter().all(|&byte| byte == fill) && (bytes[7] >= 0x80) == negative;
        let node = if !fits {
            if bytes.len() > MAX_DIGITS {
                return Err(ErrorKind::corrupt("an integer has too many digits"));
            }
            let digits: String = bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect();
            Node::BigInt(format!("0x{digits}").into())
        } else {
            let mut wide = [fill; 8];
            let used = bytes.len().min(8);
            wide[..used].copy_from_slice(&bytes[..used]);
            Node::Int(i64::from_le_bytes(wide))
        };
        self.push(node)
    }

    pub(super) fn text<const N: usize>(&mut self) -> Result<(), ErrorKind> {
        let count = self.input.uint::<N>()?;
        let text = utf8(self.input.take(count)?)?.into();
        self.push(Node::Text(text))
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<(), ErrorKind> {
        let count = self.input.uint::<N>()?;
        let bytes = self.input.take(count)?.into();
        self.push(Node::Bytes(bytes))
    }

    /// A string of Python 2, text or bytes.
    pub(super) fn python2_string<const N: usize>(&mut self) -> Result<(), ErrorKind> {
        let count = self.input.uint::<N>()?;
        let node = text_or_bytes(self.input.take(count)?);
        self.push(node)
    }

    pub(super) fn quoted_string(&mut self) -> Result<(), ErrorKind> {
        let line = self.input.line()?;
        let inner = match *line {
            [b'\'', ref inner @ .., b'\''] | [b'"', ref inner @ .., b'"'] => inner,
            _ => return Err(ErrorKind::corrupt("a string has no quotes")),
        };
        self.push(text_or_bytes(inner))
    }
}

fn text_or_bytes(bytes: &[u8]) -> Node {
    match std::str::from_utf8(bytes) {
        Ok(text) => Node::Text(text.into()),
        Err(_) => Node::Bytes(bytes.into()),
    }
}

pub(super) fn utf8(bytes: &[u8]) -> Result<&str, ErrorKind> {
    std::str::from_utf8(bytes).map_err(|_| ErrorKind::corrupt("text is not UTF-8"))
}
