//! Regions of rows that also encode, as one kernel and apart.

use weft_ir::text;
use weft_plan::kernel::{Work, of_op};

/// The kernels of `@f`'s ops.
fn works(ir: &str) -> Vec<Work> {
    let module = text::parse(ir).expect("IR");
    let f = module.func(module.find("f").expect("@f"));
    let kernels = f.body_ops().map(|(_, op)| of_op(&module, f, op).expect("kernels"));
    kernels.flatten().map(|k| k.work).collect()
}

#[test]
fn a_norm_that_encodes_is_a_norm_and_an_encoder_apart() {
    let all = works(
        "module \"m\"\n\n\
         func @f.fused(%x0: bf16[2, 128, 256], %x1: f32[256]) -> (e4m3[2, 128, 256], f32[256, 2]) {\n  \
         %1 = convert %x0 {dtype = f32} : f32[2, 128, 256]\n  \
         %2, %3 = rms_norm %1, %x1 {eps = 1e-6} : f32[2, 128, 256], f32[2, 128]\n  \
         %4 = convert %2 {dtype = bf16} : bf16[2, 128, 256]\n  \
         %5 = reshape %4 {shape = [256, 256]} : bf16[256, 256]\n  \
         %6, %7 = encode %5 {dtype = e4m3, group = [1, 128], scale = f32} : e4m3[256, 256], f32[256, 2]\n  \
         %8 = reshape %6 {shape = [2, 128, 256]} : e4m3[2, 128, 256]\n  return %8, %7\n}\n\n\
         func @f(%x: bf16[2, 128, 256], %w: f32[256]) -> (e4m3[2, 128, 256], f32[256, 2]) {\n  \
         %1, %2 = fused %x, %w {func = @f.fused} : e4m3[2, 128, 256], f32[256, 2]\n  return %1, %2\n}\n",
    );
    let (x, w, codes) = (65536.0 * 2.0, 1024.0, 65536.0 + 512.0 * 4.0);
    // Apart, the norm writes bf16 and the encoder reads it.
    let want = Work::Region {
        bytes: x + w + codes,
        apart_bytes: x + w + x,
        encode_bytes: x + codes,
        n_encodes: 1,
    };
    assert_eq!(all, [want]);
}

#[test]
fn a_region_that_only_encodes_is_its_encoders_apart() {
    let all = works(
        "module \"m\"\n\n\
         func @f.fused(%x0: bf16[2, 128, 256]) -> (e4m3[256, 256], f32[256, 2], e5m6[256, 256], ue8m0[256, 2]) {\n  \
         %1 = reshape %x0 {shape = [256, 256]} : bf16[256, 256]\n  \
         %2, %3 = encode %1 {dtype = e4m3, group = [1, 128], scale = f32} : e4m3[256, 256], f32[256, 2]\n  \
         %4, %5 = encode %1 {dtype = e5m6, group = [1, 128], scale = ue8m0} : e5m6[256, 256], ue8m0[256, 2]\n  \
         return %2, %3, %4, %5\n}\n\n\
         func @f(%x: bf16[2, 128, 256]) -> (e4m3[256, 256], f32[256, 2], e5m6[256, 256], ue8m0[256, 2]) {\n  \
         %1, %2, %3, %4 = fused %x {func = @f.fused} : e4m3[256, 256], f32[256, 2], e5m6[256, 256], ue8m0[256, 2]\n  \
         return %1, %2, %3, %4\n}\n",
    );
    let x = 65536.0 * 2.0;
    let codes = 65536.0 + 512.0 * 4.0 + 65536.0 * 1.5 + 512.0;
    let want = Work::Region {
        bytes: x + codes,
        apart_bytes: 0.0,
        encode_bytes: 2.0 * x + codes,
        n_encodes: 2,
    };
    assert_eq!(all, [want]);
}
