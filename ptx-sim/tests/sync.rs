//! Lanes, barriers, atomics, flags; and the faults of kernels that get them wrong.

use half::bf16;
use ptx_sim::{Arg, Device, Error, ErrorKind, Launch, Module, Stats};

/// Runs a body with `y` in `%d1`, `tid.x` in `%r1` and `ctaid.x` in `%r2`.
fn run(body: &str, launch: &Launch, y: &[u8]) -> Result<(Vec<u8>, Stats), Error> {
    let text = format!(
        ".version 8.3\n.target sm_90a\n.address_size 64\n\
         .global .align 4 .b8 flag[8];\n\
         .visible .entry k(.param .u64 y)\n{{\n\
         .shared .align 16 .b8 tile[4096];\n\
         .reg .pred %p<10>;\n.reg .b16 %h<10>;\n.reg .b32 %r<40>;\n.reg .b64 %d<20>;\n\
         ld.param.b64 %d1, [y];\nmov.u32 %r1, %tid.x;\nmov.u32 %r2, %ctaid.x;\n\
         mad.lo.u32 %r3, %r2, 32, %r1;\nmul.wide.u32 %d2, %r3, 4;\nadd.s64 %d2, %d1, %d2;\n\
         {body}\nret;\n}}\n"
    );
    let module = Module::load(&text)?;
    let mut device = Device::new();
    let p = device.alloc_from(y);
    let stats = device.launch(&module, "k", launch, &[Arg::Ptr(p)])?;
    Ok((device.read(p, y.len())?.to_vec(), stats))
}

