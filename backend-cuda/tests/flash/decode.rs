//! Latent attention of a few queries; what pieces of the keys give is combined here.

use ptx_sim::{Arg, Completion, ErrorKind};
use weft_backend_cuda::flash::Attention;
use weft_backend_cuda::flash::decode::Decode;
use weft_backend_cuda::flash::signature::{Argument, Tensor as Operand};
use weft_backend_cuda::flash::template::Template;

use crate::problem::{
    Bench, Problem, RANDOM, Tensor, Wrong, each_is_needed, plain, problem, softmax, text,
};

/// Keys that all heads share; `chunk` cuts them, and they lie in pages of `page` keys.
struct Latent {
    problem: Problem,
    chunk: Option<usize>,
    page: Option<usize>,
}

fn latent(parts: &[u32], sizes: [usize; 4], starts: &[i32], chunk: Option<usize>) -> Latent {
    let offset = !starts.is_empty();
    let attention = Attention { causal: offset, offset, ..plain(parts, parts[0]) };
    let base = problem(attention, sizes);
    let k_heads = vec![1; parts.len()];
    let problem = Problem { k_heads, v_heads: 1, starts: starts.to_vec(), grid: 3, ..base };
    Latent { problem, chunk, page: None }
}

impl Latent {
    fn kernel(&self) -> Decode {
        let of = &self.problem.attention;
        let (causal, offset) = (of.causal, of.offset);
        Decode {
            parts: of.parts.clone(),
            causal,
            offset,
            split: self.chunk.is_some(),
            paged: self.page.is_some(),
        }
    }

    fn text(&self) -> String {
        text(self.kernel().source("test"))
    }

    /// Pages of a request.
    fn n_pages(&self) -> usize {
        self.page.map_or(0, |page| self.problem.keys / page)
    }

    /// The pages of all requests, the last of the pool first; none for what a request does not
    /// see.
    fn table(&self) -> Vec<i32> {
        let (p, n) = (&self.problem, self.n_pages());
        let pages = (0..p.batch * n).map(|i| {
            let first = i % n * self.page.unwrap_or(1);
            let seen = (0..p.queries).any(|query| p.sees(i / n, query, first));
            if seen { (p.batch * n - i) as i32 } else { -1 }
        });
        pages.collect()
    }

    /// Keys of a part in pages, and one before them that holds no number.
    fn pool(&self, keys: &Tensor) -> Tensor {
        let page = self.page.unwrap_or(1);
        let page_bytes = 2 * page * keys.width;
        let rows = (1 + self.problem.batch * self.n_pages()) * page;
        let mut bytes = vec![0xff; 2 * rows * keys.width];
        for (i, of) in self.table().into_iter().enumerate().filter(|(_, of)| *of >= 0) {
            let to = of as usize * page_bytes;
            bytes[to..to + page_bytes].copy_from_slice(&keys.bytes[i * page_bytes..][..page_bytes]);
        }
        Tensor { rows, heads: 1, width: keys.width, values: vec![], bytes }
    }

    fn run(&self, text: &str, completion: Completion) -> Result<(), Wrong> {
        let p = &self.problem;
        let mut bench = Bench::new(p, completion);
        let width = p.attention.v_width as usize;
        let lines = p.batch * p.queries * p.heads;
        let chunk = self.chunk.unwrap_or(p.keys);
        let pieces = p.keys.div_ceil(chunk);
        let po = bench.device.alloc(4 * pieces * lines * width);
        let pl = bench.device.alloc(4 * pieces * lines);
        let pools: Vec<Tensor> = match self.page {
            Some(_) => bench.operands.k.iter().map(|k| self.pool(k)).collect(),
            None => vec![],
        };
        let at: Vec<u64> = pools.iter().map(|p| bench.device.alloc_from(&p.bytes)).collect();
        let table: Vec<u8> = self.table().iter().flat_map(|page| page.to_le_bytes()).collect();
        let table = bench.device.alloc_from(&table);
        let own = |argument: &Argument| match argument {
            Argument::Map(Operand::K(i), spec) if self.page.is_some() => {
                Some(pools[*i].map(spec, 1, at[*i]))
            }
            Argument::Data(Operand::K(i)) if self.page.is_some() => Some(Arg::Ptr(at[*i])),
            Argument::Pages => Some(Arg::Ptr(table)),
            Argument::PageKeys => Some(Arg::I64(self.page.unwrap_or(0) as i64)),
            Argument::PagesPerRequest => Some(Arg::I64(self.n_pages() as i64)),
            Argument::O | Argument::PartialO => Some(Arg::Ptr(po)),
            Argument::Lse | Argument::PartialLse => Some(Arg::Ptr(pl)),
            Argument::Chunk => Some(Arg::I64(chunk as i64)),
            _ => None,
        };
        bench.launch(text, &self.kernel().launch(), p.grid, &own)?;
        let (o, lse) = match self.chunk {
            None => (bench.bf16(po, lines * width)?, bench.f32(pl, lines)?),
            Some(_) => {
                let o = bench.f32(po, pieces * lines * width)?;
                self.combined(&o, &bench.f32(pl, pieces * lines)?, chunk)
            }
        };
        self.compare(&bench, &o, &lse).map_err(Wrong::Numbers)
    }

