//! Placing modules: each member call becomes an instance with its members placed in turn.

use std::collections::BTreeSet;
use std::rc::Rc;

use indexmap::IndexMap;

use super::consts::{Closure, Const};
use super::eval::{Eval, Scope};
use super::tree::{Body, ComputeTypes, InstId, Instance, Member, Prefix, StoreDecl, Tree};
use super::{Overrides, Reported, overrides};
use crate::ast::{self, ConstantValue, ParamKind};
use crate::diag::Diag;
use crate::settings::Precision;
use crate::source::Span;

/// Place `model` and all that it holds.
pub fn place<'a>(
    modules: &[&'a ast::Module],
    model: &'a ast::Model,
    mut blocks: Vec<&'a ast::Block>,
    overrides: &Overrides,
    diags: &mut Vec<Diag>,
) -> Tree<'a> {
    overrides::check_names(model, overrides, diags);
    let mut placer = Placer {
        modules,
        model,
        overrides,
        diags,
        instances: vec![],
        stores: IndexMap::new(),
        chain: vec![],
        full: false,
    };
    let root = placer.instance(Site {
        body: Body::Model(model),
        members: model.members.iter().collect(),
        consts: IndexMap::new(),
        shared: IndexMap::new(),
        path: String::new(),
        levels: vec![],
        prefix: Prefix::default(),
    });
    placer.check_published();
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
    let mut schedules = schedule_names(&model.members);
    schedules.extend(modules.iter().flat_map(|m| schedule_names(&m.members)));
    let (precision, compute) = (Precision::default(), ComputeTypes::default());
    Tree { name, instances, root, stores, loss, config, blocks, precision, compute, schedules }
}

/// The schedules that `members` declare, under any condition.
pub(crate) fn schedule_names(members: &[ast::Member]) -> Vec<&str> {
    let mut names = vec![];
    for member in members {
        match member {
            ast::Member::Schedule(s) => names.push(s.name.text.as_str()),
            ast::Member::If(branches) => {
                names.extend(schedule_names(&branches.then));
                names.extend(schedule_names(&branches.otherwise));
            }
            _ => {}
        }
    }
    names
}

/// Modules within modules deeper than this are a circle.
const DEPTH_MAX: usize = 64;

/// A model with more placed modules than this has one that doubles on the way down. Stacks count
/// once for each group, however many modules they hold.
const INSTANCES_MAX: usize = 20_000;

