//! The teacher: an exponential moving average of the student.

use esvit_nn::Params;
use esvit_nn::params::Role;

/// Moves every parameter of the teacher towards the student's, trainable or not:
/// `teacher = momentum teacher + (1 - momentum) student`. Running statistics stay its own.
pub fn follow(teacher: &mut Params, student: &Params, momentum: f64) {
    let specs = teacher.specs().clone();
    for ((spec, teacher), student) in specs.iter().zip(teacher.values_mut()).zip(student.values()) {
        if spec.role != Role::Buffer {
            *teacher = teacher.clone() * momentum + student.clone() * (1.0 - momentum);
        }
    }
}
