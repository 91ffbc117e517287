//! The elaborated model: instances with their sizes decided, stores with their names, stacks with
//! their counts.
//!
//! A stack of N equal modules is one instance with a level of N above it: layers stay rolled from
//! here on.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use weft_ir::dim::Dim;
use weft_ir::module::{Init, StoreKind};
use weft_ir::ty::DType;

use super::consts::Const;
use crate::ast;
use crate::settings::Precision;
use crate::source::Span;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct InstId(pub u32);

/// Where an instance's text stands.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    Module(&'a ast::Module),
    Model(&'a ast::Model),
}

/// One placed module, or N stacked ones.
#[derive(Debug)]
pub struct Instance<'a> {
    pub body: Body<'a>,
    /// Dotted path of members; the group number after a stack with several groups.
    pub path: String,
    /// The counts of the stacks it stands in, outermost first.
    pub levels: Vec<u64>,
    /// What its stores' published names begin with.
    pub prefix: Prefix,
    pub consts: IndexMap<String, Const>,
    pub members: IndexMap<String, Member>,
    /// Names whose member failed; using one says nothing more.
    pub failed: BTreeSet<String>,
    pub forward: Option<&'a ast::Forward>,
    pub updates: Vec<&'a ast::Update>,
}

/// What a name of an instance stands for besides its constants.
#[derive(Clone, Debug)]
pub enum Member {
    /// One instance, as a member, shared, or as the original of a copy.
    One(InstId),
    Stack(Vec<InstId>),
    /// A store, by its name.
    Store(String),
}

/// Published-name prefix: text and, for each level, its place and first number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prefix {
    pub template: String,
    /// The first number of each level, outermost first.
    pub starts: Vec<u64>,
}

impl Prefix {
    /// The letter that stands for level `n` in a template.
    pub fn letter(n: usize) -> String {
        ["i", "j", "k", "l"].get(n).map_or_else(|| format!("i{n}"), |s| s.to_string())
    }

    pub fn join(&self, part: &str) -> String {
        match (self.template.as_str(), part) {
            ("", p) => p.to_string(),
            (t, "") => t.to_string(),
            (t, p) => format!("{t}.{p}"),
        }
    }
}

/// A weight, a state or a schedule as it is stored.
#[derive(Clone, Debug)]
pub struct StoreDecl {
    pub kind: StoreKind,
    pub dtype: DType,
    /// One instance's dims; the store has the levels before them.
    pub dims: Vec<Dim>,
    pub levels: Vec<u64>,
    pub prefix: Prefix,
    /// Published templates: its own, then its stored duplicates'.
    pub templates: Vec<String>,
    pub init: Init,
    /// Where the dims are written, for messages.
    pub labels: Vec<Span>,
    pub span: Span,
}

/// An elaborated model.
#[derive(Debug)]
pub struct Tree<'a> {
    pub name: String,
    pub instances: Vec<Instance<'a>>,
    pub root: InstId,
    pub stores: IndexMap<String, StoreDecl>,
    pub loss: Option<&'a ast::Loss>,
    pub config: Option<&'a ast::Config>,
    pub blocks: Vec<&'a ast::Block>,
    /// The chosen precision block, and what it makes of the instances.
    pub precision: Precision,
    pub compute: ComputeTypes,
    /// Every schedule that the model or a module of the program declares, placed or not.
    pub schedules: Vec<&'a str>,
}

/// What named values are stored as, module by module: the chosen `precision` block, decided for
/// every instance. Without one, f32.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ComputeTypes {
    /// By instance; those beyond the end are f32.
    pub of_instance: Vec<DType>,
    /// What a decode step keeps, where that is not its module's type.
    pub cache: Option<DType>,
}

impl ComputeTypes {
    pub fn of(&self, inst: InstId) -> DType {
        self.of_instance.get(inst.0 as usize).copied().unwrap_or(DType::F32)
    }
}

impl<'a> Tree<'a> {
    pub fn get(&self, id: InstId) -> &Instance<'a> {
        &self.instances[id.0 as usize]
    }

    pub fn root(&self) -> &Instance<'a> {
        self.get(self.root)
    }

    /// The constant that counts the modules of a member of the model, if one alone does and may be
    /// zero.
    pub fn count_constant(&self, member: &str) -> Option<String> {
        let Body::Model(model) = self.root().body else { return None };
        let placed = model.members.iter().find_map(|m| match m {
            ast::Member::Submodule(s) if s.name.text == member => Some(&s.placements),
            _ => None,
        })?;
        match &placed[..] {
            [ast::Placement { count: Some(count), .. }] => match &count.kind {
                ast::ExprKind::Path(path) => Some(path.to_string()),
                _ => None,
            },
            _ => None,
        }
    }
}

impl StoreDecl {
    /// Dims of the whole store.
    pub fn stacked_dims(&self) -> Vec<Dim> {
        self.levels.iter().map(|n| Dim::fixed(*n)).chain(self.dims.iter().copied()).collect()
    }

    pub fn elements(&self) -> u64 {
        self.stacked_dims().iter().fold(1, |n, d| n.saturating_mul(d.as_fixed().unwrap_or(1)))
    }
}
