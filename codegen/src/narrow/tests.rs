//! Every code, and every f32 near a rounding decision, against `weft_ir::formats`; on AVX2 and, if
//! the machine has it, on AVX-512, without and with what comes with its products of bf16.
//!
//! `WEFT_ALL=1 cargo test --release -p weft-codegen narrow` runs over all 2^32 floats.

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::targets::{InitializationConfig, Target as LlvmTarget};
use weft_ir::formats::{self, E4M3, E5M2, E5M6};

use super::*;
use crate::emit::{Model, Target};

/// `x` (32-bit words) through `f`, on vectors of 8 lanes, and of 16 where the machine has them.
fn run(x: &[u32], f: impl for<'c> Fn(&Cg<'c>, Val<'c>) -> Val<'c>) -> Vec<(u32, Vec<u32>)> {
    LlvmTarget::initialize_x86(&InitializationConfig::default());
    let wide = std::arch::is_x86_feature_detected!("avx512bw");
    let wide = |dot| wide.then_some((16, "x86-64-v4", dot));
    let lanes = [Some((8, "x86-64-v3", false)), wide(false), wide(true)];
    let on = |(lanes, cpu, bf16_dot): (u32, &'static str, bool)| {
        let target = Target {
            name: "test",
            model: Model::Cpu,
            triple: "x86_64-unknown-linux-gnu",
            cpu,
            features: "",
            lanes,
            vector_registers: 16,
            bf16_convert: false,
            bf16_dot,
        };
        let ctx = Context::create();
        let cg = Cg::new(&ctx, "test", &target);
        cg.grid_kernel("f", 2, 0, |k, block| {
            let at = cg.mul(block, i64::from(lanes));
            let y = f(&cg, cg.load(Elem::I32.x(lanes), cg.at(k.buffers[0], Elem::I32, at)));
            cg.store(y, cg.at(k.buffers[1], Elem::I32, at));
        });
        cg.module.verify().unwrap();
        let engine = cg.module.create_jit_execution_engine(OptimizationLevel::Default).unwrap();
        let address = engine.get_function_address("f").unwrap();
        type Entry = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8);
        let mut y = vec![0u32; x.len()];
        let buffers = [x.as_ptr() as *mut u8, y.as_mut_ptr().cast()];
        let blocks = (x.len() / lanes as usize) as i64;
        // SAFETY: the kernel ABI; each block reads and writes `lanes` words of both arrays.
        unsafe {
            let entry: Entry = std::mem::transmute(address);
            entry(buffers.as_ptr(), std::ptr::null(), 0, blocks, std::ptr::null_mut());
        }
        (lanes, y)
    };
    lanes.into_iter().flatten().map(on).collect()
}

/// `f` on every word of `x` gives the word that `exact` gives.
fn check(
    what: &str,
    x: &[u32],
    f: impl for<'c> Fn(&Cg<'c>, Val<'c>) -> Val<'c>,
    exact: impl Fn(u32) -> u32,
) {
    let mut padded = x.to_vec();
    padded.resize(x.len().next_multiple_of(16), 0);
    for (lanes, y) in run(&padded, f) {
        for (x, y) in padded.iter().zip(y) {
            assert_eq!(y, exact(*x), "{what} of {x:#x} on {lanes} lanes");
        }
    }
}

fn floats() -> Vec<u32> {
    let low = [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
    (0..=0xffffu32).flat_map(|high| low.map(|low| high << 16 | low)).collect()
}

/// NaN, whatever its payload, is one.
fn one_nan(x: f32) -> u32 {
    if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }
}

#[test]
fn codes_become_values() {
    for format in [E4M3, E5M2, E5M6] {
        let codes: Vec<u32> = (0..1 << format.bits()).collect();
        let decoded = |y: u32| one_nan(f32::from_bits(y));
        for (lanes, y) in run(&codes, |cg, x| cg.bitcast(decode(cg, x, format), x.ty)) {
            for (code, y) in codes.iter().zip(y) {
                let want = one_nan(format.decode(*code as u16));
                assert_eq!(decoded(y), want, "{format:?} {code:#x} on {lanes} lanes");
            }
        }
    }
}

#[test]
fn codes_become_bf16() {
    for format in [E4M3, E5M2] {
        let codes: Vec<u32> = (0..1 << format.bits()).collect();
        let y = run(&codes, |cg, x| {
            let y = decode_bf16(cg, cg.cast(x, Elem::I8), format);
            cg.zext(cg.bitcast(y, y.ty.with(Elem::I16)), Elem::I32)
        });
        for (lanes, y) in y {
            for (code, y) in codes.iter().zip(y) {
                let (got, want) = (f32::from_bits(y << 16), format.decode(*code as u16));
                assert_eq!(one_nan(got), one_nan(want), "{format:?} {code:#x} on {lanes} lanes");
            }
        }
    }
}

#[test]
fn values_become_codes() {
    for format in [E4M3, E5M2, E5M6] {
        let exact = |x: u32| u32::from(format.encode(f32::from_bits(x)));
        check(
            &format!("{format:?}"),
            &floats(),
            |cg, x| encode(cg, cg.bitcast(x, x.ty.with(Elem::F32)), format),
            exact,
        );
        if std::env::var_os("WEFT_ALL").is_some() {
            for high in 0..=0xffu32 {
                let all: Vec<u32> = (0..1 << 24).map(|low| high << 24 | low).collect();
                check(
                    &format!("{format:?}"),
                    &all,
                    |cg, x| encode(cg, cg.bitcast(x, x.ty.with(Elem::F32)), format),
                    exact,
                );
            }
        }
    }
}

#[test]
fn scales() {
    let codes: Vec<u32> = (0..256).collect();
    check(
        "ue8m0",
        &codes,
        |cg, x| cg.bitcast(decode_scale(cg, x), x.ty),
        |code| one_nan(formats::decode_ue8m0(code as u8)),
    );
    check(
        "a scale",
        &floats(),
        |cg, x| encode_scale(cg, cg.bitcast(x, x.ty.with(Elem::F32))),
        |x| u32::from(formats::encode_ue8m0(f32::from_bits(x))),
    );
}
