//! Codes of columns that are cut into groups of rows, in one pass over memory: a block of columns
//! of one group is read for its largest elements and, still near, again for its codes.
//!
//! Envelope: an element takes a comparison, then a division and about 20 operations of encoding: 2
//! cycles or so, where reading it from memory takes one.

use weft_ir::dim::Dim;
use weft_ir::formats::Format;
use weft_ir::ty::DType;

use super::scalar;
use crate::emit::{Cg, Cmp, Elem, Kernel, Val, WARP};
use crate::narrow;
use crate::row_codes::{larger, scale_of};

/// Vectors of a block of columns.
const VECTORS: u32 = 4;
/// Columns of a block on the target with the widest vectors; others do it in several steps.
pub(super) const COLUMNS: u64 = 64;

/// What x is the codes of: values with a scale for each group of a row.
#[derive(Clone, PartialEq, Debug)]
pub struct Decoded {
    /// Columns of a group, a multiple of `COLUMNS`.
    pub group: u64,
    pub scale: DType,
    /// What values are rounded to.
    pub through: DType,
}

/// `[lead, rows, cols]` in groups of `group` rows. Buffers: x, its scales if it is codes, codes,
/// scales `[lead, groups, cols]`.
#[derive(Clone, PartialEq, Debug)]
pub struct EncodeColumns {
    pub lead: Dim,
    pub rows: u64,
    pub cols: u64,
    pub group: u64,
    pub x: DType,
    pub decoded: Option<Decoded>,
    pub code: DType,
    pub scale: DType,
    pub floor: f64,
}

impl EncodeColumns {
    /// x, and its scales if it is codes.
    pub fn n_operands(&self) -> usize {
        1 + usize::from(self.decoded.is_some())
    }

    fn groups(&self) -> u64 {
        self.rows.div_ceil(self.group)
    }

    fn col_blocks(&self) -> u64 {
        self.cols.div_ceil(COLUMNS)
    }

    /// Units of work: a group of a block of columns each.
    pub fn units(&self) -> Option<Dim> {
        let each = self.groups().checked_mul(self.col_blocks())?;
        self.lead.checked_mul(Dim::fixed(each))
    }

    /// `lane`: the thread's, where a warp does the unit.
    pub fn unit<'c>(&self, cg: &Cg<'c>, k: &Kernel<'c>, unit: Val<'c>, lane: Option<Val<'c>>) {
        let (blocks, groups) = (self.col_blocks() as i64, self.groups() as i64);
        let (rest, block) = (cg.div(unit, blocks), cg.rem(unit, blocks));
        let (matrix, group) = (cg.div(rest, groups), cg.rem(rest, groups));
        let first = cg.mul(group, self.group as i64);
        let end = cg.min(cg.add(first, self.group as i64), self.rows as i64);
        let row0 = cg.mul(matrix, self.rows as i64);
        let rows = (cg.add(row0, first), cg.add(row0, end));
        let scales = cg.mul(rest, self.cols as i64);
        let step = i64::from(VECTORS * cg.target.lanes);
        let from = cg.mul(block, COLUMNS as i64);
        let to = cg.min(cg.add(from, COLUMNS as i64), self.cols as i64);
        if let Some(lane) = lane {
            return cg.for_each(cg.add(from, lane), to, i64::from(WARP), |col| {
                self.columns(cg, k, rows, scales, col, &[None]);
            });
        }
        cg.for_each(from, to, step, |col| {
            let left = cg.sub(to, col);
            let body = |masks: &[Option<Val<'c>>]| self.columns(cg, k, rows, scales, col, masks);
            let whole = cg.cmp(Cmp::Ge, left, step);
            cg.if_else(
                whole,
                || {
                    body(&[None; VECTORS as usize]);
                    vec![]
                },
                || {
                    let lanes = cg.target.lanes;
                    let mask = |v: u32| cg.mask_below(cg.sub(left, i64::from(v * lanes)), lanes);
                    body(&(0..VECTORS).map(|v| Some(mask(v))).collect::<Vec<_>>());
                    vec![]
                },
            );
        });
    }

    /// Vectors of columns from `col` on, of the rows of one group.
    fn columns<'c>(
        &self,
        cg: &Cg<'c>,
        k: &Kernel<'c>,
        (first, end): (Val<'c>, Val<'c>),
        scales: Val<'c>,
        col: Val<'c>,
        masks: &[Option<Val<'c>>],
    ) {
        let out = self.n_operands();
        let (x, codes, scales_at) = (k.buffers[0], k.buffers[out], k.buffers[out + 1]);
        let lanes = cg.target.lanes;
        let float = Elem::F32.x(lanes);
        let elem = scalar::memory(self.x);
        let at = |ptr: Val<'c>, elem: Elem, line: Val<'c>, v: usize| {
            cg.at(ptr, elem, cg.add(line, cg.add(col, v as i64 * i64::from(lanes))))
        };
        let load = |row: Val<'c>, v: usize| {
            let from = at(x, elem, cg.mul(row, self.cols as i64), v);
            let value = scalar::widen(cg, cg.load_tail(elem.x(lanes), from, masks[v]), self.x);
            match &self.decoded {
                None => value,
                Some(decoded) => {
                    let col = cg.add(col, v as i64 * i64::from(lanes));
                    decoded.value(cg, k.buffers[1], value, (row, col), self.cols)
                }
            }
        };
        let start = vec![cg.float(float, self.floor); masks.len()];
        let top = cg.for_(first, end, 1, &start, |row, top| {
            let next = |(v, top): (usize, &Val<'c>)| larger(cg, cg.abs(load(row, v)), *top);
            top.iter().enumerate().map(next).collect()
        });
        let format = Format::of(self.code).expect("codes are of a narrow format");
        let scale = |(v, top): (usize, &Val<'c>)| {
            let scale = scale_of(cg, *top, format, self.scale);
            let to = at(scales_at, scalar::memory(self.scale), scales, v);
            cg.store_tail(scalar::narrow(cg, scale, self.scale), to, masks[v]);
            scale
        };
        let scale: Vec<Val> = top.iter().enumerate().map(scale).collect();
        cg.for_each(first, end, 1, |row| {
            for (v, scale) in scale.iter().enumerate() {
                let code = narrow::encode(cg, cg.div(load(row, v), *scale), format);
                let to = at(codes, Elem::I8, cg.mul(row, self.cols as i64), v);
                cg.store_tail(cg.cast(code, Elem::I8), to, masks[v]);
            }
        });
    }
}

impl Decoded {
    /// The values of `codes` that begin at a row and column; all are of one group.
    fn value<'c>(
        &self,
        cg: &Cg<'c>,
        scales: Val<'c>,
        codes: Val<'c>,
        (row, col): (Val<'c>, Val<'c>),
        cols: u64,
    ) -> Val<'c> {
        let group = cg.div(col, self.group as i64);
        let at = cg.add(cg.mul(row, cols.div_ceil(self.group) as i64), group);
        let elem = scalar::memory(self.scale);
        let scale = scalar::widen(cg, cg.load(elem.x(1), cg.at(scales, elem, at)), self.scale);
        let value = cg.mul(codes, cg.splat(scale, cg.target.lanes));
        scalar::round(cg, value, self.through)
    }
}
