//! A warp-specialised product, written by hand: a producer fills a ring of stages by TMA, a
//! warpgroup multiplies them by wgmma. In bf16, and in e4m3 with block scales promoted into f32.
//! Then the same kernel with one thing wrong at a time, each found by name.

use half::bf16;
use ptx_sim::{
    Accumulate, Arg, Completion, Device, Element, Error, ErrorKind, Launch, Module, Stats, Swizzle,
    TensorMap,
};

const TILE: usize = 64;
const STAGES: usize = 3;
const STAGE_BYTES: usize = 2 * TILE * 128;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Bf16,
    E4m3,
    /// A in e5m2, B in e4m3.
    Mixed,
}

/// The kernel's text. `%acc` are the 32 accumulators, `%sum` what is promoted of them.
fn kernel(kind: Kind) -> String {
    let registers = |name: &str| (0..32).map(|i| format!("%{name}{i}")).collect::<Vec<_>>();
    let acc = registers("acc").join(", ");
    let (shape, transposed) = match kind {
        Kind::Bf16 => ("m64n64k16.f32.bf16.bf16", ", 0, 0"),
        Kind::E4m3 => ("m64n64k32.f32.e4m3.e4m3", ""),
        Kind::Mixed => ("m64n64k32.f32.e5m2.e4m3", ""),
    };
    let init: String = (0..STAGES)
        .map(|s| {
            format!(
                "mbarrier.init.shared::cta.b64 [%r4+{0}], 1;\n\
                 mbarrier.init.shared::cta.b64 [%r5+{0}], 4;\n",
                8 * s
            )
        })
        .collect();
    let products: String = (0..4)
        .map(|k| {
            format!(
                "{{\n.reg .b64 da, db;\n.reg .pred p;\nadd.s64 da, %d10, {0};\n\
                 add.s64 db, %d11, {0};\nsetp.ne.b32 p, %r30, 0;\n\
                 wgmma.mma_async.sync.aligned.{shape} {{{acc}}}, da, db, p, 1, 1{transposed};\n\
                 }}\nmov.b32 %r30, 1;\n",
                2 * k
            )
        })
        .collect();
    let promote: String = match kind {
        Kind::Bf16 => (0..32).map(|i| format!("mov.b32 %sum{i}, %acc{i};\n")).collect(),
        Kind::E4m3 | Kind::Mixed => (0..32)
            .map(|i| {
                let scale = if i / 2 % 2 == 0 { "%f2" } else { "%f3" };
                format!("fma.rn.f32 %sum{i}, %acc{i}, {scale}, %sum{i};\n")
            })
            .collect(),
    };
    let scales = match kind {
        // Accumulators go on from block to block.
        Kind::Bf16 => "mov.b32 %r30, 1;".to_string(),
        Kind::E4m3 | Kind::Mixed => "
mov.b32 %r30, 0;
mad.lo.u32 %r40, %r20, %r7, %r33;
mul.wide.u32 %d20, %r40, 4;
add.s64 %d20, %d20, %d3;
ld.global.f32 %f1, [%d20];
ld.global.f32 %f4, [%d20+32];
mad.lo.u32 %r41, %ctaid.y, %r9, %r20;
mul.wide.u32 %d21, %r41, 4;
add.s64 %d21, %d21, %d4;
ld.global.f32 %f5, [%d21];
mul.rn.f32 %f2, %f1, %f5;
mul.rn.f32 %f3, %f4, %f5;"
            .to_string(),
    };
    let zero: String = (0..32).map(|i| format!("mov.b32 %sum{i}, 0f00000000;\n")).collect();
    let store: String = (0..32)
        .step_by(2)
        .map(|i| {
            let (base, at) = (if i / 2 % 2 == 0 { "%d30" } else { "%d31" }, i / 4 * 32);
            format!("st.global.v2.f32 [{base}+{at}], {{%sum{i}, %sum{}}};\n", i + 1)
        })
        .collect();
    let coordinate_step = match kind {
        Kind::Bf16 => 64,
        Kind::E4m3 | Kind::Mixed => 128,
    };
    format!(
        ".version 8.3
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 smem[];
.visible .entry gemm(
.param .align 64 .b8 map_a[128],
.param .align 64 .b8 map_b[128],
.param .u64 c, .param .u64 scales_a, .param .u64 scales_b,
.param .u32 rows, .param .u32 cols, .param .u32 k_blocks)
.reqntid 160
.minnctapersm 1
{{
.reg .pred %p<10>;
.reg .b32 %r<60>;
.reg .b64 %d<40>;
.reg .b32 %acc<32>;
.reg .b32 %sum<32>;
.reg .b32 %f<8>;
.file 1 \"gemm.model\"
.loc 1 3 1
ld.param.b64 %d2, [c];
ld.param.b64 %d3, [scales_a];
ld.param.b64 %d4, [scales_b];
ld.param.b32 %r7, [rows];
ld.param.b32 %r8, [cols];
ld.param.b32 %r9, [k_blocks];
mov.b64 %d5, map_a;
cvta.param.u64 %d6, %d5;
mov.b64 %d7, map_b;
cvta.param.u64 %d8, %d7;
mov.u32 %r1, %tid.x;
shr.u32 %r2, %r1, 5;
mov.b32 %r3, smem;
add.s32 %r4, %r3, {barriers};
add.s32 %r5, %r4, {empties};
setp.ne.s32 %p1, %r1, 0;
@%p1 bra INITIALISED;
{init}fence.mbarrier_init.release.cluster;
INITIALISED:
bar.sync 0;
mov.u32 %r10, %ctaid.x;
shl.b32 %r11, %r10, 6;
mov.u32 %r12, %ctaid.y;
shl.b32 %r13, %r12, 6;
mov.b32 %r20, 0;
mov.b32 %r21, 0;
setp.ne.s32 %p2, %r2, 4;
@%p2 bra CONSUMER;
setmaxnreg.dec.sync.aligned.u32 40;
elect.sync %r14|%p3, -1;
@!%p3 bra DONE;
mov.b32 %r22, 1;
PRODUCE:
mad.lo.s32 %r23, %r21, {STAGE_BYTES}, %r3;
mad.lo.s32 %r24, %r21, 8, %r4;
mad.lo.s32 %r25, %r21, 8, %r5;
WAIT_EMPTY:
mbarrier.try_wait.parity.shared::cta.b64 %p4, [%r25], %r22;
@!%p4 bra WAIT_EMPTY;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r24], {STAGE_BYTES};
mul.lo.s32 %r26, %r20, {coordinate_step};
add.s32 %r27, %r23, {half};
cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes \
[%r23], [%d6, {{%r26, %r11}}], [%r24];
cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes \
[%r27], [%d8, {{%r26, %r13}}], [%r24];
add.s32 %r20, %r20, 1;
add.s32 %r21, %r21, 1;
setp.eq.s32 %p5, %r21, {STAGES};
selp.b32 %r21, 0, %r21, %p5;
@%p5 xor.b32 %r22, %r22, 1;
setp.lt.s32 %p6, %r20, %r9;
@%p6 bra PRODUCE;
bra.uni DONE;
CONSUMER:
.loc 1 7 1
{zero}mov.b32 %r22, 0;
mov.b32 %r30, 0;
and.b32 %r31, %r1, 31;
shl.b32 %r32, %r2, 4;
shr.u32 %r33, %r31, 2;
add.s32 %r33, %r33, %r32;
add.s32 %r33, %r33, %r11;
setp.eq.s32 %p7, %r31, 0;
CONSUME:
mad.lo.s32 %r23, %r21, {STAGE_BYTES}, %r3;
mad.lo.s32 %r24, %r21, 8, %r4;
mad.lo.s32 %r25, %r21, 8, %r5;
WAIT_FULL:
mbarrier.try_wait.parity.shared::cta.b64 %p4, [%r24], %r22;
@!%p4 bra WAIT_FULL;
and.b32 %r35, %r23, 262143;
shr.u32 %r36, %r35, 4;
cvt.u64.u32 %d9, %r36;
or.b64 %d10, %d9, 4611686293305360384;
add.s64 %d11, %d10, {half_16};
wgmma.fence.sync.aligned;
{products}wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
@%p7 mbarrier.arrive.shared::cta.b64 _, [%r25];
{scales}
{promote}add.s32 %r20, %r20, 1;
add.s32 %r21, %r21, 1;
setp.eq.s32 %p5, %r21, {STAGES};
selp.b32 %r21, 0, %r21, %p5;
@%p5 xor.b32 %r22, %r22, 1;
setp.lt.s32 %p6, %r20, %r9;
@%p6 bra CONSUME;
and.b32 %r50, %r31, 3;
shl.b32 %r50, %r50, 1;
add.s32 %r50, %r50, %r13;
mad.lo.s32 %r51, %r33, %r8, %r50;
mul.wide.u32 %d29, %r51, 4;
add.s64 %d30, %d2, %d29;
mul.wide.u32 %d28, %r8, 32;
add.s64 %d31, %d30, %d28;
{store}DONE:
ret;
}}
",
        barriers = STAGES * STAGE_BYTES,
        empties = 8 * STAGES,
        half = STAGE_BYTES / 2,
        half_16 = STAGE_BYTES / 32,
    )
}

