//! Settings: structs with defaults beside their fields, and the error for an invalid value.
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

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

pub mod describe;

use std::fmt::Display;

/// An invalid setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is {value}: {need}")]
pub struct SettingError {
    /// Dotted key, such as `train.batch_size`.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What is required.
    pub need: String,
}

impl SettingError {
    /// `value` is invalid for `key`; `need` says what is required.
    pub fn new(key: impl Into<String>, value: impl Display, need: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.to_string(), need: need.into() }
    }

    /// The same error with `key` inside `table`.
    #[must_use]
    pub fn within(self, table: &str) -> Self {
        Self { key: format!("{table}.{}", self.key), ..self }
    }
}

/// Returns an error for `key` unless `good`.
///
/// # Errors
/// [`SettingError`] with the key, the value and the requirement.
pub fn check(
    good: bool,
    key: &str,
    value: impl Display,
    need: impl Into<String>,
) -> Result<(), SettingError> {
    if good { Ok(()) } else { Err(SettingError::new(key, value, need)) }
}

/// Settings that can be partly overridden.
pub trait Overlay {
    /// The same settings, each optional.
    type Partial;

    /// Replaces the values that are given.
    fn overlay(&mut self, given: Self::Partial);
}

/// Implements [`Overlay`] for types that are replaced as a whole.
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

whole!(bool, u32, f64, [f64; 2], [f64; 3], Vec<u32>);

/// Implements [`Describe`](describe::Describe) for a struct of these fields; a part of [`settings!`].
#[doc(hidden)]
#[macro_export]
macro_rules! described {
    ($name:ident { $($(#[$about:meta])* $field:ident: $kind:ty,)* }) => {
        impl $crate::describe::Describe for $name {
            fn schema() -> $crate::describe::Value {
                $crate::describe::table([
                    $((
                        stringify!($field),
                        &[$(stringify!($about)),*] as &[&str],
                        <$kind as $crate::describe::Describe>::schema(),
                    ),)*
                ])
            }
        }
    };
}

/// Declares a struct of settings with the default beside each field. When it is deserialized,
/// missing fields take their defaults and unknown names are refused.
///
/// With a second name, as in `pub struct Blur / PartialBlur`, it also declares that struct, in
/// which every field is optional, and implements [`Overlay`], for settings that override other
/// values than the defaults. `Deserialize` is then left to the caller. Without any defaults, every
/// field must be given. All of them implement [`Describe`](describe::Describe).
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

        $crate::described!($name { $($(#[$about_field])* $field: $kind,)* });
    };
    (
        $(#[$about:meta])*
        pub struct $name:ident {
            $($(#[$about_field:meta])* pub $field:ident: $kind:ty,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$about_field])* pub $field: $kind,)*
        }

        $crate::described!($name { $($(#[$about_field])* $field: $kind,)* });
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

        $crate::described!($name { $($(#[$about_field])* $field: $kind,)* });

        #[doc = concat!("[`", stringify!($name), "`] with every field optional.")]
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

#[cfg(test)]
#[allow(unreachable_pub, reason = "the macro declares what is public")]
mod tests {
    use super::*;

    settings! {
        /// Replaced as a whole.
        pub struct Log {
            /// Steps.
            pub every: u32 = 10,
            /// Loss.
            pub least: f64 = 0.5,
        }
    }

    settings! {
        /// Overlaid.
        pub struct Blur / PartialBlur {
            /// Probability.
            pub p: f64 = 0.25,
            /// Range.
            pub radius: [f64; 2] = [1.0, 2.0],
        }
    }

    #[test]
    fn what_is_not_given_has_its_default() {
        let log: Log = serde_json::from_str(r#"{ "every": 3 }"#).unwrap();
        assert_eq!(log, Log { every: 3, least: 0.5 });
        let mut blur = Blur { p: 1.0, ..Blur::default() };
        blur.overlay(serde_json::from_str(r#"{ "radius": [3, 4] }"#).unwrap());
        assert_eq!(blur, Blur { p: 1.0, radius: [3.0, 4.0] });
    }

    #[test]
    fn unknown_names_are_refused() {
        let whole = serde_json::from_str::<Log>(r#"{ "evry": 3 }"#).unwrap_err();
        let partial = serde_json::from_str::<PartialBlur>(r#"{ "radios": [3, 4] }"#).unwrap_err();
        for (error, name) in [(whole, "evry"), (partial, "radios")] {
            assert!(error.to_string().contains(&format!("unknown field `{name}`")), "{error}");
        }
    }

    #[test]
    fn errors_name_key_value_and_need() {
        assert_eq!(check(true, "p", 0.5, "a probability"), Ok(()));
        let error =
            check(false, "p", 1.5, "a probability").unwrap_err().within("views").within("run");
        assert_eq!(error.to_string(), "`run.views.p` is 1.5: a probability");
    }
}
