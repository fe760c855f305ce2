//! Damaged files of weights, each a function of a seed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use esvit_weights::WeightsFile;

/// Elements of the largest tensor that is read.
const MAX_ELEMENTS: usize = 1 << 20;

/// The files that are damaged.
pub(crate) fn fixtures() -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the fixtures are in the repository")
        .map(|entry| entry.expect("a folder can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension != "json"))
        .collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a fixture can be read")).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Instructions and pieces of pickle that do something where they are put.
const PIECES: &[&[u8]] = &[
    b"(",
    b".",
    b"0",
    b"1",
    b"2",
    b"R",
    b"b",
    b"Q",
    b"a",
    b"e",
    b"s",
    b"u",
    b"t",
    b"d",
    b"l",
    b"o",
    b"}",
    b"]",
    b")",
    b"N",
    b"\x81",
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x88",
    b"\x8f",
    b"\x90",
    b"\x91",
    b"\x92",
    b"\x93",
    b"\x94",
    b"h\x00",
    b"h\x02",
    b"q\x00",
    b"K\xff",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"I9223372036854775807\n",
    b"](h\0h\0h\0h\0eq\0",
    b"ccollections\nOrderedDict\n",
    b"cos\nsystem\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"c_codecs\nencode\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
    b"X\0\0\0\0",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"[",
    b"{",
    b"\"",
    b",",
    b"-1",
    b"9e9",
];

/// The numbers at which lengths go wrong.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    7,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 60,
    i64::MAX as u64,
    u64::MAX - 7,
    u64::MAX,
];

/// The damaged file of a seed.
pub(crate) fn corrupt(fixtures: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = fixtures[random.below(fixtures.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(10) {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            1 => bytes.truncate(at),
            2 => {
                let other = &fixtures[random.below(fixtures.len())];
                let from = random.below(other.len());
                let length = random.below(other.len() - from).min(1 + random.below(300));
                let end = if random.below(2) == 0 { at } else { bytes.len().min(at + length) };
                bytes.splice(at..end, other[from..from + length].iter().copied());
            }
            3 | 4 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            5..=7 => {
                let piece = PIECES[random.below(PIECES.len())];
                let end = if random.below(2) == 0 { at } else { bytes.len().min(at + piece.len()) };
                let count = if random.below(8) == 0 { random.below(200) } else { 1 };
                bytes.splice(at..end, piece.repeat(count));
            }
            8 => {
                let end = bytes.len().min(at + 1 + random.below(40));
                bytes.drain(at..end);
            }
            _ => {
                let marks: Vec<usize> =
                    (0..bytes.len()).filter(|&i| bytes[i..].starts_with(b"PK")).collect();
                if !marks.is_empty() {
                    let record = marks[random.below(marks.len())];
                    let field = bytes.len().min(record + 4 + random.below(52));
                    let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                    let width = [2, 4, 8][random.below(3)].min(bytes.len() - field);
                    bytes[field..field + width].copy_from_slice(&number[..width]);
                }
            }
        }
    }
    bytes
}

/// What became of a damaged file.
pub(crate) struct Outcome {
    /// Whether it was opened all the same.
    pub(crate) opened: bool,
    /// Whether reading it failed in another way than with an error.
    pub(crate) panicked: bool,
    /// How long that took.
    pub(crate) time: Duration,
}

/// Opens a file and reads every tensor of it.
pub(crate) fn read(bytes: Vec<u8>) -> Outcome {
    let start = Instant::now();
    let read = || {
        let Ok(file) = WeightsFile::from_bytes(Path::new("damaged"), bytes) else { return false };
        for tensor in file.tensors() {
            let found = file.find(&tensor.group, &tensor.name);
            assert_eq!(found, Some(tensor));
            let count = tensor.shape.iter().product::<usize>();
            if count <= MAX_ELEMENTS {
                let lengths = [
                    file.read_f32(tensor).map(|values| values.len()),
                    file.read_i64(tensor).map(|values| values.len()),
                    file.read_u8(tensor).map(|values| values.len()),
                ];
                assert!(lengths.into_iter().flatten().all(|length| length == count));
            }
        }
        true
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    let opened = *result.as_ref().unwrap_or(&false);
    Outcome { opened, panicked: result.is_err(), time: start.elapsed() }
}
