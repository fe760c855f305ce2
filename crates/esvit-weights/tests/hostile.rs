//! Files that are damaged or made to do harm give an error that says what is wrong.

#![expect(clippy::unwrap_used, reason = "a test that unwraps says at which line it failed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use esvit_weights::{Tensor, Value, WeightsError, WeightsFile, write_safetensors};

fn fixture(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::fs::read(folder.join(name)).unwrap()
}

/// Opens a file and reads all of it.
fn read(bytes: &[u8]) -> Result<WeightsFile, WeightsError> {
    let file = WeightsFile::from_bytes(Path::new("file"), bytes.to_vec())?;
    for tensor in file.tensors() {
        if tensor.dtype.is_float() {
            drop(file.read_f32(tensor)?)
        } else {
            drop(file.read_i64(tensor)?)
        }
    }
    Ok(file)
}

#[track_caller]
fn refused(bytes: &[u8], part: &str) {
    let error = read(bytes).unwrap_err().to_string();
    assert!(error.starts_with("`file`"), "{error}");
    assert!(error.contains(part) && error.contains("\nhint: "), "wanted `{part}`: {error}");
}

/// A zip archive of stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut list) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let lengths = |record: &mut Vec<u8>| {
            record.extend([0; 4]);
            record.extend((data.len() as u32).to_le_bytes());
            record.extend((data.len() as u32).to_le_bytes());
            record.extend((name.len() as u16).to_le_bytes());
            record.extend([0, 0]);
        };
        list.extend(b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0");
        lengths(&mut list);
        list.extend([0; 10]);
        list.extend((bytes.len() as u32).to_le_bytes());
        list.extend(name.as_bytes());
        bytes.extend(b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0");
        lengths(&mut bytes);
        bytes.extend(name.as_bytes());
        bytes.extend(*data);
    }
    let start = bytes.len() as u32;
    bytes.extend(&list);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([entries.len() as u16; 2].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend((list.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

fn zip_of(pickle: &[u8]) -> Vec<u8> {
    zip(&[("a/data.pkl", pickle), ("a/data/0", &[0; 24])])
}

fn legacy_of(pickle: &[u8]) -> Vec<u8> {
    legacy(pickle, pickle.windows(7).any(|part| part == b"storage"))
}

fn legacy(pickle: &[u8], with_storage: bool) -> Vec<u8> {
    let start = &b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."[..];
    let end = b"\x80\x02]X\x01\0\0\x000a.\x06\0\0\0\0\0\0\0";
    let end = if with_storage { [&end[..], &[0; 24]].concat() } else { b"].".into() };
    [start, pickle, &end].concat()
}

/// A pickled tensor of a storage of `count` floats called `key`, 0 in the files above.
fn tensor(key: &str, count: &str, offset: &str, shape: &str, strides: &str) -> String {
    let storage = format!("(S'storage'\nctorch\nFloatStorage\nS'{key}'\nS'cpu'\nI{count}\nNtQ");
    format!("ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n({shape}t({strides}tI00\n}}tR")
}

fn in_both(pickle: &[u8], part: &str) {
    refused(&zip_of(pickle), part);
    refused(&legacy_of(pickle), part);
}

#[test]
fn the_helpers_make_files_that_are_read() {
    let pickle = format!("}}S'x'\n{}s.", tensor("0", "6", "1", "I5\n", "I1\n"));
    for bytes in [zip_of(pickle.as_bytes()), legacy_of(pickle.as_bytes())] {
        assert_eq!(read(&bytes).unwrap().tensors()[0].shape, [5]);
    }
}

#[test]
fn code_is_named_and_never_run() {
    for (pickle, function) in [
        (&b"cos\nsystem\n(S'touch /tmp/x'\ntR."[..], "os.system"),
        (b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R.", "posix.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "builtins.eval"),
        (b"(S'id'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'id'\no.", "os.system"),
        (b"\x80\x02csubprocess\nPopen\nX\x02\0\0\0id\x85\x81.", "subprocess.Popen"),
        (b"\x80\x02cbuiltins\ngetattr\n(Nt}\x92.", "builtins.getattr"),
    ] {
        in_both(pickle, &format!("`{function}`"));
    }
    // As the whole file, in the text protocol.
    refused(b"cos\nsystem\n(S'id'\ntR.", "`os.system` to be called, nothing was run");
}

#[test]
fn integers_of_any_length_are_read() {
    for (pickle, expected) in [
        (&b"\x8a\x00."[..], 0),
        (b"\x8a\x01\xff.", -1),
        (b"\x8a\x09\0\0\0\0\0\0\0\x80\xff.", i64::MIN),
        (b"\x8b\x02\0\0\0\x39\x30.", 12345),
        (b"L-7L\n.", -7),
        (b"J\xfe\xff\xff\xff.", -2),
        (b"M\xff\xff.", 65535),
    ] {
        assert_eq!(read(&zip_of(pickle)).unwrap().metadata(), &Value::Int(expected));
    }
    let file = read(&zip_of(b"\x8a\x09\0\0\0\0\0\0\0\x80\0.")).unwrap();
    let Value::Object { class, arguments, .. } = file.metadata() else { panic!() };
    assert_eq!((&**class, arguments[0].as_str()), ("int", Some("0x008000000000000000")));
}

#[test]
fn foreign_classes_are_data() {
    let pickle = b"}S'x'\ncwhatever\nThing\n(I1\ntR}S'a'\nI2\nsbs.";
    for bytes in [zip_of(pickle), legacy_of(pickle)] {
        let file = read(&bytes).unwrap();
        let thing = file.metadata().get("x").unwrap();
        assert!(matches!(thing, Value::Object { class, .. } if class == "whatever.Thing"));
        assert_eq!(thing.get("a"), Some(&Value::Int(2)));
    }
}

#[test]
fn files_that_are_cut_off_are_refused_at_every_length() {
    for name in ["state_dict.pth", "legacy.pth", "state_dict.safetensors", "legacy_protocol4.pth"] {
        let bytes = fixture(name);
        read(&bytes).unwrap();
        for length in 0..bytes.len() {
            let error = read(&bytes[..length]).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("hint: "), "{name} {length}: {error}");
        }
    }
}

#[test]
fn compressed_archives_are_refused_unopened() {
    let mut bytes = zip_of(b"}.");
    let list = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    bytes[list + 10] = 8;
    // Claims to unpack to 4 GB.
    bytes[list + 24..list + 28].copy_from_slice(&[0xf0, 0xff, 0xff, 0xff]);
    refused(&bytes, "`a/data.pkl` of its archive is compressed");
    bytes[list + 24..list + 28].copy_from_slice(&[2, 0, 0, 0]);
    refused(&bytes, "`a/data.pkl` of its archive is compressed");
}

#[test]
fn directories_of_archives_are_checked() {
    let whole = zip_of(b"}.");
    let list = whole.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let end = whole.windows(4).position(|w| w == b"PK\x05\x06").unwrap();
    let edited = |at: usize, value: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    refused(
        &edited(list + 20, &[0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f]),
        "beyond its archive",
    );
    refused(&edited(list + 42, &[200]), "archive");
    refused(&edited(end + 10, &[0xff, 0xff]), "claims 65535 entries");
    refused(&edited(end + 12, &[0xff; 4]), "directory");
    refused(&edited(end + 16, &[0xff; 4]), "directory");
    refused(&edited(list + 46, &[0xff]), "not UTF-8");
    let second = list + 46 + "a/data.pkl".len();
    refused(&edited(second + 42, &[0]), "overlap");
    refused(&zip(&[("a/data.pkl", b"N."), ("a/data.pkl", b"N.")]), "twice");
    refused(&zip(&[("a/data.pkl", b"N."), ("b/data.pkl", b"N.")]), "several `data.pkl`");
    refused(&zip(&[("weights.bin", b"")]), "without `data.pkl`");
    refused(&zip(&[("a/data.pkl", b"N."), ("a/code/x.py", b"")]), "TorchScript");
    refused(&zip(&[("a/data.pkl", b"N."), ("a/byteorder", b"big")]), "highest byte first");
}

#[test]
fn the_64_bit_directory_is_checked() {
    let whole = fixture("state_dict.pth");
    let end = whole.windows(4).position(|w| w == b"PK\x06\x06").unwrap();
    let locator = whole.windows(4).position(|w| w == b"PK\x06\x07").unwrap();
    for at in [end + 32, end + 40, end + 48, locator + 8] {
        let mut bytes = whole.clone();
        bytes[at + 7] = 0x7f;
        refused(&bytes, "");
    }
}

#[test]
fn exponential_and_endless_structures_are_refused() {
    // Each list holds the one before it many times.
    let mut bomb = b"]q\0".to_vec();
    for _ in 0..40 {
        bomb.extend(b"](h\0h\0h\0h\0eq\0");
    }
    bomb.push(b'.');
    refused(&zip_of(&bomb), "more than");
    let deep = [&b"]".repeat(100_000)[..], &b"a".repeat(99_999), b"."].concat();
    in_both(&deep, "levels of nesting");
    let tuples = [&b")"[..], &b"\x85".repeat(100_000), b"."].concat();
    in_both(&tuples, "levels of nesting");
    in_both(b"]q\0h\0a.", "contains itself");
    in_both(b"}q\0S'x'\n](h\0es.", "`x/0` contains itself");
    // A dictionary that is copied again and again.
    let pairs = [&b"}("[..], &b"I1\nN".repeat(10_000), b"uq\0."].concat();
    let copies = b"ccollections\nOrderedDict\n(h\0tR0".repeat(10_000);
    refused(&zip_of(&[&pairs[..pairs.len() - 1], &copies[..], b"."].concat()), "more than");
}

#[test]
fn pickles_that_go_wrong_say_where() {
    for (pickle, part) in [
        (&b"R."[..], "stack of its pickle is empty"),
        (b".", "stack of its pickle is empty"),
        (b"(\x85.", "empty"),
        (b"e.", "a mark is missing"),
        (b"}(I1\nu.", "a key has no value"),
        (b"h\x07.", "nothing is kept as 7"),
        (b"\xff.", "instruction 0xff at byte"),
        (b"\x97.", "instruction NEXT_BUFFER at byte"),
        (b"I1\nI2\na.", "not a list"),
        (b"I1\nI2\nI3\ns.", "not a dictionary"),
        (b"X\x02\0\0\0\xff\xff.", "not UTF-8"),
        (b"X\xff\xff\xff\xff.", "cut off"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "cut off"),
        (b"\x8b\xff\xff\xff\x7f.", "cut off"),
        (b"Ix\n.", "no digits"),
        (b"NQ.", "reference to a storage"),
        (b"cx\ny\nNR.", "no tuple of arguments"),
        (b"o.", "a mark is missing"),
        (b"(o.", "no class"),
        (b"ccollections\nOrderedDict\n((I1\ntltR.", ""),
    ] {
        in_both(pickle, part);
    }
}

#[test]
fn tensors_beyond_their_storage_are_refused() {
    let huge = i64::MAX.to_string();
    let two = "I2\n".repeat(70);
    for (key, count, offset, shape, strides, part) in [
        ("0", "6", "2", "I5\n", "I1\n", "`x` of shape [5]"),
        ("0", "6", "0", "I2\nI2\n", "I9\nI1\n", "does not fit"),
        ("0", "6", "0", "I2\n", "I-1\n", "not as torch.save writes it"),
        ("0", "6", "-1", "I2\n", "I1\n", "not as torch.save writes it"),
        ("0", "6", "0", "I-2\n", "I1\n", "not as torch.save writes it"),
        ("0", "6", "0", &format!("I{huge}\nI{huge}\n"), "I0\nI0\n", "beyond all memory"),
        ("0", "6", "0", &format!("I{huge}\n"), "I0\n", "repeats"),
        ("0", "6", "0", "I2\n", &format!("I{huge}\n"), "does not fit"),
        ("0", "6", &huge, "I1\n", "I1\n", "does not fit"),
        ("0", "6", "0", "I2\n", "I1\nI1\n", "strides"),
        ("0", "6", "0", &two, &two, "not as torch.save writes it"),
        ("0", "7", "0", "I1\n", "I1\n", "for which the file has 24 bytes"),
        ("0", &huge, "0", "I1\n", "I1\n", "for which the file has 24 bytes"),
        ("0", "-6", "0", "I1\n", "I1\n", "reference to a storage"),
    ] {
        let pickle = format!("}}S'x'\n{}s.", tensor(key, count, offset, shape, strides));
        in_both(pickle.as_bytes(), part);
    }
    let pickle = format!("}}S'x'\n{}s.", tensor("0", "6", "0", "I1\n", "I1\n"));
    let mut bytes = zip_of(pickle.as_bytes());
    let headers = bytes.windows(4).enumerate().filter(|(_, w)| *w == b"PK\x03\x04");
    let second = headers.map(|(at, _)| at).nth(1).unwrap();
    bytes[second] = b'Q';
    refused(&bytes, "is not where its archive says");
    let pickle = format!("}}S'x'\n{}s.", tensor("1", "6", "0", "I1\n", "I1\n"));
    refused(&zip_of(pickle.as_bytes()), "tensor `x` misses the entry `a/data/1`");
    refused(&legacy_of(pickle.as_bytes()), "storage `0`");
}

#[test]
fn names_that_stand_twice_are_refused() {
    let tensor = tensor("0", "6", "0", "I1\n", "I1\n");
    for pair in [["S'x'\n", "S'x'\n"], ["S'1'\n", "I1\n"]] {
        let pickle = format!("}}{}{tensor}s{}{tensor}s.", pair[0], pair[1]);
        in_both(pickle.as_bytes(), "stands in the file twice");
    }
}

#[test]
fn legacy_files_of_other_kinds_are_refused() {
    let whole = legacy(b"}.", true);
    assert!(
        read(&legacy_of(format!("{}.", tensor("0", "6", "0", "I1\n", "I1\n")).as_bytes())).is_ok()
    );
    refused(&whole, "no tensor is of its storage `0`");
    assert!(read(&legacy(b"}.", false)).is_ok());
    refused(b"\x80\x02}.", "a pickle that `torch.save` did not write");
    let mut version = whole;
    version[18] = 0;
    refused(&version, "unknown version");
    let big = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\
        \x80\x02}X\x0d\0\0\0little_endian\x89s.N.].";
    refused(big, "highest byte first");
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn headers_of_safetensors_are_checked() {
    let x = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let file = read(&safetensors(&x("F32", "[2]", "[0,8]"), 8)).unwrap();
    assert_eq!(file.tensors()[0].name, "x");
    // Also types that came after this program.
    for dtype in ["C64", "F8_E4M3", "F4", "F33"] {
        let other = read(&safetensors(&x(dtype, "[1]", "[0,8]"), 8)).unwrap();
        assert_eq!(other.unsupported(), [("x".to_owned(), dtype.to_owned())]);
        assert!(other.tensors().is_empty());
    }
    for (header, data, part) in [
        (x("F32", "[2]", "[0,8]"), 9, "its tensors end at byte"),
        (x("F32", "[2]", "[0,8]"), 7, "its tensors end at byte"),
        (x("F32", "[3]", "[0,8]"), 8, "`x` of shape [3]"),
        (x("F32", "[2]", "[4,12]"), 12, "lies at 4..12"),
        (x("F32", "[2]", "[8,0]"), 8, "lies at 8..0"),
        (x("F32", "[4294967296,4294967296,4]", "[0,8]"), 8, "beyond all memory"),
        (x("F32", "[2]", "[0,18446744073709551615]"), 8, ""),
        (x("F32", "[-2]", "[0,8]"), 8, "no safetensors header"),
        (x("F33", "[2]", "[4,8]"), 8, "lies at 4..8"),
        (x(&"F".repeat(5000), "[2]", "[0,8]"), 8, "more than 4096 bytes of a type's name"),
        ("{".repeat(1000), 0, "no safetensors header"),
        (format!("{{\"x\":{}", "[".repeat(100_000)), 0, "no safetensors header"),
        ("{}".into(), 1, "its tensors end"),
    ] {
        refused(&safetensors(&header, data), part);
    }
    refused(&safetensors("{} x", 0), "no safetensors header");
    let twice = r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},
        "a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    refused(&safetensors(twice, 0), "`a` stands in the file twice");
    let two = r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},
        "b":{"dtype":"U8","shape":[8],"data_offsets":[4,12]}}"#;
    refused(&safetensors(two, 12), "`b` lies at 4..12");
    let mut bytes = safetensors("{}", 0);
    bytes[7] = 0x10;
    refused(&bytes, "claims to have");
    bytes[..8].copy_from_slice(&99_000_000u64.to_le_bytes());
    refused(&bytes, "beyond its end");
    let name = b"{\"\xff\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}";
    refused(&[&(name.len() as u64).to_le_bytes()[..], name].concat(), "no safetensors header");
}

