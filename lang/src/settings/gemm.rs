//! `gemm "SELECTOR" .. { .. }`: the rules that say which products run in which formats.
//!
//! ```text
//! gemm "**.self_attn.*" {
//!   forward     { x = e4m3(1, 128)   w = e4m3(128, 128)   promote = 128 }
//!   input_grad  { dy = e4m3(1, 128)  w = e4m3(128, 128)   promote = 128 }
//!   weight_grad { dy = e4m3(128, 1)  x = e4m3(128, 1)     promote = 128 }
//!   saved_input = e4m3(1, 128)
//! }
//! ```
//!
//! A rule is a list of keys with values; which of several rules speaks for a product is decided key
//! by key in `recipe`.

use weft_ir::ty::DType;

use super::keys::Keys;
use super::selector::Selectors;
use crate::ast::{self, Entry, EntryValue, Expr, ExprKind};
use crate::diag::Diag;
use crate::elaborate::Const;
use crate::source::Span;

/// A quantized format: codes, and a scale for each group of the two last dims.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Format {
    pub dtype: DType,
    /// Rows and columns of a group.
    pub group: [u32; 2],
    /// f32, or ue8m0 for powers of two.
    pub scale: DType,
    /// The least amax that a scale is made of; 0 where there is none.
    pub floor: f64,
}

impl std::fmt::Display for Format {
    /// As a rule writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [rows, cols] = self.group;
        write!(f, "{}({rows}, {cols}", self.dtype.name())?;
        if self.scale == DType::Ue8m0 {
            write!(f, ", pow2")?;
        }
        if self.floor > 0.0 {
            write!(f, ", floor = {:e}", self.floor)?;
        }
        write!(f, ")")
    }
}

/// How the terms of a sum are added.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Accumulate {
    #[default]
    F32,
    /// As a Hopper tensor core does: 14 bits.
    Hopper14,
}

impl Accumulate {
    pub fn name(self) -> &'static str {
        match self {
            Accumulate::F32 => "f32",
            Accumulate::Hopper14 => "hopper14",
        }
    }
}

/// Which of the three products of a linear map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    Forward,
    InputGrad,
    WeightGrad,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Forward, Role::InputGrad, Role::WeightGrad];

    pub fn name(self) -> &'static str {
        match self {
            Role::Forward => "forward",
            Role::InputGrad => "input_grad",
            Role::WeightGrad => "weight_grad",
        }
    }

    /// Its operands, left and right.
    pub fn operands(self) -> [&'static str; 2] {
        match self {
            Role::Forward => ["x", "w"],
            Role::InputGrad => ["dy", "w"],
            Role::WeightGrad => ["dy", "x"],
        }
    }
}

