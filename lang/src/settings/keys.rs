//! Reading the entries of a block: each key once, each value of its kind.

use crate::ast::{self, EntryValue, Expr, ExprKind};
use crate::diag::Diag;
use crate::elaborate::eval::{Eval, Scope};
use crate::elaborate::{Const, Tree};
use crate::source::Span;

/// The block being read. What is wrong goes to `diags`, and the reader gets `None`.
pub struct Keys<'a, 'd> {
    pub tree: &'a Tree<'a>,
    pub diags: &'d mut Vec<Diag>,
}

impl Keys<'_, '_> {
    pub fn error<T>(&mut self, span: Span, why: impl Into<String>) -> Option<T> {
        self.diags.push(Diag::error(span, why));
        None
    }

    /// A compile-time value; the model's constants are visible.
    pub fn value(&mut self, e: &Expr) -> Option<Const> {
        let scope = Constants { tree: self.tree };
        Eval { modules: &[], diags: self.diags }.expr(e, &scope).ok()
    }

    pub fn number(&mut self, e: &Expr, key: &str, expected: &str) -> Option<f64> {
        match self.value(e)? {
            Const::Num(n) if n.is_finite() => Some(n),
            other => {
                self.error(e.span, format!("`{key}` takes {expected}, found {}", describe(&other)))
            }
        }
    }

    /// The expression of an entry that takes neither phases nor a block.
    pub fn expr<'e>(&mut self, entry: &'e ast::Entry, expected: &str) -> Option<&'e Expr> {
        match &entry.value {
            EntryValue::Expr(e) => Some(e),
            EntryValue::Schedule(_) => {
                let why = format!("`{}` takes {expected}, found a schedule", entry.key.text);
                self.error(entry.span, why)
            }
            EntryValue::Nested { .. } => self.nested(entry, expected),
        }
    }

    pub fn nested<T>(&mut self, entry: &ast::Entry, expected: &str) -> Option<T> {
        self.error(entry.span, format!("`{}` takes {expected}, found a block", entry.key.text))
    }

    /// A number in `least..=most`.
    pub fn within(&mut self, entry: &ast::Entry, least: f64, most: f64) -> Option<f64> {
        let expected = match most {
            f64::INFINITY => format!("a number from {least}"),
            _ => format!("a number from {least} to {most}"),
        };
        let e = self.expr(entry, &expected)?;
        let n = self.number(e, &entry.key.text, &expected)?;
        if (least..=most).contains(&n) {
            return Some(n);
        }
        self.error(e.span, format!("`{}` takes {expected}, found {n}", entry.key.text))
    }

    /// A whole number from `least` on.
    pub fn whole(&mut self, entry: &ast::Entry, least: u64) -> Option<u64> {
        let expected = format!("a whole number from {least}");
        let e = self.expr(entry, &expected)?;
        let n = self.number(e, &entry.key.text, &expected)?;
        // Above 2^53 not every whole number is an f64.
        if n.fract() == 0.0 && n >= least as f64 && n <= 2f64.powi(53) {
            return Some(n as u64);
        }
        self.error(e.span, format!("`{}` takes {expected}, found {n}", entry.key.text))
    }

    pub fn boolean(&mut self, entry: &ast::Entry) -> Option<bool> {
        let e = self.expr(entry, "true or false")?;
        match self.value(e)? {
            Const::Bool(b) => Some(b),
            other => {
                let found = describe(&other);
                let why = format!("`{}` takes true or false, found {found}", entry.key.text);
                self.error(e.span, why)
            }
        }
    }

    /// A bare word: `packing = best_fit`.
    pub fn word(&mut self, entry: &ast::Entry, known: &[&str]) -> Option<String> {
        let expected = known.join(" or ");
        let e = self.expr(entry, &expected)?;
        let ExprKind::Path(path) = &e.kind else {
            return self.error(e.span, format!("`{}` takes {expected}", entry.key.text));
        };
        let word = path.to_string();
        if known.contains(&word.as_str()) {
            return Some(word);
        }
        let why = format!("`{}` takes {expected}, found `{word}`", entry.key.text);
        self.diags.push(Diag::error(e.span, why).did_you_mean(&word, known.iter().copied()));
        None
    }

    /// Numbers of a call with named arguments: `adamw(beta1 = 0.9)`. Positional ones take the names
    /// in order.
    pub fn arguments(&mut self, call: &ast::Call, names: &[&str]) -> Option<Vec<Option<f64>>> {
        let callee = call.callee.to_string();
        let mut values = vec![None; names.len()];
        let mut failed = false;
        for (i, arg) in call.args.iter().enumerate() {
            let slot = match &arg.name {
                None => (i < names.len()).then_some(i),
                Some(n) => names.iter().position(|known| *known == n.text),
            };
            let Some(slot) = slot else {
                let all = names.join(", ");
                let diag = Diag::error(arg.span, format!("`{callee}` takes {all}"));
                let given = arg.name.as_ref().map_or("", |n| n.text.as_str());
                self.diags.push(diag.did_you_mean(given, names.iter().copied()));
                failed = true;
                continue;
            };
            if values[slot].is_some() {
                self.error::<()>(arg.span, format!("`{}` is given twice", names[slot]));
                failed = true;
                continue;
            }
            values[slot] = self.number(&arg.value, names[slot], "a number");
            failed |= values[slot].is_none();
        }
        (!failed).then_some(values)
    }

    /// A key that the block does not have.
    pub fn unknown(&mut self, key: &ast::Key, block: &str, known: &[&str]) {
        let article = if block.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let why = format!("{article} {block} block has no key `{}`", key.text);
        let mut diag = Diag::error(key.span, why).did_you_mean(&key.text, known.iter().copied());
        if diag.hint.is_none() {
            diag = diag.hint(format!("keys: {}", known.join(", ")));
        }
        self.diags.push(diag);
    }

    /// Entries that repeat an earlier one's key.
    pub fn twice(&mut self, entries: &[&ast::Entry]) {
        for (i, entry) in entries.iter().enumerate() {
            let plain = |e: &&&ast::Entry| {
                e.key.text == entry.key.text && !matches!(e.value, EntryValue::Nested { .. })
            };
            if let Some(first) = entries[..i].iter().find(plain) {
                let why = format!("`{}` is given twice", entry.key.text);
                let diag = Diag::error(entry.key.span, why);
                self.diags.push(diag.label(first.key.span, "first here"));
            }
        }
    }
}

/// A value as a message shows it.
pub fn describe(value: &Const) -> String {
    match value {
        Const::Num(n) => n.to_string(),
        Const::Bool(b) => b.to_string(),
        Const::Word(w) => format!("`{w}`"),
        Const::Str(s) => format!("\"{s}\""),
        other => other.kind().to_string(),
    }
}

/// The constants of the model.
pub struct Constants<'a> {
    pub tree: &'a Tree<'a>,
}

impl Scope for Constants<'_> {
    fn lookup(&self, name: &str) -> Option<Const> {
        self.tree.root().consts.get(name).cloned()
    }

    fn lookup_path(&self, _: &[&str]) -> Option<Const> {
        None
    }

    fn names(&self) -> Vec<String> {
        self.tree.root().consts.keys().cloned().collect()
    }
}
