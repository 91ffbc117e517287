//! Every shipped model elaborates and lowers, for training and for inference, to IR that verifies
//! and reads back.

use std::path::{Path, PathBuf};

use weft_ir::module::Module;
use weft_lang::diag;
use weft_lang::elaborate::{Overrides, elaborate};
use weft_lang::lower::{Purpose, Settings, Size, lower};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

fn lowered(model: &Path, overrides: &Overrides, purpose: Purpose, settings: Settings) -> Module {
    let (program, map, mut diags) = weft_lang::load(model, &|p| std::fs::read_to_string(p));
    let tree = elaborate(&program, &map, overrides, &mut diags);
    let module = tree.and_then(|t| lower(&program, &t, &map, purpose, settings, &mut diags));
    assert!(diags.is_empty(), "{}", diag::render_all(&map, &diags, false));
    module.expect("no diagnostics, so there is a module").module
}

fn settings(segments: bool, cache: bool) -> Settings {
    Settings {
        batch: Size::Bounded(8),
        seq: Size::Bounded(64),
        segments,
        cache: cache.then_some(Size::Bounded(64)),
    }
}

fn check(module: &Module) {
    let text = weft_ir::text::print(module);
    if let Err(errors) = weft_ir::verify::verify(module) {
        panic!("{}\n{text}", errors[0]);
    }
    let back = weft_ir::text::parse(&text).expect("a printed module parses");
    assert_eq!(weft_ir::text::print(&back), text);
}

fn shipped() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(models())
        .expect("models/ is there")
        .map(|e| e.expect("readable").path())
        .filter(|p| p.extension().is_some_and(|e| e == "model"))
        .collect();
    all.sort();
    assert!(all.len() >= 3, "models/ holds the shipped models");
    all
}

#[test]
fn every_model_lowers_for_every_purpose() {
    for model in shipped() {
        for (purpose, segments, cache) in [
            (Purpose::Train, false, false),
            (Purpose::Train, true, false),
            (Purpose::Infer, false, false),
            (Purpose::Infer, false, true),
        ] {
            check(&lowered(&model, &Overrides::default(), purpose, settings(segments, cache)));
        }
    }
}

#[test]
fn functions_do_not_grow_with_depth() {
    let at_depth = |depth: &str| {
        let sets = vec![("depth".to_string(), depth.to_string())];
        let overrides = Overrides { sets, ..Overrides::default() };
        let model = models().join("deepseek_v3.model");
        let module = lowered(&model, &overrides, Purpose::Train, settings(true, false));
        weft_ir::text::print(&module).lines().count()
    };
    assert_eq!(at_depth("8"), at_depth("61"));
}
