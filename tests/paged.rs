//! Caches in pages through the command line: requests of all lengths share a pool and go on with
//! the tokens that caches in one piece give; a table that points elsewhere is noticed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use weft_graph::Graph;
use weft_runtime::checkpoint::reader::CheckpointReader;
use weft_runtime::device::Cpu;
use weft_runtime::exec::{Program, Session, Store};
use weft_runtime::generate::batch::PAGES;
use weft_runtime::weights;

/// Prompts of unlike lengths.
const PROMPTS: [&str; 5] = ["5,6,7,8,9", "1,2,3", "9,4", "11", "3,2,1,7"];
/// A model and a reference case: latents that all heads share, and keys and values of groups.
const MODELS: [(&str, &str); 2] = [("deepseek_v3.model", "v3-grouped"), ("llama.model", "llama")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn checkpoint(case: &str) -> String {
    root().join("tests/golden").join(case).display().to_string()
}

fn model(name: &str) -> String {
    root().join("models").join(name).display().to_string()
}

/// What it prints, and what it says.
fn weft(args: &[&str]) -> Result<(String, String), String> {
    let output = Command::new(env!("CARGO_BIN_EXE_weft")).args(args).output().expect("weft runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints text");
    match output.status.success() {
        true => Ok((text(output.stdout), text(output.stderr))),
        false => Err(text(output.stderr)),
    }
}

/// How `model` goes on after each prompt, with 12 tokens.
fn generate(model: &str, case: &str, more: &[&str]) -> Result<(String, String), String> {
    continued(model, case, (&PROMPTS, "12"), more)
}

fn continued(
    model: &str,
    case: &str,
    (prompts, max_new): (&[&str], &str),
    more: &[&str],
) -> Result<(String, String), String> {
    let checkpoint = checkpoint(case);
    let mut args = vec!["generate", model, "--checkpoint", &checkpoint, "--greedy"];
    args.extend(prompts.iter().flat_map(|ids| ["--token-ids", ids]));
    args.extend(["--max-new", max_new]);
    weft(&[&args, more].concat())
}

const CONTEXT: [&str; 2] = ["--context", "32"];

/// In the interpreter every value is the one of caches in one piece, before and after every pass.
#[test]
fn the_interpreter_computes_what_it_does_without_pages() {
    for (name, _) in MODELS {
        for entry in ["prefill", "decode"] {
            let asked = ["--for", entry, "--page", "16", "--verify-passes"];
            let (_, said) =
                weft(&[&["compile", &model(name)], &asked[..]].concat()).expect("values");
            assert!(said.contains("values compared, none moved"), "{name}, {entry}: {said}");
        }
    }
}

/// A stack has its layers first, also where they are more than the pages.
#[test]
fn the_pages_of_a_deep_stack_are_told_from_its_layers() {
    let llama = model("llama.model");
    let asked = ["compile", &llama, "--for", "decode", "--page", "16", "--verify-passes"];
    let deep = ["--set", "depth=8", "--stop-after", "page_caches"];
    let (ir, said) = weft(&[&asked[..], &deep].concat()).expect("values");
    assert!(said.contains("values compared, none moved"), "{said}");
    assert!(ir.contains("state f32[8, 128, 16, "), "{ir}");
}

/// The report's numbers by the words behind them.
fn report(said: &str) -> (u64, u64, u64) {
    let line = said.lines().find(|l| l.starts_with("caches: ")).expect("a report");
    let numbers = line.split([' ', ',']).filter_map(|word| word.parse().ok());
    let numbers: Vec<f64> = numbers.collect();
    // Used, of the pool, positions of a page, MiB, MiB, handed out.
    (numbers[0] as u64, numbers[1] as u64, numbers[5] as u64)
}

#[test]
fn tokens_are_those_of_caches_in_one_piece() {
    for (name, case) in MODELS {
        let model = model(name);
        let run = |more: &[&str]| generate(&model, case, &[&CONTEXT, more].concat());
        for precision in ["f32", "bf16"] {
            let precision = ["--precision", precision];
            let (whole, _) = run(&precision).expect("in one piece");
            assert_eq!(whole.lines().count(), PROMPTS.len());
            // All at once; two at a time, in pages that others have had; pages that a context is
            // no multiple of; one page for each.
            for pages in [
                &["--page", "4"][..],
                &["--page", "4", "--batch", "2", "--pages", "8"],
                &["--page", "5", "--batch", "3"],
                &["--page", "32", "--batch", "1"],
            ] {
                let (paged, said) = run(&[&precision, pages].concat()).expect("in pages");
                assert_eq!(paged, whole, "{name}, {precision:?}, {pages:?}: {said}");
            }
        }
    }
}

#[test]
fn on_gpus_kernels_read_and_write_through_the_table() {
    for ((name, case), precision) in MODELS.into_iter().zip(["bf16", "f32"]) {
        let model = model(name);
        let few = (&PROMPTS[..3], "6");
        let given = [&CONTEXT[..], &["--device", "ptx", "--precision", precision]].concat();
        let (whole, _) = continued(&model, case, few, &given).expect("in one piece");
        let pages = [&given[..], &["--page", "4", "--batch", "2"]].concat();
        let (paged, said) = continued(&model, case, few, &pages).expect("in pages");
        assert_eq!(paged, whole, "{name} in {precision}: {said}");
    }
}

/// `nano` with a part of each kind, latents and heads as wide as tensor cores take them.
const NANO: [&str; 13] = [
    "hidden=32",
    "depth=1",
    "heads=2",
    "q_rank=16",
    "kv_rank=64",
    "nope=8",
    "rope=8",
    "value=8",
    "inner=48",
    "expert_inner=16",
    "n_experts=4",
    "groups=2",
    "kept_groups=1",
];

fn nano_sets() -> Vec<&'static str> {
    NANO.iter().flat_map(|set| ["--set", set]).collect()
}

