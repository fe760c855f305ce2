//! Settings: structs with the defaults beside their fields, and what is said of a setting that
//! makes no sense.
//!
//! ```
//! use esvit_settings::{SettingError, check, settings};
//!
//! settings! {
//!     /// How a run ends.
//!     pub struct EndConfig {
//!         /// Number of epochs.
//!         pub epochs: u64 = 100,
//!         /// Steps from one line of the log to the next.
//!         pub log_every: u64 = 10,
//!     }
//! }
//!
//! impl EndConfig {
//!     fn validate(&self) -> Result<(), SettingError> {
//!         check(self.epochs > 0, "end.epochs", self.epochs, "a run has at least one")
//!     }
//! }
//!
//! let config: EndConfig = serde_json::from_str(r#"{ "epochs": 0 }"#)?;
//! assert_eq!(config.log_every, 10);
//! let error = config.validate().unwrap_err().to_string();
//! assert_eq!(error, "`end.epochs` is 0: a run has at least one");
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::fmt::Display;

/// A setting that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is {value}: {need}")]
pub struct SettingError {
    /// Name of the setting, with its tables.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What would make sense.
    pub need: String,
}

impl SettingError {
    /// The setting `key` is `value` and should be as `need` says.
    pub fn new(key: impl Into<String>, value: impl Display, need: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.to_string(), need: need.into() }
    }

    /// The same in the table `table`.
    #[must_use]
    pub fn within(self, table: &str) -> Self {
        Self { key: format!("{table}.{}", self.key), ..self }
    }
}

/// An error about the setting `key` unless it is `good`.
///
/// # Errors
/// [`SettingError`] with the key, the value and what is needed.
pub fn check(
    good: bool,
    key: &str,
    value: impl Display,
    need: impl Into<String>,
) -> Result<(), SettingError> {
    if good { Ok(()) } else { Err(SettingError::new(key, value, need)) }
}

/// Settings of which some are given and the rest come from elsewhere.
pub trait Overlay {
    /// The part that is given.
    type Partial;

    /// Replaces what is given.
    fn overlay(&mut self, given: Self::Partial);
}

/// Implements [`Overlay`] for types that are given whole or not at all.
#[macro_export]
macro_rules! whole {
    ($($kind:ty),* $(,)?) => {
        $(impl $crate::Overlay for $kind {
            type Partial = Self;

            fn overlay(&mut self, given: Self) {
                *self = given;
            }
        })*
    };
}

whole!(u32, f64, [f64; 2], [f64; 3], Vec<u32>);

/// Declares a struct of settings with the default beside each field. Read from a file, fields that
/// are missing take their default, and names that it does not have are refused.
///
/// With a second name, as in `pub struct Blur / PartialBlur`, it declares the struct of that name
/// too, in which every field is optional, and [`Overlay`]: for settings that are laid over others
/// than the defaults. `Deserialize` is then left to the caller.
#[macro_export]
macro_rules! settings {
    (
        $(#[$about:meta])*
        pub struct $name:ident {
            $($(#[$about_field:meta])* pub $field:ident: $kind:ty = $default:expr,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$about_field])* pub $field: $kind,)*
        }

        impl ::std::default::Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
    (
        $(#[$about:meta])*
        pub struct $name:ident / $partial:ident {
            $($(#[$about_field:meta])* pub $field:ident: $kind:ty = $default:expr,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, ::serde::Serialize)]
        pub struct $name {
            $($(#[$about_field])* pub $field: $kind,)*
        }

        impl ::std::default::Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        #[doc = concat!("The settings of [`", stringify!($name), "`] that are given.")]
        #[derive(Debug, Default, ::serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        #[allow(missing_docs, unreachable_pub, reason = "the fields are those of the other struct")]
        pub struct $partial {
            $(pub $field: Option<<$kind as $crate::Overlay>::Partial>,)*
        }

        impl $crate::Overlay for $name {
            type Partial = $partial;

            fn overlay(&mut self, given: $partial) {
                $(if let Some(given) = given.$field {
                    self.$field.overlay(given);
                })*
            }
        }
    };
}
