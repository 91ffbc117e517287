//! What happens to sums before they are stored: bias, activation, residual.

use weft_codegen::emit::{Cg, Param, Val};

/// Scalar expressions on sums where they stand, in registers.
pub trait Epilogue: Send + Sync {
    /// Part of the kernel's name: equal names promise equal code.
    fn name(&self) -> String;

    /// Parameters it reads, appended to the kernel's own.
    fn params(&self) -> Vec<Param>;

    /// What to store for two neighbouring sums of a row (C's old values already added, where the
    /// kernel accumulates). Where `place.inside` does not hold no memory may be touched.
    fn apply<'c>(&self, cg: &Cg<'c>, place: &Place<'c>, sums: [Val<'c>; 2]) -> [Val<'c>; 2];
}

/// Where in C two sums belong.
pub struct Place<'c> {
    /// Row of C; of all rows in [`super::Grouping::Rows`], of the group's C elsewhere.
    pub row: Val<'c>,
    /// Column of the first.
    pub col: Val<'c>,
    /// Batch index or group.
    pub group: Val<'c>,
    /// Whether each is inside C.
    pub inside: [Val<'c>; 2],
    /// The epilogue's own parameters.
    pub params: Vec<Val<'c>>,
}
