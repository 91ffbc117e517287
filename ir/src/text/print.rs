//! The printer. It prints ill-formed IR too, since that is when one needs to see it: what an id
//! points to and is not there prints as `<id>`.

use std::fmt::Write;

use crate::attr::{Attr, Attrs};
use crate::dim::{Dim, Sym, SymId, SymKind};
use crate::module::{
    Axis, Func, FuncId, Init, Module, OpData, OpId, Span, Store, StoreKind, ValueId,
};
use crate::op::Op;
use crate::ty::{AxisId, DType, ScaleLayout, Type};

/// Op lines up to this width share the column of their `#`.
const ALIGNED_WIDTH_MAX: usize = 110;

pub fn print(m: &Module) -> String {
    let mut out = format!("weft-ir 1\nmodule {}\n", name(&m.name));
    if !m.syms.is_empty() {
        let all: Vec<String> = m.syms.iter().map(|s| symbol(m, s)).collect();
        let _ = writeln!(out, "dims {{ {} }}", all.join(", "));
    }
    if !m.axes.is_empty() {
        let _ = writeln!(out, "axes {{ {} }}", axes(m, None).join(", "));
    }
    for (key, store) in &m.stores {
        let _ = writeln!(out, "{}", print_store(m, key, store));
    }
    for line in &m.placement {
        let _ = writeln!(out, "layer [{}]", list(line, |e| e.to_string()));
    }
    for f in &m.funcs {
        out.push('\n');
        out.push_str(&print_func(m, f));
    }
    out
}

