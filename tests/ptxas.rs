//! Kernels of the shipped models through NVIDIA's assembler, where it can be had: nothing spills,
//! no product is serialised, registers suffice, and the machine code has the instructions of tensor
//! cores and copies that the text asks for.
//!
//! Kernels are told apart by their text, so that each is assembled once. `cargo test` takes those
//! of `nano` and samples of others; `sh scripts/ptxas.sh all` takes every model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What is compiled: a model, what for, and its precision.
type Case = (&'static str, &'static str, &'static str);

const SAMPLES: &[Case] = &[
    ("nano", "train", "f32"),
    ("nano", "train", "bf16"),
    ("nano", "train", "deepseek_fp8"),
    ("nano", "decode", "bf16"),
    ("nano", "decode", "deepseek_fp8"),
    ("deepseek_v3", "decode", "bf16"),
];

const MODELS: &[&str] = &["nano", "small", "deepseek_v2_lite", "deepseek_v3", "llama"];

/// Of a sample that is not `nano`, every so many kernels.
const SAMPLE_STEP: usize = 3;

/// Kernels in one run of the assembler.
const BATCH: usize = 16;

/// Registers of a multiprocessor, which the threads of a CTA share.
const REGISTERS: u32 = 65_536;

/// The texts of a PTX module's kernels, and what stands before them all.
struct Module {
    preamble: String,
    /// By name.
    kernels: BTreeMap<String, String>,
}

fn split(text: &str) -> Module {
    let mut module = Module { preamble: String::new(), kernels: BTreeMap::new() };
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        if let Some((name, mut body)) = open.take() {
            body += &format!("{line}\n");
            match line {
                "}" => drop(module.kernels.insert(name, body)),
                _ => open = Some((name, body)),
            }
        } else if let Some(rest) = line.strip_prefix(".visible .entry ") {
            let name = rest.split('(').next().unwrap_or(rest).to_string();
            open = Some((name, format!("{line}\n")));
        } else if line.contains(".section") {
            break;
        } else if line.starts_with('.') {
            module.preamble += &format!("{line}\n");
        }
    }
    module
}

/// What the assembler says of a kernel.
#[derive(Clone, Debug, Default)]
struct Assembled {
    registers: u32,
    spilled_bytes: u32,
    /// Machine instructions, where there is a disassembler: products of bf16, of codes, copies in.
    counts: Option<[usize; 3]>,
}

/// Instructions of PTX and what they become.
const COUNTED: [(&str, &str); 3] =
    [("bf16.bf16", "HGMMA"), ("e4m3.e4m3", "QGMMA"), ("cp.async.bulk.tensor", "UTMALDG")];

impl Assembled {
    fn faults(&self, name: &str, text: &str) -> Vec<String> {
        let mut out = vec![];
        if self.spilled_bytes > 0 {
            out.push(format!("{name}: spills {} bytes", self.spilled_bytes));
        }
        let threads = number_after(text, ".reqntid ").unwrap_or(1);
        if self.registers * threads > REGISTERS || self.registers == 0 {
            out.push(format!("{name}: {} registers for {threads} threads", self.registers));
        }
        for (i, (ptx, sass)) in COUNTED.iter().enumerate() {
            let Some(counts) = self.counts else { continue };
            let asks = |line: &&str| match *sass {
                "UTMALDG" => line.contains(ptx) && line.contains("shared::cluster.global"),
                _ => line.contains("wgmma.mma_async") && line.contains(ptx),
            };
            let wanted = text.lines().filter(asks).count();
            if counts[i] != wanted {
                out.push(format!("{name}: {} {sass}, not {wanted}", counts[i]));
            }
        }
        out
    }
}

fn number_after(text: &str, what: &str) -> Option<u32> {
    let rest = text.split(what).nth(1)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

struct Tools {
    ptxas: PathBuf,
    nvdisasm: Option<PathBuf>,
}

/// NVIDIA's assembler, or a line that says why not.
fn tools() -> Option<Tools> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/ptxas.sh");
    let out = Command::new("sh").arg(script).output().expect("there is a shell");
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr);
        println!("skipped: no ptxas here: {}", why.lines().last().unwrap_or_default());
        return None;
    }
    let folder = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
    let nvdisasm = Some(folder.join("nvdisasm")).filter(|tool| tool.exists());
    if nvdisasm.is_none() {
        println!("skipped: no nvdisasm here: machine instructions are not counted");
    }
    Some(Tools { ptxas: folder.join("ptxas"), nvdisasm })
}

