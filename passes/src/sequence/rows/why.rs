//! What ranks divide by tokens, and why or why not, op by op.

use weft_ir::module::{FuncId, OpData, OpId, Span, ValueId};
use weft_ir::op::Op;

use super::{Bar, How, Rows};
use crate::rewrite::callee;

/// How a rank does an op that has to do with tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Had {
    /// A sum over ranks of which each gets its tokens.
    Scattered,
    /// On its tokens alone.
    ByTokens,
    /// A sum over its tokens, then over ranks.
    Summed,
    /// On all tokens, gathered from the ranks.
    Gathered,
    /// On all tokens, which it has anyway.
    Whole,
}

impl Had {
    pub fn name(self) -> &'static str {
        match self {
            Had::Scattered => "scattered",
            Had::ByTokens => "by tokens",
            Had::Summed => "summed",
            Had::Gathered => "gathered",
            Had::Whole => "whole",
        }
    }
}

/// One op.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    pub func: String,
    pub op: &'static str,
    /// What its first result is called, where it has a name.
    pub value: Option<String>,
    /// Tokens of its first result: all, and those that a rank has; none where it has no such dim.
    pub tokens: Option<(u64, u64)>,
    pub had: Had,
    pub why: String,
    pub span: Option<Span>,
}

impl Rows<'_> {
    /// All ops that have to do with tokens, in the order of the program.
    pub fn lines(&self) -> Vec<Line> {
        let of = |f: FuncId| self.module.func(f).body_ops().map(move |(id, op)| (f, id, op));
        self.module.func_ids().flat_map(of).filter_map(|(f, id, op)| self.line(f, id, op)).collect()
    }

    fn line(&self, f: FuncId, id: OpId, op: &OpData) -> Option<Line> {
        let with_tokens = |v: &ValueId| self.tokens(f, *v).is_some();
        // A constant is made of as many tokens as its readers have.
        if callee(op).is_some()
            || op.operands.is_empty()
            || !op.operands.iter().chain(&op.results).any(with_tokens)
        {
            return None;
        }
        let (had, why) = self.why(f, id, op);
        let func = self.module.func(f);
        let y = op.results[0];
        let size = self.tokens(f, y).and_then(|d| func.ty(y).dims[d].as_fixed());
        let divided = matches!(had, Had::Scattered | Had::ByTokens);
        Some(Line {
            func: func.name.clone(),
            op: op.op.name(),
            value: func.value(y).name.clone(),
            tokens: size.map(|n| (n, if divided { n / self.n } else { n })),
            had,
            why,
            span: op.spans.first().copied(),
        })
    }

    fn why(&self, f: FuncId, id: OpId, op: &OpData) -> (Had, String) {
        let how = self.how[f.0 as usize][&id];
        let read = op.operands.iter().find(|x| self.is_rows(f, **x));
        let alike = op.results.iter().all(|r| self.is_alike(f, *r));
        if op.op == Op::AllReduce && self.axis_of(op) {
            return match self.is_rows(f, op.results[0]) {
                true => (Had::Scattered, "a sum over ranks: each gets its tokens of it".into()),
                false => (Had::Whole, "a sum over ranks of no more than a number a token".into()),
            };
        }
        match (how, read) {
            (How::Tokens, Some(x)) if alike => {
                (Had::ByTokens, format!("token by token of {}", self.called(f, *x)))
            }
            (How::Sum, Some(_)) if alike => {
                (Had::Summed, "sums over tokens: a rank its own, then over ranks".into())
            }
            (_, Some(_)) => (Had::Gathered, self.bar(op, how)),
            (How::Tokens | How::Sum, None) if alike => {
                (Had::Whole, "nothing that it reads comes of a sum over ranks".into())
            }
            (_, None) => (Had::Whole, self.bar(op, how)),
        }
    }

    /// Why an op reads all tokens.
    fn bar(&self, op: &OpData, how: How) -> String {
        match how {
            _ if op.op == Op::Spread => "ranks with parts along tensor read all tokens".into(),
            How::Tokens | How::Sum => "a rank's part along tensor is of all tokens".into(),
            How::Whole(Bar::Kind) => "ranks meet in it with all tokens".into(),
            How::Whole(Bar::Group(group)) => {
                format!("{} ranks would cut a group of {group} tokens with one scale", self.n)
            }
            How::Whole(Bar::AllTokens) => "it needs all tokens at once".into(),
            How::Whole(Bar::NoTokens) => {
                "what it makes has no tokens, and is no sum of them".into()
            }
        }
    }

    /// What a value is called, or what makes it.
    fn called(&self, f: FuncId, v: ValueId) -> String {
        let func = self.module.func(f);
        match (&func.value(v).name, func.def_op(v)) {
            (Some(name), _) => format!("`{name}`"),
            (None, Some(id)) => format!("what `{}` makes", func.op(id).op.name()),
            (None, None) => "a parameter".into(),
        }
    }
}