/// What a rule's key is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// The format of an operand of a product, by its place.
    Operand(Role, usize),
    Accumulate(Role),
    Promote(Role),
    /// What the backward finds of a product's input or output.
    SavedInput,
    SavedOutput,
    /// What rows are while they are on their way to experts.
    Dispatched,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Operand(role, i) => write!(f, "{} {}", role.name(), role.operands()[*i]),
            Key::Accumulate(role) => write!(f, "{} accumulate", role.name()),
            Key::Promote(role) => write!(f, "{} promote", role.name()),
            Key::SavedInput => write!(f, "saved_input"),
            Key::SavedOutput => write!(f, "saved_output"),
            Key::Dispatched => write!(f, "dispatched"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Value {
    /// `None`: not quantized.
    Format(Option<Format>),
    Accumulate(Accumulate),
    /// `None`: a sum runs through.
    Promote(Option<u32>),
}

/// One `gemm` of a precision block.
#[derive(Clone, Debug)]
pub struct Rule {
    pub selectors: Selectors,
    /// With the place of each value.
    pub keys: Vec<(Key, Value, Span)>,
}

impl Rule {
    pub fn get(&self, key: Key) -> Option<(Value, Span)> {
        self.keys.iter().find(|(k, ..)| *k == key).map(|(_, value, span)| (*value, *span))
    }
}

const KEYS: &[&str] = &[
    "forward",
    "input_grad",
    "weight_grad",
    "accumulate",
    "promote",
    "saved_input",
    "saved_output",
    "dispatched",
];

/// One rule; `None` if its selectors are wrong.
pub fn rule(keys: &mut Keys, entry: &Entry) -> Option<Rule> {
    let EntryValue::Nested { labels, entries } = &entry.value else {
        let why = "`gemm` takes a block: `gemm \"SELECTOR\" { forward { .. } .. }`";
        return keys.error(entry.span, why);
    };
    let selectors = Selectors::of(entry, labels, keys.diags);
    let mut found: Vec<(Key, Value, Span)> = vec![];
    twice(keys, entries);
    for inner in entries {
        match inner.key.text.as_str() {
            "saved_input" => push(&mut found, inner, Key::SavedInput, saved(keys, inner)),
            "saved_output" => push(&mut found, inner, Key::SavedOutput, saved(keys, inner)),
            "dispatched" => push(&mut found, inner, Key::Dispatched, saved(keys, inner)),
            "accumulate" | "promote" => {}
            name => match Role::ALL.iter().find(|r| r.name() == name) {
                Some(role) => product(keys, *role, inner, &mut found),
                None => keys.unknown(&inner.key, "gemm", KEYS),
            },
        }
    }
    // Said of the whole rule, they hold where a product does not say otherwise.
    for inner in entries {
        let all = |key: fn(Role) -> Key| Role::ALL.map(key);
        let (names, value) = match inner.key.text.as_str() {
            "accumulate" => (all(Key::Accumulate), accumulate(keys, inner)),
            "promote" => (all(Key::Promote), promote(keys, inner)),
            _ => continue,
        };
        for key in names {
            if !found.iter().any(|(k, ..)| *k == key) {
                push(&mut found, inner, key, value);
            }
        }
    }
    if entries.is_empty() {
        return keys.error(entry.span, "a gemm rule says something: `forward { .. }`");
    }
    Some(Rule { selectors: selectors?, keys: found })
}

fn push(found: &mut Vec<(Key, Value, Span)>, at: &Entry, key: Key, value: Option<Value>) {
    found.extend(value.map(|value| (key, value, at.span)));
}

/// `Keys::twice` for blocks too: a product is described once.
fn twice(keys: &mut Keys, entries: &[Entry]) {
    for (i, entry) in entries.iter().enumerate() {
        if let Some(first) = entries[..i].iter().find(|e| e.key.text == entry.key.text) {
            let diag = Diag::error(entry.key.span, format!("`{}` is given twice", entry.key.text));
            keys.diags.push(diag.label(first.key.span, "first here"));
        }
    }
}

/// `forward { x = .. w = .. accumulate = .. promote = .. }`.
fn product(keys: &mut Keys, role: Role, entry: &Entry, found: &mut Vec<(Key, Value, Span)>) {
    let [a, b] = role.operands();
    let known = [a, b, "accumulate", "promote"];
    let EntryValue::Nested { labels, entries } = &entry.value else {
        let why = format!("`{0}` takes a block: `{0} {{ {a} = .. {b} = .. }}`", role.name());
        keys.error::<()>(entry.span, why);
        return;
    };
    if let Some(label) = labels.first() {
        let why = format!("`{}` has no selectors: its rule does", role.name());
        keys.error::<()>(label.span, why);
    }
    twice(keys, entries);
    for inner in entries {
        match inner.key.text.as_str() {
            "accumulate" => push(found, inner, Key::Accumulate(role), accumulate(keys, inner)),
            "promote" => push(found, inner, Key::Promote(role), promote(keys, inner)),
            name => match known[..2].iter().position(|k| *k == name) {
                Some(i) => {
                    push(found, inner, Key::Operand(role, i), operand(keys, (role, i), inner))
                }
                None => keys.unknown(&inner.key, role.name(), &known),
            },
        }
    }
}

fn accumulate(keys: &mut Keys, entry: &Entry) -> Option<Value> {
    let word = keys.word(entry, &["f32", "hopper14"])?;
    let how = if word == "f32" { Accumulate::F32 } else { Accumulate::Hopper14 };
    Some(Value::Accumulate(how))
}

fn promote(keys: &mut Keys, entry: &Entry) -> Option<Value> {
    if let EntryValue::Expr(Expr { kind: ExprKind::None, .. }) = entry.value {
        return Some(Value::Promote(None));
    }
    let n = keys.whole(entry, 1)?;
    match u32::try_from(n) {
        Ok(n) => Some(Value::Promote(Some(n))),
        Err(_) => keys.error(entry.span, format!("`promote` is at most {}, found {n}", u32::MAX)),
    }
}

/// The format of an operand.
fn operand(keys: &mut Keys, (role, i): (Role, usize), entry: &Entry) -> Option<Value> {
    let format = format(keys, entry)?;
    if let Some(f) = format {
        if f.floor > 0.0 && (role, i) != (Role::Forward, 0) {
            let what = format!("{} of `{}`", role.operands()[i], role.name());
            let why = format!("a floor is for activations, not for {what}");
            let hint = "gradients are far below it, and a weight's scale is published";
            keys.diags.push(Diag::error(entry.span, why).hint(hint));
            return None;
        }
    }
    Some(Value::Format(format))
}

fn saved(keys: &mut Keys, entry: &Entry) -> Option<Value> {
    let format = format(keys, entry)?;
    if format.is_some_and(|f| f.floor > 0.0) {
        let why = format!("`{}` has no floor", entry.key.text);
        return keys.error(entry.span, why);
    }
    Some(Value::Format(format))
}

/// `e4m3(1, 128)`, `e5m6(1, 128, pow2)`, `e4m3(1, 128, floor = 1e-4)`, or none.
fn format(keys: &mut Keys, entry: &Entry) -> Option<Option<Format>> {
    let expected = "a format such as e4m3(1, 128), or none";
    let e = keys.expr(entry, expected)?;
    let call = match &e.kind {
        ExprKind::None => return Some(None),
        ExprKind::Path(p) => return plain(keys, entry, e, &p.to_string()),
        ExprKind::Call(call) => call,
        _ => {
            let why = format!("`{}` takes {expected}", entry.key.text);
            return keys.error(e.span, why);
        }
    };
    let name = call.callee.to_string();
    let known = ["e4m3", "e5m2", "e5m6"];
    let Some(dtype) = DType::from_name(&name).filter(|d| known.contains(&d.name())) else {
        let why = format!("no format `{name}`: there are {}", known.join(", "));
        keys.diags.push(Diag::error(call.callee.span, why).did_you_mean(&name, known));
        return None;
    };
    let mut format = Format { dtype, group: [0, 0], scale: DType::F32, floor: 0.0 };
    let mut sides = vec![];
    for arg in &call.args {
        match argument(keys, &mut format, arg)? {
            Some(side) if sides.len() < 2 => sides.push(side),
            Some(_) => return keys.error(arg.span, format!("`{name}` takes rows and columns")),
            None => {}
        }
    }
    let &[rows, cols] = &sides[..] else {
        let diag = Diag::error(e.span, format!("`{name}` takes the rows and columns of a group"));
        keys.diags.push(diag.hint(format!("{name}(1, 128) has a scale for 128 of a row")));
        return None;
    };
    format.group = [rows, cols];
    Some(Some(format))
}

/// A bare name: that of a plain type is not quantized.
fn plain(keys: &mut Keys, entry: &Entry, e: &Expr, name: &str) -> Option<Option<Format>> {
    match name {
        "bf16" | "f32" => Some(None),
        "e4m3" | "e5m2" | "e5m6" => {
            let diag = Diag::error(e.span, format!("`{name}` needs a group"));
            keys.diags.push(diag.hint(format!("{name}(1, 128) has a scale for 128 of a row")));
            None
        }
        _ => {
            let known = ["e4m3", "e5m2", "e5m6", "bf16", "f32"];
            let why = format!("`{}` takes a format, found `{name}`", entry.key.text);
            keys.diags.push(Diag::error(e.span, why).did_you_mean(name, known));
            None
        }
    }
}

/// An argument of a format: a side of its group is returned, the others are noted.
fn argument(keys: &mut Keys, format: &mut Format, arg: &ast::CallArg) -> Option<Option<u32>> {
    match arg.name.as_ref().map(|n| n.text.as_str()) {
        Some("floor") => {
            let floor = keys.number(&arg.value, "floor", "a number from 0")?;
            if floor < 0.0 {
                return keys.error(arg.span, format!("`floor` is at least 0, found {floor}"));
            }
            format.floor = floor;
            return Some(None);
        }
        Some(name) => {
            let diag = Diag::error(arg.span, format!("a format has no argument `{name}`"));
            keys.diags.push(diag.did_you_mean(name, ["floor"]));
            return None;
        }
        None => {}
    }
    if let ExprKind::Path(p) = &arg.value.kind {
        let word = p.to_string();
        if ["pow2", "f32"].contains(&word.as_str()) {
            format.scale = if word == "pow2" { DType::Ue8m0 } else { DType::F32 };
            return Some(None);
        }
        if keys.tree.root().consts.get(&word).is_none() {
            let why = format!("a scale is f32 or pow2, found `{word}`");
            keys.diags.push(Diag::error(arg.span, why).did_you_mean(&word, ["pow2", "f32"]));
            return None;
        }
    }
    match keys.value(&arg.value)? {
        Const::Num(n) if n.fract() == 0.0 && (1.0..=65536.0).contains(&n) => Some(Some(n as u32)),
        other => {
            let found = super::keys::describe(&other);
            let why = format!("a side of a group is a whole number from 1 to 65536, found {found}");
            keys.error(arg.span, why)
        }
    }
}
