//! The built-in images: 101 photographed and painted material textures of 256 x 256 pixels,
//! and the k-NN task that is made of them.
//!
//! They allow a run without any data. A network is trained on the left two thirds of every image;
//! the task is to recognize the image from a small crop of its unseen right third.

mod list;

use esvit_kernels::rng::Rng;

use crate::augment::{ColorJitter, jitter};
use crate::{DecodeLimits, Image, InMemory, SourceError, decode};

/// Licenses of the built-in images, to be shown with them.
pub const MATERIALS_LICENSE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/materials/LICENSE.md"));

/// Side of the crops of the task, in pixels.
const CROP: u32 = 64;
const GALLERY_CROPS: u64 = 8;
const QUERY_CROPS: u64 = 4;
const SEED: u64 = 0;
/// RNG purpose of the task.
const PURPOSE: u64 = u64::from_be_bytes(*b"material");

/// Stronger in saturation than in training and always applied: color alone must not suffice.
const QUERY_JITTER: ColorJitter = ColorJitter {
    p: 1.0,
    brightness: 0.4,
    additive_brightness: false,
    contrast: 0.4,
    saturation: 0.4,
    hue: 0.1,
};

/// The JPEG file of one of the built-in images, for benchmarks.
pub fn sample_jpeg() -> &'static [u8] {
    list::FILES[0].1
}

/// The images to train on: the left two thirds (171 x 256 pixels) of every texture, decoded
/// and labeled with the texture's name.
pub fn training_materials() -> Result<InMemory, SourceError> {
    let mut source = InMemory::new(classes());
    for_each_material(|label, name, image| {
        let split = split(&image);
        if let Ok(left) = image.crop(0, 0, split, image.height()) {
            source.push(name, Some(label), left);
        }
    })?;
    Ok(source)
}

/// The built-in k-NN task, the same in every run.
#[derive(Debug)]
pub struct MaterialsTask {
    /// 8 crops of 64 x 64 pixels from the left two thirds of every texture, 808 in all.
    pub gallery: InMemory,
    /// 4 crops of 64 x 64 pixels from the right third of every texture, with color jitter, 404 in
    /// all.
    pub queries: InMemory,
}

impl MaterialsTask {
    /// Decodes the textures and crops them.
    pub fn new() -> Result<Self, SourceError> {
        let mut task =
            Self { gallery: InMemory::new(classes()), queries: InMemory::new(classes()) };
        for_each_material(|label, name, image| {
            let split = split(&image);
            for i in 0..GALLERY_CROPS {
                let mut rng = Rng::for_purpose(SEED, PURPOSE, [0, u64::from(label), i]);
                if let Some(crop) = random_crop(&image, 0, split, &mut rng) {
                    task.gallery.push(format!("{name}/gallery-{i}"), Some(label), crop);
                }
            }
            for i in 0..QUERY_CROPS {
                let mut rng = Rng::for_purpose(SEED, PURPOSE, [1, u64::from(label), i]);
                if let Some(mut crop) = random_crop(&image, split, image.width(), &mut rng) {
                    jitter(&mut crop, &QUERY_JITTER, &mut rng);
                    task.queries.push(format!("{name}/query-{i}"), Some(label), crop);
                }
            }
        })?;
        Ok(task)
    }
}

fn classes() -> Vec<String> {
    list::FILES.iter().map(|(name, _)| name.to_string()).collect()
}

fn for_each_material(mut visit: impl FnMut(u32, &str, Image)) -> Result<(), SourceError> {
    for (label, (name, bytes)) in (0..).zip(list::FILES) {
        let image = decode(bytes, &DecodeLimits::default())
            .map_err(|source| SourceError::Decode { name: name.to_string(), source })?;
        visit(label, name, image);
    }
    Ok(())
}

/// First column of the right third.
fn split(image: &Image) -> u32 {
    (image.width() * 2 + 1) / 3
}

