//! Running the passes for the command line: one line a step, numbered dumps, `manifest.json`, and
//! going on from a file of a dump.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weft_ir::module::Module;
use weft_ir::{text, verify};
use weft_lower::compile::Stage;
use weft_passes::{PIPELINE, PassCx, Step};

/// What to show of the way.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ShowArgs {
    /// Write one numbered file for each step that changed something, and manifest.json
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
    /// Print what each pass did
    #[arg(long)]
    pub time_passes: bool,
}

impl ShowArgs {
    /// Whether the stages below the IR are to be seen, so that a graph is compiled again.
    pub fn wants_stages(&self) -> bool {
        self.dump.is_some() || self.time_passes
    }
}

/// How a compile goes.
#[derive(Default)]
pub struct Way {
    pub show: ShowArgs,
    pub from: Option<Start>,
}

impl From<&ShowArgs> for Way {
    fn from(show: &ShowArgs) -> Way {
        Way { show: show.clone(), from: None }
    }
}

/// IR to go on from, in place of what lowering and the first passes give.
pub struct Start {
    pub module: Module,
    /// Passes that have run.
    n_passes: usize,
    used: Cell<bool>,
}

impl Start {
    /// Reads a file of a dump; which pass wrote it says the manifest beside it, or `after`.
    pub fn read(path: &Path, after: Option<&str>) -> Result<Start> {
        let module = read_ir(path)?;
        let n_passes = match after {
            Some(name) => n_passes_up_to(name, "--after")?,
            None => n_passes_before(path)?,
        };
        Ok(Start { module, n_passes, used: Cell::new(false) })
    }

    /// That what was compiled did go on from here.
    pub fn check_used(&self) -> Result<()> {
        if self.used.get() {
            return Ok(());
        }
        let all: Vec<String> = self.module.funcs.iter().map(|f| format!("@{}", f.name)).collect();
        bail!(
            "--from: it has no entry of what is compiled, only {}; give the --for and the options \
             that it was written with",
            all.join(", ")
        )
    }

    fn has(&self, entries: &[&str]) -> bool {
        entries.iter().any(|name| self.module.find(name).is_some())
    }
}

/// The place in the pipeline that a dump's manifest gives to a file.
fn n_passes_before(path: &Path) -> Result<usize> {
    let manifest = path.with_file_name("manifest.json");
    let unknown = || {
        format!(
            "which passes have run on {} is not known: {} does not say; give --after PASS",
            path.display(),
            manifest.display()
        )
    };
    let text = std::fs::read_to_string(&manifest).with_context(unknown)?;
    let manifest: Value = serde_json::from_str(&text).with_context(unknown)?;
    let name = path.file_name().and_then(|n| n.to_str()).with_context(unknown)?;
    let steps = manifest["steps"].as_array().with_context(unknown)?;
    let place = steps.iter().find(|step| step["file"] == name).map(|step| &step["place"]);
    match place {
        Some(place) => place.as_u64().map(|n| n as usize).with_context(unknown),
        None if manifest["inputs"].as_array().is_some_and(|i| i.iter().any(|f| f == name)) => Ok(0),
        None => bail!(unknown()),
    }
}

/// How many passes have run after the last one called `name`.
fn n_passes_up_to(name: &str, option: &str) -> Result<usize> {
    match PIPELINE.iter().rposition(|p| p.name == name) {
        Some(i) => Ok(i + 1),
        None if name == "lower" => Ok(0),
        None => bail!("{option} {name}: no such pass; there are: lower, {}", names()),
    }
}

/// Steps as they happen; writes the manifest at the end.
pub struct Recorder {
    dump: Option<PathBuf>,
    print: bool,
    steps: Vec<Value>,
    stages: Vec<Value>,
    inputs: Vec<String>,
    files: usize,
    start: Instant,
}

