//! What a `.model` file says, as a tree: one type per row of docs/language.md, spans on every node.
//!
//! Nothing is resolved here: a `Path` may be a parameter, a constant, a member or an enumerant, and
//! `x * Block(..)` on the right of a `:` is a count only because the grammar says so. Parentheses
//! leave no trace. Comments are kept beside the tree, in `File::comments`.

pub use crate::source::{FileId, Span};

/// All files of a compilation. `files[i]` has the id `FileId(i)`; `files[0]` is the root.
#[derive(Clone, Debug, Default)]
pub struct Program {
    pub files: Vec<File>,
}

#[derive(Clone, Debug, Default)]
pub struct File {
    pub id: FileId,
    /// `weft 1`; none only if a diagnostic says so.
    pub version: Option<Version>,
    pub uses: Vec<Use>,
    pub items: Vec<Item>,
    /// In the order of the text, from `#` to the last character of the line.
    pub comments: Vec<Span>,
}

#[derive(Clone, Copy, Debug)]
pub struct Version {
    pub number: f64,
    pub span: Span,
}

/// One string of a `use`; `use "a" "b"` gives two.
#[derive(Clone, Debug)]
pub struct Use {
    pub path: String,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum Item {
    Module(Module),
    Model(Model),
    Block(Block),
}

#[derive(Clone, Debug)]
pub struct Module {
    pub name: Name,
    pub params: Vec<Param>,
    /// `sharing a, b`: members of the place that instantiates this module.
    pub sharing: Vec<Name>,
    pub members: Vec<Member>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Model {
    pub name: Name,
    /// `from Base`; none once `derive` has put in what the base has.
    pub base: Option<Name>,
    pub members: Vec<Member>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Param {
    pub name: Name,
    pub kind: ParamKind,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum ParamKind {
    /// `hidden`
    Required,
    /// `eps = 1e-6`
    Default(Expr),
    /// `q_rank?`
    Optional,
    /// `score = sigmoid | softmax`: at least two, the first is the default
    Enumeration(Vec<Name>),
}

/// A member of a module or a model. Some are legal in a model only; elaboration says which.
#[derive(Clone, Debug)]
pub enum Member {
    Constant(Constant),
    Submodule(Submodule),
    Copy(StoredCopy),
    Weight(Weight),
    State(State),
    Schedule(Schedule),
    If(If<Member>),
    Forward(Forward),
    Update(Update),
    Loss(Loss),
    Config(Config),
    Shrink(Shrink),
    Block(Block),
}

/// `name = EXPR`, `name? = EXPR`, `name = x | y`.
#[derive(Clone, Debug)]
pub struct Constant {
    pub name: Name,
    /// Written with `?`: `none` is a legal value.
    pub optional: bool,
    pub value: ConstantValue,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum ConstantValue {
    Expr(Expr),
    /// At least two; the first is the value unless overridden.
    Enumeration(Vec<Name>),
}

/// `name : N * Call, M * Call sharing a, b at "path"`.
#[derive(Clone, Debug)]
pub struct Submodule {
    pub name: Name,
    /// At least one. A stack if there is more than one or any has a count.
    pub placements: Vec<Placement>,
    pub sharing: Vec<Name>,
    pub at: Option<Template>,
    pub span: Span,
}

/// `COUNT * MODULE` or `MODULE`; the module is any expression of that kind: a call, a name.
#[derive(Clone, Debug)]
pub struct Placement {
    pub count: Option<Expr>,
    pub module: Expr,
    pub span: Span,
}

/// `name : copy of other at "path"`.
#[derive(Clone, Debug)]
pub struct StoredCopy {
    pub name: Name,
    pub of: Path,
    pub at: Option<Template>,
    pub span: Span,
}

/// `weight name : [dims] = number`.
#[derive(Clone, Debug)]
pub struct Weight {
    pub name: Name,
    pub ty: Type,
    pub init: Option<Expr>,
    pub span: Span,
}

/// `state name : f32[dims] = number`.
#[derive(Clone, Debug)]
pub struct State {
    pub name: Name,
    pub ty: Type,
    pub init: Expr,
    pub span: Span,
}

/// `schedule name = number`.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub name: Name,
    pub value: Expr,
    pub span: Span,
}

/// `if COND { .. } else { .. }` over members or statements; `else if` is an `If` in `otherwise`.
#[derive(Clone, Debug)]
pub struct If<T> {
    pub condition: Expr,
    pub then: Vec<T>,
    /// Empty without an `else`.
    pub otherwise: Vec<T>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Forward {
    pub args: Vec<Arg>,
    pub results: Vec<Type>,
    pub body: Vec<Stmt>,
    pub span: Span,
}

/// `x: TYPE`.
#[derive(Clone, Debug)]
pub struct Arg {
    pub name: Name,
    pub ty: Type,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Update {
    pub rules: Vec<UpdateRule>,
    pub span: Span,
}

/// `target += EXPR`.
#[derive(Clone, Debug)]
pub struct UpdateRule {
    pub target: Name,
    pub value: Expr,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Loss {
    pub body: Vec<Stmt>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub entries: Vec<ConfigEntry>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum ConfigEntry {
    Read(ConfigRead),
    Write(ConfigWrite),
}

/// `name = a.b | c { text = value .. } else value`.
#[derive(Clone, Debug)]
pub struct ConfigRead {
    pub name: Name,
    /// At least one; the first present and not null wins.
    pub paths: Vec<Path>,
    pub translations: Vec<Translation>,
    pub otherwise: Option<Expr>,
    pub span: Span,
}

/// `noaux_tc = top2`: the string `text` in the file means `value`.
#[derive(Clone, Debug)]
pub struct Translation {
    pub text: Key,
    pub value: Expr,
    pub span: Span,
}

/// `"key" = literal`.
#[derive(Clone, Debug)]
pub struct ConfigWrite {
    pub key: Key,
    pub value: Expr,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Shrink {
    pub values: Vec<ShrinkValue>,
    pub span: Span,
}

/// `name = value`.
#[derive(Clone, Debug)]
pub struct ShrinkValue {
    pub name: Name,
    pub value: Expr,
    pub span: Span,
}

/// `[B, S, hidden]`, `i32[B, S]`.
#[derive(Clone, Debug)]
pub struct Type {
    /// None: f32, which the precision block may store otherwise.
    pub dtype: Option<Name>,
    pub dims: Vec<Dim>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum Dim {
    /// `..`: any leading dims.
    Rest(Span),
    Expr(Expr),
}

/// `train pretrain { .. }`, inside the model or next to it.
#[derive(Clone, Debug)]
pub struct Block {
    pub kind: BlockKind,
    pub name: Name,
    pub entries: Vec<Entry>,
    pub span: Span,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockKind {
    Precision,
    Parallel,
    Train,
    Serve,
}

/// `key = value`, `key = phases`, or `key labels { entries }`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Key,
    pub value: EntryValue,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum EntryValue {
    Expr(Expr),
    /// Not empty; every phase but the last has an `over`.
    Schedule(Vec<Phase>),
    Nested {
        /// Names or strings between the key and the `{`: `gemm "layers.*" { .. }`.
        labels: Vec<Key>,
        entries: Vec<Entry>,
    },
}

/// `A -> B over N tokens`.
#[derive(Clone, Debug)]
pub struct Phase {
    pub shape: PhaseShape,
    pub over: Option<Extent>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum PhaseShape {
    Hold(Expr),
    Linear { from: Expr, to: Expr },
    Cosine { from: Expr, to: Expr },
}

/// `469G tokens`.
#[derive(Clone, Debug)]
pub struct Extent {
    pub length: Expr,
    pub unit: Unit,
    pub span: Span,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    Steps,
    Tokens,
}

#[derive(Clone, Debug)]
pub enum Stmt {
    /// `a, b = EXPR`
    Bind(Bind),
    /// `cache name = EXPR`
    Cache(NamedValue),
    /// `emit name = EXPR`
    Emit(NamedValue),
    If(If<Stmt>),
    /// `EXPR, EXPR`: the result if it is the last statement, else run for its emits
    Values(Values),
}

#[derive(Clone, Debug)]
pub struct Bind {
    /// At least one.
    pub targets: Vec<Name>,
    pub value: Expr,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct NamedValue {
    pub name: Name,
    pub value: Expr,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Values {
    /// At least one.
    pub exprs: Vec<Expr>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Expr {
    pub kind: ExprKind,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum ExprKind {
    /// With its suffix multiplied in: `2k` is 2000.
    Number(f64),
    Str(String),
    Bool(bool),
    None,
    Path(Path),
    Call(Call),
    /// `(a, b)`; never of one
    Tuple(Vec<Expr>),
    /// `[a, b]`
    List(Vec<Expr>),
    Unary(UnaryOp, Box<Expr>),
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    If {
        condition: Box<Expr>,
        then: Box<Expr>,
        otherwise: Box<Expr>,
    },
    /// `e as [dims]`
    Reshape(Box<Expr>, Vec<Dim>),
    /// `repeat members(args)`
    Repeat(Call),
    /// `each members(rows)`
    Each(Call),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnaryOp {
    Neg,
    Not,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
}

/// `f(a, b, name = c)`.
#[derive(Clone, Debug)]
pub struct Call {
    pub callee: Path,
    pub args: Vec<CallArg>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct CallArg {
    /// None: positional. The parser refuses a positional argument after a named one.
    pub name: Option<Name>,
    pub value: Expr,
    pub span: Span,
}

/// `a.b.c`.
#[derive(Clone, Debug)]
pub struct Path {
    /// At least one.
    pub names: Vec<Name>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Name {
    pub text: String,
    pub span: Span,
}

/// A key that may be quoted; `text` is without quotes, the span has them.
#[derive(Clone, Debug)]
pub struct Key {
    pub text: String,
    pub quoted: bool,
    pub span: Span,
}

/// `at "layers.{depth + i}"`.
#[derive(Clone, Debug)]
pub struct Template {
    pub parts: Vec<TemplatePart>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum TemplatePart {
    /// Never empty; `at ""` has no parts.
    Text(String),
    Expr(Expr),
}

impl Member {
    pub fn span(&self) -> Span {
        match self {
            Member::Constant(m) => m.span,
            Member::Submodule(m) => m.span,
            Member::Copy(m) => m.span,
            Member::Weight(m) => m.span,
            Member::State(m) => m.span,
            Member::Schedule(m) => m.span,
            Member::If(m) => m.span,
            Member::Forward(m) => m.span,
            Member::Update(m) => m.span,
            Member::Loss(m) => m.span,
            Member::Config(m) => m.span,
            Member::Shrink(m) => m.span,
            Member::Block(m) => m.span,
        }
    }
}

impl Stmt {
    pub fn span(&self) -> Span {
        match self {
            Stmt::Bind(s) => s.span,
            Stmt::Cache(s) | Stmt::Emit(s) => s.span,
            Stmt::If(s) => s.span,
            Stmt::Values(s) => s.span,
        }
    }
}

impl Item {
    pub fn span(&self) -> Span {
        match self {
            Item::Module(item) => item.span,
            Item::Model(item) => item.span,
            Item::Block(item) => item.span,
        }
    }
}

impl Path {
    /// The name, if the path is one name.
    pub fn single(&self) -> Option<&Name> {
        match self.names.as_slice() {
            [name] => Some(name),
            _ => None,
        }
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, name) in self.names.iter().enumerate() {
            let dot = if i == 0 { "" } else { "." };
            write!(f, "{dot}{}", name.text)?;
        }
        Ok(())
    }
}

impl BlockKind {
    pub fn word(self) -> &'static str {
        match self {
            BlockKind::Precision => "precision",
            BlockKind::Parallel => "parallel",
            BlockKind::Train => "train",
            BlockKind::Serve => "serve",
        }
    }
}

impl BinaryOp {
    pub fn symbol(self) -> &'static str {
        match self {
            BinaryOp::Add => "+",
            BinaryOp::Sub => "-",
            BinaryOp::Mul => "*",
            BinaryOp::Div => "/",
            BinaryOp::Pow => "^",
            BinaryOp::Eq => "==",
            BinaryOp::Ne => "!=",
            BinaryOp::Lt => "<",
            BinaryOp::Le => "<=",
            BinaryOp::Gt => ">",
            BinaryOp::Ge => ">=",
            BinaryOp::And => "and",
            BinaryOp::Or => "or",
        }
    }
}

impl From<If<Member>> for Member {
    fn from(member: If<Member>) -> Member {
        Member::If(member)
    }
}

impl From<If<Stmt>> for Stmt {
    fn from(stmt: If<Stmt>) -> Stmt {
        Stmt::If(stmt)
    }
}
