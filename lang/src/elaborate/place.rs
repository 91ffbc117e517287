//! Placing modules: each member call becomes an instance, each `weight`, `state` and `schedule` a store.

use std::rc::Rc;

use indexmap::IndexMap;
use weft_ir::dim::Dim;
use weft_ir::module::{Init, StoreKind};
use weft_ir::ty::DType;

use super::consts::{Closure, Const};
use super::eval::{Eval, Scope};
use super::tree::{Body, InstId, Instance, Member, Prefix, StoreDecl, Tree};
use super::{Overrides, Reported, overrides};
use crate::ast::{self, ConstantValue, ParamKind};
use crate::diag::Diag;
use crate::source::Span;

pub fn place<'a>(
    modules: &[&'a ast::Module],
    model: &'a ast::Model,
    mut blocks: Vec<&'a ast::Block>,
    overrides: &Overrides,
    diags: &mut Vec<Diag>,
) -> Option<Tree<'a>> {
    overrides::check_names(model, overrides, diags);
    let mut placer = Placer {
        modules,
        model,
        overrides,
        diags,
        instances: vec![],
        stores: IndexMap::new(),
        depth: 0,
    };
    let members = model.members.iter().collect();
    let root = placer.instance(Site {
        body: Body::Model(model),
        members,
        consts: IndexMap::new(),
        shared: IndexMap::new(),
        path: String::new(),
        levels: vec![],
        prefix: Prefix::default(),
    });
    let (instances, stores) = (placer.instances, placer.stores);
    let mut loss = None;
    let mut config = None;
    for member in &model.members {
        match member {
            ast::Member::Loss(l) => loss = Some(l),
            ast::Member::Config(c) => config = Some(c),
            ast::Member::Block(b) => blocks.push(b),
            _ => {}
        }
    }
    let name = model.name.text.clone();
    Some(Tree { name, instances, root, stores, loss, config, blocks })
}

/// Modules within modules deeper than this are a cycle.
const DEPTH_MAX: usize = 64;

struct Placer<'a, 'd> {
    modules: &'d [&'a ast::Module],
    model: &'a ast::Model,
    overrides: &'d Overrides,
    diags: &'d mut Vec<Diag>,
    instances: Vec<Instance<'a>>,
    stores: IndexMap<String, StoreDecl>,
    depth: usize,
}

/// An instance about to be made.
struct Site<'a> {
    body: Body<'a>,
    members: Vec<&'a ast::Member>,
    consts: IndexMap<String, Const>,
    /// Members of the place around that it uses as its own.
    shared: IndexMap<String, Member>,
    path: String,
    levels: Vec<u64>,
    prefix: Prefix,
}

/// What compile-time expressions inside an instance see.
struct Inside<'s, 'a> {
    consts: &'s IndexMap<String, Const>,
    members: &'s IndexMap<String, Member>,
    instances: &'s [Instance<'a>],
    words: &'s [String],
    /// `i` in a template.
    index: Option<f64>,
}

impl Scope for Inside<'_, '_> {
    fn lookup(&self, name: &str) -> Option<Const> {
        if let (Some(i), "i") = (self.index, name) {
            return Some(Const::Num(i));
        }
        let word = || self.words.iter().find(|w| *w == name).map(|w| Const::Word(w.clone()));
        let pi = || (name == "pi").then_some(Const::Num(std::f64::consts::PI));
        self.consts.get(name).cloned().or_else(word).or_else(pi)
    }

    fn lookup_path(&self, names: &[&str]) -> Option<Const> {
        match (self.members.get(names[0])?, &names[1..]) {
            (Member::One(id), [name]) => {
                self.instances.get(id.0 as usize)?.consts.get(*name).cloned()
            }
            _ => None,
        }
    }

    fn names(&self) -> Vec<String> {
        self.consts.keys().chain(self.members.keys()).cloned().collect()
    }
}

/// The words of the enumerations an instance's text declares.
pub fn words_of(body: Body) -> Vec<String> {
    match body {
        Body::Module(m) => m
            .params
            .iter()
            .filter_map(|p| match &p.kind {
                ParamKind::Enumeration(words) => Some(words),
                _ => None,
            })
            .flatten()
            .map(|w| w.text.clone())
            .collect(),
        Body::Model(m) => m
            .members
            .iter()
            .filter_map(|member| match member {
                ast::Member::Constant(c) => Some(overrides::words(c)),
                _ => None,
            })
            .flatten()
            .collect(),
    }
}

