//! Products of codes: each block's partial sums, scaled and added in f32.

use weft_codegen::emit::{Cg, Cmp, Elem, Ty, Val};
use weft_codegen::narrow;

use super::Gemm;
use crate::gemm::kernel::{Args, strided};
use crate::gemm::schedule::Tile;
use crate::gemm::{BLOCK_K, Blocks, ScaleType};
use crate::ptx::wgmma::Products;
use crate::tiles::fragment::{n_sums, pairs, wide};
use crate::tiles::ring::{Place, Ring};
use crate::tiles::roles::Consumer;

/// What is loaded of scales for a block of k, before the stage is waited for.
struct BlockScales<'c> {
    /// Of the thread's two rows.
    a: [Val<'c>; 2],
    /// Of the columns of each product.
    b: Vec<ColumnScales<'c>>,
}

/// Whose scales: A's, or the B's of a product.
#[derive(Clone, Copy)]
enum Scaled {
    A,
    B(usize),
}

enum ColumnScales<'c> {
    /// Columns before `bound` of the tile have the first, the others the second.
    Groups { of: [Val<'c>; 2], bound: Val<'c> },
    /// One for all columns.
    One(Val<'c>),
    /// Each column has its own: for every eight columns, the thread's two.
    Each(Vec<[Val<'c>; 2]>),
}

impl Gemm {
    pub(super) fn promote<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        ring: &Ring<'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
        place: Place<'c>,
    ) -> (Vec<Vec<Val<'c>>>, Place<'c>) {
        let (first, end) = self.blocks(cg, tile);
        let (n, n_products) = (n_sums(self.tile_cols), self.n_products());
        let zeros = vec![cg.zero(Ty::F32); n];
        let mut init = place.values().to_vec();
        init.extend(vec![cg.zero(Ty::F32); n * n_products]);
        let products = self.products();
        let out = cg.for_(first, end, 1, &init, |block, carried| {
            let place = Place::of(carried);
            let scales = self.block_scales(cg, args, consumer, tile, block);
            let stage = self.arrived(cg, ring, consumer, tile, block, place);
            let mut next = ring.next(cg, place).values().to_vec();
            // One product after the other, in the same registers: there are none for two.
            let mut partial = zeros.clone();
            for (p, sums) in carried[2..].chunks(n).enumerate() {
                let operands = self.descriptors(cg, consumer, stage, p);
                let (_, n_terms) = self.terms(cg, tile, block);
                partial = self.block_sums(cg, &products, &partial, operands, n_terms);
                if p + 1 == n_products {
                    ring.release_if(cg, consumer.leads, place.stage);
                }
                next.extend(self.promoted(cg, scales.a, &scales.b[p], &partial, sums));
            }
            next
        });
        (out[2..].chunks(n).map(<[Val]>::to_vec).collect(), Place::of(&out))
    }

    /// The products of a block, which leave nothing of `partial`.
    fn block_sums<'c>(
        &self,
        cg: &Cg<'c>,
        products: &Products,
        partial: &[Val<'c>],
        operands: [Val<'c>; 2],
        n_terms: Val<'c>,
    ) -> Vec<Val<'c>> {
        let whole = || products.start(cg, partial, operands, cg.i1(false), Some(0));
        if self.hopper14 != Some(Blocks::Partial) {
            return whole();
        }
        // Of a block that ends before its last step, one step after the other.
        let k = self.kind.k();
        let step = Products { steps: vec![[0, 0]], ..products.clone() };
        let all = cg.cmp(Cmp::Gt, n_terms, self.stage_k() - k as i32);
        cg.if_else(all, whole, || {
            let n_steps = cg.div_ceil(n_terms, k as i32);
            cg.for_(cg.i32(0), n_steps, 1, partial, |i, partial| {
                let further = cg.mul(wide(cg, i), i64::from(self.a_tile().descriptor_step(k)));
                let operands = operands.map(|operand| cg.add(operand, further));
                step.start(cg, partial, operands, cg.cmp(Cmp::Ne, i, 0), Some(0))
            })
        })
    }

    /// `sum + partial * (scale of the row * scale of the column)`.
    fn promoted<'c>(
        &self,
        cg: &Cg<'c>,
        of_rows: [Val<'c>; 2],
        of_columns: &ColumnScales<'c>,
        partial: &[Val<'c>],
        sums: &[Val<'c>],
    ) -> Vec<Val<'c>> {
        let mut out = sums.to_vec();
        // Of few scales the products are few: by row, and by group of columns.
        let by_row = |b: Val<'c>| of_rows.map(|a| cg.mul(a, b));
        let whole = match of_columns {
            ColumnScales::One(b) => vec![by_row(*b)],
            ColumnScales::Groups { of, .. } => of.iter().map(|b| by_row(*b)).collect(),
            ColumnScales::Each(_) => vec![],
        };
        for pair in pairs(self.tile_cols) {
            let both = match of_columns {
                ColumnScales::One(_) => [whole[0][pair.half]; 2],
                ColumnScales::Groups { bound, .. } => {
                    let before = cg.cmp(Cmp::Gt, *bound, pair.col as i32);
                    [cg.select(before, whole[0][pair.half], whole[1][pair.half]); 2]
                }
                ColumnScales::Each(of) => {
                    of[pair.col as usize / 8].map(|b| cg.mul(of_rows[pair.half], b))
                }
            };
            for (i, scale) in both.into_iter().enumerate() {
                let at = pair.index + i;
                out[at] = cg.fma(partial[at], scale, sums[at]);
            }
        }
        out
    }

    fn block_scales<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
        block: Val<'c>,
    ) -> BlockScales<'c> {
        let last_row = cg.sub(tile.row_end, 1);
        let row = cg.add(tile.row, cg.add(consumer.first_row, consumer.lanes.row));
        let a = [0, 8].map(|half| {
            // Rows beyond the last are not stored, but their scale must be somewhere.
            let row = cg.min(cg.add(row, half), last_row);
            let group = self.scales.map_or(1, |s| s[0].rows);
            self.scale(cg, args, Scaled::A, tile, cg.div(row, group as i32), block)
        });
        let of = |p| self.column_scales(cg, args, consumer, tile, block, p);
        BlockScales { a, b: (0..self.n_products()).map(of).collect() }
    }

    fn column_scales<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
        block: Val<'c>,
        p: usize,
    ) -> ColumnScales<'c> {
        let group = self.scales.map_or(1, |s| s[1].rows);
        let last_col = cg.sub(args.n, 1);
        if group == 1 {
            let at = |col: Val<'c>| {
                let col = cg.min(cg.add(tile.col, col), last_col);
                self.scale(cg, args, Scaled::B(p), tile, col, block)
            };
            let both = |eight: u32| {
                let col = cg.add(consumer.lanes.col, (8 * eight) as i32);
                [at(col), at(cg.add(col, 1))]
            };
            return ColumnScales::Each((0..self.tile_cols / 8).map(both).collect());
        }
        let width = group as i32;
        let first = cg.div(tile.col, width);
        let of = |i: Val<'c>| self.scale(cg, args, Scaled::B(p), tile, i, block);
        if group.is_multiple_of(self.tile_cols) {
            return ColumnScales::One(of(first));
        }
        let second = cg.min(cg.add(first, 1), cg.div(last_col, width));
        let bound = cg.sub(cg.mul(cg.add(first, 1), width), tile.col);
        ColumnScales::Groups { of: [of(first), of(second)], bound }
    }

    /// The scale of row (or group of columns) `i` for the terms of `block`.
    fn scale<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        of: Scaled,
        tile: &Tile<'c>,
        i: Val<'c>,
        block: Val<'c>,
    ) -> Val<'c> {
        let (Some(scales), Some(strides)) = (self.scales, args.scale_strides) else {
            panic!("{} has no scales", self.name());
        };
        // Those of A come first.
        let (side, base) = match of {
            Scaled::A => (0, args.scales[0]),
            Scaled::B(p) => (1, args.scales[1 + p]),
        };
        let [rows, k, groups] = strides[side];
        let at = cg.add(strided(cg, i, rows), strided(cg, block, k));
        let at = cg.add(at, strided(cg, tile.group, groups));
        match scales[side].dtype {
            ScaleType::F32 => cg.load(Ty::F32, cg.at(base, Elem::F32, at)),
            ScaleType::Ue8m0 => {
                let code = cg.load(Elem::I8.x(1), cg.at(base, Elem::I8, at));
                narrow::decode_scale(cg, cg.zext(code, Elem::I32))
            }
        }
    }
}

// A stage of codes is a block of scales.
const _: () = assert!(BLOCK_K == crate::tiles::shared::LINE_BYTES);
