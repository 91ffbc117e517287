//! What blocks say: settings of the shipped models, keys that are wrong, things not available yet,
//! and the `config.json` that a model writes and reads back.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weft_lang::diag::Diag;
use weft_lang::elaborate::{Overrides, Tree, elaborate};
use weft_lang::lower::{Purpose, Settings, Size, lower};
use weft_lang::settings::{
    self, Recompute, Schedule, Serve, TrainSettings, published_config, split_sets,
};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

/// What `f` makes of a model's tree, and what is said about it.
fn with_tree<T>(
    path: &Path,
    text: Option<&str>,
    overrides: &Overrides,
    f: impl FnOnce(&Tree, &mut Vec<Diag>) -> T,
) -> (T, Vec<String>) {
    let read = |p: &Path| match text {
        Some(text) if p == path => Ok(text.to_string()),
        _ => std::fs::read_to_string(p),
    };
    let (program, map, mut diags) = weft_lang::load(path, &read);
    let tree = elaborate(&program, &map, overrides, &mut diags).expect("a model");
    let result = f(&tree, &mut diags);
    let said = |d: &Diag| match &d.hint {
        Some(hint) => format!("{}; {hint}", d.message),
        None => d.message.clone(),
    };
    (result, diags.iter().map(said).collect())
}

fn shipped(model: &str, sets: &[(&str, &str)]) -> (Option<TrainSettings>, Vec<String>) {
    let sets = sets.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    with_tree(&models().join(model), None, &Overrides::default(), |tree, diags| {
        settings::check(tree, diags);
        settings::train(tree, None, &sets, diags)
    })
}

/// A small model with `blocks`.
fn small(blocks: &str) -> String {
    format!(
        "weft 1\nmodule One(n) {{\n  schedule gamma = 0\n  weight w : [n] = 1\n  \
         forward(x: [.., n]) -> [.., n] {{ x * w * gamma }}\n}}\n\
         model M {{\n  n = 4\n  one : One(n)\n  \
         forward(x: [B, S, n]) -> [B, S, n] {{ one(x) }}\n{blocks}\n}}\n"
    )
}

/// What is said about a small model with `blocks`.
fn said(blocks: &str) -> Vec<String> {
    let text = small(blocks);
    let check = |tree: &Tree, diags: &mut Vec<Diag>| settings::check(tree, diags);
    with_tree(Path::new("test.model"), Some(&text), &Overrides::default(), check).1
}

const GOOD: &str = "optimizer = adamw(decay = 0.1)\ninit = normal(0.02)\nsequence = 8\nlr = 1e-3\n";

#[test]
fn shipped_train_blocks_are_read() {
    let (nano, said) = shipped("nano.model", &[]);
    assert_eq!(said, [""; 0]);
    let nano = nano.expect("settings");
    assert_eq!((nano.sequence, nano.micro_batch, nano.steps), (256, 4, Some(1000)));
    assert_eq!(nano.optimizer.decay, 0.1);
    assert_eq!(nano.schedules["gamma"], Schedule::constant(0.01));
    assert_eq!(nano.lr.phases.len(), 3);

    let (v3, said) = shipped("deepseek_v3.model", &[]);
    assert_eq!(said, [""; 0]);
    let v3 = v3.expect("settings");
    assert_eq!((v3.steps, v3.fim, v3.attend_across_documents), (None, 0.1, true));
    assert_eq!(v3.batch.as_constant(), None);
    assert_eq!(v3.micro_batch, 3072);
}