#[test]
fn a_folder_or_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = WeightsFile::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("it is a folder") && error.contains("hint: "), "{error}");
    let error = WeightsFile::open(&folder.path().join("none.pth")).unwrap_err().to_string();
    assert!(error.contains("none.pth") && error.contains("hint: "), "{error}");
}

#[test]
fn a_file_that_shrinks_while_open_gives_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let mut bytes = Vec::new();
    let tensors = [("x".into(), Tensor::f32(&[4], &[1.0; 4]))];
    write_safetensors(&mut bytes, &tensors, &BTreeMap::new()).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let file = WeightsFile::open(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 8]).unwrap();
    let error = file.read_f32(&file.tensors()[0]).unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
}

/// The archive with `edit` bytes in the place of those at `at`.
fn edited(whole: &[u8], at: usize, edit: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    bytes[at..at + edit.len()].copy_from_slice(edit);
    bytes
}

#[test]
fn comments_of_archives_are_passed_over() {
    // Behind the whole archive, up to the longest that the format has.
    for length in [1, 22, 65535u16] {
        let whole = zip_of(b"I7\n.");
        let end = whole.len();
        let bytes = edited(&whole, end - 2, &length.to_le_bytes());
        let commented = [&bytes[..], &vec![b'c'; length.into()]].concat();
        assert_eq!(read(&commented).unwrap().metadata(), &Value::Int(7));
        refused(&commented[..commented.len() - 1], "directory");
    }
    // Behind an entry of the list.
    let whole = zip_of(b"I7\n.");
    let list = whole.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let name = list + 46 + "a/data.pkl".len();
    let bytes = edited(&whole, list + 32, &[5, 0]);
    let mut bytes = [&bytes[..name], b"notes", &bytes[name..]].concat();
    let end = bytes.len() - 22;
    let length = u32::from_le_bytes(bytes[end + 12..end + 16].try_into().unwrap()) + 5;
    bytes[end + 12..end + 16].copy_from_slice(&length.to_le_bytes());
    assert_eq!(read(&bytes).unwrap().metadata(), &Value::Int(7));
}

