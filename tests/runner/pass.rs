//! `pass NAME, .. [with OPTION, ..]`: runs the passes on the module; what they leave is verified,
//! prints as `// expect:` says, and computes in f64 what the functions of the same signature
//! computed before, on all ranks where there are several.
//!
//! Options: `gradients`, `apart`, `two_batches`, `staggered`, `everything`, `no_wide` (saved),
//! `micro_batches=N`, `data=N` (ranks), `experts=N` of them, `tensor=N`, `sequence` (those divide
//! tokens), `zero`, `watch=SITE`, `communication_sms=N`, `redundant=N` (copies of experts),
//! `exchange_capacity=N`, `pages=PAGESxPOSITIONS`, `in_order_from=QUERIES`. If the last pass must
//! refuse the input, the expectation is `error: ..`.

use weft_ir::dim::{SymId, SymKind};
use weft_ir::interp::{Interp, Precision, Range, Sizes, Tensor, random_args};
use weft_ir::module::{Func, Module};
use weft_ir::op::Trait;
use weft_ir::text;
use weft_ir::ty::{DType, Type};
use weft_ir::verify::verify;
use weft_passes::policy::{Format, Product, Recipe};
use weft_passes::{
    Copies, ExpertGradients, Mesh, Pages, PassCx, Pipeline, Save, Sums, Train, by_name, run_pass,
};
use weft_schedule::{Name, Size, generate};

use crate::case::{Case, Outcome, all, without_places};
use crate::values::agree;

pub fn run(case: &Case) -> Result<Outcome, String> {
    let before = case.verified()?;
    let mut after = before.clone();
    let (names, options) = case.args.split_once(" with ").unwrap_or((&case.args, ""));
    let cx = context(options)?;
    for (i, name) in names.split(',').map(str::trim).enumerate() {
        let pass = by_name(name).ok_or_else(|| format!("no pass `{name}`"))?;
        if let Err(e) = run_pass(i + 1, pass, &mut after, &cx) {
            return case.compare(&format!("error: {}", e.why));
        }
        let shown = |e: String| format!("after {name}: {e}\n{}", text::print(&after));
        verify(&after).map_err(|e| shown(all(&e)))?;
        same_numbers(&before, &after).map_err(shown)?;
    }
    case.compare(&functions(&before, &after))
}

fn context(options: &str) -> Result<PassCx, String> {
    let mut cx = PassCx::default();
    for option in options.split(',').map(str::trim).filter(|o| !o.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("gradients", "") => cx.gradients = true,
            ("apart", "") => cx.apart = true,
            ("two_batches", "") => cx.two_batches = true,
            ("staggered", "") => cx.staggered = true,
            ("redundant", n) => {
                let redundant = n.parse().map_err(|_| "redundant is a number")?;
                cx.copies = Some(Copies { redundant, lines: vec![] });
            }
            ("exchange_capacity", n) => {
                let capacity = n.parse().map_err(|_| "exchange_capacity is a number")?;
                cx.mesh.get_or_insert_default().exchange_capacity = Some(capacity);
            }
            // As `pages=PAGESxPOSITIONS`.
            ("pages", pool) => {
                let size = pool.split_once('x');
                let size = size.and_then(|(p, n)| Some((p.parse().ok()?, n.parse().ok()?)));
                let (count, size) = size.ok_or("pages are PAGESxPOSITIONS")?;
                cx.pages = Some(Pages { count, size, in_order_from: None });
            }
            ("in_order_from", n) => {
                let n = n.parse().map_err(|_| "in_order_from is a number")?;
                let pages = cx.pages.as_mut().ok_or("it comes after pages=")?;
                pages.in_order_from = Some(n);
            }
            ("everything", "") => cx.save = Save::Everything,
            ("handed", "") => cx.save = Save::Handed,
            ("no_wide", "") => cx.save = Save::NoWide,
            ("communication_sms", n) => {
                let n = n.parse().map_err(|_| "communication_sms is a number")?;
                cx.mesh.get_or_insert_default().communication_sms = n;
            }
            ("at_experts", "") => {
                let mesh = cx.mesh.get_or_insert_default();
                mesh.expert_gradients = ExpertGradients::AtExperts;
            }
            ("watch", site) => cx.watch.push(site.to_string()),
            ("data", n) => {
                let data = n.parse().map_err(|_| "data is a number")?;
                cx.mesh = Some(Mesh { data, ..Mesh::default() });
            }
            ("tensor", n) => {
                let tensor = n.parse().map_err(|_| "tensor is a number")?;
                cx.mesh = Some(Mesh { tensor, ..cx.mesh.unwrap_or_default() });
            }
            ("sequence", "") => cx.mesh.as_mut().ok_or("it comes after tensor=N")?.sequence = true,
            ("experts", n) => {
                let experts = n.parse().map_err(|_| "experts is a number")?;
                cx.mesh.as_mut().ok_or("experts comes after data=N")?.experts = experts;
            }
            ("zero", "") => cx.mesh.as_mut().ok_or("zero comes after data=N")?.zero = true,
            // As `1f1b=RANKSxMICRO_BATCHES/PLACE`.
            (name, size) if Name::parse(name).is_ok() => {
                cx.pipeline = Some(pipeline(name, size).ok_or(format!("no pipeline {size}"))?);
            }
            ("micro_batches", n) => {
                let micro_batches = n.parse().map_err(|_| "micro_batches is a number")?;
                let (beta1, beta2, eps, decay, clip) = (0.9, 0.95, 1e-8, 0.1, Some(1.0));
                let moments = DType::F32;
                cx.train = Some(Train {
                    micro_batches,
                    sums: Sums::Tree,
                    beta1,
                    beta2,
                    eps,
                    decay,
                    clip,
                    moments,
                });
            }
            ("fp8", site) => {
                cx.policy.insert(site.into(), fp8());
            }
            // As `fp8`, but rows travel to it as they are.
            ("plain", site) => {
                let recipe = Recipe { dispatched: None, dispatched_plain: true, ..fp8() };
                cx.policy.insert(site.into(), recipe);
            }
            // As `fp8`, but its forward product reads E5M6.
            ("e5m6", site) => {
                let mut recipe = fp8();
                recipe.forward.operands.iter_mut().flatten().for_each(|f| f.dtype = DType::E5m6);
                cx.policy.insert(site.into(), recipe);
            }
            _ => return Err(format!("no option `{option}`")),
        }
    }
    Ok(cx)
}

