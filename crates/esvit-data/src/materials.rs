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
const QUERY_JITTER: ColorJitter =
    ColorJitter { p: 1.0, brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 };

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
    gallery: InMemory,
    queries: InMemory,
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

    /// The gallery: 8 crops of 64 x 64 pixels from the left two thirds of every texture, 808 in
    /// all.
    pub fn gallery(&self) -> &InMemory {
        &self.gallery
    }

    /// The queries: 4 crops of 64 x 64 pixels from the right third of every texture, with color
    /// jitter, 404 in all.
    pub fn queries(&self) -> &InMemory {
        &self.queries
    }

    /// Gallery and queries.
    pub fn into_sources(self) -> (InMemory, InMemory) {
        (self.gallery, self.queries)
    }
}

fn classes() -> Vec<String> {
    list::FILES.iter().map(|(name, _)| name.to_string()).collect()
}

fn for_each_material(mut use_it: impl FnMut(u32, &str, Image)) -> Result<(), SourceError> {
    for (label, (name, bytes)) in (0..).zip(list::FILES) {
        let image = decode(bytes, &DecodeLimits::default())
            .map_err(|error| SourceError::Decode { name: name.to_string(), error })?;
        use_it(label, name, image);
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
        assert_eq!((task.gallery().len(), task.queries().len()), (808, 404));
        for (source, per_class) in [(task.gallery(), 8), (task.queries(), 4)] {
            assert_eq!(source.classes().len(), 101);
            for i in 0..source.len() {
                assert_eq!(source.label(i), Some(i as u32 / per_class));
                let image = source.image(i).unwrap();
                assert_eq!((image.width(), image.height()), (64, 64));
            }
        }
        let again = MaterialsTask::new().unwrap();
        assert!((0..404).all(|i| task.queries().image(i) == again.queries().image(i)));
        assert_ne!(task.gallery().image(0), task.gallery().image(1));
    }
}
