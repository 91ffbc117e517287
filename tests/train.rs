//! A model small enough for a test trains, stops, goes on and writes text, all through the command
//! line.

mod tiny;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use weft_runtime::checkpoint::Dtype;
use weft_runtime::checkpoint::tensor_file::TensorFile;
use weft_runtime::train::metrics;

use tiny::TINY;

/// The batch, and how often it is kept.
const BATCH: &[&str] = &["batch=4", "checkpoint_every=3"];

fn tiny_sets() -> Vec<&'static str> {
    TINY.iter().chain(BATCH).copied().collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn weft(subcommand: &str, model: &str, sets: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.arg(subcommand).arg(root().join("models").join(model));
    for set in sets {
        command.args(["--set", set]);
    }
    command
}

/// Training `nano` made tiny, on the texts of the models.
fn train(out: &Path, steps: u64, more: &[&str]) -> Command {
    let mut command = weft("train", "nano.model", &tiny_sets());
    command.arg("--data").arg(root().join("models")).arg("--out").arg(out);
    command.args(["--steps", &steps.to_string()]).args(more);
    command
}

fn done(mut command: Command) -> Output {
    let output = command.output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn refused(mut command: Command) -> String {
    let output = command.output().expect("weft runs");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Names of a folder and of its folders, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![];
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false => all.push(path),
        }
    }
    all.sort();
    all
}

fn assert_same(a: &Path, b: &Path) {
    let relative = |folder: &Path| -> Vec<PathBuf> {
        let strip = |p: PathBuf| p.strip_prefix(folder).expect("it is inside").to_owned();
        files(folder).into_iter().map(strip).collect()
    };
    assert_eq!(relative(a), relative(b));
    for name in relative(a) {
        let (x, y) = (fs::read(a.join(&name)), fs::read(b.join(&name)));
        assert!(x.expect("it is read") == y.expect("it is read"), "{} differs", name.display());
    }
}

#[test]
fn the_loss_falls_and_text_comes_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = dir.path().join("run");
    done(train(&run, 40, &["--set", "held_out=0.3", "--set", "held_out_every=10"]));
    let records = metrics::read(&run.join("metrics.jsonl")).expect("metrics were written");
    assert_eq!(records.len(), 40);
    let loss = |i: usize| records[i].number("loss").expect("a loss");
    // A uniform guess among 512 ids costs ln 512 = 6.24.
    assert!((loss(0) - 6.24).abs() < 0.2, "{}", loss(0));
    assert!(loss(39) < 5.6, "{}", loss(39));
    assert!(records[9].number("held_out_loss") > records[39].number("held_out_loss"));
    assert!(records.iter().all(|r| r.layers("max_vio").is_some_and(|l| l.len() == 2)));
    for picture in ["losses.svg", "max_vio.svg"] {
        assert!(fs::read_to_string(run.join(picture)).expect("a picture").contains("<svg"));
    }

    let text = |more: &[&str]| {
        let mut command = weft("generate", "nano.model", &[]);
        command.arg("--checkpoint").arg(&run).args(["--prompt", "The ", "--max-new", "12"]);
        command.args(more);
        String::from_utf8_lossy(&done(command).stdout).into_owned()
    };
    let greedy = text(&["--greedy"]);
    assert!(greedy.starts_with("The "), "{greedy}");
    assert_eq!(greedy, text(&["--greedy", "--threads", "1"]));
    assert_eq!(text(&["--seed", "5"]), text(&["--seed", "5"]));
    assert_ne!(text(&["--seed", "5", "--temperature", "2"]), greedy);
}

