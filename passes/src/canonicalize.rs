//! One spelling for each expression.
//!
//! ```text
//! %1 = transpose %w {perm = [1, 0]} : f32[8, 4]
//! %2 = matmul %x, %1 : f32[6, 4]                     =>   %2 = matmul %x, %w {ty = true} : f32[6, 4]
//! ```
//!
//! Why: `cse` finds what is spelled alike, kernels are chosen for few forms, and movement that
//! cancels costs nothing. Rules never make an expression dearer and keep its value to the bit,
//! except that -0 may become 0. Each op is rewritten when its operands are; what a rule makes is
//! rewritten in turn. Every rule removes an op or moves one toward its operands' sources, so
//! rewriting ends. Cost: one walk. Establishes: no rule below applies.

mod contract;
mod movement;
mod scalar;

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::dim::Dim;
use weft_ir::module::{Module, OpData, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::ty::Type;

use crate::rewrite::{constant_value, each_func, rebuild};
use crate::{Fact, Pass, PassCx, PassError, Stats};

pub const PASS: Pass =
    Pass { name: "canonicalize", requires: &[], establishes: &[Fact::Canonical], run };

pub fn run(module: &mut Module, _: &PassCx) -> Result<Stats, PassError> {
    let mut rewritten = 0;
    each_func(module, |_, func| {
        rebuild(func, |b, op| {
            let mut cx = Cx { b, depth: 0 };
            let value = cx.rewrite(op.op, &op.operands, &op.attrs);
            rewritten += usize::from(value.is_some());
            Ok(value.map(|v| vec![v]))
        })
    })?;
    Ok(Stats::one("rewritten", rewritten))
}

/// Rules for ops with one result: the value to use instead, if the rule applies.
type Rule = (Op, &'static str, fn(&mut Cx, &Node) -> Option<ValueId>);

/// The op a rule looks at; it is not in the function yet.
struct Node<'a> {
    x: &'a [ValueId],
    attrs: &'a Attrs,
    op: Op,
}

/// The function being rebuilt.
struct Cx<'a> {
    b: &'a mut Builder,
    depth: u32,
}

/// Rules applied to what rules made; no shipped model needs more than 6.
const DEPTH_MAX: u32 = 64;

impl Cx<'_> {
    /// What takes the place of an op, if some rule applies.
    fn rewrite(&mut self, op: Op, x: &[ValueId], attrs: &Attrs) -> Option<ValueId> {
        if self.depth == DEPTH_MAX {
            return None;
        }
        self.depth += 1;
        let node = Node { x, attrs, op };
        let tables = [scalar::RULES, movement::RULES, contract::RULES];
        let mut rules = tables.into_iter().flatten().filter(|r| r.0 == op);
        let found = rules.find_map(|(_, _, rule)| rule(self, &node));
        self.depth -= 1;
        found
    }

    /// The op, or what takes its place; `None` if it has no type, and then the rule that asked does
    /// not apply.
    fn make(&mut self, op: Op, x: &[ValueId], attrs: Attrs) -> Option<ValueId> {
        match self.rewrite(op, x, &attrs) {
            Some(v) => Some(v),
            None => self.b.emit(op, x, attrs).ok(),
        }
    }

    fn unary(&mut self, op: Op, x: ValueId) -> Option<ValueId> {
        self.make(op, &[x], Attrs::new())
    }

    fn binary(&mut self, op: Op, x: ValueId, y: ValueId) -> Option<ValueId> {
        self.make(op, &[x, y], Attrs::new())
    }

    fn reshape(&mut self, x: ValueId, dims: &[Dim]) -> Option<ValueId> {
        self.make(Op::Reshape, &[x], Attrs::new().dims("shape", dims))
    }

    /// The op that makes `v`, if it is an `op`.
    fn def(&self, v: ValueId, op: Op) -> Option<OpData> {
        let id = self.b.func.def_op(v)?;
        Some(self.b.func.op(id)).filter(|d| d.op == op).cloned()
    }

    /// The number that stands everywhere in `v`.
    fn number(&self, v: ValueId) -> Option<f64> {
        let op = self.b.func.op(self.b.func.def_op(v)?);
        match op.op {
            Op::Constant => constant_value(&self.b.func, op),
            moved
                if moved.has(Trait::Movement)
                    && !matches!(moved, Op::Pad | Op::Shift | Op::Concat) =>
            {
                self.number(op.operands[0])
            }
            _ => None,
        }
    }

    /// Whether `v` is `n` everywhere; 0 and -0 are two numbers.
    fn is(&self, v: ValueId, n: f64) -> bool {
        self.number(v).is_some_and(|m| m.to_bits() == n.to_bits())
    }

    fn ty(&self, v: ValueId) -> &Type {
        self.b.ty(v)
    }

    fn dims(&self, v: ValueId) -> &[Dim] {
        &self.b.ty(v).dims
    }
}

/// The attribute `name`, a list of dims' places.
fn places(attrs: &Attrs, name: &str) -> Option<Vec<usize>> {
    Some(attrs.get_ints(name)?.iter().map(|p| *p as usize).collect())
}

fn ints(places: &[usize]) -> Vec<i64> {
    places.iter().map(|p| *p as i64).collect()
}

/// `Some(x)` if `ok`.
fn when<T>(ok: bool, x: T) -> Option<T> {
    ok.then_some(x)
}
