//! The parser: recursive descent over the tokens, driven by the op table. It goes on after an
//! error, at the next line of a body or the next function, and reports all it found.
//!
//! What a function says of itself is taken as it stands, wrong types and uses before definitions
//! included: the verifier judges. Only what the IR cannot hold (an unknown name, a name defined
//! twice) is refused here.

use std::collections::BTreeMap;

use super::lex::{self, Kind, Token};
use crate::attr::{Attr, AttrKind, Attrs};
use crate::dim::{Dim, Sym, SymKind};
use crate::module::{
    Axis, Func, FuncId, Init, Module, OpId, Part, Placed, Span, Store, StoreKind, ValueId,
};
use crate::op::{OPS, Op};
use crate::ty::{AxisId, DType, Quant, ScaleLayout, Type};

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{line}:{col}: {message}")]
pub struct TextError {
    pub line: u32,
    pub col: u32,
    pub message: String,
}

/// The lines of a text on which a module's parts stand.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lines {
    pub syms: Vec<u32>,
    pub axes: Vec<u32>,
    pub stores: Vec<u32>,
    pub funcs: Vec<FuncLines>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FuncLines {
    pub head: u32,
    /// By op id.
    pub ops: Vec<u32>,
    /// Of `return`.
    pub end: u32,
}

pub fn parse(text: &str) -> Result<Module, Vec<TextError>> {
    parse_located(text).map(|(module, _)| module)
}

/// The module and where its parts stand.
pub fn parse_located(text: &str) -> Result<(Module, Lines), Vec<TextError>> {
    let mut p = Parser::new(lex::tokens(text));
    p.file();
    if p.errors.is_empty() { Ok((p.module, p.lines)) } else { Err(p.errors) }
}

/// The error has been recorded; whoever can go on after it, does.
struct Failed;
type Parsed<T> = Result<T, Failed>;

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    next: usize,
    /// Functions by name, known before the bodies are read: a body may name any of them.
    funcs: BTreeMap<String, FuncId>,
    module: Module,
    lines: Lines,
    errors: Vec<TextError>,
}

/// A value as written: by a number, then it has no name, or by a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum ValueName {
    Number(String),
    Name(String),
}

