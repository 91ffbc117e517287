//! Every template instance through NVIDIA's assembler, where it can be had: no spills, no product
//! that was serialised, registers within budget; and the machine code has the instructions it
//! should.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use weft_backend_cuda::flash::Attention;
use weft_backend_cuda::flash::backward::{Backward, Makes};
use weft_backend_cuda::flash::decode::Decode;
use weft_backend_cuda::flash::template::Template;
use weft_backend_cuda::gemm::select::widths;
use weft_backend_cuda::gemm::{
    Blocks, Gemm, Grouping, Kind, Operand, Output, ScaleType, Scales, Store,
};
use weft_backend_cuda::target::hopper;
use weft_backend_cuda::tiles::shared::Major;
use weft_codegen::object::{KernelSource, compile};

/// The folder of the tools, or why there is none.
fn tools() -> Option<&'static Path> {
    static TOOLS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let find = || {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/ptxas.sh");
        let out = Command::new("sh").arg(script).output().map_err(|e| e.to_string())?;
        match out.status.success() {
            true => Ok(PathBuf::from(String::from_utf8_lossy(&out.stdout).trim())),
            false => Err(String::from_utf8_lossy(&out.stderr).trim().to_string()),
        }
    };
    match TOOLS.get_or_init(find) {
        Ok(path) => Some(path),
        Err(why) => {
            println!("skipped: no ptxas here: {}", why.lines().last().unwrap_or_default());
            None
        }
    }
}

/// What the assembler made of a kernel.
struct Assembled {
    name: String,
    log: String,
    /// Machine code, if there is a disassembler.
    sass: Option<String>,
}

impl Assembled {
    fn count(&self, opcode: &str) -> Option<usize> {
        let sass = self.sass.as_ref()?;
        Some(sass.lines().filter(|l| l.split_whitespace().any(|w| w.starts_with(opcode))).count())
    }

    /// The number before `what` in the log.
    fn number(&self, what: &str) -> u32 {
        let before = self.log.split(what).next().unwrap_or_default();
        let word = before.split_whitespace().next_back().unwrap_or_default();
        word.parse()
            .unwrap_or_else(|_| panic!("{}: no number of `{what}`: {}", self.name, self.log))
    }

    /// What is wrong with it.
    fn faults(&self, registers_max: u32) -> Vec<String> {
        let Assembled { name, log, .. } = self;
        let mut out = vec![];
        for what in ["bytes spill stores", "bytes spill loads", "bytes stack frame"] {
            let n = self.number(what);
            out.extend((n > 0).then(|| format!("{name}: {n} {what}")));
        }
        // C75xx: products that wait for each other, registers that cannot be moved.
        let said = log.lines().filter(|l| l.contains("(C7") || l.contains("warning"));
        out.extend(said.map(|line| format!("{name}: {line}")));
        let used = log.split("Used ").nth(1).and_then(|l| l.split(' ').next());
        let used: u32 = used.and_then(|n| n.parse().ok()).unwrap_or(u32::MAX);
        out.extend((used > registers_max).then(|| format!("{name}: {used} registers")));
        out
    }

    /// Notes it if fewer than `n` exponentials lie under the products that are still under way
    /// when one has been waited for.
    fn expect_hidden(&self, n: u32, faults: &mut Vec<String>) {
        let Some(sass) = &self.sass else { return };
        let mut lines = sass.lines().skip_while(|l| !l.contains("DEPBAR.LE gsb0, 0x1"));
        lines.next();
        let under = lines.take_while(|l| !l.contains("DEPBAR"));
        let got = under.filter(|l| l.contains("MUFU.EX2")).count();
        let what = format!("{}: {got} exponentials under products, not {n}", self.name);
        faults.extend((got < n as usize).then_some(what));
    }

    /// Notes it if the machine code has another number of an instruction.
    fn expect(&self, opcode: &str, n: usize, faults: &mut Vec<String>) {
        let got = self.count(opcode).unwrap_or(n);
        faults.extend((got != n).then(|| format!("{}: {got} {opcode}, not {n}", self.name)));
    }
}