pub fn print_func(m: &Module, f: &Func) -> String {
    let names = value_names(f);
    let mut out = header(m, f, &names);
    out.push_str(" {\n");
    let lines: Vec<String> = f.body.iter().map(|id| op_line(m, f, *id, &names)).collect();
    let width = lines.iter().map(|l| l.chars().count()).filter(|w| *w <= ALIGNED_WIDTH_MAX).max();
    for (id, line) in f.body.iter().zip(&lines) {
        let spans = in_range(f, *id).map_or(&[][..], |op| &op.spans);
        if spans.is_empty() {
            let _ = writeln!(out, "  {line}");
        } else {
            let places: Vec<String> = spans.iter().map(|s| print_span(m, s)).collect();
            let _ = writeln!(out, "  {line:w$}  # {}", places.join(", "), w = width.unwrap_or(0));
        }
    }
    let results = list(&f.results, |v| value(&names, *v));
    let _ = writeln!(out, "  return {results}");
    // A function without results returns nothing: no blank at the end of the line.
    if results.is_empty() {
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out.push_str("}\n");
    out
}

/// One op as it stands in its function, without its places.
pub fn print_op(m: &Module, f: &Func, id: OpId) -> String {
    op_line(m, f, id, &value_names(f))
}

pub fn print_type(m: &Module, ty: &Type) -> String {
    let mut out = String::from(if ty.state { "state " } else { "" });
    out.push_str(if ty.flight { "flight " } else { "" });
    out.push_str(ty.dtype.name());
    if let Some(q) = &ty.quant {
        let _ = write!(out, "<{}x{}, {}", q.group[0], q.group[1], q.scale.name());
        out.push_str(match q.layout {
            ScaleLayout::RowMajor => ">",
            ScaleLayout::ColMajor => ", col>",
        });
    }
    let mut dims = vec![];
    for (i, d) in ty.dims.iter().enumerate() {
        dims.push(match ty.axes.get(i).copied().flatten() {
            None => print_dim(m, *d),
            Some(a) => match m.axes.get(a.0 as usize) {
                Some(axis) => format!("{}{{{}}}", print_dim(m, *d), name(&axis.name)),
                None => format!("{}{{<{}>}}", print_dim(m, *d), a.0),
            },
        });
    }
    let _ = write!(out, "[{}]", dims.join(", "));
    out
}

pub fn print_dim(m: &Module, dim: Dim) -> String {
    let symbol = |s: SymId| match m.syms.get(s.0 as usize) {
        Some(sym) => name(&sym.name),
        None => format!("<{}>", s.0),
    };
    let mut parts: Vec<String> = dim.symbols().map(symbol).collect();
    if parts.is_empty() || dim.coeff() != 1 {
        parts.insert(0, dim.coeff().to_string());
    }
    parts.join("*")
}

pub fn print_attr(m: &Module, attr: &Attr) -> String {
    match attr {
        Attr::Int(v) => v.to_string(),
        Attr::Float(v) => float(*v),
        Attr::Bool(v) => v.to_string(),
        Attr::Word(w) => name(w),
        Attr::Ints(vs) => format!("[{}]", list(vs, |v| v.to_string())),
        Attr::Dim(d) => print_dim(m, *d),
        Attr::Dims(ds) => format!("[{}]", list(ds, |d| print_dim(m, *d))),
        Attr::DType(d) => DType::name(*d).to_string(),
        Attr::Type(ty) => print_type(m, ty),
        Attr::Func(id) => func(m, *id),
        Attr::Axis(id) => match m.axes.get(id.0 as usize) {
            Some(axis) => name(&axis.name),
            None => format!("<{}>", id.0),
        },
    }
}

/// How each value of `f` is written, with its `%`, by id: its name, or its number in the order of
/// appearance.
pub fn value_names(f: &Func) -> Vec<String> {
    let mut names = vec![String::new(); f.n_values()];
    let mut n = 0u32;
    let ops = f.body.iter().filter_map(|id| in_range(f, *id));
    let inside = ops.flat_map(|op| op.results.iter().chain(&op.operands));
    let shown = f.params.iter().chain(inside).chain(&f.results).map(|v| v.0 as usize);
    // Values that nothing shows any more come last, so that any id has a name.
    for v in shown.chain(0..f.n_values()) {
        let Some(slot) = names.get_mut(v).filter(|s| s.is_empty()) else { continue };
        *slot = match &f.value(ValueId(v as u32)).name {
            Some(given) => format!("%{}", sigil_name(given)),
            None => {
                n += 1;
                format!("%{n}")
            }
        };
    }
    names
}

/// The axes that are parts of `whole`, or of the mesh.
fn axes(m: &Module, whole: Option<AxisId>) -> Vec<String> {
    let all = m.axes.iter().enumerate().filter(|(_, a)| a.within == whole);
    let one = |(i, axis): (usize, &Axis)| {
        let own = format!("{} = {}", name(&axis.name), axis.size);
        match &axes(m, Some(AxisId(i as u32)))[..] {
            [] => own,
            parts => format!("{own} ({})", parts.join(", ")),
        }
    };
    all.map(one).collect()
}

fn header(m: &Module, f: &Func, names: &[String]) -> String {
    let ty = |v: ValueId| match (v.0 as usize) < f.n_values() {
        true => print_type(m, f.ty(v)),
        false => "<type>".to_string(),
    };
    let params = list(&f.params, |v| format!("{}: {}", value(names, *v), ty(*v)));
    let mut results = vec![];
    for (i, v) in f.results.iter().enumerate() {
        results.push(match f.result_names.get(i) {
            Some(n) => format!("{}: {}", name(n), ty(*v)),
            None => ty(*v),
        });
    }
    let mut out = format!("func @{}({params}) -> ({})", sigil_name(&f.name), results.join(", "));
    if !f.donated.is_empty() {
        let _ = write!(out, " donates ({})", list(&f.donated, |(p, r)| format!("{p} -> {r}")));
    }
    out
}

fn op_line(m: &Module, f: &Func, id: OpId, names: &[String]) -> String {
    let Some(op) = in_range(f, id) else { return format!("<op {}>", id.0) };
    let mut out = String::new();
    if !op.results.is_empty() {
        let _ = write!(out, "{} = ", list(&op.results, |v| value(names, *v)));
    }
    out.push_str(op.op.name());
    if !op.operands.is_empty() {
        let _ = write!(out, " {}", list(&op.operands, |v| value(names, *v)));
    }
    let attrs = attrs(m, op.op, &op.attrs);
    if !attrs.is_empty() {
        let _ = write!(out, " {{{}}}", attrs.join(", "));
    }
    let types: Vec<String> = op
        .results
        .iter()
        .filter(|v| (v.0 as usize) < f.n_values())
        .map(|v| print_type(m, f.ty(*v)))
        .collect();
    if !types.is_empty() {
        let _ = write!(out, " : {}", types.join(", "));
    }
    out
}

/// In the order of the row; what the row does not know comes last.
fn attrs(m: &Module, op: Op, attrs: &Attrs) -> Vec<String> {
    let row = op.def().attrs;
    let place = |n: &str| row.iter().position(|a| a.name == n).unwrap_or(row.len());
    let mut all: Vec<(&'static str, &Attr)> =
        attrs.iter().filter(|(_, v)| **v != Attr::Bool(false)).collect();
    all.sort_by_key(|(n, _)| place(n));
    all.iter().map(|(n, v)| format!("{n} = {}", print_attr(m, v))).collect()
}

fn symbol(m: &Module, s: &Sym) -> String {
    match &s.kind {
        SymKind::Bounded { max } => format!("{} <= {max}", name(&s.name)),
        SymKind::Ragged { segments, total } => {
            format!("{} = ragged({segments}) {}", name(&s.name), print_dim(m, *total))
        }
    }
}

fn print_store(m: &Module, key: &str, store: &Store) -> String {
    let kind = match store.kind {
        StoreKind::Weight => "weight",
        StoreKind::State => "state",
        StoreKind::Schedule => "schedule",
    };
    let mut out = format!("{kind} @{}", sigil_name(key));
    if store.kind != StoreKind::Schedule || store.ty != Type::scalar(DType::F32) {
        let _ = write!(out, " : {}", print_type(m, &store.ty));
    }
    if let Some((part, of)) = &store.part {
        let _ = write!(out, " {} of {}", part.name(), print_type(m, of));
    }
    if let Some(placed) = store.placed {
        let _ = write!(out, " {} {}", placed.name(), placed.first());
    }
    if !store.templates.is_empty() {
        let _ = write!(out, " at {}", list(&store.templates, |t| quote(t)));
    }
    if !store.starts.is_empty() {
        let _ = write!(out, " from [{}]", list(&store.starts, |s| s.to_string()));
    }
    out.push_str(" init ");
    match store.init {
        Init::Drawn => out.push_str("drawn"),
        Init::Constant(v) => out.push_str(&float(v)),
    }
    out
}

fn print_span(m: &Module, s: &Span) -> String {
    match m.files.get(s.file as usize) {
        Some(file) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
            let bare = !file.is_empty() && !file.contains("//") && file.chars().all(plain);
            let file = if bare { file.clone() } else { quote(file) };
            format!("{file}:{}:{}", s.line, s.col)
        }
        None => format!("?:{}:{}", s.line, s.col),
    }
}

fn func(m: &Module, id: FuncId) -> String {
    match m.funcs.get(id.0 as usize) {
        Some(f) => format!("@{}", sigil_name(&f.name)),
        None => format!("@<{}>", id.0),
    }
}

fn value(names: &[String], v: ValueId) -> String {
    names.get(v.0 as usize).cloned().unwrap_or_else(|| format!("%<{}>", v.0))
}

fn in_range(f: &Func, id: OpId) -> Option<&OpData> {
    ((id.0 as usize) < f.n_ops()).then(|| f.op(id))
}

fn list<T>(items: &[T], show: impl Fn(&T) -> String) -> String {
    items.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// The shortest decimal that reads back as `v`.
fn float(v: f64) -> String {
    if v.is_nan() {
        return "nan".to_string();
    }
    let text = format!("{v:?}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_string)
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

/// A name where nothing marks it as one: it may not look like a number.
fn name(n: &str) -> String {
    let bare = n.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if bare && n.chars().all(is_name_char) { n.to_string() } else { quote(n) }
}

/// A name behind `%` or `@`; all digits would be a number.
fn sigil_name(n: &str) -> String {
    let number = n.chars().all(|c| c.is_ascii_digit());
    if !number && n.chars().all(is_name_char) { n.to_string() } else { quote(n) }
}

fn quote(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
