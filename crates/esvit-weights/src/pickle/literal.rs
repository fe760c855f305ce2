//! Instructions that push a number, text or bytes.

use super::input::Input;
use super::node::Node;
use super::opcode as op;
use crate::error::{ErrorKind, corrupt, ensure};

/// Digits of an integer beyond 64 bits, at most.
const MAX_DIGITS: usize = 1024;

/// The value that an instruction pushes, if it does nothing else.
pub(super) fn literal(code: u8, input: &mut Input<'_>) -> Result<Option<Node>, ErrorKind> {
    Ok(Some(match code {
        op::NONE => Node::None,
        op::NEWTRUE => Node::Bool(true),
        op::NEWFALSE => Node::Bool(false),
        op::INT | op::LONG => decimal_int(&input.line()?)?,
        op::BININT => Node::Int(i32::from_le_bytes(input.array()?).into()),
        op::BININT1 => Node::Int(input.uint::<1>()? as i64),
        op::BININT2 => Node::Int(input.uint::<2>()? as i64),
        op::LONG1 => long(input.prefixed::<1>()?)?,
        op::LONG4 => long(input.prefixed::<4>()?)?,
        op::FLOAT => {
            let number = utf8(&input.line()?).ok().and_then(|text| text.parse().ok());
            Node::Float(number.ok_or_else(|| corrupt!("a number has no digits"))?)
        }
        op::BINFLOAT => Node::Float(f64::from_be_bytes(input.array()?)),
        op::SHORT_BINUNICODE => text(input.prefixed::<1>()?)?,
        op::BINUNICODE => text(input.prefixed::<4>()?)?,
        op::BINUNICODE8 => text(input.prefixed::<8>()?)?,
        op::UNICODE => text(&input.line()?)?,
        op::STRING => quoted_string(&input.line()?)?,
        op::SHORT_BINSTRING => text_or_bytes(input.prefixed::<1>()?),
        op::BINSTRING => text_or_bytes(input.prefixed::<4>()?),
        op::SHORT_BINBYTES => Node::Bytes(input.prefixed::<1>()?.into()),
        op::BINBYTES => Node::Bytes(input.prefixed::<4>()?.into()),
        op::BINBYTES8 | op::BYTEARRAY8 => Node::Bytes(input.prefixed::<8>()?.into()),
        op::EMPTY_LIST | op::EMPTY_SET => Node::List(Vec::new()),
        op::EMPTY_DICT => Node::Dict(Vec::new()),
        _ => return Ok(None),
    }))
}

/// A decimal integer, with suffix `L` for a `long` of Python 2. `00` and `01` are booleans.
fn decimal_int(line: &[u8]) -> Result<Node, ErrorKind> {
    let digits = line.strip_suffix(b"L").unwrap_or(line);
    if let [b'0', bit @ (b'0' | b'1')] = *digits {
        return Ok(Node::Bool(bit == b'1'));
    }
    let digits = utf8(digits)?.trim();
    if let Ok(number) = digits.parse() {
        return Ok(Node::Int(number));
    }
    let whole = digits.strip_prefix('-').unwrap_or(digits);
    if whole.bytes().all(|byte| byte.is_ascii_digit()) && (1..=MAX_DIGITS).contains(&whole.len()) {
        return Ok(Node::BigInt(digits.into()));
    }
    Err(corrupt!("a number has no digits"))
}

/// A signed little-endian integer, in two's complement.
fn long(bytes: &[u8]) -> Result<Node, ErrorKind> {
    let negative = bytes.last().is_some_and(|&last| last >= 0x80);
    let fill = if negative { 0xff } else { 0 };
    // It fits into 64 bits if the rest is sign extension.
    let fits = bytes.len() <= 8
        || bytes[8..].iter().all(|&byte| byte == fill) && (bytes[7] >= 0x80) == negative;
    if fits {
        let mut wide = [fill; 8];
        wide.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        return Ok(Node::Int(i64::from_le_bytes(wide)));
    }
    ensure!(bytes.len() <= MAX_DIGITS, corrupt!("an integer has too many digits"));
    let digits: String = bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    Ok(Node::BigInt(format!("0x{digits}").into()))
}

fn quoted_string(line: &[u8]) -> Result<Node, ErrorKind> {
    match line {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => Ok(text_or_bytes(inner)),
        _ => Err(corrupt!("a string has no quotes")),
    }
}

fn text(bytes: &[u8]) -> Result<Node, ErrorKind> {
    Ok(Node::Text(utf8(bytes)?.into()))
}

/// A string of Python 2, text or bytes.
fn text_or_bytes(bytes: &[u8]) -> Node {
    text(bytes).unwrap_or_else(|_| Node::Bytes(bytes.into()))
}

pub(super) fn utf8(bytes: &[u8]) -> Result<&str, ErrorKind> {
    std::str::from_utf8(bytes).map_err(|_| corrupt!("text is not UTF-8"))
}