#[test]
fn set_overrides_a_block_and_leaves_constants_alone() {
    let (nano, said) = shipped("nano.model", &[("steps", "2k"), ("batch", "4"), ("gamma", "0")]);
    assert_eq!(said, [""; 0]);
    let nano = nano.expect("settings");
    assert_eq!((nano.steps, nano.micro_batch), (Some(2000), 4));
    assert_eq!(nano.schedules["gamma"], Schedule::constant(0.0));
    let (_, said) = shipped("nano.model", &[("steps", "many")]);
    assert_eq!(said, ["--set steps=many: not a number or a boolean"]);
    let (nano, said) = shipped("nano.model", &[("recompute", "layers")]);
    assert_eq!((nano.map(|n| n.recompute), said), (Some(Recompute::Layers), vec![]));
    let (_, said) = shipped("nano.model", &[("recompute", "all")]);
    assert_eq!(said, ["`recompute` takes none or cheap or up_projections or layers, found `all`"]);

    let path = models().join("nano.model");
    let (program, _, _) = weft_lang::load(&path, &|p| std::fs::read_to_string(p));
    let set = |name: &str| (name.to_string(), "1".to_string());
    let all = ["depth", "steps", "lambda", "no_such"].map(set);
    let (constants, block) = split_sets(&program, all.to_vec());
    assert_eq!(constants, [set("depth"), set("no_such")]);
    assert_eq!(block, [set("steps"), set("lambda")]);
}

#[test]
fn wrong_train_blocks_are_explained() {
    let train = |more: &str| said(&format!("train t {{\n{GOOD}{more}\n}}"));
    assert_eq!(train("batch = 4"), [""; 0]);
    assert_eq!(
        train("batch = 4\ngama = 1"),
        ["a train block has no key `gama`; did you mean `gamma`?"]
    );
    assert_eq!(train(""), ["train block `t` has no `batch`"]);
    assert_eq!(train("batch = 1.5"), ["`batch` is a whole number of sequences, found 1.5"]);
    assert_eq!(train("batch = 4\nmicro_batch = 3"), ["micro_batch = 3 does not divide batch = 4"]);
    assert_eq!(train("batch = 4\nfim = 2"), ["`fim` takes a number from 0 to 1, found 2"]);
    assert_eq!(train("batch = 4\nbatch = 5"), ["`batch` is given twice"]);
    assert_eq!(
        train("batch = 4\nsteps = 1 over 3 steps, 2"),
        ["`steps` takes a whole number from 1, found a schedule"]
    );
    assert_eq!(
        train("batch = 4\npacking = bestfit"),
        ["`packing` takes best_fit, found `bestfit`; did you mean `best_fit`?"]
    );
    assert_eq!(train("batch = 4\nrecompute = layers"), [""; 0]);
    assert_eq!(
        train("batch = 4\nrecompute = layer"),
        ["`recompute` takes none or cheap or up_projections or layers, found `layer`; did you \
             mean `layers`?"]
    );
    assert_eq!(
        train("batch = 4\nattend_across_documents = 1"),
        ["`attend_across_documents` takes true or false, found 1"]
    );
    assert_eq!(
        said(&format!("train t {{\n{GOOD}batch = 4\n}}\ntrain t {{\n{GOOD}batch = 4\n}}")),
        ["two train blocks are called `t`"]
    );
}

#[test]
fn a_schedule_of_a_module_that_is_not_placed_may_be_set() {
    let sets = [("depth", "1"), ("dense", "1"), ("mtp_depth", "0")];
    let sets = sets.map(|(name, value)| (name.to_string(), value.to_string())).to_vec();
    let overrides = Overrides { sets, ..Overrides::default() };
    let train = |tree: &Tree, diags: &mut Vec<Diag>| settings::train(tree, None, &vec![], diags);
    let (read, said) = with_tree(&models().join("nano.model"), None, &overrides, train);
    assert_eq!(said, [""; 0]);
    // The block sets gamma and alpha, which only routers have.
    let names: Vec<String> = read.expect("settings").schedules.into_keys().collect();
    assert_eq!(names, ["lambda"]);
}