/// The folder of a run that trained it for two steps.
fn trained(dir: &Path) -> String {
    let (run, nano) = (dir.join("run").display().to_string(), model("nano.model"));
    let few = ["--set", "sequence=16", "--set", "batch=2", "--steps", "2"];
    let train = ["train", &nano, "--data", &nano, "--out", &run];
    weft(&[&train[..], &nano_sets(), &few].concat()).expect("weights");
    run
}

#[test]
fn texts_are_those_of_one_after_the_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let (from, nano, sets) = (trained(dir.path()), model("nano.model"), nano_sets());
    let run = |more: &[&str]| {
        let prompts = ["--prompt", "Hello", "--prompt", "A", "--prompt", "Bye", "--seed", "5"];
        let given = ["generate", &nano, "--checkpoint", &from, "--max-new", "20"];
        weft(&[&given[..], &sets, &prompts, &CONTEXT, more].concat()).expect("texts").0
    };
    let texts = run(&[]);
    assert!(texts.starts_with("Hello") && texts.contains("\nBye"), "{texts}");
    assert_eq!(run(&["--page", "4", "--batch", "2"]), texts);
}

/// The names of the kernels of a graph for GPUs, compiled with `more`.
fn kernels(model: &str, dir: &Path, more: &[&str]) -> Vec<String> {
    let file = dir.join("gpu.weft").display().to_string();
    let given = ["compile", model, "--for", "decode", "--device", "cuda", "--precision", "bf16"];
    weft(&[&given[..], more, &["-o", &file]].concat()).expect("a graph");
    let graph = Graph::open(Path::new(&file)).expect("a graph");
    graph.kernels.into_iter().map(|k| k.name).collect()
}

#[test]
fn on_gpus_latents_in_pages_are_decoded_on_tensor_cores() {
    let dir = tempfile::tempdir().expect("a folder");
    let (run, nano, sets) = (trained(dir.path()), model("nano.model"), nano_sets());
    // One prompt goes from its first page into its second.
    let long: Vec<String> = (1..62).map(|id| id.to_string()).collect();
    let given = ["--max-new", "5", "--context", "128", "--precision", "bf16", "--device", "ptx"];
    let prompts = ["--token-ids", "5,6,7,8,9", "--token-ids", &long.join(",")];
    let run = |more: &[&str]| {
        let all = ["generate", &nano, "--checkpoint", &run, "--greedy"];
        weft(&[&all[..], &sets, &given, &prompts, more].concat()).expect("tokens").0
    };
    assert_eq!(run(&["--page", "64"]), run(&[]));
    let pages = ["--sequence", "128", "--batch", "2", "--page"];
    let names = kernels(&nano, dir.path(), &[&sets[..], &pages, &["64"]].concat());
    assert!(names.iter().any(|n| n.contains("latent_attention_64_8_causal_offset_paged")));
    // Pages of part of a block are read by plain threads.
    let names = kernels(&nano, dir.path(), &[&sets[..], &pages, &["16"]].concat());
    assert!(!names.iter().any(|n| n.contains("latent_attention")), "{names:?}");
}

