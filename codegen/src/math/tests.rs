//! Every function against f64, over floats spread evenly over their bits, on one lane and on many.

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::targets::{InitializationConfig, Target as LlvmTarget};

use super::*;
use crate::emit::{Model, Target};

type Function = for<'c> fn(&Cg<'c>, Val<'c>) -> Val<'c>;

fn target(lanes: u32) -> Target {
    Target {
        name: "test",
        model: Model::Cpu,
        triple: "x86_64-unknown-linux-gnu",
        cpu: "x86-64-v3",
        features: "",
        lanes,
        vector_registers: 16,
        bf16_convert: false,
        bf16_dot: false,
    }
}

/// `from` converted to `to` elements by `f`, on vectors of `lanes`.
fn run<A: Copy, B: Copy + Default>(
    lanes: u32,
    (from, x): (Elem, &[A]),
    to: Elem,
    f: impl for<'c> Fn(&Cg<'c>, Val<'c>) -> Val<'c>,
) -> Vec<B> {
    assert_eq!(x.len() % lanes as usize, 0);
    LlvmTarget::initialize_x86(&InitializationConfig::default());
    let ctx = Context::create();
    let cg = Cg::new(&ctx, "test", &target(lanes));
    cg.grid_kernel("f", 2, 0, |k, block| {
        let at = cg.mul(block, i64::from(lanes));
        let y = f(&cg, cg.load(from.x(lanes), cg.at(k.buffers[0], from, at)));
        assert_eq!(y.ty, to.x(lanes));
        cg.store(y, cg.at(k.buffers[1], to, at));
    });
    cg.module.verify().unwrap();
    let engine = cg.module.create_jit_execution_engine(OptimizationLevel::Default).unwrap();
    let address = engine.get_function_address("f").unwrap();
    type Entry = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8);
    let mut y = vec![B::default(); x.len()];
    let buffers = [x.as_ptr() as *mut u8, y.as_mut_ptr().cast()];
    let blocks = (x.len() / lanes as usize) as i64;
    // SAFETY: the kernel ABI; each block reads and writes `lanes` elements of both arrays.
    unsafe {
        let entry: Entry = std::mem::transmute(address);
        entry(buffers.as_ptr(), std::ptr::null(), 0, blocks, std::ptr::null_mut());
    }
    y
}

/// Floats of `lo..=hi` with every exponent, and the special ones.
fn samples(lo: f32, hi: f32) -> Vec<f32> {
    let mut x: Vec<f32> = (0..=u32::MAX)
        .step_by(4099)
        .map(f32::from_bits)
        .filter(|x| x.is_finite() && (lo..=hi).contains(x))
        .collect();
    let n = 200_000;
    x.extend((0..n).map(|i| {
        let (lo, hi) = (lo.max(-120.0), hi.min(120.0));
        lo + (hi - lo) * i as f32 / n as f32
    }));
    x.resize(x.len().next_multiple_of(8), 1.0);
    x
}

/// The distance of `y` from `exact`, in units of the last place that f32 has there.
fn ulp_error(y: f32, exact: f64) -> f64 {
    let rounded = exact as f32;
    if y == rounded || (y.is_nan() && exact.is_nan()) {
        return 0.0;
    }
    if !rounded.is_finite() || !y.is_finite() {
        return f64::INFINITY;
    }
    let magnitude = rounded.abs().max(f32::MIN_POSITIVE);
    let ulp = f32::from_bits(magnitude.to_bits() + 1) as f64 - magnitude as f64;
    (y as f64 - exact).abs() / ulp
}

fn check(name: &str, f: Function, exact: fn(f64) -> f64, (lo, hi): (f32, f32), ulps: f64) {
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-45, 1.0, -1e-40];
    let mut x = samples(lo, hi);
    x.extend(special.iter().filter(|x| !x.is_infinite() || (lo, hi) == ALL || hi == f32::MAX));
    x.resize(x.len().next_multiple_of(8), 0.5);
    let x: Vec<f32> = x.into_iter().filter(|x| x.is_nan() || name != "rsqrt" || *x > 0.0).collect();
    let x = &x[..x.len() / 8 * 8];
    let y: Vec<f32> = run(8, (Elem::F32, x), Elem::F32, f);
    let worst = x
        .iter()
        .zip(&y)
        .map(|(&x, &y)| (ulp_error(y, exact(x as f64)), x, y))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap();
    println!("{name}: {:.3} ulp at {:e} ({:e})", worst.0, worst.1, worst.2);
    assert!(worst.0 <= ulps, "{name}({:e}) = {:e}, off by {} ulp", worst.1, worst.2, worst.0);
    let scalar: Vec<f32> = run(1, (Elem::F32, &x[..4096]), Elem::F32, f);
    for (a, b) in scalar.iter().zip(&y) {
        assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "{name}: {a:e}, {b:e}");
    }
}