/// The pipeline of a published schedule, from `RANKSxMICRO_BATCHES/PLACE`.
fn pipeline(name: &str, size: &str) -> Option<Pipeline> {
    let (counts, place) = size.split_once('/')?;
    let (n_ranks, n) = counts.split_once('x')?;
    let (n_ranks, n_micro_batches) = (n_ranks.parse().ok()?, n.parse().ok()?);
    let name = Name::parse(name).ok()?;
    let stages_per_rank = name.stages_per_rank().unwrap_or(2);
    let table = generate(name, Size { n_ranks, n_micro_batches, stages_per_rank }).ok()?;
    Some(Pipeline { table, place: place.parse().ok()?, layers: None })
}

/// E4M3 with a scale for 1x128 of activations and gradients and 128x128 of weights; inputs are
/// saved in E5M6, and dispatched with powers of two.
fn fp8() -> Recipe {
    let format = |group| Format { dtype: DType::E4m3, group, scale: DType::F32, floor: 0.0 };
    let product = |a, b| Product {
        operands: Some([format(a), format(b)]),
        hopper14: false,
        promote: Some(128),
    };
    Recipe {
        forward: product([1, 128], [128, 128]),
        input_grad: product([1, 128], [128, 128]),
        weight_grad: product([128, 1], [128, 1]),
        saved_input: Some(Format { dtype: DType::E5m6, scale: DType::Ue8m0, ..format([1, 128]) }),
        saved_output: Some(format([1, 128])),
        dispatched: Some(Format { scale: DType::Ue8m0, ..format([1, 128]) }),
        dispatched_plain: false,
    }
}

/// Functions that kept name and signature give the same numbers on drawn arguments, with symbols of
/// 2 or their bound.
fn same_numbers(before: &Module, after: &Module) -> Result<(), String> {
    let mut sizes = Sizes::new();
    for (i, sym) in before.syms.iter().enumerate() {
        if let SymKind::Bounded { max } = sym.kind {
            sizes.insert(SymId(i as u32), max.min(2));
        }
    }
    let range = |_: usize, ty: &Type| {
        if ty.dtype.is_int() {
            Range { low: 0.0, high: 2.0 }
        } else {
            Range { low: 0.1, high: 1.0 }
        }
    };
    for id in before.func_ids() {
        let f = before.func(id);
        let Some(g) = after.find(&f.name).filter(|g| signature(f) == signature(after.func(*g)))
        else {
            continue;
        };
        let same = before.n_ranks() == after.n_ranks() && !talks(f);
        let n = if same { before.n_ranks() } else { 1 };
        let args = (1..=n).map(|seed| random_args(before, id, &sizes, seed, &range));
        let args = args.collect::<Result<Vec<_>, _>>()?;
        // Arguments that the input itself has no value for, offsets for instance, say nothing.
        let run = |m, f| {
            let interp = Interp::new(m, Precision::F64);
            match &args[..] {
                [one] => interp.run_sized(f, one.clone(), &sizes),
                all => interp.run_ranks(f, all.to_vec(), &sizes).map(|ranks| ranks.concat()),
            }
        };
        let Ok(expected) = run(before, id) else { continue };
        let found = run(after, g).map_err(|e| e.to_string())?;
        let numbers = |r: &[Tensor]| r.iter().map(Tensor::numbers).collect::<Vec<_>>();
        let same = agree(&numbers(&found), &numbers(&expected), 1e-9);
        same.map_err(|e| format!("@{} computes something else: {e}", f.name))?;
    }
    Ok(())
}

/// Ranks that send each other messages have programs of their own.
fn talks(f: &Func) -> bool {
    f.body_ops().any(|(_, op)| op.op.has(Trait::Message))
}

fn signature(f: &Func) -> (Vec<&Type>, Vec<&Type>) {
    let types = |ids: &[weft_ir::module::ValueId]| ids.iter().map(|v| f.ty(*v)).collect();
    (types(&f.params), types(&f.results))
}

/// The functions without places, and the lines above them that the passes added.
fn functions(before: &Module, after: &Module) -> String {
    let [before, after] = [before, after].map(|m| text::print(&without_places(m)));
    let split = |text: &str| {
        let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
        (head.to_string(), body.to_string())
    };
    let ((known, _), (head, body)) = (split(&before), split(&after));
    let added = head.lines().filter(|l| !known.lines().any(|k| k == *l));
    added.map(|l| format!("{l}\n")).collect::<String>() + &body
}