/// Keys and values that are cached as they are need no copy where few queries read them; a prompt
/// is read on tensor cores, which take them in order.
#[test]
fn on_gpus_prompts_are_read_on_tensor_cores() {
    let dir = tempfile::tempdir().expect("a folder");
    let sets = ["hidden=64", "heads=4", "kv_heads=2", "depth=2"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let pages = ["--sequence", "128", "--batch", "2", "--page", "64"];
    let names = kernels(&model("llama.model"), dir.path(), &[&sets[..], &pages].concat());
    let has = |what: &[&str]| names.iter().any(|n| what.iter().all(|w| n.contains(w)));
    assert!(has(&["sm90a_", "attention"]), "{names:?}");
    assert!(has(&["sm90_simt_bf16_attention", "pages64"]), "{names:?}");
}

#[test]
fn a_pool_holds_what_is_used_and_pages_are_used_again() {
    let model = model("deepseek_v3.model");
    let given = ["--context", "32", "--page", "4", "--batch", "2", "--pages", "8"];
    let (_, said) = generate(&model, "v3-grouped", &given).expect("in pages");
    // Prompts and tokens but the last fill 16, 14, 13, 12 and 15 positions.
    assert_eq!(report(&said), (8, 8, 4 + 4 + 4 + 3 + 4), "{said}");
    assert!(said.contains("in one piece, 2 of 32 positions, they would take"), "{said}");
}

#[test]
fn a_pool_without_a_page_names_request_pages_and_remedy() {
    let model = model("deepseek_v3.model");
    let run = |more: &[&str]| {
        let given = ["--context", "32", "--page", "4"];
        generate(&model, "v3-grouped", &[&given, more].concat()).expect_err("no page is left")
    };
    let growing = run(&["--batch", "2", "--pages", "6"]);
    let why = "request 1 needs 4 pages of 4 positions to reach position 13, and none is left: the \
               pool has 6, and 2 requests are open; give more --pages, a smaller --batch or fewer \
               tokens (--max-new)";
    assert!(growing.contains(why), "{growing}");
    let first = run(&["--pages", "1"]);
    assert!(first.contains("request 1 needs 2 pages of 4 positions"), "{first}");
    assert!(first.contains("the pool has 1, and 0 requests are open"), "{first}");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let model = model("deepseek_v3.model");
    let refused = |more: &[&str]| generate(&model, "v3-grouped", more).expect_err("it is refused");
    let batch = refused(&["--batch", "4"]);
    assert!(batch.contains("several requests at once have their caches in pages"), "{batch}");
    let pages = refused(&["--pages", "4"]);
    assert!(pages.contains("give --page 64 too"), "{pages}");
    let long = refused(&["--context", "32", "--page", "100000000000000"]);
    assert!(long.contains("which has 32 positions at most; give --page 32 or less"), "{long}");
    // Hints do not lead from one refusal to the next.
    let ranks = refused(&["--page", "4", "--ranks", "2"]);
    assert!(ranks.contains("caches in pages on several ranks; leave it out"), "{ranks}");
    let ranks = refused(&["--batch", "2", "--ranks", "2"]);
    assert!(ranks.contains("--batch 2: each of several ranks continues two texts"), "{ranks}");
    let ranks = refused(&["--pages", "2", "--ranks", "2"]);
    assert!(ranks.contains("several ranks have caches in one piece; leave it out"), "{ranks}");
}

/// Where IR is printed options and blocks say what they say of a graph.
#[test]
fn printed_ir_has_the_caches_of_a_graph() {
    let dir = tempfile::tempdir().expect("a folder");
    let (served, graph) = (served(dir.path()), dir.path().join("x.weft").display().to_string());
    let compile = |more: &[&str]| {
        let given = ["compile", &served, "--for", "decode"];
        weft(&[&given[..], more].concat())
    };
    let printed = |more: &[&str]| {
        let stop = ["--stop-after", "page_caches"];
        compile(&[&stop, more].concat()).expect("IR").0
    };
    let ir = printed(&["--serve", "pages", "--sequence", "30"]);
    assert!(ir.contains("%pages: i32[2, 8]") && ir.contains(", 20, 4, "), "{ir}");
    let ir = printed(&["--page", "100"]);
    assert!(ir.contains("%pages: i32[8, 3]") && ir.contains(", 24, 100, "), "{ir}");
    for output in [&["--stop-after", "page_caches"][..], &["-o", &graph]] {
        let refused = |more: &[&str], why: &str| {
            let said = compile(&[output, more].concat()).expect_err("it is refused");
            assert!(said.contains(why), "{output:?}, {more:?}: {said}");
        };
        refused(&["--pages", "5"], "give --page 64 too");
        refused(&["--page", "512"], "which has 256 positions at most; give --page 256 or less");
        let ranks = ["--page", "16", "--mesh", "experts=2"];
        refused(&ranks, "--page 16: not available yet: caches in pages on several ranks");
        let ranks = ["--serve", "pages", "--mesh", "experts=2"];
        refused(&ranks, "--serve pages, paged = 4: not available yet: caches in pages");
    }
    let ranks = compile(&["--batch", "4", "--mesh", "experts=2", "-o", &graph]);
    let why = ranks.expect_err("it is refused");
    assert!(why.contains("--batch 4: each of several ranks continues two texts"), "{why}");
}

/// A model with a serve block.
fn served(dir: &Path) -> String {
    let path = dir.join("served.model");
    let text = format!(
        "weft 1\nuse \"{}\"\nmodel Served from DeepSeekV3 {{\n\
         serve pages {{ batch = 2  paged = 4  pages = 20 }}\n  serve two {{ batch = 2 }}\n  \
         serve pool {{ pages = 20 }}\n}}\n",
        model("deepseek_v3.model")
    );
    std::fs::write(&path, text).expect("a file");
    path.display().to_string()
}

/// A graph that was written, with what a serve block says.
fn written(dir: &Path) -> PathBuf {
    let graph = dir.join("served.weft");
    let (from, to) = (served(dir), graph.display().to_string());
    let checkpoint = checkpoint("v3-grouped");
    let compile = ["compile", &from, "--for", "decode", "--serve", "pages", "--sequence", "32"];
    weft(&[&compile[..], &["--checkpoint", &checkpoint, "-o", &to]].concat()).expect("a graph");
    graph
}

#[test]
fn a_graph_keeps_what_a_serve_block_says() {
    let dir = tempfile::tempdir().expect("a folder");
    let graph = written(dir.path()).display().to_string();
    let (whole, _) = generate(&model("deepseek_v3.model"), "v3-grouped", &CONTEXT).expect("tokens");
    let (paged, said) = generate(&graph, "v3-grouped", &[]).expect("tokens");
    assert_eq!(paged, whole);
    assert_eq!(report(&said).1, 20, "{said}");
    let why = generate(&graph, "v3-grouped", &["--page", "8"]).expect_err("it has its own");
    assert!(why.contains("--page changes what is compiled"), "{why}");
}

#[test]
fn options_go_before_what_a_serve_block_says() {
    let dir = tempfile::tempdir().expect("a folder");
    let served = served(dir.path());
    let run = |more: &[&str]| generate(&served, "v3-grouped", &[&CONTEXT, more].concat());
    let (whole, _) = run(&[]).expect("in one piece");
    for (block, pages) in [("two", 16), ("pool", 20)] {
        let (paged, said) = run(&["--serve", block, "--page", "4"]).expect("in pages");
        assert_eq!((paged, report(&said).1 <= pages), (whole.clone(), true), "{block}: {said}");
    }
    let why = run(&["--serve", "two"]).expect_err("without pages");
    let batch = "--serve two, batch = 2: several requests at once have their caches in pages; give \
                 --page 64 too";
    assert!(why.contains(batch), "{why}");
    let why = run(&["--serve", "pool"]).expect_err("without pages");
    assert!(why.contains("--serve pool, pages = 20: there are no pages without"), "{why}");
}

#[test]
fn a_graph_whose_pages_have_no_positions_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = written(dir.path());
    for key in ["page", "pool"] {
        let mut graph = Graph::open(&path).expect("a graph");
        for entry in &mut graph.entries {
            entry.meta.insert(key.into(), 0.into());
        }
        let broken = dir.path().join("broken.weft");
        graph.save(&broken).expect("it is written");
        let why = generate(&broken.display().to_string(), "v3-grouped", &[]).expect_err("broken");
        assert!(why.contains("was not compiled for generation; compile"), "{key}: {why}");
    }
}

