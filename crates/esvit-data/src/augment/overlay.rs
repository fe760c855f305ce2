//! Settings that can be given in part.
//!
//! A policy sets every value; a configuration file names only those it changes. `overlay!`
//! declares a struct with its defaults beside its fields, and the same struct with every field
//! optional, which is what is read from the file and laid over the policy's values.

use crate::Interpolation;

/// A value that can be replaced in part.
pub(super) trait Overlay {
    /// The part that is given.
    type Partial;

    /// Replaces what is given.
    fn overlay(&mut self, given: Self::Partial);
}

macro_rules! whole {
    ($($kind:ty),*) => {
        $(impl Overlay for $kind {
            type Partial = Self;

            fn overlay(&mut self, given: Self) {
                *self = given;
            }
        })*
    };
}

whole!(u32, f64, [f64; 2], [f64; 3], Vec<u32>, Interpolation, super::config::Policy);

macro_rules! overlay {
    (
        $(#[$about:meta])*
        pub struct $name:ident / $partial:ident {
            $($(#[$about_field:meta])* pub $field:ident: $kind:ty = $default:expr,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize)]
        pub struct $name {
            $($(#[$about_field])* pub $field: $kind,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        #[doc = concat!("The settings of [`", stringify!($name), "`] that are given.")]
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $partial {
            $(pub(super) $field: Option<<$kind as $crate::augment::overlay::Overlay>::Partial>,)*
        }

        impl $crate::augment::overlay::Overlay for $name {
            type Partial = $partial;

            fn overlay(&mut self, given: $partial) {
                $(if let Some(given) = given.$field {
                    self.$field.overlay(given);
                })*
            }
        }
    };
}

pub(super) use overlay;
