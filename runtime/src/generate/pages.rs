//! The pages of a pool: which are free, and what requests hold.
//!
//! A request takes a page when it reaches its first position and gives all back at its end, so a
//! pool holds as many tokens as there are, whatever requests' lengths. Pages are handed out last
//! in, first out.

use super::GenerateError;

/// Which pages of a pool are free.
#[derive(Debug)]
pub struct Pool {
    /// Positions of a page.
    size: usize,
    n_pages: usize,
    free: Vec<u32>,
    n_used_max: usize,
    n_handed_out: u64,
}

/// What a pool was used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Positions of a page.
    pub size: usize,
    pub n_pages: usize,
    /// Pages that were held at once, at most.
    pub n_used_max: usize,
    /// Pages handed out, each as often as it was.
    pub n_handed_out: u64,
}

impl Pool {
    /// `n_pages` of `size` positions, all free.
    pub fn new(n_pages: usize, size: usize) -> Pool {
        let free = (0..n_pages as u32).rev().collect();
        Pool { size, n_pages, free, n_used_max: 0, n_handed_out: 0 }
    }

    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    /// Pages that so many positions take.
    pub fn n_for(&self, positions: usize) -> usize {
        positions.div_ceil(self.size)
    }

    /// Gives `held` as many more pages as `positions` take; nothing if there are not as many.
    pub fn grow(&mut self, held: &mut Vec<u32>, positions: usize) -> Option<()> {
        let n = self.n_for(positions).saturating_sub(held.len());
        let from = self.free.len().checked_sub(n)?;
        held.extend(self.free.drain(from..).rev());
        self.n_handed_out += n as u64;
        self.n_used_max = self.n_used_max.max(self.n_pages - self.free.len());
        Some(())
    }

    /// Takes back what a request held.
    pub fn take_back(&mut self, held: &mut Vec<u32>) {
        self.free.extend(held.drain(..).rev());
    }

    pub fn used(&self) -> Use {
        Use {
            size: self.size,
            n_pages: self.n_pages,
            n_used_max: self.n_used_max,
            n_handed_out: self.n_handed_out,
        }
    }

    /// Why request `number`, counted from 0, gets no page for `positions`, where `open` requests
    /// have some.
    pub fn exhausted(&self, number: usize, positions: usize, open: usize) -> GenerateError {
        GenerateError::NoPage {
            request: number + 1,
            position: positions,
            needed: self.n_for(positions),
            size: self.size,
            n_pages: self.n_pages,
            open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_handed_out_as_requests_grow_and_reused() {
        let mut pool = Pool::new(4, 3);
        let (mut a, mut b) = (vec![], vec![]);
        pool.grow(&mut a, 4).expect("two of four");
        assert_eq!((a.as_slice(), pool.n_free()), (&[0, 1][..], 2));
        pool.grow(&mut a, 6).expect("the second has room");
        pool.grow(&mut b, 1).expect("a third");
        assert_eq!((a.len(), b.as_slice()), (2, &[2][..]));
        // Two more are not there; nothing changes.
        assert!(pool.grow(&mut b, 7).is_none());
        assert_eq!((b.len(), pool.n_free()), (1, 1));
        pool.take_back(&mut a);
        pool.grow(&mut b, 7).expect("those of the other");
        assert_eq!(b, [2, 0, 1]);
        let used = Use { size: 3, n_pages: 4, n_used_max: 3, n_handed_out: 5 };
        assert_eq!(pool.used(), used);
    }

    #[test]
    fn a_pool_without_a_page_says_what_helps() {
        let pool = Pool::new(4, 16);
        assert_eq!(
            pool.exhausted(2, 33, 2).to_string(),
            "request 3 needs 3 pages of 16 positions to reach position 33, and none is left: the \
             pool has 4, and 2 requests are open; give more --pages, a smaller --batch or fewer \
             tokens (--max-new)"
        );
    }
}
