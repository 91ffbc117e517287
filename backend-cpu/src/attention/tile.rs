//! The two inner products everything here is made of, and the exponential.
//!
//! One operand is broadcast, element by element, from wherever it lies; the other is a matrix in
//! scratch whose rows are a few vectors.

use weft_codegen::emit::{Cg, Elem, Target, Val};
use weft_codegen::math::polynomial;

/// Lanes of query rows: what one pass over the keys serves.
#[derive(Clone, Copy)]
pub struct Tile {
    pub lanes: u32,
    pub vectors: u32,
    /// Rows of a product that fill the registers.
    pub rows: u32,
    /// The same where a product's rows are consecutive elements.
    pub elements: u32,
}

/// Query rows of the widest tile of any CPU variant.
pub const TILE_ROWS_MAX: u32 = 32;
/// What widths are rounded up to in scratch: the lanes of the widest vector of any variant.
pub const LANES_MAX: u32 = 16;
/// Every [`Tile::rows`] divides this.
pub const ROW_STEP: u32 = 12;

pub fn padded(width: u32) -> u32 {
    width.next_multiple_of(LANES_MAX)
}

impl Tile {
    pub fn new(target: &Target, block_rows: u32) -> Tile {
        let lanes = target.lanes;
        let vectors = if block_rows >= 2 * lanes { 2 } else { 1 };
        let roomy = target.vector_registers >= 32;
        let rows = if roomy || vectors == 1 { 12 } else { 6 };
        Tile { lanes, vectors, rows, elements: if roomy || vectors == 1 { 8 } else { 4 } }
    }

    /// Query rows of a tile.
    pub fn width(&self) -> u32 {
        self.lanes * self.vectors
    }

    /// The vectors of a row of a scratch matrix at `ptr`.
    pub fn load<'c>(&self, cg: &Cg<'c>, ptr: Val<'c>) -> Vec<Val<'c>> {
        (0..self.vectors).map(|v| self.load_one(cg, Elem::F32, ptr, v)).collect()
    }

    /// Vector `v` of a row.
    pub fn load_one<'c>(&self, cg: &Cg<'c>, elem: Elem, ptr: Val<'c>, v: u32) -> Val<'c> {
        cg.load_aligned(elem.x(self.lanes), at(cg, ptr, v * self.lanes), 4 * self.lanes)
    }

    pub fn store<'c>(&self, cg: &Cg<'c>, vectors: &[Val<'c>], ptr: Val<'c>) {
        for (v, x) in vectors.iter().enumerate() {
            cg.store_aligned(*x, at(cg, ptr, v as u32 * self.lanes), 4 * self.lanes);
        }
    }
}

/// `ptr` and `n` f32 on.
pub fn at<'c>(cg: &Cg<'c>, ptr: Val<'c>, n: u32) -> Val<'c> {
    cg.at(ptr, Elem::F32, i64::from(n))
}

/// A matrix in scratch, aligned to vectors: `vectors` of a row are used, rows are `stride` apart.
#[derive(Clone, Copy)]
pub struct Matrix<'c> {
    pub ptr: Val<'c>,
    pub stride: u32,
    pub vectors: u32,
}

/// Steps in the body of a loop.
const UNROLL: u32 = 4;

/// `acc[r, v] += Σ_i a[offsets[r] + i] · b[i, v]` for `i` below `len`: one chain of fused steps
/// each.
pub fn dots<'c>(
    cg: &Cg<'c>,
    tile: &Tile,
    a: Val<'c>,
    offsets: &[Val<'c>],
    b: Matrix<'c>,
    len: u32,
    acc: &[Val<'c>],
) -> Vec<Val<'c>> {
    let step = |i: Val<'c>, acc: &[Val<'c>], steps: u32| {
        let mut acc = acc.to_vec();
        let a = cg.at(a, Elem::F32, i);
        let row = cg.at(b.ptr, Elem::F32, cg.mul(i, i64::from(b.stride)));
        for u in 0..steps {
            let row = at(cg, row, u * b.stride);
            let b: Vec<Val> =
                (0..b.vectors).map(|v| tile.load_one(cg, Elem::F32, row, v)).collect();
            for (r, offset) in offsets.iter().enumerate() {
                let x = cg.load(Elem::F32.x(1), at(cg, cg.at(a, Elem::F32, *offset), u));
                let x = cg.splat(x, tile.lanes);
                for (v, y) in b.iter().enumerate() {
                    let sum = &mut acc[r * b.len() + v];
                    *sum = cg.fma(x, *y, *sum);
                }
            }
        }
        acc
    };
    let whole = len - len % UNROLL;
    let hi = cg.i64(whole.into());
    let acc = cg.for_(cg.i64(0), hi, i64::from(UNROLL), acc, |i, acc| step(i, acc, UNROLL));
    if whole == len { acc } else { step(hi, &acc, len - whole) }
}

