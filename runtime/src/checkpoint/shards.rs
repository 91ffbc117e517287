//! Writes a model without a run: weights tensor by tensor, in files of bounded size, as published
//! checkpoints of large models are.
//!
//! What is held at once is one file's tensors. The folder has its name when all of it is on disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::tensor_file::{NewTensor, write_tensors};
use super::writer::{self, remove_if_there, rename, sync, temporary_name, write_json};
use super::{CONFIG, CheckpointError, WEIGHTS, WEIGHTS_INDEX};

/// A folder that is being filled.
pub struct ShardWriter {
    folder: PathBuf,
    temporary: PathBuf,
    shard_bytes_max: usize,
    waiting: Vec<NewTensor<'static>>,
    waiting_bytes: usize,
    /// By name, the shard a tensor is in.
    shard_of: BTreeMap<String, usize>,
    n_shards: usize,
    total_bytes: usize,
}

impl ShardWriter {
    /// `folder` must not exist.
    pub fn create(folder: &Path, shard_bytes_max: usize) -> Result<Self, CheckpointError> {
        if folder.exists() {
            return Err(CheckpointError::Exists { folder: folder.to_owned() });
        }
        let parent = writer::parent_of(folder);
        fs::create_dir_all(parent).map_err(CheckpointError::io("create", parent))?;
        let temporary = temporary_name(folder, "");
        remove_if_there(&temporary)?;
        fs::create_dir(&temporary).map_err(CheckpointError::io("create", &temporary))?;
        Ok(Self {
            folder: folder.to_owned(),
            temporary,
            shard_bytes_max,
            waiting: vec![],
            waiting_bytes: 0,
            shard_of: BTreeMap::new(),
            n_shards: 0,
            total_bytes: 0,
        })
    }

    pub fn add(&mut self, tensor: NewTensor<'static>) -> Result<(), CheckpointError> {
        let size_bytes = tensor.data.len();
        let full = self.waiting_bytes + size_bytes > self.shard_bytes_max;
        if full && !self.waiting.is_empty() {
            self.flush()?;
        }
        if self.shard_of.insert(tensor.name.clone(), self.n_shards).is_some() {
            return Err(CheckpointError::Tensor {
                path: self.folder.clone(),
                tensor: tensor.name,
                expected: "one tensor of that name".into(),
                found: "two".into(),
            });
        }
        self.waiting_bytes += size_bytes;
        self.total_bytes += size_bytes;
        self.waiting.push(tensor);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CheckpointError> {
        write_tensors(&self.temporary.join(unnumbered(self.n_shards)), &self.waiting)?;
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.n_shards += 1;
        Ok(())
    }

    /// The rest of the folder; when this returns, it is durable. Returns its bytes of tensors.
    pub fn finish(
        mut self,
        config: &Value,
        files: &[(String, Vec<u8>)],
    ) -> Result<usize, CheckpointError> {
        if !self.waiting.is_empty() || self.n_shards == 0 {
            self.flush()?;
        }
        let mut names = self.name_shards()?;
        write_json(&self.temporary.join(CONFIG), config)?;
        names.push(CONFIG.into());
        for (name, bytes) in files {
            let path = self.temporary.join(name);
            fs::write(&path, bytes).map_err(CheckpointError::io("write", &path))?;
            names.push(name.clone());
        }
        names.iter().try_for_each(|name| sync(&self.temporary.join(name)))?;
        sync(&self.temporary)?;
        rename(&self.temporary, &self.folder)?;
        sync(writer::parent_of(&self.folder))?;
        Ok(self.total_bytes)
    }

    /// One shard is the whole; several are numbered and listed in an index.
    fn name_shards(&self) -> Result<Vec<String>, CheckpointError> {
        let n = self.n_shards;
        let named = |shard: usize| match n {
            1 => WEIGHTS.to_string(),
            _ => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
        };
        for shard in 0..n {
            let from = self.temporary.join(unnumbered(shard));
            rename(&from, &self.temporary.join(named(shard)))?;
        }
        let mut names: Vec<String> = (0..n).map(named).collect();
        if n > 1 {
            let map: BTreeMap<&String, String> =
                self.shard_of.iter().map(|(name, shard)| (name, named(*shard))).collect();
            let index =
                json!({ "metadata": { "total_size": self.total_bytes }, "weight_map": map });
            write_json(&self.temporary.join(WEIGHTS_INDEX), &index)?;
            names.push(WEIGHTS_INDEX.into());
        }
        Ok(names)
    }
}

impl Drop for ShardWriter {
    /// What was not finished goes; after `finish` the folder has another name.
    fn drop(&mut self) {
        fs::remove_dir_all(&self.temporary).ok();
    }
}

fn unnumbered(shard: usize) -> String {
    format!("shard-{shard}.safetensors")
}

#[cfg(test)]
mod tests {
    use super::super::Dtype;
    use super::super::reader::CheckpointReader;
    use super::*;

    fn tensor(name: &str, n: usize) -> NewTensor<'static> {
        NewTensor::new(name, Dtype::F32, &[n as u64], vec![0u8; 4 * n])
    }

    #[test]
    fn tensors_are_cut_into_files_that_read_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let (one, many) = (dir.path().join("one"), dir.path().join("many"));
        for (folder, max) in [(&one, 1000), (&many, 40)] {
            let mut shards = ShardWriter::create(folder, max).unwrap();
            // The second fills its file alone, the third and fourth share one.
            for (name, n) in [("a", 3), ("b", 30), ("c", 4), ("d", 5)] {
                shards.add(tensor(name, n)).unwrap();
            }
            let bytes = shards.finish(&json!({}), &[("note.txt".into(), b"hi".to_vec())]).unwrap();
            assert_eq!(bytes, 4 * 42);
            let reader = CheckpointReader::open(folder).unwrap();
            let names: Vec<&str> = reader.tensors().map(|t| t.name.as_str()).collect();
            assert_eq!(names, ["a", "b", "c", "d"]);
            assert_eq!(reader.read_f32("b", &[30]).unwrap(), [0.0; 30]);
            assert_eq!(fs::read(folder.join("note.txt")).unwrap(), b"hi");
        }
        assert!(one.join(WEIGHTS).exists() && !one.join(WEIGHTS_INDEX).exists());
        assert!(many.join("model-00003-of-00003.safetensors").exists());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn nothing_is_left_of_what_was_not_finished() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        let mut shards = ShardWriter::create(&folder, 8).unwrap();
        shards.add(tensor("a", 3)).unwrap();
        shards.add(tensor("b", 3)).unwrap();
        assert!(shards.add(tensor("a", 1)).is_err());
        drop(shards);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::create_dir(&folder).unwrap();
        let again = ShardWriter::create(&folder, 8).err().expect("it is there");
        assert!(again.to_string().contains("is there already"), "{again}");
    }
}
