//! `weft eval`: logits, losses, gradients and side outputs of a checkpoint on given tokens.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indexmap::IndexMap;
use weft_graph::Role;
use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::formats;
use weft_ir::interp::{Data, Interp, Precision, Tensor};
use weft_ir::module::{FuncId, Init, Module, Part, Store as Stored, StoreKind};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};
use weft_lang::lower::{EmitInfo, Purpose, Settings, Size};
use weft_passes::PassCx;
use weft_runtime::checkpoint::reader::CheckpointReader;
use weft_runtime::checkpoint::tensor_file::{NewTensor, TensorFile, write_tensors};
use weft_runtime::device::{Cpu, DeviceKind};
use weft_runtime::exec::{Program, Session, Store};
use weft_runtime::weights as stored;

use crate::frontend::{self, ModelArgs};
use crate::graphs;
use crate::pipeline::{self, Recorder, ShowArgs};
use crate::policy;
use crate::weights;

/// Compute logits and losses (and gradients) of a checkpoint in f32
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A Hugging Face folder; its config.json decides every dim
    #[arg(long)]
    checkpoint: PathBuf,
    /// A safetensors file with `tokens`, integers [batch, sequence]
    #[arg(long)]
    tokens: PathBuf,
    /// Also `grad.NAME` of the objective for every weight
    #[arg(long)]
    grads: bool,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
    /// The safetensors file to write
    #[arg(short, long)]
    output: PathBuf,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Device {
    /// Compiled kernels
    Cpu,
    /// Kernels for GPUs, run by an interpreter on one core: slow, and looks for races
    Ptx,
    /// The first GPU that runs them (Hopper)
    Cuda,
    /// The reference interpreter
    Interp,
}

pub fn run(args: Args) -> Result<()> {
    let checkpoint = CheckpointReader::open(&args.checkpoint)?;
    let source = frontend::load(&args.model.model)?;
    let tree = source.elaborate(&args.model.overrides(Some(checkpoint.config().clone()))?)?;
    let tokens = read_tokens(&args.tokens)?;
    let settings = Settings {
        batch: Size::Fixed(tokens.dims[0] as u64),
        seq: Size::Fixed(tokens.dims[1] as u64),
        segments: false,
        cache: None,
    };
    let lowered = source.lower(&tree, Purpose::Train, settings)?;
    weights::check_stored(&tree, &lowered.module, &checkpoint)?;
    let emits = lowered.emits.clone();
    let policy = policy::policy(&lowered);
    let mut module = lowered.module;
    // Gradients are those of what is published; the passes may store a weight as something else.
    let published = module.stores.clone();
    let mut recorder = Recorder::new(&args.show)?;
    recorder.input("lower", &module)?;
    let cx = PassCx { gradients: args.grads, policy, ..PassCx::default() };
    pipeline::run(&mut module, &cx, None, (None, &[]), &mut recorder)?;
    recorder.finish(&module)?;
    let results = match args.device {
        Device::Cpu => compute(DeviceKind::Cpu, &module, args.grads, &tokens, &checkpoint)?,
        Device::Ptx => compute(DeviceKind::Ptx, &module, args.grads, &tokens, &checkpoint)?,
        Device::Cuda => compute(DeviceKind::Cuda, &module, args.grads, &tokens, &checkpoint)?,
        Device::Interp => interpret(&module, args.grads, &tokens, &checkpoint)?,
    };
    let outputs = named_outputs(&published, &emits, results)?;
    for name in ["loss", "mtp_loss", "total"] {
        if let Some(t) = outputs.get(name) {
            println!("{name} {:.7}", t.numbers()[0]);
        }
    }
    write(&args.output, &outputs)?;
    println!("{} tensors in {}", outputs.len(), args.output.display());
    Ok(())
}

pub fn read_tokens(path: &Path) -> Result<Tensor> {
    let file = TensorFile::open(path)?;
    let Some(info) = file.info("tokens") else {
        bail!("{}: expected a tensor `tokens`, found none", path.display());
    };
    let [batch, seq] = info.shape[..] else {
        bail!("{}: `tokens` is [batch, sequence], found {:?}", path.display(), info.shape);
    };
    let ids = file.read_i32("tokens")?.into_iter().map(i64::from).collect();
    Ok(Tensor::i32(&[batch as usize, seq as usize], ids))
}