/// A word of each of 32 lanes.
fn lanes(body: &str) -> Vec<u32> {
    let body = format!("{body}\nst.global.b32 [%d2], %r9;");
    let (bytes, _) =
        run(&body, &Launch::new(1, 32), &[0; 128]).unwrap_or_else(|e| panic!("{e}\n{body}"));
    bytes.chunks(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

fn each(f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(f).collect()
}

#[test]
fn lanes_exchange_values() {
    let shfl = |mode: &str, by: &str, clamp: u32| {
        lanes(&format!(
            "mul.lo.u32 %r8, %r1, 7;\nshfl.sync.{mode}.b32 %r9|%p1, %r8, {by}, {clamp}, -1;"
        ))
    };
    assert_eq!(shfl("bfly", "5", 31), each(|i| 7 * (i ^ 5)));
    assert_eq!(shfl("up", "3", 0), each(|i| 7 * if i >= 3 { i - 3 } else { i }));
    assert_eq!(shfl("down", "3", 31), each(|i| 7 * if i + 3 < 32 { i + 3 } else { i }));
    assert_eq!(shfl("idx", "4", 31), each(|_| 28));
    // Groups of eight: the high bits of the clamp are the mask of the group.
    assert_eq!(shfl("idx", "1", 24 << 8 | 31), each(|i| 7 * (i / 8 * 8 + 1)));
    assert_eq!(shfl("down", "6", 24 << 8 | 31), each(|i| 7 * if i % 8 < 2 { i + 6 } else { i }));
}

#[test]
fn lanes_vote_and_reduce() {
    let odd = "and.b32 %r8, %r1, 1;\nsetp.eq.u32 %p1, %r8, 1;\n";
    let ballot = lanes(&format!("{odd}vote.sync.ballot.b32 %r9, %p1, -1;"));
    assert_eq!(ballot, each(|_| 0xaaaa_aaaa));
    let all = lanes(&format!("{odd}vote.sync.all.pred %p2, %p1, -1;\nselp.b32 %r9, 1, 0, %p2;"));
    assert_eq!(all, each(|_| 0));
    let any = lanes(&format!("{odd}vote.sync.any.pred %p2, %p1, -1;\nselp.b32 %r9, 1, 0, %p2;"));
    assert_eq!(any, each(|_| 1));
    assert_eq!(lanes("redux.sync.add.s32 %r9, %r1, -1;"), each(|_| 496));
    assert_eq!(
        lanes("sub.s32 %r8, %r1, 9;\nredux.sync.min.s32 %r9, %r8, -1;"),
        each(|_| -9i32 as u32)
    );
    let same = lanes("and.b32 %r8, %r1, 3;\nmatch.any.sync.b32 %r9, %r8, -1;");
    assert_eq!(same, each(|i| 0x1111_1111 << (i % 4)));
    let elected = lanes("elect.sync %r8|%p1, -1;\nselp.b32 %r9, 1, 0, %p1;");
    assert_eq!(elected.iter().sum::<u32>(), 1);
}

#[test]
fn lanes_part_and_meet_again() {
    let body = "
mov.b32 %r9, 0;
mov.b32 %r8, 0;
LOOP:
add.s32 %r9, %r9, %r8;
add.s32 %r8, %r8, 1;
setp.le.u32 %p1, %r8, %r1;
@%p1 bra LOOP;
and.b32 %r7, %r1, 1;
setp.eq.u32 %p2, %r7, 0;
@%p2 bra EVEN;
add.s32 %r9, %r9, 1000;
EVEN:
shfl.sync.bfly.b32 %r9, %r9, 1, 31, -1;";
    let sum = |i: u32| i * (i + 1) / 2 + if i % 2 == 1 { 1000 } else { 0 };
    assert_eq!(lanes(body), each(|i| sum(i ^ 1)));
}

#[test]
fn a_barrier_some_lanes_never_reach_is_found() {
    let body = "setp.lt.u32 %p1, %r1, 16;\n@%p1 bra SOME;\nbar.sync 0;\nbra DONE;\nSOME:\n\
                shfl.sync.idx.b32 %r9, %r1, 0, 31, -1;\nDONE:";
    let error = run(body, &Launch::new(1, 32), &[0; 128]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Divergence, "{error}");
}

#[test]
fn warps_meet_at_named_barriers() {
    // Warp 0 arrives at barrier 1 after writing; warp 1 syncs there and reads.
    let body = "
mov.b32 %r10, tile;
and.b32 %r11, %r1, 31;
shl.b32 %r12, %r11, 2;
add.s32 %r12, %r10, %r12;
setp.ge.u32 %p1, %r1, 32;
@%p1 bra READER;
mad.lo.u32 %r9, %r1, 5, 2;
st.shared.b32 [%r12], %r9;
bar.arrive 1, 64;
bra DONE;
READER:
bar.sync 1, 64;
ld.shared.b32 %r9, [%r12];
mul.wide.u32 %d4, %r11, 4;
add.s64 %d4, %d1, %d4;
st.global.b32 [%d4], %r9;
DONE:";
    let (bytes, _) = run(body, &Launch::new(1, 64), &[0; 128]).unwrap_or_else(|e| panic!("{e}"));
    let want: Vec<u8> = (0..32u32).flat_map(|i| (5 * i + 2).to_le_bytes()).collect();
    assert_eq!(bytes, want);
    let error = run(&body.replace("bar.sync 1, 64;", ""), &Launch::new(1, 64), &[0; 128]);
    let error = error.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Race, "{error}");
    let error = run(&body.replace("1, 64", "1, 96"), &Launch::new(1, 64), &[0; 128]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Deadlock, "{error}");
    assert!(error.message.contains("barrier 1: 64 of 96 threads"), "{error}");
}

#[test]
fn a_barrier_reduces() {
    let body = "
setp.lt.u32 %p1, %r1, 40;
bar.red.popc.u32 %r9, 0, %p1;
setp.lt.u32 %p3, %r1, 32;
@%p3 st.global.b32 [%d2], %r9;";
    let (bytes, _) = run(body, &Launch::new(1, 64), &[0; 128]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(bytes, 40u32.to_le_bytes().repeat(32));
}

#[test]
fn atomics_of_many_ctas_add_up() {
    let (bytes, _) = run(
        "atom.global.add.u32 %r9, [%d1], %r1;\nred.global.max.s32 [%d1+4], %r3;\n\
         cvt.rn.f32.u32 %r8, %r1;\nred.global.add.f32 [%d1+8], %r8;\n\
         mov.b32 %r10, 0f3f800000;\nmov.b32 %r11, 0f40000000;\n\
         red.global.add.v2.f32 [%d1+16], {%r10, %r11};",
        &Launch::new(5, 32),
        &[0; 128],
    )
    .unwrap_or_else(|e| panic!("{e}"));
    let word = |i: usize| u32::from_le_bytes(bytes[4 * i..][..4].try_into().expect("four bytes"));
    assert_eq!(word(0), 5 * 496);
    assert_eq!(word(1), 159);
    assert_eq!(f32::from_bits(word(2)), 5.0 * 496.0);
    assert_eq!((f32::from_bits(word(4)), f32::from_bits(word(5))), (160.0, 320.0));
}

#[test]
fn vectors_of_bf16_pairs_are_reduced() {
    let pair = |a: f32, b: f32| {
        u32::from(bf16::from_f32(a).to_bits()) | u32::from(bf16::from_f32(b).to_bits()) << 16
    };
    let body = format!(
        "mov.b32 %r10, {};\nmov.b32 %r11, {};\n\
         red.global.add.noftz.v4.bf16x2 [%d1], {{%r10, %r11, %r10, %r11}};",
        pair(1.0, 0.5),
        pair(-2.0, 0.25)
    );
    let (bytes, _) = run(&body, &Launch::new(1, 32), &[0; 128]).unwrap_or_else(|e| panic!("{e}"));
    let got: Vec<f32> =
        bytes[..16].chunks(2).map(|c| bf16::from_le_bytes([c[0], c[1]]).to_f32()).collect();
    assert_eq!(got, [32.0, 16.0, -64.0, 8.0, 32.0, 16.0, -64.0, 8.0]);
}

/// CTA 1 writes, then raises a flag that CTA 0 waits for.
const FLAG: &str = "
setp.ne.u32 %p1, %r1, 0;
@%p1 bra DONE;
mov.b64 %d5, flag;
setp.eq.u32 %p2, %r2, 0;
@%p2 bra READER;
mov.b32 %r9, 77;
st.global.b32 [%d1+64], %r9;
mov.b32 %r8, 1;
st.release.gpu.global.b32 [%d5], %r8;
bra DONE;
READER:
ld.acquire.gpu.global.b32 %r8, [%d5];
setp.eq.u32 %p3, %r8, 0;
@%p3 bra READER;
ld.global.b32 %r9, [%d1+64];
st.global.b32 [%d1], %r9;
DONE:";

#[test]
fn a_flag_orders_two_ctas() {
    let launch = Launch::new(2, 32);
    let (bytes, _) = run(FLAG, &launch, &[0; 128]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(bytes[..4], 77u32.to_le_bytes());
    // By fences around relaxed accesses as well.
    let fenced = FLAG
        .replace("st.release.gpu", "fence.acq_rel.gpu;\nst.relaxed.gpu")
        .replace("ld.acquire.gpu", "ld.relaxed.gpu")
        .replace("ld.global.b32 %r9", "fence.acq_rel.gpu;\nld.global.b32 %r9");
    let (bytes, _) = run(&fenced, &launch, &[0; 128]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(bytes[..4], 77u32.to_le_bytes());
}

#[test]
fn a_flag_that_orders_nothing_is_found() {
    let launch = Launch::new(2, 32);
    for (from, to) in [
        ("st.release.gpu", "st.relaxed.gpu"),
        ("ld.acquire.gpu", "ld.relaxed.gpu"),
        ("st.release.gpu", "st.release.cta"),
    ] {
        let error = run(&FLAG.replace(from, to), &launch, &[0; 128]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Race, "{to}: {error}");
    }
    let never = FLAG.replace("st.release.gpu.global.b32 [%d5], %r8;", "");
    let error = run(&never, &launch, &[0; 128]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Deadlock, "{error}");
    assert!(error.message.contains("ld.acquire"), "{error}");
}

#[test]
fn ctas_that_write_one_place_are_found() {
    let error = run("st.global.b32 [%d1], %r1;", &Launch::new(2, 32), &[0; 128]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Race, "{error}");
    // Also where one only reads.
    let body = "setp.eq.u32 %p1, %r2, 0;\n@%p1 ld.global.b32 %r9, [%d1];\n\
                @!%p1 st.global.b32 [%d1], %r1;";
    let error = run(body, &Launch::new(2, 32), &[0; 128]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Race, "{error}");
}

#[test]
fn accesses_off_their_alignment_or_space_are_found() {
    let error = |body: &str| run(body, &Launch::new(1, 32), &[0; 1024]).unwrap_err();
    let off = error("ld.global.v4.b32 {%r8, %r9, %r10, %r11}, [%d1+8];");
    assert_eq!(off.kind, ErrorKind::Misaligned, "{off}");
    let beyond = error("mov.b32 %r9, tile;\nld.shared.b32 %r8, [%r9+4096];");
    assert_eq!(beyond.kind, ErrorKind::OutOfBounds, "{beyond}");
    let space = error("cvta.to.shared.u64 %d3, %d1;");
    assert_eq!(space.kind, ErrorKind::OutOfBounds, "{space}");
    let written = error("st.global.b32 [%d2], %r1;\nld.global.nc.b32 %r8, [%d2];");
    assert_eq!(written.kind, ErrorKind::Race, "{written}");
    let endless = Launch { instructions_max: 1000, ..Launch::new(1, 32) };
    let endless = run("LOOP:\nadd.s32 %r9, %r9, 1;\nbra LOOP;", &endless, &[0; 128]).unwrap_err();
    assert_eq!(endless.kind, ErrorKind::Limit, "{endless}");
}

#[test]
fn numbers_are_converted() {
    let bits = |v: f32| v.to_bits();
    let convert = |value: u32, line: &str| lanes(&format!("mov.b32 %r8, {value};\n{line}"))[0];
    assert_eq!(convert(bits(2.5), "cvt.rni.s32.f32 %r9, %r8;"), 2);
    assert_eq!(convert(bits(-2.5), "cvt.rzi.s32.f32 %r9, %r8;"), -2i32 as u32);
    assert_eq!(convert(bits(-0.5), "cvt.rmi.f32.f32 %r9, %r8;"), bits(-1.0));
    assert_eq!(convert(bits(1e10), "cvt.rzi.s32.f32 %r9, %r8;"), i32::MAX as u32);
    assert_eq!(convert(bits(-3.0), "cvt.rzi.u32.f32 %r9, %r8;"), 0);
    assert_eq!(convert(16_777_217, "cvt.rn.f32.u32 %r9, %r8;"), bits(16_777_216.0));
    assert_eq!(convert(16_777_219, "cvt.rz.f32.u32 %r9, %r8;"), bits(16_777_218.0));
    assert_eq!(convert(0x1ff, "cvt.s32.s8 %r9, %r8;"), u32::MAX);
    // The first operand is the high half.
    let pair = convert(bits(1.0), "mov.b32 %r7, 0f40000000;\ncvt.rn.bf16x2.f32 %r9, %r8, %r7;");
    assert_eq!(pair, 0x3f80_4000);
    let fp8 = "mov.b32 %r7, 0f43E00000;\ncvt.rn.satfinite.e4m3x2.f32 %h1, %r8, %r7;\n\
               cvt.u32.u16 %r9, %h1;";
    assert_eq!(convert(bits(1.0), fp8), 0x387e);
    let back = "cvt.u16.u32 %h1, %r8;\ncvt.rn.f16x2.e4m3x2 %r9, %h1;";
    assert_eq!(convert(0x387e, back), 0x3c00_5f00);
    let fp8 = "mov.b32 %r7, 0f3E800000;\ncvt.rn.satfinite.e5m2x2.f32 %h1, %r8, %r7;\n\
               cvt.u32.u16 %r9, %h1;";
    assert_eq!(convert(bits(-1e6), fp8), 0xfb34);
}

#[test]
fn numbers_are_compared_with_nan_in_mind() {
    // For less, equal, greater and NaN: what each comparison of 1 with it says.
    let against = [2.0f32, 1.0, 0.5, f32::NAN];
    for (how, want) in [
        ("eq", [0, 1, 0, 0]),
        ("ne", [1, 0, 1, 0]),
        ("lt", [1, 0, 0, 0]),
        ("le", [1, 1, 0, 0]),
        ("gt", [0, 0, 1, 0]),
        ("ge", [0, 1, 1, 0]),
        ("equ", [0, 1, 0, 1]),
        ("neu", [1, 0, 1, 1]),
        ("ltu", [1, 0, 0, 1]),
        ("leu", [1, 1, 0, 1]),
        ("gtu", [0, 0, 1, 1]),
        ("geu", [0, 1, 1, 1]),
        ("num", [1, 1, 1, 0]),
        ("nan", [0, 0, 0, 1]),
    ] {
        let said = against.map(|b| {
            let b = b.to_bits();
            lanes(&format!("setp.{how}.f32 %p1, 0f3f800000, {b};\nselp.b32 %r9, 1, 0, %p1;"))[0]
        });
        assert_eq!(said, want, "{how}");
    }
}

#[test]
fn bits_are_moved() {
    assert_eq!(lanes("prmt.b32 %r9, 0x33221100, 0x77665544, 0x7304;")[0], 0x7733_0044);
    assert_eq!(lanes("bfe.u32 %r9, 0xabcd1234, 8, 12;")[0], 0xd12);
    assert_eq!(lanes("bfe.s32 %r9, 0xabcd1234, 24, 8;")[0], 0xffff_ffab);
    assert_eq!(lanes("bfi.b32 %r9, 0xf, 0, 8, 4;")[0], 0xf00);
    assert_eq!(lanes("shf.l.wrap.b32 %r9, 0x80000000, 1, 1;")[0], 3);
    assert_eq!(lanes("shf.r.clamp.b32 %r9, 0, 1, 40;")[0], 1);
    assert_eq!(lanes("lop3.b32 %r9, 0xf0, 0xcc, 0xaa, 0x96;")[0], 0xf0 ^ 0xcc ^ 0xaa);
    assert_eq!(lanes("mul.hi.u32 %r9, 0xffffffff, 0xffffffff;")[0], 0xffff_fffe);
    assert_eq!(lanes("mul.hi.s32 %r9, -2, 3;")[0], 0xffff_ffff);
    assert_eq!(lanes("bfind.u32 %r9, 0x00010000;")[0], 16);
    assert_eq!(lanes("mov.b64 %d5, {1, 2};\nmov.b64 {%r8, %r9}, %d5;")[0], 2);
}

#[test]
fn approximate_functions_are_rounded_from_f64() {
    let one = |op: &str, x: f32| {
        f32::from_bits(lanes(&format!("mov.b32 %r8, {};\n{op} %r9, %r8;", x.to_bits()))[0])
    };
    for x in [0.3f32, 1.7, 2.9] {
        let wide = f64::from(x);
        assert_eq!(one("ex2.approx.ftz.f32", x), wide.exp2() as f32);
        assert_eq!(one("lg2.approx.f32", x), wide.log2() as f32);
        assert_eq!(one("rsqrt.approx.ftz.f32", x), (1.0 / wide.sqrt()) as f32);
        assert_eq!(one("tanh.approx.f32", x), wide.tanh() as f32);
        assert_eq!(one("sin.approx.f32", x), wide.sin() as f32);
    }
    assert_eq!(one("rcp.approx.ftz.f32", f32::from_bits(1)), f32::INFINITY);
}
