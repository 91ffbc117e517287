//! An entry function: its parameters and results as buffers, its body as steps.

use std::collections::BTreeMap;

use weft_graph::{Arg, BufferId, Entry, Role, WeightInfo};
use weft_ir::module::{Func, FuncId, Init, Module, Part, Placed, Store, StoreKind, ValueId};
use weft_ir::ty::AxisId;

use super::dims::{self, Dims};
use super::plan_memory::{InPlace, Temp, collision, plan};
use super::view::View;
use super::{Backend, Kernels, Lower, LowerError, streams};

/// An entry whose temps have no place yet.
pub struct Unplaced {
    entry: Entry,
    temps: Vec<Temp>,
    in_place: Vec<InPlace>,
}

/// The entry that `func` becomes. Kernels it launches are added to `kernels`.
pub fn lower(
    backend: &dyn Backend,
    module: &Module,
    func: FuncId,
    kernels: &mut Kernels,
) -> Result<Entry, LowerError> {
    Ok(select_kernels(backend, module, func, kernels)?.plan_memory())
}

/// The launches that `func` becomes. Kernels it needs are added to `kernels`.
pub fn select_kernels(
    backend: &dyn Backend,
    module: &Module,
    func: FuncId,
    kernels: &mut Kernels,
) -> Result<Unplaced, LowerError> {
    let mut cx = Lower {
        backend,
        carrying: BTreeMap::new(),
        beside: None,
        module,
        kernels,
        dims: Dims::new(module),
        buffers: vec![],
        temps: BTreeMap::new(),
        in_place: vec![],
        steps: vec![vec![]],
        open: vec![],
        n_loops: 0,
        n_frames: 0,
        n_flights: 0,
    };
    let f = module.func(func);
    let params = cx.params(f)?;
    let dests = cx.results(f, &params);
    cx.func(func, params, &dests)?;
    cx.finish(f)
}

impl<'a> Lower<'a> {
    fn params(&mut self, f: &Func) -> Result<Vec<View>, LowerError> {
        let mut params = vec![];
        for p in &f.params {
            let name = f.value(*p).name.clone().unwrap_or_else(|| format!("{}", p.0));
            let store = self.module.stores.get(&name);
            let at = self.param(f, *p, &name, store)?;
            let ty = f.ty(*p);
            params.push(View::row_major(&self.dims, at, ty.dtype, &ty.dims));
        }
        Ok(params)
    }

    fn param(
        &mut self,
        f: &Func,
        p: ValueId,
        name: &str,
        store: Option<&Store>,
    ) -> Result<Arg, LowerError> {
        let ty = f.ty(p);
        if ty.quant.is_some() {
            let why = format!("parameter {name} is quantized, which no kernel here reads");
            return Err(self.error_in(f, why.into()));
        }
        let role = match store.map(|s| s.kind) {
            Some(StoreKind::Weight) => Role::Weight,
            Some(StoreKind::State) => Role::State,
            None if ty.state => Role::State,
            Some(StoreKind::Schedule) | None => Role::Input,
        };
        let sizes = self.dims.exprs(&ty.dims);
        let id = self.buffer(name, dims::dtype(ty.dtype), sizes, role);
        let stored = matches!(role, Role::Weight | Role::State);
        if let Some(store) = store.filter(|_| stored) {
            self.buffers[id.0 as usize].weight = weight(self.module, name, store);
        }
        Ok(Arg::whole(id))
    }

    /// Buffers of the results, and where each belongs; a donated one is the state it came from.
    fn results(&mut self, f: &Func, params: &[View]) -> Vec<Option<Arg>> {
        let mut dests = vec![];
        for (i, r) in f.results.iter().enumerate() {
            let unnamed = || format!("result.{i}");
            let name = f.result_names.get(i).cloned().unwrap_or_else(unnamed);
            let ty = f.ty(*r);
            let donor = f.donated.iter().find(|(_, result)| *result as usize == i);
            let alias = donor.map(|(p, _)| params[*p as usize].at.buffer);
            // Names are unique, and the state's own is taken.
            let name = if alias.is_some() { format!("{name}.next") } else { name };
            let sizes = self.dims.exprs(&ty.dims);
            let id = self.buffer(&name, dims::dtype(ty.dtype), sizes, Role::Output);
            self.buffers[id.0 as usize].alias = alias;
            dests.push(alias.is_none().then(|| Arg::whole(id)));
        }
        dests
    }