/// Run `@grad` or `@loss`; results by name.
fn interpret(
    module: &Module,
    grads: bool,
    tokens: &Tensor,
    checkpoint: &CheckpointReader,
) -> Result<IndexMap<String, Tensor>> {
    let entry = if grads { "grad" } else { "loss" };
    let id = module.find(entry).with_context(|| format!("the module has no @{entry}"))?;
    let args = arguments(module, id, tokens, checkpoint)?;
    let results = Interp::new(module, Precision::Stated).run(id, args)?;
    Ok(module.func(id).result_names.iter().cloned().zip(results).collect())
}

/// What the interpreter hands an entry: tokens, schedules, weights and states.
pub fn arguments(
    module: &Module,
    entry: FuncId,
    tokens: &Tensor,
    checkpoint: &CheckpointReader,
) -> Result<Vec<Tensor>> {
    let func = module.func(entry);
    let mut args = vec![];
    for param in &func.params {
        let name = func.value(*param).name.as_deref().unwrap_or("");
        if name == "tokens" {
            args.push(tokens.clone());
            continue;
        }
        let Some(store) = module.stores.get(name) else {
            bail!("@{} has the input `{name}`, which is nowhere to be read", func.name);
        };
        let dims: Vec<usize> =
            store.ty.dims.iter().map(|d| d.as_fixed().unwrap_or(1) as usize).collect();
        args.push(match (store.kind, store.init) {
            (StoreKind::Schedule, Init::Constant(x)) => Tensor::full(DType::F32, &dims, x),
            _ => {
                let dtype = store.ty.dtype;
                let data = weights::read(store, checkpoint)?.into_iter();
                if let Some((part, of)) = &store.part {
                    args.push(part_of(*part, of, data.map(f64::from).collect())?);
                    continue;
                }
                let rounded = data.map(|x| f64::from(formats::round(dtype, x)));
                Tensor::float(dtype, &dims, rounded.collect())
            }
        });
    }
    Ok(args)
}

/// The same with compiled kernels.
pub fn compute(
    device: DeviceKind,
    module: &Module,
    grads: bool,
    tokens: &Tensor,
    checkpoint: &CheckpointReader,
) -> Result<IndexMap<String, Tensor>> {
    let entry = if grads { "grad" } else { "loss" };
    let threads = Cpu::threads_here();
    let graph = graphs::compiled(module, &[entry], device.into())?;
    let device = device.open(threads)?;
    let program = Program::load(graph, device.clone())?;
    let store = Store::new(device);
    let mut session = Session::new(&program, entry, &store)?;
    stored::load(&store, checkpoint)?;
    let buffers = session.entry().buffers.clone();
    for input in buffers.iter().filter(|b| matches!(b.role, Role::Input)) {
        if input.name == "tokens" {
            let ids: Vec<i32> = tokens.numbers().into_iter().map(|t| t as i32).collect();
            session.write_input("tokens", &ids)?;
            continue;
        }
        match module.stores.get(&input.name).map(|s| (s.kind, s.init)) {
            Some((StoreKind::Schedule, Init::Constant(x))) => {
                session.write_input(&input.name, &[x as f32])?
            }
            _ => bail!("@{entry} has the input `{}`, which eval does not know", input.name),
        }
    }
    session.run()?;
    let mut results = IndexMap::new();
    for output in buffers.iter().filter(|b| matches!(b.role, Role::Output)) {
        let dims = session.shape_of(&output.name)?;
        let tensor = match output.dtype {
            weft_graph::DType::I32 => {
                let ids = session.read_output::<i32>(&output.name)?;
                Tensor::i32(&dims, ids.into_iter().map(i64::from).collect())
            }
            _ => {
                let values = session.read_output::<f32>(&output.name)?;
                Tensor::f32(&dims, values.into_iter().map(f64::from).collect())
            }
        };
        results.insert(output.name.clone(), tensor);
    }
    Ok(results)
}