struct Case {
    kind: Kind,
    rows: usize,
    cols: usize,
    k: usize,
}

/// Bits of the operands and what they stand for.
struct Operand {
    bytes: Vec<u8>,
    values: Vec<f64>,
}

fn operand(kind: Kind, n: usize, seed: u64) -> Operand {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let (mut bytes, mut values) = (vec![], vec![]);
    for _ in 0..n {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        match kind {
            Kind::Bf16 => {
                let value = bf16::from_f32((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0);
                bytes.extend(value.to_le_bytes());
                values.push(value.to_f64());
            }
            Kind::E4m3 => {
                // Exponents 3 to 10 of 15: sign, magnitude (8 + m) * 2^(e - 10).
                let (sign, e, m) = (state >> 60 & 1, 3 + (state >> 50) % 8, state >> 40 & 7);
                bytes.push((sign << 7 | e << 3 | m) as u8);
                let magnitude = (8 + m) as f64 * 2f64.powi(e as i32 - 10);
                values.push(if sign == 1 { -magnitude } else { magnitude });
            }
            Kind::Mixed => {
                // As e5m2, exponents 11 to 18 of 31: magnitude (4 + m) * 2^(e - 17).
                let (sign, e, m) = (state >> 60 & 1, 11 + (state >> 50) % 8, state >> 40 & 3);
                bytes.push((sign << 7 | e << 2 | m) as u8);
                let magnitude = (4 + m) as f64 * 2f64.powi(e as i32 - 17);
                values.push(if sign == 1 { -magnitude } else { magnitude });
            }
        }
    }
    Operand { bytes, values }
}

impl Case {
    fn element_bytes(&self) -> usize {
        if self.kind == Kind::Bf16 { 2 } else { 1 }
    }

    fn k_blocks(&self) -> usize {
        self.k * self.element_bytes() / 128
    }

    fn map(&self, address: u64, rows: usize) -> Arg {
        let element = if self.kind == Kind::Bf16 { Element::Bf16 } else { Element::U8 };
        Arg::TensorMap(TensorMap {
            element,
            address,
            dims: vec![self.k as u64, rows as u64],
            strides_bytes: vec![(self.k * self.element_bytes()) as u64],
            box_dims: vec![128 / self.element_bytes() as u32, TILE as u32],
            swizzle: Swizzle::B128,
            fills_nan: false,
        })
    }

    /// Runs a text and gives the largest error, as a share of the largest result.
    fn run(&self, text: &str, change: impl Fn(&mut Launch)) -> Result<(f64, Stats), Error> {
        let module = Module::load(text)?;
        let mut device = Device::new();
        let (m, n, k, blocks) = (self.rows, self.cols, self.k, self.k_blocks());
        let kind_b = if self.kind == Kind::Mixed { Kind::E4m3 } else { self.kind };
        let (a, b) = (operand(self.kind, m * k, 5), operand(kind_b, n * k, 6));
        let scale = |i: usize| 0.5 + (i * 37 % 101) as f32 / 64.0;
        let scales_a: Vec<f32> = (0..blocks * m).map(scale).collect();
        let scales_b: Vec<f32> = (0..n / TILE * blocks).map(|i| scale(i + 13)).collect();
        let f32_bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let (pa, pb) = (device.alloc_from(&a.bytes), device.alloc_from(&b.bytes));
        let psa = device.alloc_from(&f32_bytes(&scales_a));
        let psb = device.alloc_from(&f32_bytes(&scales_b));
        let pc = device.alloc(4 * m * n);
        let args = [
            self.map(pa, m),
            self.map(pb, n),
            Arg::Ptr(pc),
            Arg::Ptr(psa),
            Arg::Ptr(psb),
            Arg::U32(m as u32),
            Arg::U32(n as u32),
            Arg::U32(blocks as u32),
        ];
        let mut launch = Launch::new(1, 160);
        launch.grid = [(m / TILE) as u32, (n / TILE) as u32, 1];
        launch.dynamic_shared_bytes = (STAGES * STAGE_BYTES + 16 * STAGES) as u32;
        change(&mut launch);
        let stats = device.launch(&module, "gemm", &launch, &args)?;
        let out = device.read(pc, 4 * m * n)?;
        let (mut worst, mut largest) = (0f64, 0f64);
        for row in 0..m {
            for col in 0..n {
                let mut want = 0.0;
                for i in 0..k {
                    let block = i * self.element_bytes() / 128;
                    let scale = match self.kind {
                        Kind::Bf16 => 1.0,
                        Kind::E4m3 | Kind::Mixed => {
                            let sa = f64::from(scales_a[block * m + row]);
                            sa * f64::from(scales_b[col / TILE * blocks + block])
                        }
                    };
                    want += scale * a.values[row * k + i] * b.values[col * k + i];
                }
                let at = 4 * (row * n + col);
                let got = f32::from_le_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
                worst = worst.max((f64::from(got) - want).abs());
                largest = largest.max(want.abs());
            }
        }
        Ok((worst / largest, stats))
    }
}

const SMALL: Case = Case { kind: Kind::Bf16, rows: 128, cols: 64, k: 512 };
const SMALL_FP8: Case = Case { kind: Kind::E4m3, rows: 64, cols: 128, k: 1024 };
const MODES: [Completion; 4] = [
    Completion::Eager,
    Completion::Lazy,
    Completion::Random { seed: 1, delay_max: 40 },
    Completion::Random { seed: 2, delay_max: 4 },
];

#[test]
fn bf16_tiles_agree_with_sums_in_f64_however_late_work_completes() {
    for mode in MODES {
        let (error, _) = SMALL.run(&kernel(Kind::Bf16), |l| l.completion = mode).expect("runs");
        assert!(error < 1e-6, "{mode:?}: {error:e}");
    }
}

#[test]
fn e4m3_tiles_are_scaled_block_by_block() {
    for mode in MODES {
        let text = kernel(Kind::E4m3);
        let (error, _) = SMALL_FP8.run(&text, |l| l.completion = mode).expect("runs");
        assert!(error < 1e-6, "{mode:?}: {error:e}");
    }
}

#[test]
fn e5m2_multiplies_e4m3() {
    let case = Case { kind: Kind::Mixed, ..SMALL_FP8 };
    let (error, _) = case.run(&kernel(Kind::Mixed), |_| {}).expect("runs");
    assert!(error < 1e-6, "{error:e}");
}

#[test]
fn hopper14_loses_bits_that_f32_keeps() {
    let text = kernel(Kind::E4m3);
    let set = |l: &mut Launch| l.accumulate = Accumulate::Hopper14;
    let (error, _) = SMALL_FP8.run(&text, set).expect("runs");
    // Each step of 32 drops at most 33 units of 2^-13 of the largest term.
    assert!((1e-6..1e-2).contains(&error), "{error:e}");
}

#[test]
fn a_larger_product_counts_its_instructions() {
    let case = Case { kind: Kind::E4m3, rows: 256, cols: 256, k: 512 };
    let start = std::time::Instant::now();
    let (error, stats) = case.run(&kernel(Kind::E4m3), |_| {}).expect("runs");
    println!("256x256x512: {} instructions, {:?}", stats.n_instructions, start.elapsed());
    assert!(error < 1e-6, "{error:e}");
    // 16 tiles of 4 warps, 4 blocks of 4 products.
    let opcode = "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3";
    assert_eq!(stats.n_by_opcode[opcode], 16 * 4 * 4 * 4);
    assert!(stats.primitives().any(|p| p == "cp.async.bulk.tensor"));
}

/// The kernel with `from` replaced once; which must be there.
fn broken(from: &str, to: &str) -> String {
    let text = kernel(Kind::Bf16);
    assert_eq!(text.matches(from).count(), 1, "`{from}` once");
    text.replace(from, to)
}

fn fault(text: &str) -> Error {
    match SMALL.run(text, |_| {}) {
        Err(error) => error,
        Ok((error, _)) => panic!("the fault was not noticed; numbers are {error:e} off"),
    }
}

const FULL_WAIT: &str = "[%r24], %r22;\n@!%p4 bra WAIT_FULL;";
const ARRIVE: &str = "@%p7 mbarrier.arrive.shared::cta.b64 _, [%r25];\n";
const WAIT_GROUP: &str = "wgmma.wait_group.sync.aligned 0;\n";

#[test]
fn a_stage_read_without_waiting_for_it_is_found() {
    let error = fault(&broken(FULL_WAIT, "[%r24], %r22;"));
    assert_eq!(error.kind, ErrorKind::MissingWait, "{error}");
    assert!(error.message.contains("wait on its mbarrier"), "{error}");
    let source = error.source_line.expect("the kernel has line information");
    assert_eq!((source.file.as_str(), source.line), ("gemm.model", 7));
}

#[test]
fn a_stage_filled_without_waiting_for_its_release_is_found() {
    let error = fault(&broken("@!%p4 bra WAIT_EMPTY;", ""));
    // Either the bytes are still in use, or the ring is told of too many.
    let kinds = [ErrorKind::MissingWait, ErrorKind::Barrier];
    assert!(kinds.contains(&error.kind), "{error}");
}

#[test]
fn a_stage_released_before_its_products_are_done_is_found() {
    let text = broken(ARRIVE, "");
    let text = text.replace(WAIT_GROUP, &format!("{ARRIVE}{WAIT_GROUP}"));
    let error = fault(&text);
    assert_eq!(error.kind, ErrorKind::MissingWait, "{error}");
    assert!(error.message.contains("may still be reading"), "{error}");
}

#[test]
fn accumulators_read_before_the_wait_are_found() {
    let error = fault(&broken(WAIT_GROUP, ""));
    assert_eq!(error.kind, ErrorKind::MissingWait, "{error}");
    assert!(error.message.contains("in flight"), "{error}");
}

#[test]
fn too_few_expected_bytes_are_found() {
    let text = broken("[%r24], 16384;", "[%r24], 8192;");
    // The phase ends with the first copy, so the second is not waited for,
    let error = fault(&text);
    assert_eq!(error.kind, ErrorKind::MissingWait, "{error}");
    // or both are started in a phase that ends before the second arrives.
    let error = SMALL.run(&text, |l| l.completion = Completion::Lazy).expect_err("found");
    assert_eq!(error.kind, ErrorKind::Barrier, "{error}");
    assert!(error.message.contains("fewer bytes"), "{error}");
}

#[test]
fn too_many_expected_bytes_are_a_deadlock_that_says_so() {
    let error = fault(&broken("[%r24], 16384;", "[%r24], 16896;"));
    assert_eq!(error.kind, ErrorKind::Deadlock, "{error}");
    assert!(error.message.contains("512 bytes expected and not come"), "{error}");
    assert!(error.message.contains("not those that the copies bring"), "{error}");
    assert!(error.message.contains("try_wait"), "{error}");
}

#[test]
fn a_wrong_arrival_count_is_found() {
    let text = kernel(Kind::Bf16).replace("[%r5+0], 4;", "[%r5+0], 3;");
    // Three of four warps release the stage: the fourth still reads it.
    let error = fault(&text);
    assert_eq!(error.kind, ErrorKind::MissingWait, "{error}");
    let text = kernel(Kind::Bf16).replace("[%r4+0], 1;", "[%r4+0], 2;");
    let error = fault(&text);
    assert_eq!(error.kind, ErrorKind::Deadlock, "{error}");
    let text = kernel(Kind::Bf16).replace("[%r5+0], 4;", "[%r5+0], 5;");
    let error = fault(&text);
    assert_eq!(error.kind, ErrorKind::Deadlock, "{error}");
}

#[test]
fn a_missing_wgmma_fence_is_found() {
    let error = fault(&broken("wgmma.fence.sync.aligned;\n", ""));
    assert_eq!(error.kind, ErrorKind::MissingFence, "{error}");
}

#[test]
fn an_mbarrier_used_before_its_init_is_known_is_found() {
    let error = fault(&broken("bar.sync 0;\n", ""));
    assert_eq!(error.kind, ErrorKind::Race, "{error}");
    let error = fault(&broken("fence.mbarrier_init.release.cluster;\n", ""));
    assert_eq!(error.kind, ErrorKind::MissingFence, "{error}");
}

#[test]
fn a_descriptor_of_another_stride_gives_other_numbers() {
    // 512 bytes from eight rows to the next instead of 1024.
    let text = broken("4611686293305360384", "4611686155866406912");
    let (error, _) = SMALL.run(&text, |_| {}).expect("all it reads has been written");
    assert!(error > 0.1, "{error:e}");
}

#[test]
fn a_descriptor_inside_the_swizzle_pattern_is_refused() {
    let error =
        fault(&broken("shr.u32 %r36, %r35, 4;", "shr.u32 %r36, %r35, 4;\nadd.s32 %r36, %r36, 8;"));
    assert_eq!(error.kind, ErrorKind::Operand, "{error}");
}

#[test]
fn a_descriptor_beyond_what_was_filled_is_found() {
    let error = fault(&broken("add.s64 %d11, %d10, 512;", "add.s64 %d11, %d10, 4096;"));
    let kinds = [ErrorKind::Operand, ErrorKind::OutOfBounds];
    assert!(kinds.contains(&error.kind), "{error}");
}