#[test]
fn every_shipped_precision_suits_every_shipped_model() {
    let sizes =
        Settings { batch: Size::Fixed(1), seq: Size::Fixed(16), segments: false, cache: None };
    let shipped = ["f32", "bf16", "deepseek_fp8"];
    let studies = ["hopper14", "hopper14_unpromoted", "block_gradients"];
    let (mut n_quantized, mut n_plain) = (vec![], 0);
    let all: [(&str, &[&str]); 7] = [
        ("deepseek_v3.model", &shipped),
        ("deepseek_v2_lite.model", &shipped),
        ("llama.model", &shipped),
        ("nano.model", &shipped),
        ("small.model", &shipped),
        ("nano_studies.model", &studies),
        ("deepseek_v3_h100.model", &["blockwise_fp8"]),
    ];
    for (model, precisions) in all {
        for precision in precisions {
            let read = |p: &Path| std::fs::read_to_string(p);
            let (program, map, mut diags) = weft_lang::load(&models().join(model), &read);
            let precision = Some(precision.to_string());
            let overrides = Overrides { precision, ..Overrides::default() };
            let tree = elaborate(&program, &map, &overrides, &mut diags).expect("a model");
            let purpose = if tree.loss.is_some() { Purpose::Train } else { Purpose::Infer };
            let lowered = lower(&program, &tree, &map, purpose, sizes.clone(), &mut diags);
            assert!(diags.is_empty(), "{model} {overrides:?}: {diags:?}");
            let recipes = lowered.expect("no diagnostics").recipes;
            n_plain += recipes.iter().filter(|r| r.dispatched_plain()).count();
            n_quantized.push(recipes.iter().filter(|r| r.has_formats()).count());
        }
    }
    // A dense block has 8 quantized products (llama's 7), one of experts 11; none is the router,
    // the head or what joins a prediction module.
    let (v3, v2, llama, small) = (8 + 11 + 11, 7 + 10, 7, 8 + 11);
    let expected = [v3, v2, llama, v3, small].map(|n| [0, 0, n]);
    assert_eq!(n_quantized[..15], expected.concat());
    assert_eq!(n_quantized[15..], [v3, v3, v3, v3]);
    // Of the last model experts get their rows as they are, in layers and in the module.
    assert_eq!(n_plain, 2 * 3);
}

#[test]
fn a_precision_that_a_train_block_names_is_checked() {
    let text = |name: &str| {
        let precision = format!("precision p {{ module \"two\" {{ compute = bf16 }} }}");
        format!("{precision}\ntrain t {{\n{GOOD}batch = 4\nprecision = {name}\n}}")
    };
    let near = "selector \"two\" matches no module; `weft explain --precision NAME` lists them";
    assert_eq!(said(&text("p")), [near]);
    assert_eq!(said(&text("q")).last().map(String::as_str), Some("`precision` takes p, found `q`"));
}

#[test]
fn what_later_versions_bring_is_refused() {
    assert_eq!(said("precision p { compute = f32 }\nparallel q { data = 1 }"), [""; 0]);
    assert_eq!(
        said("serve s { speculative = 1 }"),
        ["not available yet: speculative decoding; `speculative = 0` is what there is"]
    );
    let muon = GOOD.replace("adamw(decay = 0.1)", "muon()");
    assert_eq!(
        said(&format!("train t {{\n{muon}batch = 4\n}}")),
        ["not available yet: optimizer `muon`; there is adamw(beta1, beta2, eps, decay)"]
    );
}

#[test]
fn how_requests_are_served_is_read_as_data() {
    let text =
        small("serve pages { batch = 2 * n  paged = 64  pages = 40 }\nserve one { batch = 1 }");
    let read = |name: &'static str| {
        let read = move |tree: &Tree, diags: &mut Vec<Diag>| settings::serve(tree, name, diags);
        with_tree(Path::new("test.model"), Some(&text), &Overrides::default(), read)
    };
    let pages = Serve { batch: Some(8), page: Some(64), pages: Some(40) };
    assert_eq!(read("pages"), (Some(pages), vec![]));
    assert_eq!(read("one"), (Some(Serve { batch: Some(1), ..Serve::default() }), vec![]));
    let want = "`M` has no serve block `page`; did you mean `pages`?";
    assert_eq!(read("page"), (None, vec![want.to_string()]));
}

