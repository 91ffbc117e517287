//! Blocks of keys against a tile of query rows: products of all their elements, and the masks.

use weft_codegen::emit::{Cg, Cmp, Elem, Ty, Val};

use super::Shape;
use super::args::{Args, Source, Unit};
use super::rows::RowTile;
use super::tile::{Matrix, Tile, at, dots};

/// What the lanes of a tile see.
pub struct Sight<'c> {
    /// End of the keys that a row of the tile may see.
    pub end: Val<'c>,
    /// i32, the last key each lane sees; without causality all.
    limits: Option<Vec<Val<'c>>>,
    /// The last key that all lanes see.
    limit_min: Val<'c>,
    /// i32, the segment of each lane, and those of the keys.
    segments: Option<(Vec<Val<'c>>, Val<'c>)>,
}

/// Words of scratch [`Sight::of`] needs, in tiles of i32.
pub const SIGHT_ARRAYS: u32 = 2;

impl<'c> Sight<'c> {
    pub fn of(
        cg: &Cg<'c>,
        shape: &Shape,
        args: &Args<'c>,
        unit: &Unit<'c>,
        (tile, rows): (&Tile, &RowTile<'c>),
        scratch: Val<'c>,
    ) -> Sight<'c> {
        let ids = at(cg, scratch, tile.width());
        rows.each_lane(cg, shape, unit, tile, |row| {
            let limit = cg.cast(cg.add(row.query, unit.start), Elem::I32);
            cg.store(limit, cg.at(scratch, Elem::I32, row.lane));
            if let Some(of_query) = args.query_segments {
                let place = cg.add(cg.mul(unit.batch, args.queries), row.query);
                let id = cg.load(Ty::I32, cg.at(of_query, Elem::I32, place));
                cg.store(id, cg.at(ids, Elem::I32, row.lane));
            }
        });
        let load = |ptr| (0..tile.vectors).map(|v| tile.load_one(cg, Elem::I32, ptr, v)).collect();
        let limit = |row| cg.add(shape.place(cg, unit, row).0, unit.start);
        let last = cg.sub(cg.add(rows.first, rows.len(cg, tile)), 1);
        let end = match shape.causal {
            true => cg.min(args.keys, cg.add(limit(last), 1)),
            false => args.keys,
        };
        Sight {
            end,
            limits: shape.causal.then(|| load(scratch)),
            limit_min: limit(rows.first),
            segments: unit.key_segments.map(|of_keys| (load(ids), of_keys)),
        }
    }

    /// `scores` (a row of vectors for each key of `keys`), -infinity where the lane does not see
    /// the key.
    fn mask(
        &self,
        cg: &Cg<'c>,
        tile: &Tile,
        keys: &[Val<'c>],
        scores: Vec<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let vectors = tile.vectors as usize;
        let each = |scores: &[Val<'c>], sees: &dyn Fn(Val<'c>, usize) -> Val<'c>| -> Vec<Val<'c>> {
            let hidden = cg.float(scores[0].ty, f64::NEG_INFINITY);
            let row = |(r, x): (usize, &Val<'c>)| {
                cg.select(sees(keys[r / vectors], r % vectors), *x, hidden)
            };
            scores.iter().enumerate().map(row).collect()
        };
        let mut scores = scores;
        if let Some(limits) = &self.limits {
            let sees = |key, v: usize| {
                let key = cg.splat(cg.cast(key, Elem::I32), tile.lanes);
                cg.cmp(Cmp::Le, key, limits[v])
            };
            let last = keys[keys.len() - 1];
            let some_hidden = cg.cmp(Cmp::Gt, last, self.limit_min);
            scores = cg.if_else(some_hidden, || each(&scores, &sees), || scores.clone());
        }
        if let Some((ids, of_keys)) = &self.segments {
            scores = each(&scores, &|key, v| {
                let id = cg.load(Ty::I32, cg.at(*of_keys, Elem::I32, key));
                cg.cmp(Cmp::Eq, cg.splat(id, tile.lanes), ids[v])
            });
        }
        scores
    }
}

/// The keys of one register tile: the first, and how far each is behind it. Beyond the block's end
/// the last key repeats.
pub struct KeyRows<'c> {
    pub first: Val<'c>,
    pub behind: Vec<Val<'c>>,
}

