//! Image GPTs in files: our own names, and what no tensor says.

use esvit_nn::backbone::igpt::{IgptConfig, Variant};
use esvit_nn::weights::Known;
use esvit_nn::zoo;
use esvit_testing::tiny_igpt;

use super::*;

/// What is assumed of a file that does not say otherwise.
fn config(variant: Variant) -> IgptConfig {
    IgptConfig { variant, img_size: 4, patch_size: 1, feature_block: 1, ..tiny_igpt() }
}

fn network(config: IgptConfig) -> Params {
    let config = BackboneConfig::Igpt(config);
    config.validate().unwrap();
    params(&config.build(0.0).1)
}

fn entries(params: &Params) -> Vec<Entry> {
    exported(params, Family::Igpt, Naming::Esvit, Float::F32)
}

#[test]
fn files_are_recognized_and_read_back_to_the_bit() {
    let known = Known { stated_heads: Some(2), ..Known::default() };
    for variant in [Variant::Autoregressive, Variant::Bert] {
        let params = network(config(variant));
        for prefix in ["", "student."] {
            let mut entries = entries(&params);
            // The layer that predicts colors.
            entries.push(floats("lm_head.weight", &[7, 8], vec![0.5; 56]));
            let file = opened(&prefixed(prefix, entries));
            let stored = StoredNetwork::find(&file, None).unwrap();
            assert_eq!(stored.location().family, Family::Igpt);
            let (shape, assumed) = stored.shape_given(&known).unwrap();
            assert_eq!(shape, BackboneConfig::Igpt(config(variant)));
            assert_eq!(
                assumed,
                [
                    "tokens are the mean colors of 1 x 1 pixels",
                    "features are those of block 1, in the middle"
                ]
            );
            let (found, report) = stored.load(params.specs(), &Device::Cpu, |_| None).unwrap();
            assert!(same_bits(&found, &params), "{prefix}");
            assert_eq!(report.left_out[reason::PROJECTION].len(), 1);
        }
    }
}

/// Sizes of images that are known make patches; heads are those of a published network, or else unknown.
#[test]
fn what_no_tensor_says() {
    let file = opened(&entries(&network(config(Variant::Bert))));
    let stored = StoredNetwork::find(&file, None).unwrap();
    let error = stored.shape_given(&Known::default()).unwrap_err().to_string();
    assert!(error.contains("how many attention heads the 8 channels are"), "{error}");
    let known = Known { asked_size: Some(12), stated_heads: Some(4), ..Known::default() };
    let (shape, _) = stored.shape_given(&known).unwrap();
    let expected =
        IgptConfig { patch_size: 3, img_size: 12, num_heads: 4, ..config(Variant::Bert) };
    assert_eq!(shape, BackboneConfig::Igpt(expected));

    let micro = zoo::find("igpt_micro").unwrap().config();
    let (_, list) = micro.build(0.0);
    let zeros = Params::from_fn(&list, &Device::Cpu, |spec| vec![0.0; spec.len()]);
    let file = opened(&entries(&zeros));
    let known = Known { stated_size: Some(32), ..Known::default() };
    let stored = StoredNetwork::find(&file, None).unwrap();
    let (shape, assumed) = stored.shape_given(&known).unwrap();
    assert_eq!(shape, micro);
    assert_eq!(assumed[0], "3 attention heads, as `igpt_micro` has");
}

/// A palette alone is no network, and positions that are no square are no image's.
#[test]
fn what_is_no_image_gpt() {
    let palette = || floats("palette", &[2, 3], vec![0.0; 6]);
    assert!(networks(&opened(&[palette()])).is_empty());
    let file = opened(&[
        palette(),
        floats("wte.weight", &[2, 4], vec![0.0; 8]),
        floats("wpe.weight", &[3, 4], vec![0.0; 12]),
    ]);
    let stored = StoredNetwork::find(&file, None).unwrap();
    let error = stored.shape_given(&Known::default()).unwrap_err().to_string();
    assert!(error.contains("`wpe.weight` has 3 rows, of no square map"), "{error}");
}