pub(super) struct Placer<'a, 'd> {
    pub(super) modules: &'d [&'a ast::Module],
    model: &'a ast::Model,
    overrides: &'d Overrides,
    pub(super) diags: &'d mut Vec<Diag>,
    pub(super) instances: Vec<Instance<'a>>,
    pub(super) stores: IndexMap<String, StoreDecl>,
    /// The modules being placed, the innermost last.
    chain: Vec<usize>,
    /// Too deep or too many: said once, and nothing more is placed.
    full: bool,
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
    failed: &'s BTreeSet<String>,
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

    fn has_failed(&self, name: &str) -> bool {
        self.failed.contains(name)
    }

    fn names(&self) -> Vec<String> {
        self.consts.keys().chain(self.members.keys()).chain(self.words).cloned().collect()
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
    pub(super) fn error<T>(
        &mut self,
        span: Span,
        message: impl Into<String>,
    ) -> Result<T, Reported> {
        self.diags.push(Diag::error(span, message));
        Err(Reported)
    }

    fn instance(&mut self, site: Site<'a>) -> InstId {
        let words = words_of(site.body);
        let mut work = Work {
            consts: site.consts,
            members: site.shared,
            failed: BTreeSet::new(),
            forward: None,
            updates: vec![],
            words,
            path: site.path,
            levels: site.levels,
            prefix: site.prefix,
            is_model: matches!(site.body, Body::Model(_)),
        };
        self.members(&site.members, &mut work);
        let Work { consts, members, failed, forward, updates, path, levels, prefix, .. } = work;
        self.instances.push(Instance {
            body: site.body,
            path,
            levels,
            prefix,
            consts,
            members,
            failed,
            forward,
            updates,
        });
        InstId(self.instances.len() as u32 - 1)
    }

    fn members(&mut self, members: &[&'a ast::Member], work: &mut Work<'a>) {
        for member in members {
            // What failed has said so; the others are still worth looking at.
            if self.member(member, work).is_err() {
                names(member, &mut work.failed);
            }
        }
    }

    pub(super) fn eval<T>(
        &mut self,
        work: &Work<'a>,
        index: Option<f64>,
        run: impl FnOnce(&mut Eval, &dyn Scope) -> T,
    ) -> T {
        let scope = Inside {
            consts: &work.consts,
            members: &work.members,
            instances: &self.instances,
            failed: &work.failed,
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
            ast::Member::Weight(w) => self.weight(w, work),
            ast::Member::State(s) => self.state(s, work),
            ast::Member::Schedule(s) => self.schedule(s, work),
            ast::Member::If(i) => {
                let cond = self.eval(work, None, |ev, sc| ev.condition(&i.condition, sc))?;
                let branch = if cond { &i.then } else { &i.otherwise };
                self.members(&branch.iter().collect::<Vec<_>>(), work);
                Ok(())
            }
            ast::Member::Forward(f) => {
                if let Some(first) = work.forward {
                    let diag = Diag::error(f.span, "a second `forward`");
                    self.diags.push(diag.label(first.span, "the first is here"));
                    return Err(Reported);
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
                let what = match member {
                    ast::Member::Loss(_) => "`loss`",
                    ast::Member::Config(_) => "`config`",
                    ast::Member::Shrink(_) => "`shrink`",
                    _ => "a block",
                };
                self.error(member.span(), format!("{what} stands in a model, not in a module"))
            }
            ast::Member::Loss(_)
            | ast::Member::Config(_)
            | ast::Member::Shrink(_)
            | ast::Member::Block(_) => Ok(()),
        }
    }

    pub(super) fn claim(&mut self, name: &ast::Name, work: &Work<'a>) -> Result<(), Reported> {
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
            let hint = format!("declared `{}? = ...` it may be", c.name.text);
            let why = format!("`{}` may not be none", c.name.text);
            self.diags.push(Diag::error(c.span, why).hint(hint));
            return Err(Reported);
        }
        work.consts.insert(c.name.text.clone(), value);
        Ok(())
    }

    fn submodule(&mut self, s: &'a ast::Submodule, work: &mut Work<'a>) -> Result<(), Reported> {
        self.claim(&s.name, work)?;
        let stacked = s.placements.len() > 1 || s.placements.iter().any(|p| p.count.is_some());
        let mut ids = vec![];
        let mut first = 0u64;
        let mut failed = false;
        for (group, placement) in s.placements.iter().enumerate() {
            let at = Group { stack: stacked.then_some(first), number: group };
            match self.placement(s, placement, at, work) {
                Ok((count, id)) => {
                    first = first.saturating_add(count);
                    ids.extend(id);
                }
                Err(Reported) => failed = true,
            }
        }
        if failed {
            return Err(Reported);
        }
        let member = match (stacked, &ids[..]) {
            (false, [one]) => Member::One(*one),
            _ => Member::Stack(ids),
        };
        work.members.insert(s.name.text.clone(), member);
        Ok(())
    }

    /// One `COUNT * MODULE`: its count, and the instance unless the count is 0.
    fn placement(
        &mut self,
        s: &'a ast::Submodule,
        p: &'a ast::Placement,
        at: Group,
        work: &mut Work<'a>,
    ) -> Result<(u64, Option<InstId>), Reported> {
        let count = match &p.count {
            None => 1,
            Some(e) => self.count(e, work)?,
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
        let prefix = self.prefix(s, at.stack, work)?;
        let mut levels = work.levels.clone();
        levels.extend(at.stack.map(|_| count));
        let mut path = work.path_of(&s.name.text);
        if s.placements.len() > 1 {
            path = format!("{path}.{}", at.number);
        }
        self.room_for(closure.module, p.span)?;
        let module = self.modules[closure.module];
        self.chain.push(closure.module);
        let n_before = self.diags.len();
        let id = self.instance(Site {
            body: Body::Module(module),
            members: module.members.iter().collect(),
            consts: closure.args.iter().cloned().collect(),
            shared,
            path,
            levels,
            prefix,
        });
        self.chain.pop();
        for diag in &mut self.diags[n_before..] {
            diag.say_where(p.module.span, format!("in this `{}`", module.name.text));
        }
        if self.full { Err(Reported) } else { Ok((count, Some(id))) }
    }

    fn count(&mut self, e: &ast::Expr, work: &Work<'a>) -> Result<u64, Reported> {
        let value = self.eval(work, None, |ev, sc| ev.expr(e, sc))?;
        match value.as_dim().and_then(|d| d.as_fixed()) {
            Some(n) => Ok(n),
            None => self.error(e.span, format!("a count is a whole number, found {value}")),
        }
    }

    /// Whether another module may be placed; a circle of modules ends here.
    fn room_for(&mut self, module: usize, span: Span) -> Result<(), Reported> {
        if self.full {
            return Err(Reported);
        }
        let name = |i: &usize| self.modules[*i].name.text.as_str();
        if self.chain.len() >= DEPTH_MAX {
            self.full = true;
            let why = match self.chain.iter().rposition(|m| *m == module) {
                Some(at) => {
                    let circle: Vec<&str> =
                        self.chain[at..].iter().chain([&module]).map(name).collect();
                    format!("modules contain themselves: {}", circle.join(" has "))
                }
                None => "modules are nested too deep".to_string(),
            };
            let diag = Diag::error(span, why);
            let hint = format!("modules may be nested {DEPTH_MAX} deep");
            self.diags.push(diag.hint(hint));
            return Err(Reported);
        }
        if self.instances.len() >= INSTANCES_MAX {
            self.full = true;
            return self.error(span, format!("more than {INSTANCES_MAX} modules are placed"));
        }
        Ok(())
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
                None if work.failed.contains(&name.text) => return Err(Reported),
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
}

/// Which of the `COUNT * MODULE` of a member.
struct Group {
    /// In a stack: the number of the group's first module.
    stack: Option<u64>,
    number: usize,
}

/// Every name that `member` would have defined.
fn names(member: &ast::Member, into: &mut BTreeSet<String>) {
    let name = match member {
        ast::Member::Constant(m) => &m.name,
        ast::Member::Submodule(m) => &m.name,
        ast::Member::Copy(m) => &m.name,
        ast::Member::Weight(m) => &m.name,
        ast::Member::State(m) => &m.name,
        ast::Member::Schedule(m) => &m.name,
        ast::Member::If(i) => {
            i.then.iter().chain(&i.otherwise).for_each(|m| names(m, into));
            return;
        }
        _ => return,
    };
    into.insert(name.text.clone());
}

/// An instance while its members are read.
pub(super) struct Work<'a> {
    consts: IndexMap<String, Const>,
    pub(super) members: IndexMap<String, Member>,
    /// Names whose member failed; using one says nothing more.
    pub(super) failed: BTreeSet<String>,
    forward: Option<&'a ast::Forward>,
    updates: Vec<&'a ast::Update>,
    words: Vec<String>,
    path: String,
    pub(super) levels: Vec<u64>,
    pub(super) prefix: Prefix,
    pub(super) is_model: bool,
}

impl Work<'_> {
    /// The path of a member.
    pub(super) fn path_of(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_string(),
            path => format!("{path}.{name}"),
        }
    }
}
