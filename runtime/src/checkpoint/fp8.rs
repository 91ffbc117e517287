//! The published FP8 form of weights: e4m3 codes and one f32 multiplier per block, stored beside
//! the weight as `NAME_scale_inv`.
//!
//! Blocks are 128x128 unless `config.json` says otherwise; those at the right and lower edge may be
//! partial. "inv" is history: the stored number is multiplied with, weight = code · scale.

/// What the name of a weight's scales ends in.
pub const SCALE_SUFFIX: &str = "_scale_inv";

/// Rows and columns that share a scale, when the config names none.
pub const BLOCK: [u64; 2] = [128, 128];

/// The value of an e4m3 code (OCP FP8, "fn" form): 4 exponent bits with bias 7, 3 mantissa bits, no
/// infinities; all ones is NaN, the largest value 448.
pub fn e4m3_to_f32(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(code >> 3 & 0xF);
    let mantissa = f32::from(code & 7);
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * (-6f32).exp2(),
        _ => (1.0 + mantissa / 8.0) * ((exponent - 7) as f32).exp2(),
    };
    sign * magnitude
}

/// The shape of the scales of a weight `[rows, columns]`.
pub fn scale_shape(weight: [u64; 2], block: [u64; 2]) -> [u64; 2] {
    [weight[0].div_ceil(block[0]), weight[1].div_ceil(block[1])]
}

/// `out[r, c] = code[r, c] · scale[r / block, c / block]`, in f32.
pub fn dequantize(codes: &[u8], scales: &[f32], columns: u64, block: [u64; 2], out: &mut [f32]) {
    let values: [f32; 256] = std::array::from_fn(|code| e4m3_to_f32(code as u8));
    let columns = columns.max(1) as usize;
    let [block_rows, block_columns] = block.map(|n| n as usize);
    let scale_columns = columns.div_ceil(block_columns);
    let rows = codes.chunks(columns).zip(out.chunks_mut(columns)).enumerate();
    for (r, (codes, out)) in rows {
        let scales = &scales[r / block_rows * scale_columns..][..scale_columns];
        for (c, (code, x)) in codes.iter().zip(out).enumerate() {
            *x = values[usize::from(*code)] * scales[c / block_columns];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_values() {
        let check = |code: u8, value: f32| assert_eq!(e4m3_to_f32(code), value, "{code:#x}");
        check(0x00, 0.0);
        check(0x38, 1.0);
        check(0xb8, -1.0);
        check(0x7e, 448.0);
        // The smallest normal, the largest and the smallest subnormal.
        check(0x08, 0.015625);
        check(0x07, 0.013671875);
        check(0x81, -0.001953125);
        assert!(e4m3_to_f32(0x7f).is_nan() && e4m3_to_f32(0xff).is_nan());
    }

    #[test]
    fn codes_ascend() {
        let values: Vec<f32> = (0..0x7f).map(e4m3_to_f32).collect();
        assert!(values.is_sorted());
    }

    #[test]
    fn blocks_at_the_edges_are_partial() {
        // 3x5 in blocks of 2x2: scales 2x3, the last row and the last column alone.
        let codes = [0x38; 15];
        let scales = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut out = [0.0; 15];
        assert_eq!(scale_shape([3, 5], [2, 2]), [2, 3]);
        dequantize(&codes, &scales, 5, [2, 2], &mut out);
        assert_eq!(out[..5], [1.0, 1.0, 2.0, 2.0, 3.0]);
        assert_eq!(out[5..10], out[..5]);
        assert_eq!(out[10..], [4.0, 4.0, 5.0, 5.0, 6.0]);
    }
}
