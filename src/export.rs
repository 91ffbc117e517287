//! `weft export`: a checkpoint in another form. `--fp8` is the published one: weights of quantized
//! products as e4m3 codes, a f32 scale for each block of them beside it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weft_ir::formats::{BF16, E4M3, decode_ue8m0, encode_ue8m0};
use weft_ir::module::StoreKind;
use weft_ir::ty::DType;
use weft_lang::lower::{Purpose, Settings, Size};
use weft_lang::settings::gemm::Format;
use weft_runtime::checkpoint::Dtype;
use weft_runtime::checkpoint::fp8::{SCALE_SUFFIX, scale_shape};
use weft_runtime::checkpoint::reader::CheckpointReader;
use weft_runtime::checkpoint::shards::ShardWriter;
use weft_runtime::checkpoint::tensor_file::NewTensor;
use weft_runtime::generate::command::checkpoint_folder;

use crate::frontend::{self, ModelArgs};
use crate::published::Published;
use crate::weights;

/// Write a checkpoint in another form
#[derive(clap::Args)]
pub struct Args {
    /// The model; --precision says which weights become codes [default: deepseek_fp8]
    #[command(flatten)]
    model: ModelArgs,
    /// A Hugging Face folder, or the folder of a run, whose newest checkpoint is taken; its
    /// config.json decides every dim
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Write e4m3 with a scale for each block, and what is not quantized in bf16
    #[arg(long, required = true)]
    fp8: bool,
    /// The folder to write; there must be none of that name
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

/// The precision block that `--fp8` means.
const FP8: &str = "deepseek_fp8";

/// A file of weights is closed when it would grow beyond this; a tensor is never cut.
const SHARD_BYTES_MAX: usize = 4 << 30;

/// What else a model's folder may hold and a new one needs.
const FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
];

pub fn run(args: Args) -> Result<()> {
    let folder = checkpoint_folder(&args.checkpoint)?;
    let checkpoint = CheckpointReader::open(&folder)?;
    let source = frontend::load(&args.model.model)?;
    let mut overrides = args.model.overrides(Some(checkpoint.config().clone()))?;
    let name = overrides.precision.get_or_insert_with(|| FP8.into()).clone();
    let tree = source.elaborate(&overrides)?;
    let one = Size::Fixed(1);
    let settings = Settings { batch: one, seq: one, segments: false, cache: None };
    let lowered = source.lower(&tree, Purpose::Infer, settings)?;
    weights::check_stored(&tree, &lowered.module, &checkpoint)?;
    let published = Published::of(&tree, &lowered)?;
    let Some(block) = published.block()? else {
        bail!("--precision {name} quantizes no weight: there is nothing to write as codes");
    };
    let mut shards = ShardWriter::create(&args.output, SHARD_BYTES_MAX)?;
    let mut n_tensors = 0;
    for (path, store) in &lowered.module.stores {
        if store.kind == StoreKind::Schedule {
            continue;
        }
        let (shape, dtype) = (weights::slice_dims(store), published.dtype(path, store));
        let originals = weights::names(store, 0);
        for which in 0..store.templates.len() {
            for (name, original) in weights::names(store, which).iter().zip(&originals) {
                let values = checkpoint.read_f32(original, &shape)?;
                let tensors = match published.format(path) {
                    Some(format) => coded(name, &shape, &values, &format)?.to_vec(),
                    None => vec![plain(name, &shape, &values, dtype)],
                };
                n_tensors += tensors.len();
                tensors.into_iter().try_for_each(|t| shards.add(t))?;
            }
        }
    }
    let config = config(checkpoint.config(), block)?;
    let bytes = shards.finish(&config, &others(&folder)?)?;
    println!("{n_tensors} tensors, {bytes} bytes in {}", args.output.display());
    Ok(())
}

fn plain(name: &str, shape: &[u64], values: &[f32], dtype: Dtype) -> NewTensor<'static> {
    let bytes: Vec<u8> = match dtype {
        Dtype::BF16 => values.iter().flat_map(|x| BF16.encode(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    NewTensor::new(name, dtype, shape, bytes)
}

/// The codes of a matrix and its scales: of each block amax / 448, or the power of two from there
/// up; 1 where all is zero.
fn coded(
    name: &str,
    shape: &[u64],
    values: &[f32],
    format: &Format,
) -> Result<[NewTensor<'static>; 2]> {
    let &[rows, cols] = shape else {
        bail!("`{name}` is no matrix: only those have blocks");
    };
    if values.iter().any(|x| !x.is_finite()) {
        bail!("`{name}` holds what is not a finite number: no scale fits it");
    }
    let block = format.group.map(u64::from);
    let scales_shape = scale_shape([rows, cols], block);
    let mut amax = vec![0f32; (scales_shape[0] * scales_shape[1]) as usize];
    let at = |i: usize| {
        let (r, c) = (i as u64 / cols, i as u64 % cols);
        (r / block[0] * scales_shape[1] + c / block[1]) as usize
    };
    for (i, x) in values.iter().enumerate() {
        amax[at(i)] = amax[at(i)].max(x.abs());
    }
    let scale = |amax: &f32| match (*amax / E4M3.decode(E4M3.max), format.scale) {
        (0.0, _) => 1.0,
        (s, DType::Ue8m0) => decode_ue8m0(encode_ue8m0(s)),
        (s, _) => s,
    };
    let scales: Vec<f32> = amax.iter().map(scale).collect();
    let code = |(i, x): (usize, &f32)| E4M3.encode(x / scales[at(i)]) as u8;
    let codes: Vec<u8> = values.iter().enumerate().map(code).collect();
    Ok([
        NewTensor::new(name, Dtype::F8_E4M3, shape, codes),
        plain(&format!("{name}{SCALE_SUFFIX}"), &scales_shape, &scales, Dtype::F32),
    ])
}

/// The checkpoint's own, and how its weights are quantized.
fn config(own: &Value, block: [u32; 2]) -> Result<Value> {
    let mut config = own.as_object().context("config.json is an object")?.clone();
    for key in ["dtype", "torch_dtype"] {
        if config.contains_key(key) {
            config.insert(key.into(), "bfloat16".into());
        }
    }
    let quantization = json!({
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": block,
    });
    config.insert("quantization_config".into(), quantization);
    Ok(config.into())
}

fn others(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = vec![];
    for name in FILES {
        let path = folder.join(name);
        if path.exists() {
            let bytes =
                std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            files.push((name.to_string(), bytes));
        }
    }
    Ok(files)
}
