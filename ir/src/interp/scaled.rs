//! Quantized values: codes with group scales, and products of them.
//!
//! In f64 nothing is rounded: a code is the quotient itself, so that a pass that quantizes keeps
//! every value. With stated types everything below is exact.

use super::{Cx, Fault, Precision, Tensor};
use crate::formats::{self, Format};
use crate::ty::DType;

/// Terms that a Hopper tensor core adds at once.
const STEP: usize = 32;
/// Its accumulator keeps 14 bits, the leading one and 13 behind it.
const KEPT: i32 = 13;
/// Exponents below this are not told apart.
const EXPONENT_MIN: i32 = -100;

/// How many groups there are along each dim.
pub(super) fn grid(dims: &[usize], group: [u32; 2]) -> Vec<usize> {
    let lead = dims.len().saturating_sub(2);
    let sides = dims[lead..].iter().zip(group).map(|(n, side)| n.div_ceil(side as usize));
    dims[..lead].iter().copied().chain(sides).collect()
}

/// The sides of the attribute `name`.
fn group(cx: &Cx, name: &str) -> Result<[u32; 2], Fault> {
    match cx.ints(name)[..] {
        [rows, cols] => Ok([rows as u32, cols as u32]),
        _ => Err(format!("`{name}` has rows and columns")),
    }
}

/// For each element of `dims`, the place of its scale.
fn scale_places(dims: &[usize], group: [u32; 2]) -> Vec<usize> {
    let [.., rows, cols] = *dims else { return vec![0; dims.iter().product()] };
    let [.., grid_rows, grid_cols] = grid(dims, group)[..] else { return vec![] };
    let n: usize = dims.iter().product();
    let place = |i: usize| {
        let (matrix, row, col) = (i / (rows * cols).max(1), i / cols % rows, i % cols);
        let (r, c) = (row / group[0] as usize, col / group[1] as usize);
        (matrix * grid_rows + r) * grid_cols + c
    };
    (0..n).map(place).collect()
}

pub(super) fn quantize(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let values = x.floats()?;
    let (dtype, scale) = (cx.dtype("dtype")?, cx.dtype("scale")?);
    let format = Format::of(dtype).ok_or("codes are of a narrow format")?;
    let max = format.decode(format.max) as f64;
    let group = group(cx, "group")?;
    let places = scale_places(&x.dims, group);
    let dims = grid(&x.dims, group);
    let mut amax = vec![0.0f64; dims.iter().product()];
    for (x, place) in values.iter().zip(&places) {
        if x.is_finite() {
            amax[*place] = amax[*place].max(x.abs());
        }
    }
    let floor = cx.float("floor");
    let scales: Vec<f64> = amax.iter().map(|a| scale_of(cx, a.max(floor), max, scale)).collect();
    let exact = cx.run.precision == Precision::F64;
    let code = |(x, place): (&f64, &usize)| match exact {
        true => x / scales[*place],
        // The quotient is an f32, as a kernel's is.
        false => formats::round(dtype, (*x as f32) / scales[*place] as f32) as f64,
    };
    let codes = values.iter().zip(&places).map(code).collect();
    let scales = Tensor::float(scale, &dims, scales);
    Ok(Tensor { scales: Some(Box::new(scales)), ..cx.floats(0, codes)? })
}

/// The same as two values.
pub(super) fn encode(cx: &Cx, x: &Tensor) -> Result<Vec<Tensor>, Fault> {
    let mut codes = quantize(cx, x)?;
    let scales = codes.scales.take().ok_or("codes have scales")?;
    Ok(vec![codes, *scales])
}