impl<'a> Placer<'a, '_> {
    fn error<T>(&mut self, span: Span, message: impl Into<String>) -> Result<T, Reported> {
        self.diags.push(Diag::error(span, message));
        Err(Reported)
    }

    fn instance(&mut self, site: Site<'a>) -> InstId {
        let words = words_of(site.body);
        let mut work = Work {
            consts: site.consts,
            members: site.shared,
            forward: None,
            updates: vec![],
            words,
            path: site.path,
            levels: site.levels,
            prefix: site.prefix,
            is_model: matches!(site.body, Body::Model(_)),
        };
        self.members(&site.members, &mut work);
        let Work { consts, members, forward, updates, path, levels, prefix, .. } = work;
        self.instances.push(Instance {
            body: site.body,
            path,
            levels,
            prefix,
            consts,
            members,
            forward,
            updates,
        });
        InstId(self.instances.len() as u32 - 1)
    }

    fn members(&mut self, members: &[&'a ast::Member], work: &mut Work<'a>) {
        for member in members {
            // A member that failed has said so; the others are still worth looking at.
            let _: Result<(), Reported> = self.member(member, work);
        }
    }

    fn eval<T>(
        &mut self,
        work: &Work<'a>,
        index: Option<f64>,
        run: impl FnOnce(&mut Eval, &dyn Scope) -> T,
    ) -> T {
        let scope = Inside {
            consts: &work.consts,
            members: &work.members,
            instances: &self.instances,
            words: &work.words,
            index,
        };
        run(&mut Eval { modules: self.modules, diags: self.diags }, &scope)
    }

    fn member(&mut self, member: &'a ast::Member, work: &mut Work<'a>) -> Result<(), Reported> {
        match member {
            ast::Member::Constant(c) => self.constant(c, work),
            ast::Member::Submodule(s) => self.submodule(s, work),
            ast::Member::Copy(c) => self.copy(c, work),
            ast::Member::Weight(w) => {
                let init = match &w.init {
                    Some(e) => Init::Constant(self.number(e, work)?),
                    None => Init::Drawn,
                };
                self.store(&w.name, &w.ty, StoreKind::Weight, init, w.span, work)
            }
            ast::Member::State(s) => {
                let init = Init::Constant(self.number(&s.init, work)?);
                self.store(&s.name, &s.ty, StoreKind::State, init, s.span, work)
            }
            ast::Member::Schedule(s) => self.schedule(s, work),
            ast::Member::If(i) => {
                let cond = self.eval(work, None, |ev, sc| ev.condition(&i.condition, sc))?;
                let branch = if cond { &i.then } else { &i.otherwise };
                self.members(&branch.iter().collect::<Vec<_>>(), work);
                Ok(())
            }
            ast::Member::Forward(f) => {
                if work.forward.is_some() {
                    return self.error(f.span, "a second `forward`");
                }
                work.forward = Some(f);
                Ok(())
            }
            ast::Member::Update(u) => {
                work.updates.push(u);
                Ok(())
            }
            ast::Member::Loss(_)
            | ast::Member::Config(_)
            | ast::Member::Shrink(_)
            | ast::Member::Block(_)
                if !work.is_model =>
            {
                self.error(member.span(), "this stands in a model only")
            }
            ast::Member::Loss(_)
            | ast::Member::Config(_)
            | ast::Member::Shrink(_)
            | ast::Member::Block(_) => Ok(()),
        }
    }

    fn number(&mut self, e: &ast::Expr, work: &Work<'a>) -> Result<f64, Reported> {
        match self.eval(work, None, |ev, sc| ev.expr(e, sc))? {
            Const::Num(n) => Ok(n),
            other => self.error(e.span, format!("needs a number, found {}", other.kind())),
        }
    }

    fn claim(&mut self, name: &ast::Name, work: &Work<'a>) -> Result<(), Reported> {
        if work.consts.contains_key(&name.text) || work.members.contains_key(&name.text) {
            return self.error(name.span, format!("`{}` is already defined here", name.text));
        }
        Ok(())
    }

    fn constant(&mut self, c: &'a ast::Constant, work: &mut Work<'a>) -> Result<(), Reported> {
        self.claim(&c.name, work)?;
        let (model, over) = (self.model, self.overrides);
        let is_model = work.is_model;
        let value = self.eval(work, None, |ev, sc| {
            let own = || match &c.value {
                ConstantValue::Enumeration(words) => Some(Const::Word(words[0].text.clone())),
                ConstantValue::Expr(_) => None,
            };
            let over = is_model.then(|| overrides::value_of(c, model, over, ev, sc)).flatten();
            match (over, own(), &c.value) {
                (Some(value), _, _) => value,
                (None, Some(word), _) => Ok(word),
                (None, None, ConstantValue::Expr(e)) => ev.expr(e, sc),
                (None, None, ConstantValue::Enumeration(_)) => Err(Reported),
            }
        })?;
        if value == Const::None && !c.optional {
            let hint = format!("write `{}? = ...` if it may be none", c.name.text);
            let why = format!("`{}` may not be none", c.name.text);
            self.diags.push(Diag::error(c.span, why).hint(hint));
            return Err(Reported);
        }
        work.consts.insert(c.name.text.clone(), value);
        Ok(())
    }

    fn schedule(&mut self, s: &'a ast::Schedule, work: &mut Work<'a>) -> Result<(), Reported> {
        let init = Init::Constant(self.number(&s.value, work)?);
        let name = s.name.text.clone();
        self.claim(&s.name, work)?;
        work.members.insert(name.clone(), Member::Store(name.clone()));
        if let Some(other) = self.stores.get(&name) {
            if other.kind != StoreKind::Schedule || other.init != init {
                let why = format!("schedule `{name}` has another value elsewhere");
                let diag = Diag::error(s.span, why).label(other.span, "here");
                self.diags.push(diag.hint("schedules of one name are one"));
                return Err(Reported);
            }
            return Ok(());
        }
        self.stores.insert(
            name.clone(),
            StoreDecl {
                kind: StoreKind::Schedule,
                dtype: DType::F32,
                dims: vec![],
                levels: vec![],
                prefix: Prefix::default(),
                templates: vec![name],
                init,
                labels: vec![],
                span: s.span,
            },
        );
        Ok(())
    }

    fn store(
        &mut self,
        name: &'a ast::Name,
        ty: &'a ast::Type,
        kind: StoreKind,
        init: Init,
        span: Span,
        work: &mut Work<'a>,
    ) -> Result<(), Reported> {
        self.claim(name, work)?;
        let dtype = match &ty.dtype {
            None => DType::F32,
            Some(n) => match DType::from_name(&n.text) {
                Some(d) => d,
                None => return self.error(n.span, format!("unknown element type `{}`", n.text)),
            },
        };
        if kind == StoreKind::Weight && dtype != DType::F32 {
            let why = "a weight is f32; the precision block says how it is stored";
            return self.error(ty.span, why);
        }
        let mut dims = vec![];
        let mut labels = vec![];
        for dim in &ty.dims {
            let ast::Dim::Expr(e) = dim else {
                return self.error(ty.span, "a stored tensor has all its dims named");
            };
            let value = self.eval(work, None, |ev, sc| ev.expr(e, sc))?;
            match value.as_dim().and_then(|d| d.as_fixed()) {
                Some(n) if n > 0 => dims.push(Dim::fixed(n)),
                _ => {
                    let why = format!("a dim is a whole positive number, found {value}");
                    return self.error(e.span, why);
                }
            }
            labels.push(e.span);
        }
        let path = match work.path.as_str() {
            "" => name.text.clone(),
            p => format!("{p}.{}", name.text),
        };
        let template = work.prefix.join(&name.text);
        work.members.insert(name.text.clone(), Member::Store(path.clone()));
        self.stores.insert(
            path,
            StoreDecl {
                kind,
                dtype,
                dims,
                levels: work.levels.clone(),
                prefix: work.prefix.clone(),
                templates: vec![template],
                init,
                labels,
                span,
            },
        );
        Ok(())
    }

    fn submodule(&mut self, s: &'a ast::Submodule, work: &mut Work<'a>) -> Result<(), Reported> {
        self.claim(&s.name, work)?;
        let stacked = s.placements.len() > 1 || s.placements.iter().any(|p| p.count.is_some());
        let mut ids = vec![];
        let mut first = 0;
        let mut failed = false;
        for (group, placement) in s.placements.iter().enumerate() {
            match self.placement(s, placement, stacked, group, first, work) {
                Ok((count, id)) => {
                    first += count;
                    ids.extend(id);
                }
                Err(Reported) => failed = true,
            }
        }
        let member = match (stacked, &ids[..]) {
            (false, [one]) => Member::One(*one),
            _ => Member::Stack(ids),
        };
        if failed {
            return Err(Reported);
        }
        work.members.insert(s.name.text.clone(), member);
        Ok(())
    }

    /// One `COUNT * MODULE`: its count, and the instance unless the count is 0.
    fn placement(
        &mut self,
        s: &'a ast::Submodule,
        p: &'a ast::Placement,
        stacked: bool,
        group: usize,
        first: u64,
        work: &mut Work<'a>,
    ) -> Result<(u64, Option<InstId>), Reported> {
        let count = match &p.count {
            None => 1,
            Some(e) => {
                let value = self.eval(work, None, |ev, sc| ev.expr(e, sc))?;
                match value.as_dim().and_then(|d| d.as_fixed()) {
                    Some(n) => n,
                    None => return self.error(e.span, format!("a count is not {value}")),
                }
            }
        };
        let module = self.eval(work, None, |ev, sc| ev.expr(&p.module, sc))?;
        let Const::Module(closure) = module else {
            let why = format!("a member is a module, found {}", module.kind());
            return self.error(p.module.span, why);
        };
        if count == 0 {
            return Ok((0, None));
        }
        let shared = self.shared(s, &closure, work)?;
        let mut prefix = self.prefix(s, stacked, first, work)?;
        let mut levels = work.levels.clone();
        let mut path = match work.path.as_str() {
            "" => s.name.text.clone(),
            p => format!("{p}.{}", s.name.text),
        };
        if stacked {
            levels.push(count);
        } else {
            prefix.starts.truncate(levels.len());
        }
        if s.placements.len() > 1 {
            path = format!("{path}.{group}");
        }
        if self.depth >= DEPTH_MAX {
            return self.error(p.span, "modules are nested too deep; does one contain itself?");
        }
        let module = self.modules[closure.module];
        self.depth += 1;
        let id = self.instance(Site {
            body: Body::Module(module),
            members: module.members.iter().collect(),
            consts: closure.args.iter().cloned().collect(),
            shared,
            path,
            levels,
            prefix,
        });
        self.depth -= 1;
        Ok((count, Some(id)))
    }

    /// The members that `sharing` hands in; the module's head must ask for exactly these.
    fn shared(
        &mut self,
        s: &'a ast::Submodule,
        closure: &Rc<Closure>,
        work: &Work<'a>,
    ) -> Result<IndexMap<String, Member>, Reported> {
        let module = self.modules[closure.module];
        let mut shared = IndexMap::new();
        for name in &s.sharing {
            if !module.sharing.iter().any(|n| n.text == name.text) {
                let why = format!("`{}` does not share `{}`", module.name.text, name.text);
                let diag = Diag::error(name.span, why)
                    .did_you_mean(&name.text, module.sharing.iter().map(|n| n.text.as_str()));
                self.diags.push(diag.label(module.name.span, "its head names what it shares"));
                return Err(Reported);
            }
            match work.members.get(&name.text) {
                Some(member) => shared.insert(name.text.clone(), member.clone()),
                None => {
                    let why = format!("no member `{}` above this line", name.text);
                    let diag = Diag::error(name.span, why)
                        .did_you_mean(&name.text, work.members.keys().map(String::as_str));
                    self.diags.push(diag);
                    return Err(Reported);
                }
            };
        }
        for name in &module.sharing {
            if !shared.contains_key(&name.text) {
                let why = format!("`{}` needs `sharing {}`", module.name.text, name.text);
                let diag = Diag::error(s.span, why).label(name.span, "asked for here");
                self.diags.push(diag);
                return Err(Reported);
            }
        }
        Ok(shared)
    }

    /// The published prefix of a member; `first` is the stack index of the group's first instance.
    fn prefix(
        &mut self,
        s: &'a ast::Submodule,
        stacked: bool,
        first: u64,
        work: &Work<'a>,
    ) -> Result<Prefix, Reported> {
        let letter = Prefix::letter(work.levels.len());
        let mut starts = work.prefix.starts.clone();
        let mut start = first;
        let part = match &s.at {
            None if stacked => format!("{}.{{{letter}}}", s.name.text),
            None => s.name.text.clone(),
            Some(at) => {
                let mut text = String::new();
                let mut indexed = false;
                for part in &at.parts {
                    let e = match part {
                        ast::TemplatePart::Text(t) => {
                            text.push_str(t);
                            continue;
                        }
                        ast::TemplatePart::Expr(e) => e,
                    };
                    let (lo, hi) = match stacked {
                        true => (self.index(e, Some(0.0), work)?, self.index(e, Some(1.0), work)?),
                        false => (self.index(e, None, work)?, self.index(e, None, work)?),
                    };
                    if hi == lo {
                        text.push_str(&lo.to_string());
                    } else if hi == lo + 1 && !indexed {
                        indexed = true;
                        start = lo + first;
                        text.push_str(&format!("{{{letter}}}"));
                    } else {
                        let why = "a name's number is `i` plus a constant, once";
                        return self.error(e.span, why);
                    }
                }
                if stacked && !indexed {
                    return self.error(at.span, "the name of a stack needs `{i}`");
                }
                text
            }
        };
        let whole = work.is_model && s.at.is_some();
        let template = if whole { part } else { work.prefix.join(&part) };
        starts.push(start);
        Ok(Prefix { template, starts })
    }

    fn index(&mut self, e: &ast::Expr, i: Option<f64>, work: &Work<'a>) -> Result<u64, Reported> {
        let value = self.eval(work, i, |ev, sc| ev.expr(e, sc))?;
        match value.as_dim().and_then(|d| d.as_fixed()) {
            Some(n) => Ok(n),
            None => self.error(e.span, format!("a name's number is whole, found {value}")),
        }
    }

    /// `name : copy of other at "path"`: more published names for the stores of `other`.
    fn copy(&mut self, c: &'a ast::StoredCopy, work: &mut Work<'a>) -> Result<(), Reported> {
        self.claim(&c.name, work)?;
        let member = c.of.single().and_then(|n| work.members.get(&n.text)).cloned();
        let Some(Member::One(id)) = member else {
            let diag = Diag::error(c.of.span, format!("no single member `{}` to copy", c.of));
            let known = work.members.keys().map(String::as_str);
            self.diags.push(diag.did_you_mean(&c.of.to_string(), known));
            return Err(Reported);
        };
        let original = &self.instances[id.0 as usize];
        if !original.levels.is_empty() {
            return self.error(c.span, "a member of a stack has no single original");
        }
        let (from_path, from_prefix) = (original.path.clone(), original.prefix.template.clone());
        let mut part = c.name.text.clone();
        if let Some(at) = &c.at {
            part.clear();
            for piece in &at.parts {
                match piece {
                    ast::TemplatePart::Text(t) => part.push_str(t),
                    ast::TemplatePart::Expr(e) => {
                        part.push_str(&self.index(e, None, work)?.to_string())
                    }
                }
            }
        }
        let template = work.prefix.join(&part);
        for place in places(&template, &work.levels, &work.prefix.starts) {
            for (path, store) in &mut self.stores {
                if path.starts_with(&format!("{from_path}.")) {
                    let suffix = store.templates[0][from_prefix.len()..].to_string();
                    store.templates.push(format!("{place}{suffix}"));
                }
            }
        }
        work.members.insert(c.name.text.clone(), Member::One(id));
        Ok(())
    }
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

/// An instance while its members are read.
struct Work<'a> {
    consts: IndexMap<String, Const>,
    members: IndexMap<String, Member>,
    forward: Option<&'a ast::Forward>,
    updates: Vec<&'a ast::Update>,
    words: Vec<String>,
    path: String,
    levels: Vec<u64>,
    prefix: Prefix,
    is_model: bool,
}