/// Codes or scales of a weight, as the interpreter makes them.
fn part_of(part: Part, of: &Type, values: Vec<f64>) -> Result<Tensor> {
    let quant = of.quant.as_ref().context("codes are of a quantized type")?;
    let mut b = Builder::new("encode");
    let x = b.param("x", Type::f32(of.dims.clone()));
    let attrs = Attrs::new()
        .with("dtype", Attr::DType(of.dtype))
        .ints("group", quant.group.map(i64::from))
        .with("scale", Attr::DType(quant.scale));
    let parts = b.emit_all(Op::Encode, &[x], attrs)?;
    let mut module = Module::default();
    let func = module.add_func(b.finish(parts));
    let dims: Vec<usize> = of.dims.iter().map(|d| d.as_fixed().unwrap_or(1) as usize).collect();
    let x = Tensor::float(DType::F32, &dims, values);
    let mut parts = Interp::new(&module, Precision::Stated).run(func, vec![x])?;
    Ok(parts.swap_remove(match part {
        Part::Codes => 0,
        Part::Scales => 1,
    }))
}

/// Results under the names that users of checkpoints know.
fn named_outputs(
    stores: &IndexMap<String, Stored>,
    emits: &[EmitInfo],
    results: IndexMap<String, Tensor>,
) -> Result<IndexMap<String, Tensor>> {
    let mut out = IndexMap::new();
    for (name, tensor) in results {
        if name == "logits" {
            out.insert(name, tensor);
        } else if let Some(metric) = name.strip_prefix("metric.") {
            out.insert(metric.to_string(), tensor);
        } else if let Some(store) = name.strip_prefix("grad.") {
            let Some(store) = stores.get(store) else {
                bail!("a gradient of `{store}`, which is no store");
            };
            for (slice, name) in weights::names(store, 0).into_iter().enumerate() {
                let dims: Vec<usize> =
                    weights::slice_dims(store).iter().map(|d| *d as usize).collect();
                out.insert(format!("grad.{name}"), slice_of(&tensor, slice, &dims));
            }
        } else if let Some(info) = emits.iter().find(|e| e.result == name) {
            emitted(info, &tensor, &mut out);
        }
    }
    Ok(out)
}

/// Choices of experts as `router.LAYER` i64 [tokens, active], sorted; logits of prediction module k
/// as `mtp_logits` (`mtp_logits.K` if there are several) without the rows that have nothing to
/// predict.
fn emitted(info: &EmitInfo, tensor: &Tensor, out: &mut IndexMap<String, Tensor>) {
    let [n, batch, seq, last] = tensor.dims[..] else { return };
    for slice in 0..n {
        let part = slice_of(tensor, slice, &[batch, seq, last]);
        match info.name.as_str() {
            "router" => {
                let mut ids = match &part.data {
                    Data::Int(ids) => ids.clone(),
                    _ => continue,
                };
                ids.chunks_mut(last).for_each(|row| row.sort());
                let layer = info.starts.last().copied().unwrap_or(0) + slice as u64;
                out.insert(format!("router.{layer}"), Tensor::i32(&[batch * seq, last], ids));
            }
            "mtp_logits" => {
                let kept = seq.saturating_sub(slice + 1);
                let all = part.numbers();
                let rows = (0..batch).flat_map(|b| {
                    let from = b * seq * last;
                    all[from..from + kept * last].iter().copied()
                });
                let name = match n {
                    1 => "mtp_logits".to_string(),
                    _ => format!("mtp_logits.{}", slice + 1),
                };
                out.insert(name, Tensor::f32(&[batch, kept, last], rows.collect()));
            }
            _ => {}
        }
    }
}

/// The `n`-th of the stacked tensors of `dims`.
fn slice_of(t: &Tensor, n: usize, dims: &[usize]) -> Tensor {
    let len: usize = dims.iter().product();
    let range = n * len..(n + 1) * len;
    match &t.data {
        Data::Int(v) => Tensor::i32(dims, v[range].to_vec()),
        _ => Tensor::f32(dims, t.numbers()[range].to_vec()),
    }
}

fn write(path: &Path, outputs: &IndexMap<String, Tensor>) -> Result<()> {
    let floats: Vec<Vec<f32>> =
        outputs.values().map(|t| t.numbers().into_iter().map(|x| x as f32).collect()).collect();
    let tensors: Vec<NewTensor> = outputs
        .iter()
        .zip(&floats)
        .map(|((name, t), data)| {
            let shape: Vec<u64> = t.dims.iter().map(|d| *d as u64).collect();
            match &t.data {
                Data::Int(ids) => NewTensor::i64(name, &shape, ids),
                _ => NewTensor::f32(name, &shape, data),
            }
        })
        .collect();
    write_tensors(path, &tensors)?;
    Ok(())
}
