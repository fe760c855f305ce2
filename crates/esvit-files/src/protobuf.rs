//! Messages in the protocol-buffer encoding, as far as they are written here: each field is a key,
//! which holds the field's number and its wire type, and a value.

/// A message in the making.
#[derive(Debug, Default)]
pub struct Message(Vec<u8>);

const WIRE_VARINT: u64 = 0;
const WIRE_FIXED_64: u64 = 1;
const WIRE_BYTES: u64 = 2;
const WIRE_FIXED_32: u64 = 5;

impl Message {
    /// What was written so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds an integer or a truth value.
    pub fn integer(&mut self, field: u64, value: u64) {
        self.key(field, WIRE_VARINT);
        self.varint(value);
    }

    /// Adds a number of 64 bits.
    pub fn double(&mut self, field: u64, value: f64) {
        self.key(field, WIRE_FIXED_64);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Adds a number of 32 bits.
    pub fn float(&mut self, field: u64, value: f32) {
        self.key(field, WIRE_FIXED_32);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Adds text or bytes.
    pub fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key_of_bytes(field, value.len());
        self.0.extend_from_slice(value);
    }

    /// Adds a message.
    pub fn message(&mut self, field: u64, value: &Self) {
        self.bytes(field, &value.0);
    }

    /// Adds the key of so many bytes, which the caller writes behind the message.
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
