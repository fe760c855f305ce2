//! Devices by name.

use std::str::FromStr;

/// What holds tensors and runs operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
}

/// A device that does not exist or is not in this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no device `{0}` in this build\nhint: `cpu` is the device of every build")]
pub struct DeviceError(String);

impl Device {
    /// Its name, as it is parsed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
        }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    /// The device of this name: `cpu`, or with its number `cpu:0`.
    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name {
            "cpu" | "cpu:0" => Ok(Self::Cpu),
            _ => Err(DeviceError(name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["cpu", "cpu:0"] {
            assert_eq!(name.parse(), Ok(Device::Cpu), "{name}");
        }
        for name in ["gpu", "cpu:1", "cuda:0", ""] {
            assert_eq!(name.parse::<Device>(), Err(DeviceError(name.into())), "{name}");
        }
    }
}
