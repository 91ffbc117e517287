//! Codes and group scales of a row of f32 in scratch: what a kernel ends in that makes rows which
//! are wanted as codes.
//!
//! The arithmetic is `quantize`'s (`ir/src/op.rs`), as regions have it, so the bits do not depend
//! on who encodes. Envelope: a comparison for each element, then a division and about 20 operations
//! of encoding, from L1.

use weft_ir::formats::Format;
use weft_ir::ty::DType;

use crate::emit::{Cg, Cmp, Elem, Val};
use crate::narrow;
use crate::region::{pack12, scalar};

/// How a row is encoded.
#[derive(Clone, Debug, PartialEq)]
pub struct RowCodes {
    pub code: DType,
    /// f32 or ue8m0.
    pub scale: DType,
    /// Elements of a group.
    pub group: u32,
    /// The least amax that a scale is made of; 0 where there is none.
    pub floor: f64,
}

/// Where a row's codes go.
#[derive(Clone, Copy)]
pub struct Target<'c> {
    /// The first code of the array; the row's is `first` elements on.
    pub codes: Val<'c>,
    pub first: Val<'c>,
    /// The row's first scale.
    pub scales: Val<'c>,
}

/// `size` where it is finite and above `top`, else `top`: what is infinite or no number takes no
/// part in a scale.
pub fn larger<'c>(cg: &Cg<'c>, size: Val<'c>, top: Val<'c>) -> Val<'c> {
    let finite = cg.cmp(Cmp::Le, size, cg.float(size.ty, f64::from(f32::MAX)));
    cg.select(cg.and(cg.cmp(Cmp::Gt, size, top), finite), size, top)
}

/// The scale of groups whose largest elements are `top`, rounded to `scale`.
pub fn scale_of<'c>(cg: &Cg<'c>, top: Val<'c>, code: Format, scale: DType) -> Val<'c> {
    let ratio = cg.div(top, cg.float(top.ty, f64::from(code.decode(code.max))));
    let none = cg.cmp(Cmp::Eq, ratio, 0.0f32);
    let ratio = cg.select(none, cg.float(top.ty, 1.0), ratio);
    scalar::round(cg, ratio, scale)
}

impl RowCodes {
    /// Part of a kernel's name: equal names promise equal code.
    pub fn name(&self) -> String {
        let floor =
            if self.floor > 0.0 { format!("f{:x}", self.floor.to_bits()) } else { "".into() };
        format!("{}x{}{}{floor}", self.code.name(), self.group, self.scale.name())
    }

    fn format(&self) -> Format {
        Format::of(self.code).expect("codes are of a narrow format")
    }

    /// Encodes `width` elements at `row`, which is aligned to vectors, as are its groups.
    pub fn emit<'c>(&self, cg: &Cg<'c>, row: Val<'c>, width: u32, to: Target<'c>) {
        let group = |g: Val<'c>, len: u32| {
            let start = cg.mul(g, i64::from(self.group));
            let to = Target { first: cg.add(to.first, start), ..to };
            let scale = cg.at(to.scales, scalar::memory(self.scale), g);
            self.group(cg, cg.at(row, Elem::F32, start), len, to, scale);
        };
        let (whole, rest) = (width / self.group, width % self.group);
        cg.for_each(cg.i64(0), cg.i64(whole.into()), 1, |g| group(g, self.group));
        if rest > 0 {
            group(cg.i64(whole.into()), rest);
        }
    }

    fn group<'c>(&self, cg: &Cg<'c>, x: Val<'c>, len: u32, to: Target<'c>, scale_at: Val<'c>) {
        let lanes = cg.target.lanes;
        let vector = Elem::F32.x(lanes);
        let (whole, rest) = (len - len % lanes, len % lanes);
        let (end, step) = (cg.i64(whole.into()), i64::from(lanes));
        let mask = (rest > 0).then(|| cg.mask_below(cg.i64(rest.into()), lanes));
        let load = |i: Val<'c>, mask| cg.load_tail(vector, cg.at(x, Elem::F32, i), mask);
        let start = cg.float(vector, self.floor);
        let top = cg.for_(cg.i64(0), end, step, &[start], |i, top| {
            vec![larger(cg, cg.abs(load(i, None)), top[0])]
        });
        let top = if mask.is_some() { larger(cg, cg.abs(load(end, mask)), top[0]) } else { top[0] };
        let scale = scale_of(cg, cg.reduce_max(top), self.format(), self.scale);
        cg.store(scalar::narrow(cg, scale, self.scale), scale_at);
        let code = |x: Val<'c>| {
            let each = if x.ty.lanes == 1 { scale } else { cg.splat(scale, lanes) };
            narrow::encode(cg, cg.div(x, each), self.format())
        };
        if self.code == DType::E5m6 {
            let place = |i: Val<'c>| pack12::byte_of(cg, to.codes, cg.add(to.first, i));
            cg.for_each(cg.i64(0), end, step, |i| {
                pack12::store_pairs(cg, code(load(i, None)), place(i));
            });
            cg.for_each(end, cg.i64(len.into()), 2, |i| {
                let one = |i: Val<'c>| code(cg.load(Elem::F32.x(1), cg.at(x, Elem::F32, i)));
                pack12::store_pair(cg, one(i), one(cg.add(i, 1)), place(i));
            });
            return;
        }
        let store = |i: Val<'c>, mask| {
            let place = cg.at(to.codes, Elem::I8, cg.add(to.first, i));
            cg.store_tail(cg.cast(code(load(i, mask)), Elem::I8), place, mask);
        };
        cg.for_each(cg.i64(0), end, step, |i| store(i, None));
        if mask.is_some() {
            store(end, mask);
        }
    }
}
