//! The image size that a Swin transformer was made for, from its windows.

use std::collections::BTreeMap;

use crate::backbone::swin::SwinConfig;

/// Image sides of published weights, smallest first.
const USUAL: [usize; 13] = [32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512];
/// Largest side to try, as a multiple of the last stage's stride or of the patch.
const MAX_FACTOR: usize = 64;

/// For stages with a second block, whose windows are shifted if there are several: the number of
/// windows that its mask is made for, none if it has no mask. Empty where nothing is known.
pub(super) type Masks = BTreeMap<usize, Option<usize>>;

/// An image size, and how it was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) side: usize,
    reason: Reason,
    /// What a file beside the weights says, if that does not fit the windows.
    contradicted: Option<usize>,
}

#[derive(Debug, PartialEq, Eq)]
enum Reason {
    /// A file beside the weights says so.
    Stated,
    /// The masks of shifted windows are made for it.
    Masks,
    /// The smallest in which no window is cut.
    Whole,
    /// The first that leads to these windows.
    First,
}

impl Found {
    /// A line that says what was assumed, if anything was.
    pub(super) fn assumption(&self) -> Option<String> {
        let side = self.side;
        let why = match self.reason {
            Reason::Stated | Reason::Masks => return None,
            Reason::Whole => "the smallest usual one in which no window is cut",
            Reason::First => "the first usual one that leads to these windows",
        };
        let contradicted = self.contradicted.map(|side| {
            format!("; {side} pixels, as `config.json` says, do not lead to its windows")
        });
        let contradicted = contradicted.unwrap_or_default();
        Some(format!("the image size is {side} pixels, {why}{contradicted}"))
    }
}

/// The side of the images that lead to these windows, one per stage. Where several do, masks and
/// `stated` decide; else it is the smallest usual side, or else the smallest of all, in which no
/// window is cut. None if no side leads to them.
pub(super) fn of(
    config: &SwinConfig,
    windows: &[usize],
    masks: &Masks,
    stated: Option<usize>,
) -> Option<Found> {
    let sized = |img_size: usize| SwinConfig { img_size, ..config.clone() };
    let fits = |&side: &usize| sized(side).windows() == windows;
    let is_whole = |&side: &usize| {
        let step = config.patch_size << (windows.len() - 1);
        let side_of = |stage: usize| side / config.stride(stage);
        let mut stages = windows.iter().enumerate();
        side.is_multiple_of(step) && stages.all(|(stage, &w)| side_of(stage).is_multiple_of(w))
    };
    let has_masks = |&side: &usize| {
        let config = sized(side);
        masks.iter().all(|(&stage, &mask)| {
            let (window, shift) = config.window_and_shift(stage, 1);
            let windows = (side / config.stride(stage)).div_ceil(window.max(1)).pow(2);
            mask == (shift > 0).then_some(windows)
        })
    };
    let found = |side, reason| Some(Found { side, reason, contradicted: stated });
    if let Some(side) = stated.filter(|side| fits(side)) {
        return Some(Found { side, reason: Reason::Stated, contradicted: None });
    }
    let step = config.patch_size.checked_shl(windows.len() as u32 - 1).filter(|&step| step > 0)?;
    let multiples = |of: usize| (1..=MAX_FACTOR).filter_map(move |factor| of.checked_mul(factor));
    let all: Vec<usize> =
        USUAL.into_iter().chain(multiples(step)).chain(multiples(config.patch_size)).collect();
    let fitting: Vec<usize> = all.into_iter().filter(fits).collect();
    let masked = fitting.iter().copied().filter(|side| !masks.is_empty() && has_masks(side));
    // Whole windows first, since a mask tells only how many there are.
    let masked: Vec<usize> = masked.collect();
    if let Some(&side) = masked.iter().find(|side| is_whole(side)).or(masked.first()) {
        return found(side, Reason::Masks);
    }
    match fitting.iter().find(|side| is_whole(side)) {
        Some(&side) => found(side, Reason::Whole),
        None => found(*fitting.first()?, Reason::First),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network for images of `img_size` pixels, its windows, and the masks of its stages.
    fn made_for(
        img_size: usize,
        window_size: usize,
        stages: usize,
    ) -> (SwinConfig, Vec<usize>, Masks) {
        let config = SwinConfig {
            img_size,
            patch_size: 4,
            embed_dim: 8,
            depths: vec![2; stages],
            num_heads: vec![1; stages],
            window_size,
            mlp_ratio: 1.0,
            norm_eps: 1e-5,
        };
        let windows = config.windows();
        let mask = |stage| {
            let (window, shift) = config.window_and_shift(stage, 1);
            let map: usize = (img_size / 4) >> stage;
            (stage, (shift > 0).then(|| map.div_ceil(window) * map.div_ceil(window)))
        };
        let masks = (0..stages).map(mask).collect();
        (config, windows, masks)
    }

    /// Published shapes and those that people have trained.
    #[test]
    fn the_windows_of_a_size_lead_back_to_it() {
        for (side, window, stages) in [
            (224, 7, 4),
            (256, 8, 4),
            (384, 12, 4),
            (192, 6, 4),
            (64, 8, 2),
            (128, 4, 4),
            (32, 4, 2),
            (224, 14, 4),
            (352, 11, 4),
            (448, 14, 4),
        ] {
            let (config, windows, _) = made_for(side, window, stages);
            let found = of(&config, &windows, &Masks::new(), None).unwrap();
            assert_eq!((found.side, found.reason), (side, Reason::Whole), "{side} {window}");
        }
    }

    /// A map of 24 tokens does for windows of 8 what one of 16 does.
    #[test]
    fn masks_and_what_is_stated_decide() {
        for (side, window, stages) in [(384, 8, 4), (448, 7, 4), (128, 8, 2), (256, 8, 4)] {
            let (config, windows, masks) = made_for(side, window, stages);
            let found = of(&config, &windows, &masks, None).unwrap();
            assert_eq!((found.side, found.reason), (side, Reason::Masks), "{side} {window}");
            let found = of(&config, &windows, &Masks::new(), Some(side)).unwrap();
            assert_eq!((found.side, found.reason), (side, Reason::Stated), "{side} {window}");
        }
        let (config, windows, _) = made_for(256, 8, 4);
        let found = of(&config, &windows, &Masks::new(), Some(100)).unwrap();
        let line = found.assumption().unwrap();
        assert!(line.starts_with("the image size is 256 pixels, the smallest usual"), "{line}");
        assert!(line.ends_with("100 pixels, as `config.json` says, do not lead to its windows"));
        // Masks that fit no square image are passed over.
        let odd = Masks::from([(0, Some(48))]);
        assert_eq!(of(&config, &windows, &odd, None).unwrap().reason, Reason::Whole);
    }
}
