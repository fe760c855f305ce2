//! Pickles written by hand, instruction by instruction, and what Python makes of them.

use super::*;
use crate::file::Parsed;
use crate::limits::{MAX_INSTRUCTIONS, MAX_NESTING, MAX_NODES, MAX_TENSORS};
use crate::source::Source;
use crate::value::Value;

/// Where the storages of these pickles are said to lie.
const STORAGE: ByteRange = (1000, 400);

fn contents(pickle: &[u8]) -> Result<Parsed, ErrorKind> {
    let source = Source::memory(pickle.to_vec());
    let pickle = Unpickler::run(&mut Input::new(&source, 0, source.length()))?;
    expand(&pickle, |_| Ok(STORAGE))
}

fn value(pickle: &[u8]) -> Value {
    contents(pickle).unwrap_or_else(|error| panic!("{}: {error}", pickle.escape_ascii())).metadata
}

#[track_caller]
fn refused(pickle: &[u8], part: &str) {
    let error = contents(pickle).unwrap_err().to_string();
    assert!(error.contains(part), "wanted `{part}`: {error}");
}

fn text(text: &str) -> Value {
    Value::Str(text.into())
}

fn object(class: &str, arguments: Vec<Value>, state: Option<Value>) -> Value {
    Value::Object { class: class.into(), arguments, state: state.map(Box::new) }
}

#[test]
fn instructions_do_what_python_does() {
    let pair = |key: &str, number| (text(key), Value::Int(number));
    for (pickle, expected) in [
        (&b"\x88."[..], Value::Bool(true)),
        (b"\x89.", Value::Bool(false)),
        (b"I00\n.", Value::Bool(false)),
        (b"I01\n.", Value::Bool(true)),
        (b"I1\r\n.", Value::Int(1)),
        (b"F-2.5\n.", Value::Float(-2.5)),
        (b"S'a'\r\n.", text("a")),
        (b"V\xc3\xbc\n.", text("ü")),
        (b"U\x02ab.", text("ab")),
        (b"U\x02\xff\xfe.", Value::Bytes(vec![0xff, 0xfe])),
        (b"T\x02\0\0\0\xff\xfe.", Value::Bytes(vec![0xff, 0xfe])),
        // A mark on top is what is taken, not the list below it.
        (b"](0I5\na.", Value::List(vec![Value::Int(5)])),
        (b"](I5\n10I6\n.", Value::Int(6)),
        (b"I1\nI2\n\x86.", Value::Tuple(vec![Value::Int(1), Value::Int(2)])),
        (b"(I1\nI2\nl.", Value::List(vec![Value::Int(1), Value::Int(2)])),
        (b"(S'a'\nI1\nd.", Value::Dict(vec![pair("a", 1)])),
        (b"cx\nY\n(I1\nt}\x92.", object("x.Y", vec![Value::Int(1)], None)),
        (b"(I1\nix\nY\n.", object("x.Y", vec![Value::Int(1)], None)),
        (b"(cx\nY\nI1\no.", object("x.Y", vec![Value::Int(1)], None)),
    ] {
        assert_eq!(value(pickle), expected, "{}", pickle.escape_ascii());
    }
    // Nothing below a mark is within reach.
    for pickle in [&b"I1\n(."[..], b"I1\n(\x85.", b"I1\nI2\n(I3\n\x86t.", b"]I1\n(a.", b"I1\n(2."] {
        refused(pickle, "stack of its pickle is empty");
    }
}