/// The entries of a graph over one store, with the weights of its model.
struct Model {
    prefill: Session,
    decode: Session,
    store: Arc<Store>,
}

impl Model {
    fn open(path: &Path) -> Model {
        let device = Arc::new(Cpu::new(2).expect("threads"));
        let graph = Graph::open(path).expect("a graph");
        let program = Program::load(graph, device.clone()).expect("it loads");
        let store = Store::new(device);
        let session = |name| Session::new(&program, name, &store).expect("an entry");
        let (prefill, decode) = (session("prefill"), session("decode"));
        let from = CheckpointReader::open(Path::new(&checkpoint("v3-grouped"))).expect("weights");
        weights::load(&store, &from).expect("they fit");
        Model { prefill, decode, store }
    }

    fn read(&mut self, tokens: &[i32], pages: [i32; 8]) {
        self.prefill.set_dim("S", tokens.len() as i64).expect("a dim");
        self.prefill.write_input("tokens", tokens).expect("tokens");
        self.prefill.write_input("start", &[0i32]).expect("a start");
        self.prefill.write_input(PAGES, &pages).expect("pages");
        self.prefill.run().expect("it runs");
    }

    /// The logits after token 5 at position 10.
    fn next(&mut self, pages: [i32; 8]) -> Vec<f32> {
        self.decode.set_dim("B", 1).expect("a dim");
        self.decode.write_input("tokens", &[5i32]).expect("a token");
        self.decode.write_input("start", &[10i32]).expect("a start");
        self.decode.write_input(PAGES, &pages).expect("pages");
        self.decode.run().expect("it runs");
        self.decode.read_output("logits").expect("logits")
    }