    fn finish(mut self, f: &Func) -> Result<Unplaced, LowerError> {
        let steps = self.steps.pop().unwrap_or_default();
        let decls = self.dims.decls();
        let max: Vec<i64> = decls.iter().map(|d| d.max).collect();
        let size_bytes = |id: &BufferId| {
            let size = &self.buffers[id.0 as usize].size_bytes();
            size.range(&decls).and_then(|_| u64::try_from(size.eval(&max)).ok())
        };
        let mut temps = vec![];
        for (id, info) in &self.temps {
            let Some(size_bytes) = size_bytes(id) else {
                let name = &self.buffers[id.0 as usize].name;
                return Err(self.error_in(f, format!("the size of {name} overflows").into()));
            };
            temps.push(Temp { buffer: *id, size_bytes, scope: info.scope.clone() });
        }
        let mut entry = Entry {
            name: f.name.clone(),
            dims: decls,
            buffers: self.buffers,
            steps,
            arena_bytes: 0,
            meta: Default::default(),
        };
        streams::choose(&mut entry, self.backend.streams());
        Ok(Unplaced { entry, temps, in_place: self.in_place })
    }
}

impl Unplaced {
    /// Without offsets.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    pub fn n_temps(&self) -> usize {
        self.temps.len()
    }

    /// What the temps would take if each had a place of its own.
    pub fn temps_bytes(&self) -> u64 {
        self.temps.iter().map(|t| t.size_bytes).sum()
    }

    /// Every temp at its place in the arena.
    pub fn plan_memory(self) -> Entry {
        let mut entry = self.entry;
        let (placed, arena_bytes) = plan(&entry.steps, &self.temps, &self.in_place);
        debug_assert_eq!(collision(&placed), None);
        for p in placed {
            entry.buffers[p.buffer.0 as usize].role = Role::Temp { offset: p.offset };
        }
        Entry { arena_bytes, ..entry }
    }
}

/// How a store is kept on disk; nothing for what has no name there.
fn weight(module: &Module, name: &str, store: &Store) -> Option<WeightInfo> {
    let trained = store.kind == StoreKind::Weight;
    let table = matches!(store.placed, Some(Placed::Table(_)));
    let template = match store.templates.first() {
        Some(template) => template.clone(),
        None if table => String::new(),
        None if trained => name.to_string(),
        None => return None,
    };
    Some(WeightInfo {
        template,
        starts: store.starts.iter().map(|s| u32::try_from(*s).unwrap_or(u32::MAX)).collect(),
        duplicates: store.templates.iter().skip(1).cloned().collect(),
        init: match store.init {
            Init::Drawn => weft_graph::Init::Drawn,
            Init::Constant(value) => weft_graph::Init::Constant(value),
        },
        trained,
        coded: coded(store),
        cuts: cuts(module, store),
        places: places(module, store),
        table,
    })
}

/// The lines of the placement that are a store's.
fn places(module: &Module, store: &Store) -> Vec<Vec<u32>> {
    let Some(placed) = store.placed else { return vec![] };
    let before = match placed {
        Placed::Weights(_) => store.starts.len().saturating_sub(1),
        Placed::Table(_) => store.ty.rank().saturating_sub(2),
    };
    let n: u64 = store.ty.dims[..before].iter().filter_map(|d| d.as_fixed()).product();
    let lines = module.placement.iter().skip(placed.first() as usize).take(n as usize);
    let number = |e: &u64| u32::try_from(*e).unwrap_or(u32::MAX);
    lines.map(|line| line.iter().map(number).collect()).collect()
}

/// How the ranks divide a store.
fn cuts(module: &Module, store: &Store) -> Vec<weft_graph::Cut> {
    let cut = |(dim, id): (usize, &Option<AxisId>)| {
        let (id, axis) = ((*id)?, module.axes.get((*id)?.0 as usize)?);
        Some(weft_graph::Cut {
            axis: axis.name.clone(),
            parts: u32::try_from(axis.size).ok()?,
            stride: u32::try_from(module.stride(id)).ok()?,
            dim: dim as u32,
        })
    };
    store.ty.axes.iter().enumerate().filter_map(cut).collect()
}

/// The part of a quantized weight that a store holds.
fn coded(store: &Store) -> Option<weft_graph::Coded> {
    let (part, of) = store.part.as_ref()?;
    let quant = of.quant.as_ref()?;
    let own = of.dims.get(store.starts.len()..)?;
    Some(weft_graph::Coded {
        part: match part {
            Part::Codes => weft_graph::Part::Codes,
            Part::Scales => weft_graph::Part::Scales,
        },
        codes: dims::dtype(of.dtype),
        scale: dims::dtype(quant.scale),
        group: quant.group,
        dims: own.iter().map(|d| d.as_fixed()).collect::<Option<_>>()?,
    })
}
