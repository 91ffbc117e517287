//! Running the passes for the command line: one line a step, numbered dumps, `manifest.json`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;
use weft_ir::module::Module;
use weft_ir::text;
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

/// Steps as they happen; writes the manifest at the end.
pub struct Recorder {
    dump: Option<PathBuf>,
    print: bool,
    steps: Vec<serde_json::Value>,
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
            files: 0,
            start: Instant::now(),
        })
    }

    /// The module as it came in.
    pub fn input(&mut self, name: &str, module: &Module) -> Result<()> {
        self.write(name, module)?;
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
            "ms": step.time.as_secs_f64() * 1e3,
            "ops_before": step.n_ops_before,
            "ops_after": step.n_ops_after,
            "changed": changed,
            "file": file,
        }));
        Ok(())
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
            "steps": self.steps,
        });
        let path = dir.join("manifest.json");
        std::fs::write(&path, serde_json::to_string_pretty(&manifest)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("dump: {}", dir.display());
        Ok(())
    }
}

/// The pipeline up to and with the last pass called `stop_after`, if that is given.
pub fn run(
    module: &mut Module,
    cx: &PassCx,
    stop_after: Option<&str>,
    recorder: &mut Recorder,
) -> Result<()> {
    let end = match stop_after {
        None => PIPELINE.len(),
        Some("lower") => 0,
        Some(name) => match PIPELINE.iter().rposition(|p| p.name == name) {
            Some(i) => i + 1,
            None => bail!("--stop-after {name}: no such pass; there are: lower, {}", names()),
        },
    };
    for (i, pass) in PIPELINE[..end].iter().enumerate() {
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