#[test]
fn calls_stand_for_what_they_make() {
    let dict = Value::Dict(vec![(text("a"), Value::Int(1))]);
    for (pickle, expected) in [
        (&b"ccollections\ndefaultdict\n(cbuiltins\nlist\ntRS'a'\nI1\ns."[..], dict.clone()),
        (b"ccollections\ndefaultdict\n(cbuiltins\nlist\n}S'a'\nI1\nstR.", dict.clone()),
        (b"ccollections\nOrderedDict\n(](S'a'\nI1\ntatR.", dict.clone()),
        (b"c__builtin__\ndict\n(}S'a'\nI1\nstR.", dict),
        (b"ctorch\nSize\n((I2\nI3\nttR.", Value::Tuple(vec![Value::Int(2), Value::Int(3)])),
        (b"c_codecs\nencode\n(X\x02\0\0\0\xc3\xbfS'latin1'\ntR.", Value::Bytes(vec![255])),
        (b"c_codecs\nencode\n(X\x02\0\0\0\xc3\xbfS'utf-8'\ntR.", Value::Bytes(vec![0xc3, 0xbf])),
        (b"cbuiltins\nbytearray\n(C\x01\x07tR.", Value::Bytes(vec![7])),
        (b"cbuiltins\nset\n(](I1\netR.", Value::List(vec![Value::Int(1)])),
        (b"cbuiltins\ntuple\n)R.", Value::Tuple(vec![])),
        (
            b"ccopy_reg\n_reconstructor\n(cx\nY\ncbuiltins\nobject\nNtR.",
            object("x.Y", vec![], None),
        ),
    ] {
        assert_eq!(value(pickle), expected, "{}", pickle.escape_ascii());
    }
    let state = Value::Dict(vec![(text("a"), Value::Int(1)), (text("b"), Value::Int(2))]);
    assert_eq!(
        value(b"cx\nY\n)RI7\naS'a'\nI1\ns}S'b'\nI2\nsb."),
        object("x.Y", vec![Value::Int(7)], Some(state))
    );
}

#[test]
fn numbers_of_numpy_are_read_in_either_order() {
    let scalar = |kind: &str, order: &str, bytes: &[u8]| {
        let dtype = format!("cnumpy\ndtype\n(S'{kind}'\nI0\nI1\ntR(I3\nS'{order}'\nNtb");
        let start = [&b"cnumpy.core.multiarray\nscalar\n("[..], dtype.as_bytes(), b"C"].concat();
        value(&[&start[..], &[bytes.len() as u8], bytes, b"tR."].concat())
    };
    let high = [&[0u8; 7][..], &[0x80]].concat();
    for (kind, bytes, expected) in [
        ("f8", &1.5f64.to_le_bytes()[..], Value::Float(1.5)),
        ("f4", &1.5f32.to_le_bytes(), Value::Float(1.5)),
        ("f2", &half::f16::from_f32(1.5).to_le_bytes(), Value::Float(1.5)),
        ("i8", &high, Value::Int(i64::MIN)),
        ("i4", &high[4..], Value::Int(i32::MIN.into())),
        ("i2", &high[6..], Value::Int(i16::MIN.into())),
        ("i1", &high[7..], Value::Int(-128)),
        ("u8", &[1, 2, 0, 0, 0, 0, 0, 0], Value::Int(0x201)),
        ("u4", &high[4..], Value::Int(1 << 31)),
        ("u2", &high[6..], Value::Int(1 << 15)),
        ("u1", &high[7..], Value::Int(128)),
        ("b1", &[7], Value::Bool(true)),
        ("b1", &[0], Value::Bool(false)),
    ] {
        let reversed: Vec<u8> = bytes.iter().rev().copied().collect();
        assert_eq!(scalar(kind, "<", bytes), expected, "{kind}");
        assert_eq!(scalar(kind, ">", &reversed), expected, "{kind}");
    }
    // Beyond what a value holds.
    assert!(matches!(scalar("u8", "<", &high), Value::Object { .. }));
}