    /// Copies a page of every layer of every cache.
    fn copy_page(&self, from: usize, to: usize) {
        let entry = self.decode.entry();
        for cache in entry.buffers.iter().filter_map(|b| b.alias).map(|id| entry.buffer(id)) {
            let dims: Vec<i64> = cache.dims.iter().map(|d| d.eval(&[])).collect();
            let (layers, pages) = (dims[0] as usize, dims[1] as usize);
            let kept = self.store.get(&cache.name).expect("a cache");
            let page_bytes = kept.size_bytes() / layers / pages;
            for layer in 0..layers {
                let at = |page: usize| (layer * pages + page) * page_bytes;
                let mut bytes = vec![0u8; page_bytes];
                self.store.read_bytes(&cache.name, at(from), &mut bytes).expect("a page");
                self.store.write_bytes(&cache.name, at(to), &bytes).expect("a page");
            }
        }
    }
}

#[test]
fn tokens_follow_from_the_pages_that_the_table_names() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut model = Model::open(&written(dir.path()));
    model.read(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [3, 7, 1, -1, -1, -1, -1, -1]);
    let expected = model.next([3, 7, 1, -1, -1, -1, -1, -1]);
    assert!(expected.iter().any(|x| *x != 0.0));
    // Pages in another order, and one that holds nothing of the request.
    assert_ne!(model.next([7, 3, 1, -1, -1, -1, -1, -1]), expected);
    assert_ne!(model.next([3, 12, 1, -1, -1, -1, -1, -1]), expected);
    // The same pages elsewhere, to the bit; a page behind the last position is not looked at.
    for (from, to) in [(3, 19), (7, 0), (1, 5)] {
        model.copy_page(from, to);
    }
    assert_eq!(model.next([19, 0, 5, -1, -1, -1, -1, -1]), expected);
    assert_eq!(model.next([19, 0, 5, 12, -1, -1, -1, -1]), expected);
    // A table that names pages of no pool reads nothing outside it.
    model.next([3, 700, 1, -1, -1, -1, -1, -1]);
}
