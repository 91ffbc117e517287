//! Reads Hugging Face checkpoints, whole or in shards, quantized or not, and those of training.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fp8::SCALE_SUFFIX;
use super::tensor_file::TensorFile;
use super::{
    CONFIG, CheckpointError, Dtype, OPTIMIZER, STATE, TensorInfo, WEIGHTS, WEIGHTS_INDEX, digests,
    fp8,
};

/// A checkpoint opened for reading.
#[derive(Debug)]
pub struct CheckpointReader {
    folder: PathBuf,
    config: Value,
    files: Vec<TensorFile>,
    /// By name, the file a tensor is in.
    file_of: BTreeMap<String, usize>,
    block: [u64; 2],
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl CheckpointReader {
    /// Opens a folder. If it has digests, every file is read and checked against them first.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        if digests::present(folder) {
            digests::verify(folder)?;
        }
        let config_path = folder.join(CONFIG);
        let config: Value = read_json(&config_path)?;
        let block = weight_block(&config)
            .map_err(|reason| CheckpointError::Json { path: config_path, reason })?;
        let mut reader = Self {
            folder: folder.to_owned(),
            config,
            files: Vec::new(),
            file_of: BTreeMap::new(),
            block,
        };
        reader.open_weights()?;
        Ok(reader)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The weights in order of name. The scales of quantized weights belong to them and are not
    /// listed.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.file_of
            .iter()
            .filter(|(name, _)| !self.is_scale(name))
            .filter_map(|(name, &file)| self.files[file].info(name))
    }

    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.files[*self.file_of.get(name)?].info(name)
    }

    /// A weight of this shape as f32, from f32, bf16, f16, or e4m3 with its scales.
    pub fn read_f32(&self, name: &str, shape: &[u64]) -> Result<Vec<f32>, CheckpointError> {
        let file = self.file(name)?;
        let (info, _) = file.tensor(name)?;
        if info.shape != shape {
            return Err(file.wrong(name, format!("{shape:?}"), format!("{:?}", info.shape)));
        }
        let mut out = vec![0.0; info.n_elements() as usize];
        self.read_f32_into(name, shape, &mut out)?;
        Ok(out)
    }

    /// As [`Self::read_f32`], into `out`, which has as many elements as `shape`.
    pub fn read_f32_into(
        &self,
        name: &str,
        shape: &[u64],
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let file = self.file(name)?;
        let (info, _) = file.tensor(name)?;
        if info.dtype != Dtype::F8_E4M3 {
            return file.read_f32_into(name, shape, out);
        }
        let &[rows, columns] = shape else {
            return Err(file.wrong(name, "a matrix, as e4m3 is scaled in blocks", info));
        };
        let scale_name = format!("{name}{SCALE_SUFFIX}");
        let scale_shape = fp8::scale_shape([rows, columns], self.block);
        let scales = self.file(&scale_name)?.read_f32(&scale_name, &scale_shape)?;
        file.dequantize_into(name, [rows, columns], &scales, self.block, out)
    }

    /// The bytes of a weight as stored, which must be of this type and shape.
    pub fn bytes(&self, name: &str, dtype: Dtype, shape: &[u64]) -> Result<&[u8], CheckpointError> {
        self.file(name)?.bytes(name, dtype, shape)
    }

    /// The optimizer's tensors, of a checkpoint that training wrote.
    pub fn optimizer(&self) -> Result<TensorFile, CheckpointError> {
        TensorFile::open(&self.folder.join(OPTIMIZER))
    }

    /// What training wrote besides tensors.
    pub fn state<S: DeserializeOwned>(&self) -> Result<S, CheckpointError> {
        read_json(&self.folder.join(STATE))
    }

    fn open_weights(&mut self) -> Result<(), CheckpointError> {
        let index = self.folder.join(WEIGHTS_INDEX);
        let single = self.folder.join(WEIGHTS);
        if index.exists() {
            return self.open_shards(&index);
        }
        if !single.exists() {
            return Err(CheckpointError::NoWeights { folder: self.folder.clone() });
        }
        let file = TensorFile::open(&single)?;
        self.file_of = file.tensors().map(|t| (t.name.clone(), 0)).collect();
        self.files.push(file);
        Ok(())
    }

    fn open_shards(&mut self, index: &Path) -> Result<(), CheckpointError> {
        let ShardIndex { weight_map } = read_json(index)?;
        let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
        for (tensor, shard) in &weight_map {
            if shard.contains(['/', '\\']) {
                let reason = format!("`{tensor}`: expected a plain file name, found `{shard}`");
                return Err(CheckpointError::Json { path: index.to_owned(), reason });
            }
            let at = match shards.get(shard.as_str()) {
                Some(&at) => at,
                None => {
                    self.files.push(TensorFile::open(&self.folder.join(shard))?);
                    shards.insert(shard, self.files.len() - 1);
                    self.files.len() - 1
                }
            };
            self.files[at].tensor(tensor)?;
            self.file_of.insert(tensor.clone(), at);
        }
        Ok(())
    }

    fn file(&self, name: &str) -> Result<&TensorFile, CheckpointError> {
        match self.file_of.get(name) {
            Some(&at) => Ok(&self.files[at]),
            None => Err(CheckpointError::NoTensor {
                path: self.weights_path(),
                tensor: name.to_owned(),
            }),
        }
    }

    /// What a message about a missing tensor points at: the file, or the index of the shards.
    fn weights_path(&self) -> PathBuf {
        let index = self.folder.join(WEIGHTS_INDEX);
        if index.exists() { index } else { self.folder.join(WEIGHTS) }
    }

    fn is_scale(&self, name: &str) -> bool {
        name.strip_suffix(SCALE_SUFFIX).is_some_and(|weight| self.file_of.contains_key(weight))
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    let bytes = fs::read(path).map_err(CheckpointError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(CheckpointError::json(path))
}

/// `quantization_config.weight_block_size`, two positive numbers where it is given.
fn weight_block(config: &Value) -> Result<[u64; 2], String> {
    let Some(given) = config.pointer("/quantization_config/weight_block_size") else {
        return Ok(fp8::BLOCK);
    };
    if given.is_null() {
        return Ok(fp8::BLOCK);
    }
    match serde_json::from_value::<[u64; 2]>(given.clone()) {
        Ok(block) if block.iter().all(|&n| n > 0) => Ok(block),
        _ => Err(format!("weight_block_size: expected two positive numbers, found {given}")),
    }
}