/// Files of the first versions name parts of a storage.
#[test]
fn a_tensor_of_a_part_of_a_storage_begins_there() {
    let tensor = |count: usize| {
        format!(
            "ctorch._utils\n_rebuild_tensor_v2\n\
             ((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI99\n(S'0'\nI5\nI{count}\nttQ\
             I2\n(I3\nt(I1\ntI00\n}}tR."
        )
    };
    let parsed = contents(tensor(10).as_bytes()).unwrap();
    let layout = &parsed.tensors[0].layout;
    assert_eq!((layout.start, layout.length, layout.offset), (STORAGE.0 + 20, 40, 2));
    refused(tensor(96).as_bytes(), "of 96 elements from 5 on");
}

#[test]
fn numbers_and_lines_have_an_end() {
    let digits = |count: usize| [&b"L"[..], &b"7".repeat(count), b"L\n."].concat();
    assert!(matches!(value(&digits(1024)), Value::Object { class, .. } if class == "int"));
    refused(&digits(1025), "no digits");
    let bytes = |count: u16| {
        let length = u32::from(count).to_le_bytes();
        [&b"\x8b"[..], &length, &vec![0x55; count.into()], b"."].concat()
    };
    assert!(matches!(value(&bytes(1024)), Value::Object { class, .. } if class == "int"));
    refused(&bytes(1025), "too many digits");
    let line = |count: usize| [&b"V"[..], &b"a".repeat(count), b"\n."].concat();
    assert_eq!(value(&line(1 << 20)), text(&"a".repeat(1 << 20)));
    refused(&line((1 << 20) + 1), "does not end");
}

#[test]
fn nesting_is_accepted_up_to_its_limit() {
    let deep = |count: usize| [&b"]".repeat(count)[..], &b"a".repeat(count - 1), b"."].concat();
    assert!(matches!(value(&deep(MAX_NESTING)), Value::List(_)));
    refused(&deep(MAX_NESTING + 1), "levels of nesting");
}

/// Each asks for more than one limit allows and stays within the others.
#[test]
fn every_limit_is_kept() {
    let steps = b"(0".repeat(MAX_INSTRUCTIONS as usize / 2 + 1);
    refused(&steps, "instructions in its pickle");
    let storage = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI6\ntq\0";
    let storages = [&storage[..], &b"h\0Q0".repeat(MAX_TENSORS + 1), b"."].concat();
    refused(&storages, "more than 1048576 storages");
    let values = [&b"Nq\x010("[..], &b"h\x01".repeat(MAX_NODES + 1), b"l."].concat();
    refused(&values, "values beside its tensors");
    let letters = vec![b'a'; 1 << 20];
    let encode = [b"(X\0\0\x10\0", &letters[..], b"S'ascii'\ntq\0"].concat();
    let copies = b"c_codecs\nencode\nh\0R0".repeat(257);
    refused(&[&encode[..], &copies, b"N."].concat(), "bytes of text in its pickle");
}

/// The names of all dictionaries around a value are copied for it.
#[test]
fn long_paths_are_counted() {
    let key = [&b"X\xff\x0f\0\0"[..], &b"k".repeat(4095), b"q\0"].concat();
    let mut pickle = [&key[..], b"0Nq\x010"].concat();
    for level in 1..=60u8 {
        pickle.extend([b'}', b'h', 0, b'h', level, b's', b'q', level + 1, b'0']);
    }
    let many = [&b"("[..], &b"h\x3d".repeat(60), b"l."].concat();
    refused(&[&pickle[..], &many].concat(), "bytes of text in its pickle");
    assert!(matches!(value(&[&pickle[..], b"h\x3d."].concat()), Value::Dict(_)));
}

#[test]
fn a_tensor_with_an_endless_name_is_refused() {
    let tensor = "ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\n\
        S'cpu'\nI6\ntQI0\n(I1\nt(I1\ntI00\n}tR";
    let named = |length: usize| format!("}}S'{}'\n{tensor}s.", "n".repeat(length));
    assert_eq!(contents(named(4096).as_bytes()).unwrap().tensors[0].name.len(), 4096);
    refused(named(4097).as_bytes(), "bytes of a tensor's name");
}