/// An op whose operands are still names.
struct RawOp<'a> {
    op: Op,
    results: Vec<(ValueName, Token<'a>)>,
    operands: Vec<(ValueName, Token<'a>)>,
    attrs: Attrs,
    types: Vec<Type>,
    spans: Vec<Span>,
    line: u32,
}

const TOP_WORDS: &[&str] =
    &["module", "dims", "axes", "weight", "state", "schedule", "layer", "func"];

impl<'a> Parser<'a> {
    fn new(tokens: Vec<Token<'a>>) -> Parser<'a> {
        let mut funcs = BTreeMap::new();
        let heads = tokens.windows(2).filter(|w| w[0].text == "func" && w[1].kind == Kind::Global);
        for (i, w) in heads.enumerate() {
            if let Some(name) = sigil_name(w[1].text) {
                funcs.entry(name).or_insert(FuncId(i as u32));
            }
        }
        let (module, lines, errors) = Default::default();
        Parser { tokens, next: 0, funcs, module, lines, errors }
    }

    // --- the file -------------------------------------------------------------------------------

    fn file(&mut self) {
        while self.peek().kind != Kind::End {
            if self.item().is_err() {
                self.skip_to_item();
            }
        }
    }

    fn item(&mut self) -> Parsed<()> {
        let t = self.take();
        match t.text {
            "weft-ir" => {
                let version = self.take();
                let same = version.text == "1";
                if same { Ok(()) } else { self.expected(version, "version 1 of the text form") }
            }
            "module" => {
                self.module.name = self.name("the module's name")?;
                Ok(())
            }
            "dims" => self.braces(|p| p.dim_decl()),
            "axes" => self.braces(|p| p.axis_decl()),
            "weight" => self.store(StoreKind::Weight),
            "state" => self.store(StoreKind::State),
            "schedule" => self.store(StoreKind::Schedule),
            "layer" => {
                let line = self.brackets(|p| p.number("an expert"))?;
                self.module.placement.push(line);
                Ok(())
            }
            "func" => self.func(t.line),
            _ => self.expected(t, "`func`, `weight`, `state`, `schedule`, `dims` or `axes`"),
        }
    }

    /// After an error: the next word that begins an item and a line.
    fn skip_to_item(&mut self) {
        while self.peek().kind != Kind::End {
            let t = self.peek();
            let first = self.next == 0 || self.tokens[self.next - 1].line < t.line;
            if first && TOP_WORDS.contains(&t.text) {
                return;
            }
            self.next += 1;
        }
    }

    fn dim_decl(&mut self) -> Parsed<()> {
        let t = self.peek();
        let name = self.name("a symbol")?;
        let kind = if self.eat("<=") {
            SymKind::Bounded { max: self.number("a bound")? }
        } else {
            self.expect("=")?;
            self.expect("ragged")?;
            self.expect("(")?;
            let segments = self.number("a number of segments")?;
            self.expect(")")?;
            SymKind::Ragged { segments, total: self.dim()? }
        };
        self.module.syms.push(Sym { name, kind });
        self.lines.syms.push(t.line);
        Ok(())
    }

    fn axis_decl(&mut self) -> Parsed<()> {
        let t = self.peek();
        let name = self.name("a mesh axis")?;
        self.expect("=")?;
        let size = self.number("a size")?;
        let whole = AxisId(self.module.axes.len() as u32);
        self.module.axes.push(Axis { name, size, within: None });
        self.lines.axes.push(t.line);
        if self.eat("(") {
            loop {
                let t = self.peek();
                let name = self.name("a part of a mesh axis")?;
                self.expect("=")?;
                let size = self.number("a size")?;
                self.module.axes.push(Axis { name, size, within: Some(whole) });
                self.lines.axes.push(t.line);
                if !self.eat(",") {
                    break;
                }
            }
            self.expect(")")?;
        }
        Ok(())
    }

    fn store(&mut self, kind: StoreKind) -> Parsed<()> {
        let (name, t) = self.global("the store's name")?;
        let scheduled = kind == StoreKind::Schedule && self.peek().text != ":";
        let ty = if scheduled {
            Type::scalar(DType::F32)
        } else {
            self.expect(":")?;
            self.ty()?
        };
        let mut store = Store {
            ty,
            kind,
            templates: vec![],
            starts: vec![],
            init: Init::Constant(0.0),
            part: None,
            placed: None,
        };
        for part in [Part::Codes, Part::Scales] {
            if self.eat(part.name()) {
                self.expect("of")?;
                store.part = Some((part, self.ty()?));
            }
        }
        for placed in [Placed::Weights, Placed::Table] {
            if self.eat(placed(0).name()) {
                store.placed = Some(placed(self.number("a line of the placement")?));
            }
        }
        if self.eat("at") {
            store.templates = self.list(|p| p.string())?;
        }
        if self.eat("from") {
            store.starts = self.brackets(|p| p.number("a first index"))?;
        }
        self.expect("init")?;
        if !self.eat("drawn") {
            store.init = Init::Constant(self.float()?);
        } else {
            store.init = Init::Drawn;
        }
        if self.module.stores.insert(name, store).is_some() {
            return self.fail(t, format!("{} is defined twice", t.text));
        }
        self.lines.stores.push(t.line);
        Ok(())
    }

    // --- functions ------------------------------------------------------------------------------

    fn func(&mut self, line: u32) -> Parsed<()> {
        let (name, _) = self.global("the function's name")?;
        let mut func = Func::new(&name);
        let mut values = BTreeMap::new();
        self.expect("(")?;
        for (name, t, ty) in self.until(")", |p| p.param())? {
            let id = func.add_param("", ty);
            self.define(&mut func, &mut values, id, &name, t)?;
        }
        self.expect("->")?;
        self.expect("(")?;
        let declared = self.until(")", |p| p.declared_result())?;
        if self.eat("donates") {
            self.expect("(")?;
            func.donated = self.until(")", |p| {
                let param = p.number("a parameter's place")?;
                p.expect("->")?;
                Ok((param, p.number("a result's place")?))
            })?;
        }
        self.expect("{")?;
        let ops = self.body()?;
        let at_return = self.take();
        let results = match self.peek().kind {
            Kind::Value => self.list(|p| p.value())?,
            _ => vec![],
        };
        self.expect("}")?;

        let op_lines = ops.iter().map(|op| op.line).collect();
        self.build(&mut func, &mut values, ops);
        func.results = results.iter().filter_map(|r| self.find(&values, r)).collect();
        self.lines.funcs.push(FuncLines { head: line, ops: op_lines, end: at_return.line });
        self.check_results(&mut func, declared, at_return);
        self.module.funcs.push(func);
        Ok(())
    }

    fn param(&mut self) -> Parsed<(ValueName, Token<'a>, Type)> {
        let (name, t) = self.value()?;
        self.expect(":")?;
        Ok((name, t, self.ty()?))
    }

    /// `[name :] type`.
    fn declared_result(&mut self) -> Parsed<(Option<String>, Type)> {
        let named = self.tokens.get(self.next + 1).is_some_and(|t| t.text == ":");
        let name = match named {
            true => {
                let name = self.name("the result's name")?;
                self.expect(":")?;
                Some(name)
            }
            false => None,
        };
        Ok((name, self.ty()?))
    }

    /// What the head declares must be what is returned: it is read nowhere else.
    fn check_results(
        &mut self,
        func: &mut Func,
        declared: Vec<(Option<String>, Type)>,
        at: Token<'a>,
    ) {
        if declared.len() != func.results.len() {
            let (n, found) = (declared.len(), func.results.len());
            let _: Parsed<()> = self.fail(at, format!("expected {n} results, found {found}"));
            return;
        }
        for (i, (_, ty)) in declared.iter().enumerate() {
            let found = func.ty(func.results[i]);
            if found != ty {
                let [ty, found] = [ty, found].map(|t| super::print_type(&self.module, t));
                let why = format!("result {i} is declared {ty}, but {found} is returned");
                let _: Parsed<()> = self.fail(at, why);
            }
        }
        let names: Vec<String> = declared.into_iter().filter_map(|(n, _)| n).collect();
        if !names.is_empty() && names.len() != func.results.len() {
            let _: Parsed<()> = self.fail(at, "either every result has a name or none".into());
        }
        func.result_names = names;
    }

    /// The ops before `return`. A line that does not read is left out; the error stands.
    fn body(&mut self) -> Parsed<Vec<RawOp<'a>>> {
        let mut ops = vec![];
        loop {
            let t = self.peek();
            match t.text {
                "return" => return Ok(ops),
                "func" | "}" => return self.expected(t, "an op or `return`"),
                _ if t.kind == Kind::End => return self.expected(t, "an op or `return`"),
                _ => {}
            }
            match self.op() {
                Ok(op) => ops.push(op),
                Err(Failed) => {
                    let line = self.tokens[self.next.saturating_sub(1)].line.max(t.line);
                    while self.peek().line <= line && self.peek().kind != Kind::End {
                        self.next += 1;
                    }
                }
            }
        }
    }

    fn op(&mut self) -> Parsed<RawOp<'a>> {
        let line = self.peek().line;
        let mut results = vec![];
        if self.peek().kind == Kind::Value {
            results = self.list(|p| p.value())?;
            self.expect("=")?;
        }
        let t = self.take();
        let Some(op) = Op::from_name(t.text) else {
            let names = OPS.iter().map(|d| d.name);
            return match t.kind {
                Kind::Word => {
                    self.fail(t, format!("no op `{}`{}", t.text, suggestion(t.text, names)))
                }
                _ => self.expected(t, "an op"),
            };
        };
        let operands = match self.peek().kind {
            // On the next line it is the next op's result.
            Kind::Value if self.peek().line == t.line => self.list(|p| p.value())?,
            _ => vec![],
        };
        let mut attrs = Attrs::new();
        if self.eat("{") {
            for (name, value) in self.until("}", |p| p.attr(op))? {
                attrs = attrs.with(name, value);
            }
        }
        let types = if self.eat(":") { self.list(|p| p.ty())? } else { vec![] };
        if types.len() != results.len() {
            let (r, n) = (results.len(), types.len());
            return self.fail(t, format!("{}: expected {r} result types, found {n}", op.name()));
        }
        let spans = self.spans()?;
        Ok(RawOp { op, results, operands, attrs, types, spans, line })
    }

    fn spans(&mut self) -> Parsed<Vec<Span>> {
        if self.peek().kind != Kind::Places {
            return Ok(vec![]);
        }
        let t = self.take();
        let Some(places) = lex::places(t.text) else {
            return self.expected(t, "`# file:line:column, ...`");
        };
        let files = &mut self.module.files;
        let mut spans = vec![];
        for (name, line, col) in places {
            let file = match files.iter().position(|f| *f == name) {
                Some(i) => i as u32,
                None if name == "?" => u32::MAX,
                None => {
                    files.push(name);
                    files.len() as u32 - 1
                }
            };
            spans.push(Span { file, line, col });
        }
        Ok(spans)
    }

    /// Push `ops` onto `func`, then tell them their operands: a use may stand before its
    /// definition.
    fn build(
        &mut self,
        func: &mut Func,
        values: &mut BTreeMap<ValueName, ValueId>,
        ops: Vec<RawOp<'a>>,
    ) {
        let mut uses = vec![];
        for raw in ops {
            let id = func.push_op(raw.op, vec![], raw.attrs, raw.types, raw.spans);
            for (i, (name, t)) in raw.results.iter().enumerate() {
                let result = func.op(id).results[i];
                // An error; the others are still looked for.
                let _ = self.define(func, values, result, name, *t);
            }
            uses.push((id, raw.operands));
        }
        for (id, operands) in uses {
            let found = operands.iter().filter_map(|r| self.find(values, r)).collect();
            let id: OpId = id;
            func.op_mut(id).operands = found;
        }
    }

    fn define(
        &mut self,
        func: &mut Func,
        values: &mut BTreeMap<ValueName, ValueId>,
        id: ValueId,
        name: &ValueName,
        t: Token<'a>,
    ) -> Parsed<()> {
        func.value_mut(id).name = match name {
            ValueName::Number(_) => None,
            ValueName::Name(n) => Some(n.clone()),
        };
        match values.insert(name.clone(), id) {
            None => Ok(()),
            Some(_) => self.fail(t, format!("{} is defined twice", t.text)),
        }
    }

    fn find(
        &mut self,
        values: &BTreeMap<ValueName, ValueId>,
        (name, t): &(ValueName, Token<'a>),
    ) -> Option<ValueId> {
        let found = values.get(name).copied();
        if found.is_none() {
            let named = values.keys().filter_map(|n| match n {
                ValueName::Name(n) => Some(n.as_str()),
                ValueName::Number(_) => None,
            });
            let hint = suggestion(t.text.trim_start_matches('%'), named);
            let _: Parsed<()> = self.fail(*t, format!("no value {}{hint}", t.text));
        }
        found
    }

    // --- attributes, types, dims ----------------------------------------------------------------

    fn attr(&mut self, op: Op) -> Parsed<(&'static str, Attr)> {
        let t = self.take();
        let Some(spec) = op.def().attr(t.text) else {
            let names = op.def().attrs.iter().map(|a| a.name);
            let hint = suggestion(t.text, names);
            return self.fail(t, format!("{} has no attribute `{}`{hint}", op.name(), t.text));
        };
        self.expect("=")?;
        let value = match spec.kind {
            AttrKind::Int => Attr::Int(self.number("an integer")?),
            AttrKind::Float => Attr::Float(self.float()?),
            AttrKind::Bool => Attr::Bool(self.word(&["true", "false"])? == "true"),
            AttrKind::Word(words) => Attr::Word(self.word(words)?.to_string()),
            AttrKind::Name => Attr::Word(self.name("a name")?),
            AttrKind::Ints => Attr::Ints(self.brackets(|p| p.number("an integer"))?),
            AttrKind::Dim => Attr::Dim(self.dim()?),
            AttrKind::Dims => Attr::Dims(self.brackets(|p| p.dim())?),
            AttrKind::DType => Attr::DType(self.dtype()?),
            AttrKind::Type => Attr::Type(self.ty()?),
            AttrKind::Func => Attr::Func(self.callee()?),
            AttrKind::Axis => Attr::Axis(self.axis()?),
        };
        Ok((spec.name, value))
    }

    fn callee(&mut self) -> Parsed<FuncId> {
        let (name, t) = self.global("a function")?;
        if let Some(id) = self.funcs.get(&name) {
            return Ok(*id);
        }
        let hint = suggestion(&name, self.funcs.keys().map(String::as_str));
        self.fail(t, format!("no function {}{hint}", t.text))
    }

    fn axis(&mut self) -> Parsed<AxisId> {
        let t = self.peek();
        let axis = self.name("a mesh axis")?;
        match self.module.find_axis(&axis) {
            Some(id) => Ok(id),
            None => self.fail(t, format!("no mesh axis `{axis}`")),
        }
    }

    fn ty(&mut self) -> Parsed<Type> {
        let (state, flight) = (self.eat("state"), self.eat("flight"));
        let dtype = self.dtype()?;
        let quant = if self.eat("<") { Some(self.quant()?) } else { None };
        let cut = self.brackets(|p| {
            let dim = p.dim()?;
            if !p.eat("{") {
                return Ok((dim, None));
            }
            let axis = p.axis()?;
            p.expect("}")?;
            Ok((dim, Some(axis)))
        })?;
        let (dims, axes): (Vec<_>, Vec<_>) = cut.into_iter().unzip();
        let axes = if axes.iter().all(Option::is_none) { vec![] } else { axes };
        Ok(Type { dtype, dims, quant, axes, state, flight })
    }

    /// After the `<`.
    fn quant(&mut self) -> Parsed<Quant> {
        let t = self.take();
        let sides = t.text.split_once('x').map(|(r, c)| (r.parse(), c.parse()));
        let Some((Ok(rows), Ok(cols))) = sides else {
            return self.expected(t, "the group of a scale, such as 1x128");
        };
        self.expect(",")?;
        let scale = self.dtype()?;
        let col = self.eat(",");
        if col {
            self.expect("col")?;
        }
        self.expect(">")?;
        let layout = if col { ScaleLayout::ColMajor } else { ScaleLayout::RowMajor };
        Ok(Quant { group: [rows, cols], scale, layout })
    }

    fn dtype(&mut self) -> Parsed<DType> {
        let t = self.take();
        match DType::from_name(t.text) {
            Some(d) => Ok(d),
            None if t.kind == Kind::Word => {
                let names = DType::ALL.iter().map(|d| d.name());
                self.fail(t, format!("no element type `{}`{}", t.text, suggestion(t.text, names)))
            }
            None => self.expected(t, "an element type"),
        }
    }

    /// `[number *] symbol * symbol ..`, or a number.
    fn dim(&mut self) -> Parsed<Dim> {
        let first = self.peek();
        let mut dim = match first.kind {
            Kind::Number => Dim::fixed(self.number("a size")?),
            _ => self.symbol()?,
        };
        while self.eat("*") {
            let symbol = self.symbol()?;
            let Some(more) = dim.checked_mul(symbol) else {
                return self.fail(first, "a dim of too many symbols".into());
            };
            dim = more;
        }
        Ok(dim)
    }

    fn symbol(&mut self) -> Parsed<Dim> {
        let t = self.peek();
        let name = self.name("a size")?;
        match self.module.find_sym(&name) {
            Some(id) => Ok(Dim::sym(id)),
            None => {
                let hint = suggestion(&name, self.module.syms.iter().map(|s| s.name.as_str()));
                self.fail(t, format!("no dim `{name}`{hint}"))
            }
        }
    }

    // --- names, numbers, lists ------------------------------------------------------------------

    fn value(&mut self) -> Parsed<(ValueName, Token<'a>)> {
        let t = self.take();
        match sigil_name(t.text).filter(|_| t.kind == Kind::Value) {
            Some(n) if !t.text.starts_with("%\"") && n.bytes().all(|c| c.is_ascii_digit()) => {
                Ok((ValueName::Number(n), t))
            }
            Some(n) => Ok((ValueName::Name(n), t)),
            None => self.expected(t, "a value"),
        }
    }

    fn global(&mut self, what: &str) -> Parsed<(String, Token<'a>)> {
        let t = self.take();
        match sigil_name(t.text).filter(|_| t.kind == Kind::Global) {
            Some(n) => Ok((n, t)),
            None => self.expected(t, &format!("{what}, such as @f")),
        }
    }

    fn name(&mut self, what: &str) -> Parsed<String> {
        let t = self.take();
        match t.kind {
            Kind::Word => Ok(t.text.to_string()),
            Kind::Text => self.unquoted(t),
            _ => self.expected(t, what),
        }
    }

    fn string(&mut self) -> Parsed<String> {
        let t = self.take();
        if t.kind == Kind::Text { self.unquoted(t) } else { self.expected(t, "text in quotes") }
    }

    fn unquoted(&mut self, t: Token<'a>) -> Parsed<String> {
        match lex::unquote(t.text) {
            Some((text, _)) => Ok(text),
            None => self.expected(t, r#"text whose escapes are \", \\ and \u{..}"#),
        }
    }

    fn word(&mut self, words: &[&str]) -> Parsed<&'a str> {
        let t = self.take();
        if words.contains(&t.text) { Ok(t.text) } else { self.expected(t, &words.join(" or ")) }
    }

    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Parsed<T> {
        let t = self.take();
        match t.text.parse() {
            Ok(n) if t.kind == Kind::Number => Ok(n),
            _ => self.expected(t, what),
        }
    }

    fn float(&mut self) -> Parsed<f64> {
        let t = self.take();
        match t.text.parse() {
            Ok(v) if t.kind == Kind::Number || matches!(t.text, "inf" | "nan") => Ok(v),
            _ => self.expected(t, "a number"),
        }
    }

    /// One or more, separated by commas.
    fn list<T>(&mut self, one: impl Fn(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut all = vec![one(self)?];
        while self.eat(",") {
            all.push(one(self)?);
        }
        Ok(all)
    }

    /// Any number, separated by commas, up to `end`, which is taken.
    fn until<T>(&mut self, end: &str, one: impl Fn(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        if self.eat(end) {
            return Ok(vec![]);
        }
        let all = self.list(one)?;
        self.expect(end)?;
        Ok(all)
    }

    fn brackets<T>(&mut self, one: impl Fn(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.expect("[")?;
        self.until("]", one)
    }

    fn braces(&mut self, one: impl Fn(&mut Self) -> Parsed<()>) -> Parsed<()> {
        self.expect("{")?;
        self.until("}", one).map(|_| ())
    }

    // --- tokens ---------------------------------------------------------------------------------

    fn peek(&self) -> Token<'a> {
        self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn take(&mut self) -> Token<'a> {
        let t = self.peek();
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        t
    }

    fn eat(&mut self, text: &str) -> bool {
        let t = self.peek();
        let there = t.text == text && matches!(t.kind, Kind::Punct | Kind::Word);
        if there {
            self.take();
        }
        there
    }

    fn expect(&mut self, text: &str) -> Parsed<()> {
        if self.eat(text) {
            return Ok(());
        }
        let t = self.peek();
        self.expected(t, &format!("`{text}`"))
    }

    fn expected<T>(&mut self, t: Token<'a>, what: &str) -> Parsed<T> {
        let found = match t.kind {
            Kind::End => "the end of the text".to_string(),
            _ => format!("`{}`", t.text.chars().take(40).collect::<String>()),
        };
        self.fail(t, format!("expected {what}, found {found}"))
    }

    fn fail<T>(&mut self, t: Token<'a>, message: String) -> Parsed<T> {
        self.errors.push(TextError { line: t.line, col: t.col, message });
        Err(Failed)
    }
}

/// What follows the `%` or `@`.
fn sigil_name(text: &str) -> Option<String> {
    let name = text.strip_prefix(['%', '@'])?;
    match name.starts_with('"') {
        true => lex::unquote(name).map(|(n, _)| n),
        false => Some(name.to_string()),
    }
}

/// `; did you mean ..?` if one of `names` is a slip of the fingers away: a third of its letters, at
/// least one.
fn suggestion<'n>(found: &str, names: impl Iterator<Item = &'n str>) -> String {
    let limit = (found.chars().count() / 3).max(1);
    let scored = names.map(|n| (strsim::damerau_levenshtein(found, n), n));
    match scored.filter(|(d, _)| *d <= limit).min_by_key(|(d, _)| *d) {
        Some((_, name)) => format!("; did you mean `{name}`?"),
        None => String::new(),
    }
}