fn wait_for(file: &Path, child: &mut Child) {
    let start = Instant::now();
    while !file.exists() {
        assert!(child.try_wait().expect("it can be asked").is_none(), "it ended early");
        assert!(start.elapsed() < Duration::from_secs(300), "no {}", file.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn killed_and_resumed_equals_undisturbed_on_any_threads() {
    let dir = tempfile::tempdir().expect("a folder");
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    done(train(&whole, 90, &["--set", "keep=0", "--threads", "1"]));
    let mut child = train(&killed, 90, &["--set", "keep=0", "--threads", "2"])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("weft runs");
    // Somewhere after the first checkpoint, wherever that is.
    wait_for(&killed.join("step-000003"), &mut child);
    child.kill().expect("it can be killed");
    assert!(!child.wait().expect("it ends").success(), "it had ended before");
    done(train(&killed, 90, &["--set", "keep=0", "--resume", "--threads", "2"]));
    assert_same(&whole, &killed);
}

/// `nano` made tiny, with a block whose moments are bf16.
fn narrow(out: &Path, model: &Path, steps: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.arg("train").arg(model).arg("--data").arg(root().join("models")).arg("--out").arg(out);
    command.args(tiny_sets().iter().flat_map(|set| ["--set", set]));
    command.args(["--precision", "narrow", "--steps", steps]).args(more);
    command
}

#[test]
fn bf16_moments_are_stored_narrow_and_resumed_exactly() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = dir.path().join("narrow.model");
    let text = format!(
        "weft 1\nuse \"{}\"\nmodel Narrow from Nano {{\n  precision narrow {{ compute = bf16 \
         moments = bf16 module \"**.gate\" {{ compute = f32 }} }}\n}}\n",
        root().join("models/nano.model").display()
    );
    fs::write(&model, text).expect("it can be written");
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    done(narrow(&whole, &model, "6", &["--set", "keep=0"]));
    done(narrow(&parts, &model, "3", &["--set", "keep=0"]));
    done(narrow(&parts, &model, "6", &["--set", "keep=0", "--resume"]));
    for name in ["model.safetensors", "optimizer.safetensors"] {
        let read = |run: &Path| fs::read(run.join("step-000006").join(name)).expect("written");
        assert_eq!(read(&whole), read(&parts), "{name}");
    }
    let moments = TensorFile::open(&whole.join("step-000006/optimizer.safetensors"));
    let moments = moments.expect("a safetensors file");
    assert!(moments.tensors().all(|t| t.dtype == Dtype::BF16), "moments are bf16");
    // They moved, which zeros would not show.
    let name = "model.layers.0.mlp.gate_proj.weight.m";
    let m = moments.read_f32(name, &moments.info(name).expect(name).shape.clone());
    assert!(m.expect(name).iter().any(|x| *x != 0.0));
}

/// Numbers of step `step` under `watch`.
fn watched(run: &Path, step: usize, site: &str, operand: &str, statistic: &str) -> Vec<f64> {
    let records = metrics::read(&run.join("metrics.jsonl")).expect("metrics");
    let found = &records[step - 1].values["watch"][site][operand][statistic];
    let layers = found.as_array().unwrap_or_else(|| panic!("{site} {operand} {statistic}"));
    layers.iter().filter_map(serde_json::Value::as_f64).collect()
}

#[test]
fn watching_tells_what_rounding_does_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let (plain, seen) = (dir.path().join("plain"), dir.path().join("seen"));
    let more = ["--precision", "bf16", "--set", "keep=0", "--set", "micro_batch=2"];
    done(train(&plain, 4, &more));
    let watch = ["--watch", "**.o_proj", "--watch", "lm_head"];
    done(train(&seen, 4, &[&more[..], &watch[..]].concat()));
    let model = |run: &Path| fs::read(run.join("step-000004/model.safetensors")).expect("written");
    assert!(model(&plain) == model(&seen), "watching changed the weights");

    // Step 4 rounds the weights that step 3 left.
    let file = TensorFile::open(&seen.join("step-000003/model.safetensors")).expect("a file");
    let stored = |name: &str| {
        file.read_f32(name, &file.info(name).expect(name).shape.clone()).expect("floats")
    };
    let layer = |l: usize| stored(&format!("model.layers.{l}.self_attn.o_proj.weight"));
    for (site, w) in [
        ("lm_head", stored("lm_head.weight")),
        ("layers.0.self_attn.o_proj", layer(0)),
        ("layers.1.self_attn.o_proj", layer(1)),
    ] {
        let amax = w.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert_eq!(watched(&seen, 4, site, "forward.w", "amax"), [f64::from(amax)], "{site}");
        let rounded = |x: f32| f64::from(half(x));
        let moved: f64 = w.iter().map(|x| (rounded(*x) - f64::from(*x)).powi(2)).sum();
        let norm: f64 = w.iter().map(|x| f64::from(*x).powi(2)).sum();
        let error = watched(&seen, 4, site, "forward.w", "error")[0];
        assert!((error / (moved / norm).sqrt() - 1.0).abs() < 1e-3, "{site}: {error}");
    }
    let wrong = refused(train(&dir.path().join("wrong"), 1, &["--watch", "**.o_porj"]));
    assert!(wrong.contains("did you mean \"**.o_proj\"?"), "{wrong}");
}

/// To bf16 and back: the nearest, ties to even.
fn half(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    let dir = tempfile::tempdir().expect("a folder");
    let loss = |name: &str, micro: &str| -> Vec<f64> {
        let run = dir.path().join(name);
        done(train(&run, 4, &["--set", micro]));
        let records = metrics::read(&run.join("metrics.jsonl")).expect("metrics");
        records.iter().filter_map(|r| r.number("loss")).collect()
    };
    let (whole, parts) = (loss("whole", "micro_batch=4"), loss("parts", "micro_batch=2"));
    assert_eq!(whole.len(), 4);
    for (a, b) in whole.iter().zip(&parts) {
        // The order of additions differs, nothing else.
        assert!((a - b).abs() < 1e-3, "{whole:?} {parts:?}");
    }
}

/// `nano` with a batch that grows from 2 to 6 in the first steps.
fn growing(dir: &Path) -> PathBuf {
    let text = fs::read_to_string(root().join("models/nano.model")).expect("nano");
    let text = text.replace("batch     = 4", "batch = 2 over 2 steps, 2 -> 6 over 4 steps, 6");
    for file in files(&root().join("models")) {
        let copy = dir.join(file.strip_prefix(root().join("models")).expect("it is inside"));
        fs::create_dir_all(copy.parent().expect("a folder")).expect("it can be made");
        fs::copy(&file, copy).expect("a copy");
    }
    let path = dir.join("growing.model");
    fs::write(&path, text).expect("it can be written");
    path
}

#[test]
fn a_batch_may_grow_and_its_steps_are_those_of_that_batch() {
    let dir = tempfile::tempdir().expect("a folder");
    let records = |run: &Path, model: &Path, sets: &[&str], steps: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.arg("train").arg(model);
        for set in TINY.iter().chain(BATCH).filter(|s| !s.starts_with("batch")).chain(sets) {
            command.args(["--set", set]);
        }
        command.arg("--data").arg(root().join("models")).arg("--out").arg(run);
        command.args(["--steps", steps]);
        done(command);
        metrics::read(&run.join("metrics.jsonl")).expect("metrics")
    };
    let model = growing(dir.path());
    let growing = records(&dir.path().join("a"), &model, &["micro_batch=1"], "7");
    let batches: Vec<f64> = growing.iter().filter_map(|r| r.number("batch")).collect();
    assert_eq!(batches, [2.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let nano = root().join("models/nano.model");
    let two = records(&dir.path().join("b"), &nano, &["batch=2", "micro_batch=1"], "3");
    for (a, b) in growing.iter().zip(&two) {
        for name in ["loss", "mtp_loss", "total", "grad_norm"] {
            assert_eq!(a.number(name), b.number(name), "{name} at step {}", a.step);
        }
    }
}

#[test]
fn a_run_is_neither_overwritten_nor_resumed_from_damage_or_otherwise() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = dir.path().join("run");
    let none = refused(train(&run, 3, &["--resume"]));
    assert!(none.contains("holds no checkpoint to resume from"), "{none}");
    done(train(&run, 3, &[]));
    let again = refused(train(&run, 3, &[]));
    assert!(again.contains("holds a run already; give --resume"), "{again}");
    let other = refused(train(&run, 6, &["--resume", "--set", "clip=0.5"]));
    assert!(other.contains("started with clip = 1.0, and now clip = 0.5"), "{other}");
    let precision = refused(train(&run, 6, &["--resume", "--precision", "bf16"]));
    let expected = "started with precision = \"f32\", and now precision = \"bf16\"";
    assert!(precision.contains(expected), "{precision}");
    let seed = refused(train(&run, 6, &["--resume", "--seed", "9"]));
    assert!(seed.contains("started with seed = 0, and now seed = 9"), "{seed}");

    let weights = run.join("step-000003/model.safetensors");
    let mut bytes = fs::read(&weights).expect("it was written");
    *bytes.last_mut().expect("it is not empty") ^= 1;
    fs::write(&weights, bytes).expect("it can be altered");
    let damaged = refused(train(&run, 6, &["--resume"]));
    assert!(damaged.contains("is damaged: model.safetensors: expected blake3"), "{damaged}");
}

#[test]
fn a_graph_trains_and_generates_as_its_model_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let (step, text) = (dir.path().join("step.weft"), dir.path().join("text.weft"));
    let mut compile = weft("compile", "nano.model", &tiny_sets());
    compile.args(["--for", "train", "-o"]).arg(&step);
    done(compile);
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    done(train(&a, 3, &[]));
    let mut graph = Command::new(env!("CARGO_BIN_EXE_weft"));
    graph.arg("train").arg(&step).arg("--data").arg(root().join("models"));
    done({
        graph.arg("--out").arg(&b).args(["--steps", "3"]);
        graph
    });
    assert_same(&a, &b);

    let mut compile = weft("compile", "nano.model", &[]);
    compile.arg("--checkpoint").arg(a.join("step-000003"));
    compile.args(["--for", "decode", "--sequence", "16", "-o"]).arg(&text);
    done(compile);
    let ids = |model: &Path, prompt: &str, max_new: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.arg("generate").arg(model).arg("--checkpoint").arg(&a);
        command.args(["--token-ids", prompt, "--max-new", max_new, "--greedy"]);
        command
    };
    let model = root().join("models/nano.model");
    let of_model = done(ids(&model, "256,84,104", "5")).stdout;
    assert_eq!(of_model, done(ids(&text, "256,84,104", "5")).stdout);
    assert_eq!(String::from_utf8_lossy(&of_model).trim().split(',').count(), 5);

    let long: Vec<String> = (0..17).map(|i| i.to_string()).collect();
    let long = refused(ids(&text, &long.join(","), "1"));
    assert!(long.contains("the prompt has 17 tokens and the cache holds 16"), "{long}");
    let unknown = refused(ids(&text, "1,512", "1"));
    assert!(unknown.contains("token 512 is outside the vocabulary of 512"), "{unknown}");
}

