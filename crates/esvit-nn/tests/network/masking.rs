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

/// Masked regions hide all pixels of their patches from the other regions, whose own pixels are seen.
#[test]
fn masked_regions_are_not_seen() {
    let (swin, params) = swin();
    let masking = config().masking().unwrap();
    let sides = [[16, 16], [8, 12]];
    assert_eq!(sides.map(|sides| masking.regions(sides)), [[4, 4], [2, 3]]);
    // The region in row 1, column 2 of the second image: pixels from (4, 8) on.
    let regions = [vec![false; 16], (0..16).map(|region| region == 6).collect(), vec![false; 6]];
    let sides = [sides[0], sides[0], sides[1]];
    let rows =
        sides.iter().zip(&regions).flat_map(|(&sides, regions)| masking.rows(sides, regions));
    let rows: Vec<f32> = rows.collect();
    assert_eq!(rows.len(), TOKENS);
    let token = Tensor::from_vec(hashed(9, masking.width), &Device::Cpu);
    let mask = TokenMask { rows: Tensor::from_vec(rows, &Device::Cpu), token };
    let with_pixel = |y: usize, x: usize| {
        let mut images = inputs();
        let mut pixels = images[0].to_vec::<f32>();
        pixels[((3 + 2) * 16 + y) * 16 + x] += 1.0;
        images[0] = Tensor::new(pixels, [2, 3, 16, 16], &Device::Cpu);
        values(swin.features(&params, Input { images, mask: Some(&mask) }, &ForwardCtx::eval()))
    };
    let expected = with_pixel(4, 8);
    for (y, x) in [(7, 11), (4, 11), (7, 8)] {
        assert_eq!(with_pixel(y, x), expected, "{y} {x}");
    }
    for (y, x) in [(3, 8), (8, 8), (4, 7), (4, 12)] {
        assert_ne!(with_pixel(y, x), expected, "{y} {x}");
    }
}

/// Families in which a region has no patches of its own have none to mask.
#[test]
fn who_has_regions_of_patches() {
    let vit = BackboneConfig::Vit(esvit_testing::tiny_vit());
    let found = vit.masking().map(|masking| (masking.width, masking.patch, masking.cell));
    assert_eq!(found, Some((16, 8, 1)));
    let found = config().masking().map(|masking| (masking.width, masking.patch, masking.cell));
    assert_eq!(found, Some((8, 2, 2)));
    for other in [BackboneConfig::Pvt(tiny_pvt()), BackboneConfig::ResNet(tiny_resnet())] {
        assert_eq!(other.masking(), None);
    }
}

/// Masked and by crops of several sizes, as the network gathers them.
#[test]
fn crops_with_masked_tokens() {
    let (network, ()) = Network::new(&config(), 0.0, |_, _| ());
    let params = fill(network.specs(), 0);
    let crops = [1000, 1001].map(|stream| images(stream, [1, 3, 16, 16]));
    let crops = [crops.to_vec(), vec![images(1002, [1, 3, 8, 12])]].concat();
    let mask = mask(|token| token == 64 + 9);
    let ctx = ForwardCtx::eval();
    let found = values(network.masked_features(&params, &crops, Some(&mask), &ctx));
    let both = Tensor::cat(crops[..2].to_vec(), 0);
    let input = Input { images: vec![both, crops[2].clone()], mask: Some(&mask) };
    assert_eq!(found, values(network.backbone().features(&params, input, &ctx)));
    let unmasked = values(network.masked_features(&params, &crops, None, &ctx));
    assert_eq!(unmasked, values(network.features(&params, &crops, &ctx)));
    let width = config().output_width();
    assert_eq!(found[0][..width], unmasked[0][..width], "the first crop has no masked token");
    assert_ne!(found[0][width..2 * width], unmasked[0][width..2 * width]);
}
