//! Where the positions of requests lie in a pool of pages.

use super::{Fault, Tensor};

pub struct Pages<'a> {
    /// `[B, n]`.
    table: &'a [i64],
    n: usize,
    /// Pages of the pool, and positions of a page.
    pool: (usize, usize),
}

impl<'a> Pages<'a> {
    /// `table`, i32[B, n], for a pool `[P, N, ..]`.
    pub fn of(table: &'a Tensor, pool: &Tensor) -> Result<Pages<'a>, Fault> {
        let n = table.dims[1];
        Ok(Pages { table: table.ints()?, n, pool: (pool.dims[0], pool.dims[1]) })
    }

    /// That a request has room for.
    pub fn positions(&self) -> usize {
        self.n * self.pool.1
    }

    pub fn page(&self, b: usize, position: usize) -> i64 {
        self.table[b * self.n + position / self.pool.1]
    }

    /// The row of the pool, pages one after the other, where a position of a request lies.
    pub fn row(&self, b: usize, position: usize) -> Result<usize, Fault> {
        let (page, (pages, size)) = (self.page(b, position), self.pool);
        match usize::try_from(page).ok().filter(|page| *page < pages) {
            Some(page) => Ok(page * size + position % size),
            None => Err(format!(
                "position {position} of request {b} is of page {page}, and the pool has {pages}"
            )),
        }
    }
}
