//! Contact sheets: the views of several images.

use crate::{Image, Interpolation, PngError, encode_png, resize};

/// White space around every view, in pixels.
const GAP: u32 = 4;
/// The widest sheet, in pixels.
const MAX_WIDTH: u32 = 2048;
/// Views are enlarged until the largest has about this side, in pixels.
const TARGET_SIDE: u32 = 128;
/// Most rows of a sheet.
const MAX_ROWS: usize = 64;

/// A PNG file with one row per sample, its views from left to right, all at one scale on white. At
/// most 64 rows.
pub fn contact_sheet(samples: &[Vec<Image>]) -> Result<Vec<u8>, PngError> {
    let samples = &samples[..samples.len().min(MAX_ROWS)];
    let scale = scale(samples);
    let scaled = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
    let row_height =
        |row: &Vec<Image>| row.iter().map(|view| scaled(view.height()) + GAP).max().unwrap_or(0);
    let row_width =
        |row: &Vec<Image>| row.iter().map(|view| scaled(view.width()) + GAP).sum::<u32>();

    let width = GAP + samples.iter().map(row_width).max().unwrap_or(0);
    let height = GAP + samples.iter().map(row_height).sum::<u32>();
    let mut sheet = Image::filled(width, height, [255; 3]);
    let mut top = GAP;
    for row in samples {
        let mut left = GAP;
        for view in row {
            let (width, height) = (scaled(view.width()), scaled(view.height()));
            if let Ok(view) = resize(view, width, height, Interpolation::Bicubic) {
                paste(&mut sheet, &view, left, top);
            }
            left += width + GAP;
        }
        top += row_height(row);
    }
    encode_png(&sheet)
}

/// Scale of the views: at least 1, unless the widest row does not fit.
fn scale(samples: &[Vec<Image>]) -> f64 {
    let sides = samples.iter().flatten().map(|view| view.width().max(view.height()));
    let largest = sides.max().unwrap_or(1);
    let enlarged = f64::from((TARGET_SIDE / largest).max(1));
    let widest = samples.iter().map(|row| row.iter().map(|view| u64::from(view.width())).sum());
    let gaps = samples.iter().map(Vec::len).max().unwrap_or(0) as f64 * f64::from(GAP);
    let room = (f64::from(MAX_WIDTH) - gaps).max(f64::from(MAX_WIDTH) / 2.0);
    enlarged.min(room / widest.max().unwrap_or(1u64) as f64)
}

/// Copies `view` onto `sheet`; rows that do not fit are skipped.
fn paste(sheet: &mut Image, view: &Image, left: u32, top: u32) {
    let first = left as usize * 3;
    for (to, from) in sheet.rows_mut().skip(top as usize).zip(view.rows()) {
        if let Some(to) = to.get_mut(first..first + from.len()) {
            to.copy_from_slice(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeLimits, decode};

    fn sheet(samples: &[Vec<Image>]) -> Image {
        decode(&contact_sheet(samples).unwrap(), &DecodeLimits::default()).unwrap()
    }

    #[test]
    fn one_row_a_sample_on_white() {
        let red = Image::filled(128, 128, [255, 0, 0]);
        let blue = Image::filled(48, 48, [0, 0, 255]);
        let sheet = sheet(&[vec![red.clone(), blue.clone()], vec![red, blue]]);
        assert_eq!((sheet.width(), sheet.height()), (4 + 132 + 52, 4 + 2 * 132));
        assert_eq!(sheet.pixel(3, 3), Some([255; 3]));
        assert_eq!(sheet.pixel(4, 4), Some([255, 0, 0]));
        assert_eq!(sheet.pixel(135, 136), Some([255; 3]));
        assert_eq!(sheet.pixel(136, 136), Some([0, 0, 255]));
        assert_eq!(sheet.pixel(136, 200), Some([255; 3]));
    }

    #[test]
    fn small_views_are_enlarged_and_wide_rows_shrunk() {
        let green = Image::filled(32, 32, [0, 255, 0]);
        assert_eq!(sheet(&[vec![green]]).width(), 4 + 128 + 4);
        let wide = sheet(&[vec![Image::filled(224, 224, [0; 3]); 30]]);
        assert!((1900..=2048).contains(&wide.width()), "{}", wide.width());
        // By whole numbers, and by the longer side of the largest view.
        let [low, tall] = [(40, 30), (30, 60)].map(|(w, h)| Image::filled(w, h, [0; 3]));
        let sheet = sheet(&[vec![low], vec![tall]]);
        assert_eq!((sheet.width(), sheet.height()), (4 + 80 + 4, 4 + 60 + 4 + 120 + 4));
        assert_eq!(sheet.pixel(83, 63), Some([0; 3]));
        assert_eq!(sheet.pixel(84, 63), Some([255; 3]));
        assert_eq!(sheet.pixel(63, 187), Some([0; 3]));
        assert_eq!(sheet.pixel(64, 187), Some([255; 3]));
    }

    #[test]
    fn at_most_64_rows_are_shown() {
        let row = vec![Image::filled(128, 128, [0; 3])];
        assert_eq!(sheet(&vec![row.clone(); 64]).height(), 4 + 64 * 132);
        assert_eq!(sheet(&vec![row; 65]).height(), 4 + 64 * 132);
    }

    #[test]
    fn nothing_to_show_is_still_an_image() {
        assert_eq!(sheet(&[]).pixel(0, 0), Some([255; 3]));
        assert_eq!(sheet(&[vec![]]).width(), GAP);
    }
}