const ALL: (f32, f32) = (f32::MIN, f32::MAX);

#[test]
fn exp_is_accurate() {
    check("exp", exp, f64::exp, ALL, 1.0);
}

#[test]
fn ln_is_accurate() {
    check("ln", ln, f64::ln, ALL, 0.8);
}

#[test]
fn tanh_is_accurate() {
    check("tanh", tanh, f64::tanh, ALL, 1.3);
}

#[test]
fn sigmoid_is_accurate() {
    check("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp()), ALL, 2.1);
}

#[test]
fn softplus_is_accurate() {
    let exact = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    check("softplus", softplus, exact, (-87.0, f32::MAX), 2.5);
}

#[test]
fn rsqrt_is_accurate() {
    check("rsqrt", rsqrt, |x| 1.0 / x.sqrt(), (1e-45, f32::MAX), 1.5);
}

#[test]
fn sin_and_cos_are_accurate() {
    check("sin", sin, f64::sin, (-1e9, 1e9), 1.5);
    check("cos", cos, f64::cos, (-1e9, 1e9), 1.5);
}

#[test]
fn erf_is_accurate() {
    // From tables: the standard library has no erf.
    let x = [0.0f32, 0.1, 0.5, 1.0, 1.5, 2.0, 3.0, f32::INFINITY];
    let exact = [
        0.0,
        0.112_462_916_018_284_9,
        0.520_499_877_813_046_5,
        0.842_700_792_949_714_9,
        0.966_105_146_475_310_7,
        0.995_322_265_018_952_7,
        0.999_977_909_503_001_4,
        1.0,
    ];
    let y: Vec<f32> = run(8, (Elem::F32, &x), Elem::F32, erf);
    for ((y, exact), x) in y.iter().zip(exact).zip(x) {
        let ulps = ulp_error(*y, exact);
        assert!(ulps <= 3.0, "erf({x}) = {y}, off by {ulps} ulp");
    }
}

#[test]
fn bf16_rounds_to_nearest_even() {
    let x: Vec<f32> = (0..=u32::MAX).step_by(65_521 / 16).map(f32::from_bits).collect();
    let x = &x[..x.len() / 8 * 8];
    let y: Vec<u16> =
        run::<f32, u16>(8, (Elem::F32, x), Elem::BF16, |cg, v| cg.cast(v, Elem::BF16));
    for (&x, &y) in x.iter().zip(&y) {
        if x.is_nan() {
            assert!(y & 0x7f80 == 0x7f80 && y & 0x7f != 0, "{x} became {y:04x}");
            continue;
        }
        // The candidates around x, in order of their distance, the even one first on a tie.
        let below = (x.to_bits() >> 16) as u16;
        let as_f64 = |code: u16| match code & 0x7fff {
            0x7f80 => 2f64.powi(128).copysign(f32::from_bits((code as u32) << 16) as f64),
            _ => f32::from_bits((code as u32) << 16) as f64,
        };
        let off = |code: u16| (as_f64(code) - x as f64).abs();
        let up = below.wrapping_add(1);
        let expected = if x.is_infinite() || off(below) < off(up) {
            below
        } else if off(up) < off(below) {
            up
        } else {
            below + (below & 1)
        };
        assert_eq!(y, expected, "{x:e}");
    }
    let back: Vec<f32> = run(8, (Elem::BF16, &y), Elem::F32, |cg, v| cg.cast(v, Elem::F32));
    assert!(back.iter().zip(&y).all(|(b, y)| b.to_bits() == (*y as u32) << 16));
}

#[test]
fn transpose_and_reduce() {
    let x: Vec<f32> = (0..64).map(|i| i as f32).collect();
    // Lane j of row i is taken from row j, lane i of the transpose.
    let y: Vec<f32> = run(64, (Elem::F32, &x), Elem::F32, |cg, v| {
        let rows: Vec<Val> = (0..8).map(|r| cg.slice(v, 8 * r, 8)).collect();
        let t = cg.transpose(&rows);
        let pairs: Vec<Val> = t.chunks(2).map(|p| cg.concat(p[0], p[1])).collect();
        let quads: Vec<Val> = pairs.chunks(2).map(|p| cg.concat(p[0], p[1])).collect();
        cg.concat(quads[0], quads[1])
    });
    assert!((0..64).all(|i| y[i] == x[i % 8 * 8 + i / 8]));
    let sum: Vec<f32> = run(64, (Elem::F32, &x), Elem::F32, |cg, v| cg.splat(cg.reduce_add(v), 64));
    assert_eq!(sum, vec![2016.0; 64]);
}
