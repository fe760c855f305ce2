//! Images for tests.

use esvit_kernels::rng::Rng;

use crate::Image;

/// Side of the image of the pixel fixtures.
pub(crate) const F7_SIDE: u32 = 16;

/// The 16 x 16 image of the pixel fixtures.
pub(crate) fn f7() -> Image {
    hashed(F7_SIDE, F7_SIDE)
}

/// Bytes from a 32-bit integer hash of their index.
pub(crate) fn hashed(width: u32, height: u32) -> Image {
    let hash = |stream: u64, i: u64| {
        let mut x = (i * 2_654_435_761 + stream * 40_503 + 12_345) & 0xFFFF_FFFF;
        for _ in 0..2 {
            x ^= x >> 16;
            x = (x * 0x45D_9F3B) & 0xFFFF_FFFF;
        }
        x ^= x >> 16;
        x as f64 / 4_294_967_296.0 * 2.0 - 1.0
    };
    let count = u64::from(width * height) * 3;
    let pixels = (0..count).map(|i| ((hash(60, i) + 1.0) / 2.0 * 255.0) as u8).collect();
    Image::new(width, height, pixels).unwrap()
}

/// The column of every pixel in red, its row in green.
pub(crate) fn places(width: u32, height: u32) -> Image {
    let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 0]));
    Image::new(width, height, pixels.collect()).unwrap()
}

/// An image of random bytes.
pub(crate) fn noise(width: u32, height: u32, seed: u64) -> Image {
    let mut rng = Rng::new(seed, [0; 3]);
    let pixels = (0..width * height * 3).map(|_| rng.below(256) as u8).collect();
    Image::new(width, height, pixels).unwrap()
}

/// What `op` makes of the fixture at (5, 7).
pub(crate) fn f7_after(op: impl FnOnce(&mut Image)) -> [u8; 3] {
    let mut image = f7();
    op(&mut image);
    image.pixel(5, 7).unwrap()
}

#[test]
fn the_fixture_image() {
    assert_eq!(f7().pixel(0, 0), Some([89, 233, 131]));
    assert_eq!(f7().pixel(5, 7), Some([51, 230, 180]));
}
