//! Pointwise and row kernels as LLVM prints them, against loops written apart.

use half::bf16;
use ptx_sim::{Arg, Device, ErrorKind, Launch, Module};

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn read_f32(device: &Device, address: u64, n: usize) -> Vec<f32> {
    let bytes = device.read(address, 4 * n).expect("allocated");
    bytes.chunks(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

/// Numbers in -1..1 that differ from seed to seed.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn vectors_are_added_up_to_their_tail() {
    let module = Module::load(include_str!("ptx/vector_add.ptx")).expect("known");
    let mut device = Device::new();
    let n = 150;
    let (x, y) = (noise(n, 1), noise(n, 2));
    let px = device.alloc_from(&f32_bytes(&x));
    let py = device.alloc_from(&f32_bytes(&y));
    let pz = device.alloc(4 * n);
    let args = [Arg::Ptr(px), Arg::Ptr(py), Arg::Ptr(pz), Arg::I32(n as i32)];
    let stats = device.launch(&module, "vector_add", &Launch::new(3, 64), &args).expect("runs");
    let sums: Vec<f32> = x.iter().zip(&y).map(|(a, b)| a + b).collect();
    assert_eq!(read_f32(&device, pz, n), sums);
    // Five of the six warps have lanes within 150 elements.
    assert_eq!(stats.n_by_opcode["st.global.b32"], 5);
}

#[test]
fn a_wrong_length_is_out_of_bounds() {
    let module = Module::load(include_str!("ptx/vector_add.ptx")).expect("known");
    let mut device = Device::new();
    let p = device.alloc(4 * 150);
    let args = [Arg::Ptr(p), Arg::Ptr(p), Arg::Ptr(p), Arg::I32(151)];
    let error = device.launch(&module, "vector_add", &Launch::new(3, 64), &args).unwrap_err();
    assert_eq!(error.kind, ErrorKind::OutOfBounds, "{error}");
    assert!(error.line > 0 && error.message.contains("ld.global"), "{error}");
}

/// Line information as LLVM prints it: the file's name after the function, sections, inlining.
#[test]
fn errors_name_the_line_of_the_source() {
    let module = Module::load(include_str!("ptx/located.ptx")).expect("known");
    let error = Device::new().launch(&module, "increment", &Launch::new(1, 1), &[Arg::Ptr(64)]);
    let error = error.unwrap_err();
    let source = error.source_line.clone().expect("there is line information");
    assert_eq!((source.file.as_str(), source.line), ("nano.model", 4));
    assert!(error.to_string().contains("(nano.model:4): increment: `ld.global.b32`"), "{error}");
}

#[test]
fn arguments_and_shapes_are_checked() {
    let module = Module::load(include_str!("ptx/vector_add.ptx")).expect("known");
    let mut device = Device::new();
    let short = device.launch(&module, "vector_add", &Launch::new(3, 64), &[]).unwrap_err();
    assert_eq!(short.kind, ErrorKind::Launch);
    let block = device.launch(&module, "vector_add", &Launch::new(3, 32), &[]).unwrap_err();
    assert!(block.message.contains("requires [64, 1, 1]"), "{block}");
    let name = device.launch(&module, "vector_sub", &Launch::new(3, 64), &[]).unwrap_err();
    assert!(name.message.contains("vector_sub"), "{name}");
}

#[test]
fn rows_of_bf16_go_through_softmax() {
    let module = Module::load(include_str!("ptx/softmax.ptx")).expect("known");
    let mut device = Device::new();
    let (rows, cols) = (3, 96);
    let x: Vec<bf16> = noise(rows * cols, 3).iter().map(|v| bf16::from_f32(8.0 * v)).collect();
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let px = device.alloc_from(&bytes);
    let py = device.alloc(bytes.len());
    let args = [Arg::Ptr(px), Arg::Ptr(py), Arg::I32(cols as i32)];
    device.launch(&module, "softmax", &Launch::new(rows as u32, 32), &args).expect("runs");
    let out = device.read(py, 2 * rows * cols).expect("allocated");
    for (i, row) in x.chunks(cols).enumerate() {
        let exps: Vec<f64> = row.iter().map(|v| v.to_f64().exp()).collect();
        let sum: f64 = exps.iter().sum();
        for (j, e) in exps.iter().enumerate() {
            let at = 2 * (i * cols + j);
            let got = bf16::from_le_bytes([out[at], out[at + 1]]).to_f64();
            let want = e / sum;
            // Half a unit of bf16 and a little.
            assert!((got - want).abs() <= want * 0.0040, "row {i}, {j}: {got}, not {want}");
        }
    }
}

#[test]
fn integers_divide_branch_and_shift() {
    let module = Module::load(include_str!("ptx/softmax.ptx")).expect("known");
    for q in [100u64, u64::MAX - 7, 1 << 40] {
        let mut device = Device::new();
        let p = device.alloc(8 * 32);
        let args = [Arg::Ptr(p), Arg::U64(q)];
        device.launch(&module, "integers", &Launch::new(1, 32), &args).expect("runs");
        for t in 0..32usize {
            let by = [3, 5, 7, 11][t % 4];
            let both = (q / by).wrapping_add(q % by);
            let want = match t {
                1 => both.wrapping_mul(3),
                2 => !both,
                3 => ((both as i64) >> 2) as u64,
                4 => both << 5,
                _ => both,
            };
            let bytes = device.read(p + 8 * t as u64, 8).expect("allocated");
            assert_eq!(bytes, want.to_le_bytes(), "thread {t}, q {q}");
        }
    }
}

#[test]
fn extremes_stop_at_zero_where_they_are_told_to() {
    let text = ".version 8.3\n.target sm_90a\n.address_size 64
        .visible .entry k(.param .u64 p) {
            .reg .b32 %r<6>; .reg .b64 %d<2>;
            ld.param.b64 %d1, [p];
            ld.global.v2.b32 {%r1, %r2}, [%d1];
            min.relu.s32 %r3, %r1, %r2;
            max.relu.s32 %r4, %r1, %r2;
            st.global.v2.b32 [%d1+8], {%r3, %r4};
            ret;
        }";
    let module = Module::load(text).expect("known");
    for (a, b) in [(-3, 5), (7, 2), (-4, -9), (0, -1)] {
        let mut device = Device::new();
        let bytes: Vec<u8> = [a, b, 77, 77].iter().flat_map(|x: &i32| x.to_le_bytes()).collect();
        let p = device.alloc_from(&bytes);
        device.launch(&module, "k", &Launch::new(1, 1), &[Arg::Ptr(p)]).expect("runs");
        let want = [a.min(b).max(0), a.max(b).max(0)].map(i32::to_le_bytes).concat();
        assert_eq!(device.read(p + 8, 8).expect("there"), want, "{a} and {b}");
    }
    let wide = text.replace("relu.s32", "relu.u32");
    assert!(Module::load(&wide).is_err_and(|e| e.message.contains("relu")));
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let load = |line: &str| {
        let text = format!(
            ".version 8.3\n.target sm_90a\n.address_size 64\n.visible .entry k()\n{{\n\
             .reg .b32 %r<4>;\n{line}\nret;\n}}"
        );
        Module::load(&text).err().unwrap_or_else(|| panic!("{line} was taken"))
    };
    for (line, named) in [
        ("frobnicate.u32 %r1, %r2;", "frobnicate.u32"),
        ("add.rz.f32 %r1, %r2, %r3;", ".rz"),
        ("mul.hi.lo.u32 %r1, %r2, %r3;", ".lo"),
        ("mma.sync.aligned.m16n8k16.f32 %r1, %r2;", "mma.sync"),
        ("ld.global.v8.b32 %r1, [%r2];", "Blackwell"),
        ("add.s32 %r1, %r2, %r9;", "%r9"),
        ("bra nowhere;", "nowhere"),
    ] {
        let error = load(line);
        assert!(error.message.contains(named), "{line}: {error}");
        assert_eq!(error.line, 7, "{line}: {error}");
    }
}

#[test]
fn what_llvm_prints_is_known() {
    for text in [include_str!("ptx/wide_o0.ptx"), include_str!("ptx/wide_o3.ptx")] {
        let module = Module::load(text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(module.kernels().collect::<Vec<_>>(), ["hopper", "math"]);
        let opcodes = module.opcodes("hopper").expect("there");
        assert_eq!(opcodes["setmaxnreg.inc.sync.aligned.u32"], 1);
    }
}
