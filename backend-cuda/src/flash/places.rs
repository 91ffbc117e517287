//! Where a side of a kernel is in its two rings: of a tile it keeps, and of blocks it moves past.

use weft_codegen::emit::{Cg, Val};

use crate::tiles::ring::Place;

#[derive(Clone, Copy)]
pub struct Places<'c> {
    pub kept: Place<'c>,
    pub moved: Place<'c>,
}

impl<'c> Places<'c> {
    pub fn first(cg: &Cg<'c>) -> Places<'c> {
        Places { kept: Place::first(cg), moved: Place::first(cg) }
    }

    pub fn of(values: &[Val<'c>]) -> Places<'c> {
        Places { kept: Place::of(values), moved: Place::of(&values[2..]) }
    }

    pub fn values(self) -> Vec<Val<'c>> {
        [self.kept, self.moved].iter().flat_map(|p| p.values()).collect()
    }
}
