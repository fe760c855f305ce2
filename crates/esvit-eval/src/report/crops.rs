//! Training crops of some images.

use esvit_data::{Image, PngError, encode_png};

use super::figures::{Figure, left_out};
use super::run::Run;
use crate::preview;
use esvit_draw::Drawing;

/// Number of images.
const IMAGES: usize = 8;
/// Maximum width of the drawing.
const WIDTH: f64 = 960.0;
/// Maximum size of a crop in the drawing.
const LARGEST: f64 = 144.0;
const GAP: f64 = 4.0;
/// Gap between the crops of two images.
const SPACE: f64 = 28.0;

/// Draws the crops of some images.
pub(super) fn figure(run: &Run) -> Figure {
    let source = run.source.as_ref().map_err(String::clone)?;
    let config = run.config.as_ref().ok_or("the settings of the run cannot be read")?;
    let crops = preview::crops(config, source.as_ref(), IMAGES, 0)?;
    let text = caption(run) + &left_out(&crops.left_out);
    let drawing = drawing(&crops.rows)?;
    Ok((text, drawing))
}

/// Which crops there are and what they are for, as far as the objective says.
fn caption(run: &Run) -> String {
    let views = run.config.as_ref().map(|config| &config.views);
    let count = views.map_or(2, |views| views.global_count as usize);
    let local = views.is_none_or(|views| views.sizes().len() > count);
    let [global, go, them] = match count {
        1 => ["the global crop".to_owned(), "goes".into(), "it".into()],
        2 => ["the two global crops".into(), "go".into(), "them".into()],
        _ => [format!("the {count} global crops"), "go".into(), "them".into()],
    };
    let has_teacher = run.has_teacher() || run.distills();
    let teacher =
        if has_teacher { format!(", which {go} to student and teacher") } else { String::new() };
    let beside = if local { format!(", and beside {them} the local ones") } else { String::new() };
    format!("Training crops of some images in the first epoch: {global}{teacher}{beside}.")
}

/// The crops of one image: total size, and their top-left corners.
struct Group<'a> {
    size: [f64; 2],
    crops: Vec<(&'a Image, [f64; 2])>,
}

impl<'a> Group<'a> {
    /// Stacks crops in columns about as high as the largest crop.
    fn new(crops: &'a [Image], scale: f64) -> Self {
        let side = |crop: &Image| scale * f64::from(crop.width().max(crop.height()));
        let largest = crops.iter().map(side).fold(0.0, f64::max);
        let [mut left, mut top, mut right, mut bottom] = [0.0; 4];
        let mut placed = Vec::new();
        for crop in crops {
            if top > 0.0 && top + side(crop) > largest + 2.0 * GAP {
                (left, top) = (right + GAP, 0.0);
            }
            placed.push((crop, [left, top]));
            bottom = f64::max(bottom, top + side(crop));
            top += side(crop) + GAP;
            right = f64::max(right, left + side(crop));
        }
        Self { size: [right, bottom], crops: placed }
    }
}

fn drawing(rows: &[Vec<Image>]) -> Result<Drawing, PngError> {
    let largest = rows.iter().flatten().map(|crop| crop.width().max(crop.height()));
    let mut scale = LARGEST / f64::from(largest.max().unwrap_or(1));
    let groups = |scale: f64| rows.iter().map(move |row| Group::new(row, scale));
    let widest = |scale: f64| groups(scale).map(|group| group.size[0]).fold(1.0, f64::max);
    let gaps = GAP * rows.iter().map(Vec::len).max().unwrap_or(0) as f64;
    if widest(scale) > WIDTH {
        // Gaps do not shrink.
        scale *= (WIDTH - gaps.min(WIDTH / 2.0)) / widest(scale);
    }
    let (column, groups) = (widest(scale) + SPACE, groups(scale).collect::<Vec<_>>());
    let columns = (((WIDTH + SPACE) / column).floor() as usize).clamp(1, groups.len().max(1));
    let height = groups.iter().map(|group| group.size[1]).fold(1.0, f64::max) + SPACE / 2.0;
    let lines = groups.len().div_ceil(columns) as f64;
    let mut drawing = Drawing::new(
        (columns as f64 * column - SPACE).ceil(),
        (lines * height - SPACE / 2.0).ceil(),
    );
    for (number, group) in groups.iter().enumerate() {
        let (x, y) = ((number % columns) as f64 * column, (number / columns) as f64 * height);
        for (crop, [left, top]) in &group.crops {
            let [width, height] = [crop.width(), crop.height()].map(|side| scale * f64::from(side));
            drawing.image(&encode_png(crop)?, [x + left, y + top, width, height], scale > 1.5);
        }
    }
    Ok(drawing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squares(sides: &[u32]) -> Vec<Image> {
        let square = |&side: &u32| Image::new(side, side, vec![0; (3 * side * side) as usize]);
        sides.iter().map(|side| square(side).unwrap()).collect()
    }

    #[test]
    fn the_caption_knows_of_a_teacher_where_there_is_one() {
        let mut run = crate::report::run::example();
        assert!(
            caption(&run)
                .ends_with("which go to student and teacher, and beside them the local ones.")
        );
        let config = run.config.as_mut().unwrap();
        config.objective = esvit_train::objective::ObjectiveConfig::named("supervised").unwrap();
        config.views.local_counts = vec![0; config.views.local_counts.len()];
        assert!(caption(&run).ends_with(": the two global crops."), "{}", caption(&run));
        run.config.as_mut().unwrap().views.global_count = 1;
        assert!(caption(&run).ends_with(": the global crop."), "{}", caption(&run));
        let config = run.config.as_mut().unwrap();
        config.objective = esvit_train::objective::ObjectiveConfig::named("distill").unwrap();
        let expected = ": the global crop, which goes to student and teacher.";
        assert!(caption(&run).ends_with(expected), "{}", caption(&run));
        run.config.as_mut().unwrap().views.global_count = 3;
        let expected = ": the 3 global crops, which go to student and teacher.";
        assert!(caption(&run).ends_with(expected), "{}", caption(&run));
    }

    #[test]
    fn local_crops_are_stacked_beside_the_global_ones() {
        let crops = squares(&[32, 32, 14, 14, 14]);
        let group = Group::new(&crops, 2.0);
        let places: Vec<[f64; 2]> = group.crops.iter().map(|(_, place)| *place).collect();
        assert_eq!(places, [[0.0, 0.0], [68.0, 0.0], [136.0, 0.0], [136.0, 32.0], [168.0, 0.0]]);
        assert_eq!(group.size, [196.0, 64.0]);
    }

    #[test]
    fn any_number_of_crops_fits_the_page() {
        for sides in [
            &[32, 32, 16, 16, 16, 16][..],
            &[224, 224, 96, 96, 96, 96, 96, 96, 96, 96],
            &[224; 30],
            &[8, 8, 64],
        ] {
            let drawing = drawing(&vec![squares(sides); 3]).unwrap();
            let [width, height] = drawing.size();
            assert!(
                width > 60.0 && width <= WIDTH && height > 20.0,
                "{sides:?} {width} x {height}"
            );
            assert_eq!(drawing.svg().matches("<image").count(), 3 * sides.len());
        }
    }
}
