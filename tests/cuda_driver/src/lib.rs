//! The part of the CUDA driver's interface that the runtime calls, on the interpreter of PTX, to
//! test `--device cuda` where there is no GPU.
//!
//! It is stricter than the driver: a call without a current context, a call that a capture does not
//! allow, a handle or an address that nobody gave out, more shared memory than was asked for, all
//! are errors, and so are launches of two streams that touch the same memory with no event between.
//! What a launch does wrong is told on stderr. Results are the driver's numbers.

mod state;

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use ptx_sim::{Element, Swizzle, TENSOR_MAP_BYTES, TensorMap};
use state::{Deed, with, with_context};

/// The driver's results, by their names there without the prefix.
mod result {
    pub const SUCCESS: i32 = 0;
    pub const INVALID_VALUE: i32 = 1;
    pub const INVALID_IMAGE: i32 = 200;
    pub const INVALID_CONTEXT: i32 = 201;
    pub const INVALID_HANDLE: i32 = 400;
    pub const NOT_FOUND: i32 = 500;
    pub const ILLEGAL_ADDRESS: i32 = 700;
    pub const LAUNCH_FAILED: i32 = 719;
    pub const STREAM_CAPTURE_UNSUPPORTED: i32 = 900;
    pub const STREAM_CAPTURE_UNJOINED: i32 = 904;
    pub const STREAM_CAPTURE_ISOLATION: i32 = 905;
}

type Handle = *mut c_void;

/// Writes what a call gives back.
///
/// # Safety
/// `to` is valid for a write, as the driver's interface asks.
unsafe fn give<T>(to: *mut T, value: T) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    result::SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> i32 {
    result::SUCCESS
}

/// # Safety
/// As the driver's: pointers are valid for what is written there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { give(version, 13000) }
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { give(count, 1) }
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { give(device, ordinal) }
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, _: c_int) -> i32 {
    let text = c"Interpreter";
    if (length as usize) < text.to_bytes_with_nul().len() {
        return result::INVALID_VALUE;
    }
    // SAFETY: the caller's promise, for `length` bytes.
    unsafe { name.copy_from_nonoverlapping(text.as_ptr(), text.to_bytes_with_nul().len()) };
    result::SUCCESS
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _: c_int) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { give(bytes, 1 << 32) }
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, which: c_int, _: c_int) -> i32 {
    let is = match which {
        16 => multiprocessors(),
        75 => 9, // compute capability
        76 => 0,
        _ => return result::INVALID_VALUE,
    };
    // SAFETY: the caller's promise.
    unsafe { give(value, is) }
}

