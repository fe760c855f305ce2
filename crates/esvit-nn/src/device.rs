//! Devices by name.

use burn::tensor::Device;

/// A device that does not exist or is not in this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not the name of a device.
    #[error(
        "there is no device `{0}`\n\
         hint: `cpu`, or `cuda`, `rocm`, `metal`, `vulkan`, `wgpu`, with a number as in `cuda:1`"
    )]
    Unknown(String),
    /// The device needs a feature of the build.
    #[error("`{0}` is not in this build\nhint: build with `--features {0}`")]
    NotBuilt(String),
}

/// The device of this name: `cpu`, `cuda`, `rocm`, `metal`, `vulkan` or `wgpu`, all but the first
/// features of the build, with an optional index as in `cuda:1` (default 0).
///
/// # Errors
/// When the name is unknown, or its feature is not in this build.
pub fn find(name: &str) -> Result<Device, DeviceError> {
    let (kind, number) = match name.split_once(':') {
        Some((kind, number)) => {
            (kind, number.parse().map_err(|_| DeviceError::Unknown(name.to_owned()))?)
        }
        None => (name, 0usize),
    };
    match kind {
        "cpu" if number == 0 => Ok(Device::flex()),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(Device::wgpu(graphics(name, number))),
        #[cfg(feature = "vulkan")]
        "vulkan" => Ok(Device::vulkan(graphics(name, number))),
        #[cfg(feature = "metal")]
        "metal" => Ok(Device::metal(graphics(name, number))),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(number)),
        #[cfg(feature = "rocm")]
        "rocm" => Ok(Device::rocm(number)),
        #[allow(unreachable_patterns, reason = "devices of this build are matched above")]
        "wgpu" | "vulkan" | "metal" | "cuda" | "rocm" => {
            Err(DeviceError::NotBuilt(kind.to_owned()))
        }
        _ => Err(DeviceError::Unknown(name.to_owned())),
    }
}

/// The discrete GPU of this number; without one the default device, which may be a software driver.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn graphics(name: &str, number: usize) -> burn::tensor::DeviceKind {
    if name.contains(':') {
        burn::tensor::DeviceKind::DiscreteGpu(number)
    } else {
        burn::tensor::DeviceKind::DefaultDevice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(find("cpu").is_ok());
        for name in ["gpu", "cpu:1", "cuda:x", ""] {
            assert_eq!(find(name).unwrap_err(), DeviceError::Unknown(name.into()), "{name}");
        }
        #[cfg(not(feature = "cuda"))]
        assert_eq!(find("cuda:1").unwrap_err(), DeviceError::NotBuilt("cuda".into()));
    }
}
