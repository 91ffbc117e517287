//! What names mean at a place in a function: registers and variables by scope, labels, functions.

use crate::program::{Special, Src};
use std::collections::HashMap;

#[derive(Clone, Copy, Debug)]
pub enum Meaning {
    Register {
        register: u32,
        bits: u8,
    },
    /// An address: of a variable, or a place in a thread's frame.
    Address(u64),
}

/// A parameter or variable in a thread's frame, by its address.
#[derive(Clone, Copy, Debug)]
pub struct FrameSlot {
    pub offset: u64,
    pub size_bytes: u64,
}

#[derive(Default)]
pub struct Names {
    scopes: Vec<Scope>,
    /// Globals of the module: name to address.
    pub globals: HashMap<String, u64>,
    /// Shared variables: name to offset in the shared window.
    pub shared: HashMap<String, u32>,
    /// Labels by the scope they stand in.
    labels: HashMap<(u32, String), u32>,
    pub branch_targets: HashMap<String, Vec<String>>,
    /// Variables in a thread's frame.
    pub frame: HashMap<String, FrameSlot>,
}

struct Scope {
    id: u32,
    meanings: HashMap<String, Meaning>,
}

impl Names {
    pub fn new(globals: HashMap<String, u64>) -> Names {
        Names { globals, ..Names::default() }
    }

    pub fn open(&mut self, id: u32) {
        self.scopes.push(Scope { id, meanings: HashMap::new() });
    }

    pub fn close(&mut self) {
        self.scopes.pop();
    }

    pub fn define(&mut self, name: &str, meaning: Meaning) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.meanings.insert(name.to_string(), meaning);
        }
    }

    pub fn define_label(&mut self, scope: u32, name: &str, at: u32) {
        self.labels.insert((scope, name.to_string()), at);
    }

    fn meaning(&self, name: &str) -> Option<Meaning> {
        self.scopes.iter().rev().find_map(|s| s.meanings.get(name)).copied()
    }

    pub fn register(&self, name: &str) -> Option<(u32, u8)> {
        match self.meaning(name)? {
            Meaning::Register { register, bits } => Some((register, bits)),
            Meaning::Address(_) => None,
        }
    }

    pub fn value(&self, name: &str) -> Option<Src> {
        match self.meaning(name) {
            Some(Meaning::Register { register, .. }) => return Some(Src::Register(register)),
            Some(Meaning::Address(address)) => return Some(Src::Imm(address)),
            None => {}
        }
        if let Some(&address) = self.globals.get(name) {
            return Some(Src::Imm(address));
        }
        if let Some(&offset) = self.shared.get(name) {
            return Some(Src::Shared(offset));
        }
        match name {
            "WARP_SZ" => Some(Src::Imm(32)),
            "%current_graph_exec" => Some(Src::Imm(0)),
            _ => special(name.strip_prefix('%')?).map(Src::Special),
        }
    }

    pub fn label(&self, name: &str) -> Option<u32> {
        let find = |s: &Scope| self.labels.get(&(s.id, name.to_string()));
        self.scopes.iter().rev().find_map(find).copied()
    }
}

fn special(name: &str) -> Option<Special> {
    let (stem, axis) = match name.rsplit_once('.') {
        Some((stem, "x")) => (stem, Some(0)),
        Some((stem, "y")) => (stem, Some(1)),
        Some((stem, "z")) => (stem, Some(2)),
        Some(_) => return None,
        None => (name, None),
    };
    Some(match (stem, axis) {
        ("tid", Some(d)) => Special::Tid(d),
        ("ntid", Some(d)) => Special::Ntid(d),
        ("ctaid", Some(d)) => Special::Ctaid(d),
        ("nctaid", Some(d)) => Special::Nctaid(d),
        ("clusterid", Some(d)) => Special::Clusterid(d),
        ("nclusterid", Some(d)) => Special::Nclusterid(d),
        ("cluster_ctaid", Some(d)) => Special::ClusterCtaid(d),
        ("cluster_nctaid", Some(d)) => Special::ClusterNctaid(d),
        ("cluster_ctarank", None) => Special::ClusterCtarank,
        ("cluster_nctarank", None) => Special::ClusterNctarank,
        ("laneid", None) => Special::Laneid,
        ("warpid", None) => Special::Warpid,
        ("nwarpid", None) => Special::Nwarpid,
        ("lanemask_eq", None) => Special::LanemaskEq,
        ("lanemask_le", None) => Special::LanemaskLe,
        ("lanemask_lt", None) => Special::LanemaskLt,
        ("lanemask_ge", None) => Special::LanemaskGe,
        ("lanemask_gt", None) => Special::LanemaskGt,
        ("smid", None) => Special::Smid,
        ("nsmid", None) => Special::Nsmid,
        ("gridid", None) => Special::Gridid,
        ("clock" | "clock64" | "clock_hi" | "globaltimer" | "globaltimer_lo", None) => {
            Special::Clock
        }
        ("dynamic_smem_size", None) => Special::DynamicSmemSize,
        ("total_smem_size", None) => Special::TotalSmemSize,
        _ => return None,
    })
}
