//! A protocol-buffer encoder. Each field is a key, which holds the field number and the wire type,
//! and a value.

/// A message under construction.
#[derive(Debug, Default)]
pub struct Message(Vec<u8>);

const WIRE_VARINT: u64 = 0;
const WIRE_FIXED_64: u64 = 1;
const WIRE_BYTES: u64 = 2;
const WIRE_FIXED_32: u64 = 5;

impl Message {
    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds an integer, a bool or an enum value as a varint.
    pub fn integer(&mut self, field: u64, value: u64) {
        self.key(field, WIRE_VARINT);
        self.varint(value);
    }

    /// Adds a `double`.
    pub fn double(&mut self, field: u64, value: f64) {
        self.key(field, WIRE_FIXED_64);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Adds a `float`.
    pub fn float(&mut self, field: u64, value: f32) {
        self.key(field, WIRE_FIXED_32);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Adds a `string` or `bytes`.
    pub fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key_of_bytes(field, value.len());
        self.0.extend_from_slice(value);
    }

    /// Adds a nested message.
    pub fn message(&mut self, field: u64, value: &Self) {
        self.bytes(field, &value.0);
    }

    /// Adds the key of `len` bytes, which the caller writes after the message.
    pub fn key_of_bytes(&mut self, field: u64, len: usize) {
        self.key(field, WIRE_BYTES);
        self.varint(len as u64);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of the examples in the format's own description, and what follows from it.
    #[test]
    fn fields_are_encoded_as_the_format_says() {
        let bytes = |write: &dyn Fn(&mut Message)| {
            let mut message = Message::default();
            write(&mut message);
            message.as_bytes().to_vec()
        };
        assert_eq!(bytes(&|m| m.integer(1, 150)), [0x08, 0x96, 0x01]);
        assert_eq!(bytes(&|m| m.integer(1, 127)), [0x08, 0x7f]);
        assert_eq!(bytes(&|m| m.integer(1, 128)), [0x08, 0x80, 0x01]);
        assert_eq!(bytes(&|m| m.integer(16, 0)), [0x80, 0x01, 0x00]);
        assert_eq!(bytes(&|m| m.integer(1, u64::MAX))[1..], [[0xff; 9].as_slice(), &[1]].concat());
        assert_eq!(bytes(&|m| m.bytes(2, b"testing")), b"\x12\x07testing");
        assert_eq!(bytes(&|m| m.float(3, 1.0)), [0x1d, 0, 0, 0x80, 0x3f]);
        assert_eq!(bytes(&|m| m.double(3, 1.0)), [0x19, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
        let mut inner = Message::default();
        inner.integer(1, 150);
        assert_eq!(bytes(&|m| m.message(3, &inner)), [0x1a, 0x03, 0x08, 0x96, 0x01]);
        assert_eq!(bytes(&|m| m.key_of_bytes(1, 300)), [0x0a, 0xac, 0x02]);
    }
}
