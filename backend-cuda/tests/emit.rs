//! Kernels from the builder as PTX, run on the interpreter.

use ptx_sim::{Arg, Device, Launch, Module};
use weft_backend_cuda::target::hopper;
use weft_codegen::emit::{Cg, Cmp, Elem, Frame, Ty};
use weft_codegen::object::{KernelSource, compile};

fn load(source: KernelSource) -> (Module, String) {
    let object = compile(&hopper(), &[source]).unwrap();
    let text = String::from_utf8(object.bytes).unwrap();
    let module = Module::load(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    (module, text)
}

fn bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// `y[i] = a x[i]` for `i < n`, a thread an element.
#[test]
fn each_thread_is_a_block() {
    let source = KernelSource::new("scaled", "test", |cg: &Cg| {
        cg.framed_kernel("scaled", Frame::threads(64, 0), 2, 2, |k| {
            cg.when(cg.cmp(Cmp::Lt, k.begin, k.scalars[0]), || {
                let x = cg.load(Ty::F32, cg.at(k.buffers[0], Elem::F32, k.begin));
                let y = cg.mul(x, cg.scalar_f32(k, 1));
                cg.store(y, cg.at(k.buffers[1], Elem::F32, k.begin));
            });
        });
    });
    let (module, text) = load(source);
    assert!(text.contains(".version 8.3") && text.contains(".target sm_90a"), "{text}");
    assert!(text.contains(".reqntid 64"), "{text}");
    assert!(text.contains("ld.global") && text.contains("st.global"), "{text}");
    let mut device = Device::new();
    let n = 100;
    let x = device.alloc_from(&bytes((0..n).map(|i| i as f32)));
    let y = device.alloc(4 * n);
    let args =
        [Arg::Ptr(x), Arg::Ptr(y), Arg::I64(n as i64), Arg::I64(i64::from(0.5f32.to_bits()))];
    device.launch(&module, "scaled", &Launch::new(2, 64), &args).unwrap();
    let expected: Vec<f32> = (0..n).map(|i| i as f32 * 0.5).collect();
    assert_eq!(floats(device.read(y, 4 * n).unwrap()), expected);
}

/// Every lane has the sum; the numbers are whole, so its order does not matter.
#[test]
fn a_warp_folds_its_lanes() {
    let source = KernelSource::new("sums", "test", |cg: &Cg| {
        cg.framed_kernel("sums", Frame::threads(32, 0), 2, 0, |k| {
            let x = cg.load(Ty::F32, cg.at(k.buffers[0], Elem::F32, k.begin));
            let sum = cg.reduce_warp(x, |a, b| cg.add(a, b));
            cg.store(sum, cg.at(k.buffers[1], Elem::F32, k.begin));
        });
    });
    let (module, _) = load(source);
    let mut device = Device::new();
    let x = device.alloc_from(&bytes((0..64).map(|i| i as f32)));
    let y = device.alloc(256);
    device.launch(&module, "sums", &Launch::new(2, 32), &[Arg::Ptr(x), Arg::Ptr(y)]).unwrap();
    let (low, high) = ((0..32).sum::<i32>() as f32, (32..64).sum::<i32>() as f32);
    let expected: Vec<f32> = [low; 32].into_iter().chain([high; 32]).collect();
    assert_eq!(floats(device.read(y, 256).unwrap()), expected);
}

/// Scratch is a thread's own: each reverses four numbers through it.
#[test]
fn scratch_is_private() {
    let source = KernelSource::new("reversed", "test", |cg: &Cg| {
        cg.framed_kernel("reversed", Frame::threads(32, 16), 2, 0, |k| {
            let first = cg.mul(k.begin, 4);
            cg.for_each(cg.i64(0), cg.i64(4), 1, |i| {
                let x = cg.load(Ty::F32, cg.at(k.buffers[0], Elem::F32, cg.add(first, i)));
                cg.store(x, cg.at(k.scratch, Elem::F32, cg.sub(cg.i64(3), i)));
            });
            cg.for_each(cg.i64(0), cg.i64(4), 1, |i| {
                let x = cg.load(Ty::F32, cg.at(k.scratch, Elem::F32, i));
                cg.store(x, cg.at(k.buffers[1], Elem::F32, cg.add(first, i)));
            });
        });
    });
    let (module, _) = load(source);
    let mut device = Device::new();
    let x = device.alloc_from(&bytes((0..128).map(|i| i as f32)));
    let y = device.alloc(512);
    device.launch(&module, "reversed", &Launch::new(1, 32), &[Arg::Ptr(x), Arg::Ptr(y)]).unwrap();
    let expected: Vec<f32> = (0..128).map(|i| (i / 4 * 4 + 3 - i % 4) as f32).collect();
    assert_eq!(floats(device.read(y, 512).unwrap()), expected);
}