/// Of what other codes stand for.
pub(super) fn recode(cx: &Cx, codes: &Tensor, scales: &Tensor) -> Result<Vec<Tensor>, Fault> {
    let [rows, cols] = *cx.ints("x_group") else { return Err("`x_group` has two sides".into()) };
    let through = cx.attrs.get_dtype("through").ok_or("it says what codes are read as")?;
    let places = scale_places(&codes.dims, [rows as u32, cols as u32]);
    let (of, scales) = (codes.floats()?, scales.floats()?);
    let value = |(c, p): (&f64, usize)| match cx.run.precision {
        Precision::F64 => c * scales[p],
        Precision::Stated => formats::round(through, (c * scales[p]) as f32) as f64,
    };
    let values = of.iter().zip(places).map(value).collect();
    encode(cx, &Tensor::float(through, &codes.dims, values))
}

/// `amax / max`, or the power of two not below it; 1 of nothing.
fn scale_of(cx: &Cx, amax: f64, max: f64, dtype: DType) -> f64 {
    if amax == 0.0 {
        return 1.0;
    }
    let ratio = cx.f32(amax / max);
    // An amax so small that the quotient is 0 has no scale of its own either.
    match (dtype, ratio == 0.0) {
        (_, true) => 1.0,
        (DType::Ue8m0, _) => formats::round(DType::Ue8m0, ratio as f32) as f64,
        _ => ratio,
    }
}

pub(super) fn dequantize(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let scales = x.scales.as_ref().ok_or("a quantized value has scales")?;
    let group = cx.group_of(0)?;
    let (codes, scales) = (x.floats()?, scales.floats()?);
    let places = scale_places(&x.dims, group);
    cx.floats(0, codes.iter().zip(places).map(|(c, p)| c * scales[p]).collect())
}

/// A matrix of codes and their scales; `swap` reads it transposed.
pub(super) struct Coded<'a> {
    pub codes: &'a [f64],
    pub scales: &'a [f64],
    pub cols: usize,
    pub group: [u32; 2],
    pub swap: bool,
}

impl Coded<'_> {
    fn at(&self, i: usize, j: usize) -> (usize, usize) {
        if self.swap { (j, i) } else { (i, j) }
    }

    fn code(&self, i: usize, j: usize) -> f64 {
        let (r, c) = self.at(i, j);
        self.codes[r * self.cols + c]
    }

    fn scale(&self, i: usize, j: usize) -> f64 {
        let (r, c) = self.at(i, j);
        let width = self.cols.div_ceil(self.group[1] as usize);
        self.scales[r / self.group[0] as usize * width + c / self.group[1] as usize]
    }

    /// The side of a group along the columns of what is read, or along its rows.
    fn side(&self, along_cols: bool) -> usize {
        self.group[usize::from(along_cols != self.swap)] as usize
    }
}

/// `Σ_k x[i, k] y[k, j]` over `terms`, for every `i` below `m` and `j` below `n`.
pub(super) fn product(
    cx: &Cx,
    x: &Coded,
    y: &Coded,
    (m, n): (usize, usize),
    terms: std::ops::Range<usize>,
) -> Vec<f64> {
    let hopper = cx.attrs.get_word("accumulate") == Some("hopper14");
    let promote = cx.attrs.get_int("promote").map(|n| n as usize);
    let unit = promote.unwrap_or_else(|| x.side(true).min(y.side(false)));
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            out.push(match (cx.run.precision, hopper && promote.is_none()) {
                (Precision::F64, _) => terms
                    .clone()
                    .map(|k| x.code(i, k) * x.scale(i, k) * y.code(k, j) * y.scale(k, j))
                    .sum(),
                (Precision::Stated, true) => {
                    let term = |k: usize| {
                        let scale = (x.scale(i, k) * y.scale(k, j)) as f32;
                        (x.code(i, k) * y.code(k, j)) as f32 * scale
                    };
                    hopper14(terms.clone().map(|k| f64::from(term(k))))
                }
                (Precision::Stated, false) => blocks(x, y, (i, j), terms.clone(), unit, hopper),
            });
        }
    }
    out
}