/// A random crop between the columns `from` and `to`.
fn random_crop(image: &Image, from: u32, to: u32, rng: &mut Rng) -> Option<Image> {
    let left = from + rng.below(u64::from(to.checked_sub(from + CROP)?) + 1) as u32;
    let top = rng.below(u64::from(image.height().checked_sub(CROP)?) + 1) as u32;
    image.crop(left, top, CROP, CROP).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Source;

    #[test]
    fn training_sees_the_left_two_thirds_of_every_texture() {
        let source = training_materials().unwrap();
        assert_eq!(source.len(), 101);
        assert_eq!(source.classes().len(), 101);
        for i in 0..source.len() {
            assert_eq!(source.label(i), Some(i as u32));
            assert_eq!(source.name(i), source.classes()[i]);
            let image = source.load(i).unwrap();
            assert_eq!((image.width(), image.height()), (171, 256));
        }
    }

    #[test]
    fn the_task_is_complete_labeled_and_always_the_same() {
        let task = MaterialsTask::new().unwrap();
        assert_eq!((task.gallery.len(), task.queries.len()), (808, 404));
        for (source, per_class) in [(&task.gallery, 8), (&task.queries, 4)] {
            assert_eq!(source.classes().len(), 101);
            for i in 0..source.len() {
                assert_eq!(source.label(i), Some(i as u32 / per_class));
                let image = source.image(i).unwrap();
                assert_eq!((image.width(), image.height()), (64, 64));
            }
        }
        let again = MaterialsTask::new().unwrap();
        assert!((0..404).all(|i| task.queries.image(i) == again.queries.image(i)));
        assert_ne!(task.gallery.image(0), task.gallery.image(1));
    }

    /// Where `crop` lies in `image`, if it is a part of it.
    fn find(crop: &Image, image: &Image) -> Option<u32> {
        let lefts = 0..=image.width() - CROP;
        let mut places = lefts.flat_map(|x| (0..=image.height() - CROP).map(move |y| (x, y)));
        let same =
            |&(x, y): &(u32, u32)| (0..CROP).all(|i| crop.pixel(i, i) == image.pixel(x + i, y + i));
        places.find(same).map(|(left, _)| left)
    }

    #[test]
    fn the_gallery_is_cut_from_what_training_sees_and_reaches_its_ends() {
        let (task, training) = (MaterialsTask::new().unwrap(), training_materials().unwrap());
        let lefts: Vec<u32> = (0..808)
            .map(|i| find(task.gallery.image(i).unwrap(), training.image(i / 8).unwrap()))
            .collect::<Option<_>>()
            .expect("every crop is a part of the training image");
        assert!([0, 171 - 64].iter().all(|end| lefts.contains(end)));
    }

    /// Colors are changed, but what is lighter mostly stays lighter: of all places of the texture,
    /// that of the query is the one whose pixels are ordered most alike.
    #[test]
    fn queries_are_jittered_and_cut_from_the_right_third() {
        let task = MaterialsTask::new().unwrap();
        let light = |image: &Image| -> Vec<i32> {
            let pixels = image.pixels().as_chunks::<3>().0.iter();
            pixels.map(|&[r, g, b]| 2 * i32::from(r) + 5 * i32::from(g) + i32::from(b)).collect()
        };
        let mut rng = Rng::new(1, [0; 3]);
        let mut place = || (rng.below(64) as usize, rng.below(64) as usize);
        let pairs: Vec<_> = (0..100).map(|_| (place(), place())).collect();
        let (mut right, mut all) = (0, 0);
        for_each_material(|label, name, image| {
            for i in 4 * label as usize..4 * label as usize + 4 {
                let query = task.queries.image(i).unwrap();
                assert_eq!(find(query, &image), None, "query {i} of {name} is jittered");
            }
            if label % 3 > 0 {
                return;
            }
            let (crop, whole) =
                (light(task.queries.image(4 * label as usize).unwrap()), light(&image));
            let lighter = |of: &[i32], width: usize, (a, b): &((usize, usize), (usize, usize))| {
                of[a.1 * width + a.0] > of[b.1 * width + b.0]
            };
            let expected: Vec<bool> = pairs.iter().map(|pair| lighter(&crop, 64, pair)).collect();
            let alike = |at: usize| {
                let found = pairs.iter().map(|pair| lighter(&whole[at..], 256, pair));
                found.zip(&expected).filter(|(found, expected)| found == *expected).count()
            };
            let places = (0..=192).flat_map(|left| (0..=192).map(move |top| (left, top)));
            let (left, _) = places.max_by_key(|(left, top)| alike(top * 256 + left)).unwrap();
            all += 1;
            right += usize::from(left >= 171);
        })
        .unwrap();
        assert!(all == 34 && right >= 30, "{right} of {all}");
    }

    /// Figures that were measured on the task hold for these images alone. Decoders differ by a
    /// gray level between machines.
    #[test]
    fn the_task_is_that_of_the_published_figures() {
        let task = MaterialsTask::new().unwrap();
        let mean = |source: &InMemory| {
            let images: Vec<_> = (0..source.len()).filter_map(|i| source.image(i)).collect();
            let values = images.iter().flat_map(|image| image.pixels());
            values.map(|&value| f64::from(value)).sum::<f64>() / (images.len() * 12_288) as f64
        };
        assert!((mean(&task.gallery) - 86.90952).abs() < 0.02, "{}", mean(&task.gallery));
        assert!((mean(&task.queries) - 92.98575).abs() < 0.02, "{}", mean(&task.queries));
    }
}