    /// The outputs, and logs of denominators as the whole has them: `[batch, heads, queries]`.
    fn combined(&self, o: &[f32], lse: &[f32], chunk: usize) -> (Vec<f64>, Vec<f32>) {
        let p = &self.problem;
        let width = p.attention.v_width as usize;
        let n_lines = p.batch * p.queries * p.heads;
        let mut out = vec![0.0; n_lines * width];
        let mut logs = vec![0.0; n_lines];
        for (batch, head, query) in p.rows() {
            let line = (batch * p.queries + query) * p.heads + head;
            // Others have not been written.
            let seen = (0..p.keys).filter(|key| p.sees(batch, query, *key)).count();
            let live = seen.div_ceil(chunk).max(1);
            let at = |piece: usize| piece * n_lines + line;
            let weights: Vec<f64> = (0..live).map(|i| f64::from(lse[at(i)]).exp2()).collect();
            let sum: f64 = weights.iter().sum();
            for d in 0..width {
                let terms = weights.iter().enumerate();
                let all: f64 = terms.map(|(i, w)| w * f64::from(o[at(i) * width + d])).sum();
                out[line * width + d] = if sum == 0.0 { 0.0 } else { all / sum };
            }
            logs[(batch * p.heads + head) * p.queries + query] = sum.ln() as f32;
        }
        (out, logs)
    }

    fn compare(&self, bench: &Bench, o: &[f64], lse: &[f32]) -> Result<(), String> {
        let p = &self.problem;
        let v = &bench.operands.k[0];
        for (batch, head, query) in p.rows() {
            let (seen, scores) = p.scores(&bench.operands, [batch, query, head]);
            let (top, sum, want) = softmax(&scores);
            let at = format!("batch {batch}, query {query}, head {head}");
            let got = f64::from(lse[(batch * p.heads + head) * p.queries + query]);
            if got != want && !((got - want).abs() < 2e-5 * (1.0 + want.abs())) {
                return Err(format!("{at}: lse is {got}, not {want}"));
            }
            for d in 0..v.width {
                let (mut want, mut size) = (0.0, 0.0);
                for (key, s) in seen.iter().zip(&scores) {
                    let of = v.at(batch, *key, 0)[d] * (s - top).exp() / sum;
                    (want, size) = (want + of, size + of.abs());
                }
                let got = o[((batch * p.queries + query) * p.heads + head) * v.width + d];
                // Weights and results are rounded to 8 bits.
                if !((got - want).abs() <= size * 2f64.powi(-7)) {
                    return Err(format!("{at}: o[{d}] is {got}, not {want}"));
                }
            }
        }
        Ok(())
    }

    fn check(&self) {
        let text = self.text();
        if let Ok(to) = std::env::var("DUMPPTX") {
            std::fs::write(to, &text).unwrap();
        }
        for completion in [Completion::Lazy, RANDOM] {
            self.run(&text, completion).unwrap_or_else(|e| panic!("{completion:?}: {e:?}"));
        }
    }
}

#[test]
fn heads_of_576_over_latents_of_512_in_pieces() {
    // 70 heads are a tile and a part of one; the second request sees two of three pieces.
    latent(&[512, 64], [2, 70, 1, 330], &[300, 200], Some(128)).check();
}

#[test]
fn one_piece_writes_the_result_itself() {
    latent(&[512, 64], [1, 16, 1, 200], &[199], None).check();
}

#[test]
fn small_latents_and_several_queries_of_which_one_sees_nothing() {
    latent(&[64, 16], [2, 8, 3, 150], &[120, -1], None).check();
    latent(&[64, 16], [2, 8, 3, 150], &[120, -1], Some(64)).check();
}

/// Blocks come from the pages that the table names, whatever lies beside them.
#[test]
fn keys_in_pages_of_whole_blocks() {
    for (page, chunk) in [(64, None), (128, None), (64, Some(128)), (192, Some(128))] {
        let of = latent(&[512, 64], [3, 5, 1, 384], &[300, 63, 191], chunk);
        Latent { page: Some(page), ..of }.check();
    }
    let of = latent(&[64, 16], [2, 8, 3, 192], &[120, -1], None);
    Latent { page: Some(64), ..of }.check();
}