fn assemble(tools: &Path, source: KernelSource) -> Assembled {
    let name = source.name.clone();
    let object = compile(&hopper(), &[source]).unwrap();
    let folder = tools.join(format!("../{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (ptx, cubin) = (folder.join("kernel.ptx"), folder.join("kernel.cubin"));
    std::fs::write(&ptx, &object.bytes).unwrap();
    let mut ptxas = Command::new(tools.join("ptxas"));
    let out = ptxas.args(["-v", "-arch=sm_90a", "-o"]).args([&cubin, &ptx]).output().unwrap();
    let log = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{name}: {log}");
    let disassembler = tools.join("nvdisasm");
    let sass = disassembler.exists().then(|| {
        let out = Command::new(disassembler).arg("-c").arg(&cubin).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    });
    std::fs::remove_dir_all(&folder).unwrap();
    Assembled { name, log, sass }
}

fn bf16(tile_cols: u32) -> Gemm {
    Gemm {
        kind: Kind::Bf16,
        a_major: Major::K,
        b_major: Major::K,
        scales: None,
        hopper14: None,
        output: Output::Bf16,
        grouping: Grouping::Batch,
        accumulate: false,
        tile_cols,
        store: Store::Paired,
        epilogue: None,
        shares: None,
    }
}

fn e4m3(tile_cols: u32, rows: u32) -> Gemm {
    let scale = |rows| Scales { dtype: ScaleType::F32, rows };
    Gemm { kind: Kind::E4m3, scales: Some([scale(1), scale(rows)]), ..bf16(tile_cols) }
}

/// What a kernel is allowed at its entry: 65,536 registers shared by 384 threads.
const REGISTERS_MAX: u32 = 168;

fn check(gemms: impl IntoIterator<Item = Gemm>) {
    let Some(tools) = tools() else { return };
    let faults: Vec<String> = gemms.into_iter().flat_map(|g| faults(tools, &g)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn faults(tools: &Path, gemm: &Gemm) -> Vec<String> {
    let assembled = assemble(tools, gemm.source("test"));
    let mut faults = assembled.faults(REGISTERS_MAX);
    // Four products a stage, in one place; where a block may end before, one step by itself.
    let opcode = if gemm.kind == Kind::Bf16 { "HGMMA" } else { "QGMMA" };
    let steps = usize::from(gemm.hopper14 == Some(Blocks::Partial));
    assembled.expect(opcode, 4 + steps, &mut faults);
    let blocks = |major: Major, rows: u32| if major == Major::K { 1 } else { rows as usize / 64 };
    let copies = blocks(gemm.a_major, 128) + blocks(gemm.b_major, gemm.tile_cols);
    assembled.expect("UTMALDG", copies, &mut faults);
    // Of bf16 in the loop, and of the last stage behind it.
    let lets_go = if gemm.kind == Kind::Bf16 { 2 } else { 1 };
    let shared = |operand: Operand| gemm.shares == Some(operand);
    let multicast = [
        (Operand::A, blocks(gemm.a_major, 128)),
        (Operand::B, blocks(gemm.b_major, gemm.tile_cols)),
    ];
    let multicast = multicast.iter().filter(|(operand, _)| shared(*operand)).map(|(_, n)| n).sum();
    assembled.expect("UTMALDG.3D.MULTICAST", multicast, &mut faults);
    // Once, before the first stage: what lets go of stages waits for no memory.
    let clusters = usize::from(gemm.shares.is_some());
    assembled.expect("MEMBAR.ALL.GPU", clusters, &mut faults);
    assembled.expect("UCGABAR_ARV", 2 * clusters, &mut faults);
    assembled.expect("SYNCS.ARRIVE.TRANS64.RED", lets_go * clusters, &mut faults);
    // A loop over the threads of a warp around an instruction that one thread should run.
    assembled.expect("BRA.U.ANY", 0, &mut faults);
    faults
}

#[test]
fn products_of_bf16_of_every_width() {
    check(widths(&bf16(64)).into_iter().map(bf16));
}

#[test]
fn products_of_codes_of_every_width() {
    let of = |rows| widths(&e4m3(64, rows)).into_iter().map(move |n| e4m3(n, rows));
    check(of(1).chain(of(128)));
}

#[test]
fn products_of_every_form() {
    let mut gemms = vec![];
    for grouping in [Grouping::Rows, Grouping::Masked, Grouping::Inner] {
        for accumulate in [false, true] {
            let form = |gemm: Gemm| Gemm { grouping, accumulate, output: Output::F32, ..gemm };
            gemms.extend([bf16(128), e4m3(128, 128), e4m3(96, 1)].map(form));
        }
    }
    use Major::{K, Rows};
    let layouts = [(Rows, K), (K, Rows), (Rows, Rows)];
    gemms.extend(layouts.map(|(a_major, b_major)| Gemm {
        a_major,
        b_major,
        store: Store::Single,
        ..bf16(256)
    }));
    for tile_cols in [48, 96, 256] {
        gemms.push(Gemm { store: Store::Tensor, ..bf16(tile_cols) });
    }
    gemms.push(Gemm { store: Store::Tensor, ..e4m3(192, 128) });
    for grouping in [Grouping::Batch, Grouping::Rows, Grouping::Inner] {
        let form = |gemm: Gemm| Gemm { hopper14: Some(Blocks::Partial), grouping, ..gemm };
        gemms.extend([e4m3(192, 128), e4m3(96, 1)].map(form));
    }
    check(gemms);
}

#[test]
fn products_on_clusters() {
    use Major::{K, Rows};
    let mut gemms = vec![];
    for shares in [Operand::A, Operand::B] {
        let form = |gemm: Gemm| Gemm { shares: Some(shares), ..gemm };
        gemms.extend(widths(&bf16(64)).into_iter().map(|n| form(bf16(n))));
        let codes = |rows| widths(&e4m3(64, rows)).into_iter().map(move |n| form(e4m3(n, rows)));
        gemms.extend(codes(1).chain(codes(128)));
        for (a_major, b_major) in [(Rows, K), (K, Rows), (Rows, Rows)] {
            gemms.push(form(Gemm { a_major, b_major, ..bf16(256) }));
        }
        for gemm in [bf16(256), bf16(96), e4m3(192, 128)] {
            gemms.push(form(Gemm { store: Store::Tensor, ..gemm.clone() }));
            gemms.push(form(Gemm { accumulate: true, output: Output::F32, ..gemm }));
        }
        for gemm in [e4m3(192, 128), e4m3(96, 1)] {
            gemms.push(form(Gemm { hopper14: Some(Blocks::Partial), ..gemm }));
        }
    }
    check(gemms);
}

#[test]
fn attention_of_every_form() {
    let Some(tools) = tools() else { return };
    let mut faults = vec![];
    let widths: [(&[u32], u32); 6] =
        [(&[128, 64], 128), (&[64], 64), (&[128], 128), (&[96], 96), (&[256], 256), (&[24, 8], 40)];
    for (parts, v_width) in widths {
        for (causal, segments) in [(false, false), (true, false), (true, true)] {
            let parts = parts.to_vec();
            let attention = Attention { parts, v_width, causal, offset: causal, segments };
            let assembled = assemble(tools, attention.source("test"));
            faults.extend(assembled.faults(REGISTERS_MAX));
            assembled.expect("BRA.U.ANY", 0, &mut faults);
            // The first block, and the loop; the last values.
            let scores: u32 = attention.parts.iter().map(|w| w.div_ceil(16)).sum();
            let block = attention.block_keys() / 16;
            assembled.expect("HGMMA", 2 * (scores + block) as usize, &mut faults);
            assembled.expect_hidden(attention.block_keys() / 2, &mut faults);
            let lines = |w: &u32| w.div_ceil(64);
            let copies = 2 * attention.parts.iter().map(lines).sum::<u32>() + lines(&v_width);
            assembled.expect("UTMALDG", copies as usize, &mut faults);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn derivatives_of_attention_of_every_form() {
    let Some(tools) = tools() else { return };
    let mut faults = vec![];
    let widths: [(&[u32], u32, &[Makes]); 6] = [
        (&[128, 64], 128, &[Makes::Queries, Makes::KeysAndValues]),
        (&[64], 64, &[Makes::Queries, Makes::KeysAndValues]),
        (&[128], 128, &[Makes::Queries, Makes::KeysAndValues]),
        (&[96], 96, &[Makes::KeysAndValues]),
        (&[256], 256, &[Makes::Queries, Makes::Keys, Makes::Values]),
        (&[24, 8], 40, &[Makes::Queries, Makes::KeysAndValues]),
    ];
    for (parts, v_width, all) in widths {
        for makes in all {
            for (causal, segments) in [(true, false), (true, true)] {
                let parts = parts.to_vec();
                let of = Attention { parts, v_width, causal, offset: causal, segments };
                let mut backward = Backward { of, makes: *makes, partial: vec![] };
                backward.partial = vec![false; backward.made_widths().len()];
                let assembled = assemble(tools, backward.source("test"));
                faults.extend(assembled.faults(REGISTERS_MAX));
                assembled.expect("BRA.U.ANY", 0, &mut faults);
                if *makes != Makes::Values {
                    assembled.expect_hidden(backward.columns() / 2, &mut faults);
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn latent_attention_of_every_form() {
    let Some(tools) = tools() else { return };
    let mut faults = vec![];
    for parts in [vec![512, 64], vec![64, 16], vec![256, 32], vec![40, 8]] {
        for (split, paged) in [(false, false), (true, false), (false, true), (true, true)] {
            let of = Decode { parts: parts.clone(), causal: true, offset: true, split, paged };
            let assembled = assemble(tools, of.source("test"));
            faults.extend(assembled.faults(REGISTERS_MAX));
            assembled.expect("BRA.U.ANY", 0, &mut faults);
            // Of each warpgroup the first scores and those of the loop; with values of 64 keys its
            // own weights and the other's, in the loop and behind it, and the last ones alone.
            let scores: u32 = parts.iter().map(|w: &u32| w.div_ceil(16)).sum();
            assembled.expect("HGMMA", (2 * (2 * scores + 4 * 4) + 4) as usize, &mut faults);
            // Queries, and two blocks, whose values are two halves of whole lines.
            let lines = |w: &u32| w.div_ceil(64);
            let rest: u32 = parts[1..].iter().map(lines).sum();
            let values = lines(&parts[0]);
            let copies = values + rest + 2 * (values.next_multiple_of(2) + rest);
            assembled.expect("UTMALDG", copies as usize, &mut faults);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
