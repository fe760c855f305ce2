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
