//! Devices by name.

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
    /// The device of this name: `cpu`, or with its number `cpu:0`.
    ///
    /// # Errors
    /// When there is no such device in this build.
    pub fn find(name: &str) -> Result<Self, DeviceError> {
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
            assert_eq!(Device::find(name), Ok(Device::Cpu), "{name}");
        }
        for name in ["gpu", "cpu:1", "cuda:0", ""] {
            assert_eq!(Device::find(name), Err(DeviceError(name.into())), "{name}");
        }
    }
}