impl Recorder {
    pub fn new(show: &ShowArgs) -> Result<Recorder> {
        if let Some(dir) = &show.dump {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("cannot make the dump folder {}", dir.display()))?;
        }
        Ok(Recorder {
            dump: show.dump.clone(),
            print: show.time_passes,
            steps: vec![],
            stages: vec![],
            inputs: vec![],
            files: 0,
            start: Instant::now(),
        })
    }

    /// The module as it came in.
    pub fn input(&mut self, name: &str, module: &Module) -> Result<()> {
        let file = self.write(name, module)?;
        self.inputs.extend(file);
        Ok(())
    }

    fn write(&mut self, name: &str, module: &Module) -> Result<Option<String>> {
        let Some(dir) = &self.dump else { return Ok(None) };
        let file = format!("{:03}-{name}.ir", self.files * 10);
        self.files += 1;
        let path = dir.join(&file);
        std::fs::write(&path, text::print(module))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Some(file))
    }

    fn step(&mut self, step: &Step, module: &Module) -> Result<()> {
        if self.print {
            eprintln!("{step}");
        }
        let changed = step.stats.changed();
        let file = if changed { self.write(step.name, module)? } else { None };
        self.steps.push(json!({
            "name": step.name,
            "place": step.idx,
            "ms": step.time.as_secs_f64() * 1e3,
            "ops_before": step.n_ops_before,
            "ops_after": step.n_ops_after,
            "changed": changed,
            "file": file,
        }));
        Ok(())
    }

    /// A stage below the IR.
    pub fn stage(&mut self, stage: &Stage) {
        if self.print {
            eprintln!("{stage}");
        }
        let mut entry = json!({ "name": stage.name, "ms": stage.time.as_secs_f64() * 1e3 });
        if let Some(name) = &stage.entry {
            entry["entry"] = name.as_str().into();
        }
        for (name, n) in &stage.counts {
            entry[name.replace(' ', "_")] = (*n).into();
        }
        self.stages.push(entry);
    }

    /// Write `manifest.json`.
    pub fn finish(self, module: &Module) -> Result<()> {
        let Some(dir) = &self.dump else { return Ok(()) };
        let manifest = json!({
            "compiler": concat!("weft ", env!("CARGO_PKG_VERSION")),
            "command": std::env::args().collect::<Vec<_>>(),
            "model": module.name,
            "sources": module.files,
            "ms": self.start.elapsed().as_secs_f64() * 1e3,
            "inputs": self.inputs,
            "steps": self.steps,
            "stages": self.stages,
        });
        let path = dir.join("manifest.json");
        std::fs::write(&path, serde_json::to_string_pretty(&manifest)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("dump: {}", dir.display());
        Ok(())
    }
}

/// The pipeline up to and with the last pass called `stop_after`, if that is given; where there is
/// a start that has one of `entries`, on it instead and only what has not run.
pub fn run(
    module: &mut Module,
    cx: &PassCx,
    stop_after: Option<&str>,
    (from, entries): (Option<&Start>, &[&str]),
    recorder: &mut Recorder,
) -> Result<()> {
    let end = match stop_after {
        None => PIPELINE.len(),
        Some(name) => n_passes_up_to(name, "--stop-after")?,
    };
    let mut begin = 0;
    if let Some(start) = from.filter(|start| start.has(entries)) {
        *module = start.module.clone();
        if let Err(errors) = verify::verify(module) {
            let all: Vec<String> = errors.iter().map(|e| e.to_string()).collect();
            bail!("--from: {}", all.join("\n"));
        }
        begin = start.n_passes;
        start.used.set(true);
    }
    if begin > end {
        bail!("--stop-after: the IR of --from is further already: {begin} passes have run");
    }
    for (i, pass) in PIPELINE.iter().enumerate().take(end).skip(begin) {
        let step = weft_passes::run_pass(i + 1, pass, module, cx)?;
        recorder.step(&step, module)?;
    }
    Ok(())
}

/// Passes by name, in the order given.
pub fn run_named(
    module: &mut Module,
    cx: &PassCx,
    passes: &[String],
    recorder: &mut Recorder,
) -> Result<()> {
    for (i, name) in passes.iter().enumerate() {
        let Some(pass) = weft_passes::by_name(name) else {
            bail!("--passes: no pass `{name}`; there are: {}", names());
        };
        let step = weft_passes::run_pass(i + 1, pass, module, cx)?;
        recorder.step(&step, module)?;
    }
    Ok(())
}

fn names() -> String {
    let mut all: Vec<&str> = vec![];
    for pass in PIPELINE {
        if !all.contains(&pass.name) {
            all.push(pass.name);
        }
    }
    all.join(", ")
}

/// Read a module from its text form.
pub fn read_ir(path: &Path) -> Result<Module> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    match text::parse(&text) {
        Ok(module) => Ok(module),
        Err(errors) => {
            let all: Vec<String> = errors
                .iter()
                .map(|e| format!("{}:{}:{}: {}", path.display(), e.line, e.col, e.message))
                .collect();
            bail!("{}", all.join("\n"))
        }
    }
}