/// `to[x, v] = factor[v] · to[x, v] + Σ_t a[t, x] · b[t, v]` for `x` below `width` and `t` below
/// `n`. `b` and `to` have rows of one tile.
pub fn mix<'c>(
    cg: &Cg<'c>,
    tile: &Tile,
    a: super::args::Source<'c>,
    b: Val<'c>,
    to: Val<'c>,
    n: Val<'c>,
    factor: Option<&[Val<'c>]>,
) {
    let stride = tile.width();
    let group = |x0: Val<'c>, elements: u32| {
        let a_at = cg.at(a.ptr, a.elem, x0);
        let to = cg.at(to, Elem::F32, cg.mul(x0, i64::from(stride)));
        let row = |x: u32| at(cg, to, x * stride);
        let mut acc: Vec<Val> = (0..elements).flat_map(|x| tile.load(cg, row(x))).collect();
        if let Some(factor) = factor {
            acc.iter_mut().zip(factor.iter().cycle()).for_each(|(x, f)| *x = cg.mul(*x, *f));
        }
        let step = |t: Val<'c>, acc: &[Val<'c>], steps: u32| {
            let mut acc = acc.to_vec();
            for u in 0..steps {
                let t = cg.add(t, i64::from(u));
                let a = cg.at(a_at, Elem::F32, a.behind(cg, t));
                let b = tile.load(cg, cg.at(b, Elem::F32, cg.mul(t, i64::from(stride))));
                for x in 0..elements {
                    let word = cg.splat(cg.load(Elem::F32.x(1), at(cg, a, x)), tile.lanes);
                    for (v, b) in b.iter().enumerate() {
                        let sum = &mut acc[x as usize * b_len(tile) + v];
                        *sum = cg.fma(word, *b, *sum);
                    }
                }
            }
            acc
        };
        let whole = cg.and(n, -2);
        let acc = cg.for_(cg.i64(0), whole, 2, &acc, |t, acc| step(t, acc, 2));
        let acc = cg.for_(whole, n, 1, &acc, |t, acc| step(t, acc, 1));
        for (x, sums) in acc.chunks(b_len(tile)).enumerate() {
            tile.store(cg, sums, row(x as u32));
        }
    };
    let whole = a.width - a.width % tile.elements;
    cg.for_each(cg.i64(0), cg.i64(whole.into()), i64::from(tile.elements), |x| {
        group(x, tile.elements);
    });
    if whole != a.width {
        group(cg.i64(whole.into()), a.width - whole);
    }
}

/// `x` as an element can hold it.
pub fn rounded<'c>(cg: &Cg<'c>, x: Val<'c>, elem: Elem) -> Val<'c> {
    cg.cast(cg.cast(x, elem), Elem::F32)
}

fn b_len(tile: &Tile) -> usize {
    tile.vectors as usize
}

/// 1.5 · 2^23 + 127: a sum with it rounds to the nearest integer n and holds n + 127 in its low
/// bits.
const ROUNDER: f32 = 12_583_039.0;

/// 2^x, for x below 127; exactly 0 from -127 down, exactly 1 at 0. NaN stays. Within 1.2 ulp, in
/// half the steps of `math::exp`, which must also overflow and give denormals.
pub fn exp2<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    let x = cg.max(cg.float(x.ty, -127.0), x);
    let shifted = cg.add(x, ROUNDER);
    let r = cg.sub(x, cg.sub(shifted, ROUNDER));
    let p = cg.fma(polynomial(cg, r, &EXP2_TAIL), r, 1.0f32);
    let bits = cg.bitcast(shifted, x.ty.with(Elem::I32));
    cg.mul(p, cg.bitcast(cg.shl(bits, 23), x.ty))
}

/// (2^r - 1) / r on |r| <= 1/2.
const EXP2_TAIL: [f64; 6] =
    [0.000154531634, 0.00133908633, 0.00961808302, 0.0555035695, 0.240226507, 0.693147182];
