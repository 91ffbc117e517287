//! `--serve`, `--page`, `--pages`: caches in pages, which several requests share.

use anyhow::{Result, bail};
use weft_lang::elaborate::Tree;
use weft_lang::settings::{self, Serve};
use weft_passes::Pages;

use crate::frontend::{self, Source};

/// Requests at once where nothing is said.
pub const BATCH: u64 = 8;

/// How caches lie.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ServeArgs {
    /// A serve block of the model; what options say goes before it
    #[arg(long, value_name = "NAME")]
    serve: Option<String>,
    /// Caches lie in pages of so many positions, which several requests share [default: in one
    /// piece]
    #[arg(long, value_name = "POSITIONS", value_parser = clap::value_parser!(u64).range(1..))]
    page: Option<u64>,
    /// Pages of the pool [default: as many as the requests may need]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pages: Option<u64>,
}

/// The caches of entries that serve.
#[derive(Clone, Copy, Debug)]
pub struct Caches {
    /// Positions that a request has at most.
    pub context: u64,
    /// Requests at once.
    pub batch: u64,
    pub pages: Option<Pages>,
}

impl ServeArgs {
    /// Options that are given, for a graph that has been compiled with its own.
    pub fn given(&self) -> [(&'static str, bool); 3] {
        [
            ("--serve", self.serve.is_some()),
            ("--page", self.page.is_some()),
            ("--pages", self.pages.is_some()),
        ]
    }

    /// What the block and the options say.
    fn read(&self, source: &Source, tree: &Tree, batch: Option<u64>) -> Result<Serve> {
        let mut serve = Serve::default();
        if let Some(name) = &self.serve {
            let mut diags = vec![];
            let block = settings::serve(tree, name, &mut diags);
            frontend::show(&source.map, &diags)?;
            serve = block.unwrap_or_default();
        }
        Ok(Serve {
            batch: batch.or(serve.batch),
            page: self.page.or(serve.page),
            pages: self.pages.or(serve.pages),
        })
    }

    /// The caches for requests of up to `context` positions, `batch` of them at once if the command
    /// line says so. `needs` are the positions that each request may need, where requests are
    /// known; else there is room for all that there may be.
    pub fn caches(
        &self,
        (source, tree): (&Source, &Tree),
        context: u64,
        batch: Option<u64>,
        needs: Option<&[u64]>,
    ) -> Result<Caches> {
        let serve = self.read(source, tree, batch)?;
        let Some(size) = serve.page else {
            if serve.pages.is_some() {
                bail!("--pages: there are no pages without their size; give --page 64 too");
            }
            return match serve.batch {
                Some(batch @ 2..) => bail!(
                    "--batch {batch}: several requests at once have their caches in pages; \
                     give --page 64 too"
                ),
                _ => Ok(Caches { context, batch: 1, pages: None }),
            };
        };
        // Places for more requests than there are would be of no use.
        let known = needs.map(|needs| (needs.len() as u64).max(1));
        let batch = serve.batch.unwrap_or(BATCH).min(known.unwrap_or(u64::MAX));
        let Some(context) = context.checked_next_multiple_of(size) else {
            bail!("--page {size}: a page of so many positions is too long");
        };
        let all = || batch.saturating_mul(context / size);
        let count = serve.pages.unwrap_or_else(|| {
            needs.map_or_else(all, |needs| {
                let mut pages: Vec<u64> =
                    needs.iter().map(|n| (*n).clamp(1, context).div_ceil(size)).collect();
                pages.sort_unstable_by(|a, b| b.cmp(a));
                pages.iter().take(batch as usize).sum()
            })
        });
        let pages = Pages { size, count: count.max(1), in_order_from: None };
        Ok(Caches { context, batch, pages: Some(pages) })
    }

    /// The pools for a batch whose IR is printed.
    pub fn pools(
        &self,
        (source, tree): (&Source, &Tree),
        context: u64,
        batch: u64,
    ) -> Result<Option<Pages>> {
        let serve = self.read(source, tree, None)?;
        let pools = |size: u64| {
            let all = batch.saturating_mul(context.div_ceil(size));
            Pages { size, count: serve.pages.unwrap_or(all), in_order_from: None }
        };
        Ok(serve.page.map(pools))
    }
}
