//! A kernel: buffers, scalars and a grid of independent blocks.
//!
//! On the CPU it is one function doing the blocks `begin..end` (ARCHITECTURE.md, the kernel ABI). A
//! kernel's author sees names for the arguments and one body for one block, so a target whose
//! blocks are hardware threads can give the same body another frame.

use super::{Cg, Elem, Ty, Val};

/// The arguments of the kernel under construction.
#[derive(Clone, Debug)]
pub struct Kernel<'c> {
    /// Base addresses, 64-byte aligned.
    pub buffers: Vec<Val<'c>>,
    /// The launch's i64 scalars.
    pub scalars: Vec<Val<'c>>,
    /// The range of blocks of this call.
    pub begin: Val<'c>,
    pub end: Val<'c>,
    /// Memory private to the calling thread, 64-byte aligned.
    pub scratch: Val<'c>,
}

impl<'c> Cg<'c> {
    /// Emits a kernel that is handed its whole range of blocks.
    pub fn kernel(
        &self,
        name: &str,
        n_buffers: usize,
        n_scalars: usize,
        body: impl FnOnce(&Kernel<'c>),
    ) {
        let p = self.function(name, &[Ty::PTR, Ty::PTR, Ty::I64, Ty::I64, Ty::PTR], true);
        let load = |array, elem: Elem, i: usize| {
            self.load(elem.x(1), self.at(array, elem, i64::try_from(i).unwrap_or(i64::MAX)))
        };
        let kernel = Kernel {
            buffers: (0..n_buffers).map(|i| load(p[0], Elem::Ptr, i)).collect(),
            scalars: (0..n_scalars).map(|i| load(p[1], Elem::I64, i)).collect(),
            begin: p[2],
            end: p[3],
            scratch: p[4],
        };
        body(&kernel);
        self.finish();
    }

    /// Emits a kernel from what one block does.
    pub fn grid_kernel(
        &self,
        name: &str,
        n_buffers: usize,
        n_scalars: usize,
        block: impl FnOnce(&Kernel<'c>, Val<'c>),
    ) {
        self.kernel(name, n_buffers, n_scalars, |k| {
            self.for_each(k.begin, k.end, 1, |i| block(k, i));
        });
    }

    /// Scalar `i` of the launch, which carries an f32 in its low 32 bits.
    pub fn scalar_f32(&self, k: &Kernel<'c>, i: usize) -> Val<'c> {
        self.bitcast(self.cast(k.scalars[i], Elem::I32), Ty::F32)
    }
}