/// Those of an H100, unless a test says otherwise.
fn multiprocessors() -> c_int {
    std::env::var("DRIVER_MULTIPROCESSORS").ok().and_then(|n| n.parse().ok()).unwrap_or(132)
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, _: c_int) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { give(context, state::CONTEXT as Handle) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_: c_int) -> i32 {
    result::SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: Handle) -> i32 {
    state::enter(context as usize)
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut Handle, _flags: c_uint) -> i32 {
    // SAFETY: the caller's promise.
    with_context(|s| unsafe { give(stream, s.new_stream() as Handle) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: Handle) -> i32 {
    with_context(|s| s.drop_stream(stream as usize))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) -> i32 {
    with_context(|s| s.wait(stream as usize, event as usize))
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut Handle, flags: c_uint) -> i32 {
    const DISABLE_TIMING: c_uint = 2;
    // SAFETY: the caller's promise.
    with_context(|s| unsafe { give(event, s.new_event(flags & DISABLE_TIMING == 0) as Handle) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> i32 {
    with_context(|s| s.record_event(event as usize, stream as usize))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: Handle) -> i32 {
    with_context(|s| match s.event(event as usize) {
        Some(_) => result::SUCCESS,
        None => result::INVALID_HANDLE,
    })
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(ms: *mut f32, start: Handle, end: Handle) -> i32 {
    with_context(|s| match [start, end].map(|event| s.event(event as usize)) {
        // SAFETY: the caller's promise.
        [Some(start), Some(end)] => unsafe { give(ms, (end - start).as_secs_f32() * 1e3) },
        _ => result::INVALID_HANDLE,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: Handle) -> i32 {
    with_context(|s| s.drop_event(event as usize))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: Handle) -> i32 {
    with_context(|s| s.at_once(stream as usize, |_, _| result::SUCCESS))
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: Handle) -> i32 {
    with_context(|s| {
        s.at_once(stream as usize, |s, _| {
            let at = s.device.alloc(bytes);
            // SAFETY: the caller's promise.
            unsafe { give(address, at) }
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: u64, stream: Handle) -> i32 {
    with_context(|s| s.at_once(stream as usize, |s, _| state::told(s.device.free(address))))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(address: u64, value: u8, bytes: usize, stream: Handle) -> i32 {
    with_context(|s| {
        let fill = vec![value; bytes];
        s.at_once(stream as usize, |s, on| state::told(s.device.write_on(on, address, &fill)))
    })
}

/// # Safety
/// `from` is valid for so many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: Handle,
) -> i32 {
    // SAFETY: the caller's promise.
    let from = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) };
    with_context(|s| {
        s.at_once(stream as usize, |s, on| state::told(s.device.write_on(on, to, from)))
    })
}

/// # Safety
/// `to` is valid for so many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    stream: Handle,
) -> i32 {
    // SAFETY: the caller's promise.
    let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), bytes) };
    with_context(|s| {
        s.at_once(stream as usize, |s, on| match s.device.read_on(on, from, bytes) {
            Ok(read) => {
                to.copy_from_slice(&read);
                result::SUCCESS
            }
            Err(e) => state::told::<()>(Err(e)),
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) -> i32 {
    with_context(|s| s.deed(stream as usize, Deed::Copy { to, from, bytes }))
}

/// # Safety
/// `image` is a text that ends with a zero; options are as the driver's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut Handle,
    image: *const c_void,
    n_options: c_uint,
    options: *mut c_int,
    values: *mut *mut c_void,
) -> i32 {
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy().into_owned();
    with_context(|s| match s.load(&text) {
        // SAFETY: the caller's promise.
        Ok(handle) => unsafe { give(module, handle as Handle) },
        Err(e) => {
            // The log is the first option, its size the second, as this runtime gives them.
            const ERROR_LOG_BUFFER: c_int = 5;
            // SAFETY: the caller's promise, for `n_options` of each.
            unsafe {
                if n_options == 2 && *options == ERROR_LOG_BUFFER {
                    let said = e.to_string();
                    let room = (*values.add(1) as usize).saturating_sub(1);
                    let n = said.len().min(room);
                    (*values).cast::<u8>().copy_from_nonoverlapping(said.as_ptr(), n);
                }
            }
            result::INVALID_IMAGE
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: Handle) -> i32 {
    with_context(|s| s.unload(module as usize))
}

/// # Safety
/// `name` ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut Handle,
    module: Handle,
    name: *const c_char,
) -> i32 {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    with_context(|s| match s.function(module as usize, &name) {
        // SAFETY: the caller's promise.
        Ok(handle) => unsafe { give(function, handle as Handle) },
        Err(code) => code,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: Handle, which: c_int, value: c_int) -> i32 {
    const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
    match which {
        MAX_DYNAMIC_SHARED_SIZE_BYTES => {
            with_context(|s| s.allow_shared(function as usize, value as u32))
        }
        _ => result::INVALID_VALUE,
    }
}

/// # Safety
/// `params` are as many pointers as the entry has parameters, each to a value of its size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: Handle,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> i32 {
    if !extra.is_null() {
        return result::INVALID_VALUE;
    }
    with_context(|s| {
        let sizes = match s.param_bytes(function as usize) {
            Ok(sizes) => sizes,
            Err(code) => return code,
        };
        let value = |(i, n): (usize, &u64)| {
            // SAFETY: the caller's promise.
            unsafe { std::slice::from_raw_parts((*params.add(i)).cast::<u8>(), *n as usize) }
                .to_vec()
        };
        let deed = Deed::Launch {
            function: function as usize,
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            shared_bytes,
            params: sizes.iter().enumerate().map(value).collect(),
        };
        s.deed(stream as usize, deed)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(stream: Handle, _mode: c_int) -> i32 {
    with_context(|s| s.begin_capture(stream as usize))
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) -> i32 {
    with_context(|s| match s.end_capture(stream as usize) {
        // SAFETY: the caller's promise.
        Ok(handle) => unsafe { give(graph, handle as Handle) },
        Err(code) => code,
    })
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    exec: *mut Handle,
    graph: Handle,
    _flags: u64,
) -> i32 {
    with_context(|s| match s.instantiate(graph as usize) {
        // SAFETY: the caller's promise.
        Ok(handle) => unsafe { give(exec, handle as Handle) },
        Err(code) => code,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(exec: Handle, stream: Handle) -> i32 {
    with_context(|s| s.at_once(stream as usize, |s, on| s.replay(exec as usize, on)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(exec: Handle) -> i32 {
    with(|s| s.forget(exec as usize))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: Handle) -> i32 {
    with(|s| s.forget(graph as usize))
}

/// # Safety
/// `map` has room for 128 bytes, and each array as many entries as the rank says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut [u8; TENSOR_MAP_BYTES],
    element: c_int,
    rank: c_uint,
    address: *mut c_void,
    dims: *const u64,
    strides_bytes: *const u64,
    box_dims: *const c_uint,
    element_strides: *const c_uint,
    interleave: c_int,
    swizzle: c_int,
    _promotion: c_int,
    fill: c_int,
) -> i32 {
    let n = rank as usize;
    if !(1..=5).contains(&n) || interleave != 0 {
        return result::INVALID_VALUE;
    }
    // SAFETY: the caller's promise.
    let (dims, strides_bytes, box_dims, element_strides) = unsafe {
        (
            std::slice::from_raw_parts(dims, n),
            std::slice::from_raw_parts(strides_bytes, n - 1),
            std::slice::from_raw_parts(box_dims, n),
            std::slice::from_raw_parts(element_strides, n),
        )
    };
    let element = match element {
        0 => Element::U8,
        9 => Element::Bf16,
        _ => return result::INVALID_VALUE,
    };
    let swizzle = match swizzle {
        0 => Swizzle::None,
        1 => Swizzle::B32,
        2 => Swizzle::B64,
        3 => Swizzle::B128,
        _ => return result::INVALID_VALUE,
    };
    let encoded = TensorMap {
        element,
        address: address as usize as u64,
        dims: dims.to_vec(),
        strides_bytes: strides_bytes.to_vec(),
        box_dims: box_dims.to_vec(),
        swizzle,
        fills_nan: fill != 0,
    }
    .encode();
    match encoded {
        // SAFETY: the caller's promise.
        Ok(bytes) if element_strides.iter().all(|s| *s == 1) => unsafe { give(map, bytes) },
        Ok(_) => result::INVALID_VALUE,
        Err(e) => {
            eprintln!("{e}");
            result::INVALID_VALUE
        }
    }
}
