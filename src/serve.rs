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

    /// What the block and the options say, for each of `n_ranks`.
    fn read(
        &self,
        source: &Source,
        tree: &Tree,
        batch: Option<u64>,
        n_ranks: u64,
    ) -> Result<Serve> {
        let mut serve = Serve::default();
        if let Some(name) = &self.serve {
            let mut diags = vec![];
            let block = settings::serve(tree, name, &mut diags);
            frontend::show(&source.map, &diags)?;
            serve = block.unwrap_or_default();
        }
        let serve = Serve {
            batch: batch.or(serve.batch),
            page: self.page.or(serve.page),
            pages: self.pages.or(serve.pages),
        };
        match serve {
            Serve { page: Some(size), .. } if n_ranks > 1 => bail!(
                "{}: not available yet: caches in pages on several ranks; leave it out",
                self.said("--page", self.page, ("paged", size))
            ),
            Serve { page: None, pages: Some(n), .. } => {
                let hint = match n_ranks {
                    1 => "give --page 64 too",
                    _ => "several ranks have caches in one piece; leave it out",
                };
                let said = self.said("--pages", self.pages, ("pages", n));
                bail!("{said}: there are no pages without their size; {hint}")
            }
            serve => Ok(serve),
        }
    }

    /// The caches for requests of up to `context` positions, `batch` of them at once if the command
    /// line says so, on each of `n_ranks`. `needs` are the positions that each request may need,
    /// where requests are known; else there is room for all that there may be.
    pub fn caches(
        &self,
        (source, tree): (&Source, &Tree),
        n_ranks: u64,
        context: u64,
        batch: Option<u64>,
        needs: Option<&[u64]>,
    ) -> Result<Caches> {
        let serve = self.read(source, tree, batch, n_ranks)?;
        match (serve.page, serve.batch) {
            (Some(size), _) => self.paged(&serve, size, context, needs),
            (None, Some(n @ 2..)) => {
                let said = self.said("--batch", batch, ("batch", n));
                bail!(match n_ranks {
                    1 => format!(
                        "{said}: several requests at once have their caches in pages; give --page \
                         64 too"
                    ),
                    _ => format!(
                        "{said}: each of several ranks continues two texts at a time, one in each \
                         half of its batch; leave it out"
                    ),
                })
            }
            _ => Ok(Caches { context, batch: 1, pages: None }),
        }
    }

    /// The same for a batch whose IR is printed: it may have any number of requests, also over
    /// caches in one piece.
    pub fn printed(
        &self,
        (source, tree): (&Source, &Tree),
        n_ranks: u64,
        context: u64,
        batch: Option<u64>,
    ) -> Result<Caches> {
        let serve = self.read(source, tree, batch, n_ranks)?;
        match serve.page {
            Some(size) => self.paged(&serve, size, context, None),
            None => Ok(Caches { context, batch: serve.batch.unwrap_or(BATCH), pages: None }),
        }
    }

    /// Caches in pages of `size` positions.
    fn paged(
        &self,
        serve: &Serve,
        size: u64,
        context: u64,
        needs: Option<&[u64]>,
    ) -> Result<Caches> {
        if size > context {
            bail!(
                "{}: a page is longer than a request, which has {context} positions at most; give \
                 --page {context} or less",
                self.said("--page", self.page, ("paged", size))
            );
        }
        // Places for more requests than there are would be of no use.
        let known = needs.map(|needs| (needs.len() as u64).max(1));
        let batch = serve.batch.unwrap_or(BATCH).min(known.unwrap_or(u64::MAX));
        let Some(context) = context.checked_next_multiple_of(size) else {
            bail!("{context} positions, in whole pages of {size}, are too many");
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

    /// Where a value comes from: an option, if it is `given`, or a key of the block.
    fn said(&self, option: &str, given: Option<u64>, (key, value): (&str, u64)) -> String {
        match (given, &self.serve) {
            (None, Some(block)) => format!("--serve {block}, {key} = {value}"),
            _ => format!("{option} {value}"),
        }
    }
}
