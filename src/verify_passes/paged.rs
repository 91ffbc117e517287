//! Caches in pages hold what caches in one piece would, wherever pages lie: what is drawn for the
//! one is put into the pages of the other, and results are taken from there.

use anyhow::{Context, Result};
use weft_ir::dim::Dim;
use weft_ir::interp::{Data, Tensor};
use weft_ir::module::{Func, Module, ValueId};
use weft_ir::ty::Type;
use weft_passes::page_caches::TABLE;

/// The pages of the requests of an entry: the last of the pool first, so that none is in its place.
pub struct Table {
    pages: Vec<usize>,
    /// Requests, and pages of each.
    dims: [usize; 2],
    /// The names of the caches.
    caches: Vec<String>,
}

impl Table {
    /// That of `func`, where its caches are pools.
    pub fn of(module: &Module, func: &Func) -> Option<Table> {
        let name = |p: ValueId| func.value(p).name.as_deref().unwrap_or("");
        let table = func.params.iter().find(|p| name(**p) == TABLE)?;
        let sizes: Option<Vec<u64>> = func.ty(*table).dims.iter().map(|d| d.as_fixed()).collect();
        let [batch, n] = sizes?[..] else { return None };
        // An entry gives its caches back; of other states it only reads.
        let caches: Vec<ValueId> =
            func.donated.iter().map(|(p, _)| func.params[*p as usize]).collect();
        let pool = *caches.first()?;
        let n_pages = func.ty(pool).dims.get(levels(module, name(pool)))?.as_fixed()?;
        let pages = (0..batch * n).map(|i| Some(n_pages.checked_sub(1 + i)? as usize));
        Some(Table {
            pages: pages.collect::<Option<_>>()?,
            dims: [batch as usize, n as usize],
            caches: caches.into_iter().map(|p| name(p).to_string()).collect(),
        })
    }

    /// Whether what has this name is a cache.
    pub fn has(&self, name: &str) -> bool {
        self.caches.iter().any(|cache| cache == name)
    }

    pub fn tensor(&self) -> Tensor {
        Tensor::i32(&self.dims, self.pages.iter().map(|p| *p as i64).collect())
    }

    /// A pool of type `ty` that holds what `draw` makes of the type it has in one piece.
    pub fn pool(
        &self,
        ty: &Type,
        levels: usize,
        draw: impl FnOnce(&Type) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut whole = ty.clone();
        let size = ty.dims[levels + 1].as_fixed().context("a page has a fixed size")?;
        whole.dims[levels] = Dim::fixed(self.dims[0] as u64);
        whole.dims[levels + 1] = Dim::fixed(self.dims[1] as u64 * size);
        let drawn = draw(&whole)?;
        let sizes = ty.dims.iter().map(|d| d.as_fixed().map(|d| d as usize));
        let dims: Vec<usize> = sizes.collect::<Option<_>>().context("a pool has a fixed size")?;
        let (n_pages, page) = (dims[levels], dims[levels + 1..].iter().product::<usize>());
        let mut data = vec![0.0; dims.iter().product()];
        let numbers = drawn.numbers();
        for (at, layer) in numbers.chunks(self.pages.len() * page).enumerate() {
            for (i, values) in layer.chunks(page).enumerate() {
                let to = (at * n_pages + self.pages[i]) * page;
                data[to..to + page].copy_from_slice(values);
            }
        }
        Ok(Tensor { data: Data::Float(data), dims, ..drawn })
    }

    /// What a pool holds for the requests, in one piece.
    pub fn in_order(&self, pool: &Tensor, levels: usize) -> Tensor {
        let (n_pages, page) =
            (pool.dims[levels], pool.dims[levels + 1..].iter().product::<usize>());
        let numbers = pool.numbers();
        let layer = |layer: &[f64]| -> Vec<f64> {
            self.pages.iter().flat_map(|p| layer[p * page..][..page].to_vec()).collect()
        };
        let data = numbers.chunks(n_pages * page).flat_map(layer).collect();
        let mut dims = pool.dims.clone();
        (dims[levels], dims[levels + 1]) = (self.dims[0], self.dims[1] * dims[levels + 1]);
        Tensor { data: Data::Float(data), dims, ..pool.clone() }
    }
}

/// The dims of a stack that a store has first.
pub fn levels(module: &Module, name: &str) -> usize {
    module.stores.get(name).map_or(0, |store| store.starts.len())
}
