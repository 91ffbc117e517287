//! PTX modules as the driver has them: assembled once for a driver and a kind of GPU, and kept.
//!
//! The driver assembles the text of a graph's modules into code for the GPU, which takes longer
//! than anything else that loading a graph does. What comes of it is kept on disk, under a digest
//! of the text, the driver's version and the compute capability. Code that the driver does not take
//! is assembled again.

use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::sync::Arc;

use cudarc::driver::sys::{
    self, CUfunction, CUjit_option, CUjitInputType, CUlinkState, CUmodule, CUresult,
};
use weft_graph::{PtxCode, kept};

use super::CAPABILITY;
use super::context::Context;
use crate::device::DeviceError;

/// Shared memory that a launch may ask for without saying so before.
const DYNAMIC_SHARED_PLAIN_BYTES: u32 = 48 << 10;

/// What the driver's assembler may say of a module.
const LOG_BYTES: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Module {
    context: Arc<Context>,
    handle: CUmodule,
}

impl Module {
    /// A module by its text, which holds `kernel`; what the driver says against it is in the error.
    pub fn load(context: &Arc<Context>, kernel: &str, text: &[u8]) -> Result<Module, DeviceError> {
        context.enter()?;
        let path = kept_as(context, text);
        let known = path.as_deref().and_then(kept::find);
        if let Some(module) = known.and_then(|code| Module::of(context, &code).ok()) {
            return Ok(module);
        }
        let wrong = |reason: String| DeviceError::Kernel { kernel: kernel.into(), reason };
        let code = assemble(text).map_err(&wrong)?;
        let module = Module::of(context, &code);
        let module =
            module.map_err(|e| wrong(format!("the driver does not take its code: {e:?}")))?;
        if let Some(path) = path {
            kept::keep(&path, &code);
            if let Some(folder) = kept::user_folder() {
                kept::trim(&folder, kept::user_limit_bytes(), &path);
            }
        }
        Ok(module)
    }

    /// A module of code that was assembled.
    fn of(context: &Arc<Context>, code: &[u8]) -> Result<Module, CUresult> {
        let mut module = Module { context: Arc::clone(context), handle: std::ptr::null_mut() };
        // SAFETY: the code is what the driver made, whole by its digest, and says how long it is;
        // writes one handle.
        match unsafe { sys::cuModuleLoadData(&mut module.handle, code.as_ptr().cast()) } {
            CUresult::CUDA_SUCCESS => Ok(module),
            other => Err(other),
        }
    }

    pub fn function(&self, name: &str, code: &PtxCode) -> Result<CUfunction, DeviceError> {
        let wrong = |reason: String| DeviceError::Kernel { kernel: name.into(), reason };
        let symbol = CString::new(name).map_err(|_| wrong("its name has a zero byte".into()))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with a zero; writes one handle.
        let found =
            unsafe { sys::cuModuleGetFunction(&mut function, self.handle, symbol.as_ptr()) };
        if found != CUresult::CUDA_SUCCESS {
            return Err(wrong(format!("its module has no such entry: {found:?}")));
        }
        if code.dynamic_shared_bytes > DYNAMIC_SHARED_PLAIN_BYTES {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = code.dynamic_shared_bytes as i32;
            // SAFETY: the function was just found.
            let set = unsafe { sys::cuFuncSetAttribute(function, attribute, bytes) };
            if set != CUresult::CUDA_SUCCESS {
                return Err(wrong(format!("{bytes} bytes of shared memory: {set:?}")));
            }
        }
        Ok(function)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if !self.handle.is_null() && self.context.enter().is_ok() {
            // SAFETY: loaded in `of`; its functions go with it.
            let _ = unsafe { sys::cuModuleUnload(self.handle) };
        }
    }
}

/// Where the code of a text is kept.
fn kept_as(context: &Context, text: &[u8]) -> Option<PathBuf> {
    let machine = format!("driver {}, capability {CAPABILITY}", context.driver);
    let mut digest = blake3::Hasher::new();
    for part in [machine.as_bytes(), text] {
        digest.update(&(part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let name = format!("{}.cubin", digest.finalize().to_hex());
    Some(kept::user_folder()?.join("modules").join(name))
}

/// The driver's assembler at work.
struct Link(CUlinkState);

impl Drop for Link {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made in `assemble`, used by nothing after.
            let _ = unsafe { sys::cuLinkDestroy(self.0) };
        }
    }
}

/// The code of a text for the GPU of this thread's context.
fn assemble(text: &[u8]) -> Result<Vec<u8>, String> {
    let text = CString::new(text).map_err(|_| "its PTX has a zero byte".to_string())?;
    let mut log = vec![0u8; LOG_BYTES];
    let mut options =
        [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The driver takes the size in the pointer's place.
    let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), LOG_BYTES as *mut c_void];
    let mut link = Link(std::ptr::null_mut());
    let (mut code, mut n_bytes) = (std::ptr::null_mut(), 0usize);
    let none: *mut c_void = std::ptr::null_mut();
    // SAFETY: the log is as long as said and outlives the link; writes one handle.
    let mut result =
        unsafe { sys::cuLinkCreate_v2(2, options.as_mut_ptr(), values.as_mut_ptr(), &mut link.0) };
    if result == CUresult::CUDA_SUCCESS {
        let (bytes, kind) = (text.as_bytes_with_nul(), CUjitInputType::CU_JIT_INPUT_PTX);
        let data = bytes.as_ptr().cast_mut().cast();
        // SAFETY: the text ends with a zero and is only read.
        result = unsafe {
            let name = c"kernels".as_ptr();
            sys::cuLinkAddData_v2(
                link.0,
                kind,
                data,
                bytes.len(),
                name,
                0,
                none.cast(),
                none.cast(),
            )
        };
    }
    if result == CUresult::CUDA_SUCCESS {
        // SAFETY: writes an address, of memory that is the link's, and its size.
        result = unsafe { sys::cuLinkComplete(link.0, &mut code, &mut n_bytes) };
    }
    if result != CUresult::CUDA_SUCCESS {
        let said = log.split(|b| *b == 0).next().unwrap_or_default();
        let said = String::from_utf8_lossy(said).trim().to_string();
        return Err(format!("the driver does not take its module: {result:?}; {said}"));
    }
    // SAFETY: the driver just said so; the link is still there.
    Ok(unsafe { std::slice::from_raw_parts(code.cast::<u8>(), n_bytes) }.to_vec())
}
