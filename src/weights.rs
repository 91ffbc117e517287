//! Stores of a module from and to the tensors of a checkpoint.
//!
//! A store's leading dims, one for each entry of `starts`, are stacked: each combination is a
//! tensor of its own.

use anyhow::{Result, bail};
use weft_ir::module::Store;
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

/// Dims of one slice.
pub fn slice_dims(store: &Store) -> Vec<u64> {
    store.ty.dims[store.starts.len()..].iter().map(|d| d.as_fixed().unwrap_or(1)).collect()
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
