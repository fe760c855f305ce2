//! The built-in pictures: 101 photographed and painted material textures of 256 x 256 pixels,
//! and the k-NN task that is made of them.
//!
//! They let a run be tried without any data. A network is trained on the left two thirds of
//! every picture only; the task then asks it to name the picture that a small piece of the
//! never seen right third belongs to.

mod list;

use esvit_kernels::rng::Rng;

use crate::augment::{ColorJitter, jitter};
use crate::{DecodeLimits, InMemory, Picture, SourceError, decode};

/// Licences of the built-in pictures, to be shown with them.
pub const MATERIALS_LICENSE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/materials/LICENSE.md"));

/// Side of the crops of the task, in pixels.
const CROP: u32 = 64;
const GALLERY_CROPS: u64 = 8;
const QUERY_CROPS: u64 = 4;
const SEED: u64 = 0;
/// Tells the task's random numbers from those of training.
const PURPOSE: u64 = u64::from_be_bytes(*b"material");

/// Stronger in saturation than training's, and always applied: colour alone must not answer.
const QUERY_JITTER: ColorJitter =
    ColorJitter { p: 1.0, brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 };

/// The JPEG file of one of the built-in pictures, to measure with.
pub fn sample_jpeg() -> &'static [u8] {
    list::FILES[0].1
}

/// The pictures to train on: the left two thirds (171 x 256 pixels) of every texture, decoded
/// and labelled with the texture's name.
pub fn training_materials() -> Result<InMemory, SourceError> {
    let mut source = InMemory::new(classes());
    for_each_material(|label, name, picture| {
        let split = split(&picture);
        if let Ok(left) = picture.crop(0, 0, split, picture.height()) {
            source.push(name, Some(label), left);
        }
    })?;
    Ok(source)
}

/// The built-in labelled k-NN task. It is the same in every run.
#[derive(Debug)]
pub struct MaterialsTask {
    gallery: InMemory,
    queries: InMemory,
}

impl MaterialsTask {
    /// Decodes the textures and cuts the crops.
    pub fn new() -> Result<Self, SourceError> {
        let mut task =
            Self { gallery: InMemory::new(classes()), queries: InMemory::new(classes()) };
        for_each_material(|label, name, picture| {
            let split = split(&picture);
            for i in 0..GALLERY_CROPS {
                let mut rng = Rng::for_purpose(SEED, PURPOSE, [0, u64::from(label), i]);
                if let Some(crop) = random_crop(&picture, 0, split, &mut rng) {
                    task.gallery.push(format!("{name}/gallery-{i}"), Some(label), crop);
                }
            }
            for i in 0..QUERY_CROPS {
                let mut rng = Rng::for_purpose(SEED, PURPOSE, [1, u64::from(label), i]);
                if let Some(mut crop) = random_crop(&picture, split, picture.width(), &mut rng) {
                    jitter(&mut crop, &QUERY_JITTER, &mut rng);
                    task.queries.push(format!("{name}/query-{i}"), Some(label), crop);
                }
            }
        })?;
        Ok(task)
    }

    /// 8 crops of 64 x 64 pixels from the left two thirds of every texture: 808 pictures.
    pub fn gallery(&self) -> &InMemory {
        &self.gallery
    }

    /// 4 crops of 64 x 64 pixels from the right third of every texture, with changed colours:
    /// 404 pictures.
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

fn for_each_material(mut use_it: impl FnMut(u32, &str, Picture)) -> Result<(), SourceError> {
    for (label, (name, bytes)) in (0..).zip(list::FILES) {
        let picture = decode(bytes, &DecodeLimits::default())
            .map_err(|error| SourceError::Decode { name: name.to_string(), error })?;
        use_it(label, name, picture);
    }
    Ok(())
}

/// First column of the right third.
fn split(picture: &Picture) -> u32 {
    (picture.width() * 2 + 1) / 3
}

/// A crop at a random place between the columns `from` and `to`.
fn random_crop(picture: &Picture, from: u32, to: u32, rng: &mut Rng) -> Option<Picture> {
    let left = from + rng.below(u64::from(to.checked_sub(from + CROP)?) + 1) as u32;
    let top = rng.below(u64::from(picture.height().checked_sub(CROP)?) + 1) as u32;
    picture.crop(left, top, CROP, CROP).ok()
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
            let picture = source.load(i).unwrap();
            assert_eq!((picture.width(), picture.height()), (171, 256));
        }
    }

    #[test]
    fn the_task_is_complete_labelled_and_always_the_same() {
        let task = MaterialsTask::new().unwrap();
        assert_eq!((task.gallery().len(), task.queries().len()), (808, 404));
        for (source, per_class) in [(task.gallery(), 8), (task.queries(), 4)] {
            assert_eq!(source.classes().len(), 101);
            for i in 0..source.len() {
                assert_eq!(source.label(i), Some(i as u32 / per_class));
                let picture = source.picture(i).unwrap();
                assert_eq!((picture.width(), picture.height()), (64, 64));
            }
        }
        let again = MaterialsTask::new().unwrap();
        assert!((0..404).all(|i| task.queries().picture(i) == again.queries().picture(i)));
        assert_ne!(task.gallery().picture(0), task.gallery().picture(1));
    }
}
