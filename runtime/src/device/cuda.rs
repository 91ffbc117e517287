//! NVIDIA GPUs: which there are, and why there are none.
//!
//! The driver's library is opened at run time; nothing of CUDA is linked. Looking for GPUs never
//! panics: a machine without a driver, with one that is too old, or with the toolkit's stub in its
//! place gets a [`NoCuda`] that says so. Kernels are PTX for `sm_90a`, which is code for compute
//! capability 9.0 and no other (PTX ISA, target directives).

mod context;
mod events;
mod kernels;
mod modules;
mod staging;

use std::ffi::{CStr, c_char, c_int};
use std::fmt;

use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};
use thiserror::Error;

pub use context::Cuda;

/// The CUDA version whose driver assembles PTX ISA 8.3, the version that kernels are written in.
pub const VERSION_MIN: Version = Version { major: 12, minor: 3 };

/// The compute capability that kernels are for.
pub const CAPABILITY: Version = Version { major: 9, minor: 0 };

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why no GPU can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoCuda {
    #[error("there is no CUDA driver (libcuda) on this machine")]
    NoDriver,
    #[error("libcuda on this machine is the toolkit's stub; install the NVIDIA driver")]
    Stub,
    #[error("the CUDA driver is of version {found}; install one of {VERSION_MIN} or newer")]
    TooOld { found: Version },
    #[error("there is a CUDA driver, and no GPU that it can see")]
    NoDevice,
    #[error("the CUDA driver's {call} fails with {code}")]
    Call { call: &'static str, code: String },
    #[error("no GPU that the CUDA driver sees runs the kernels: {why}")]
    Unfit { why: String },
}

/// A driver that works, and what it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// The newest CUDA version it supports.
    pub version: Version,
    pub gpus: Vec<Gpu>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// The driver's number for it.
    pub ordinal: u32,
    pub name: String,
    pub capability: Version,
    pub memory_bytes: u64,
    pub multiprocessors: u32,
}

impl Gpu {
    /// Why kernels do not run on it.
    pub fn unfit(&self) -> Option<String> {
        (self.capability != CAPABILITY).then(|| {
            format!("compute capability {}; kernels are for {CAPABILITY} (Hopper)", self.capability)
        })
    }
}

/// The driver and the GPUs of this machine.
pub fn probe() -> Result<Driver, NoCuda> {
    // SAFETY: opens a library by the names that the driver's has, and closes it.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoCuda::NoDriver);
    }
    // SAFETY: the library is there, so the call does not panic; every driver has this function.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_NO_DEVICE => return Err(NoCuda::NoDevice),
        CUresult::CUDA_ERROR_STUB_LIBRARY => return Err(NoCuda::Stub),
        code => return Err(call("cuInit", code)),
    }
    let mut version: c_int = 0;
    // SAFETY: as above; writes one integer.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    // The driver counts 1000 * major + 10 * minor.
    let version = Version { major: version as u32 / 1000, minor: version as u32 % 1000 / 10 };
    if version < VERSION_MIN {
        return Err(NoCuda::TooOld { found: version });
    }
    let mut count: c_int = 0;
    // SAFETY: as above.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    if count < 1 {
        return Err(NoCuda::NoDevice);
    }
    let gpus = (0..count as u32).map(gpu).collect::<Result<_, _>>()?;
    Ok(Driver { version, gpus })
}

fn gpu(ordinal: u32) -> Result<Gpu, NoCuda> {
    let mut device: sys::CUdevice = 0;
    // SAFETY: the driver is initialised; writes one integer.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as c_int) })?;
    let mut name = [0 as c_char; 256];
    // SAFETY: the driver writes at most the length it is given, a terminating zero included.
    check("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device)
    })?;
    name[name.len() - 1] = 0;
    // SAFETY: the last byte is zero.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let mut memory_bytes: usize = 0;
    // SAFETY: writes one size.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut memory_bytes, device) })?;
    let attribute = |which| {
        let mut value: c_int = 0;
        // SAFETY: writes one integer.
        check("cuDeviceGetAttribute", unsafe {
            sys::cuDeviceGetAttribute(&mut value, which, device)
        })?;
        Ok(value as u32)
    };
    use CUdevice_attribute::*;
    Ok(Gpu {
        ordinal,
        name,
        capability: Version {
            major: attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        },
        memory_bytes: memory_bytes as u64,
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

fn check(name: &'static str, code: CUresult) -> Result<(), NoCuda> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(call(name, code)),
    }
}

fn call(call: &'static str, code: CUresult) -> NoCuda {
    NoCuda::Call { call, code: format!("{code:?}") }
}
