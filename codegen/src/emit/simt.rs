//! What only targets with threads have: who a thread is, and values handed across a warp.

use super::{Cg, Cmp, Effect, Elem, Ty, Val};

/// Threads of a warp.
pub const WARP: u32 = 32;

/// All threads of a warp take part.
const ALL: i32 = -1;
/// The highest lane of a warp: segments of a shuffle are whole warps.
const CLAMP: i32 = 31;

/// Bytes of a warp's value in shared memory.
const SLOT_BYTES: u32 = 8;

/// Shared memory that [`Cg::reduce_cta`] needs.
pub fn reduce_cta_bytes(warps: u32) -> u32 {
    warps * SLOT_BYTES
}

impl<'c> Cg<'c> {
    /// The thread's place in its CTA, an i32.
    pub fn thread_index(&self) -> Val<'c> {
        self.intrinsic("llvm.nvvm.read.ptx.sreg.tid.x", &[], &[], Ty::I32)
    }

    /// The CTA's place in the grid, an i32.
    pub fn cta_index(&self) -> Val<'c> {
        self.intrinsic("llvm.nvvm.read.ptx.sreg.ctaid.x", &[], &[], Ty::I32)
    }

    /// The value of the lane whose number differs in the bits of `mask`. All threads of the warp
    /// must come here together.
    pub fn shuffle_xor(&self, v: Val<'c>, mask: u32) -> Val<'c> {
        self.across(v, "llvm.nvvm.shfl.sync.bfly.i32", self.i32(mask as i32))
    }

    /// The value of a lane, an i32 that is the same for all. All threads of the warp must come here
    /// together.
    pub fn shuffle_from(&self, v: Val<'c>, lane: Val<'c>) -> Val<'c> {
        self.across(v, "llvm.nvvm.shfl.sync.idx.i32", lane)
    }

    fn across(&self, v: Val<'c>, intrinsic: &str, from: Val<'c>) -> Val<'c> {
        let shuffle = |bits: Val<'c>| {
            let args = [self.i32(ALL), bits, from, self.i32(CLAMP)];
            self.intrinsic(intrinsic, &[], &args, Ty::I32)
        };
        match v.ty.elem {
            Elem::I32 => shuffle(v),
            Elem::F32 => self.bitcast(shuffle(self.bitcast(v, Ty::I32)), Ty::F32),
            Elem::I64 => {
                let low = shuffle(self.cast(v, Elem::I32));
                let high = shuffle(self.cast(self.lshr(v, 32), Elem::I32));
                let high = self.shl(self.zext(high, Elem::I64), 32);
                self.or(high, self.zext(low, Elem::I64))
            }
            _ => panic!("{} does not go across a warp", v.ty),
        }
    }

    /// The same among all threads of a CTA of `warps` warps, by way of the start of the shared
    /// memory that the launch asks for: [`reduce_cta_bytes`]. All of the CTA must come here
    /// together. Warps are joined in the order of their numbers, whoever comes first.
    pub fn reduce_cta(
        &self,
        v: Val<'c>,
        warps: u32,
        f: impl Fn(Val<'c>, Val<'c>) -> Val<'c>,
    ) -> Val<'c> {
        let own = self.reduce_warp(v, &f);
        let word = match own.ty.elem {
            Elem::I32 | Elem::F32 => "b32",
            Elem::I64 => "b64",
            _ => panic!("{} does not go across a CTA", own.ty),
        };
        let barrier = || self.asm("bar.sync 0;", &[], &[], 0, Effect::Memory);
        let shared = self.dynamic_shared();
        let thread = self.thread_index();
        let warp = self.lshr(thread, i64::from(WARP.trailing_zeros()));
        let place = self.add(shared, self.mul(warp, SLOT_BYTES as i32));
        // What was there before has been read by all.
        barrier();
        let leads = self.cmp(Cmp::Eq, self.and(thread, WARP as i32 - 1), 0);
        let text = format!("@$0 st.shared.{word} [$1], $2;");
        self.asm(&text, &[], &[leads, place, own], 0, Effect::Memory);
        barrier();
        let text = format!("ld.shared.{word} $0, [$1];");
        let of = |i: u32| {
            let at = self.add(shared, (i * SLOT_BYTES) as i32);
            self.asm(&text, &[own.ty], &[at], 0, Effect::Memory)[0]
        };
        (1..warps).fold(of(0), |all, i| f(all, of(i)))
    }

    /// f32 lanes rounded to nearest, ties to even, two at once by the instruction for `pair`, whose
    /// halves have the bits of `elem`. It makes one NaN of all.
    pub fn narrowed_by_pairs(&self, v: Val<'c>, pair: &str, elem: Elem) -> Val<'c> {
        let both = if elem == Elem::I8 { Elem::I16 } else { Elem::I32 };
        let text = format!("cvt.rn.{pair}.f32 $0, $1, $2;");
        let round = |low, high| {
            let made = self.asm(&text, &[both.x(1)], &[high, low], 0, Effect::Pure)[0];
            self.bitcast(made, elem.x(2))
        };
        if v.ty.lanes == 1 {
            return self.lane(round(v, v), 0);
        }
        let mut out = self.zero(elem.x(v.ty.lanes));
        for lane in (0..v.ty.lanes).step_by(2) {
            let made = round(self.lane(v, lane), self.lane(v, lane + 1));
            for i in 0..2 {
                out = self.insert(out, self.lane(made, i), lane + i);
            }
        }
        out
    }

    /// Which lanes of the warp have `v` true, a bit each. All threads of the warp must come here
    /// together.
    pub fn ballot(&self, v: Val<'c>) -> Val<'c> {
        self.intrinsic("llvm.nvvm.vote.ballot.sync", &[], &[self.i32(ALL), v], Ty::I32)
    }

    /// How many bits are set.
    pub fn count_ones(&self, v: Val<'c>) -> Val<'c> {
        self.intrinsic("llvm.ctpop", &[v.ty], &[v], v.ty)
    }

    /// Folds the values of a warp's lanes; every lane gets the same bits if `f` is commutative.
    pub fn reduce_warp(&self, v: Val<'c>, f: impl Fn(Val<'c>, Val<'c>) -> Val<'c>) -> Val<'c> {
        self.reduce_lanes(v, WARP, f)
    }

    /// The same among each `width` neighbours of the warp, a power of two.
    pub fn reduce_lanes(
        &self,
        v: Val<'c>,
        width: u32,
        f: impl Fn(Val<'c>, Val<'c>) -> Val<'c>,
    ) -> Val<'c> {
        let mut v = v;
        let mut mask = width / 2;
        while mask > 0 {
            v = f(v, self.shuffle_xor(v, mask));
            mask /= 2;
        }
        v
    }
}