#[test]
fn entries_of_archives_that_contradict_themselves_are_refused() {
    let whole = zip_of(b"I7\n.");
    let list = whole.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    // Stored as three bytes, of which four are to be made.
    refused(&edited(&whole, list + 20, &[3]), "directory is incomplete");
    // The second entry begins inside the first.
    let second = list + 46 + "a/data.pkl".len();
    refused(&edited(&whole, second + 42, &[2]), "overlap");
    let deep = zip(&[("a/b/data.pkl", b"N.")]);
    refused(&deep, "without `data.pkl`");
}

/// An extra field of another kind is no number of 64 bits.
#[test]
fn extra_fields_are_told_apart() {
    let whole = fixture("state_dict.pth");
    let mut bytes = whole.clone();
    let list = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    // The length is said to stand in a field that is not there.
    bytes[list + 20..list + 28].fill(0xff);
    refused(&bytes, "directory is incomplete");

    let mut entries = zip_of(b"I7\n.");
    let list = entries.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let name = list + 46 + "a/data.pkl".len();
    entries[list + 20..list + 28].fill(0xff);
    entries[list + 30] = 4 + 4 + 20;
    let fields =
        [&[7, 0, 4, 0, 9, 9, 9, 9][..], &[1, 0, 16, 0], &[4, 0, 0, 0, 0, 0, 0, 0].repeat(2)];
    let mut entries = [&entries[..name], &fields.concat(), &entries[name..]].concat();
    let end = entries.len() - 22;
    let length = u32::from_le_bytes(entries[end + 12..end + 16].try_into().unwrap()) + 28;
    entries[end + 12..end + 16].copy_from_slice(&length.to_le_bytes());
    assert_eq!(read(&entries).unwrap().metadata(), &Value::Int(7));
}

