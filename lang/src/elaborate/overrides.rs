//! What the model's constants become: the text's own value, then `config.json`, then `shrink`, then
//! `--set`.

use serde_json::Value;

use super::consts::Const;
use super::eval::{Eval, Scope};
use super::{Overrides, Reported};
use crate::ast::{self, ConstantValue};
use crate::diag::Diag;
use crate::source::Span;

/// The words a constant may hold; empty if it is not an enumeration.
pub fn words(constant: &ast::Constant) -> Vec<String> {
    match &constant.value {
        ConstantValue::Enumeration(words) => words.iter().map(|w| w.text.clone()).collect(),
        ConstantValue::Expr(_) => vec![],
    }
}

/// The value that overrides `constant`, if any.
pub fn value_of(
    constant: &ast::Constant,
    model: &ast::Model,
    overrides: &Overrides,
    eval: &mut Eval,
    scope: &dyn Scope,
) -> Option<Result<Const, Reported>> {
    let name = constant.name.text.as_str();
    if let Some((_, text)) = overrides.sets.iter().rev().find(|(n, _)| n == name) {
        return Some(from_text(text, constant, eval));
    }
    if overrides.shrink {
        let all = model.members.iter().filter_map(|m| match m {
            ast::Member::Shrink(s) => Some(&s.values),
            _ => None,
        });
        if let Some(v) = all.flatten().find(|v| v.name.text == name) {
            return Some(eval.expr(&v.value, scope));
        }
    }
    let json = overrides.config.as_ref()?;
    let all = model.members.iter().filter_map(|m| match m {
        ast::Member::Config(c) => Some(&c.entries),
        _ => None,
    });
    let read = all.flatten().find_map(|e| match e {
        ast::ConfigEntry::Read(r) if r.name.text == name => Some(r),
        _ => None,
    })?;
    Some(from_config(read, json, constant, eval, scope))
}

fn from_text(text: &str, constant: &ast::Constant, eval: &mut Eval) -> Result<Const, Reported> {
    let words = words(constant);
    let value = match text {
        "none" if constant.optional => Some(Const::None),
        "true" => Some(Const::Bool(true)),
        "false" => Some(Const::Bool(false)),
        word if words.iter().any(|w| w == word) => Some(Const::Word(word.to_string())),
        number => number.parse().ok().filter(|n: &f64| n.is_finite()).map(Const::Num),
    };
    let name = &constant.name.text;
    match value {
        Some(Const::Num(_)) | None if !words.is_empty() => {
            let diag = Diag::error(
                constant.span,
                format!("--set {name}={text}: `{name}` is one of {}", words.join(", ")),
            );
            eval.diags.push(diag.did_you_mean(text, words.iter().map(String::as_str)));
            Err(Reported)
        }
        Some(value) => Ok(value),
        None => {
            let why = format!("--set {name}={text}: not a number or a boolean");
            eval.diags.push(Diag::error(constant.span, why));
            Err(Reported)
        }
    }
}

fn at_path<'j>(json: &'j Value, path: &ast::Path) -> Option<&'j Value> {
    path.names.iter().try_fold(json, |v, n| v.get(&n.text)).filter(|v| !v.is_null())
}

fn from_config(
    read: &ast::ConfigRead,
    json: &Value,
    constant: &ast::Constant,
    eval: &mut Eval,
    scope: &dyn Scope,
) -> Result<Const, Reported> {
    let Some((path, value)) = read.paths.iter().find_map(|p| Some((p, at_path(json, p)?))) else {
        let all: Vec<String> = read.paths.iter().map(|p| format!("`{p}`")).collect();
        return match &read.otherwise {
            Some(e) => eval.expr(e, scope),
            None => {
                let why = format!("config.json has no {}", all.join(" or "));
                eval.diags.push(
                    Diag::error(read.span, why).hint("add it there, or an `else` value here"),
                );
                Err(Reported)
            }
        };
    };
    match value {
        Value::Number(_) | Value::Bool(_) if !words(constant).is_empty() => {
            let known = words(constant).join(", ");
            let why = format!("config.json: `{path}` is {value}, expected one of {known}");
            eval.diags.push(Diag::error(read.span, why));
            Err(Reported)
        }
        Value::Number(n) => Ok(Const::Num(n.as_f64().unwrap_or(f64::NAN))),
        Value::Bool(b) => Ok(Const::Bool(*b)),
        Value::String(s) => match read.translations.iter().find(|t| t.text.text == *s) {
            Some(t) => eval.expr(&t.value, scope),
            None if words(constant).contains(s) => Ok(Const::Word(s.clone())),
            None => {
                let why = format!("config.json: `{path}` is \"{s}\", which has no meaning here");
                let known: Vec<String> = match read.translations.is_empty() {
                    true => words(constant),
                    false => read.translations.iter().map(|t| t.text.text.clone()).collect(),
                };
                let hint = format!("known: {}", known.join(", "));
                eval.diags.push(Diag::error(read.span, why).hint(hint));
                Err(Reported)
            }
        },
        other => {
            let why = format!("config.json: `{path}` is {other}, not a number, boolean or string");
            eval.diags.push(Diag::error(read.span, why));
            Err(Reported)
        }
    }
}

/// Names in `--set`, `config` and `shrink` that no constant has.
pub fn check_names(model: &ast::Model, overrides: &Overrides, diags: &mut Vec<Diag>) {
    let constants: Vec<&str> = model
        .members
        .iter()
        .filter_map(|m| match m {
            ast::Member::Constant(c) => Some(c.name.text.as_str()),
            _ => None,
        })
        .collect();
    let mut unknown = |span: Span, name: &str, what: &str| {
        if !constants.contains(&name) {
            let why = format!("{what}: model `{}` has no constant `{name}`", model.name.text);
            diags.push(Diag::error(span, why).did_you_mean(name, constants.iter().copied()));
        }
    };
    for (name, _) in &overrides.sets {
        unknown(model.name.span, name, "--set");
    }
    for member in &model.members {
        match member {
            ast::Member::Shrink(s) => {
                s.values.iter().for_each(|v| unknown(v.name.span, &v.name.text, "shrink"))
            }
            ast::Member::Config(c) => c.entries.iter().for_each(|e| {
                if let ast::ConfigEntry::Read(r) = e {
                    unknown(r.name.span, &r.name.text, "config");
                }
            }),
            _ => {}
        }
    }
}