#[test]
fn widths_that_are_not_whole_lines() {
    latent(&[40, 8], [1, 5, 1, 70], &[], None).check();
    latent(&[200, 24], [1, 5, 2, 70], &[60], None).check();
}

/// Tiles of 1 to 7 blocks, of one CTA: pairs begin at every stage of the ring.
#[test]
fn pairs_of_blocks_and_a_last_one_alone() {
    let starts = [20, 447, 127, 63, 200, 0, 64, 330, 191, 383];
    // Rings of two, three and four stages.
    for parts in [[512, 64], [384, 64], [128, 16]] {
        let of = latent(&parts, [starts.len(), 3, 1, 448], &starts, None);
        Latent { problem: Problem { grid: 1, ..of.problem }, ..of }.check();
    }
}

/// A first block that weighs nothing beside the second one, and the other way around.
#[test]
fn the_largest_score_is_handed_back_and_forth() {
    let rising: fn(usize) -> f64 = |key| 2f64.powi(key as i32 / 64 - 3);
    let falling: fn(usize) -> f64 = |key| 2f64.powi(1 - key as i32 / 64);
    for k_scale in [rising, falling] {
        let of = latent(&[128, 16], [1, 8, 1, 320], &[319], None);
        Latent { problem: Problem { k_scale, ..of.problem }, ..of }.check();
    }
}

/// A problem small enough for many runs, with every wait in use: pairs, an odd number of blocks,
/// and tiles of a single one behind each other.
fn faulty() -> Latent {
    let base = latent(&[512, 64], [4, 64, 1, 320], &[255, 300, 20, 30], None);
    Latent { problem: Problem { grid: 1, ..base.problem }, ..base }
}

fn each_is_missed(what: &str, n: usize, kinds: &[ErrorKind]) {
    let (latent, text) = (faulty(), faulty().text());
    assert_eq!(text.matches(what).count(), n, "{what}");
    each_is_needed(&text, what, kinds, &[], |text, how| latent.run(text, how));
}

#[test]
fn every_wait_of_producer_and_consumers_is_needed() {
    let kinds = [ErrorKind::MissingWait, ErrorKind::Barrier, ErrorKind::Race];
    // Of the producer for queries and for each half of two blocks; of the consumers for queries,
    // and of each warpgroup for both halves of its first block and of those in the loop.
    each_is_missed("@!done bra", 5 + 1 + 2 * 4, &kinds);
}

#[test]
fn every_wait_for_products_is_needed() {
    let kinds = [ErrorKind::MissingWait, ErrorKind::Race];
    // Of each warpgroup for the first scores, for two products and scores in the loop, and for two
    // products behind it; of one for the product of a last block alone.
    each_is_missed("wgmma.wait_group", 2 * (1 + 3 + 2) + 1, &kinds);
}

#[test]
fn every_fence_between_the_warpgroups_is_needed() {
    // Weights of a pair in the loop and behind it, and of a last block alone.
    each_is_missed("fence.proxy.async", 2 * 2 + 1, &[ErrorKind::MissingFence]);
}

#[test]
fn every_wait_for_the_other_warpgroup_is_needed() {
    let kinds = [ErrorKind::Race, ErrorKind::MissingWait, ErrorKind::MissingFence];
    let all = [&kinds[..], &[ErrorKind::Barrier, ErrorKind::Deadlock]].concat();
    // For a maximum and weights, of each in the loop and behind it, and of one for those of a last
    // block alone, whose warps then meet; and twice for sums.
    each_is_missed("bar.sync %r", 2 * 4 + 2 + 1 + 2, &all);
}

#[test]
fn every_word_to_the_other_warpgroup_is_needed() {
    let kinds = [ErrorKind::Barrier, ErrorKind::Deadlock];
    // Warpgroup 0 says what its maximum is before it knows of a second block.
    each_is_missed("bar.arrive %r", 2 * 4 + 1, &kinds);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let of = |parts: &[u32]| {
        let (causal, offset, split, paged) = (false, false, false, false);
        Decode { parts: parts.to_vec(), causal, offset, split, paged }
    };
    let refused = of(&[640]).check().unwrap_err();
    assert!(refused.contains("640 wide, more than 512"), "{refused}");
    let refused = of(&[512, 20]).check().unwrap_err();
    assert!(refused.contains("not a multiple of 8"), "{refused}");
    let refused = of(&[512, 512]).check().unwrap_err();
    assert!(refused.contains("too wide for shared memory"), "{refused}");
}
