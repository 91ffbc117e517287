//! A PTX module as it is written: names are text, opcodes are words with dots.

use crate::error::SourceLine;

#[derive(Debug, Default)]
pub struct Module {
    pub target: String,
    pub globals: Vec<Variable>,
    pub functions: Vec<Function>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Global,
    Shared,
    Const,
    Local,
    Param,
}

/// A variable of a state space, of the module, a function or a call sequence.
#[derive(Clone, Debug)]
pub struct Variable {
    pub space: Space,
    pub name: String,
    pub align_bytes: u64,
    /// 0 for `.extern .shared NAME[]`: the dynamic shared memory.
    pub size_bytes: u64,
    /// Initial bytes; the rest is zero.
    pub init: Vec<u8>,
    pub line: u32,
}

#[derive(Debug)]
pub struct Function {
    pub name: String,
    pub is_entry: bool,
    pub results: Vec<Variable>,
    pub params: Vec<Variable>,
    pub required_block: Option<[u32; 3]>,
    pub max_threads: Option<u32>,
    pub required_cluster: Option<[u32; 3]>,
    pub body: Vec<Statement>,
    pub line: u32,
}

#[derive(Debug)]
pub enum Statement {
    ScopeOpen,
    ScopeClose,
    /// `names` are written out: `%r<3>` is `%r0, %r1, %r2`.
    Registers {
        bits: u8,
        names: Vec<String>,
    },
    Variable(Variable),
    Label(String),
    /// `NAME: .branchtargets A, B, C;`
    BranchTargets {
        name: String,
        labels: Vec<String>,
    },
    Instruction(Instruction),
}

#[derive(Debug)]
pub struct Instruction {
    pub line: u32,
    pub source: Option<SourceLine>,
    /// Register, and whether it is negated.
    pub guard: Option<(String, bool)>,
    pub opcode: String,
    pub operands: Vec<Operand>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    Name(String),
    /// `!%p1`
    Not(String),
    /// Signed or unsigned, as the two's complement of 64 bits.
    Int(u64),
    FloatBits(u64),
    Sink,
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `[a+8]`, or `[map, {x, y}]`
    Address {
        parts: Vec<Operand>,
        offset: i64,
    },
    /// `%r1|%p1`
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
}