/// Runs `body` for register tiles of the keys below `n`, carrying values.
fn each_key_tile<'c>(
    cg: &Cg<'c>,
    tile: &Tile,
    n: Val<'c>,
    init: &[Val<'c>],
    body: impl Fn(&KeyRows<'c>, &[Val<'c>]) -> Vec<Val<'c>>,
) -> Vec<Val<'c>> {
    let rows = i64::from(tile.rows);
    let whole = cg.mul(cg.div(n, rows), rows);
    let carried = cg.for_(cg.i64(0), whole, rows, init, |first, carried| {
        let behind = (0..rows).map(|r| cg.i64(r)).collect();
        body(&KeyRows { first, behind }, carried)
    });
    cg.for_(whole, n, rows / 3, &carried, |first, carried| {
        let left = cg.sub(cg.sub(n, 1), first);
        let behind = (0..rows / 3).map(|r| cg.min(cg.i64(r), left)).collect();
        body(&KeyRows { first, behind }, carried)
    })
}

/// `Σ_j source_j[key] · to_j[.., lane]` for the keys of a register tile of the block, with which
/// the sources start.
fn products<'c>(
    cg: &Cg<'c>,
    tile: &Tile,
    terms: &[(Source<'c>, Val<'c>)],
    keys: &KeyRows<'c>,
) -> Vec<Val<'c>> {
    let zero = cg.zero(Elem::F32.x(tile.lanes));
    let acc = vec![zero; keys.behind.len() * tile.vectors as usize];
    terms.iter().fold(acc, |acc, (source, lanes)| {
        let (a, offsets): (Val, Vec<Val>) = match source.rows {
            None => {
                let a = source.from(cg, keys.first).ptr;
                (a, keys.behind.iter().map(|r| cg.mul(*r, source.row)).collect())
            }
            Some(_) => {
                let key = |r: &Val<'c>| source.behind(cg, cg.add(keys.first, *r));
                (source.ptr, keys.behind.iter().map(key).collect())
            }
        };
        let b = Matrix { ptr: *lanes, stride: tile.width(), vectors: tile.vectors };
        dots(cg, tile, a, &offsets, b, source.width, &acc)
    })
}

fn store_tile<'c>(cg: &Cg<'c>, tile: &Tile, keys: &KeyRows<'c>, values: &[Val<'c>], to: Val<'c>) {
    let to = cg.at(to, Elem::F32, cg.mul(keys.first, i64::from(tile.width())));
    for (r, row) in values.chunks(tile.vectors as usize).enumerate() {
        tile.store(cg, row, at(cg, to, r as u32 * tile.width()));
    }
}

/// Stores the products of the block's `n` keys as rows at `to`; writes up to a register tile more.
pub fn block_products<'c>(
    cg: &Cg<'c>,
    tile: &Tile,
    terms: &[(Source<'c>, Val<'c>)],
    n: Val<'c>,
    to: Val<'c>,
) {
    each_key_tile(cg, tile, n, &[], |keys, _| {
        let sums = products(cg, tile, terms, keys);
        store_tile(cg, tile, keys, &sums, to);
        vec![]
    });
}

/// The same of keys `t0..t0 + n`, masked; gives the largest of each lane.
pub fn block_scores<'c>(
    cg: &Cg<'c>,
    tile: &Tile,
    terms: &[(Source<'c>, Val<'c>)],
    sight: &Sight<'c>,
    (t0, n): (Val<'c>, Val<'c>),
    to: Val<'c>,
) -> Vec<Val<'c>> {
    let lowest = cg.float(Elem::F32.x(tile.lanes), f64::NEG_INFINITY);
    let init = vec![lowest; tile.vectors as usize];
    each_key_tile(cg, tile, n, &init, |keys, largest| {
        let sums = products(cg, tile, terms, keys);
        let first = cg.add(t0, keys.first);
        let places: Vec<Val> = keys.behind.iter().map(|r| cg.add(first, *r)).collect();
        let scores = sight.mask(cg, tile, &places, sums);
        store_tile(cg, tile, keys, &scores, to);
        let mut largest = largest.to_vec();
        for row in scores.chunks(largest.len()) {
            // NaN is passed over here and comes back with its exponential.
            largest.iter_mut().zip(row).for_each(|(m, x)| *m = cg.max(*x, *m));
        }
        largest
    })
}