#[test]
fn wrong_ways_to_serve_are_explained() {
    let serve = |keys: &str| said(&format!("serve s {{ {keys} }}"));
    // An option may say what a page has.
    assert_eq!(serve("batch = 4"), [""; 0]);
    assert_eq!(serve("pages = 4"), [""; 0]);
    assert_eq!(serve("paged = 0"), ["`paged` takes a whole number from 1, found 0"]);
    assert_eq!(serve("pagd = 4"), ["a serve block has no key `pagd`; did you mean `paged`?"]);
    let other = "not available yet: a cache of another type than f32; \
                 a precision block says what caches are stored as";
    assert_eq!(serve("cache = bf16"), [other]);
    assert_eq!(serve("cache = f32\nspeculative = 0\nbatch = 4\npaged = 1"), [""; 0]);
}

#[test]
fn a_layout_is_read_as_data() {
    let path = models().join("deepseek_v3.model");
    let read = |tree: &Tree, diags: &mut Vec<Diag>| settings::parallel(tree, "h800_2048", diags);
    let (layout, said) = with_tree(&path, None, &Overrides::default(), read);
    assert_eq!(said, [""; 0]);
    let p = layout.expect("a layout");
    assert_eq!((p.n_ranks(), p.stage_ranks(), p.batch()), (2048, 128, Some(15360)));
    assert_eq!(p.axes(), [("data", 128), ("pipeline", 16), ("experts", 64)]);
    assert_eq!((p.stages_per_rank, p.zero, p.communication_sms), (2, 1, 20));
    let read = |tree: &Tree, diags: &mut Vec<Diag>| settings::parallel(tree, "h80", diags);
    let (layout, said) = with_tree(&path, None, &Overrides::default(), read);
    let want = "`DeepSeekV3` has no parallel block `h80`; there are: h800_2048, prefill_32, \
             decode_144, decode_128";
    assert_eq!((layout, said), (None, vec![want.to_string()]));
}

