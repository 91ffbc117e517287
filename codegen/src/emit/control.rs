//! Structured control flow: loops that carry values, conditionals that yield them.

use inkwell::values::{BasicValueEnum, IntValue, PhiValue};

use super::{Cg, Cmp, Elem, Operand, Val, built};

impl<'c> Cg<'c> {
    /// `for i in (lo..hi).step_by(step)`, carrying values: `body` takes the index and the carried
    /// values and gives their next ones; the last ones are returned. `step` is positive.
    pub fn for_(
        &self,
        lo: Val<'c>,
        hi: Val<'c>,
        step: impl Operand<'c>,
        init: &[Val<'c>],
        body: impl FnOnce(Val<'c>, &[Val<'c>]) -> Vec<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let step = step.val(self, lo.ty);
        let mut with_index = vec![lo];
        with_index.extend(init);
        // Tested at the bottom, behind one test at the top: the body is the loop, with no jump over
        // it.
        let entered = self.cmp(Cmp::Lt, lo, hi);
        let end = self.do_while(entered, &with_index, |carried| {
            let i = carried[0];
            let mut next = vec![self.add(i, step)];
            next.extend(body(i, &carried[1..]));
            // The index is computed after the body so that it does not stay live through it twice.
            let again = self.cmp(Cmp::Lt, next[0], hi);
            (again, next)
        });
        end[1..].to_vec()
    }

    /// [`Cg::for_`] that carries nothing.
    pub fn for_each(
        &self,
        lo: Val<'c>,
        hi: Val<'c>,
        step: impl Operand<'c>,
        body: impl FnOnce(Val<'c>),
    ) {
        self.for_(lo, hi, step, &[], |i, _| {
            body(i);
            vec![]
        });
    }

    /// Runs `body` while the condition it yields holds, at all only if `entered`.
    pub fn do_while(
        &self,
        entered: Val<'c>,
        init: &[Val<'c>],
        body: impl FnOnce(&[Val<'c>]) -> (Val<'c>, Vec<Val<'c>>),
    ) -> Vec<Val<'c>> {
        let (before, head, exit) =
            (self.here(), self.new_block("loop"), self.new_block("loop.end"));
        self.branch_if(entered, head, exit);
        self.builder.position_at_end(head);
        let phis: Vec<PhiValue> = init.iter().map(|v| self.phi(*v)).collect();
        let carried: Vec<Val> = phis.iter().zip(init).map(|(p, v)| from_phi(p, v)).collect();
        let (again, next) = body(&carried);
        assert_eq!(next.len(), init.len(), "a loop carries as many values as it starts with");
        for (n, v) in next.iter().zip(init) {
            assert_eq!(n.ty, v.ty, "a carried value becomes {} from {}", n.ty, v.ty);
        }
        let latch = self.here();
        self.branch_if(again, head, exit);
        for ((phi, first), next) in phis.iter().zip(init).zip(&next) {
            phi.add_incoming(&[(&first.raw, before), (&next.raw, latch)]);
        }
        self.builder.position_at_end(exit);
        self.merge(init, before, &next, latch)
    }

    /// `while cond(values) { values = body(values) }`.
    pub fn while_(
        &self,
        init: &[Val<'c>],
        cond: impl Fn(&[Val<'c>]) -> Val<'c>,
        body: impl FnOnce(&[Val<'c>]) -> Vec<Val<'c>>,
    ) -> Vec<Val<'c>> {
        self.do_while(cond(init), init, |carried| {
            let next = body(carried);
            (cond(&next), next)
        })
    }

    /// Values of `then` if `cond` (a scalar), else of `otherwise`.
    pub fn if_else(
        &self,
        cond: Val<'c>,
        then: impl FnOnce() -> Vec<Val<'c>>,
        otherwise: impl FnOnce() -> Vec<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let blocks = [self.new_block("then"), self.new_block("else"), self.new_block("end")];
        self.branch_if(cond, blocks[0], blocks[1]);
        self.builder.position_at_end(blocks[0]);
        let a = then();
        let a_end = self.here();
        built(self.builder.build_unconditional_branch(blocks[2]));
        self.builder.position_at_end(blocks[1]);
        let b = otherwise();
        let b_end = self.here();
        built(self.builder.build_unconditional_branch(blocks[2]));
        self.builder.position_at_end(blocks[2]);
        assert_eq!(a.len(), b.len(), "both sides of a conditional yield as many values");
        self.merge(&a, a_end, &b, b_end)
    }

    /// Runs `then` if `cond` (a scalar).
    pub fn when(&self, cond: Val<'c>, then: impl FnOnce()) {
        let (yes, end) = (self.new_block("then"), self.new_block("end"));
        self.branch_if(cond, yes, end);
        self.builder.position_at_end(yes);
        then();
        built(self.builder.build_unconditional_branch(end));
        self.builder.position_at_end(end);
    }

    fn merge(
        &self,
        a: &[Val<'c>],
        a_block: inkwell::basic_block::BasicBlock<'c>,
        b: &[Val<'c>],
        b_block: inkwell::basic_block::BasicBlock<'c>,
    ) -> Vec<Val<'c>> {
        let merged = a.iter().zip(b).map(|(a, b)| {
            assert_eq!(a.ty, b.ty, "paths yield {} and {}", a.ty, b.ty);
            let phi = self.phi(*a);
            phi.add_incoming(&[(&a.raw, a_block), (&b.raw, b_block)]);
            from_phi(&phi, a)
        });
        merged.collect()
    }

    fn phi(&self, like: Val<'c>) -> PhiValue<'c> {
        built(self.builder.build_phi(self.llvm_type(like.ty), ""))
    }

    fn branch_if(
        &self,
        cond: Val<'c>,
        yes: inkwell::basic_block::BasicBlock<'c>,
        no: inkwell::basic_block::BasicBlock<'c>,
    ) {
        built(self.builder.build_conditional_branch(boolean(cond), yes, no));
    }
}

fn from_phi<'c>(phi: &PhiValue<'c>, like: &Val<'c>) -> Val<'c> {
    Val { ty: like.ty, raw: phi.as_basic_value() }
}

fn boolean(v: Val<'_>) -> IntValue<'_> {
    match v.raw {
        BasicValueEnum::IntValue(i) if v.ty.elem == Elem::I1 => i,
        _ => panic!("{} where a condition is wanted", v.ty),
    }
}
