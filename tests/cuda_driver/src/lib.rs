//! The part of the CUDA driver's interface that the runtime calls, on the interpreter of PTX, to
//! test `--device cuda` where there is no GPU; and of NCCL's (`nccl`).
//!
//! It is stricter than the driver: a call without a current context, a call that a capture does not
//! allow, a handle or an address that nobody gave out, more shared memory than was asked for, all
//! are errors, and so are launches of two streams that touch the same memory with no event between,
//! and copies from or to memory of the host that is not page-locked.
//! What a launch does wrong is told on stderr. Results are the driver's numbers.

mod nccl;
mod state;

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use ptx_sim::{Element, Swizzle, TENSOR_MAP_BYTES, TensorMap};
use state::{Deed, EventKind, with, with_context};

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
    unsafe { give(count, number("DRIVER_GPUS", 1)) }
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
        16 => number("DRIVER_MULTIPROCESSORS", 132),
        75 => 9, // compute capability
        76 => 0,
        _ => return result::INVALID_VALUE,
    };
    // SAFETY: the caller's promise.
    unsafe { give(value, is) }
}

/// What a test says in the environment, or what is usual.
fn number(name: &str, usual: c_int) -> c_int {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, gpu: c_int) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { give(context, (state::CONTEXT + gpu as usize) as Handle) }
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
    let kind = match flags {
        0 => EventKind::Time,
        2 => EventKind::Order,
        3 => EventKind::Host,
        _ => return result::INVALID_VALUE,
    };
    // SAFETY: the caller's promise.
    with_context(|s| unsafe { give(event, s.new_event(kind) as Handle) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> i32 {
    with_context(|s| s.record_event(event as usize, stream as usize))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: Handle) -> i32 {
    with_context(|s| s.wait_on_host(event as usize))
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
pub extern "C" fn cuStreamQuery(stream: Handle) -> i32 {
    with_context(|s| s.at_once(stream as usize, |_, _| result::SUCCESS))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: Handle) -> i32 {
    with_context(|s| {
        s.at_once(stream as usize, |s, on| {
            s.device.synchronize(on);
            result::SUCCESS
        })
    })
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
        if !s.is_locked(from.as_ptr() as usize, bytes) {
            return result::INVALID_VALUE;
        }
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
        if !s.is_locked(to.as_ptr() as usize, bytes) {
            return result::INVALID_VALUE;
        }
        s.at_once(stream as usize, |s, on| match s.device.read_on(on, from, bytes) {
            Ok(read) => {
                // Whoever reads waits for the copy.
                s.device.synchronize(on);
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

/// What code for a GPU begins with here; then its length, eight bytes, and its text.
const CODE: &[u8; 8] = b"PTX-CODE";

/// # Safety
/// The log's address and its size are the two options, and it lives as long as the link.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLinkCreate_v2(
    n_options: c_uint,
    options: *mut c_int,
    values: *mut *mut c_void,
    link: *mut Handle,
) -> i32 {
    const ERROR_LOG_BUFFER: c_int = 5;
    // SAFETY: the caller's promise.
    let log = unsafe {
        if n_options != 2 || *options != ERROR_LOG_BUFFER {
            return result::INVALID_VALUE;
        }
        (*values as usize, *values.add(1) as usize)
    };
    // SAFETY: the caller's promise.
    with_context(|s| unsafe { give(link, s.new_link(log) as Handle) })
}

/// # Safety
/// `data` is a text of `n_bytes` that ends with a zero; the log of the link lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLinkAddData_v2(
    link: Handle,
    kind: c_int,
    data: *const c_void,
    n_bytes: usize,
    _name: *const c_char,
    _n_options: c_uint,
    _options: *mut c_int,
    _values: *mut *mut c_void,
) -> i32 {
    const INPUT_PTX: c_int = 1;
    // SAFETY: the caller's promise.
    let text = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), n_bytes) };
    let Ok(text) = CStr::from_bytes_with_nul(text) else { return result::INVALID_VALUE };
    // A test's way to see that what is kept is not assembled again.
    let fails = std::env::var_os("DRIVER_ASSEMBLES_NOTHING").is_some();
    let told = if fails { Err("nothing is assembled here".into()) } else { Ok(()) };
    let text = text.to_string_lossy().into_owned();
    let check = |_| ptx_sim::Module::load(&text).map_err(|e| e.to_string());
    let checked = told.and_then(check);
    with_context(|s| {
        let (Some(log), INPUT_PTX) = (s.log(link as usize), kind) else {
            return result::INVALID_HANDLE;
        };
        let Err(said) = checked else {
            let (bytes, size) = (text.as_bytes(), (text.len() as u64).to_le_bytes());
            return s.assembled(link as usize, [&CODE[..], &size[..], bytes].concat());
        };
        let n = said.len().min(log.1.saturating_sub(1));
        // SAFETY: the caller's promise, of `cuLinkCreate`.
        unsafe { (log.0 as *mut u8).copy_from_nonoverlapping(said.as_ptr(), n) };
        result::INVALID_IMAGE
    })
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLinkComplete(
    link: Handle,
    code: *mut *mut c_void,
    n_bytes: *mut usize,
) -> i32 {
    with_context(|s| match s.code(link as usize) {
        // SAFETY: the caller's promise.
        Some((at, n)) => unsafe {
            give(code, at as *mut c_void);
            give(n_bytes, n)
        },
        None => result::INVALID_HANDLE,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLinkDestroy(link: Handle) -> i32 {
    with_context(|s| s.drop_link(link as usize))
}

/// # Safety
/// `image` is code that a link gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut Handle, image: *const c_void) -> i32 {
    let at = image.cast::<u8>();
    // SAFETY: the caller's promise; nothing behind the first bytes is read if they are not code's.
    let text = unsafe {
        if std::slice::from_raw_parts(at, CODE.len()) != CODE {
            return result::INVALID_IMAGE;
        }
        let n = u64::from_le_bytes(*at.add(8).cast::<[u8; 8]>());
        std::slice::from_raw_parts(at.add(16), n as usize)
    };
    let text = String::from_utf8_lossy(text).into_owned();
    with_context(|s| match s.load(&text) {
        // SAFETY: the caller's promise.
        Ok(handle) => unsafe { give(module, handle as Handle) },
        Err(_) => result::INVALID_IMAGE,
    })
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(at: *mut *mut c_void, n_bytes: usize) -> i32 {
    // SAFETY: the caller's promise.
    with_context(|s| unsafe { give(at, s.alloc_host(n_bytes) as *mut c_void) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(at: *mut c_void) -> i32 {
    with_context(|s| s.free_host(at as usize))
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

/// A launch as the driver is told of it.
#[repr(C)]
pub struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: Handle,
    attributes: *const Attribute,
    n_attributes: c_uint,
}

#[repr(C)]
pub struct Attribute {
    id: c_int,
    pad: [c_char; 4],
    value: [c_uint; 16],
}

/// # Safety
/// `params` are as many pointers as the entry has parameters, each to a value of its size, and
/// attributes are as many as the configuration says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(
    config: *const LaunchConfig,
    function: Handle,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> i32 {
    const CLUSTER_DIMENSION: c_int = 4;
    if !extra.is_null() {
        return result::INVALID_VALUE;
    }
    // SAFETY: the caller's promise.
    let config = unsafe { &*config };
    let attributes = match config.n_attributes {
        0 => &[],
        // SAFETY: the caller's promise.
        n => unsafe { std::slice::from_raw_parts(config.attributes, n as usize) },
    };
    let mut cluster = [1; 3];
    for attribute in attributes {
        match attribute.id {
            CLUSTER_DIMENSION => cluster.copy_from_slice(&attribute.value[..3]),
            _ => return result::INVALID_VALUE,
        }
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
            grid: config.grid,
            block: config.block,
            cluster,
            shared_bytes: config.shared_bytes,
            params: sizes.iter().enumerate().map(value).collect(),
        };
        s.deed(config.stream as usize, deed)
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
