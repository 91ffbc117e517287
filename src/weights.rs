//! Stores of a module from and to the tensors of a checkpoint.
//!
//! A store's leading dims, one for each entry of `starts`, are stacked: each combination is a
//! tensor of its own.

use anyhow::{Result, bail};
use weft_ir::module::{Module, Store, StoreKind};
use weft_lang::elaborate::Tree;
use weft_runtime::checkpoint::reader::CheckpointReader;

/// The published name of every slice of `store`, in order, under its `which`-th template.
pub fn names(store: &Store, which: usize) -> Vec<String> {
    let counts: Vec<u64> = stacked(store);
    let mut all = vec![store.templates[which].clone()];
    for (level, (count, start)) in counts.iter().zip(&store.starts).enumerate() {
        let slot = format!("{{{}}}", ["i", "j", "k", "l"][level.min(3)]);
        all = all
            .iter()
            .flat_map(|t| (0..*count).map(|n| t.replace(&slot, &(start + n).to_string())))
            .collect();
    }
    all
}

fn stacked(store: &Store) -> Vec<u64> {
    store.ty.dims[..store.starts.len()].iter().map(|d| d.as_fixed().unwrap_or(1)).collect()
}

/// Dims of one slice as it is stored, also of a store that holds its codes or scales.
pub fn slice_dims(store: &Store) -> Vec<u64> {
    let ty = store.part.as_ref().map_or(&store.ty, |(_, of)| of);
    ty.dims[store.starts.len()..].iter().map(|d| d.as_fixed().unwrap_or(1)).collect()
}

/// The whole store from a checkpoint, stored duplicates checked against it.
pub fn read(store: &Store, checkpoint: &CheckpointReader) -> Result<Vec<f32>> {
    let shape = slice_dims(store);
    let mut all = vec![];
    for name in names(store, 0) {
        all.extend(checkpoint.read_f32(&name, &shape)?);
    }
    for which in 1..store.templates.len() {
        for name in names(store, which) {
            if checkpoint.info(&name).is_none() {
                continue;
            }
            if checkpoint.read_f32(&name, &shape)? != all {
                bail!(
                    "{}: `{name}` is declared a copy of `{}` and differs from it",
                    checkpoint.folder().display(),
                    store.templates[0]
                );
            }
        }
    }
    Ok(all)
}

/// Refuses a checkpoint that has none of the weights of a member of the model, and says which
/// constant leaves that member out. transformers keeps no prediction modules, for one, though its
/// `config.json` counts them.
pub fn check_stored(tree: &Tree, module: &Module, checkpoint: &CheckpointReader) -> Result<()> {
    let stored = module.stores.iter().filter(|(_, s)| s.kind != StoreKind::Schedule);
    let first = |store: &Store| names(store, 0).into_iter().next().unwrap_or_default();
    let all: Vec<(&str, String)> = stored.map(|(name, s)| (member_of(name), first(s))).collect();
    let there = |tensor: &String| checkpoint.info(tensor).is_some();
    for (member, tensor) in all.iter().filter(|(_, tensor)| !there(tensor)) {
        let mut of_member = all.iter().filter(|(m, _)| m == member);
        if of_member.any(|(_, tensor)| there(tensor)) {
            continue;
        }
        if let Some(count) = tree.count_constant(member) {
            bail!(
                "{}: expected tensor `{tensor}`, found no weight of `{member}`; \
                 `--set {count}=0` leaves `{member}` out",
                checkpoint.folder().display()
            );
        }
    }
    Ok(())
}

/// The member of the model that a store belongs to.
fn member_of(store: &str) -> &str {
    store.split('.').next().unwrap_or(store)
}
