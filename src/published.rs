//! What the tensors of a published checkpoint are stored as: weights whose products are in FP8 as
//! codes with scales beside them, the others in the precision's compute type, states in f32.

use anyhow::{Result, bail};
use indexmap::IndexMap;
use weft_ir::module::{Store, StoreKind};
use weft_ir::ty::DType;
use weft_lang::elaborate::Tree;
use weft_lang::lower::Lowered;
use weft_lang::settings::gemm::{Format, Role};
use weft_runtime::checkpoint::Dtype;

/// By store, where that is not plain f32.
#[derive(Default)]
pub struct Published {
    formats: IndexMap<String, Format>,
    narrow: bool,
}

impl Published {
    /// As the chosen precision block has it.
    pub fn of(tree: &Tree, lowered: &Lowered) -> Result<Published> {
        // For each weight the site that it was first met at.
        let mut met: IndexMap<&str, (Option<Format>, &str)> = IndexMap::new();
        for (site, recipe) in lowered.sites.iter().zip(&lowered.recipes) {
            let Some(weight) = &site.weight else { continue };
            let format = recipe.product(Role::Forward).operands[1];
            let (first, at) = *met.entry(&weight.name).or_insert((format, &site.path));
            if first != format {
                bail!(
                    "`{}` is stored once, and `{at}` and `{}` have it in two formats",
                    weight.name,
                    site.path
                );
            }
        }
        let formats = met.into_iter().filter_map(|(name, (f, _))| Some((name.to_string(), f?)));
        Ok(Published { formats: formats.collect(), narrow: tree.precision.compute == DType::Bf16 })
    }

    /// The format of a weight's codes.
    pub fn format(&self, store: &str) -> Option<Format> {
        self.formats.get(store).copied()
    }

    /// The group that all codes have, which must be e4m3: a checkpoint says it once.
    pub fn block(&self) -> Result<Option<[u32; 2]>> {
        let Some((first, format)) = self.formats.first() else { return Ok(None) };
        let same = |f: &Format| f.dtype == DType::E4m3 && f.group == format.group;
        if let Some((other, f)) = self.formats.iter().find(|(_, f)| !same(f)) {
            bail!(
                "a published checkpoint has blocks of one size in e4m3: `{first}` is {format}, \
                 `{other}` {f}"
            );
        }
        Ok(Some(format.group))
    }

    pub fn dtype(&self, name: &str, store: &Store) -> Dtype {
        match self.format(name).map(|f| f.dtype) {
            Some(DType::E5m2) => Dtype::F8_E5M2,
            Some(_) => Dtype::F8_E4M3,
            None if self.narrow && store.kind == StoreKind::Weight => Dtype::BF16,
            None => Dtype::F32,
        }
    }
}
