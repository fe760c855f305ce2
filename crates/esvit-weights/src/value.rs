//! Contents of a file besides its tensors.

/// A value in a file. Python objects are data here.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    None,
    /// A boolean.
    Bool(bool),
    /// An integer. One beyond 64 bits is an `Object` of class `int` with its digits: decimal, or
    /// hexadecimal in two's complement after `0x`.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Str(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list or a set.
    List(Vec<Value>),
    /// A tuple.
    Tuple(Vec<Value>),
    /// Pairs of key and value, in the order of the file.
    Dict(Vec<(Value, Value)>),
    /// An object: class, arguments and state. The name of a class or function has only `class`.
    Object {
        /// Module and name of the class.
        class: String,
        /// Arguments of the constructor, then list items.
        arguments: Vec<Value>,
        /// Attributes, usually a `Dict`.
        state: Option<Box<Value>>,
    },
    /// A tensor: its index in [`WeightsFile::tensors`](crate::WeightsFile::tensors).
    Tensor(usize),
}

impl Value {
    /// The value of `key` in a dictionary, or the attribute `key` of an object.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            // As in Python, the later of duplicate keys wins.
            Self::Dict(pairs) => {
                pairs.iter().rev().find(|(k, _)| k.as_str() == Some(key)).map(|(_, value)| value)
            }
            Self::Object { state: Some(state), .. } => match **state {
                Self::Dict(_) => state.get(key),
                _ => None,
            },
            _ => None,
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is an integer.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The number; integers are rounded.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            Self::Int(number) => Some(*number as f64),
            _ => None,
        }
    }

    /// The boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionaries_and_attributes_are_found_by_name() {
        let pairs = vec![
            (Value::Int(1), Value::None),
            (Value::Str("a".into()), Value::Int(1)),
            (Value::Str("a".into()), Value::Int(2)),
        ];
        let dict = Value::Dict(pairs);
        assert_eq!(dict.get("a").and_then(Value::as_i64), Some(2));
        assert_eq!(dict.get("a").and_then(Value::as_f64), Some(2.0));
        assert_eq!(dict.get("b"), None);
        let object =
            Value::Object { class: "x.Y".into(), arguments: vec![], state: Some(Box::new(dict)) };
        assert_eq!(object.get("a").and_then(Value::as_i64), Some(2));
    }
}
