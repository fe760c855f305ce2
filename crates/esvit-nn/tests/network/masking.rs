//! Masked tokens: what stands in their place, and what is hidden.

use esvit_nn::backbone::{Input, RowFeatures, TokenMask};

use super::*;

/// Two images of 8 x 8 tokens and one of 4 x 6.
fn inputs() -> Vec<Tensor> {
    vec![images(1000, [2, 3, 16, 16]), images(1001, [1, 3, 8, 12])]
}

const TOKENS: usize = 2 * 64 + 24;

fn mask(is_masked: impl Fn(usize) -> bool) -> TokenMask {
    let rows = (0..TOKENS).map(|token| f32::from(u8::from(is_masked(token)))).collect();
    let BackboneConfig::Swin(config) = config() else { panic!("a Swin") };
    let token = Tensor::from_vec(hashed(9, config.embed_dim), &Device::Cpu);
    TokenMask { rows: Tensor::from_vec(rows, &Device::Cpu), token }
}

fn values(features: RowFeatures) -> [Vec<f32>; 2] {
    [features.view, features.region].map(|tensor| tensor.to_vec())
}

#[test]
fn a_mask_of_nothing_changes_nothing() {
    let (swin, params) = swin();
    let expected = values(swin.features(&params, inputs(), &ForwardCtx::eval()));
    let features = |mask: &TokenMask| {
        let input = Input { images: inputs(), mask: Some(mask) };
        values(swin.features(&params, input, &ForwardCtx::eval()))
    };
    assert_eq!(features(&mask(|_| false)), expected);
    // A token of the last image changes that image alone.
    let one = features(&mask(|token| token == TOKENS - 1));
    let width = config().output_width();
    assert_eq!(one[0][..2 * width], expected[0][..2 * width]);
    assert_ne!(one[0][2 * width..], expected[0][2 * width..]);
}

/// Pixels of masked patches are hidden; those of a neighbor are not.
#[test]
fn masked_patches_are_not_seen() {
    let (swin, params) = swin();
    // The token in row 3, column 5 of the second image, from patches of 2 pixels.
    let mask = mask(|token| token == 64 + 3 * 8 + 5);
    let with_pixel = |y: usize, x: usize| {
        let mut images = inputs();
        let mut pixels = images[0].to_vec::<f32>();
        pixels[((3 + 1) * 16 + y) * 16 + x] += 1.0;
        images[0] = Tensor::new(pixels, [2, 3, 16, 16], &Device::Cpu);
        values(swin.features(&params, Input { images, mask: Some(&mask) }, &ForwardCtx::eval()))
    };
    let expected = with_pixel(6, 10);
    assert_eq!(with_pixel(7, 11), expected);
    for (y, x) in [(5, 10), (8, 10), (6, 9), (6, 12)] {
        assert_ne!(with_pixel(y, x), expected, "{y} {x}");
    }
}
