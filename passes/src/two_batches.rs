//! A batch in two halves, so that one can compute while the other is between ranks.
//!
//! ```text
//! func @forward(%tokens, %w, %cache: state)         func @forward(%a.tokens, %a.cache: state, %b.tokens,
//!     -> (logits, cache)                                          %b.cache: state, %w)
//!   %1 = gather %w, %tokens                     =>      -> (a.logits, a.cache, b.logits, b.cache)
//!   ..                                                %1 = gather %w, %a.tokens
//!                                                     ..
//!                                                     %2 = gather %w, %b.tokens
//! ```
//!
//! Why: a forward alone waits for its exchanges; of two that need nothing of each other one always
//! has something to do. This pass only sets them side by side, and `overlap` weaves them: in
//! prefill attention and experts of one half under dispatch and combine of the other, in decode
//! half a layer apart (`overlap/stagger.rs`). Entries are those that serve: there is no
//! training step. Halves have caches and inputs of their own, and the weights in common. Values are
//! those of two runs, one after the other. Cost: twice the ops of the entry, not of the layers.
//! Requires: `hoist`, since what is done to weights is done once for both.

use std::collections::BTreeSet;

use weft_ir::builder::Builder;
use weft_ir::module::{Func, Module, StoreKind, ValueId};

use crate::inline::splice;
use crate::rewrite::callee;
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "two_batches", requires: &[], establishes: &[], run };

/// What the names of a half begin with.
const HALVES: [&str; 2] = ["a.", "b."];

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    if !cx.two_batches || module.find("train_step").is_some() {
        return Ok(Stats::default());
    }
    let called: BTreeSet<u32> = {
        let ops = module.funcs.iter().flat_map(|f| f.body_ops().map(|(_, op)| op));
        ops.filter_map(callee).map(|f| f.0).collect()
    };
    let mut own = BTreeSet::new();
    let mut n = 0;
    for id in module.func_ids().filter(|id| !called.contains(&id.0)) {
        let func = module.func(id);
        if func.result_names.is_empty() {
            continue;
        }
        let (both, states) = both(module, func);
        own.extend(states);
        *module.func_mut(id) = both;
        n += 1;
    }
    for name in own {
        let Some(store) = module.stores.shift_remove(&name) else { continue };
        for half in HALVES {
            let mut of_half = store.clone();
            of_half.templates.iter_mut().for_each(|t| t.insert_str(0, half));
            module.stores.insert(format!("{half}{name}"), of_half);
        }
    }
    Ok(Stats::one("entries with two halves", n))
}

/// The entry for both halves, and the stores of which each has its own.
fn both(module: &Module, func: &Func) -> (Func, Vec<String>) {
    let name = |v: &ValueId| func.value(*v).name.clone().unwrap_or_default();
    let shared = |v: &ValueId| {
        let store = module.stores.get(&name(v));
        !func.ty(*v).state && store.is_some_and(|s| s.kind != StoreKind::Schedule)
    };
    let mut to = Builder::new(&func.name);
    let mut given: [Vec<Option<ValueId>>; 2] = [vec![], vec![]];
    let mut places: [Vec<u32>; 2] = [vec![], vec![]];
    let mut states = vec![];
    for (half, prefix) in HALVES.iter().enumerate() {
        for p in &func.params {
            places[half].push(to.func.params.len() as u32);
            let own = (!shared(p))
                .then(|| to.param(&format!("{prefix}{}", name(p)), func.ty(*p).clone()));
            given[half].push(own);
            if func.ty(*p).state && half == 0 {
                states.push(name(p));
            }
        }
    }
    let weights: Vec<Option<ValueId>> = func
        .params
        .iter()
        .map(|p| shared(p).then(|| to.param(&name(p), func.ty(*p).clone())))
        .collect();
    let (mut results, mut names, mut donated) = (vec![], vec![], vec![]);
    for (half, prefix) in HALVES.iter().enumerate() {
        let both = given[half].iter().zip(&weights);
        let xs: Vec<ValueId> = both.filter_map(|(own, weight)| own.or(*weight)).collect();
        let first = results.len() as u32;
        let (next, made) = splice(func, to, &xs);
        to = next;
        results.extend(made);
        names.extend(func.result_names.iter().map(|n| format!("{prefix}{n}")));
        let pairs = func.donated.iter();
        donated.extend(pairs.map(|(p, r)| (places[half][*p as usize], first + r)));
    }
    let mut both = to.finish(results);
    (both.result_names, both.donated) = (names, donated);
    (both, states)
}
