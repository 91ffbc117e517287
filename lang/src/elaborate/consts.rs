//! Compile-time values and their arithmetic.

use std::fmt;
use std::rc::Rc;

use weft_ir::dim::Dim;

use crate::ast::{BinaryOp, UnaryOp};
use crate::source::Span;

/// What a parameter or a constant may hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Const {
    Num(f64),
    Bool(bool),
    /// An enumerant.
    Word(String),
    Str(String),
    None,
    List(Vec<Const>),
    /// A size with a symbol in it; sizes that are numbers are `Num`.
    Dim(Dim),
    /// A module with its arguments, not placed anywhere yet.
    Module(Rc<Closure>),
}

/// `Mla(hidden, 8, ...)`: which module, and the arguments by parameter name.
#[derive(Clone, Debug, PartialEq)]
pub struct Closure {
    /// Index into the program's modules.
    pub module: usize,
    pub args: Vec<(String, Const)>,
    pub span: Span,
}

impl Const {
    pub fn dim(dim: Dim) -> Const {
        match dim.as_fixed() {
            Some(n) => Const::Num(n as f64),
            None => Const::Dim(dim),
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Const::Num(_) => "a number",
            Const::Bool(_) => "a boolean",
            Const::Word(_) => "an enumerant",
            Const::Str(_) => "a string",
            Const::None => "none",
            Const::List(_) => "a list",
            Const::Dim(_) => "a size",
            Const::Module(_) => "a module",
        }
    }

    /// As a size: a whole number, zero allowed.
    pub fn as_dim(&self) -> Option<Dim> {
        match self {
            Const::Num(n) if *n >= 0.0 && n.fract() == 0.0 && *n <= 2f64.powi(53) => {
                Some(Dim::fixed(*n as u64))
            }
            Const::Dim(d) => Some(*d),
            _ => None,
        }
    }
}

impl fmt::Display for Const {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Beyond this all digits are written out, a line of zeros.
            Const::Num(n) if n.is_finite() && n.abs() >= 1e16 => write!(f, "{n:e}"),
            Const::Num(n) => write!(f, "{n}"),
            Const::Bool(b) => write!(f, "{b}"),
            Const::Word(w) => f.write_str(w),
            Const::Str(s) => write!(f, "{s:?}"),
            Const::None => f.write_str("none"),
            Const::List(items) => {
                let all: Vec<String> = items.iter().map(Const::to_string).collect();
                write!(f, "[{}]", all.join(", "))
            }
            Const::Dim(_) => f.write_str("a size known at run time"),
            Const::Module(_) => f.write_str("a module"),
        }
    }
}

/// `op x`, or why not.
pub fn unary(op: UnaryOp, x: &Const) -> Result<Const, String> {
    match (op, x) {
        (UnaryOp::Neg, Const::Num(n)) => Ok(Const::Num(-n)),
        (UnaryOp::Not, Const::Bool(b)) => Ok(Const::Bool(!b)),
        (UnaryOp::Neg, x) => Err(format!("`-` needs a number, found {}", x.kind())),
        (UnaryOp::Not, x) => Err(format!("`not` needs a boolean, found {}", x.kind())),
    }
}

/// `x op y`, or why not.
pub fn binary(op: BinaryOp, x: &Const, y: &Const) -> Result<Const, String> {
    use BinaryOp::*;
    match (op, x, y) {
        (Eq | Ne, _, _) if !comparable(x, y) => {
            Err(format!("`{}` compares {} with {}", op.symbol(), x.kind(), y.kind()))
        }
        (Eq, _, _) => Ok(Const::Bool(x == y)),
        (Ne, _, _) => Ok(Const::Bool(x != y)),
        (And, Const::Bool(a), Const::Bool(b)) => Ok(Const::Bool(*a && *b)),
        (Or, Const::Bool(a), Const::Bool(b)) => Ok(Const::Bool(*a || *b)),
        (And | Or, _, _) => {
            let found = format!("found {} and {}", x.kind(), y.kind());
            Err(format!("`{}` needs two booleans, {found}", op.symbol()))
        }
        (_, Const::Num(a), Const::Num(b)) => number(op, *a, *b).ok_or_else(|| mismatch(op, x, y)),
        (Mul | Div | Add, _, _) => match (x.as_dim(), y.as_dim()) {
            (Some(a), Some(b)) => sizes(op, a, b),
            _ => Err(mismatch(op, x, y)),
        },
        _ => Err(mismatch(op, x, y)),
    }
}

fn mismatch(op: BinaryOp, x: &Const, y: &Const) -> String {
    format!("`{}` needs two numbers, found {} and {}", op.symbol(), x.kind(), y.kind())
}

/// Whether `==` of the two can be true; anything may be compared with none.
fn comparable(x: &Const, y: &Const) -> bool {
    let kind = |c: &Const| match c {
        Const::Dim(_) => Const::Num(0.0).kind(),
        c => c.kind(),
    };
    *x == Const::None || *y == Const::None || kind(x) == kind(y)
}

/// Operators of two numbers but `==`, `!=`.
fn number(op: BinaryOp, a: f64, b: f64) -> Option<Const> {
    use BinaryOp::*;
    Some(match op {
        Add => Const::Num(a + b),
        Sub => Const::Num(a - b),
        Mul => Const::Num(a * b),
        Div => Const::Num(a / b),
        Pow => Const::Num(a.powf(b)),
        Lt => Const::Bool(a < b),
        Le => Const::Bool(a <= b),
        Gt => Const::Bool(a > b),
        Ge => Const::Bool(a >= b),
        Eq | Ne | And | Or => return None,
    })
}

fn sizes(op: BinaryOp, a: Dim, b: Dim) -> Result<Const, String> {
    let result = match op {
        BinaryOp::Mul => a.checked_mul(b),
        BinaryOp::Div => a.checked_div(b),
        _ => a.checked_add(b),
    };
    result.map(Const::dim).ok_or_else(|| format!("`{}` of these sizes is not a size", op.symbol()))
}

/// A compile-time function of numbers by name and argument count.
pub fn function(name: &str, args: &[f64]) -> Option<f64> {
    Some(match (name, args) {
        ("ln", [x]) => x.ln(),
        ("exp", [x]) => x.exp(),
        ("sqrt", [x]) => x.sqrt(),
        ("sin", [x]) => x.sin(),
        ("cos", [x]) => x.cos(),
        ("floor", [x]) => x.floor(),
        ("ceil", [x]) => x.ceil(),
        ("round", [x]) => x.round(),
        ("abs", [x]) => x.abs(),
        ("min", [x, y]) => x.min(*y),
        ("max", [x, y]) => x.max(*y),
        _ => return None,
    })
}

/// Names of `function`, for suggestions.
pub const FUNCTIONS: &[&str] =
    &["ln", "exp", "sqrt", "sin", "cos", "floor", "ceil", "round", "abs", "min", "max"];