/// Ids of the reference case's first prompt, and its greedy continuation.
fn reference(case: &str) -> (PathBuf, Vec<i32>, Vec<i32>) {
    let folder = root().join("tests/golden").join(case);
    let expected = TensorFile::open(&folder.join("expected.safetensors")).expect("the case");
    let prompt = expected.read_i32("tokens").expect("tokens")[..8].to_vec();
    (folder, prompt, expected.read_i32("greedy").expect("a continuation"))
}

#[test]
fn published_checkpoints_continue_as_published() {
    let cases = [
        ("llama", "llama.model"),
        ("v2-softmax", "deepseek_v2_lite.model"),
        ("v3-fp8", "deepseek_v3.model"),
        ("v3-grouped", "deepseek_v3.model"),
        ("v3-no-q-lora", "deepseek_v3.model"),
        ("v3-yarn", "deepseek_v3.model"),
    ];
    for (case, model) in cases {
        let (folder, prompt, greedy) = reference(case);
        let text = |ids: &[i32]| ids.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
        let mut command = weft("generate", model, &[]);
        command.arg("--checkpoint").arg(&folder).args(["--token-ids", &text(&prompt)]);
        command.args(["--max-new", &greedy.len().to_string(), "--greedy"]);
        let output = String::from_utf8_lossy(&done(command).stdout).into_owned();
        assert_eq!(output.trim(), text(&greedy), "{case}");
    }
}
