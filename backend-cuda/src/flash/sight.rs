//! Which columns of a block of scores each row sees: keys, where rows are queries, or queries,
//! where rows are keys.

use weft_codegen::emit::{Cg, Cmp, Elem, Ty, Val};

use crate::tiles::fragment::{Lanes, pairs};

/// What a tile's masks are made of.
#[derive(Clone, Copy)]
pub struct Masks<'c> {
    /// Query `s` sees keys up to `s` plus this; none where it sees all.
    pub start: Option<Val<'c>>,
    /// i32 `[batch, queries]` and `[batch, keys]`: each sees its own.
    pub segments: Option<[Val<'c>; 2]>,
    pub batch: Val<'c>,
    pub queries: Val<'c>,
    pub keys: Val<'c>,
}

/// What a thread's two rows see.
pub struct Sight<'c> {
    /// The first column, and the one after the last; none where that is no limit.
    first: Option<[Val<'c>; 2]>,
    end: Option<[Val<'c>; 2]>,
    /// All rows of the warpgroup see the columns between these.
    all: [Option<Val<'c>>; 2],
    segments: Option<Segments<'c>>,
    col: Val<'c>,
}

struct Segments<'c> {
    own: [Val<'c>; 2],
    of_columns: Val<'c>,
    /// Where the batch's begin and end.
    begin: Val<'c>,
    last: Val<'c>,
}

impl<'c> Sight<'c> {
    /// Of 64 queries from `query` on. Keys beyond the last are not seen.
    pub fn of_queries(
        cg: &Cg<'c>,
        masks: &Masks<'c>,
        query: Val<'c>,
        lanes: &Lanes<'c>,
    ) -> Sight<'c> {
        let end = |query: Val<'c>| match masks.start {
            Some(start) => cg.min(cg.add(cg.add(query, start), 1), masks.keys),
            None => masks.keys,
        };
        let rows = [0, 8].map(|half| cg.add(query, cg.add(lanes.row, half)));
        let segments = masks
            .segments
            .map(|of| Segments::new(cg, masks.batch, (of, [masks.queries, masks.keys]), rows));
        let all = [None, Some(end(query))];
        Sight { first: None, end: Some(rows.map(end)), all, segments, col: lanes.col }
    }

    /// Of 64 keys from `key` on. Queries beyond the last are seen: they weigh nothing anyhow.
    pub fn of_keys(cg: &Cg<'c>, masks: &Masks<'c>, key: Val<'c>, lanes: &Lanes<'c>) -> Sight<'c> {
        let rows = [0, 8].map(|half| cg.add(key, cg.add(lanes.row, half)));
        let first = masks.start.map(|start| rows.map(|key| cg.sub(key, start)));
        let segments = masks.segments.map(|[of_queries, of_keys]| {
            let of = ([of_keys, of_queries], [masks.keys, masks.queries]);
            Segments::new(cg, masks.batch, of, rows)
        });
        let all = [masks.start.map(|start| cg.sub(cg.add(key, 63), start)), None];
        Sight { first, end: None, all, segments, col: lanes.col }
    }

    /// Of rows that all see the keys before `end`.
    pub fn up_to(end: Val<'c>, lanes: &Lanes<'c>) -> Sight<'c> {
        let all = [None, Some(end)];
        Sight { first: None, end: Some([end; 2]), all, segments: None, col: lanes.col }
    }

    /// Scores of the `n` columns from `column` on; those that a row does not see become -inf.
    pub fn hide(&self, cg: &Cg<'c>, n: u32, column: Val<'c>, scores: &[Val<'c>]) -> Vec<Val<'c>> {
        let hidden = || {
            let mut out = scores.to_vec();
            for pair in pairs(n) {
                for i in 0..2 {
                    let column = cg.add(cg.add(column, self.col), (pair.col + i) as i32);
                    let at = pair.index + i as usize;
                    let seen = self.sees(cg, pair.half, column);
                    out[at] = cg.select(seen, scores[at], f32::NEG_INFINITY);
                }
            }
            out
        };
        if self.segments.is_some() {
            return hidden();
        }
        let [first, end] = self.all;
        let first = first.map(|first| cg.cmp(Cmp::Ge, column, first));
        let end = end.map(|end| cg.cmp(Cmp::Le, cg.add(column, n as i32), end));
        let all = [first, end].into_iter().flatten().reduce(|a, b| cg.and(a, b));
        match all {
            Some(all) => cg.if_else(all, || scores.to_vec(), hidden),
            None => scores.to_vec(),
        }
    }

    fn sees(&self, cg: &Cg<'c>, half: usize, column: Val<'c>) -> Val<'c> {
        let first = self.first.map(|first| cg.cmp(Cmp::Ge, column, first[half]));
        let end = self.end.map(|end| cg.cmp(Cmp::Lt, column, end[half]));
        let same = self.segments.as_ref().map(|s| {
            let at = cg.min(cg.add(s.begin, column), s.last);
            cg.cmp(Cmp::Eq, load_i32(cg, s.of_columns, at), s.own[half])
        });
        let all = [first, end, same].into_iter().flatten();
        all.reduce(|a, b| cg.and(a, b)).unwrap_or_else(|| cg.i1(true))
    }
}

impl<'c> Segments<'c> {
    /// Of `rows` of the first array among those of the second.
    fn new(
        cg: &Cg<'c>,
        batch: Val<'c>,
        ([of_rows, of_columns], [n_rows, n_columns]): ([Val<'c>; 2], [Val<'c>; 2]),
        rows: [Val<'c>; 2],
    ) -> Segments<'c> {
        let (first, last_row) = (cg.mul(batch, n_rows), cg.sub(n_rows, 1));
        let own = rows.map(|row| load_i32(cg, of_rows, cg.add(first, cg.min(row, last_row))));
        let begin = cg.mul(batch, n_columns);
        let last = cg.sub(cg.add(begin, n_columns), 1);
        Segments { own, of_columns, begin, last }
    }
}

fn load_i32<'c>(cg: &Cg<'c>, base: Val<'c>, at: Val<'c>) -> Val<'c> {
    cg.load(Ty::I32, cg.at(base, Elem::I32, cg.cast(at, Elem::I64)))
}
