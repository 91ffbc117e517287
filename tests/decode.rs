//! A cached decode, one token at a time, gives the logits of the whole sequence at once, with the
//! up-projections absorbed or not, and with caches in one piece or in pages.

use std::path::{Path, PathBuf};

use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::module::{Init, Module, StoreKind};
use weft_lang::elaborate::{Overrides, elaborate};
use weft_lang::lower::{Purpose, Settings, Size, lower};
use weft_passes::{Pages, PassCx};
use weft_runtime::checkpoint::reader::CheckpointReader;
use weft_runtime::checkpoint::tensor_file::TensorFile;

const CAPACITY: u64 = 32;

/// Pools of nine pages, four of which hold the capacity; and where the request's are, in order.
const PAGES: Pages = Pages { size: 8, count: 9, in_order_from: None };
const TABLE: [i64; 4] = [6, 1, 8, 3];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn case(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

/// `@forward` for `seq` tokens, and how often `absorb` fired.
fn forward(
    model: &str,
    checkpoint: &CheckpointReader,
    seq: u64,
    cached: bool,
    pages: Option<Pages>,
) -> (Module, usize) {
    let path = root().join("models").join(model);
    let (program, map, mut diags) = weft_lang::load(&path, &|p| std::fs::read_to_string(p));
    let config = Some(checkpoint.config().clone());
    let overrides = Overrides { config, ..Overrides::default() };
    let tree = elaborate(&program, &map, &overrides, &mut diags).expect("a model");
    let settings = Settings {
        batch: Size::Fixed(1),
        seq: Size::Fixed(seq),
        segments: false,
        cache: cached.then_some(Size::Fixed(CAPACITY)),
    };
    let lowered = lower(&program, &tree, &map, Purpose::Infer, settings, &mut diags);
    assert!(diags.is_empty());
    let mut module = lowered.expect("no diagnostics").module;
    let mut absorbed = 0;
    let cx = PassCx { pages, ..PassCx::default() };
    let tidy = ["canonicalize", "cse", "dce"];
    for name in [&tidy[..], &["absorb", "page_caches"], &tidy].concat() {
        let pass = weft_passes::by_name(name).expect("a pass");
        let step = weft_passes::run_pass(0, pass, &mut module, &cx);
        let counts = step.expect("passes run").stats.counts;
        absorbed += counts.iter().filter(|(n, _)| *n == "absorbed").map(|(_, n)| n).sum::<usize>();
    }
    (module, absorbed)
}

/// Values of `@forward`'s parameters: stores from the checkpoint, caches from `caches`.
fn args(
    module: &Module,
    checkpoint: &CheckpointReader,
    tokens: &[i64],
    start: usize,
    caches: &[(String, Tensor)],
) -> Vec<Tensor> {
    let func = module.func(module.find("forward").expect("an entry"));
    let arg = |name: &str| -> Tensor {
        match name {
            "tokens" => return Tensor::i32(&[1, tokens.len()], tokens.to_vec()),
            "start" => return Tensor::i32(&[1], vec![start as i64]),
            "pages" => return Tensor::i32(&[1, TABLE.len()], TABLE.to_vec()),
            _ => {}
        }
        if let Some((_, cache)) = caches.iter().find(|(n, _)| n == name) {
            return cache.clone();
        }
        let store = &module.stores[name];
        let fixed = |d: &weft_ir::dim::Dim| d.as_fixed().expect("a fixed store") as usize;
        let dims: Vec<usize> = store.ty.dims.iter().map(fixed).collect();
        if let (StoreKind::Schedule, Init::Constant(x)) = (store.kind, store.init) {
            return Tensor::full(store.ty.dtype, &dims, x);
        }
        if store.templates[0].starts_with("cache.") {
            return Tensor::full(store.ty.dtype, &dims, 0.0);
        }
        let mut data: Vec<f64> = vec![];
        let n = store.starts.len();
        let counts = &dims[..n];
        let shape: Vec<u64> = dims[n..].iter().map(|d| *d as u64).collect();
        for flat in 0..counts.iter().product::<usize>() {
            let mut name = store.templates[0].clone();
            let mut rest = flat;
            for level in (0..n).rev() {
                let place = rest % counts[level];
                rest /= counts[level];
                let letter = format!("{{{}}}", ["i", "j"][level]);
                name = name.replace(&letter, &(store.starts[level] as usize + place).to_string());
            }
            let slice = checkpoint.read_f32(&name, &shape).expect("in the checkpoint");
            data.extend(slice.into_iter().map(f64::from));
        }
        Tensor::f32(&dims, data)
    };
    let names = func.params.iter().map(|p| func.value(*p).name.clone().expect("named"));
    names.map(|n| arg(&n)).collect()
}

fn run(module: &Module, args: Vec<Tensor>) -> (Vec<f64>, Vec<(String, Tensor)>) {
    let id = module.find("forward").expect("an entry");
    let results = Interp::new(module, Precision::F64).run(id, args).expect("it runs");
    let names = module.func(id).result_names.iter().cloned();
    let mut all: Vec<(String, Tensor)> = names.zip(results).collect();
    let logits = all.remove(0).1.numbers();
    (logits, all)
}

/// Prefill 8 tokens, decode the other 16 one by one; compare every row with the uncached logits.
fn check(model: &str, name: &str, absorbs: bool) {
    for pages in [None, Some(PAGES)] {
        check_caches(model, name, absorbs, pages);
    }
}

fn check_caches(model: &str, name: &str, absorbs: bool, pages: Option<Pages>) {
    let checkpoint = CheckpointReader::open(&case(name)).expect("a checkpoint");
    let file = TensorFile::open(&case(name).join("expected.safetensors")).expect("a case");
    let tokens: Vec<i64> =
        file.read_i32("tokens").expect("tokens")[..24].iter().map(|t| i64::from(*t)).collect();
    let (whole, _) = forward(model, &checkpoint, 24, false, None);
    let (expected, _) = run(&whole, args(&whole, &checkpoint, &tokens, 0, &[]));
    let (prefill, _) = forward(model, &checkpoint, 8, true, pages);
    let (decode, fired) = forward(model, &checkpoint, 1, true, pages);
    assert_eq!(fired > 0, absorbs, "{name}: absorb fired {fired} times");
    let (mut got, mut caches) = run(&prefill, args(&prefill, &checkpoint, &tokens[..8], 0, &[]));
    for at in 8..24 {
        let step = args(&decode, &checkpoint, &tokens[at..at + 1], at, &caches);
        let (row, next) = run(&decode, step);
        got.extend(row);
        caches = next;
    }
    assert_eq!(got.len(), expected.len());
    let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-10, "{name}, {pages:?}: a decoded logit is off by {worst:.1e}");
}

#[test]
fn latent_attention_decodes_on_its_latent() {
    check("deepseek_v3.model", "v3-grouped", true);
}

#[test]
fn latent_attention_without_query_lora_too() {
    check("deepseek_v2_lite.model", "v2-softmax", true);
}

#[test]
fn grouped_queries_decode_on_keys_and_values() {
    check("llama.model", "llama", false);
}