/// The list of 64 bits must lie before the record that tells of it.
#[test]
fn a_directory_behind_its_own_record_is_refused() {
    let whole = fixture("state_dict.pth");
    let end = whole.windows(4).position(|w| w == b"PK\x06\x06").unwrap();
    let length = u64::from_le_bytes(whole[end + 40..end + 48].try_into().unwrap());
    refused(&edited(&whole, end + 40, &(length + 1).to_le_bytes()), "directory at the end");
}

#[test]
fn what_only_a_huge_file_could_hold_is_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse.pth");
    let open = |whole: &[u8], from: usize, gap: u64| {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(&whole[..from]).unwrap();
        file.seek(SeekFrom::Current(gap as i64)).unwrap();
        file.write_all(&whole[from..]).unwrap();
        WeightsFile::open(&path).map(|_| ()).unwrap_err().to_string()
    };
    let gap = 256u64 << 20;
    let wide = |number: u32| ((gap as u32) + number).to_le_bytes();
    // The pickle has all of the gap.
    let mut whole = zip(&[("a/data.pkl", b"N.")]);
    let list = whole.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    whole[list + 20..list + 24].copy_from_slice(&wide(2));
    whole[list + 24..list + 28].copy_from_slice(&wide(2));
    let end = whole.len() - 22;
    whole[end + 16..end + 20].copy_from_slice(&wide(list as u32));
    let error = open(&whole, list, gap);
    assert!(error.contains("bytes of pickle"), "{error}");
    // The list of entries has it.
    let mut whole = zip(&[("a/data.pkl", b"N.")]);
    let length = whole.len() - 22 - list;
    let end = whole.len() - 22;
    whole[end + 12..end + 16].copy_from_slice(&wide(length as u32));
    let error = open(&whole, end, gap);
    assert!(error.contains("bytes of archive directory"), "{error}");
}

