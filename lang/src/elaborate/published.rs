//! Published names: what `at "..."` makes of a member's path, stored duplicates, and that no two
//! tensors have one name.

use std::collections::BTreeMap;

use super::Reported;
use super::place::{Placer, Work};
use super::tree::{Member, Prefix, StoreDecl};
use crate::ast;
use crate::diag::Diag;

/// More duplicates of one tensor than this are a slip in a count.
const COPIES_MAX: u64 = 10_000;

impl<'a> Placer<'a, '_> {
    /// The prefix of a member; `first` is the stack index of the group's first instance, none
    /// outside a stack.
    pub(super) fn prefix(
        &mut self,
        s: &'a ast::Submodule,
        first: Option<u64>,
        work: &Work<'a>,
    ) -> Result<Prefix, Reported> {
        let slot = format!("{{{}}}", Prefix::letter(work.levels.len()));
        let (part, start) = match (&s.at, first) {
            (Some(at), _) => self.template(at, first, &slot, work)?,
            (None, Some(first)) => (format!("{}.{slot}", s.name.text), first),
            (None, None) => (s.name.text.clone(), 0),
        };
        let whole = work.is_model && s.at.is_some();
        let template = if whole { part } else { work.prefix.join(&part) };
        let mut starts = work.prefix.starts.clone();
        starts.extend(first.map(|_| start));
        Ok(Prefix { template, starts })
    }

    /// The text of `at` with `slot` for the stack's number, and that number for `i = first`.
    fn template(
        &mut self,
        at: &'a ast::Template,
        first: Option<u64>,
        slot: &str,
        work: &Work<'a>,
    ) -> Result<(String, u64), Reported> {
        let mut text = String::new();
        let mut start = None;
        for part in &at.parts {
            let e = match part {
                ast::TemplatePart::Text(t) => {
                    text.push_str(t);
                    continue;
                }
                ast::TemplatePart::Expr(e) => e,
            };
            let Some(first) = first else {
                text.push_str(&self.index(e, None, work)?.to_string());
                continue;
            };
            let (lo, hi) = (self.index(e, Some(0.0), work)?, self.index(e, Some(1.0), work)?);
            if hi == lo {
                text.push_str(&lo.to_string());
            } else if hi == lo + 1 && start.is_none() {
                start = Some(lo.saturating_add(first));
                text.push_str(slot);
            } else {
                return self.error(e.span, "a name's number is `i` plus a constant, once");
            }
        }
        if first.is_some() && start.is_none() {
            let diag = Diag::error(at.span, "the name of a stack needs `{i}`");
            self.diags.push(diag.hint("`{i}` is the number of the module in the stack, from 0"));
            return Err(Reported);
        }
        Ok((text, start.unwrap_or(0)))
    }

    fn index(&mut self, e: &ast::Expr, i: Option<f64>, work: &Work<'a>) -> Result<u64, Reported> {
        let value = self.eval(work, i, |ev, sc| ev.expr(e, sc))?;
        match value.as_dim().and_then(|d| d.as_fixed()) {
            Some(n) => Ok(n),
            None => self.error(e.span, format!("a name's number is whole, found {value}")),
        }
    }

    /// `name : copy of other at "path"`: more published names for the stores of `other`.
    pub(super) fn copy(
        &mut self,
        c: &'a ast::StoredCopy,
        work: &mut Work<'a>,
    ) -> Result<(), Reported> {
        self.claim(&c.name, work)?;
        let id = self.original(&c.of, work)?;
        let original = &self.instances[id.0 as usize];
        if !original.levels.is_empty() {
            return self.error(c.span, "a member of a stack has no single original");
        }
        let (from_path, from_prefix) = (original.path.clone(), original.prefix.template.clone());
        let part = match &c.at {
            Some(at) => self.template(at, None, "", work)?.0,
            None => c.name.text.clone(),
        };
        let count = work.levels.iter().fold(1u64, |n, l| n.saturating_mul(*l));
        if count > COPIES_MAX {
            let why = format!("{count} stored copies of one module, at most {COPIES_MAX}");
            return self.error(c.span, why);
        }
        let template = work.prefix.join(&part);
        for place in places(&template, &work.levels, &work.prefix.starts) {
            for (_, store) in self.stores.iter_mut().filter(|(p, _)| is_under(p, &from_path)) {
                if let Some(suffix) = store.templates[0].strip_prefix(&from_prefix) {
                    store.templates.push(format!("{place}{suffix}"));
                }
            }
        }
        work.members.insert(c.name.text.clone(), Member::One(id));
        Ok(())
    }

    /// The single member that `of` names.
    fn original(
        &mut self,
        of: &ast::Path,
        work: &Work<'a>,
    ) -> Result<super::tree::InstId, Reported> {
        let name = of.names[0].text.as_str();
        if work.failed.contains(name) {
            return Err(Reported);
        }
        match of.single().and_then(|n| work.members.get(&n.text)) {
            Some(Member::One(id)) => Ok(*id),
            Some(Member::Stack(_)) => {
                let diag = Diag::error(of.span, format!("`{of}` is a stack"));
                self.diags.push(diag.hint("a copy is of one module"));
                Err(Reported)
            }
            Some(Member::Store(_)) => {
                let diag = Diag::error(of.span, format!("`{of}` is a tensor"));
                self.diags.push(diag.hint("a copy is of a module"));
                Err(Reported)
            }
            None => {
                let known = work.members.keys().map(String::as_str);
                let diag = Diag::error(of.span, format!("no member `{of}` above this line"));
                self.diags.push(diag.did_you_mean(name, known));
                Err(Reported)
            }
        }
    }

    /// Tensors of one published name: a checkpoint could hold only one of them.
    pub(super) fn check_published(&mut self) {
        let mut by_name: BTreeMap<&str, Vec<(&String, &StoreDecl)>> = BTreeMap::new();
        let mut found = None;
        for (path, store) in &self.stores {
            for template in &store.templates {
                let others = by_name.entry(template).or_default();
                let other = others.iter().find(|(_, other)| numbers_meet(other, store));
                if let (Some((other_path, other)), None) = (other, &found) {
                    let why = format!("`{other_path}` and `{path}` are published as `{template}`");
                    found = Some((store.span, other.span, why));
                }
                others.push((path, store));
            }
        }
        // The first is enough: whole members meet, not single tensors.
        let Some((span, other, why)) = found else { return };
        let diag = Diag::error(span, why);
        let diag = if other == span { diag } else { diag.label(other, "the other is here") };
        self.diags.push(diag.hint("`at \"...\"` gives a member another name"));
    }
}

/// Whether some number of each level is common to both.
fn numbers_meet(a: &StoreDecl, b: &StoreDecl) -> bool {
    let ranges = |s: &StoreDecl| -> Vec<(u64, u64)> {
        let ends = s.levels.iter().zip(&s.prefix.starts);
        ends.map(|(n, start)| (*start, start.saturating_add(*n))).collect()
    };
    let (a, b) = (ranges(a), ranges(b));
    a.len() == b.len() && a.iter().zip(&b).all(|(x, y)| x.0 < y.1 && y.0 < x.1)
}

/// Whether `path` is that of a store of the instance at `of`, or of one inside it.
fn is_under(path: &str, of: &str) -> bool {
    path.strip_prefix(of).is_some_and(|rest| rest.starts_with('.'))
}

/// The template with every combination of numbers for its levels.
fn places(template: &str, levels: &[u64], starts: &[u64]) -> Vec<String> {
    let mut all = vec![template.to_string()];
    for (n, (count, start)) in levels.iter().zip(starts).enumerate() {
        let slot = format!("{{{}}}", Prefix::letter(n));
        all = all
            .iter()
            .flat_map(|t| (0..*count).map(|i| t.replace(&slot, &(start + i).to_string())))
            .collect();
    }
    all
}
