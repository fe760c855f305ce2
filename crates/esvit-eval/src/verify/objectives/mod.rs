//! Cases of kinds `objective-*`: losses, gradients, queues and assignments of objectives beside EsViT's,
//! from given outputs of networks.

mod batch;
mod densecl;
mod dinov2;
mod distill;
mod igpt;
mod masked_patch;
mod queues;
mod supervised;
mod swav;

use esvit_nn::{Device, Tensor};
use esvit_train::objective::queue::KeyQueue;

use super::{Case, CaseError, Outcome, Result};

pub(super) use igpt::quantize;

/// A case of kind `objective-METHOD`.
pub(super) fn run(case: &Case, method: &str) -> Result<Outcome> {
    let checks = match method {
        "moco2" => queues::moco2(case)?,
        "moby" => queues::moby(case)?,
        "mocov3" => batch::mocov3(case)?,
        "simclr" => batch::simclr(case)?,
        "byol" => batch::byol(case)?,
        "swav" => swav::run(case)?,
        "densecl" => densecl::run(case)?,
        "igpt" => igpt::run(case)?,
        "supervised" => supervised::run(case)?,
        "distill" => distill::run(case)?,
        "dinov2" => dinov2::run(case)?,
        "masked-patch" => masked_patch::run(case)?,
        _ => return Err(CaseError::Kind(case.kind.clone())),
    };
    Ok(Outcome::Compared(checks.done()))
}

/// The name of the pointer of a queue, in its state.
const POINTER: &str = "queue_ptr";

/// A queue with the keys `[D, K]` and the place that a case gives.
fn queue(
    case: &Case,
    name: &'static str,
    [width, length]: [usize; 2],
    next: i64,
) -> Result<KeyQueue> {
    let keys = case.shaped(name, [width, length])?;
    let mut queue = KeyQueue::new(name, [length, width], 0, &case.device);
    queue.set_keys(keys);
    queue.set_next(&Tensor::full(next as f32, [1], &Device::Cpu));
    Ok(queue)
}

/// Where the next key of a queue comes in.
fn next(queue: &KeyQueue) -> f64 {
    let [_, pointer] = queue.state(POINTER);
    f64::from(pointer.value.item())
}
