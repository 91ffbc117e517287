//! The model's constants as a `config.json`, in the spelling that its `config` block reads.
//!
//! A constant is written under its first path and under every other path that is a single key
//! (`heads = num_attention_heads | num_key_value_heads` writes both). Inside an object a constant
//! that is none is left out. Where braces translate strings, the string is one that gives every
//! constant read from that path the value it has.

use serde_json::{Map, Value};

use super::Sets;
use super::keys::{Constants, describe};
use crate::ast::{self, ConfigEntry, ConfigRead, ConfigWrite};
use crate::diag::Diag;
use crate::elaborate::eval::Eval;
use crate::elaborate::{Const, Tree};

/// What a checkpoint's `config.json` says; empty without a `config` block. What cannot be said goes
/// to `diags`.
pub fn published_config(tree: &Tree, diags: &mut Vec<Diag>) -> Map<String, Value> {
    published(tree, None, diags)
}

/// The part of [`published_config`] that the model's constants are read from, without the constants
/// that `sets` gave another value.
pub fn published_dims(tree: &Tree, sets: &Sets, diags: &mut Vec<Diag>) -> Map<String, Value> {
    published(tree, Some(sets), diags)
}

/// With the literals, or without them and what is set.
fn published(tree: &Tree, dims: Option<&Sets>, diags: &mut Vec<Diag>) -> Map<String, Value> {
    let mut out = Map::new();
    let Some(config) = tree.config else { return out };
    let reads: Vec<&ConfigRead> = config
        .entries
        .iter()
        .filter_map(|e| match e {
            ConfigEntry::Read(r) => Some(r),
            ConfigEntry::Write(_) => None,
        })
        .collect();
    for entry in &config.entries {
        match entry {
            ConfigEntry::Write(w) if dims.is_none() => literal(tree, w, diags, &mut out),
            ConfigEntry::Write(_) => {}
            ConfigEntry::Read(r) if is_set(dims, &r.name.text) => {}
            ConfigEntry::Read(r) => constant(tree, r, &reads, diags, &mut out),
        }
    }
    out
}

fn is_set(sets: Option<&Sets>, constant: &str) -> bool {
    sets.is_some_and(|sets| sets.iter().any(|(name, _)| name == constant))
}

/// `"key" = literal`; dots in the key lead into objects.
fn literal(tree: &Tree, w: &ConfigWrite, diags: &mut Vec<Diag>, out: &mut Map<String, Value>) {
    let value = match &w.value.kind {
        // Lists of strings are no compile-time values of modules, but they are JSON.
        ast::ExprKind::List(_) | ast::ExprKind::Str(_) => text_value(&w.value),
        _ => None,
    };
    let value = value.or_else(|| {
        let found = Eval { modules: &[], diags }.expr(&w.value, &Constants { tree }).ok()?;
        json(&found)
    });
    match value {
        Some(value) => {
            let path: Vec<&str> = w.key.text.split('.').collect();
            put(out, &path, value);
        }
        None if diags.iter().any(Diag::is_error) => {}
        None => diags.push(Diag::error(w.span, "this has no form in JSON")),
    }
}

fn text_value(e: &ast::Expr) -> Option<Value> {
    match &e.kind {
        ast::ExprKind::Str(s) => Some(Value::from(s.as_str())),
        ast::ExprKind::List(all) => {
            all.iter().map(text_value).collect::<Option<_>>().map(Value::Array)
        }
        _ => None,
    }
}

fn constant(
    tree: &Tree,
    read: &ConfigRead,
    reads: &[&ConfigRead],
    diags: &mut Vec<Diag>,
    out: &mut Map<String, Value>,
) {
    let Some(value) = tree.root().consts.get(&read.name.text) else { return };
    for (i, path) in read.paths.iter().enumerate() {
        let names: Vec<&str> = path.names.iter().map(|n| n.text.as_str()).collect();
        if i > 0 && names.len() > 1 {
            continue;
        }
        let json = match (value, names.len()) {
            (Const::None, 1) => Some(Value::Null),
            (Const::None, _) => continue,
            _ if !read.translations.is_empty() => translated(tree, path, reads),
            _ => json(value),
        };
        match json {
            Some(json) => put(out, &names, json),
            None => {
                let name = &read.name.text;
                let why = format!("config.json: `{path}` cannot say {name} = {}", describe(value));
                diags.push(Diag::error(read.span, why));
            }
        }
    }
}

/// The string at `path` that means the value of every constant read from there.
fn translated(tree: &Tree, path: &ast::Path, reads: &[&ConfigRead]) -> Option<Value> {
    let here: Vec<&&ConfigRead> = reads
        .iter()
        .filter(|r| r.paths.iter().any(|p| p.to_string() == path.to_string()))
        .collect();
    let means = |read: &ConfigRead, text: &str| {
        let value = tree.root().consts.get(&read.name.text);
        let translation = read.translations.iter().find(|t| t.text.text == text);
        match translation {
            Some(t) => meaning(tree, &t.value).as_ref() == value,
            None => value == Some(&Const::Word(text.to_string())),
        }
    };
    let first = here.first()?;
    let texts = first.translations.iter().map(|t| t.text.text.as_str());
    texts.into_iter().find(|text| here.iter().all(|r| means(r, text))).map(Value::from)
}

/// A word of an enumeration stands for itself.
fn meaning(tree: &Tree, e: &ast::Expr) -> Option<Const> {
    if let ast::ExprKind::Path(path) = &e.kind
        && tree.root().consts.get(&path.to_string()).is_none()
    {
        return Some(Const::Word(path.to_string()));
    }
    Eval { modules: &[], diags: &mut vec![] }.expr(e, &Constants { tree }).ok()
}

fn json(value: &Const) -> Option<Value> {
    match value {
        Const::Num(n) if n.fract() == 0.0 && n.abs() < 2f64.powi(53) => {
            Some(Value::from(*n as i64))
        }
        Const::Num(n) => Some(Value::from(*n)),
        Const::Bool(b) => Some(Value::from(*b)),
        Const::Word(s) | Const::Str(s) => Some(Value::from(s.as_str())),
        Const::None => Some(Value::Null),
        Const::List(all) => all.iter().map(json).collect::<Option<_>>().map(Value::Array),
        Const::Dim(_) | Const::Module(_) => None,
    }
}

/// Set `path` in nested objects.
fn put(out: &mut Map<String, Value>, path: &[&str], value: Value) {
    match path {
        [] => {}
        [last] => {
            out.insert((*last).to_string(), value);
        }
        [first, rest @ ..] => {
            let inner = out.entry((*first).to_string()).or_insert_with(|| Map::new().into());
            if !inner.is_object() {
                *inner = Map::new().into();
            }
            if let Value::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}
