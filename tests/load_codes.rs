//! Weights that are quantized when they are loaded have the codes and scales that the IR's
//! `quantize` gives them, bit for bit.

use weft_graph::{Coded, DType, Part};
use weft_ir::formats::{Format, encode_ue8m0};
use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::{text, ty};
use weft_runtime::quantize;

const ROWS: usize = 7;
const COLS: usize = 10;

/// Two matrices whose groups are zeros, subnormals, one outlier, infinities and NaN, ties, and
/// ordinary numbers.
fn values() -> Vec<f32> {
    let mut values: Vec<f32> =
        (0..2 * ROWS * COLS).map(|i| (i as f32 * 0.73).sin() * (i as f32 - 60.0).exp2()).collect();
    values[..12].fill(0.0);
    values[12..20].fill(f32::from_bits(3));
    values[23] = 1e30;
    values[34] = f32::INFINITY;
    values[35] = f32::NEG_INFINITY;
    values[36] = f32::NAN;
    for (i, x) in values[70..90].iter_mut().enumerate() {
        *x = 448.0 - 0.25 * i as f32;
    }
    for (i, x) in values[90..110].iter_mut().enumerate() {
        *x = (17 + 2 * i) as f32 * (-10f32).exp2() * if i % 3 == 0 { -1.0 } else { 1.0 };
    }
    values[110] = 448.0;
    values
}

fn check(codes: DType, scale: DType, group: [u32; 2]) {
    let [rows, cols] = group;
    let name = format!("{codes}<{rows}x{cols}, {scale}>");
    let types = format!(
        "{codes}[2, {ROWS}, {COLS}], {scale}[2, {}, {}]",
        ROWS.div_ceil(rows as usize),
        COLS.div_ceil(cols as usize)
    );
    let source = format!(
        "func @f(%x: f32[2, {ROWS}, {COLS}]) -> ({types}) {{
           %c, %s = encode %x {{dtype = {codes}, group = [{rows}, {cols}], scale = {scale}}} : {types}
           return %c, %s
         }}"
    );
    let module = text::parse(&source).unwrap_or_else(|e| panic!("{name}: {}", e[0]));
    let x: Vec<f64> = values().into_iter().map(f64::from).collect();
    let x = Tensor::float(ty::DType::F32, &[2, ROWS, COLS], x);
    let interp = Interp::new(&module, Precision::Stated);
    let parts = interp.run(module.find("f").expect("it is there"), vec![x]).expect("it runs");
    let ir = |dtype: DType| ty::DType::from_name(dtype.name()).expect("both have it");
    let format = Format::of(ir(codes)).expect("codes are of a narrow format");
    let floats = |t: &Tensor| t.floats().expect("they are floats").to_vec();
    let wanted_codes: Vec<u8> =
        floats(&parts[0]).iter().map(|c| format.encode(*c as f32) as u8).collect();
    let wanted_scales: Vec<u8> = match scale {
        DType::Ue8m0 => floats(&parts[1]).iter().map(|s| encode_ue8m0(*s as f32)).collect(),
        _ => floats(&parts[1]).iter().flat_map(|s| (*s as f32).to_le_bytes()).collect(),
    };
    let dims = vec![ROWS as u64, COLS as u64];
    let part =
        |part| quantize::part(&Coded { part, codes, scale, group, dims: dims.clone() }, &values());
    assert_eq!(part(Part::Scales), wanted_scales, "scales of {name}");
    assert_eq!(part(Part::Codes), wanted_codes, "codes of {name}");
}

#[test]
fn codes_at_load_are_those_of_the_ir() {
    for codes in [DType::E4m3, DType::E5m2] {
        for scale in [DType::F32, DType::Ue8m0] {
            for group in [[1, 4], [4, 1], [3, 4], [128, 128]] {
                check(codes, scale, group);
            }
        }
    }
}