#[test]
fn storages_that_stand_twice_in_a_legacy_file_are_refused() {
    let pickle = format!("{}.", tensor("0", "6", "0", "I1\n", "I1\n"));
    let whole = legacy_of(pickle.as_bytes());
    read(&whole).unwrap();
    let keys = b"\x80\x02]X\x01\0\0\x000a.";
    let at = whole.windows(keys.len()).position(|part| part == keys).unwrap();
    let twice = b"\x80\x02](X\x01\0\0\x000X\x01\0\0\x000e.";
    let bytes =
        [&whole[..at], twice, &whole[at + keys.len()..], &whole[at + keys.len()..]].concat();
    refused(&bytes, "storage `0` is in it twice");
}

#[test]
fn tensors_of_safetensors_may_be_named_in_any_order() {
    let header = r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},
        "a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    let mut bytes = safetensors(header, 6);
    let start = bytes.len() - 6;
    bytes[start..].copy_from_slice(&[1, 2, 3, 4, 5, 6]);
    let file = read(&bytes).unwrap();
    assert_eq!(file.read_u8(file.find("", "b").unwrap()).unwrap(), [5, 6]);
    let name = "n".repeat(4097);
    let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}}}"#);
    refused(&safetensors(&header, 0), "bytes of a tensor's name");
}

#[test]
fn only_types_without_sign_are_read_as_bytes() {
    for (dtype, fits) in [("U8", true), ("BOOL", true), ("I8", false), ("I64", false)] {
        let size = if dtype == "I64" { 8 } else { 1 };
        let header =
            format!(r#"{{"x":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,{size}]}}}}"#);
        let file = read(&safetensors(&header, size)).unwrap();
        assert_eq!(file.read_u8(&file.tensors()[0]).is_ok(), fits, "{dtype}");
    }
}
