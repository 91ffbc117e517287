//! A kernel: buffers, scalars and a grid of independent blocks.
//!
//! On the CPU it is one function doing the blocks `begin..end` (ARCHITECTURE.md, the kernel ABI). A
//! kernel's author sees names for the arguments and one body for one block, so that a target whose
//! blocks are hardware threads can give the same body another frame: there it is an entry whose
//! parameters are the buffers' addresses and then the scalars, and a block is a CTA or, for code
//! that knows no other threads, one thread.

use inkwell::AddressSpace;

use super::{Cg, Elem, Model, Ty, Val, built};

/// How a kernel is launched on a target with threads; a CPU has no use for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Threads of a CTA.
    pub threads: u32,
    /// A block is a thread and not a CTA. Blocks then go beyond those the launch has work for.
    pub thread_blocks: bool,
    /// Bytes of [`Kernel::scratch`], which each thread has for itself.
    pub scratch_bytes: u64,
}

impl Frame {
    /// A block for each CTA.
    pub fn ctas(threads: u32) -> Frame {
        Frame { threads, thread_blocks: false, scratch_bytes: 0 }
    }

    /// A block for each thread.
    pub fn threads(threads: u32, scratch_bytes: u64) -> Frame {
        Frame { threads, thread_blocks: true, scratch_bytes }
    }
}

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
        self.framed_kernel(name, Frame::ctas(1), n_buffers, n_scalars, body);
    }

    /// As [`Cg::kernel`], for targets with threads too.
    pub fn framed_kernel(
        &self,
        name: &str,
        frame: Frame,
        n_buffers: usize,
        n_scalars: usize,
        body: impl FnOnce(&Kernel<'c>),
    ) {
        let kernel = match self.target.model {
            Model::Cpu => self.block_range(name, n_buffers, n_scalars),
            Model::Simt => self.entry_point(name, frame, n_buffers, n_scalars),
        };
        body(&kernel);
        self.finish();
    }

    fn block_range(&self, name: &str, n_buffers: usize, n_scalars: usize) -> Kernel<'c> {
        let p = self.function(name, &[Ty::PTR, Ty::PTR, Ty::I64, Ty::I64, Ty::PTR], true);
        let load = |array, elem: Elem, i: usize| {
            self.load(elem.x(1), self.at(array, elem, i64::try_from(i).unwrap_or(i64::MAX)))
        };
        Kernel {
            buffers: (0..n_buffers).map(|i| load(p[0], Elem::Ptr, i)).collect(),
            scalars: (0..n_scalars).map(|i| load(p[1], Elem::I64, i)).collect(),
            begin: p[2],
            end: p[3],
            scratch: p[4],
        }
    }

    fn entry_point(
        &self,
        name: &str,
        frame: Frame,
        n_buffers: usize,
        n_scalars: usize,
    ) -> Kernel<'c> {
        let mut params = vec![Ty::PTR; n_buffers];
        params.resize(n_buffers + n_scalars, Ty::I64);
        let mut values = self.function(name, &params, true);
        let f = self.function.get().expect("a function is under construction");
        f.set_call_conventions(PTX_KERNEL);
        // The number of threads is part of the code: registers are shared out by it.
        self.function_attribute(f, "nvvm.reqntid", &frame.threads.to_string());
        let scalars = values.split_off(n_buffers);
        let cta = self.cast(self.cta_index(), Elem::I64);
        let begin = match frame.thread_blocks {
            false => cta,
            true => {
                let thread = self.cast(self.thread_index(), Elem::I64);
                self.add(self.mul(cta, i64::from(frame.threads)), thread)
            }
        };
        Kernel {
            buffers: values,
            scalars,
            begin,
            end: self.add(begin, 1),
            scratch: self.scratch(frame.scratch_bytes),
        }
    }

    /// A thread's own memory; none has no address.
    fn scratch(&self, size_bytes: u64) -> Val<'c> {
        let Ok(size) = u32::try_from(size_bytes) else {
            panic!("{size_bytes} bytes of scratch for each thread")
        };
        if size == 0 {
            return self.zero(Ty::PTR);
        }
        let array = self.ctx.i64_type().array_type(size.div_ceil(8));
        let raw = built(self.builder.build_alloca(array, "scratch"));
        let generic = self.ctx.ptr_type(AddressSpace::default());
        let raw = built(self.builder.build_address_space_cast(raw, generic, ""));
        Val { ty: Ty::PTR, raw: raw.into() }
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

/// LLVM's number for the calling convention of an entry of a PTX module.
pub(super) const PTX_KERNEL: u32 = 71;