/// The sum of one element, block by block: each a chain of fused multiply-adds in f32, multiplied
/// by its scales and added by one more. A kernel that does not add in pairs has the same bits.
fn blocks(
    x: &Coded,
    y: &Coded,
    (i, j): (usize, usize),
    terms: std::ops::Range<usize>,
    unit: usize,
    hopper: bool,
) -> f64 {
    let (mut sum, mut k) = (0.0f32, terms.start);
    while k < terms.end {
        // Blocks are counted from the start of the array.
        let end = terms.end.min((k / unit + 1) * unit);
        let codes = (k..end).map(|k| (x.code(i, k), y.code(k, j)));
        let partial = match hopper {
            true => hopper14(codes.map(|(a, b)| a * b)) as f32,
            // In order of k, each product exact and each sum rounded.
            false => codes.fold(0.0f32, |sum, (a, b)| (a as f32).mul_add(b as f32, sum)),
        };
        let scale = (x.scale(i, k) * y.scale(k, j)) as f32;
        sum = partial.mul_add(scale, sum);
        k = end;
    }
    f64::from(sum)
}

/// What a Hopper tensor core's accumulator holds after `terms`, 32 at a time: the products and the
/// accumulator are cut off toward zero to 14 bits of the largest of them and added exactly.
fn hopper14(terms: impl Iterator<Item = f64>) -> f64 {
    let terms: Vec<f64> = terms.collect();
    let mut sum = 0.0f64;
    for step in terms.chunks(STEP) {
        let all: Vec<f64> = step.iter().copied().chain([sum]).collect();
        if all.iter().any(|v| !v.is_finite()) {
            sum = all.iter().sum();
            continue;
        }
        let largest = all.iter().fold(0.0f64, |a, v| a.max(v.abs()));
        let exponent = match largest == 0.0 {
            true => EXPONENT_MIN,
            // Every finite f32 but zero is a normal f64.
            false => ((largest.to_bits() >> 52) as i32 - 1023).max(EXPONENT_MIN),
        };
        let unit = 2f64.powi(exponent - KEPT);
        sum = all.iter().map(|v| (v / unit).trunc()).sum::<f64>() * unit;
    }
    sum
}

/// The scales of an operand, and the group that shares one.
type Scales<'a> = (&'a [f64], [u32; 2]);

/// The scales of operand `i`, if it has any: in the value, or `n` operands behind it.
pub(super) fn scales_of<'a>(
    cx: &Cx,
    xs: &[&'a Tensor],
    i: usize,
    n: usize,
) -> Result<Option<Scales<'a>>, Fault> {
    if let Some(scales) = &xs[i].scales {
        return Ok(Some((scales.floats()?, cx.group_of(i)?)));
    }
    match xs.get(n + i) {
        Some(scales) => {
            let name = if i == 0 { "x_group" } else { "y_group" };
            Ok(Some((scales.floats()?, group(cx, name)?)))
        }
        None => Ok(None),
    }
}

/// Elements of a matrix of scales.
pub(super) fn scales_len(rows: usize, cols: usize, group: [u32; 2]) -> usize {
    grid(&[rows, cols], group).iter().product()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fourteen_bits_are_kept() {
        // 2^13 units of the largest; what is smaller than a unit is cut off.
        assert_eq!(hopper14([8192.0, 0.75].into_iter()), 8192.0);
        assert_eq!(hopper14([8192.0, 1.75].into_iter()), 8193.0);
        assert_eq!(hopper14([-8192.0, -1.75].into_iter()), -8193.0);
        // The accumulator is cut like a product in the next step of 32.
        let mut terms = vec![1.0; 33];
        terms[0] = 0.0;
        terms[32] = 65536.0;
        assert_eq!(hopper14(terms.into_iter()), 65560.0);
        assert!(hopper14([f64::INFINITY, 1.0].into_iter()).is_infinite());
    }

    #[test]
    fn partial_groups_have_scales_of_their_own() {
        assert_eq!(grid(&[2, 5, 576], [1, 128]), [2, 5, 5]);
        let places = scale_places(&[3, 5], [2, 3]);
        assert_eq!(places, [0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3]);
    }
}