#[test]
fn wrong_layouts_are_explained() {
    let parallel = |keys: &str| said(&format!("parallel p {{\n{keys}\n}}"));
    let one = |keys: &str, want: &str| assert_eq!(parallel(keys), [want]);
    assert_eq!(parallel("data = 4"), [""; 0]);
    assert_eq!(parallel("pipeline = 2  schedule = \"own.csv\"  micro_batches = 3"), [""; 0]);
    assert_eq!(parallel("pipeline = 2  schedule = \"zb-v\"  micro_batches = 3"), [""; 0]);
    one("pipelin = 16", "a parallel block has no key `pipelin`; did you mean `pipeline`?");
    one("data = 0", "`data` takes a whole number from 1, found 0");
    one("data = 9999999", "`data` takes a whole number up to 1048576, found 9999999");
    one(
        "data = 8  experts = 6",
        "experts = 6 does not divide the 8 ranks of a stage (data x context x tensor); the nearest \
         is experts = 4 or 8",
    );
    one(
        "data = 12  node = 5",
        "nodes of 5 ranks do not divide 12 ranks; the nearest is node = 4 or 6",
    );
    one(
        "data = 16  experts = 16  nodes_per_token = 3",
        "nodes_per_token = 3, and 16 ranks with experts lie on 2 nodes of 8; at most \
         nodes_per_token = 2",
    );
    assert_eq!(
        parallel("data = 4  experts = 4  expert_gradients = at_experts  exchange_capacity = 1.5"),
        [""; 0]
    );
    one(
        "data = 4  experts = 4  expert_gradients = at_expert",
        "`expert_gradients` takes at_source or at_experts, found `at_expert`; did you mean \
         `at_experts`?",
    );
    one(
        "data = 4  expert_gradients = at_experts",
        "`expert_gradients`: no ranks have the experts between them, experts = 1; give experts = \
         2, or leave it out",
    );
    one(
        "data = 4  exchange_capacity = 2",
        "`exchange_capacity`: no ranks have the experts between them, experts = 1; give experts = \
         2, or leave it out",
    );
    one(
        "gradient_sums = in_order",
        "`gradient_sums` is for several ranks, and there is one; give data = 2, or leave it out",
    );
    one(
        "placement = near",
        "`placement` takes the name of a JSON file in quotes; `weft eplb LOADS --gpus N --json` \
         writes one",
    );
    one(
        "schedule = dualpipe",
        "`schedule` orders the stages of a pipeline, and pipeline = 1; leave `schedule` out, or \
         give pipeline = 2",
    );
    let none = parallel("pipeline = 2");
    assert!(
        none[0].starts_with("pipeline = 2 has no `schedule`; there are: gpipe, 1f1b"),
        "{none:?}"
    );
    one(
        "pipeline = 2  schedule = dualpipe",
        "`schedule` has no `micro_batches` to order; give those of one pipeline in a step",
    );
    one(
        "pipeline = 3  schedule = dualpipe  micro_batches = 8",
        "dualpipe: its ranks are mirrored, so their number is even, not 3; the nearest are 2 and 4",
    );
    one(
        "pipeline = 4  schedule = \"zb-v\"  stages_per_rank = 3  micro_batches = 8",
        "zb-v: has 2 stages a rank, not 3; leave --stages-per-rank out",
    );
    one(
        "pipeline = 4  schedule = \"dualpip\"  micro_batches = 8",
        "`schedule` takes a schedule or a CSV file, found \"dualpip\"; did you mean `dualpipe`?",
    );
    one(
        "mesh = [data, tensor]",
        "`mesh` takes the axes, outermost first: [pipeline, data, context, tensor], found [data, \
         tensor]",
    );
    let layers = "a whole number of layers, 1 or more, for each stage: [1, 2, 2, 1]";
    one("stage_layers = 4", &format!("`stage_layers` takes {layers}"));
    one("stage_layers = [4, 1.5]", &format!("`stage_layers` takes {layers}, found 1.5"));
    one("stage_layers = [4, a]", "unknown name `a`");
    one("zero = 3", "`zero` takes a number from 0 to 1, found 3");
    one("data = 1048576  tensor = 2", "`p` has more than 1048576 ranks");
}

#[test]
fn a_written_config_reads_back_as_the_same_model() {
    for model in ["deepseek_v3.model", "deepseek_v2_lite.model", "llama.model", "nano.model"] {
        let path = models().join(model);
        let constants = |tree: &Tree| tree.root().consts.clone();
        let both =
            |tree: &Tree, diags: &mut Vec<Diag>| (published_config(tree, diags), constants(tree));
        let ((config, before), said) = with_tree(&path, None, &Overrides::default(), both);
        assert_eq!(said, [""; 0], "{model}");
        let overrides = Overrides { config: Some(Value::Object(config)), ..Overrides::default() };
        let (after, said) = with_tree(&path, None, &overrides, |tree, _| constants(tree));
        assert_eq!(said, [""; 0], "{model}");
        assert_eq!(before, after, "{model}");
    }
}

#[test]
fn a_config_has_the_published_spelling() {
    let path = models().join("deepseek_v3.model");
    let (config, _) = with_tree(&path, None, &Overrides::default(), published_config);
    assert_eq!(config["hidden_size"], json!(7168));
    assert_eq!(config["topk_method"], json!("noaux_tc"));
    assert_eq!(config["num_key_value_heads"], json!(128));
    assert_eq!(config["architectures"], json!(["DeepseekV3ForCausalLM"]));
    assert!(config["rope_parameters"].get("factor").is_none());

    let sets = vec![("biased".to_string(), "false".to_string())];
    let overrides = Overrides { sets, ..Overrides::default() };
    let (_, said) = with_tree(&path, None, &overrides, published_config);
    assert_eq!(said[0], "config.json: `topk_method` cannot say group_score = `top2`");
}
