//! Caches in pages hold what caches in one piece would, wherever pages lie: what is drawn for the
//! one is put into the pages of the other, and results are taken from there.

use anyhow::{Context, Result};
use weft_ir::dim::Dim;
use weft_ir::interp::{Data, Tensor};
use weft_ir::module::{Func, Module};
use weft_ir::ty::Type;
use weft_passes::page_caches::TABLE;

/// The pages of the requests of an entry: the last of the pool first, so that none is in its place.
pub struct Table {
    pages: Vec<usize>,
    /// Requests, and pages of each.
    dims: [usize; 2],
}

impl Table {
    /// That of `func`, where its caches are pools.
    pub fn of(func: &Func) -> Option<Table> {
        let named = |p: &&weft_ir::module::ValueId| func.value(**p).name.as_deref() == Some(TABLE);
        let ty = func.params.iter().find(named).map(|p| func.ty(*p))?;
        let pool = func.params.iter().map(|p| func.ty(*p)).find(|ty| ty.state)?;
        let sizes: Option<Vec<u64>> = ty.dims.iter().map(|d| d.as_fixed()).collect();
        let [batch, n] = sizes?[..] else { return None };
        // A stack has its layers first, then pages.
        let n_pages = pool.dims.iter().filter_map(|d| d.as_fixed()).find(|d| *d >= batch * n)?;
        let pages = (0..batch * n).map(|i| (n_pages - 1 - i) as usize).collect();
        Some(Table { pages, dims: [batch as usize, n as usize] })
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