fn done(command: &mut Command) -> Output {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Assembles kernels in one go; a line of the log that complains is a fault, too.
fn assemble(
    tools: &Tools,
    dir: &Path,
    preamble: &str,
    kernels: &[(String, String)],
    faults: &mut Vec<String>,
) -> BTreeMap<String, Assembled> {
    let (ptx, cubin) = (dir.join("batch.ptx"), dir.join("batch.cubin"));
    let bodies: String = kernels.iter().map(|(_, body)| body.as_str()).collect();
    std::fs::write(&ptx, format!("{preamble}{bodies}")).expect("written");
    let mut ptxas = Command::new(&tools.ptxas);
    ptxas.args(["-v", "-arch=sm_90a", "-o"]).args([&cubin, &ptx]);
    let log = String::from_utf8_lossy(&done(&mut ptxas).stderr).into_owned();
    let mut all: BTreeMap<String, Assembled> = BTreeMap::new();
    let mut name = String::new();
    for line in log.lines() {
        // C75xx: products that wait for each other, registers that cannot be moved.
        if line.contains("(C7") || line.contains("warning") {
            faults.push(line.to_string());
        }
        if let Some(rest) = line.split("entry function '").nth(1) {
            name = rest.split('\'').next().unwrap_or_default().to_string();
        }
        let of = all.entry(name.clone()).or_default();
        if let Some(n) = number_after(line, "Used ") {
            of.registers = n;
        }
        for part in line.split(',').filter(|part| part.contains("spill")) {
            let word = part.split_whitespace().next().unwrap_or_default();
            of.spilled_bytes += word.parse::<u32>().unwrap_or_default();
        }
    }
    if let Some(nvdisasm) = &tools.nvdisasm {
        let out = done(Command::new(nvdisasm).arg("-c").arg(&cubin));
        let mut of = String::new();
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            if let Some(rest) = line.trim_start().strip_prefix(".section\t.text.") {
                of = rest.split(',').next().unwrap_or(rest).to_string();
                all.entry(of.clone()).or_default().counts = Some([0; 3]);
            }
            let Some(counts) = all.get_mut(&of).and_then(|a| a.counts.as_mut()) else { continue };
            for (i, (_, sass)) in COUNTED.iter().enumerate() {
                counts[i] += usize::from(line.split_whitespace().any(|w| w.starts_with(sass)));
            }
        }
    }
    all
}

/// The kernels of a case: the text of each, and what stands before them.
fn compiled((model, purpose, precision): Case, dir: &Path) -> Module {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = dir.join("model.weft");
    let mut compile = Command::new(env!("CARGO_BIN_EXE_weft"));
    compile.arg("compile").arg(root.join(format!("models/{model}.model")));
    compile.args(["--device", "cuda", "--for", purpose, "-o"]).arg(&file);
    if precision != "f32" {
        compile.args(["--precision", precision]);
    }
    done(&mut compile);
    let graph = weft_graph::Graph::open(&file).expect("weft wrote it");
    let mut all = Module { preamble: String::new(), kernels: BTreeMap::new() };
    let mut declared: Vec<String> = vec![];
    for text in &graph.objects {
        let module = split(&String::from_utf8_lossy(text));
        for line in module.preamble.lines() {
            if !declared.iter().any(|d| d == line) {
                declared.push(line.to_string());
            }
        }
        all.kernels.extend(module.kernels);
    }
    assert_eq!(all.kernels.len(), graph.kernels.len(), "kernels of {model}");
    all.preamble = declared.iter().map(|line| format!("{line}\n")).collect();
    all
}

/// Takes the cases one after the other; the first fault of each kind of kernel is enough to fail.
fn check(cases: &[Case], step: impl Fn(Case) -> usize) {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut faults = vec![];
    for case in cases {
        let module = compiled(*case, dir.path());
        let all = module.kernels.len();
        let new = module.kernels.into_iter().filter(|(_, body)| seen.insert(body.clone()));
        let new: Vec<(String, String)> = new.step_by(step(*case)).collect();
        let (mut registers, mut totals) = (0, [0; 3]);
        for batch in new.chunks(BATCH) {
            let made = assemble(&tools, dir.path(), &module.preamble, batch, &mut faults);
            for (name, body) in batch {
                let Some(of) = made.get(name) else {
                    faults.push(format!("{name}: nothing is said of it"));
                    continue;
                };
                faults.extend(of.faults(name, body));
                registers = registers.max(of.registers);
                let counts = of.counts.unwrap_or_default();
                (0..3).for_each(|i| totals[i] += counts[i]);
            }
        }
        let (model, purpose, precision) = case;
        let [bf16, codes, copies] = totals;
        println!(
            "{model} {purpose} {precision}: {all} kernels, {} assembled, {registers} registers at \
             most, {bf16} HGMMA, {codes} QGMMA, {copies} UTMALDG",
            new.len()
        );
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_assembler_takes_the_kernels_of_models() {
    if std::env::var_os("WEFT_PTXAS").is_some_and(|v| v == "all") {
        let mut cases = vec![];
        for model in MODELS {
            for purpose in ["train", "decode"] {
                for precision in ["f32", "bf16", "deepseek_fp8"] {
                    cases.push((*model, purpose, precision));
                }
            }
        }
        check(&cases, |_| 1);
    } else {
        check(SAMPLES, |(model, ..)| if model == "nano" { 1 } else { SAMPLE_STEP });
    }
}

#[test]
fn a_module_is_cut_into_its_kernels() {
    let text = "// by LLVM\n.version 8.3\n.target sm_90a\n.visible .entry a(\n)\n{\nret;\n}\n\
                .visible .entry b()\n{\n{\n\tret;\n\t}\n}\n\t.section .debug\n";
    let module = split(text);
    assert_eq!(module.preamble, ".version 8.3\n.target sm_90a\n");
    assert_eq!(module.kernels.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(module.kernels["b"], ".visible .entry b()\n{\n{\n\tret;\n\t}\n}\n");
}
